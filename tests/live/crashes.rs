//! The program is killed at random moments, and the next run converges.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use farrier::handoff::Outcome;

use rstest::rstest;

use crate::cases;
use crate::containerd::programs;
use crate::node::{CONFIG, CONFIG_PATH, LIMIT, Node, POLL_INTERVAL, on_each};
use crate::random::Random;
use crate::rehearsal::processes;
use crate::trace::is_killed_at;

const INSTALL: [&str; 3] = [
    "install",
    "--shim=a=file:///srv/a",
    "--shim=b=file:///srv/b",
];
const UNINSTALL: [&str; 2] = ["uninstall", "--all"];

/// How many kills there are on each release.
const MOMENTS: u64 = 6;

/// Fails unless the next run of `arguments` has the result of an undisturbed run.
fn assert_converges(node: &Node, arguments: &[&str], whole: &Whole, when: &str) {
    let (status, report) = node.change(arguments);
    assert_eq!(status, 0, "{when}: {report:?}\n{}", node.log());
    let expected = if arguments == INSTALL {
        &whole.with
    } else {
        &whole.without
    };
    assert_eq!(&node.tree(), expected, "{when}");
    node.assert_healthy();
    let (status, report) = node.change(arguments);
    assert_eq!(
        (status, report.result),
        (0, Outcome::Unchanged),
        "{when}: {report:?}"
    );
}

/// The files of the node with the shims and without them.
struct Whole {
    with: BTreeMap<PathBuf, String>,
    without: BTreeMap<PathBuf, String>,
    /// How long the change from one to the other takes.
    duration: Duration,
}

impl Whole {
    fn of(node: &Node) -> Self {
        let without = node.tree();
        let since = Instant::now();
        assert_eq!(node.change(&INSTALL).0, 0);
        let duration = since.elapsed();
        let with = node.tree();
        assert_eq!(node.change(&UNINSTALL).0, 0);
        assert_eq!(node.config(), CONFIG);
        Self {
            with,
            without,
            duration,
        }
    }
}

/// Kills changes at a sample of their writes. The node changes from one state to the other and back, and each of these changes is killed.
fn at_writes(release: usize) {
    let (node, seed) = (Node::new(&programs()[release]), cases::seed());
    let whole = Whole::of(&node);
    let kills = [&INSTALL[..], &UNINSTALL].map(|arguments| {
        let writes = cases::count_writes(&node.command(arguments));
        assert!(writes > 15, "only {writes} writes were seen");
        let sample: Vec<usize> = cases::sample(seed, release, writes).collect();
        println!("{arguments:?}: {sample:?} of {writes} writes");
        (arguments, sample)
    });
    let most = kills.iter().map(|(_, sample)| sample.len()).max();
    for at in 0..most.unwrap() {
        for (arguments, sample) in &kills {
            let Some(nth) = sample.get(at) else {
                assert_eq!(node.change(arguments).0, 0);
                continue;
            };
            let when = format!("{} before write {nth}", arguments[0]);
            let is_killed = is_killed_at(&node.command(arguments), *nth);
            assert!(is_killed, "{when}: the change has ended");
            assert_converges(&node, arguments, &whole, &when);
        }
    }
}

/// Two releases are enough, as the writes are the same on each release. Together, they take all writes.
#[rstest]
#[case::of_1_7(1)]
#[case::of_2_1(2)]
fn a_change_that_is_killed_at_any_write_is_finished_by_the_next_run(#[case] release: usize) {
    at_writes(release);
}

