//! The proof of a handler by a pod sandbox (`spec.proof: Sandbox`), on real containerd with the shim of runc.

use std::process::Stdio;
use std::time::Instant;

use farrier::handoff::Outcome;
use farrier::installer::containerd::sandbox::PROOF_LABEL;

use crate::containerd::programs;
use crate::node::{LIMIT, Node, POLL_INTERVAL, Run, on_each, shim};
use crate::sandbox::{Cri, node, wait};

const INSTALL: [&str; 3] = ["install", "--proof=sandbox", "--shim=x=file:///srv/runc"];

fn sandboxes(node: &Node) -> usize {
    wait(async { Cri::connect(node).await.sandboxes().await })
}

#[test]
fn a_shim_that_runs_a_sandbox_is_served_and_proven_once() {
    on_each(|release| {
        let node = node(release);
        let before = node.tree();
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
        assert_eq!((report.restarts, sandboxes(&node)), (1, 0));
        // The second run runs no sandbox, so it does not notice that the shim has stopped working.
        node.write("/usr/local/bin/runc", b"#!/bin/false\n", 0o755);
        let (status, report) = node.change(&INSTALL);
        assert_eq!(
            (status, report.result),
            (0, Outcome::Unchanged),
            "{report:?}"
        );
        node.assert_healthy();
        assert_eq!(node.change(&["uninstall", "--all"]).0, 0);
        assert_eq!(node.tree(), before);
    });
}

#[test]
fn a_shim_that_runs_no_sandbox_is_undone() {
    on_each(|release| {
        let node = node(release);
        node.write("/srv/runc", &shim(1, Run::Ends), 0o644);
        let before = node.tree();
        let (status, report) = node.change(&INSTALL);
        assert_eq!(
            (status, report.result),
            (4, Outcome::RolledBack),
            "{report:?}"
        );
        let reason = report.reason.unwrap();
        assert!(
            reason.contains("handler x failed to run a pod sandbox: "),
            "{reason}"
        );
        assert_eq!((node.tree(), sandboxes(&node)), (before, 0));
        node.assert_healthy();
        // Without the proof, it is served.
        let (status, report) = node.change(&["install", INSTALL[2]]);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
        // A served handler that fails its proof later stays as it is.
        let (tree, process) = (node.tree(), node.process());
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
        assert_eq!((node.tree(), node.process()), (tree, process));
    });
}

/// Creates no container as long as `/run/hang` exists, and else is the stand-in for runc.
const HANGING: &[u8] = b"#!/bin/bash
for word; do
    [ \"$word\" = create ] && touch /run/hangs && while [ -e /run/hang ]; do sleep 0.05; done
done
exec /usr/local/bin/runc.real \"$@\"
";

#[test]
fn the_run_after_a_kill_removes_the_sandbox_of_the_killed_run() {
    let node = node(&programs()[2]);
    let runc = std::fs::read(node.path("/usr/local/bin/runc")).unwrap();
    node.write("/usr/local/bin/runc.real", &runc, 0o755);
    node.write("/usr/local/bin/runc", HANGING, 0o755);
    node.write("/run/hang", b"", 0o644);
    let mut command = node.command(&INSTALL);
    let mut killed = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let since = Instant::now();
    while !node.path("/run/hangs").exists() {
        assert!(since.elapsed() < 6 * LIMIT);
        std::thread::sleep(POLL_INTERVAL);
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(node.path("/var/lib/farrier/journal.json").exists());
    std::fs::remove_file(node.path("/run/hang")).unwrap();
    // As if the kill had come after the start of the sandbox.
    wait(async {
        let mut cri = Cri::connect(&node).await;
        cri.start_labelled_pod("x", &[(PROOF_LABEL, "x")]).await;
    });
    let (status, report) = node.change(&INSTALL);
    assert_eq!(status, 0, "{report:?}");
    assert_eq!(sandboxes(&node), 0);
    node.assert_healthy();
}
