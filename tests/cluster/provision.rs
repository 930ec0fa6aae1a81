//! The main path: from the annotation of a node to the output of a Wasm pod, and back.

use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::support::{Cluster, SHIM, eventually, shim_for};

#[tokio::test]
async fn each_node_runs_the_containerd_release_of_its_name() {
    let cluster = Cluster::with_farrier().await;
    for series in ["1.6", "1.7", "2.1", "2.4"] {
        let node = cluster.node_with(series);
        assert!(cluster.node_is_ready(&node).await);
        let version = cluster.sh(&node, "containerd --version");
        assert!(
            version.contains(&format!(" v{series}.")),
            "{node}: {version}"
        );
    }
}

/// Annotates a node, reads the output of a Wasm pod, removes the annotation, and checks that the host is as before.
async fn there_and_back(series: &str) {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with(series);
    let before = cluster.host(&node);
    let process = cluster.containerd_pid(&node);

    cluster.annotate(&node, Some("true")).await;
    cluster
        .label_becomes(&node, "handler.farrier.dev/wasmi", "true")
        .await;
    let marks = cluster
        .marks_become(&node, "provisioned", |marks| {
            marks.contains_key("kwasm.sh/kwasm-provisioned")
        })
        .await;
    assert_eq!(marks["farrier.dev/wasmi"], "provisioned");
    assert_eq!(marks["wasmi"], "provisioned");
    assert_eq!(marks["kwasm.sh/kwasm-provisioned"], node);
    assert_ne!(
        cluster.containerd_pid(&node),
        process,
        "the handler can only be served by a new process"
    );
    cluster.condition_becomes(SHIM, "Ready", "True", "").await;

    let pod = format!("hello-{node}");
    let output = cluster.wasm_pod(&pod, &node, &[], "Succeeded").await;
    assert!(output.contains("Hello from Wasm"), "{output}");
    cluster.delete_pod(&pod).await;

    let table = cluster.farrier(&["status"]);
    let row = table
        .lines()
        .find(|line| line.contains(&node))
        .unwrap_or_else(|| panic!("{table}"));
    assert!(row.contains("provisioned"), "{table}");

    cluster.annotate(&node, None).await;
    cluster.marks_vanish(&node).await;
    assert_eq!(cluster.host(&node), before);
    assert!(cluster.node_is_ready(&node).await);
}

#[tokio::test]
async fn containerd_1_6_runs_a_wasm_pod_and_is_restored() {
    there_and_back("1.6").await;
}

#[tokio::test]
async fn containerd_1_7_runs_a_wasm_pod_and_is_restored() {
    there_and_back("1.7").await;
}

#[tokio::test]
async fn containerd_2_1_runs_a_wasm_pod_and_is_restored() {
    there_and_back("2.1").await;
}

#[tokio::test]
async fn containerd_2_4_runs_a_wasm_pod_and_is_restored() {
    there_and_back("2.4").await;
}

#[tokio::test]
async fn a_second_run_writes_and_restarts_nothing() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("1.7");
    cluster.annotate(&node, Some("true")).await;
    cluster
        .label_becomes(&node, "handler.farrier.dev/wasmi", "true")
        .await;
    let (process, host) = (cluster.containerd_pid(&node), cluster.host(&node));
    let inodes = "find /etc/containerd /opt/farrier /var/lib/farrier -printf '%p %i %T@\\n' | sort";
    let files = cluster.sh(&node, inodes);

    // Without the summary of the last report the controller does not know the state of the node and creates a Job.
    let summary = "farrier.dev/applied";
    cluster
        .patch_node(
            &node,
            serde_json::json!({"metadata": {"annotations": {summary: null}}}),
        )
        .await;
    // An unknown state is not advertised, so the label returns with the report.
    cluster
        .marks_become(&node, "reported again", |marks| {
            marks.contains_key(summary) && marks.contains_key("handler.farrier.dev/wasmi")
        })
        .await;

    assert_eq!(cluster.containerd_pid(&node), process);
    assert_eq!(cluster.host(&node), host);
    assert_eq!(cluster.sh(&node, inodes), files);
    cluster.annotate(&node, None).await;
    cluster.marks_vanish(&node).await;
}

#[tokio::test]
async fn a_handler_in_use_is_served_until_its_pod_is_deleted() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("2.1");
    let before = cluster.host(&node);
    cluster.annotate(&node, Some("true")).await;
    cluster
        .label_becomes(&node, "handler.farrier.dev/wasmi", "true")
        .await;
    cluster
        .wasm_pod("lasting", &node, &["sleep", "600"], "Running")
        .await;

    cluster.annotate(&node, None).await;
    cluster
        .marks_become(&node, "withdrawn", |marks| {
            !marks.contains_key("handler.farrier.dev/wasmi")
        })
        .await;
    cluster
        .event_tells("Node", &node, &["wasmi", "pods still use the handler"])
        .await;
    assert_eq!(cluster.marks(&node).await["farrier.dev/wasmi"], "removing");
    assert_eq!(
        cluster
            .pods()
            .get("lasting")
            .await
            .unwrap()
            .status
            .unwrap()
            .phase
            .as_deref(),
        Some("Running")
    );

    cluster.delete_pod("lasting").await;
    cluster.marks_vanish(&node).await;
    assert_eq!(cluster.host(&node), before);
}

