//! Removal of shims that pods use: a used binary stays, the report names it, and a later run removes it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use farrier::handoff::{OnRestart, Outcome, Owner, ProvisionReport, ProvisionRequest, to_json};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rstest::rstest;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::containerd::programs;
use crate::node::{CONFIG_PATH, Node, on_each};
use crate::sandbox::{CONFIG, Cri, node, wait};

const INSTALL: [&str; 2] = ["install", "--shim=x=file:///srv/runc"];
const REMOVE: [&str; 2] = ["uninstall", "--all"];
const BINARY: &str = "/opt/farrier/bin/containerd-shim-x";

/// Time limit for a change up to its restart. This takes a second, and a minute more if the first restart fails.
const LIMIT: Duration = Duration::from_mins(3);

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
    assert!(
        reason.contains("pods still use the handler (1 "),
        "{reason}"
    );
}

/// Restarts of containerd that wait for the test.
pub struct Restarts {
    asked: PathBuf,
    answered: PathBuf,
}

/// Makes the next `count` restarts wait.
pub fn prepare_restarts(node: &Node, count: usize) -> Restarts {
    let restarts = Restarts {
        asked: node.path("/run/asked"),
        answered: node.path("/run/answered"),
    };
    for pipe in [&restarts.asked, &restarts.answered] {
        mkfifo(pipe, Mode::S_IRWXU).unwrap();
    }
    node.fail(&vec!["asks"; count]);
    restarts
}

impl Restarts {
    pub async fn await_restart(&self) {
        let mut pipe = pipe::OpenOptions::new();
        let mut asked = pipe.read_write(true).open_receiver(&self.asked).unwrap();
        let waited = timeout(LIMIT, asked.read_u8()).await;
        waited.expect("the restart was never asked for").unwrap();
    }

    pub fn go_on(&self) {
        fs::write(&self.answered, "\n").unwrap();
    }
}

