//! SIGTERM around a restart: before the restart, the change is undone; during the restart, the change is finished.

use std::fs::File;
use std::io::Read as _;
use std::process::Stdio;

use farrier::handoff::{Outcome, ProvisionReport};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use rstest::rstest;

use crate::cases;
use crate::containerd::programs;
use crate::node::{Node, on_each};
use crate::trace::is_interrupted_at;

const INSTALL: [&str; 3] = [
    "install",
    "--shim=a=file:///srv/a",
    "--shim=b=file:///srv/b",
];
const UNINSTALL: [&str; 2] = ["uninstall", "--all"];

/// Interrupts `arguments` at a sample of its writes. `back` undoes the change of `arguments`.
fn at_writes(node: &Node, release: usize, arguments: &[&str], back: &[&str]) {
    let (mut undone, mut finished) = (0, 0);
    let writes = cases::count_writes(&node.command(arguments));
    assert_eq!(node.change(back).0, 0);
    let sample: Vec<usize> = cases::sample(cases::seed(), release, writes).collect();
    println!("{}: {sample:?} of {writes} writes", arguments[0]);
    for nth in &sample {
        let (before, process) = (node.tree(), node.process());
        let output = tempfile::NamedTempFile::new().unwrap();
        let stdout = Stdio::from(output.reopen().unwrap());
        let command = node.command(&[arguments, &["-o", "json"]].concat());
        let status = is_interrupted_at(&command, Signal::SIGTERM, *nth, stdout);
        let status = status.unwrap_or_else(|| panic!("the change has fewer than {nth} writes"));
        let text = std::fs::read_to_string(output.path()).unwrap();
        let report = ProvisionReport::from_json(&text).unwrap();
        let when = format!("{} at write {nth}: {report:?}", arguments[0]);
        assert!(
            !node.path("/var/lib/farrier/journal.json").exists(),
            "{when}"
        );
        node.assert_healthy();
        if status == 4 {
            undone += 1;
            assert_eq!((finished, report.restarts), (0, 0), "{when}");
            assert_eq!(node.tree(), before, "{when}");
            assert_eq!(node.process(), process, "{when}");
            assert!(report.interrupted, "{when}");
        } else {
            finished += 1;
            assert_eq!((status, report.restarts), (0, 1), "{when}");
            assert_ne!(node.tree(), before, "{when}");
            assert_eq!(node.change(back).0, 0, "{when}");
            assert_eq!(node.tree(), before, "{when}");
        }
    }
    // A smaller sample may lack the few writes after the restart.
    let is_small = sample.len() < writes / 2;
    assert!(
        is_small || undone > 10 && finished > 0,
        "{undone} and {finished}"
    );
}

/// Two releases are enough, as the writes are the same on each release. Together, they take all writes.
#[rstest]
#[case::of_1_7(1)]
#[case::of_2_1(2)]
fn a_change_that_gets_a_signal_is_rolled_back_without_a_restart_or_finished(
    #[case] release: usize,
) {
    let node = Node::new(&programs()[release]);
    at_writes(&node, release, &INSTALL, &UNINSTALL);
    assert_eq!(node.change(&INSTALL).0, 0);
    at_writes(&node, release, &UNINSTALL, &INSTALL);
}

#[test]
fn a_signal_during_the_restart_does_not_interrupt_the_restart() {
    on_each(|release| {
        let node = Node::new(release);
        let (asked, answered) = (node.path("/run/asked"), node.path("/run/answered"));
        for pipe in [&asked, &answered] {
            mkfifo(pipe, Mode::S_IRWXU).unwrap();
        }
        node.fail(&["asks"]);
        let mut command = node.command(&[&INSTALL[..], &["-o", "json"]].concat());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.spawn().unwrap();
        // The service manager waits before it restarts containerd.
        let mut byte = [0];
        File::open(asked).unwrap().read_exact(&mut byte).unwrap();
        // A second one changes nothing, either.
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        }
        std::fs::write(answered, "\n").unwrap();
        let output = child.wait_with_output().unwrap();
        let report = ProvisionReport::from_json(&String::from_utf8_lossy(&output.stdout));
        let report = report.unwrap();
        assert_eq!(output.status.code(), Some(0), "{report:?}");
        assert_eq!((report.result, report.restarts), (Outcome::Applied, 1));
        assert!(!report.interrupted, "{report:?}");
        assert!(
            report.notes.iter().any(|note| note.contains("SIG")),
            "{report:?}"
        );
        node.assert_healthy();
    });
}
