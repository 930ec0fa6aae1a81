//! Farrier run on the node itself: the pods of the node survive installs, upgrades, refusals and removals of shims.

use farrier::handoff::Outcome;

use crate::direct::{HANDLER, Node, install, on_every_node};
use crate::support::{Cluster, eventually};

/// Refuses to start containerd on a configuration that names the handler `doomed`, which its dump takes.
pub const DOOMED: &str = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStartPre=/bin/sh -c \"! grep -rq doomed /etc/containerd\"";

/// A handler of Farrier whose shim is the node's own shim of runc.
const RUNC: &str = "--shim again=file:///usr/local/bin/containerd-shim-runc-v2";

/// Installs, fails to install, upgrades and removes while three pods run: one of runc, one of a shim that Farrier installed, and a Wasm
/// pod, which starts after the last restart: see [`wasm_fares_as_with_a_bare_restart`].
async fn pods_go_on(series: &'static str) {
    let cluster = Cluster::connect().await;
    let node = Node::with(&cluster, series).await;
    let before = node.files();
    node.start_pod("runc", None).await;
    let (pods, processes) = (node.pods().await, node.processes());

    node.farrier(&format!("install {RUNC}"))
        .is(Outcome::Applied, 1);
    assert_eq!(node.processes(), processes, "an install ends no pod");
    assert_eq!(node.pods().await, pods);

    node.start_pod("again", Some("again")).await;
    let (pods, processes) = (node.pods().await, node.processes());
    assert_eq!(pods.len(), 2);
    let installed = node.files();
    node.override_unit(DOOMED);
    let doomed = "install --keep-others --accept-pending-changes --shim doomed=file:///opt/images/shim-v0.1.0";
    node.farrier(doomed)
        .is(Outcome::RolledBack, 2)
        .tells("rolled back");
    node.plain_unit();
    assert_eq!(node.files(), installed, "what failed leaves no byte");
    assert_eq!(node.processes(), processes, "a failed install ends no pod");

    let both = |release: &str| format!("{} {RUNC}", install(release));
    let run = node.farrier(&both("v0.1.0")).is(Outcome::Applied, 1);
    assert_eq!(run.served(), ["again", HANDLER]);
    assert_eq!(node.processes(), processes, "another install ends no pod");

    node.start_pod("wasm", Some(HANDLER)).await;
    let (pods, processes) = (node.pods().await, node.processes());
    let daemon = node.containerd();
    let run = node.farrier(&both("v0.2.0")).is(Outcome::Applied, 0);
    assert_eq!(run.served(), ["again", HANDLER]);
    assert_eq!(node.containerd(), daemon, "a new binary restarts nothing");
    assert_eq!(node.processes(), processes, "an upgrade ends no pod");

    let installed = node.files();
    let run = node.farrier("uninstall --all").is(Outcome::Partial, 0);
    assert_eq!(run.served(), ["again", HANDLER], "what is in use stays");
    assert_eq!(node.files(), installed);
    assert_eq!(node.pods().await, pods);
    run.tells("pods still use the handler");

    node.stop_pods(&["wasm", "again"]).await;
    let (pods, processes) = (node.pods().await, node.processes());
    node.farrier("uninstall --all").is(Outcome::Applied, 1);
    assert_eq!(node.files(), before, "nothing is left");
    assert_eq!(node.processes(), processes, "a removal ends no pod");
    assert_eq!(node.pods().await, pods);
    assert!(cluster.node_is_ready(&node.name).await);
}

#[test]
fn pods_survive_install_upgrade_failure_and_removal_on_every_containerd() {
    on_every_node(pods_go_on);
}