fn start(node: &Node, arguments: &[&str]) -> Child {
    let mut command = node.command(&[arguments, &["-o", "json"]].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn end_pod(node: &Node, pod: &str) {
    wait(async { Cri::connect(node).await.end_pod(pod).await });
}

#[test]
fn a_handler_in_use_is_served_until_its_pod_has_ended() {
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
fn a_binary_that_a_new_pod_uses_is_removed_by_a_later_run() {
    on_each(|release| {
        let node = node(release);
        let before = node.tree();
        assert_eq!(node.change(&INSTALL).0, 0);
        let asked = prepare_restarts(&node, 1);
        let removal = start(&node, &REMOVE);
        let pod = wait(async {
            asked.await_restart().await;
            Cri::connect(&node).await.start_pod("x").await
        });
        asked.go_on();
        let output = removal.wait_with_output().unwrap();
        let report: ProvisionReport = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{report:?}");
        assert_eq!(report.restarts, 1, "{report:?}");
        assert_in_use(&report, false);
        // The handler is no longer declared, and the end of the pod still needs its binary.
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

const BOTH: [&str; 3] = [INSTALL[0], INSTALL[1], "--shim=b=file:///srv/b"];

/// A node whose change `BOTH` was interrupted and has to be undone, with a pod that a restart ends.
fn interrupted_with_a_pod(handler: &str) -> Node {
    // Of all releases, 1.7 alone ends sandboxes whose shim reports no process. With 2.x, a container would be needed.
    let node = node(&programs()[1]);
    fs::set_permissions(node.path("/srv/runc"), PermissionsExt::from_mode(0o755)).unwrap();
    let config = format!(
        "{CONFIG}[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.theirs]\nruntime_type = \"/srv/runc\"\n"
    );
    node.write(CONFIG_PATH, config.as_bytes(), 0o644);
    node.start();
    assert_eq!(node.change(&INSTALL).0, 0);
    let restarts = prepare_restarts(&node, 1);
    let mut install = start(&node, &BOTH);
    wait(restarts.await_restart());
    install.kill().unwrap();
    install.wait().unwrap();
    restarts.go_on();
    // Somebody edits the file meanwhile, so the change can't be finished.
    let edited = format!("{}\n# of a person\n", node.config());
    node.write(CONFIG_PATH, edited.as_bytes(), 0o644);
    node.start();
    wait(async { Cri::connect(&node).await.start_pod(handler).await });
    node.write("/run/no-processes", b"", 0o644);
    node
}

#[test]
fn the_recovery_of_an_interrupted_change_ends_no_pod_unless_it_is_allowed_to() {
    let node = interrupted_with_a_pod("x");
    let (process, tree) = (node.process(), node.tree());
    let (status, report) = node.change(&BOTH);
    assert_eq!((status, report.restarts), (3, 0), "{report:?}");
    let reason = report.reason.as_deref().unwrap();
    assert!(reason.contains("ends 1 pod"), "{reason}");
    assert!(reason.contains("default/pod (handler x)"), "{reason}");
    assert_eq!((node.process(), node.tree()), (process, tree));
    let (status, report) = node.change(&[&BOTH[..], &["--on-restart=allow"]].concat());
    assert_eq!((status, report.restarts), (0, 2), "{report:?}");
    let note = "the restart of containerd that undid the change ended 1 pod";
    assert!(
        report.notes.iter().any(|it| it.starts_with(note)),
        "{report:?}"
    );
    assert!(node.config().contains("# of a person"));
}

#[rstest]
#[case::of_farrier("x", (0, 2))]
#[case::of_others("theirs", (3, 0))]
fn the_policy_of_a_shim_lets_a_recovery_end_only_pods_of_farrier(
    #[case] handler: &str,
    #[case] expected: (i32, u32),
) {
    let node = interrupted_with_a_pod(handler);
    let reserve = vec!["c".to_owned()];
    let mut request = ProvisionRequest::new(Owner::Local, String::new(), Vec::new(), reserve);
    request.on_restart_by_handler = [(handler.to_owned(), OnRestart::Allow)].into();
    let path = node.path("/srv/request.json");
    fs::write(&path, to_json(&request)).unwrap();
    let before = (node.process(), node.tree());
    let argument = format!("--request={}", path.display());
    let (status, report) = node.change(&["install", &argument]);
    assert_eq!((status, report.restarts), expected, "{report:?}");
    if report.result == Outcome::Refused {
        let reason = report.reason.unwrap();
        assert!(reason.contains("default/pod (handler theirs)"), "{reason}");
        assert_eq!((node.process(), node.tree()), before);
    }
}

/// A shim of the administrator, which hangs when containerd cleans up after a dead sandbox.
pub const HANGING: &str = "#!/bin/bash\nfor word; do [ \"$word\" = delete ] && [ -e /run/hang ] && sleep 1000000; done\nexec /srv/runc \"$@\"\n";

#[test]
fn a_containerd_that_hangs_on_a_dead_sandbox_is_rolled_back() {
    // With each release, containerd waits at its start without a limit. One minute with one release is enough to show that.
    let node = node(&programs()[3]);
    node.write("/srv/hanging", HANGING.as_bytes(), 0o755);
    fs::set_permissions(node.path("/srv/runc"), PermissionsExt::from_mode(0o755)).unwrap();
    let config = format!(
        "{CONFIG}[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.hanging]\nruntime_type = \"/srv/hanging\"\n"
    );
    node.write(CONFIG_PATH, config.as_bytes(), 0o644);
    node.start();
    let before = node.tree();
    wait(async { Cri::connect(&node).await.start_pod("hanging").await });
    let restarts = prepare_restarts(&node, 2);
    // Of a longer deadline, the half is spent on waiting for this containerd, which says that it is not initialized yet.
    let arguments = ["install", "--shim=a=file:///srv/a", "--deadline=150"];
    let install = start(&node, &arguments);
    wait(restarts.await_restart());
    // The shim ends while containerd does not run, and the next containerd finds a dead sandbox.
    let script = "touch /run/hang; kill -STOP $(cat /run/containerd.pid)
        for process in /proc/[0-9]*; do
            [ \"$(cat $process/comm)\" = runc ] && kill -KILL ${process#/proc/}
        done; true";
    let killed = node.enter("bash").args(["-c", script]).status();
    assert!(killed.unwrap().success());
    restarts.go_on();
    wait(restarts.await_restart());
    fs::remove_file(node.path("/run/hang")).unwrap();
    restarts.go_on();
    let output = install.wait_with_output().unwrap();
    let report: ProvisionReport = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4), "{report:?}");
    assert_eq!((report.result, report.restarts), (Outcome::RolledBack, 2));
    let reason = report.reason.as_deref().unwrap();
    assert!(reason.contains("did not serve within"), "{reason}");
    assert_eq!(node.tree(), before);
    node.assert_healthy();
}
