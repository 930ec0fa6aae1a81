//! Changes that nothing disturbs.

use farrier::handoff::Outcome;

use crate::node::{CONFIG, Node, on_each};

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
