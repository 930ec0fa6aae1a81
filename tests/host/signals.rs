//! SIGTERM, SIGINT and SIGHUP at each change of a host by the real program: the change is undone or finished, and reported.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use super::crashes::{arguments, host};
use super::support::{Host, program, shim};
use super::trace::is_interrupted_at;
use farrier::handoff::{Outcome, ProvisionReport};
use farrier::installer::host::{HostRoot, Target};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;

/// Interrupts `arguments` at each of its changes of a host that `prepare` made. Afterwards the host is as before, or as after an
/// undisturbed run.
async fn is_undone_or_finished(
    prepare: impl AsyncFn() -> Host,
    arguments: &[String],
    signal: Signal,
) {
    let whole = prepare().await;
    let mut undisturbed = command(arguments, &whole);
    assert!(
        undisturbed
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    let (mut undone, mut finished) = (0, 0);
    for nth in 1.. {
        let host = prepare().await;
        let before = host.tree(false);
        let output = tempfile::NamedTempFile::new().unwrap();
        let stdout = output.reopen().unwrap().into();
        let command = command(arguments, &host);
        let Some(status) = is_interrupted_at(&command, signal, nth, stdout) else {
            assert!(undone > 10 && finished > 0, "{undone} and {finished}");
            return;
        };
        let text = std::fs::read_to_string(output.path()).unwrap();
        let report = ProvisionReport::from_json(&text).unwrap();
        let now = host.tree(false);
        assert!(
            !host.path("/var/lib/farrier/journal.json").exists(),
            "{nth}"
        );
        if status == 4 {
            undone += 1;
            assert_eq!(finished, 0, "{nth}: {report:?}");
            assert_eq!(now, before, "{nth}: {report:?}");
            assert_eq!(report.result, Outcome::RolledBack, "{nth}");
            assert!(report.interrupted, "{nth}: {report:?}");
            let reason = report.reason.unwrap();
            assert!(reason.contains(signal.as_str()), "{nth}: {reason}");
        } else {
            finished += 1;
            assert_eq!(status, 0, "{nth}: {report:?}");
            assert_eq!(now, whole.tree(false), "{nth}: {report:?}");
            assert_eq!(report.result, Outcome::Applied, "{nth}");
            assert!(!report.interrupted, "{nth}");
            let is_told = |note: &String| note.contains(signal.as_str());
            assert!(report.notes.iter().any(is_told), "{nth}: {report:?}");
        }
    }
}

fn command(arguments: &[String], host: &Host) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farrier"));
    command.args(arguments).args(["--offline", "-o", "json"]);
    command.arg("--host-root").arg(host.root());
    command
}

#[rstest]
#[tokio::test]
async fn an_install_that_gets_a_signal_is_rolled_back_or_finished(
    #[values(Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP)] signal: Signal,
) {
    is_undone_or_finished(async || host(), &arguments(&["a", "b"]), signal).await;
}

#[tokio::test]
async fn an_upgrade_that_gets_a_signal_is_rolled_back_or_finished() {
    let prepare = async || {
        let host = host();
        host.install(&[shim("a")], &[]).await;
        host.write("/srv/a", &program(9));
        host
    };
    is_undone_or_finished(prepare, &arguments(&["a", "b"]), Signal::SIGTERM).await;
}

#[tokio::test]
async fn an_uninstall_that_gets_a_signal_is_rolled_back_or_finished() {
    let prepare = async || {
        let host = host();
        host.install(&[shim("a"), shim("b")], &[]).await;
        host
    };
    let arguments = ["uninstall", "--all"].map(str::to_owned);
    is_undone_or_finished(prepare, &arguments, Signal::SIGTERM).await;
}

#[test]
fn an_install_under_nohup_goes_on_without_its_terminal() {
    let host = host();
    let install = command(&arguments(&["a"]), &host);
    let mut command = Command::new("nohup");
    command.arg(install.get_program()).args(install.get_args());
    let status = is_interrupted_at(&command, Signal::SIGHUP, 1, Stdio::null());
    assert_eq!(status, Some(0));
}

#[test]
fn an_install_that_can_not_write_its_log_is_rolled_back_after_a_signal() {
    // A terminal whose connection has ended refuses each line, as this device does.
    let full = "exec \"$@\" 2>/dev/full";
    for nth in [1, 5, 10] {
        let host = host();
        let before = host.tree(false);
        let install = command(&arguments(&["a"]), &host);
        let mut command = Command::new("sh");
        command.args(["-c", full, "sh"]);
        command.arg(install.get_program()).args(install.get_args());
        let status = is_interrupted_at(&command, Signal::SIGHUP, nth, Stdio::null());
        assert_eq!(status, Some(4), "{nth}");
        assert_eq!(host.tree(false), before, "{nth}");
    }
}

#[rstest]
#[case::beside_other_processes(&[])]
// The kernel drops signals to process 1 of a container that has no handler for them.
#[case::as_process_1(&["unshare", "--pid", "--fork", "--kill-child"])]
#[tokio::test]
async fn a_signal_ends_an_install_that_waits_for_another(#[case] before: &[&str]) {
    let host = host();
    let other = HostRoot::open(host.root()).unwrap();
    let lock = other.lock(Target::Image).await.unwrap();
    let waits = command(&arguments(&["a"]), &host);
    let mut words = before.iter().map(std::ffi::OsStr::new).collect::<Vec<_>>();
    words.push(waits.get_program());
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .args(waits.get_args())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("waiting for another farrier") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0);
    }
    let mut process = child.id().to_string();
    if !before.is_empty() {
        let children = format!("/proc/{process}/task/{process}/children");
        process = std::fs::read_to_string(children).unwrap().trim().to_owned();
    }
    kill(Pid::from_raw(process.parse().unwrap()), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.status.signal()),
        (Some(4), None)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let report = ProvisionReport::from_json(&text).unwrap();
    assert!(report.interrupted && !report.changed, "{report:?}");
    drop(lock);
    drop(other);
    assert_eq!(host.tree(false), self::host().tree(false));
}
