//! Faults end in one clear sentence in the report, on the node and on the Shim, and the node still works.

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::json;

use crate::support::{Artifact, Cluster, eventually, shim_for};

/// Requests the Shim on the node and waits until the failure is reported everywhere. Nothing on the node changes.
async fn is_told(cluster: &Cluster, node: &str, shim: &str, fault: &Artifact, sentence: &str) {
    let before = cluster.host(node);
    cluster.create_shim(&shim_for(shim, fault)).await;
    cluster
        .label(node, &format!("test.farrier.dev/{shim}"), Some("true"))
        .await;
    failure_is_told(cluster, node, shim, sentence).await;
    assert_eq!(cluster.host(node), before, "nothing may be half-installed");
}

/// Waits until the failure of the Shim on the node is reported everywhere.
async fn failure_is_told(cluster: &Cluster, node: &str, shim: &str, sentence: &str) {
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
async fn a_quota_that_refuses_the_pod_of_a_job_is_reported_in_its_own_words() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("1.7");
    let quotas: Api<ResourceQuota> = Api::namespaced(cluster.client.clone(), "farrier");
    let quota = json!({"metadata": {"name": "limits"}, "spec": {"hard": {"limits.cpu": "1"}}});
    let quota = serde_json::from_value(quota).unwrap();
    let created = quotas.create(&PostParams::default(), &quota).await;
    created.unwrap();
    let good = cluster.artifacts.shim.clone();
    is_told(&cluster, &node, "quota", &good, "must specify limits.cpu").await;
    let deleted = quotas.delete("limits", &DeleteParams::default()).await;
    deleted.unwrap();
    take_away(&cluster, &node, "quota").await;
}

