//! The requests that the chart's admission policies allow for the controller's account: nodes and Jobs here, the other objects in `policies/`.
//! Each request is a dry run in the account's name.

use farrier::names;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::support::{Cluster, eventually, shim_for};

mod classes;
mod requests;
mod shims;

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
                "farrier.dev/slight": "failed", "pool": "pending", "Upper": "failed",
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

/// Patches of a node that the controller may not send, and a part of the message.
#[allow(clippy::too_many_lines, reason = "a table: a row for each patch")]
fn forbidden_patches() -> Vec<(Value, &'static str)> {
    let labels = |labels: Value| json!({"metadata": {"labels": labels}});
    let other_taint = json!({"key": "test.farrier.dev/nobody", "effect": "NoSchedule"});
    let own_taint = json!({"key": "farrier.dev/not-ready", "effect": "NoSchedule"});
    vec![
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
        // A label of others that looks like one of runtime-class-manager.
        (labels(json!({"pool": null})), "not pool"),
        (labels(json!({"pool": "failed"})), "not pool"),
        (labels(json!({"gpu2": "pending"})), "not gpu2"),
        (
            labels(json!({"gpu2": "provisioned", "farrier.dev/gpu2": "pending"})),
            "not gpu2",
        ),
        (
            labels(json!({"gpu2": "removing", "farrier.dev/gpu2": "removing"})),
            "not gpu2",
        ),
        (
            labels(json!({"gpu2": "unsupported", "farrier.dev/gpu2": "unsupported"})),
            "not gpu2",
        ),
        (
            labels(json!({"pool": null, "farrier.dev/pool": "pending"})),
            "not pool",
        ),
        (
            labels(json!({"Upper": "pending", "farrier.dev/Upper": "pending"})),
            "not Upper",
        ),
        (labels(json!({"slight": null})), "not slight"),
        (
            labels(json!({"farrier.dev/spin": "true"})),
            "not farrier.dev/spin=true",
        ),
        (
            labels(json!({"handler.farrier.dev/spin": "false"})),
            "not handler.farrier.dev/spin=false",
        ),
        (
            labels(json!({"kwasm.sh/kwasm-provisioned": "other"})),
            "not kwasm.sh/kwasm-provisioned=other",
        ),
        (
            labels(json!({"farrier.dev.example.org/spin": "pending"})),
            "and not farrier.dev.example.org/spin",
        ),
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
            json!({"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}}),
            "nothing of a node's spec",
        ),
        (
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Namespace", "name": "a", "uid": "a"}]}}),
            "owners of a node",
        ),
        (
            json!({"spec": {"taints": [&own_taint]}}),
            "changes no other",
        ),
        (
            json!({"spec": {"taints": [&own_taint, &other_taint, {"key": "new", "effect": "NoExecute"}]}}),
            "changes no other",
        ),
        (
            json!({"spec": {"taints": [&other_taint, {"key": names::RESTARTING_TAINT, "effect": "NoExecute"}]}}),
            "changes no other",
        ),
        (
            json!({"spec": {"taints": [&other_taint, {"key": names::RESTARTING_TAINT, "effect": "NoSchedule", "value": "x"}]}}),
            "changes no other",
        ),
    ]
}

#[tokio::test]
async fn the_controller_may_write_only_its_own_labels_annotations_and_taints() {
    let cluster = Cluster::with_farrier().await;
    // No controller serves the node's shim, so the startup taint stays. A node that no known Shim selects would lose it at once.
    cluster
        .create_shim(&shim_for(NAME, &cluster.artifacts.shim))
        .await;
    eventually("the controller knows the Shim", async || {
        let shim = cluster.shims().get(NAME).await.unwrap();
        let known = shim
            .finalizers()
            .contains(&names::SHIM_FINALIZER.to_owned());
        if known { Ok(()) } else { Err(shim.metadata) }
    })
    .await;
    node(&cluster).await;
    let controller = cluster.as_controller().await;
    in_force(&controller).await;
    let labels = |labels: Value| json!({"metadata": {"labels": labels}});
    for patch in [
        labels(
            json!({"farrier.dev/spin": "pending", "handler.farrier.dev/spin": "true", "kwasm.sh/kwasm-provisioned": NAME}),
        ),
        labels(
            json!({"lunatic": "pending", "farrier.dev/lunatic": "pending", "slight": null, "farrier.dev/slight": null}),
        ),
        labels(json!({"wws": "uninstall", "farrier.dev/wws": "removing"})),
        labels(json!({"wws": "failed", "farrier.dev/wws": "unsupported"})),
        labels(
            json!({"farrier.dev/slight": null, "handler.farrier.dev/spin": null, "kwasm.sh/kwasm-provisioned": null}),
        ),
        json!({"metadata": {"annotations": {"farrier.dev/applied": "{\"attempts\": 1}"}}}),
        json!({"metadata": {"annotations": {"farrier.dev/applied": null}}}),
    ] {
        assert_eq!(patched(&controller, &patch).await, Ok(()), "{patch}");
    }
    eventually(
        "the startup taint may go, and that of a restart may come",
        async || {
            // Kubernetes adds and removes taints of its own meanwhile.
            let spec = cluster.nodes().get(NAME).await.unwrap().spec.unwrap();
            let mut taints = spec.taints.unwrap_or_default();
            let count = taints.len();
            taints.retain(|taint| taint.key != "farrier.dev/not-ready");
            assert!(taints.len() < count, "it has gone already");
            let restarting = json!({"key": names::RESTARTING_TAINT, "effect": "NoSchedule"});
            taints.push(serde_json::from_value(restarting).unwrap());
            patched(&controller, &json!({"spec": {"taints": taints}})).await
        },
    )
    .await;
    for (patch, said) in forbidden_patches() {
        let refusal = patched(&controller, &patch).await.unwrap_err();
        assert!(refusal.contains(said), "{patch}: {refusal}");
    }
    // Other accounts are not restricted.
    cluster.label(NAME, "example.org/team", None).await;
    remove_node(&cluster).await;
    cluster.delete_shim(NAME).await;
}

/// The Job of the controller for the node as the controller writes it, with the defaults of the API server, under a name that is free.
async fn made(cluster: &Cluster, node: &Node) -> Value {
    let jobs: Api<Job> = Api::namespaced(cluster.client.clone(), "farrier");
    let name = names::job_name(&node.uid().unwrap());
    let job = eventually("the node's Job is made", async || {
        jobs.get_opt(&name).await.unwrap().ok_or("none")
    })
    .await;
    let mut job = serde_json::to_value(job).unwrap();
    let metadata = &job["metadata"];
    let metadata = json!({
        "name": "farrier-00000000000000000000", "labels": metadata["labels"], "annotations": metadata["annotations"],
        "ownerReferences": metadata["ownerReferences"],
    });
    let spec = job["spec"].as_object_mut().unwrap();
    spec.remove("selector");
    let labels = spec["template"]["metadata"]["labels"].as_object_mut();
    labels
        .unwrap()
        .retain(|key, _| !key.ends_with("controller-uid") && !key.ends_with("job-name"));
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})
}

