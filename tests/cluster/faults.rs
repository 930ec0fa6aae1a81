//! Faults end in one clear sentence in the report, on the node and on the Shim, and the node still works.

use crate::support::{Artifact, Cluster, shim_for};

/// Requests the Shim on the node, waits until the failure is reported everywhere, and removes the Shim.
async fn is_told(cluster: &Cluster, node: &str, shim: &str, fault: &Artifact, sentence: &str) {
    let before = cluster.host(node);
    cluster.create_shim(&shim_for(shim, fault)).await;
    cluster
        .label(node, &format!("test.farrier.dev/{shim}"), Some("true"))
        .await;

    cluster
        .label_becomes(node, &format!("farrier.dev/{shim}"), "failed")
        .await;
    cluster.event_tells("Node", node, &[sentence]).await;
    cluster
        .condition_becomes(shim, "Degraded", "True", sentence)
        .await;
    let marks = cluster.marks(node).await;
    assert!(
        !marks.contains_key(&format!("handler.farrier.dev/{shim}")),
        "{marks:?}"
    );
    assert!(cluster.node_is_ready(node).await);
    assert_eq!(cluster.host(node), before, "nothing may be half-installed");
}

async fn take_away(cluster: &Cluster, node: &str, shim: &str) {
    cluster.delete_shim(shim).await;
    cluster
        .label(node, &format!("test.farrier.dev/{shim}"), None)
        .await;
    cluster
        .marks_become(node, "released", |marks| {
            !marks.contains_key(&format!("farrier.dev/{shim}"))
        })
        .await;
}

async fn artifact_is_refused(shim: &str, fault: &str, sentence: &str) {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("1.7");
    let fault = cluster.artifacts.faults[fault].clone();
    is_told(&cluster, &node, shim, &fault, sentence).await;
    take_away(&cluster, &node, shim).await;
}

#[tokio::test]
async fn a_wrong_digest_is_reported() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("1.7");
    let fault = Artifact {
        sha256: "0".repeat(64),
        ..cluster.artifacts.shim.clone()
    };
    is_told(&cluster, &node, "wrong-digest", &fault, "SHA-256").await;
    take_away(&cluster, &node, "wrong-digest").await;
}

#[tokio::test]
async fn an_unreachable_url_is_reported() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("1.7");
    // Nothing listens on this port of the server's address.
    let (address, _) = cluster.artifacts.https.rsplit_once(':').unwrap();
    let fault = Artifact {
        url: format!("{address}:9/shim.tar.gz"),
        ..cluster.artifacts.shim.clone()
    };
    is_told(&cluster, &node, "unreachable", &fault, &fault.url).await;
    take_away(&cluster, &node, "unreachable").await;
}

#[tokio::test]
async fn a_url_that_is_not_found_is_reported() {
    artifact_is_refused("not-found", "not-found", "404").await;
}

#[tokio::test]
async fn an_archive_without_the_binary_is_reported() {
    artifact_is_refused("no-binary", "no-binary", "containerd-shim-wasmi-v1").await;
}

#[tokio::test]
async fn an_archive_with_a_path_outside_its_directory_is_reported() {
    artifact_is_refused("climbing", "climbing", "evil").await;
}

#[tokio::test]
async fn a_failing_shim_does_not_delay_another() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("2.1");
    let good = cluster.artifacts.shim.clone();
    cluster.create_shim(&shim_for("good", &good)).await;
    let bad = Artifact {
        sha256: "0".repeat(64),
        ..good
    };
    cluster.create_shim(&shim_for("bad", &bad)).await;
    let both = serde_json::json!({"test.farrier.dev/good": "true", "test.farrier.dev/bad": "true"});
    cluster
        .patch_node(&node, serde_json::json!({"metadata": {"labels": both}}))
        .await;

    cluster
        .label_becomes(&node, "handler.farrier.dev/good", "true")
        .await;
    cluster
        .label_becomes(&node, "farrier.dev/bad", "failed")
        .await;
    assert_eq!(
        cluster.marks(&node).await["farrier.dev/good"],
        "provisioned"
    );
    take_away(&cluster, &node, "bad").await;
    take_away(&cluster, &node, "good").await;
}

#[tokio::test]
async fn an_invalid_configuration_is_reported_and_left_alone() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("1.7");
    let good = cluster.artifacts.shim.clone();
    cluster.sh(&node, "cp -p /etc/containerd/config.toml /root/kept.toml; echo '[plugins' >> /etc/containerd/config.toml");
    is_told(
        &cluster,
        &node,
        "unparsable",
        &good,
        "/etc/containerd/config.toml",
    )
    .await;
    cluster.sh(
        &node,
        "cp -p /root/kept.toml /etc/containerd/config.toml; rm /root/kept.toml",
    );
    take_away(&cluster, &node, "unparsable").await;
}

