//! Changes without faults.

use std::fs;
use std::path::Path;

use farrier::handoff::Outcome;

use crate::containerd::programs;
use crate::node::{CONFIG, CONFIG_PATH, Node, on_each};

#[test]
fn installing_and_removing_shims_restarts_containerd_once_each_and_restores_the_node() {
    on_each(|release| {
        let node = Node::new(release);
        let before = node.tree();
        let first = node.process();
        let (status, report) = node.change(&[
            "install",
            "--shim=a=file:///srv/a",
            "--shim=b=file:///srv/b",
        ]);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
        assert_eq!(report.restarts, 1);
        assert_ne!(node.process(), first);
        node.assert_healthy();

        let second = node.process();
        let (status, report) = node.change(&[
            "install",
            "--shim=a=file:///srv/a",
            "--shim=b=file:///srv/b",
        ]);
        assert_eq!(
            (status, report.result),
            (0, Outcome::Unchanged),
            "{report:?}"
        );
        assert_eq!((report.restarts, node.process()), (0, second));

        let (status, report) = node.change(&["uninstall", "--all"]);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
        assert_eq!(node.config(), CONFIG);
        assert_eq!(node.tree(), before);
        node.assert_healthy();
    });
}

/// Rewrites the configuration, as EKS and COS do at every boot.
#[test]
fn removing_shims_from_a_rewritten_configuration_restarts_containerd_only_if_it_still_serves_them()
{
    on_each(|release| {
        let node = Node::new(release);
        let before = node.tree();
        for is_loaded in [true, false] {
            let (_, report) = node.change(&["install", "--shim=a=file:///srv/a"]);
            assert_eq!(report.result, Outcome::Applied, "{report:?}");
            node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
            if is_loaded {
                node.start();
            }
            let uninstall = ["uninstall", "--all", "--accept-pending-changes"];
            if !is_loaded {
                assert_eq!(node.change(&uninstall[..2]).0, 3);
            }
            let (status, report) = node.change(&uninstall);
            assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
            assert_eq!(report.restarts, u32::from(!is_loaded), "{report:?}");
            assert_eq!(node.tree(), before);
            node.assert_healthy();
        }
    });
}

#[test]
fn a_rewritten_configuration_is_repaired_with_one_restart() {
    on_each(|release| {
        let node = Node::new(release);
        let install = ["install", "--shim=a=file:///srv/a"];
        assert_eq!(node.change(&install).0, 0);
        let (ours, tree) = (node.config(), node.tree());
        node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
        node.start();
        let (status, report) = node.change(&install);
        assert_eq!((status, report.restarts), (0, 1), "{report:?}");
        assert_eq!((node.config(), node.tree()), (ours, tree));
        node.assert_healthy();
    });
}

/// The edited file depends on containerd's release: with 1.x the file that is loaded last, with later releases a file of Farrier.
#[test]
fn a_node_whose_containerd_was_upgraded_is_restored() {
    const LAST: &str = "/etc/containerd/conf.d/90-last.toml";
    const IMPORTING: &str = "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n";
    on_each(|release| {
        let node = Node::stopped(release, &[]);
        node.write(CONFIG_PATH, IMPORTING.as_bytes(), 0o644);
        node.write(LAST, CONFIG.as_bytes(), 0o644);
        let start = |release: &Path| {
            fs::remove_file(node.path("/usr/local/bin/containerd")).unwrap();
            node.copy(release, "/usr/local/bin/containerd");
            node.start();
        };
        let newer = programs()
            .into_iter()
            .skip_while(|other| other != release)
            .skip(1);
        for (newer, moves) in newer.flat_map(|newer| [(newer.clone(), false), (newer, true)]) {
            start(release);
            let before = node.tree();
            let install = ["install", "--shim=a=file:///srv/a"];
            let (_, report) = node.change(&install);
            assert_eq!(report.result, Outcome::Applied, "{report:?}");
            start(&newer);
            if moves {
                let (status, report) = node.change(&install);
                assert_eq!(status, 0, "{report:?}");
                let (_, report) = node.change(&install);
                assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
                node.assert_healthy();
            }
            let (status, report) = node.change(&["uninstall", "--all"]);
            assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
            assert_eq!(report.restarts, 1, "{report:?}");
            assert_eq!(node.tree(), before);
            node.assert_healthy();
        }
    });
}
