//! `helm uninstall`: the removal of shims from the nodes before that of the chart's objects, and the objects that stay.

use farrier::api::Shim;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{CustomResourceExt, ResourceExt};
use serde_json::json;

use crate::support::{Cluster, SHIM, eventually, shim_for};

const UNINSTALL: [&str; 6] = ["uninstall", "farrier", "-n", "farrier", "--timeout", "5m"];

const HANDLER: &str = "handler.farrier.dev/wasmi";

async fn no_lease_is_left(cluster: &Cluster) {
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "farrier");
    let left = leases.list(&ListParams::default()).await.unwrap();
    let names: Vec<_> = left.iter().map(ResourceExt::name_any).collect();
    assert!(names.is_empty(), "{names:?}");
}

#[tokio::test]
async fn a_second_release_of_the_chart_is_refused() {
    let cluster = Cluster::with_farrier().await;
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/farrier");
    for (release, namespace) in [("other", "farrier"), ("farrier", "default")] {
        let name = format!("--set=nameOverride={release}-2");
        let refusal = cluster.helm_refusal(&["install", release, chart, "-n", namespace, &name]);
        let said = "already, as farrier in the namespace farrier";
        assert!(refusal.contains(said), "{release} {namespace}: {refusal}");
    }
}

#[tokio::test]
async fn a_release_whose_namespace_was_deleted_is_named_with_the_way_on() {
    let cluster = Cluster::with_farrier().await;
    // Before the one of this release in the alphabet.
    let left: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {
            "name": "a-left", "labels": {"helm.sh/chart": "farrier-0.1.0", "app.kubernetes.io/instance": "left"},
            "annotations": {"meta.helm.sh/release-name": "left", "meta.helm.sh/release-namespace": "gone"},
        },
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "a-left"},
        "subjects": [{"kind": "ServiceAccount", "name": "left", "namespace": "gone"}],
    }))
    .unwrap();
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.client.clone());
    let created = bindings.create(&PostParams::default(), &left).await;
    created.unwrap();
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/farrier");
    let refusal = cluster.helm_refusal(&["install", "farrier", chart, "-n", "default"]);
    let deleted = bindings.delete("a-left", &DeleteParams::default()).await;
    deleted.unwrap();
    for said in [
        "which was deleted",
        "helm install left -n gone --create-namespace",
    ] {
        assert!(refusal.contains(said), "{refusal}");
    }
}

#[tokio::test]
async fn an_uninstall_restores_the_cluster_and_all_hosts() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("2.4");
    let before = cluster.host(&node);
    // The uninstall waits for no finished Job.
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/farrier");
    let lifetime = ["--reuse-values", "--set", "job.ttlSecondsAfterFinished=600"];
    let upgrade = ["upgrade", "farrier", chart, "-n", "farrier", "--wait"];
    cluster.helm(&[&upgrade[..], &lifetime].concat());
    cluster.annotate(&node, Some("true")).await;
    cluster.label_becomes(&node, HANDLER, "true").await;
    // An object that the chart did not create.
    let own = shim_for("own", &cluster.artifacts.shim);
    cluster.create_shim(&own).await;
    cluster
        .label(&node, "test.farrier.dev/own", Some("true"))
        .await;
    cluster
        .label_becomes(&node, "handler.farrier.dev/own", "true")
        .await;

    cluster.helm(&UNINSTALL);

    assert_eq!(cluster.host(&node), before);
    cluster.marks_vanish(&node).await;
    assert!(cluster.shims().get_opt(SHIM).await.unwrap().is_none());
    let own = cluster.shims().get("own").await.unwrap();
    assert!(own.finalizers().is_empty(), "{:?}", own.finalizers());
    let jobs: Api<Job> = Api::namespaced(cluster.client.clone(), "farrier");
    let left = jobs.list(&ListParams::default()).await.unwrap();
    let names: Vec<_> = left.iter().map(ResourceExt::name_any).collect();
    assert!(names.is_empty(), "{names:?}");
    no_lease_is_left(&cluster).await;
    cluster.delete_shim("own").await;
    cluster.label(&node, "test.farrier.dev/own", None).await;
    cluster.annotate(&node, None).await;
}

#[tokio::test]
async fn an_uninstall_with_keep_leaves_the_hosts_alone() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("2.4");
    let before = cluster.host(&node);
    cluster.annotate(&node, Some("true")).await;
    cluster.label_becomes(&node, HANDLER, "true").await;
    let (provisioned, process) = (cluster.host(&node), cluster.containerd_pid(&node));
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/farrier");
    let keep = ["--reuse-values", "--set", "onUninstall=keep"];
    let upgrade = ["upgrade", "farrier", chart, "-n", "farrier", "--wait"];
    cluster.helm(&[&upgrade[..], &keep].concat());

    cluster.helm(&UNINSTALL);

    assert_eq!(cluster.host(&node), provisioned);
    no_lease_is_left(&cluster).await;
    // The next installation continues with the provisioned node.
    cluster.helm_install();
    cluster.condition_becomes(SHIM, "Ready", "True", "").await;
    assert_eq!(cluster.containerd_pid(&node), process);
    cluster.annotate(&node, None).await;
    cluster.marks_vanish(&node).await;
    assert_eq!(cluster.host(&node), before);
}

#[tokio::test]
async fn an_uninstall_withdraws_the_labels_and_names_the_pods_that_are_left_at_its_deadline() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("2.4");
    let before = cluster.host(&node);
    cluster.annotate(&node, Some("true")).await;
    cluster.label_becomes(&node, HANDLER, "true").await;
    let arguments = ["sleep", "3600"];
    cluster
        .wasm_pod("stays", &node, &arguments, "Running")
        .await;
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/farrier");
    let deadline = ["--reuse-values", "--set", "uninstallDeadlineSeconds=20"];
    let upgrade = ["upgrade", "farrier", chart, "-n", "farrier", "--wait"];
    cluster.helm(&[&upgrade[..], &deadline].concat());

    let said = cluster.helm(&UNINSTALL);

    let left = "still carries wasmi: pods still use the handler (1 on this node: default/stays)";
    assert!(said.contains(&format!("node {node} {left}")), "{said}");
    let marks = cluster.marks(&node).await;
    assert!(!marks.contains_key(HANDLER), "{marks:?}");
    // The next installation ends the removal.
    cluster.delete_pod("stays").await;
    cluster.annotate(&node, None).await;
    cluster.helm_install();
    cluster.marks_vanish(&node).await;
    assert_eq!(cluster.host(&node), before);
}

#[tokio::test]
async fn an_uninstall_ends_if_the_crd_was_deleted_before() {
    let cluster = Cluster::with_farrier().await;
    let node = cluster.node_with("2.4");
    let before = cluster.host(&node);
    cluster.annotate(&node, Some("true")).await;
    cluster.label_becomes(&node, HANDLER, "true").await;
    cluster.scale(0).await;
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let shims = cluster.shims();
    let patched = shims.patch(SHIM, &PatchParams::default(), &release).await;
    patched.unwrap();
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let name = Shim::crd_name();
    let deleted = definitions.delete(name, &DeleteParams::default()).await;
    deleted.unwrap();
    eventually("the definition is gone", async || {
        match definitions.get_opt(name).await.unwrap() {
            None => Ok(()),
            Some(definition) => Err(definition.status),
        }
    })
    .await;

    cluster.helm(&UNINSTALL);

    assert_eq!(cluster.host(&node), before);
    cluster.marks_vanish(&node).await;
    cluster.annotate(&node, None).await;
}