/// Changes of a node on which a pod of Wasm runs.
///
/// containerd 1.7 and later ask every shim for its processes when they start, and end each shim that does not report them (`loadShim` in
/// `runtime/v2/shim_load.go`, "cleaning leaked shim process"). Shims built on runwasi, up to containerd-shimkit 0.1, do not report their
/// processes. Such a pod survives a run without a restart, and ends with every restart of containerd. An install that needs one is refused
/// before it, unless the restart is allowed.
async fn wasm_fares_as_with_a_bare_restart(series: &'static str) {
    let cluster = Cluster::connect().await;
    let node = Node::with(&cluster, series).await;
    let before = node.files();
    node.farrier(&format!("{} --reserve again", install("v0.1.0")))
        .is(Outcome::Applied, 1);
    node.start_pod("wasm", Some(HANDLER)).await;
    let (pods, processes) = (node.pods().await, node.processes());

    for words in [
        "install --keep-others --reserve again --shim direct=file:///opt/images/shim-v0.2.0",
        &format!("install --keep-others --reserve again {RUNC}"),
        "uninstall --shim again",
    ] {
        node.farrier(words).is(Outcome::Applied, 0);
        assert_eq!(node.processes(), processes, "{words} ends no pod");
    }
    let run = node
        .farrier("install --keep-others --reserve again --shim text=file:///etc/hostname")
        .tells("neither a .tar.gz archive nor");
    assert_eq!(run.report.restarts, 0);
    assert_eq!(
        node.processes(),
        processes,
        "a shim that is refused ends no pod"
    );
    assert_eq!(node.pods().await, pods);

    node.sh("systemctl restart containerd");
    let goes_on = node.processes() == processes;
    assert_eq!(goes_on, series == "1.6", "a bare restart");
    // The node may run pods of others, too.
    let running = |processes: &str| processes.matches(" RUNNING ").count();
    let expected = running(&processes);
    eventually("the kubelet has all of them again", async || {
        let now = node.processes();
        if running(&now) == expected {
            Ok(())
        } else {
            Err(now)
        }
    })
    .await;
    let processes = node.processes();
    let other = "install --keep-others --shim other=file:///opt/images/shim-v0.1.0";
    let ends = "a restart of containerd ends 1 pod, because its shim does not report its processes";
    let (files, daemon) = (node.files(), node.containerd());
    if !goes_on {
        node.farrier(other).is(Outcome::Refused, 0).tells(ends);
        assert_eq!(node.processes(), processes, "a refused install");
        assert_eq!((node.files(), node.containerd()), (files, daemon));
    }
    let run = node
        .farrier(&format!("{other} --on-restart allow"))
        .is(Outcome::Applied, 1);
    let noted = run.report.notes.iter().any(|note| note.starts_with(ends));
    assert_eq!(noted, !goes_on, "{run:#?}");
    assert_eq!(node.processes() == processes, goes_on, "an install");

    node.stop_pods(&["wasm"]).await;
    node.sh("farrier doctor --end-orphans || true");
    node.farrier("uninstall --all").is(Outcome::Applied, 1);
    assert_eq!(node.files(), before);
}

#[test]
fn an_install_affects_a_wasm_pod_exactly_as_a_restart_of_containerd_does() {
    on_every_node(wasm_fares_as_with_a_bare_restart);
}

/// Seven shims added, upgraded and removed one by one, with all of their handlers reserved at the first.
async fn seven_shims_cost_two_restarts(series: &'static str) {
    let cluster = Cluster::connect().await;
    let node = Node::with(&cluster, series).await;
    let before = node.files();
    let names: Vec<String> = (1..=7).map(|number| format!("seven-{number}")).collect();
    let reserve = names
        .iter()
        .fold(String::new(), |words, name| words + " --reserve " + name);
    let mut restarts = Vec::new();
    for release in ["v0.1.0", "v0.2.0"] {
        for name in &names {
            let shim = format!("--shim {name}=file:///opt/images/shim-{release}");
            let run = node.farrier(&format!("install --keep-others {shim}{reserve}"));
            assert_eq!(run.status, 0, "{run:#?}");
            assert!(run.served().contains(&name.as_str()), "{run:#?}");
            restarts.push(run.report.restarts);
        }
    }
    for name in &names {
        let run = node.farrier(&format!("uninstall --shim {name}"));
        assert_eq!(run.status, 0, "{run:#?}");
        restarts.push(run.report.restarts);
    }
    let mut expected = vec![0; 21];
    (expected[0], expected[20]) = (1, 1);
    assert_eq!(restarts, expected, "restarts by step");
    assert_eq!(node.files(), before);
}

#[test]
fn seven_reserved_shims_restart_containerd_at_the_first_install_and_the_last_removal() {
    on_every_node(seven_shims_cost_two_restarts);
}
