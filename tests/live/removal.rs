//! Shims that leave while pods use them: what is in use stays, is told of, and goes with a later run.

use std::process::Stdio;
use std::time::Duration;

use farrier::handoff::{Outcome, ProvisionReport};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::node::{Node, on_each};
use crate::sandbox::{CONFIG, Cri, node, wait};

const INSTALL: [&str; 2] = ["install", "--shim=x=file:///srv/runc"];
const REMOVE: [&str; 2] = ["uninstall", "--all"];
const BINARY: &str = "/opt/farrier/bin/containerd-shim-x";

/// A change up to its restart takes a second; a machine whose cores are all busy gets this long.
const LIMIT: Duration = Duration::from_mins(1);

/// Fails unless `report` says that pods use `x`.
fn assert_in_use(report: &ProvisionReport, served: bool) {
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    let [handler] = report.handlers.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(
        (handler.handler.as_str(), handler.served),
        ("x", served),
        "{report:?}"
    );
    let reason = handler.reason.as_deref().unwrap();
    assert!(reason.contains("pods still use it (1 "), "{reason}");
}

fn end_pod(node: &Node, pod: &str) {
    wait(async { Cri::connect(node).await.end_pod(pod).await });
}

#[test]
fn a_handler_that_a_pod_uses_stays_served_and_leaves_when_the_pod_has_gone() {
    on_each(|release| {
        let node = node(release);
        let before = node.tree();
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
        let pod = wait(async { Cri::connect(&node).await.start_pod("x").await });
        let process = node.process();
        let (status, report) = node.change(&REMOVE);
        assert_eq!((status, report.restarts), (1, 0), "{report:?}");
        assert_in_use(&report, true);
        assert_eq!(node.process(), process);
        node.assert_healthy();
        end_pod(&node, &pod);
        let (status, report) = node.change(&REMOVE);
        assert_eq!((status, report.restarts), (0, 1), "{report:?}");
        assert_eq!(node.tree(), before);
    });
}

#[test]
fn a_binary_that_a_pod_takes_up_while_it_leaves_is_taken_by_a_later_run() {
    on_each(|release| {
        let node = node(release);
        let before = node.tree();
        assert_eq!(node.change(&INSTALL).0, 0);
        let (asked, answered) = (node.path("/run/asked"), node.path("/run/answered"));
        for pipe in [&asked, &answered] {
            mkfifo(pipe, Mode::S_IRWXU).unwrap();
        }
        node.fail(&["asks"]);
        let mut command = node.command(&[REMOVE[0], REMOVE[1], "-o", "json"]);
        let removal = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let pod = wait(async {
            let mut asked = pipe::OpenOptions::new()
                .read_write(true)
                .open_receiver(asked)
                .unwrap();
            let waited = timeout(LIMIT, asked.read_u8()).await;
            waited.expect("the restart was never asked for").unwrap();
            Cri::connect(&node).await.start_pod("x").await
        });
        std::fs::write(answered, "\n").unwrap();
        let output = removal.unwrap().wait_with_output().unwrap();
        let report: ProvisionReport = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{report:?}");
        assert_eq!(report.restarts, 1, "{report:?}");
        assert_in_use(&report, false);
        // Declared no more, and still what the pod's end needs.
        assert_eq!(node.config(), CONFIG);
        assert!(node.path(BINARY).exists());
        node.assert_healthy();
        let (status, report) = node.change(&REMOVE);
        assert_eq!((status, report.changed), (1, false), "{report:?}");
        assert_in_use(&report, false);
        end_pod(&node, &pod);
        assert!(!node.farrier(&["doctor"]).status.success());
        let (status, report) = node.change(&REMOVE);
        assert_eq!((status, report.restarts), (0, 0), "{report:?}");
        assert_eq!(node.tree(), before);
        node.assert_healthy();
    });
}
