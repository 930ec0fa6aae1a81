//! Configuration files that `--config` names, and those that containerd no longer loads: an uninstall removes all lines of Farrier.
//! Offline, on host trees.

use super::support::{CONFIG, Host, program, shim};
use farrier::handoff::Outcome;
use farrier::installer::{self, Mode};

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
