//! Faults of a node's service manager and containerd: the change is refused before the first write, or rolled back.

use farrier::handoff::Outcome;

use crate::direct::{Node, install};
use crate::host::DOOMED;
use crate::support::Cluster;

/// A change of a faulty node is refused: no file changes, no service restarts, and the reason contains `part`.
fn is_refused(node: &Node<'_>, part: &str) {
    let (files, daemon) = (node.files(), node.containerd());
    node.farrier(&install("v0.1.0"))
        .is(Outcome::Refused, 0)
        .tells(part);
    assert_eq!(node.files(), files);
    assert_eq!(node.containerd(), daemon);
}

#[tokio::test]
async fn without_d_bus_containerd_is_restarted_by_systemctl() {
    let cluster = Cluster::connect().await;
    let node = Node::with(&cluster, "2.4").await;
    let before = node.files();
    node.hide_bus();
    let installed = node.farrier(&install("v0.1.0"));
    let removed = node.farrier("uninstall --all");
    node.show_systemd();
    installed.is(Outcome::Applied, 1);
    removed.is(Outcome::Applied, 1);
    assert_eq!(node.files(), before);
}

#[tokio::test]
async fn without_d_bus_and_systemctl_the_change_is_refused() {
    let cluster = Cluster::connect().await;
    let node = Node::with(&cluster, "1.7").await;
    let (files, daemon) = (node.files(), node.containerd());
    node.hide_systemd();
    let refused = node.farrier(&install("v0.1.0"));
    // If no service manager can be asked for the restart, permission for it changes nothing.
    let allowed = node.farrier(&format!("{} --allow-pod-restarts", install("v0.1.0")));
    node.show_systemd();
    for run in [refused, allowed] {
        run.is(Outcome::Refused, 0)
            .tells("failed to determine whether pods survive")
            .tells("systemctl");
    }
    assert_eq!(node.files(), files);
    assert_eq!(node.containerd(), daemon);
}

#[tokio::test]
async fn a_unit_whose_restart_ends_pods_is_refused() {
    let cluster = Cluster::connect().await;
    let node = Node::with(&cluster, "2.1").await;
    node.override_unit("[Service]\nKillMode=control-group");
    is_refused(&node, "KillMode");
    let allowed = format!("{} --allow-pod-restarts", install("v0.1.0"));
    // The unit was changed after the start of containerd.
    let pending = node.farrier(&allowed);
    pending
        .is(Outcome::Refused, 0)
        .tells("was changed after containerd started");
    let allowed = format!("{allowed} --accept-pending-changes");
    node.farrier(&allowed).is(Outcome::Applied, 1);
    // The restart of a removal is refused as well.
    node.farrier("uninstall --all").is(Outcome::Refused, 0);
    node.plain_unit();
    // The restart would put the removal of these lines into effect.
    node.farrier("uninstall --all")
        .is(Outcome::Refused, 0)
        .tells("was removed after containerd started");
    node.sh("systemctl restart containerd");
    node.farrier("uninstall --all").is(Outcome::Applied, 1);
}

#[tokio::test]
async fn a_changed_environment_file_and_a_unit_that_was_not_reloaded_are_not_put_into_effect() {
    let cluster = Cluster::connect().await;
    let node = Node::with(&cluster, "2.1").await;
    let environment = "/run/farrier-test/environment";
    let set =
        |value| format!("mkdir -p /run/farrier-test; echo FARRIER_TEST={value} > {environment}");
    node.sh(&set("1"));
    let lines = format!("[Service]\nEnvironmentFile={environment}");
    node.override_unit(&lines);
    node.sh("systemctl restart containerd");
    let dry_run = format!("{} --dry-run", install("v0.1.0"));
    node.farrier(&dry_run).is(Outcome::Applied, 1);
    node.sh(&set("2"));
    let told = format!("{environment} was changed after containerd started");
    is_refused(&node, &told);
    node.sh("systemctl restart containerd");
    node.farrier(&dry_run).is(Outcome::Applied, 1);
    node.sh(&format!("rm {environment}"));
    is_refused(
        &node,
        &format!(
            "containerd.service does not start: the environment file {environment} is missing"
        ),
    );
    node.sh(&set("2"));
    node.sh("systemctl restart containerd");

    node.write_unit(&format!("{lines}\nNice=0"));
    is_refused(
        &node,
        "the unit containerd.service was changed after containerd started, and systemd has not reloaded it",
    );
    node.plain_unit();
    node.sh("systemctl restart containerd");
}

#[tokio::test]
async fn a_unit_whose_condition_no_longer_holds_is_not_restarted() {
    let cluster = Cluster::connect().await;
    let node = Node::with(&cluster, "2.1").await;
    let condition = "/run/farrier-test/condition";
    node.sh(&format!("mkdir -p /run/farrier-test; touch {condition}"));
    node.override_unit(&format!("[Unit]\nConditionPathExists={condition}"));
    node.sh("systemctl restart containerd");
    let dry_run = format!("{} --dry-run", install("v0.1.0"));
    node.farrier(&dry_run).is(Outcome::Applied, 1);
    node.sh(&format!("rm {condition}"));
    is_refused(
        &node,
        &format!(
            "containerd.service does not start: ConditionPathExists={condition} does not hold"
        ),
    );
    node.plain_unit();
    node.sh("systemctl restart containerd");
}