#[tokio::test]
async fn a_webhook_that_does_not_answer_is_reported_and_is_waited_for() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("1.7");
    let webhooks: Api<ValidatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let webhook = json!({
        "metadata": {"name": "jobs.example.org"},
        "webhooks": [{
            "name": "jobs.example.org", "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
            "clientConfig": {"service": {"namespace": "farrier", "name": "none"}},
            "rules": [{"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "farrier"}},
        }],
    });
    let webhook = serde_json::from_value(webhook).unwrap();
    let created = webhooks.create(&PostParams::default(), &webhook).await;
    created.unwrap();
    let good = cluster.artifacts.shim.clone();
    let said = "failed calling webhook";
    is_told(&cluster, &node, "webhook", &good, said).await;
    let name = "jobs.example.org";
    let deleted = webhooks.delete(name, &DeleteParams::default()).await;
    deleted.unwrap();
    cluster
        .label_becomes(&node, "farrier.dev/webhook", "provisioned")
        .await;
    take_away(&cluster, &node, "webhook").await;
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

/// Changes with which containerd does not start: the series of the node, the shell lines of its administrator, and words of the cause.
const PENDING: [(&str, &str, &str); 4] = [
    (
        "1.6",
        "printf '[grpc]\\ntcp_address = \"127.0.0.1:99999\"\\n' >> config.toml",
        "99999",
    ),
    (
        "1.7",
        "sed -i 's/snapshotter = \"native\"/snapshotter = \"gone\"/' config.toml",
        "names the snapshotter gone, and neither containerd nor a proxy plugin provides it",
    ),
    // The running containerd has the snapshotter, which was uninstalled since.
    (
        "2.1",
        "printf '[proxy_plugins.nydus]\\ntype = \"snapshot\"\\naddress = \"/run/nydus.sock\"\\n' >> config.toml
         systemctl restart containerd
         sed -i -e '/^.proxy_plugins/,$d' -e '0,/snapshotter = \"native\"/s//snapshotter = \"nydus\"/' config.toml",
        "names the snapshotter nydus, and neither containerd nor a proxy plugin provides it",
    ),
    (
        "2.4",
        "printf '[debug]\\naddress = \"/proc/x/d.sock\"\\n' >> config.toml",
        "/proc/x",
    ),
];

#[tokio::test]
async fn a_change_that_somebody_left_pending_is_reported_and_not_put_into_effect() {
    let cluster = Cluster::with_farrier().await;
    let nodes = PENDING.map(|(series, edit, cause)| {
        let node = cluster.node_with(series);
        cluster.sh(
            &node,
            &format!("cd /etc/containerd; cp -p config.toml /root/kept.toml\n{edit}"),
        );
        let before = (cluster.host(&node), cluster.containerd_pid(&node));
        (node, cause, before)
    });
    let shim = shim_for("pending", &cluster.artifacts.shim);
    cluster.create_shim(&shim).await;
    for (node, ..) in &nodes {
        cluster
            .label(node, "test.farrier.dev/pending", Some("true"))
            .await;
    }
    for (node, cause, before) in &nodes {
        // These words come from a rehearsal in the Job.
        let told = "/etc/containerd/config.toml was changed after containerd started, and containerd does not start with it: ";
        failure_is_told(&cluster, node, "pending", told).await;
        cluster.event_tells("Node", node, &[told, cause]).await;
        let now = (cluster.host(node), cluster.containerd_pid(node));
        assert_eq!(now, *before, "{node}");
    }
    for (node, ..) in &nodes {
        cluster.sh(
            node,
            "cp -p /root/kept.toml /etc/containerd/config.toml; rm /root/kept.toml
             systemctl restart containerd",
        );
    }
    cluster.delete_shim("pending").await;
    for (node, ..) in &nodes {
        cluster.label(node, "test.farrier.dev/pending", None).await;
    }
    for (node, ..) in &nodes {
        cluster.marks_vanish(node).await;
    }
}

/// Starts programs called containerd and kubelet, which wait. The arguments of the kubelet name the socket of the containerd, and its
/// configuration is a user's. A user has both on every node, and a pod on one: in cgroups as the kubelet makes them, and with its own mounts.
const IMPOSTORS: &str = r#"
impostors() {
  directory=$1; shift
  mkdir -p $directory; cp /bin/bash $directory/containerd; cp /bin/bash $directory/kubelet
  "$@" setsid -f $directory/containerd -c 'read </tmp/impostors/wait' --config=/tmp/impostors/own.toml --address=/tmp/impostors/own.sock </dev/null >/dev/null 2>&1
  "$@" setsid -f $directory/kubelet -c 'read </tmp/impostors/wait' --container-runtime-endpoint=unix:///tmp/impostors/own.sock </dev/null >/dev/null 2>&1
}
mkdir -m 777 /tmp/impostors; mkfifo -m 666 /tmp/impostors/wait
impostors /tmp/impostors setpriv --reuid=65534 --regid=65534 --clear-groups
"#;
const IMPOSTORS_OF_A_POD: &str = r#"
for tree in $(awk '$3 ~ /^cgroup/ { print $2 }' /proc/self/mounts); do mkdir -p $tree/kubepods/impostors; done
impostors /srv/impostors sh -c 'for tasks in $(find /sys/fs/cgroup -path "*/kubepods/impostors/cgroup.procs"); do
  echo $$ > $tasks || true
done
exec unshare --mount "$@"' sh
"#;
const COUNT_IMPOSTORS: &str = "pgrep -cf '^/(tmp|srv)/impostors/' || true";
const END_IMPOSTORS: &str = "
pkill -f '^/(tmp|srv)/impostors/'
while pgrep -f '^/(tmp|srv)/impostors/'; do sleep 0.1; done
find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} +
rm -r /tmp/impostors; rm -rf /srv/impostors
";

#[tokio::test]
async fn a_containerd_and_a_kubelet_of_an_ordinary_user_or_a_pod_change_nothing() {
    let cluster = Cluster::with_farrier().await;
    let nodes = ["1.6", "1.7", "2.1", "2.4"].map(|series| {
        let node = cluster.node_with(series);
        let before = cluster.host(&node);
        let (of_a_pod, count) = match series {
            "2.1" => (IMPOSTORS_OF_A_POD, "4\n"),
            _ => ("", "2\n"),
        };
        cluster.sh(&node, &format!("{IMPOSTORS}{of_a_pod}"));
        (node, count, before)
    });
    for (node, count, _) in &nodes {
        eventually("the programs run", async || {
            let now = cluster.sh(node, COUNT_IMPOSTORS);
            if now == *count { Ok(()) } else { Err(now) }
        })
        .await;
        cluster.annotate(node, Some("true")).await;
    }
    for (node, count, _) in &nodes {
        cluster
            .label_becomes(node, "handler.farrier.dev/wasmi", "true")
            .await;
        let files = cluster.sh(node, "ls /tmp/impostors");
        assert_eq!(files, "containerd\nkubelet\nwait\n", "{node}");
        assert_eq!(cluster.sh(node, COUNT_IMPOSTORS), *count, "{node}");
        cluster.annotate(node, None).await;
    }
    for (node, _, before) in &nodes {
        cluster.marks_vanish(node).await;
        cluster.sh(node, END_IMPOSTORS);
        assert_eq!(cluster.host(node), *before);
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
