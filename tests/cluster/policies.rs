//! The requests that the chart's admission policies allow for the controller's account. Each request is a dry run in the account's name.

use farrier::names;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::support::{Cluster, eventually, shim_for};

/// Name of the Shim and of the node of these tests. The node has no kubelet.
const NAME: &str = "policies";

/// The message with which the API server refuses a request.
fn refusal<T>(answer: Result<T, kube::Error>) -> Result<(), String> {
    match answer {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(other) => panic!("{other}"),
    }
}

/// A node that requests the Shim of these tests, with labels and taints of others.
async fn node(cluster: &Cluster) -> Node {
    let node = serde_json::from_value(json!({
        "metadata": {
            "name": NAME,
            "labels": {
                format!("test.farrier.dev/{NAME}"): "true", "example.org/team": "a", "spin": "mine", "wws": "pending", "slight": "failed",
            },
            "annotations": {"example.org/note": "a", "farrier.dev/applied": "{}"},
        },
        "spec": {"taints": [
            {"key": "farrier.dev/not-ready", "effect": "NoSchedule"},
            {"key": "test.farrier.dev/nobody", "effect": "NoSchedule"},
        ]},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {
                "operatingSystem": "linux", "architecture": "amd64", "machineID": NAME, "bootID": "first", "systemUUID": "",
                "kernelVersion": "", "osImage": "", "containerRuntimeVersion": "containerd://2.1.9", "kubeletVersion": "v1.34.4",
                "kubeProxyVersion": "",
            },
        },
    }))
    .unwrap();
    let nodes = cluster.nodes();
    nodes.create(&PostParams::default(), &node).await.unwrap()
}

/// Returns when the policies are in force, which takes the API server a moment.
async fn in_force(controller: &Client) {
    eventually("the policies are in force", async || {
        let patch = json!({"metadata": {"labels": {"example.org/probe": "true"}}});
        let refused = patched(controller, &patch).await;
        refused.map_or_else(|_| Ok(()), |()| Err("a foreign label is taken"))
    })
    .await;
}

async fn patched(controller: &Client, patch: &Value) -> Result<(), String> {
    let nodes: Api<Node> = Api::all(controller.clone());
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    refusal(nodes.patch(NAME, &dry, &Patch::Merge(patch)).await)
}

async fn remove_node(cluster: &Cluster) {
    let nodes = cluster.nodes();
    nodes.delete(NAME, &DeleteParams::default()).await.unwrap();
    eventually("the node is gone", async || {
        match nodes.get_opt(NAME).await.unwrap() {
            None => Ok(()),
            Some(node) => Err(node.metadata),
        }
    })
    .await;
}