/// Waits until a restart that a killed change has asked for begins. The service manager's program outlives the change, and may end
/// containerd only after the next run has found it serving, and has undone the change without a restart. `before` are the processes of the
/// node before the change.
fn await_requested_restart(node: &Node, before: &[u32]) {
    let since = Instant::now();
    loop {
        let now = processes(node);
        let has_begun = before.iter().any(|process| !now.contains(process));
        if has_begun || now == before {
            return;
        }
        assert!(since.elapsed() < LIMIT, "{now:?} instead of {before:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[test]
fn a_change_that_is_killed_at_any_moment_is_finished_by_the_next_run() {
    let seed = cases::seed();
    on_each(|release| {
        let node = Node::new(release);
        let whole = Whole::of(&node);
        let mut random = Random(seed);
        for _ in 0..MOMENTS {
            let part = random.below(1000);
            let moment = whole.duration * u32::try_from(part).unwrap() / 1000;
            let when =
                format!("FARRIER_SEED={seed}, after {moment:?}, {part} thousandths of a change");
            for (arguments, back) in [(&INSTALL[..], &UNINSTALL[..]), (&UNINSTALL, &INSTALL)] {
                assert_eq!(node.change(back).0, 0, "{when}");
                let before = processes(&node);
                let mut child = node
                    .command(arguments)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                // The test chooses the moment, and waits for no event.
                std::thread::sleep(moment);
                let _ = child.kill();
                child.wait().unwrap();
                await_requested_restart(&node, &before);
                assert_converges(&node, arguments, &whole, &when);
            }
        }
    });
}

/// Runs a change whose restart ends it.
fn dies(node: &Node, arguments: &[&str], fault: &str) {
    node.fail(&[fault]);
    let output = node.farrier(arguments);
    assert_eq!(
        output.status.code(),
        None,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_recovery_puts_no_edit_of_others_into_effect_with_which_containerd_would_not_serve() {
    on_each(|release| {
        let node = Node::new(release);
        dies(&node, &INSTALL, "dies");
        node.await_cri();
        let ours = node.config();
        let broken = format!("{ours}[debug]\naddress = \"/proc/x/d.sock\"\n");
        node.write(CONFIG_PATH, broken.as_bytes(), 0o644);
        let process = node.process();
        for arguments in [&INSTALL[..], &UNINSTALL] {
            let (status, report) = node.change(arguments);
            assert_eq!((status, report.restarts), (3, 0), "{report:?}");
            let reason = report.reason.unwrap_or_default();
            assert!(reason.contains(CONFIG_PATH), "{reason}");
        }
        assert_eq!((node.config(), node.process()), (broken, process));
        node.write(CONFIG_PATH, ours.as_bytes(), 0o644);
        assert_eq!(node.change(&INSTALL).0, 0);
        node.assert_healthy();
    });
}

#[test]
fn a_change_whose_restart_ends_its_own_pod_is_finished_without_another_restart() {
    on_each(|release| {
        let node = Node::new(release);
        let whole = Whole::of(&node);
        for arguments in [&INSTALL[..], &UNINSTALL] {
            dies(&node, arguments, "dies");
            let process = node.process();
            node.await_cri();
            assert_converges(&node, arguments, &whole, "after its restart");
            assert_eq!(node.process(), process);
        }
    });
}

#[test]
fn a_rollback_whose_restart_ends_its_own_pod_is_finished_without_another_restart() {
    on_each(|release| {
        let node = Node::new(release);
        let whole = Whole::of(&node);
        dies(&node, &INSTALL, "dies-without-cri");
        dies(&node, &UNINSTALL, "dies");
        let process = node.process();
        node.await_cri();
        let (status, report) = node.change(&UNINSTALL);
        assert_eq!((status, report.restarts), (0, 0), "{report:?}");
        assert_eq!((node.tree(), node.process()), (whole.without, process));
        node.assert_healthy();
    });
}

#[test]
fn a_rollback_ends_pods_only_with_allow_pod_restarts() {
    on_each(|release| {
        let node = Node::new(release);
        let whole = Whole::of(&node);
        // All processes in the service's cgroup end with the service.
        node.write("/etc/rc.conf", b"rc_cgroup_cleanup=\"YES\"\n", 0o644);
        let leave = [&INSTALL[..], &["--allow-pod-restarts"]].concat();
        dies(&node, &leave, "dies-without-cri");
        let before = (node.tree(), node.process());
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
        assert!(report.remedy.unwrap().contains("--allow-pod-restarts"));
        assert_eq!((node.tree(), node.process()), before);
        let (status, report) = node.change(&leave);
        assert_eq!((status, report.restarts), (0, 2), "{report:?}");
        // One restart to undo the change, and one for the next change.
        assert!(report.cri_away_ms.is_some(), "{report:?}");
        std::fs::remove_file(node.path("/etc/rc.conf")).unwrap();
        assert_eq!(node.tree(), whole.with);
    });
}
