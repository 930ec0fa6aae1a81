//! Lines that an administrator adds to Farrier's tables on a running node: an uninstall has a way out, and deletes none of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use farrier::handoff::Outcome;

use crate::containerd::programs;
use crate::node::{CONFIG_PATH, Node, on_each, on_these};

const RUNTIMES: &str = "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes";

/// containerd serves handler `a` of Farrier beside its default runtimes.
fn with_a(node: &Node) {
    node.write(CONFIG_PATH, b"version = 2\n", 0o644);
    node.start();
    let (status, report) = node.change(&["install", "--shim=a=file:///srv/a"]);
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
}

/// The administrator changes the configuration and restarts containerd, and Farrier is uninstalled.
fn uninstall_after(node: &Node, change: impl FnOnce(String) -> String) -> String {
    node.write(CONFIG_PATH, change(node.config()).as_bytes(), 0o644);
    node.start();
    let (status, report) = node.change(&["uninstall", "--all"]);
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
    node.assert_healthy();
    assert!(!node.path("/opt/farrier").exists());
    assert!(!node.path("/var/lib/farrier/state.json").exists());
    let text = node.config();
    assert!(!text.contains("# farrier: managed"), "{text}");
    text
}

#[test]
fn options_that_an_administrator_adds_to_runc_stay_when_farrier_is_uninstalled() {
    on_each(|release| {
        let node = Node::stopped(release, &[]);
        with_a(&node);
        let is_declared = node.config().contains(&format!("[{RUNTIMES}.runc]"));
        let added = if is_declared {
            format!("[{RUNTIMES}.runc.options]\nSystemdCgroup = true\n")
        } else {
            // containerd 2 keeps its default runtimes beside other handlers.
            format!(
                "[{RUNTIMES}.runc]\nruntime_type = \"io.containerd.runc.v2\"\n[{RUNTIMES}.runc.options]\nSystemdCgroup = true\n"
            )
        };
        let left = uninstall_after(&node, |text| text + &added);
        let runc = format!("[{RUNTIMES}.runc]\nruntime_type = \"io.containerd.runc.v2\"\n");
        let options = format!("[{RUNTIMES}.runc.options]\nSystemdCgroup = true\n");
        assert_eq!(left, format!("version = 2\n{runc}{options}"));
    });
}

#[test]
fn options_that_an_administrator_adds_to_a_handler_become_comments() {
    on_each(|release| {
        let node = Node::stopped(release, &[]);
        with_a(&node);
        let before = format!("[{RUNTIMES}.a]\n");
        let left = uninstall_after(&node, |text| {
            text.replace(
                &before,
                &format!("{before}privileged_without_host_devices = true\n"),
            )
        });
        assert!(
            left.contains("\n# privileged_without_host_devices = true\n"),
            "{left}"
        );
        let values: Vec<&str> = left.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(values, ["version = 2"], "{left}");
    });
}

/// On 1.x, an imported file without a version has that of the root.
#[test]
fn a_version_stays_in_a_created_file_that_imports_another_one() {
    on_these(&programs()[..2], |release| {
        let node = Node::stopped(release, &[]);
        node.write("/sbin/kind", b"config=", 0o644);
        node.start();
        let (status, report) = node.change(&["install", "--shim=a=file:///srv/a"]);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
        let lines = "[plugins.\"io.containerd.grpc.v1.cri\"]\nmax_container_log_line_size = 4242\n";
        node.write("/etc/containerd/mine/m.toml", lines.as_bytes(), 0o644);
        let imports = "version = 2\nimports = [\"/etc/containerd/mine/*.toml\"]\n";
        let config = node.config().replace("version = 2\n", imports);
        node.write(CONFIG_PATH, config.as_bytes(), 0o644);
        node.start();
        let uninstall = ["uninstall", "--all", "--dry-run"];
        let (status, report) = node.change(&uninstall);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
        let [note] = report.notes.as_slice() else {
            panic!("{report:?}");
        };
        assert!(note.starts_with("a rehearsal has started"), "{note}");
        let (status, report) = node.change(&uninstall[..2]);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
        let config = node.config();
        let values: Vec<&str> = config.lines().filter(|it| !it.starts_with('#')).collect();
        assert_eq!(values, imports.lines().collect::<Vec<_>>());
        node.assert_healthy();
    });
}

#[test]
fn a_handler_that_is_the_default_runtime_is_removed_once_another_one_is() {
    on_each(|release| {
        let node = Node::stopped(release, &[]);
        with_a(&node);
        let ours = node.config();
        let default = format!(
            "[{}]\ndefault_runtime_name = \"a\"\n",
            RUNTIMES.trim_end_matches(".runtimes")
        );
        node.write(CONFIG_PATH, format!("{ours}{default}").as_bytes(), 0o644);
        node.start();
        let before = (node.tree(), node.process());
        let sentence = "handler a is the default runtime of containerd, which runs pods without a RuntimeClass";
        assert!(node.is_found(sentence));
        for arguments in [&["uninstall", "--shim", "a"][..], &["uninstall", "--all"]] {
            for more in [&["--dry-run"][..], &[]] {
                let (status, report) = node.change(&[arguments, more].concat());
                assert_eq!((status, report.result), (1, Outcome::Partial), "{report:?}");
                assert_eq!(report.handlers[0].reason.as_deref(), Some(sentence));
                assert_eq!(report.restarts, 0, "{report:?}");
            }
        }
        let without_state = |tree: &BTreeMap<PathBuf, String>| {
            let mut tree = tree.clone();
            tree.retain(|path, _| !path.ends_with("state.json"));
            tree
        };
        assert_eq!(without_state(&node.tree()), without_state(&before.0));
        assert_eq!(node.process(), before.1);
        node.write(CONFIG_PATH, ours.as_bytes(), 0o644);
        node.start();
        let (status, report) = node.change(&["uninstall", "--all"]);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
        assert_eq!(node.config(), "version = 2\n");
        node.assert_healthy();
    });
}

#[test]
fn a_handler_that_an_administrator_declares_with_another_program_is_theirs() {
    on_each(|release| {
        let node = Node::stopped(release, &[]);
        with_a(&node);
        let ours = "runtime_type = \"/opt/farrier/bin/containerd-shim-a\"";
        let theirs = "runtime_type = \"io.containerd.kata.v2\"";
        let left = uninstall_after(&node, |text| text.replace(ours, theirs));
        assert!(
            left.contains(&format!("[{RUNTIMES}.a]\n{theirs}\n")),
            "{left}"
        );
    });
}
