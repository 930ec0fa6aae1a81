//! Configuration files that `--config` names, and those that containerd no longer loads: an uninstall removes all lines of Farrier.
//! Offline, on host trees.

use super::support::{CONFIG, Host, program, shim};
use farrier::handoff::Outcome;
use farrier::installer::{self, Mode};
use rstest::rstest;

#[tokio::test]
async fn later_runs_use_the_configuration_path_of_the_first_run() {
    let host = Host::new(Some(CONFIG));
    host.write("/srv/a", &program(1));
    host.write("/srv/b", &program(2));
    let named = "/etc/containerd/other.toml";
    host.write(named, CONFIG.as_bytes());
    let before = host.tree(false);
    let mut options = host.named(&[shim("a")], &[]);
    options.host.config = Some(named.into());
    let report = installer::install(&options, Mode::Change).await.report;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(host.config(), CONFIG);
    let diagnosis = installer::doctor(&host.host_options()).await;
    let problems: Vec<_> = diagnosis.findings.iter().map(|it| &it.problem).collect();
    assert!(diagnosis.healthy, "{problems:?}");
    host.install(&[shim("b")], &[]).await;
    assert_eq!(host.config(), CONFIG);
    let text = std::fs::read_to_string(host.path(named)).unwrap();
    assert!(
        text.contains("shim-b\"") && !text.contains("shim-a\""),
        "{text}"
    );
    host.uninstall(None).await;
    assert_eq!(host.tree(false), before);
}

#[tokio::test]
async fn managed_handlers_are_removed_from_a_configuration_that_is_no_longer_loaded() {
    let host = Host::new(Some(CONFIG));
    host.write("/srv/a", &program(1));
    let named = "/etc/containerd/other.toml";
    host.write(named, CONFIG.as_bytes());
    let before = host.tree(false);
    let mut options = host.named(&[shim("a")], &[]);
    options.host.config = Some(named.into());
    installer::install(&options, Mode::Change).await;
    let mut options = host.named(&[shim("a")], &[]);
    options.host.config = Some("/etc/containerd/config.toml".into());
    let report = installer::install(&options, Mode::Change).await.report;
    assert_eq!(report.files.len(), 2, "{report:?}");
    assert!(host.config().contains("shim-a\""));
    let left = std::fs::read_to_string(host.path(named)).unwrap();
    assert_eq!(left, CONFIG);
    host.uninstall(None).await;
    assert_eq!(host.tree(false), before);
}

/// The containerd of k0s, and a release of k0s that reads snippets.
const K0S: [(&str, &str); 3] = [
    ("/usr/local/bin/k0s", ""),
    ("/var/lib/k0s/bin/containerd", ""),
    (
        "/etc/k0s/containerd.toml",
        "# k0s_managed=true\nversion = 3\nimports = ['/run/k0s/containerd-cri.toml']\n",
    ),
];

#[rstest]
#[case::no_toml(
    "20-broken.toml",
    b"this is not toml = =\n",
    "failed to parse /etc/k0s/containerd.d/20-broken.toml: line 1"
)]
#[case::no_text(
    "20-broken.toml",
    b"\xff\xfe",
    "/etc/k0s/containerd.d/20-broken.toml on the host is not UTF-8 text"
)]
#[case::a_hidden_one(".20.toml", b"[a", "failed to parse /etc/k0s/containerd.d/.20.toml")]
#[case::a_key_twice(
    "20.toml",
    b"a = 1\na = 2\n",
    "failed to parse /etc/k0s/containerd.d/20.toml"
)]
#[case::no_table(
    "20.toml",
    b"version = 3\nplugins = 3\n",
    "plugins in /etc/k0s/containerd.d/20.toml is not a table"
)]
#[tokio::test]
async fn a_snippet_that_k0s_can_not_read_is_refused_by_its_name(
    #[case] name: &str,
    #[case] text: &[u8],
    #[case] sentence: &str,
) {
    let host = Host::new(None);
    host.write("/srv/a", &program(1));
    for (path, text) in K0S {
        host.write(path, text.as_bytes());
    }
    host.write("/etc/k0s/containerd.d/10-sound.toml", b"version = 3\n");
    host.write(&format!("/etc/k0s/containerd.d/{name}"), text);
    let before = host.tree(true);
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    let reason = report.reason.unwrap();
    assert!(reason.starts_with(sentence), "{reason}");
    assert_eq!(host.tree(true), before);
    let diagnosis = installer::doctor(&host.host_options()).await;
    let mut problems = diagnosis.findings.iter().map(|finding| &finding.problem);
    assert!(problems.any(|problem| *problem == reason), "{diagnosis:?}");
    // Other names are no snippets.
    let broken = host.path(&format!("/etc/k0s/containerd.d/{name}"));
    std::fs::rename(&broken, broken.with_extension("toml.bak")).unwrap();
    let report = host.install(&[shim("a")], &[]).await;
    let reason = report.reason.unwrap_or_default();
    assert!(!reason.contains("containerd.d"), "{reason}");
}
