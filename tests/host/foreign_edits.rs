//! Configuration files of Farrier that were edited since: by an administrator, or by a distribution at every boot. An uninstall, and the
//! undoing of a killed change, keep the lines of others. Offline, on host trees.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use super::support::{CONFIG, Host, program, shim};
use super::trace::is_killed_at;
use farrier::handoff::Outcome;
use rstest::rstest;

const ROOT: &str = "/etc/containerd/config.toml";
const LAST: &str = "/etc/containerd/conf.d/90-last.toml";
const K3S: &str = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
const TEMPLATE: &str = "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.tmpl";
const DROP_IN: &str = "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/farrier.toml";
const MICROK8S: &str = "/var/snap/microk8s/current/args/containerd-template.toml";

const IMPORTING: &str = "version = 2\nimports = ['conf.d/*.toml']\n";
const RENDERED: &str = "version = 3\nimports = []\n\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n  runtime_type = 'io.containerd.runc.v2'\n";
const BASE: &str = "{{ template \"base\" . }}\n";
const K3S_IMPORTING: &str = include_str!("../corpus/distributions/k3s-v1.33.toml");
const SNAP: &str = include_str!("../corpus/distributions/microk8s-template.toml");

/// Lines that an administrator adds at the end of a file.
const MINE: &str = "\n# mine\n[cgroup]\npath = \"\"\n";

/// A host with these files, and the path of the edited file.
struct Scene {
    files: &'static [(&'static str, &'static str)],
    edited: &'static str,
}