#[tokio::test]
async fn a_symlink_that_leads_to_another_containerd_since_the_start_is_not_put_into_effect() {
    let cluster = Cluster::connect().await;
    let node = Node::with(&cluster, "2.1").await;
    let (link, another) = ("/run/farrier-test/containerd", "/run/farrier-test/another");
    node.sh(&format!(
        "mkdir -p /run/farrier-test; ln -s /usr/local/bin/containerd {link}"
    ));
    node.override_unit(&format!("[Service]\nExecStart=\nExecStart={link}"));
    node.sh("systemctl restart containerd");
    let dry_run = format!("{} --dry-run", install("v0.1.0"));
    node.farrier(&dry_run).is(Outcome::Applied, 1);
    node.sh(&format!(
        "cp /usr/local/bin/containerd {another} && ln -sf {another} {link}"
    ));
    is_refused(
        &node,
        &format!("{link} was changed after containerd started"),
    );
    node.plain_unit();
    node.sh("systemctl restart containerd");
}

/// An install that fails after the restart: the old bytes are back, and containerd serves as before.
fn is_rolled_back(node: &Node<'_>, part: &str) {
    let files = node.files();
    node.farrier("install --accept-pending-changes --shim doomed=file:///opt/images/shim-v0.1.0")
        .is(Outcome::RolledBack, 2)
        .tells(part);
    assert_eq!(node.files(), files);
    assert_eq!(node.sh("systemctl is-active containerd"), "active\n");
}

#[tokio::test]
async fn a_containerd_that_starts_without_its_cri_is_rolled_back() {
    let cluster = Cluster::connect().await;
    let node = Node::with(&cluster, "1.7").await;
    node.sh("mkdir -p /run/farrier-test; printf 'version = 2\\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\\n' > /run/farrier-test/none.toml");
    node.override_unit(
        "[Service]\nExecStart=\nExecStart=/bin/sh -c \"grep -q doomed /etc/containerd/config.toml && exec /usr/local/bin/containerd -c /run/farrier-test/none.toml; exec /usr/local/bin/containerd\"",
    );
    is_rolled_back(&node, "CRI plugin");
    node.plain_unit();
}

#[tokio::test]
async fn a_containerd_whose_unit_fails_to_start_is_rolled_back() {
    let cluster = Cluster::connect().await;
    let node = Node::with(&cluster, "2.4").await;
    node.override_unit(&DOOMED.replace("ExecStartPre", "ExecStartPost"));
    is_rolled_back(&node, "containerd.service");
    node.plain_unit();
}

#[tokio::test]
async fn a_containerd_that_never_gets_ready_is_rolled_back() {
    let cluster = Cluster::connect().await;
    let node = Node::with(&cluster, "2.1").await;
    node.override_unit(
        "[Service]\nTimeoutStartSec=5\nExecStartPost=/bin/sh -c \"grep -rq doomed /etc/containerd && sleep 600 || true\"",
    );
    is_rolled_back(&node, "containerd.service");
    node.plain_unit();
}

/// A shim of the administrator: the node's shim of runc, which hangs on `delete` as soon as a file exists.
const HANGING: &str = "#!/bin/sh
for word; do
  if [ \"$word\" = delete ] && [ -e /run/farrier-test/hang ]; then sleep 600; fi
done
exec /usr/local/bin/containerd-shim-runc-v2 \"$@\"
";

#[tokio::test]
async fn a_containerd_that_hangs_on_a_dead_sandbox_is_reported_and_the_next_run_succeeds() {
    let cluster = Cluster::connect().await;
    let node = Node::with(&cluster, "1.7").await;
    let shim = cluster
        .root(&node.name)
        .join("usr/local/bin/containerd-shim-hanging-v1");
    std::fs::write(&shim, HANGING).unwrap();
    node.sh("chmod +x /usr/local/bin/containerd-shim-hanging-v1; mkdir -p /run/farrier-test
             cp -p /etc/containerd/config.toml /run/farrier-test/config.toml
             printf '[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.hanging]\\nruntime_type = \"io.containerd.hanging.v1\"\\n' >> /etc/containerd/config.toml
             systemctl restart containerd");
    node.start_pod("hanging", Some("hanging")).await;
    let files = node.files();
    // The shim dies while no containerd runs, so that the next one finds its sandbox dead.
    node.override_unit(
        "[Service]\nTimeoutStartSec=5\nExecStopPost=/bin/sh -c \"touch /run/farrier-test/hang; pkill -9 -f [r]unc-v2.-namespace || true\"",
    );
    node.farrier(&format!("{} --accept-pending-changes", install("v0.1.0")))
        .is(Outcome::Broken, 2)
        .tells("repair containerd");
    let config = "sha256sum /etc/containerd/config.toml";
    assert!(files.contains(node.sh(config).split(' ').next().unwrap()));
    node.plain_unit();
    node.sh(
        "rm /run/farrier-test/hang; pkill -f '[s]leep 600' || true; systemctl restart containerd",
    );
    let run = node.farrier(&install("v0.1.0"));
    assert_eq!(run.report.result, Outcome::Applied, "{run:#?}");
    node.farrier("uninstall --all").is(Outcome::Applied, 1);
    assert_eq!(node.files(), files);
    cluster.delete_pod("hanging-n17").await;
    node.sh("cp -p /run/farrier-test/config.toml /etc/containerd/config.toml; systemctl restart containerd");
}
