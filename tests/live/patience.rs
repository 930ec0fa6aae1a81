//! A containerd that takes longer than a minute to restore its state after a start.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use farrier::handoff::{Outcome, ProvisionReport};

use crate::containerd::programs;
use crate::node::{CONFIG_PATH, Node};
use crate::removal::{HANGING, prepare_restarts};
use crate::sandbox::{CONFIG, Cri, node, wait};

/// Ends the shim while containerd does not run: the next containerd finds a dead sandbox, and its CRI waits for the clean-up.
const KILL_SHIM: &str = "touch /run/hang; kill -STOP $(cat /run/containerd.pid)
    for process in /proc/[0-9]*; do
        [ \"$(cat $process/comm)\" = runc ] && kill -KILL ${process#/proc/}
    done; true";

/// Ends the clean-up, as a disk that has been slow does in the end.
const LET_GO: &str = "rm /run/hang
    for process in /proc/[0-9]*; do
        grep -q 1000000 $process/cmdline && [ \"$(cat $process/comm)\" = sleep ] && kill -KILL ${process#/proc/}
    done; true";

fn run(node: &Node, script: &str) {
    let status = node.enter("bash").args(["-c", script]).status();
    assert!(status.unwrap().success());
}

/// A node whose containerd, once restarted by `farrier install`, does not serve until the node lets go.
fn restarting(release: usize) -> (Node, Child) {
    let node = node(&programs()[release]);
    node.write("/srv/hanging", HANGING.as_bytes(), 0o755);
    fs::set_permissions(node.path("/srv/runc"), PermissionsExt::from_mode(0o755)).unwrap();
    let config = format!(
        "{CONFIG}[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.hanging]\nruntime_type = \"/srv/hanging\"\n"
    );
    node.write(CONFIG_PATH, config.as_bytes(), 0o644);
    node.start();
    wait(async { Cri::connect(&node).await.start_pod("hanging").await });
    let restarts = prepare_restarts(&node, 1);
    let mut command = node.command(&["install", "--shim=a=file:///srv/a", "-o", "json"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let install = command.stderr(Stdio::piped()).spawn().unwrap();
    wait(restarts.await_restart());
    run(&node, KILL_SHIM);
    restarts.go_on();
    (node, install)
}

/// Reads the log until a wait has taken longer than a minute. Returns the number of lines about it.
fn read_log(install: &mut Child) -> usize {
    let log = BufReader::new(install.stderr.take().unwrap());
    let mut told = 0;
    for line in log.lines() {
        let line = line.unwrap();
        if !line.contains("waiting for containerd to serve") {
            continue;
        }
        told += 1;
        let seconds = line.split("seconds=").nth(1).unwrap_or_default();
        let digits = seconds.trim_matches(|letter: char| !letter.is_ascii_digit());
        let digits = digits.split(|letter: char| !letter.is_ascii_digit()).next();
        if digits.unwrap_or_default().parse::<u64>().unwrap() > 65 {
            return told;
        }
    }
    panic!("the wait ended after {told} lines");
}

fn ended(install: Child) -> (Option<i32>, ProvisionReport) {
    let output = install.wait_with_output().unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code(), report)
}

/// Every release takes a minute, after which a containerd that does not work would be given up, and takes it beside the others.
#[test]
fn a_containerd_that_is_not_initialized_yet_is_waited_for() {
    std::thread::scope(|scope| {
        for release in 0..programs().len() {
            scope.spawn(move || is_waited_for(release));
        }
    });
}

fn is_waited_for(release: usize) {
    let (node, mut install) = restarting(release);
    assert!(read_log(&mut install) >= 6);
    let process = node.process();
    run(&node, LET_GO);
    let (status, report) = ended(install);
    assert_eq!(
        (status, report.result),
        (Some(0), Outcome::Applied),
        "{report:?}"
    );
    assert_eq!(report.restarts, 1, "{report:?}");
    assert!(report.cri_away_ms.unwrap() > 60_000, "{report:?}");
    assert_eq!(node.process(), process);
    node.assert_healthy();
}

#[test]
fn a_containerd_that_ends_while_it_is_waited_for_is_rolled_back() {
    let (node, mut install) = restarting(3);
    read_log(&mut install);
    fs::remove_file(node.path("/run/hang")).unwrap();
    run(&node, "kill -KILL $(cat /run/containerd.pid)");
    let (status, report) = ended(install);
    assert_eq!(
        (status, report.result),
        (Some(4), Outcome::RolledBack),
        "{report:?}"
    );
    assert_eq!(report.restarts, 2, "{report:?}");
    let reason = report.reason.as_deref().unwrap();
    assert!(reason.contains("ended after its restart"), "{reason}");
    node.assert_healthy();
}