async fn created(controller: &Client, job: &Value) -> Result<(), String> {
    let jobs: Api<DynamicObject> = Api::namespaced_with(
        controller.clone(),
        "farrier",
        &ApiResource::erase::<Job>(&()),
    );
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let job = serde_json::from_value(job.clone()).unwrap();
    refusal(jobs.create(&dry, &job).await)
}

/// `job` with a value at each of the paths. A number is an index, and `-` appends.
fn changed(job: &Value, edits: &[(&str, Value)]) -> Value {
    let mut job = job.clone();
    for (path, value) in edits {
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = job
            .pointer_mut(parent)
            .unwrap_or_else(|| panic!("{path}: no parent"));
        // The escape of JSON pointers (RFC 6901).
        let key = key.replace("~1", "/");
        match (key.as_str(), key.parse::<usize>()) {
            ("-", _) => parent.as_array_mut().unwrap().push(value.clone()),
            (_, Ok(index)) => parent[index] = value.clone(),
            (_, Err(_)) => parent[key] = value.clone(),
        }
    }
    job
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
            "and not other",
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
            "30 to 120 seconds",
        ),
        (
            "/terminationGracePeriodSeconds",
            json!(0),
            "30 to 120 seconds",
        ),
        ("/initContainers", json!([]), "the init container fetch"),
    ]
}

