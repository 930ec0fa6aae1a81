//! Nodes whose administrator starts containerd in an unusual way, or changes a file that Farrier wrote. The Jobs of Farrier follow, and the
//! lines of the administrator stay.

use crate::direct::Node;
use crate::support::{Cluster, shim_for};

const HANDLER: &str = "handler.farrier.dev/wasmi";
const CONFIG: &str = "cat /etc/containerd/config.toml";
const RUNC: &str = "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc";

/// Keeps the configuration for [`RESTORE`].
const KEEP: &str = "cp -p /etc/containerd/config.toml /root/kept.toml";
const RESTORE: &str =
    "mv /root/kept.toml /etc/containerd/config.toml; systemctl restart containerd";

#[tokio::test]
async fn options_that_an_administrator_adds_to_runc_stay_when_the_shim_is_removed() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("1.7");
    // On 1.x, the default runc ends with the first runtime that is declared, so Farrier declares runc, too.
    cluster.sh(
        &node,
        &format!("{KEEP}; sed -i '/runtimes.runc\\]/,$d' /etc/containerd/config.toml; systemctl restart containerd"),
    );
    let without_runc = cluster.sh(&node, CONFIG);
    cluster.annotate(&node, Some("true")).await;
    cluster.label_becomes(&node, HANDLER, "true").await;
    let runc = format!("[{RUNC}]\nruntime_type = \"io.containerd.runc.v2\"\n");
    let installed = cluster.sh(&node, CONFIG);
    assert!(installed.contains(&runc), "{installed}");
    let options = format!("[{RUNC}.options]\nNoNewKeyring = true\n");
    cluster.sh(
        &node,
        &format!(
            "printf '%s' '{options}' >> /etc/containerd/config.toml; systemctl restart containerd"
        ),
    );

    cluster.annotate(&node, None).await;
    cluster.marks_vanish(&node).await;

    let left = cluster.sh(&node, CONFIG);
    assert_eq!(left, format!("{without_runc}{runc}{options}"));
    assert!(cluster.node_is_ready(&node).await);
    cluster.sh(&node, &format!("[ ! -e /opt/farrier ]; {RESTORE}"));
}

#[tokio::test]
async fn the_file_that_containerd_loads_is_edited_and_restored() {
    let cluster = Cluster::with_farrier().await;
    let directory = "/srv/containerd";
    let command_lines = [
        (
            "1.7",
            "--config /srv/containerd/one.toml --config /srv/containerd/two.toml",
        ),
        ("2.1", "--config two.toml"),
    ];
    let nodes = command_lines.map(|(series, options)| {
        let node = Node {
            cluster: &cluster,
            name: cluster.node_with(series),
        };
        let before = cluster.host(&node.name);
        node.sh(&format!(
            "mkdir {directory}; grep -v ^imports /etc/containerd/config.toml | tee {directory}/one.toml > {directory}/two.toml"
        ));
        node.override_unit(&format!(
            "[Service]\nWorkingDirectory={directory}\nExecStart=\nExecStart=/usr/local/bin/containerd {options}"
        ));
        node.sh("systemctl restart containerd");
        (node, before)
    });
    let digests = format!("sha256sum {directory}/*");
    for (node, _) in &nodes {
        cluster.annotate(&node.name, Some("true")).await;
    }
    for (node, _) in &nodes {
        cluster.label_becomes(&node.name, HANDLER, "true").await;
        let edited = node.sh(&format!(
            "grep -l farrier {directory}/* /etc/containerd/config.toml"
        ));
        assert_eq!(edited, format!("{directory}/two.toml\n"));
        cluster.annotate(&node.name, None).await;
    }
    for (node, before) in &nodes {
        cluster.marks_vanish(&node.name).await;
        let digests = node.sh(&digests);
        let digests: Vec<&str> = digests.lines().map(|line| &line[..64]).collect();
        assert_eq!(digests[0], digests[1], "{}", node.name);
        node.plain_unit();
        node.sh(&format!("systemctl restart containerd; rm -r {directory}"));
        assert_eq!(cluster.host(&node.name), *before);
    }
}

#[tokio::test]
async fn an_edit_of_a_file_that_farrier_wrote_takes_effect_only_if_the_chart_accepts_it() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("1.7");
    let original = cluster.sh(&node, CONFIG);
    cluster.sh(&node, KEEP);
    cluster.annotate(&node, Some("true")).await;
    cluster.label_becomes(&node, HANDLER, "true").await;
    let edit = "[debug]\n  level = \"info\"\n";
    cluster.sh(
        &node,
        &format!("printf '%s' '{edit}' >> /etc/containerd/config.toml"),
    );
    let before = (cluster.sh(&node, CONFIG), cluster.containerd_pid(&node));

    let shim = shim_for("second", &cluster.artifacts.upgrade);
    cluster.create_shim(&shim).await;
    let selected = "test.farrier.dev/second";
    cluster.label(&node, selected, Some("true")).await;
    let (progress, second) = ("farrier.dev/second", "handler.farrier.dev/second");
    cluster.label_becomes(&node, progress, "failed").await;
    let told = "/etc/containerd/config.toml was changed after containerd started, and is no longer as Farrier wrote it";
    let help = "job.acceptPendingChanges";
    cluster.event_tells("Node", &node, &[told, help]).await;
    let now = (cluster.sh(&node, CONFIG), cluster.containerd_pid(&node));
    assert_eq!(now, before);
    let marks = cluster.marks(&node).await;
    assert_eq!(marks[HANDLER], "true", "the other shim goes on");

    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/farrier");
    let accept = ["--reuse-values", "--set", "job.acceptPendingChanges=true"];
    let upgrade = ["upgrade", "farrier", chart, "-n", "farrier", "--wait"];
    cluster.helm(&[&upgrade[..], &accept].concat());
    cluster.label_becomes(&node, second, "true").await;
    assert_ne!(cluster.containerd_pid(&node), before.1);
    cluster.helm_install();

    cluster.delete_shim("second").await;
    cluster.label(&node, selected, None).await;
    cluster.annotate(&node, None).await;
    cluster.marks_vanish(&node).await;
    let left = cluster.sh(&node, CONFIG);
    assert_eq!(left, format!("{original}{edit}"));
    cluster.sh(&node, RESTORE);
}
