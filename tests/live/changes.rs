//! Changes that nothing disturbs.

use farrier::handoff::Outcome;

use crate::node::{CONFIG, CONFIG_PATH, Node, on_each};

#[test]
fn shims_come_and_go_with_a_restart_each_and_leave_no_trace() {
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

/// As EKS and COS do at every boot.
#[test]
fn a_configuration_that_was_made_anew_costs_no_restart_that_has_come_already() {
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
            let (status, report) = node.change(&["uninstall", "--all"]);
            assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
            assert_eq!(report.restarts, u32::from(!is_loaded), "{report:?}");
            assert_eq!(node.tree(), before);
            node.assert_healthy();
        }
    });
}

#[test]
fn a_configuration_that_was_made_anew_is_repaired_with_one_restart() {
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