#[tokio::test]
async fn a_change_that_somebody_left_pending_is_reported_and_not_put_into_effect() {
    let cluster = Cluster::with_farrier().await;
    for series in ["1.6", "1.7", "2.1", "2.4"] {
        let node = cluster.node_with(series);
        let good = cluster.artifacts.shim.clone();
        cluster.sh(
            &node,
            "cp -p /etc/containerd/config.toml /root/kept.toml
             printf '[debug]\\naddress = \"/proc/x/d.sock\"\\n' >> /etc/containerd/config.toml",
        );
        // These words come from a rehearsal in the Job.
        let told = "was changed after containerd started, and containerd does not start with it";
        is_told(&cluster, &node, "pending", &good, told).await;
        cluster.sh(
            &node,
            "cp -p /root/kept.toml /etc/containerd/config.toml; rm /root/kept.toml",
        );
        take_away(&cluster, &node, "pending").await;
    }
}

#[tokio::test]
async fn a_containerd_of_an_ordinary_user_changes_nothing() {
    let cluster = Cluster::with_farrier().await;
    for series in ["1.6", "2.4"] {
        let node = cluster.node_with(series);
        let before = cluster.host(&node);
        // As a user of the node would write it: a program of this name, with a configuration of the user.
        let user = "setpriv --reuid=65534 --regid=65534 --clear-groups";
        cluster.sh(
            &node,
            &format!(
                "mkdir -m 777 /tmp/f1; cp /bin/bash /tmp/f1/containerd; mkfifo -m 666 /tmp/f1/wait
                 {user} setsid -f /tmp/f1/containerd -c 'read </tmp/f1/wait' --config=/tmp/f1/evil.toml </dev/null >/dev/null 2>&1"
            ),
        );
        cluster.annotate(&node, Some("true")).await;
        cluster
            .label_becomes(&node, "handler.farrier.dev/wasmi", "true")
            .await;
        assert_eq!(cluster.sh(&node, "ls /tmp/f1"), "containerd\nwait\n");
        cluster.annotate(&node, None).await;
        cluster.marks_vanish(&node).await;
        cluster.sh(&node, "pkill -f '^/tmp/f1/[c]ontainerd'; rm -r /tmp/f1");
        assert_eq!(cluster.host(&node), before);
    }
}

#[tokio::test]
async fn a_containerd_that_does_not_start_is_reported_and_rolled_back() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("1.7");
    let good = cluster.artifacts.shim.clone();
    // A containerd that dumps any configuration, and refuses Farrier's when it starts.
    let drop_in = "/run/systemd/system/containerd.service.d";
    cluster.sh(
        &node,
        &format!(
            "mkdir -p {drop_in}; printf '[Unit]\\nStartLimitIntervalSec=0\\n[Service]\\nExecStartPre=/bin/sh -c \"! grep -q doomed /etc/containerd/config.toml\"\\n' \
             > {drop_in}/doomed.conf; systemctl daemon-reload; systemctl restart containerd"
        ),
    );
    // The failed start counts as a restart of the unit, which the rest of the comparison must not see.
    let before = cluster.sh(&node, "sha256sum /etc/containerd/config.toml");
    cluster.create_shim(&shim_for("doomed", &good)).await;
    cluster
        .label(&node, "test.farrier.dev/doomed", Some("true"))
        .await;
    cluster
        .label_becomes(&node, "farrier.dev/doomed", "failed")
        .await;
    cluster
        .event_tells("Node", &node, &["containerd.service", "rolled back"])
        .await;
    cluster
        .condition_becomes("doomed", "Degraded", "True", "containerd")
        .await;
    assert_eq!(
        cluster.sh(&node, "sha256sum /etc/containerd/config.toml"),
        before
    );
    assert_eq!(
        cluster.sh(&node, "systemctl is-active containerd").trim(),
        "active"
    );
    assert!(cluster.node_is_ready(&node).await);
    assert_eq!(
        cluster.sh(&node, "ls -d /opt/farrier 2>/dev/null || true"),
        "",
        "nothing may be half-installed"
    );
    take_away(&cluster, &node, "doomed").await;
    cluster.sh(&node, &format!("rm -r {drop_in}; systemctl daemon-reload"));
}