#[tokio::test]
async fn the_condition_of_a_deleted_shim_names_the_node_with_its_pods() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("2.4");
    let before = cluster.host(&node);
    cluster
        .create_shim(&shim_for("used", &cluster.artifacts.shim))
        .await;
    cluster
        .label(&node, "test.farrier.dev/used", Some("true"))
        .await;
    let handler = "handler.farrier.dev/used";
    cluster.label_becomes(&node, handler, "true").await;
    let sleeps = ["sleep", "600"];
    cluster
        .wasm_pod_of("used", "lasting", &node, &sleeps, "Running")
        .await;

    let shims = cluster.shims();
    let delete = DeleteParams::default();
    shims.delete("used", &delete).await.unwrap();
    let told = format!("{node}: pods still use the handler");
    cluster
        .condition_becomes("used", "Progressing", "True", &told)
        .await;
    assert!(!cluster.marks(&node).await.contains_key(handler));
    let status = cluster.pods().get("lasting").await.unwrap().status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));

    cluster.delete_pod("lasting").await;
    eventually("the Shim is gone", async || {
        let there = shims.get_opt("used").await.unwrap();
        there.map_or(Ok(()), |shim| Err(Box::new(shim.status)))
    })
    .await;
    cluster.marks_vanish(&node).await;
    assert_eq!(cluster.host(&node), before);
    cluster.label(&node, "test.farrier.dev/used", None).await;
}

#[tokio::test]
async fn a_removed_binary_is_fetched_again() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("2.1");
    cluster.annotate(&node, Some("true")).await;
    let progress = "farrier.dev/wasmi";
    cluster.label_becomes(&node, progress, "provisioned").await;
    let restored = cluster.sh(&node, "find /opt/farrier -type f");
    cluster.sh(&node, "find /opt/farrier -type f -delete");

    // The next Job of the node finds the fault. Without another reason, a Job checks the node once a day.
    cluster
        .create_shim(&shim_for("asks", &cluster.artifacts.upgrade))
        .await;
    cluster
        .label(&node, "test.farrier.dev/asks", Some("true"))
        .await;
    cluster
        .event_tells("Node", &node, &["wasmi", "is missing or modified"])
        .await;
    cluster.label_becomes(&node, progress, "provisioned").await;
    let files = cluster.sh(&node, "find /opt/farrier -type f");
    assert!(restored.lines().all(|file| files.contains(file)), "{files}");

    cluster.delete_shim("asks").await;
    cluster.label(&node, "test.farrier.dev/asks", None).await;
    cluster.annotate(&node, None).await;
    cluster.marks_vanish(&node).await;
}

#[tokio::test]
async fn a_binary_is_upgraded_without_a_restart() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("1.7");
    let mut shim = shim_for("swapped", &cluster.artifacts.shim);
    cluster.create_shim(&shim).await;
    cluster
        .label(&node, "test.farrier.dev/swapped", Some("true"))
        .await;
    cluster
        .label_becomes(&node, "handler.farrier.dev/swapped", "true")
        .await;
    let process = cluster.containerd_pid(&node);
    let digest = "sha256sum < /opt/farrier/bin/containerd-shim-swapped";
    let old = cluster.sh(&node, digest);
    assert!(old.starts_with(cluster.artifacts.shim.binary_sha256.as_deref().unwrap()));

    let upgrade = &cluster.artifacts.upgrade;
    shim = cluster.shims().get("swapped").await.unwrap();
    let mut platforms = shim.spec.fetch_strategy.platforms.take().unwrap();
    platforms[0].location.clone_from(&upgrade.url);
    platforms[0].sha256 = Some(upgrade.sha256.clone());
    let upgraded = json!({"spec": {"fetchStrategy": {"platforms": platforms}}});
    cluster
        .shims()
        .patch("swapped", &PatchParams::default(), &Patch::Merge(upgraded))
        .await
        .unwrap();
    eventually("the binary is another", async || {
        let now = cluster.sh(&node, digest);
        if now == old { Err(now) } else { Ok(()) }
    })
    .await;
    cluster
        .condition_becomes("swapped", "Ready", "True", "")
        .await;
    assert_eq!(cluster.containerd_pid(&node), process);

    cluster.delete_shim("swapped").await;
    cluster.label(&node, "test.farrier.dev/swapped", None).await;
}

#[tokio::test]
async fn installing_and_removing_shims_restarts_containerd_once() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("2.1");
    // A Shim that no node requests yet.
    cluster
        .create_shim(&shim_for("second", &cluster.artifacts.shim))
        .await;
    let before = cluster.containerd_pid(&node);
    cluster.annotate(&node, Some("true")).await;
    let (first, second) = ("farrier.dev/wasmi", "farrier.dev/second");
    cluster.label_becomes(&node, first, "provisioned").await;
    let once = cluster.containerd_pid(&node);
    assert_ne!(once, before);

    let wants_second = "test.farrier.dev/second";
    cluster.label(&node, wants_second, Some("true")).await;
    cluster.label_becomes(&node, second, "provisioned").await;
    cluster.annotate(&node, None).await;
    cluster
        .marks_become(&node, "the first is gone", |marks| {
            !marks.contains_key(first)
        })
        .await;
    cluster.annotate(&node, Some("true")).await;
    cluster.label_becomes(&node, first, "provisioned").await;
    cluster.label(&node, wants_second, None).await;
    cluster
        .marks_become(&node, "the second is gone", |marks| {
            !marks.contains_key(second)
        })
        .await;
    assert_eq!(cluster.containerd_pid(&node), once);

    cluster.annotate(&node, None).await;
    cluster.marks_vanish(&node).await;
    assert_ne!(cluster.containerd_pid(&node), once);
    cluster.delete_shim("second").await;
}