#[tokio::test]
async fn the_controller_may_write_only_its_own_labels_annotations_and_taints() {
    let cluster = Cluster::with_farrier().await;
    // No controller serves the node's shim, so the startup taint stays.
    cluster
        .create_shim(&shim_for(NAME, &cluster.artifacts.shim))
        .await;
    node(&cluster).await;
    let controller = cluster.as_controller().await;
    in_force(&controller).await;
    let labels = |labels: Value| json!({"metadata": {"labels": labels}});
    let other_taint = json!({"key": "test.farrier.dev/nobody", "effect": "NoSchedule"});
    let own_taint = json!({"key": "farrier.dev/not-ready", "effect": "NoSchedule"});
    for patch in [
        labels(
            json!({"farrier.dev/spin": "pending", "handler.farrier.dev/spin": "true", "kwasm.sh/kwasm-provisioned": NAME}),
        ),
        labels(json!({"lunatic": "pending", "wws": "provisioned", "slight": null})),
        labels(json!({"wws": "uninstall"})),
        json!({"metadata": {"annotations": {"farrier.dev/applied": "{\"attempts\": 1}"}}}),
        json!({"metadata": {"annotations": {"farrier.dev/applied": null}}}),
    ] {
        assert_eq!(patched(&controller, &patch).await, Ok(()), "{patch}");
    }
    eventually("the startup taint may go", async || {
        // Kubernetes adds and removes taints of its own meanwhile.
        let spec = cluster.nodes().get(NAME).await.unwrap().spec.unwrap();
        let mut taints = spec.taints.unwrap_or_default();
        let count = taints.len();
        taints.retain(|taint| taint.key != "farrier.dev/not-ready");
        assert!(taints.len() < count, "it has gone already");
        patched(&controller, &json!({"spec": {"taints": taints}})).await
    })
    .await;
    for (patch, said) in [
        (
            labels(json!({"example.org/team": null})),
            "and not example.org/team",
        ),
        (
            labels(json!({"node-role.kubernetes.io/control-plane": ""})),
            "and not node-role.kubernetes.io/control-plane",
        ),
        (
            labels(json!({"kwasm.sh/other": "true"})),
            "and not kwasm.sh/other",
        ),
        (labels(json!({"spin": "pending"})), "not spin"),
        (labels(json!({"spin": null})), "not spin"),
        (labels(json!({"lunatic": "true"})), "not lunatic"),
        (labels(json!({"wws": "yes"})), "not wws"),
        (
            json!({"metadata": {"annotations": {"example.org/note": null}}}),
            "and not example.org/note",
        ),
        (
            json!({"metadata": {"annotations": {"kwasm.sh/kwasm-node": "true"}}}),
            "and not kwasm.sh/kwasm-node",
        ),
        (
            json!({"metadata": {"finalizers": ["example.org/held"]}}),
            "finalizers",
        ),
        (
            json!({"spec": {"unschedulable": true}}),
            "nothing of a node's spec",
        ),
        (
            json!({"spec": {"providerID": "other"}}),
            "nothing of a node's spec",
        ),
        (
            json!({"spec": {"taints": [&own_taint]}}),
            "changes no other",
        ),
        (
            json!({"spec": {"taints": [&own_taint, &other_taint, {"key": "new", "effect": "NoExecute"}]}}),
            "changes no other",
        ),
    ] {
        let refusal = patched(&controller, &patch).await.unwrap_err();
        assert!(refusal.contains(said), "{patch}: {refusal}");
    }
    // Other accounts are not restricted.
    cluster.label(NAME, "example.org/team", None).await;
    remove_node(&cluster).await;
    cluster.delete_shim(NAME).await;
}

/// The Job of the controller for the node, as it was created.
async fn made(cluster: &Cluster, node: &Node) -> Value {
    let jobs: Api<Job> = Api::namespaced(cluster.client.clone(), "farrier");
    let name = names::job_name(&node.uid().unwrap());
    let job = eventually("the node's Job is made", async || {
        jobs.get_opt(&name).await.unwrap().ok_or("none")
    })
    .await;
    let mut job = serde_json::to_value(job).unwrap();
    let spec = job["spec"].as_object_mut().unwrap();
    spec.remove("selector");
    let mut template = spec["template"].clone();
    template["metadata"]["labels"] = json!({});
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": NAME},
        "spec": {"podFailurePolicy": spec["podFailurePolicy"], "template": template},
    })
}

async fn created(controller: &Client, job: &Value) -> Result<(), String> {
    let jobs: Api<Job> = Api::namespaced(controller.clone(), "farrier");
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let job = serde_json::from_value(job.clone()).unwrap();
    refusal(jobs.create(&dry, &job).await)
}