/// The lines of a text that are neither comments nor empty.
fn active(text: &str) -> Vec<&str> {
    let lines = text.lines();
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// A file of the administrator or of the distribution.
const IN_PLACE: Scene = Scene {
    files: &[(ROOT, CONFIG)],
    edited: ROOT,
};
/// A file that the root imports, and that containerd loads last.
const IMPORTED: Scene = Scene {
    files: &[(ROOT, IMPORTING), (LAST, CONFIG)],
    edited: LAST,
};
/// An existing Go template.
const OF_K3S: Scene = Scene {
    files: &[(K3S, RENDERED), (TEMPLATE, BASE)],
    edited: TEMPLATE,
};
/// A Go template that Farrier creates.
const NEW_OF_K3S: Scene = Scene {
    files: &[(K3S, RENDERED)],
    edited: TEMPLATE,
};
/// A file that Farrier creates in a directory of imports.
const DROPPED_IN: Scene = Scene {
    files: &[(K3S, K3S_IMPORTING)],
    edited: DROP_IN,
};
/// A template with the snap's own variables.
const OF_MICROK8S: Scene = Scene {
    files: &[(MICROK8S, SNAP)],
    edited: MICROK8S,
};

impl Scene {
    fn host(&self) -> Host {
        let host = Host::new(None);
        host.write("/srv/a", &program(1));
        for (path, text) in self.files {
            host.write(path, text.as_bytes());
        }
        host
    }

    /// The edited file as it was before the first change of Farrier.
    fn before(&self) -> Option<&str> {
        let file = self.files.iter().find(|(path, _)| *path == self.edited);
        file.map(|(_, text)| *text)
    }

    /// The lines without comments that the distribution or containerd still needs when the last handler has left a file with comments.
    fn needed(&self) -> Vec<&str> {
        let created = match self.edited {
            TEMPLATE => BASE,
            _ => "version = 3\n",
        };
        active(self.before().unwrap_or(created))
    }

    fn text(&self, host: &Host) -> Option<String> {
        std::fs::read_to_string(host.path(self.edited)).ok()
    }

    /// Adds [`MINE`] to the file, if the file exists.
    fn edit(&self, host: &Host) -> bool {
        let text = self.text(host);
        if let Some(text) = &text {
            host.write(self.edited, (text.clone() + MINE).as_bytes());
        }
        text.is_some()
    }

    /// Fails unless all lines of Farrier are removed and [`MINE`] is in its place.
    fn assert_only_mine_is_left(&self, host: &Host, when: &str) {
        let text = self.text(host).unwrap_or_else(|| panic!("{when}: gone"));
        match self.before() {
            // An added line end stays if other lines follow.
            Some(before) if before.ends_with('\n') => {
                assert_eq!(text, format!("{before}{MINE}"), "{when}");
            }
            Some(before) => assert_eq!(
                text.replace("\n\n", "\n"),
                format!("{before}{MINE}").replace("\n\n", "\n"),
                "{when}"
            ),
            // The version or the base template stays while the file has other lines.
            None => {
                assert!(text.ends_with(MINE), "{when}: {text}");
                assert!(!text.contains("managed handler"), "{when}: {text}");
            }
        }
        for path in [
            "/opt/farrier",
            "/var/snap/microk8s/common/farrier",
            "/var/lib/farrier",
        ] {
            assert!(!host.path(path).exists(), "{when}: {path}");
        }
    }
}

#[rstest]
#[case::in_place(IN_PLACE)]
#[case::imported(IMPORTED)]
#[case::a_template(OF_K3S)]
#[case::a_managed_template(NEW_OF_K3S)]
#[case::a_managed_drop_in(DROPPED_IN)]
#[case::a_template_of_a_snap(OF_MICROK8S)]
#[tokio::test]
async fn lines_that_others_add_are_kept_by_an_uninstall(#[case] scene: Scene) {
    let host = scene.host();
    let report = host.install(&[shim("a")], &["later"]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert!(scene.edit(&host));
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    scene.assert_only_mine_is_left(&host, "uninstalled");
}

#[rstest]
#[case::in_place(IN_PLACE)]
#[case::imported(IMPORTED)]
#[case::a_template(OF_K3S)]
#[case::a_template_of_a_snap(OF_MICROK8S)]
#[tokio::test]
async fn a_rewritten_file_without_managed_handlers_is_not_written_by_an_uninstall(
    #[case] scene: Scene,
) {
    let host = scene.host();
    host.install(&[shim("a")], &["later"]).await;
    let before = scene.before().unwrap();
    host.write(scene.edited, before.as_bytes());
    let metadata = host.path(scene.edited).metadata().unwrap();
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let now = host.path(scene.edited).metadata().unwrap();
    assert_eq!(
        (now.ino(), now.ctime_nsec()),
        (metadata.ino(), metadata.ctime_nsec())
    );
    assert!(!host.path("/var/lib/farrier").exists());
    assert!(!host.path("/opt/farrier").exists());
}

#[rstest]
#[case::in_place(IN_PLACE)]
#[case::a_managed_template(NEW_OF_K3S)]
#[case::a_managed_drop_in(DROPPED_IN)]
#[tokio::test]
async fn a_rewritten_file_without_managed_handlers_is_repaired_by_the_next_install(
    #[case] scene: Scene,
) {
    let host = scene.host();
    host.install(&[shim("a")], &[]).await;
    let ours = scene.text(&host).unwrap();
    match scene.before() {
        Some(before) => host.write(scene.edited, before.as_bytes()),
        None => std::fs::remove_file(host.path(scene.edited)).unwrap(),
    }
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(scene.text(&host), Some(ours));
}

/// Runs `arguments` on a host that `prepare` made, and kills the run at each of its writes. An administrator adds a line, and then
/// Farrier is uninstalled.
async fn edited_after_a_kill(scene: &Scene, arguments: &[&str], prepare: impl AsyncFn(&Host)) {
    let (mut nth, mut edits) = (1, 0);
    loop {
        let host = scene.host();
        prepare(&host).await;
        let mut command = Command::new(env!("CARGO_BIN_EXE_farrier"));
        command
            .args(arguments)
            .arg("--offline")
            .arg("--host-root")
            .arg(host.root());
        if !is_killed_at(&command, nth) {
            break;
        }
        if scene.edit(&host) {
            let when = format!("{} before write {nth}", arguments[0]);
            let report = host.uninstall(None).await;
            assert!(report.reason.is_none(), "{when}: {report:?}");
            scene.assert_only_mine_is_left(&host, &when);
            edits += 1;
        }
        nth += 1;
    }
    assert!(edits > 4, "the file was there {edits} times");
}

#[rstest]
#[case::in_place(IN_PLACE)]
#[case::a_managed_template(NEW_OF_K3S)]
#[case::a_managed_drop_in(DROPPED_IN)]
#[tokio::test]
async fn lines_that_others_add_after_a_killed_run_are_kept(#[case] scene: Scene) {
    let install = ["install", "--shim=a=file:///srv/a"];
    edited_after_a_kill(&scene, &install, async |_| ()).await;
    let uninstall = ["uninstall", "--all"];
    edited_after_a_kill(&scene, &uninstall, async |host: &Host| {
        host.install(&[shim("a")], &[]).await;
    })
    .await;
}

/// A host whose containerd 1.x has `runc` by default, and its edited file.
const BARE: Scene = Scene {
    files: &[(ROOT, "version = 2\n")],
    edited: ROOT,
};

const CRI: &str = "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes";

#[rstest]
#[case::options_of_runc(&format!("[{CRI}.runc.options]\nSystemdCgroup = true\n"))]
#[case::a_key_of_runc("snapshotter = \"mine\"\n")]
#[tokio::test]
async fn a_runc_that_others_changed_is_kept_by_an_uninstall(#[case] added: &str) {
    let host = BARE.host();
    host.install(&[shim("a")], &[]).await;
    let text = BARE.text(&host).unwrap() + added;
    host.write(ROOT, text.as_bytes());
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let header = format!("[{CRI}.runc]\nruntime_type = \"io.containerd.runc.v2\"\n");
    assert_eq!(host.config(), format!("version = 2\n{header}{added}"));
    assert_eq!(host.uninstall(None).await.result, Outcome::Unchanged);
    assert!(!host.path("/var/lib/farrier").exists());
}

#[rstest]
#[case::of_a_handler("# farrier: managed handler; change its Shim or run farrier install instead")]
#[case::of_a_runc("# farrier: containerd's default runtime, which other handlers would hide")]
#[tokio::test]
async fn a_comment_of_farrier_that_others_copied_makes_no_runc_farrier_s(#[case] comment: &str) {
    let host = BARE.host();
    let text =
        format!("version = 2\n{comment}\n[{CRI}.runc]\nruntime_type = \"io.containerd.runc.v2\"\n");
    host.write(ROOT, text.as_bytes());
    let before = host.tree(false);
    for _ in 0..2 {
        let report = host.install(&[shim("a")], &[]).await;
        assert_eq!(report.result, Outcome::Applied, "{report:?}");
        let report = host.uninstall(None).await;
        assert_eq!(report.result, Outcome::Applied, "{report:?}");
        assert_eq!(host.tree(false), before);
    }
}

#[rstest]
#[case::in_place(IN_PLACE)]
#[case::imported(IMPORTED)]
#[case::a_template(OF_K3S)]
#[case::a_managed_template(NEW_OF_K3S)]
#[case::a_managed_drop_in(DROPPED_IN)]
#[case::a_template_of_a_snap(OF_MICROK8S)]
#[tokio::test]
async fn lines_that_others_add_to_a_handler_are_kept_as_comments(
    #[case] scene: Scene,
    #[values(
        "snapshotter = 'mine'\n",
        "# mine\noptions = { Mine = true } # mine\n",
        "# mine\n"
    )]
    added: &str,
    #[values(false, true)] installs_again: bool,
) {
    let host = scene.host();
    host.install(&[shim("a")], &[]).await;
    let text = scene.text(&host).unwrap() + added;
    host.write(scene.edited, text.as_bytes());
    if installs_again {
        // A comment changes nothing.
        let expected = match active(added).as_slice() {
            [] => Outcome::Unchanged,
            _ => Outcome::Applied,
        };
        let report = host.install(&[shim("a")], &[]).await;
        assert_eq!(report.result, expected, "{report:?}");
        let report = host.install(&[shim("a")], &[]).await;
        assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
    }
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let left = scene.text(&host).unwrap();
    for line in active(added) {
        assert!(left.contains(&format!("# {line}\n")), "{left}");
    }
    assert!(left.contains("mine"), "{left}");
    assert_eq!(active(&left), scene.needed(), "{left}");
    assert_eq!(host.uninstall(None).await.result, Outcome::Unchanged);
    // The comments are others' now, and the next handler is beside them.
    host.install(&[shim("a")], &[]).await;
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(scene.text(&host).unwrap(), left);
}

#[rstest]
#[case::in_place(IN_PLACE)]
#[case::imported(IMPORTED)]
#[tokio::test]
async fn a_handler_that_others_declared_with_another_program_is_theirs(#[case] scene: Scene) {
    let host = scene.host();
    host.install(&[shim("a")], &["later"]).await;
    let ours = "runtime_type = \"/opt/farrier/bin/containerd-shim-a\"";
    let theirs = "runtime_type = \"io.containerd.mine.v1\"";
    let text = scene.text(&host).unwrap();
    assert!(text.contains(ours), "{text}");
    host.write(scene.edited, text.replace(ours, theirs).as_bytes());
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let left = scene.text(&host).unwrap();
    let kept = format!("[{CRI}.a]\n{theirs}\n");
    assert_eq!(left, format!("{}\n{kept}", scene.before().unwrap()));
    assert!(!host.path("/opt/farrier").exists());
    assert!(!host.path("/var/lib/farrier").exists());
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert_eq!(scene.text(&host).unwrap(), left);
}
