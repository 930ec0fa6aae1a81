//! A cluster moves from KWasm and from runtime-class-manager by `helm uninstall` and `helm install`, as docs/migration.md says.
//!
//! The images of the legacy installers are not here: the test creates their objects in the cluster and their files on the node. A Wasm pod
//! runs on the node throughout.

use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use serde_json::{Value, json};

use crate::crd;
use crate::direct::Node;
use crate::support::{Cluster, SHIM, eventually};

/// A cluster in which no Farrier runs, and the node with this series of containerd.
async fn without_farrier(series: &str) -> (Cluster, String) {
    let cluster = Cluster::with_farrier().await;
    cluster.delete_shim(SHIM).await;
    cluster.helm(&[
        "uninstall",
        "farrier",
        "-n",
        "farrier",
        "--no-hooks",
        "--wait",
    ]);
    let node = Node::with(&cluster, series).await.name;
    (cluster, node)
}

/// Changes the node as the legacy installers do: a binary, a stanza at the end of the configuration, a restart.
fn provision(cluster: &Cluster, node: &str, directory: &str, file: &str, stanza: &str) {
    cluster.sh(
        node,
        &format!(
            "mkdir -p {directory}/bin; cp /opt/images/shim-v0.1.0 {directory}/bin/{file}; chmod 755 {directory}/bin/{file}
             cat >> /etc/containerd/config.toml <<'END'\n{stanza}\nEND\n
             systemctl restart containerd"
        ),
    );
}

fn classes(cluster: &Cluster) -> Api<RuntimeClass> {
    Api::all(cluster.client.clone())
}

async fn runtime_class(cluster: &Cluster, class: Value) {
    let class = serde_json::from_value(class).unwrap();
    let classes = classes(cluster);
    classes
        .create(&PostParams::default(), &class)
        .await
        .unwrap();
}

/// Starts the pod that runs during the whole test, and returns the state of all processes on the node.
async fn running(cluster: &Cluster, node: &str, class: &str) -> String {
    let sleep = ["sleep", "3600"];
    cluster
        .wasm_pod_of(class, "throughout", node, &sleep, "Running")
        .await;
    processes(cluster, node)
}

fn processes(cluster: &Cluster, node: &str) -> String {
    let name = node.to_owned();
    Node { cluster, name }.processes()
}

/// Fails unless the pod and all of its processes are the ones that were started, and a new pod starts.
async fn runs_on(cluster: &Cluster, node: &str, class: &str, before: &str) {
    let now = processes(cluster, node);
    for process in before.lines() {
        assert!(now.contains(process), "{process} is gone: {now}");
    }
    let status = cluster.pods().get("throughout").await.unwrap().status;
    assert_eq!(status.unwrap().phase.as_deref(), Some("Running"));
    let output = cluster
        .wasm_pod_of(class, "after", node, &[], "Succeeded")
        .await;
    assert!(output.contains("Hello from Wasm"), "{output}");
    cluster.delete_pod("after").await;
    cluster.delete_pod("throughout").await;
}

#[tokio::test]
async fn a_cluster_migrates_from_kwasm_and_its_pods_keep_running() {
    let (cluster, node) = without_farrier("1.7").await;
    let before = cluster.host(&node);
    let file = "containerd-shim-wasmi-v1";
    let table = format!("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{SHIM}]");
    let stanza = format!("\n{table}\n    runtime_type = \"/opt/kwasm/bin/{file}\"");
    provision(&cluster, &node, "/opt/kwasm", file, &stanza);
    cluster.sh(&node, "touch /opt/kwasm/active");
    cluster.annotate(&node, Some("true")).await;
    let label = "kwasm.sh/kwasm-provisioned";
    cluster.label(&node, label, Some(&node)).await;
    runtime_class(
        &cluster,
        json!({"metadata": {"name": SHIM}, "handler": SHIM}),
    )
    .await;
    let throughout = running(&cluster, &node, SHIM).await;
    let process = cluster.containerd_pid(&node);

    cluster.helm_install();

    cluster
        .label_becomes(&node, "handler.farrier.dev/wasmi", "true")
        .await;
    cluster.label_becomes(&node, label, &node).await;
    assert_eq!(cluster.containerd_pid(&node), process, "nothing changed");
    // The RuntimeClass stays the user's until the user deletes it, and selects the nodes that serve the handler.
    let told = "RuntimeClass wasmi: it belongs to others, so Farrier adds only the node selector";
    cluster.condition_becomes(SHIM, "Ready", "True", told).await;
    runs_on(&cluster, &node, SHIM, &throughout).await;
    let parameters = DeleteParams::default();
    classes(&cluster).delete(SHIM, &parameters).await.unwrap();
    eventually(
        "Farrier has created its own RuntimeClass",
        async || match classes(&cluster).get_opt(SHIM).await.unwrap() {
            Some(class) if !class.owner_references().is_empty() => Ok(()),
            other => Err(other),
        },
    )
    .await;

    cluster.annotate(&node, None).await;
    cluster.marks_vanish(&node).await;
    assert_eq!(cluster.host(&node), before);
    cluster.sh(&node, "test ! -e /opt/kwasm");
}