/// A path in a Job, a value that the controller may not write there, and a part of the message.
#[allow(clippy::too_many_lines, reason = "a table: a row for each fault")]
fn forbidden() -> Vec<(&'static str, Value, &'static str)> {
    let hidden = json!({"name": "host", "mountPath": "/node"});
    vec![
        (
            "/containers/0/image",
            json!("example.org/other"),
            "runs the image",
        ),
        (
            "/initContainers/0/image",
            json!("example.org/other"),
            "runs the image",
        ),
        (
            "/containers/0/command",
            json!(["/bin/sh"]),
            "with the options",
        ),
        (
            "/containers/0/args/0",
            json!("uninstall"),
            "with the options",
        ),
        ("/containers/0/args/2", json!("/"), "with the options"),
        (
            "/containers/0/lifecycle",
            json!({"postStart": {"exec": {"command": ["sh"]}}}),
            "with the options",
        ),
        (
            "/initContainers/0/args/1",
            json!("--ca-file"),
            "with the options",
        ),
        (
            "/containers/0/env",
            json!([{"name": "A", "value": "b"}]),
            "no environment",
        ),
        (
            "/containers/0/envFrom",
            json!([{"configMapRef": {"name": "a"}}]),
            "no environment",
        ),
        ("/serviceAccountName", json!("farrier"), "without its token"),
        (
            "/automountServiceAccountToken",
            json!(true),
            "without its token",
        ),
        (
            "/imagePullSecrets",
            json!([{"name": "other"}]),
            "without other secrets",
        ),
        (
            "/volumes/0",
            json!({"name": "request", "secret": {"secretName": "a"}}),
            "each from its usual source",
        ),
        (
            "/volumes/1",
            json!({"name": "artifacts", "hostPath": {"path": "/var"}}),
            "each from its usual source",
        ),
        (
            "/volumes/2/hostPath/path",
            json!("/etc"),
            "each from its usual source",
        ),
        (
            "/initContainers/0/volumeMounts/0",
            hidden.clone(),
            "only the container install sees",
        ),
        (
            "/initContainers/0/volumeMounts/0",
            json!({"name": "host", "mountPath": "/host"}),
            "only the container install sees",
        ),
        (
            "/containers/0/volumeMounts/2",
            hidden,
            "only the container install sees",
        ),
        (
            "/initContainers/0/securityContext",
            json!({"privileged": true}),
            "fetch has no privilege",
        ),
        (
            "/initContainers/0/securityContext",
            Value::Null,
            "fetch has no privilege",
        ),
        (
            "/initContainers/0/securityContext/runAsUser",
            json!(0),
            "fetch has no privilege",
        ),
        (
            "/initContainers/0/securityContext/capabilities/add",
            json!(["SYS_ADMIN"]),
            "fetch has no privilege",
        ),
        ("/hostNetwork", json!(true), "shares neither network"),
        ("/hostIPC", json!(true), "shares neither network"),
        ("/hostPID", json!(true), "only with job.hostPID"),
        (
            "/priorityClassName",
            json!("system-node-critical"),
            "the priority class",
        ),
        (
            "/terminationGracePeriodSeconds",
            json!(3600),
            "at most 120 seconds",
        ),
        ("/initContainers", json!([]), "the init container fetch"),
    ]
}

#[tokio::test]
async fn the_controller_may_create_jobs_of_one_shape_only() {
    let cluster = Cluster::with_farrier().await;
    let node = node(&cluster).await;
    let controller = cluster.as_controller().await;
    in_force(&controller).await;
    cluster
        .create_shim(&shim_for(NAME, &cluster.artifacts.shim))
        .await;
    let job = made(&cluster, &node).await;
    assert_eq!(created(&controller, &job).await, Ok(()));
    let pod = "/spec/template/spec";
    for (place, value, said) in forbidden() {
        let mut other = job.clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        let parent = other.pointer_mut(&format!("{pod}{parent}")).unwrap();
        match key.parse::<usize>() {
            Ok(index) => parent[index] = value,
            Err(_) => parent[key] = value,
        }
        let refusal = created(&controller, &other).await.unwrap_err();
        assert!(refusal.contains(said), "{place}: {refusal}");
    }
    remove_node(&cluster).await;
    cluster.delete_shim(NAME).await;
}

#[tokio::test]
async fn the_former_controller_may_create_jobs_until_the_new_one_is_ready() {
    let cluster = Cluster::with_farrier().await;
    let node = node(&cluster).await;
    cluster
        .create_shim(&shim_for(NAME, &cluster.artifacts.shim))
        .await;
    let job = made(&cluster, &node).await;
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/farrier");
    let upgrade = ["upgrade", "farrier", chart, "-n", "farrier", "--no-hooks"];
    // No node has this image, so that the new controller never starts.
    let other = ["--reuse-values", "--set", "image.tag=none"];
    cluster.helm(&[&upgrade[..], &other].concat());

    let controller = cluster.as_controller().await;
    let old = job["spec"]["template"]["spec"]["containers"][0]["image"].to_string();
    let new = format!("{}:none\"", old.rsplit_once(':').unwrap().0);
    let of_the_new = serde_json::from_str(&job.to_string().replace(&old, &new)).unwrap();
    eventually("the policy is the new one", async || {
        created(&controller, &of_the_new).await
    })
    .await;
    assert_eq!(created(&controller, &job).await, Ok(()));

    remove_node(&cluster).await;
    cluster.delete_shim(NAME).await;
    cluster.helm_install();
}
