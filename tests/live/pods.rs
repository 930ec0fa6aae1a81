//! Restarts of containerd 1.7 that would end a pod, because the shim of the pod reports no process.

use std::ops::ControlFlow;

use farrier::handoff::{Outcome, ProvisionReport, Sha256Digest};

use crate::containerd::programs;
use crate::node::Node;
use crate::sandbox::{Cri, node, wait};
use crate::trace::{follow, is_change};

const INSTALL: [&str; 3] = ["install", "--keep-others", "--shim=y=file:///srv/runc"];

const POD: &str = "1 pod, because its shim does not report its processes: default/pod (handler x)";

/// A node with the handler `x`, whose pods have no process for containerd.
fn node_with_a_silent_shim() -> Node {
    let node = node(&programs()[1]);
    let (status, report) = node.change(&["install", "--shim=x=file:///srv/runc"]);
    assert_eq!(status, 0, "{report:?}");
    node.write("/run/no-processes", b"", 0o644);
    node
}

fn start_pod(node: &Node) {
    wait(async { Cri::connect(node).await.start_pod("x").await });
}

#[test]
fn a_restart_is_refused_while_a_pod_runs_that_it_would_end() {
    let node = node_with_a_silent_shim();
    start_pod(&node);
    let (tree, process) = (node.tree(), node.process());
    let (status, report) = node.change(&INSTALL);
    assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
    assert!(report.reason.unwrap().contains(POD));
    let [pod] = report.ending_pods.pods.as_slice() else {
        panic!("{:?}", report.ending_pods);
    };
    let words = [&pod.namespace, &pod.name, &pod.uid, &pod.handler];
    assert_eq!(words, ["default", "pod", "uid", "x"]);
    let allowed = [&INSTALL[..], &["--on-restart=allow"]].concat();
    let dry = |arguments: &[&str]| node.change(&[arguments, &["--dry-run"]].concat());
    let (status, report) = dry(&INSTALL);
    assert_eq!(status, 3, "{report:?}");
    assert!(report.reason.unwrap().contains(POD));
    let (status, report) = dry(&allowed);
    assert_eq!(status, 0, "{report:?}");
    assert!(report.notes.iter().any(|note| note.contains(POD)));
    assert_eq!((node.tree(), node.process()), (tree, process));
    let (status, report) = node.change(&allowed);
    assert_eq!((status, report.restarts), (0, 1), "{report:?}");
    assert_eq!(report.ending_pods.len(), 1);
    assert!(report.notes.iter().any(|note| note.contains(POD)));
}

#[test]
fn a_new_binary_does_not_wait_for_a_pod() {
    let node = node_with_a_silent_shim();
    let mut binary = std::fs::read(node.path("/srv/runc")).unwrap();
    binary.push(b'\n');
    node.write("/srv/new", &binary, 0o755);
    start_pod(&node);
    let process = node.process();
    let request = [&INSTALL[..], &["--shim=x=file:///srv/new"]].concat();
    let (status, report) = node.change(&request);
    assert_eq!((status, report.result), (1, Outcome::Partial), "{report:?}");
    assert_eq!((report.restarts, report.ending_pods.len()), (0, 1));
    let told = report.handlers.iter();
    let told: Vec<_> = told
        .map(|it| (it.handler.as_str(), it.served, it.waits_for_pods))
        .collect();
    assert_eq!(told, [("x", true, false), ("y", false, true)]);
    assert_eq!(report.handlers[0].sha256, Some(Sha256Digest::of(&binary)));
    assert_eq!(node.process(), process);
    // The rest waits as a whole.
    let tree = node.tree();
    let (status, report) = node.change(&request);
    assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
    assert_eq!((node.tree(), node.process()), (tree, process));
    node.assert_healthy();
}

#[test]
fn a_pod_that_starts_while_farrier_writes_is_not_ended_either() {
    let node = node_with_a_silent_shim();
    let (tree, process) = (node.tree(), node.process());
    let output = tempfile::NamedTempFile::new().unwrap();
    let stdout = output.reopen().unwrap().into();
    let command = node.command(&[&INSTALL[..], &["-o", "json"]].concat());
    let mut begun = false;
    let status = follow(&command, stdout, |program, call| {
        // Farrier has asked for pods, and begins to write. It waits for this function.
        if is_change(program, call) && !begun && node.path("/var/lib/farrier/journal.json").exists()
        {
            begun = true;
            start_pod(&node);
        }
        ControlFlow::Continue(None)
    });
    let text = std::fs::read_to_string(output.path()).unwrap();
    let report = ProvisionReport::from_json(&text).unwrap();
    assert_eq!((status, begun), (Some(3), true), "{report:?}");
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert!(report.reason.unwrap().contains(POD));
    assert_eq!((node.tree(), node.process()), (tree, process));
    node.assert_healthy();
}