/// Edits of a Job that change what the controller never varies, and a part of the message.
#[allow(clippy::too_many_lines, reason = "a table: a row for each field")]
fn never_varied() -> Vec<(Vec<(&'static str, Value)>, &'static str)> {
    let (one, shape) = ("runs one pod", "20 hexadecimal digits");
    let (selector, labels) = ("none of its own", "the labels and annotations");
    let (bound, usual, report) = ("is bound to the node", "the usual DNS policy", "report as");
    let (mounted, sources) = ("mounted once and whole", "each from its usual source");
    let (fetch, contexts) = ("fetch has no privilege", "no security context except");
    let resources = "requests at most what job.resources says";
    let own_labels = json!({"app": "other"});
    let edit = |path: &'static str, value: Value, said: &'static str| (vec![(path, value)], said);
    let mut rows = vec![
        edit("/metadata/name", json!("farrier-leave"), shape),
        edit(
            "/metadata/name",
            json!("farrier-0000000000000000000g"),
            shape,
        ),
        edit(
            "/metadata/finalizers",
            json!(["example.org/held"]),
            "has no finalizer",
        ),
        edit(
            "/metadata/ownerReferences",
            json!([]),
            "belongs to a node alone",
        ),
        edit(
            "/metadata/ownerReferences/0/kind",
            json!("Namespace"),
            "belongs to a node alone",
        ),
        edit("/metadata/ownerReferences/0/uid", json!("other"), bound),
        edit("/spec/parallelism", json!(100_000), one),
        edit("/spec/parallelism", json!(0), one),
        edit("/spec/completions", json!(100_000), one),
        edit("/spec/backoffLimit", json!(i32::MAX), one),
        edit("/spec/backoffLimit", Value::Null, one),
        edit("/spec/activeDeadlineSeconds", Value::Null, one),
        edit("/spec/activeDeadlineSeconds", json!(1), one),
        edit("/spec/completionMode", json!("Indexed"), one),
        edit(
            "/spec/podFailurePolicy/rules/0/action",
            json!("Ignore"),
            one,
        ),
        edit(
            "/spec/selector",
            json!({"matchLabels": {"app": "other"}}),
            "`selector` not auto-generated",
        ),
        edit(
            "/spec/selector",
            json!({"matchExpressions": [{"key": "kwasm.sh/job", "operator": "Exists"}]}),
            "`selector` not auto-generated",
        ),
        (
            vec![
                ("/spec/manualSelector", json!(true)),
                ("/spec/selector", json!({"matchLabels": &own_labels})),
                ("/spec/template/metadata/labels", own_labels),
            ],
            selector,
        ),
        edit(
            "/spec/managedBy",
            json!("example.org/other"),
            "no field managedBy",
        ),
        edit(
            "/spec/template/metadata/finalizers",
            json!(["example.org/held"]),
            "no field finalizers",
        ),
        edit(
            "/spec/template/metadata/labels/app.kubernetes.io~1component",
            json!("controller"),
            labels,
        ),
        edit("/spec/template/metadata/labels/other", json!("a"), labels),
        edit(
            "/spec/template/metadata/annotations/other",
            json!("a"),
            labels,
        ),
        edit(
            "/spec/template/metadata/labels/sidecar.istio.io~1inject",
            json!("true"),
            labels,
        ),
        edit(
            "/spec/template/metadata/labels/farrier.dev~1node-name",
            json!("other"),
            bound,
        ),
        edit(
            "/spec/template/metadata/annotations/farrier.dev~1node-name",
            json!("other"),
            bound,
        ),
        edit(
            "/spec/template/metadata/annotations/farrier.dev~1node-uid",
            json!("other"),
            bound,
        ),
    ];
    rows.extend([
        edit("/spec/template/spec/nodeName", Value::Null, bound),
        edit("/spec/template/spec/nodeName", json!("other"), bound),
        edit(
            "/spec/template/spec/nodeSelector",
            json!({"a": "b"}),
            "no field nodeSelector",
        ),
        edit(
            "/spec/template/spec/affinity",
            json!({"nodeAffinity": {}}),
            "no field affinity",
        ),
        edit(
            "/spec/template/spec/topologySpreadConstraints",
            json!([{"maxSkew": 1, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}]),
            "no field topologySpreadConstraints",
        ),
        edit(
            "/spec/template/spec/hostAliases",
            json!([{"ip": "10.0.0.1", "hostnames": ["github.com"]}]),
            "no field hostAliases",
        ),
        edit(
            "/spec/template/spec/dnsConfig",
            json!({"nameservers": ["10.0.0.1"]}),
            "no field dnsConfig",
        ),
        edit("/spec/template/spec/dnsPolicy", json!("Default"), usual),
        edit("/spec/template/spec/schedulerName", json!("other"), usual),
        edit("/spec/template/spec/enableServiceLinks", json!(true), usual),
        edit("/spec/template/spec/tolerations", json!([]), usual),
        edit(
            "/spec/template/spec/hostname",
            json!("other"),
            "no field hostname",
        ),
        edit(
            "/spec/template/spec/subdomain",
            json!("other"),
            "no field subdomain",
        ),
        edit(
            "/spec/template/spec/setHostnameAsFQDN",
            json!(true),
            "no field setHostnameAsFQDN",
        ),
        edit(
            "/spec/template/spec/runtimeClassName",
            json!("kata"),
            "no field runtimeClassName",
        ),
        edit(
            "/spec/template/spec/preemptionPolicy",
            json!("Never"),
            "no field preemptionPolicy",
        ),
        edit(
            "/spec/template/spec/activeDeadlineSeconds",
            json!(7),
            "no field activeDeadlineSeconds",
        ),
        edit(
            "/spec/template/spec/readinessGates",
            json!([{"conditionType": "a/b"}]),
            "no field readinessGates",
        ),
        edit(
            "/spec/template/spec/os",
            json!({"name": "linux"}),
            "no field os",
        ),
        edit(
            "/spec/template/spec/hostUsers",
            json!(true),
            "no field hostUsers",
        ),
        edit(
            "/spec/template/spec/securityContext/sysctls",
            json!([{"name": "kernel.shm_rmid_forced", "value": "1"}]),
            contexts,
        ),
        edit(
            "/spec/template/spec/securityContext/fsGroup",
            json!(0),
            contexts,
        ),
        edit(
            "/spec/template/spec/securityContext/supplementalGroups",
            json!([0]),
            contexts,
        ),
        edit(
            "/spec/template/spec/securityContext/seLinuxOptions",
            json!({"type": "spc_t"}),
            contexts,
        ),
        edit(
            "/spec/template/spec/securityContext/seccompProfile",
            json!({"type": "Unconfined"}),
            contexts,
        ),
        edit(
            "/spec/template/spec/securityContext/appArmorProfile",
            json!({"type": "Unconfined"}),
            contexts,
        ),
        edit(
            "/spec/template/spec/volumes/0/downwardAPI/items/0/fieldRef/fieldPath",
            json!("metadata.uid"),
            sources,
        ),
        edit(
            "/spec/template/spec/volumes/0/downwardAPI/items/-",
            json!({"path": "other", "fieldRef": {"fieldPath": "metadata.uid"}}),
            sources,
        ),
        edit(
            "/spec/template/spec/volumes/0/downwardAPI/items/0/mode",
            json!(511),
            sources,
        ),
        edit("/spec/template/spec/volumes/1/emptyDir", json!({}), sources),
        edit(
            "/spec/template/spec/volumes/1/emptyDir/sizeLimit",
            json!("1Ti"),
            sources,
        ),
        edit(
            "/spec/template/spec/volumes/1/emptyDir/medium",
            json!("Memory"),
            sources,
        ),
        edit(
            "/spec/template/spec/volumes/2/hostPath/type",
            json!("DirectoryOrCreate"),
            sources,
        ),
        edit(
            "/spec/template/spec/volumes/3/configMap/items/0/key",
            json!("other"),
            sources,
        ),
        edit(
            "/spec/template/spec/volumes/3/configMap/name",
            json!("other"),
            sources,
        ),
        edit(
            "/spec/template/spec/volumes/-",
            json!({"name": "more", "emptyDir": {"sizeLimit": "1Gi"}}),
            sources,
        ),
        edit(
            "/spec/template/spec/volumes/-",
            json!({"name": "more", "hostPath": {"path": "/"}}),
            sources,
        ),
    ]);
    rows.extend([
        edit("/spec/template/spec/containers/0/workingDir", json!("/host"), "no field workingDir"),
        edit("/spec/template/spec/containers/0/stdin", json!(true), "no field stdin"),
        edit("/spec/template/spec/containers/0/tty", json!(true), "no field tty"),
        edit("/spec/template/spec/containers/0/ports", json!([{"containerPort": 1, "hostPort": 1}]), "no field ports"),
        edit("/spec/template/spec/initContainers/0/restartPolicy", json!("Always"), "no field restartPolicy"),
        edit("/spec/template/spec/containers/0/terminationMessagePath", json!("/host/etc/shadow"), report),
        edit("/spec/template/spec/containers/0/terminationMessagePolicy", json!("FallbackToLogsOnError"), report),
        edit("/spec/template/spec/initContainers/0/terminationMessagePolicy", json!("File"), report),
        edit("/spec/template/spec/containers/0/imagePullPolicy", json!("Always"), "the pull policy"),
        edit("/spec/template/spec/containers/0/resources", json!({}), resources),
        edit("/spec/template/spec/containers/0/resources/requests/cpu", json!("64"), resources),
        edit("/spec/template/spec/containers/0/resources/requests/ephemeral-storage", json!("1Gi"), resources),
        edit("/spec/template/spec/containers/0/resources/limits/memory", json!("64Gi"), resources),
        edit("/spec/template/spec/containers/0/resources/limits/cpu", json!("1"), resources),
        edit("/spec/template/spec/containers/0/volumeMounts/2/subPath", json!("etc"), mounted),
        edit("/spec/template/spec/containers/0/volumeMounts/2/subPathExpr", json!("etc"), mounted),
        edit("/spec/template/spec/containers/0/volumeMounts/2/mountPropagation", json!("Bidirectional"), mounted),
        edit("/spec/template/spec/containers/0/volumeMounts/2/readOnly", json!(true), mounted),
        edit("/spec/template/spec/containers/0/volumeMounts/1/readOnly", json!(false), mounted),
        edit("/spec/template/spec/containers/0/volumeMounts/1/mountPropagation", json!("HostToContainer"), mounted),
        edit("/spec/template/spec/containers/0/volumeMounts", json!([{"name": "host", "mountPath": "/host"}]), mounted),
        edit("/spec/template/spec/initContainers/0/volumeMounts/0/readOnly", json!(false), mounted),
        edit("/spec/template/spec/initContainers/0/volumeMounts/2/readOnly", json!(false), mounted),
        edit("/spec/template/spec/initContainers/0/volumeMounts/1/subPath", json!("a"), mounted),
        edit("/spec/template/spec/initContainers/0/securityContext/seccompProfile", json!({"type": "Unconfined"}), fetch),
        edit("/spec/template/spec/initContainers/0/securityContext/seccompProfile", Value::Null, fetch),
        edit("/spec/template/spec/initContainers/0/securityContext/appArmorProfile", json!({"type": "Unconfined"}), fetch),
        edit("/spec/template/spec/initContainers/0/securityContext/seLinuxOptions", json!({"type": "spc_t"}), fetch),
        edit("/spec/template/spec/initContainers/0/securityContext/runAsGroup", json!(0), fetch),
        edit("/spec/template/spec/initContainers/0/securityContext/runAsUser", json!(1000), fetch),
        edit("/spec/template/spec/containers/0/securityContext/capabilities", json!({"add": ["SYS_ADMIN"]}), contexts),
        edit("/spec/template/spec/containers/0/securityContext/seLinuxOptions", json!({"type": "spc_t"}), contexts),
        edit("/spec/template/spec/containers/0/securityContext/readOnlyRootFilesystem", json!(false), contexts),
        edit("/spec/template/spec/containers/0/env/-", json!({"name": "FARRIER_LOG_FORMAT", "value": "other"}), "no environment"),
        edit("/spec/template/spec/initContainers/0/env/-", json!({"name": "HTTPS_PROXY", "value": "http://attacker.example"}), "no environment"),
        edit("/spec/template/spec/initContainers/0/env/-", json!({"name": "FARRIER_CA_FILE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}), "no environment"),
    ]);
    let account = vec![
        ("/spec/template/spec/serviceAccountName", Value::Null),
        ("/spec/template/spec/serviceAccount", json!("farrier")),
    ];
    rows.push((account, "without its token"));
    rows
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
    let mut wrong = Vec::new();
    for (place, value, said) in forbidden() {
        let other = changed(&job, &[(&format!("/spec/template/spec{place}"), value)]);
        match created(&controller, &other).await {
            Err(refusal) if refusal.contains(said) => {}
            answer => wrong.push(format!("{place}: {answer:?} instead of {said:?}")),
        }
    }
    for (edits, said) in never_varied() {
        match created(&controller, &changed(&job, &edits)).await {
            Err(refusal) if refusal.contains(said) => {}
            answer => wrong.push(format!("{edits:?}: {answer:?} instead of {said:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // An admission webhook may write the digest of the image.
    let image = job["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    let image = image.as_str().unwrap();
    let repository = image.rsplit_once(':').unwrap().0;
    let digest = "0".repeat(64);
    for (image, said) in [
        (format!("{image}@sha256:{digest}"), None),
        (format!("{repository}@sha256:{digest}"), None),
        (
            format!("{repository}@sha256:0"),
            Some("admissionPolicies.images"),
        ),
        (
            format!("mirror.example/farrier@sha256:{digest}"),
            Some("admissionPolicies.images"),
        ),
    ] {
        let path = "/spec/template/spec/containers/0/image";
        let answer = created(&controller, &changed(&job, &[(path, json!(image))])).await;
        let as_expected = match (&answer, said) {
            (Ok(()), None) => true,
            (Err(refusal), Some(said)) => refusal.contains(said) && refusal.contains(&image),
            _ => false,
        };
        assert!(as_expected, "{image}: {answer:?}");
    }
    // A queue such as Kueue suspends Jobs, and the chart's settings vary these.
    for edit in [
        ("/spec/suspend", json!(true)),
        ("/spec/ttlSecondsAfterFinished", json!(60)),
        ("/spec/activeDeadlineSeconds", json!(60)),
    ] {
        let other = changed(&job, std::slice::from_ref(&edit));
        assert_eq!(created(&controller, &other).await, Ok(()), "{edit:?}");
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