#[tokio::test]
async fn a_cluster_migrates_from_runtime_class_manager_and_its_pods_keep_running() {
    let (cluster, node) = without_farrier("2.1").await;
    let before = cluster.host(&node);
    let name = "wasmi-v1";
    let file = format!("containerd-shim-{name}");
    let path = format!("/opt/rcm/bin/{file}");
    let stanza = format!(
        "\n# RCM runtime config for {name}\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.{name}]\nruntime_type = \"{path}\""
    );
    provision(&cluster, &node, "/opt/rcm", &file, &stanza);
    let digest = cluster.artifacts.shim.binary_sha256.as_deref().unwrap();
    let lock = json!({"shims": {name: {"sha256": digest, "path": path}}});
    cluster.sh(&node, &format!("echo '{lock}' > /opt/rcm/rcm-lock.json"));
    let selector = "test.farrier.dev/moved";
    cluster.label(&node, selector, Some("true")).await;
    cluster.label(&node, name, Some("provisioned")).await;
    let shim = left_shim(&cluster, name, selector).await;
    let owner = json!({
        "apiVersion": "runtime.spinkube.dev/v1alpha1", "kind": "Shim", "name": name, "uid": shim.uid(), "controller": true,
        "blockOwnerDeletion": true,
    });
    runtime_class(
        &cluster,
        json!({
            "metadata": {"name": name, "labels": {name: "true"}, "ownerReferences": [owner]},
            "handler": name, "scheduling": {"nodeSelector": {selector: "true"}},
        }),
    )
    .await;
    let throughout = running(&cluster, &node, name).await;
    let process = cluster.containerd_pid(&node);

    cluster.helm_install();

    cluster
        .label_becomes(&node, "handler.farrier.dev/wasmi-v1", "true")
        .await;
    cluster.label_becomes(&node, name, "provisioned").await;
    cluster.condition_becomes(name, "Ready", "True", "").await;
    assert_eq!(cluster.containerd_pid(&node), process, "nothing changed");
    let moved = cluster.shims().get(name).await.unwrap();
    assert_eq!(moved.uid(), shim.uid());
    assert_eq!(moved.finalizers(), ["farrier.dev/finalizer"]);
    eventually("the RuntimeClass schedules on the proof", async || {
        let class = classes(&cluster).get(name).await.unwrap();
        let selector = class.scheduling.unwrap_or_default().node_selector;
        let wanted = [("handler.farrier.dev/wasmi-v1".to_owned(), "true".to_owned())];
        if selector == Some(wanted.into()) {
            Ok(())
        } else {
            Err(selector)
        }
    })
    .await;
    runs_on(&cluster, &node, name, &throughout).await;

    cluster.delete_shim(name).await;
    cluster.label(&node, selector, None).await;
    cluster.marks_vanish(&node).await;
    assert_eq!(cluster.host(&node), before);
    cluster.sh(&node, "test ! -e /opt/rcm");
}

/// The Shim under runtime-class-manager's own definition, held by its finalizer.
async fn left_shim(cluster: &Cluster, name: &str, selector: &str) -> DynamicObject {
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let older = json!({"spec": {"names": {"shortNames": null, "categories": null}, "versions": crd::older()}});
    definitions
        .patch(
            "shims.runtime.spinkube.dev",
            &PatchParams::default(),
            &Patch::Merge(older),
        )
        .await
        .unwrap();
    let artifact = &cluster.artifacts.shim;
    let platform = json!({"os": "linux", "arch": "amd64", "location": artifact.url, "sha256": artifact.sha256});
    let shim: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "runtime.spinkube.dev/v1alpha1", "kind": "Shim",
        "metadata": {"name": name, "finalizers": ["rcm.spinkube.dev/finalizer"]},
        "spec": {
            "nodeSelector": {selector: "true"},
            "fetchStrategy": {"type": "anonymousHttp", "platforms": [platform]},
            "runtimeClass": {"name": name, "handler": name},
            "rolloutStrategy": {"type": "recreate"},
        },
        "status": {"nodes": 1, "nodesReady": 1},
    }))
    .unwrap();
    let kind = ApiResource::erase::<farrier::api::Shim>(&());
    let shims: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &kind);
    shims.create(&PostParams::default(), &shim).await.unwrap()
}
