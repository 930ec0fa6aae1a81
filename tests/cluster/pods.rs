//! Restarts of containerd under pods that they end: a shim on `containerd-shim-wasm` whose pods listen on a port.

use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::stage::create;
use crate::support::{Cluster, SHIM, eventually, shim_for};

/// The Shim that needs a restart while pods of [`SHIM`] run.
const SECOND: &str = "second";

/// The Shim whose restart ends pods.
const THIRD: &str = "third";

/// A Shim whose pods are not concerned.
const BESIDE: &str = "beside";

const TAINT: &str = "farrier.dev/restarting";

/// A pod of [`SHIM`] on each of these nodes, which listens on a port and is started again whenever it ends.
async fn listening(cluster: &Cluster, nodes: &[String]) {
    let image = std::env::var("FARRIER_HELLO_IMAGE").unwrap();
    for node in nodes {
        let port = json!({"name": "LISTEN_PORT", "value": "8080"});
        let pod: Pod = create(json!({
            "metadata": {"name": name_of_pod(node), "labels": {"node": node}},
            "spec": {
                "runtimeClassName": SHIM,
                "nodeSelector": {"kubernetes.io/hostname": node},
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "hello", "image": image, "imagePullPolicy": "Never", "args": ["sleep", "3600"], "env": [port],
                }],
            },
        }));
        let parameters = PostParams::default();
        cluster.pods().create(&parameters, &pod).await.unwrap();
    }
    for node in nodes {
        eventually(&format!("the pod of {node} runs"), async || {
            let state = state(cluster, node).await;
            if state["running"].is_object() {
                Ok(())
            } else {
                Err(state)
            }
        })
        .await;
    }
}

fn name_of_pod(node: &str) -> String {
    format!("listens-on-{node}")
}

/// The state of the container of the pod on `node`; null without a pod.
async fn state(cluster: &Cluster, node: &str) -> Value {
    let pod = cluster.pods().get_opt(&name_of_pod(node)).await.unwrap();
    let pod = serde_json::to_value(pod).unwrap();
    pod["status"]["containerStatuses"][0]["state"].clone()
}

async fn taints(cluster: &Cluster, node: &str) -> Vec<String> {
    let node = cluster.nodes().get(node).await.unwrap();
    let taints = node.spec.unwrap().taints.unwrap_or_default();
    let taints = taints.into_iter().filter(|it| it.key == TAINT);
    taints.map(|taint| taint.effect).collect()
}

/// A pod of runc on each of these nodes.
async fn of_runc(cluster: &Cluster, nodes: &[&String]) {
    for node in nodes {
        let pod: Pod = create(json!({
            "metadata": {"name": format!("runc-{node}")},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "pause", "image": "localhost/pause:1", "imagePullPolicy": "Never"}],
            },
        }));
        let parameters = PostParams::default();
        cluster.pods().create(&parameters, &pod).await.unwrap();
    }
    for node in nodes {
        eventually(&format!("the pod of runc on {node} runs"), async || {
            running_since(cluster, node).await.ok_or(())
        })
        .await;
    }
}

/// When the container of the pod of runc was started; `None` if it does not run.
async fn running_since(cluster: &Cluster, node: &str) -> Option<String> {
    let pod = cluster.pods().get_opt(&format!("runc-{node}")).await;
    let pod = serde_json::to_value(pod.unwrap()).unwrap();
    assert!(pod["metadata"]["deletionTimestamp"].is_null(), "{pod}");
    let running = &pod["status"]["containerStatuses"][0]["state"]["running"];
    running["startedAt"].as_str().map(str::to_owned)
}

/// Waits until the node has the taint of a drain, the label of a handler, and not that of the handler whose pods are evicted.
async fn is_drained(cluster: &Cluster, node: &str) {
    eventually("the node is being drained", async || {
        let (taints, labels) = (taints(cluster, node).await, cluster.marks(node).await);
        let is_served = |handler| labels.contains_key(&format!("handler.farrier.dev/{handler}"));
        if taints == ["NoSchedule"] && is_served(BESIDE) && !is_served(SHIM) {
            Ok(())
        } else {
            Err((taints, labels))
        }
    })
    .await;
}

/// The exit status and the text of `farrier doctor` on `node`.
fn doctor(cluster: &Cluster, node: &str, option: &str) -> (i32, String) {
    let program = std::env::var("FARRIER_BINARY").unwrap();
    let path = "opt/images/farrier-doctor";
    std::fs::copy(program, cluster.root(node).join(path)).unwrap();
    let output = cluster.try_sh(
        node,
        &format!("/{path} doctor {option}; s=$?; rm /{path}; exit $s"),
    );
    let text = String::from_utf8_lossy(&output.stdout);
    (output.status.code().unwrap(), text.into_owned())
}

/// The PIDs of the shims without a pod, as doctor names them.
fn without_a_pod(said: &str) -> Vec<String> {
    let line = said
        .lines()
        .find(|line| line.contains("without a pod still run"));
    let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    let before_time = words.windows(2).filter(|pair| pair[1] == "since");
    before_time.map(|pair| pair[0].to_owned()).collect()
}

/// Waits until doctor finds a shim that outlived its pod, and returns the PIDs of these shims. Doctor alone ends none.
async fn find_shims_without_a_pod(cluster: &Cluster, node: &str) -> Vec<String> {
    let processes = || cluster.sh(node, "pgrep -af '^/opt/farrier/' || true");
    eventually("doctor finds shims without a pod", async || {
        let before = processes();
        let (status, said) = doctor(cluster, node, "");
        let found = without_a_pod(&said);
        if found.is_empty() {
            return Err(said);
        }
        assert_eq!(status, 1, "{said}");
        assert!(said.contains("`farrier doctor --end-orphans`"), "{said}");
        assert_eq!(processes(), before);
        Ok(found)
    })
    .await
}

/// Runs doctor until it has ended each shim that outlived its pod. Such a shim counts once the kubelet has removed the sandbox.
async fn end_shims_without_a_pod(cluster: &Cluster, node: &str) {
    let mut ended = false;
    eventually("doctor has ended the shims without a pod", async || {
        let (status, said) = doctor(cluster, node, "--end-orphans");
        ended |= said.contains("ended: shim process");
        let left = cluster.sh(node, "pgrep -af '^/opt/farrier/' || true");
        if left.is_empty() && status == 0 {
            Ok(())
        } else {
            Err(format!("{said}\n{left}"))
        }
    })
    .await;
    assert!(ended, "a shim has outlived its pod");
}

async fn set_policy(cluster: &Cluster, policy: Value) {
    let patch = Patch::Merge(json!({"spec": {"onRestart": policy}}));
    let parameters = PatchParams::default();
    let patched = cluster.shims().patch(SHIM, &parameters, &patch).await;
    patched.unwrap();
}

/// `Allow`: on 2.x, the pod stays down, because its former process holds the port. On 1.7, it comes back in a new sandbox.
async fn restarts_and_names_the_pods_that_stay_down(cluster: &Cluster, nodes: &[String; 3]) {
    let [returns, stays @ ..] = nodes;
    let before = nodes.clone().map(|node| cluster.containerd_pid(&node));
    set_policy(cluster, json!("Allow")).await;
    cluster
        .create_shim(&shim_for(THIRD, &cluster.artifacts.upgrade))
        .await;
    for node in nodes {
        let selected = format!("test.farrier.dev/{THIRD}");
        cluster.label(node, &selected, Some("true")).await;
    }
    for (node, before) in nodes.iter().zip(before) {
        cluster
            .label_becomes(node, "handler.farrier.dev/third", "true")
            .await;
        assert_ne!(cluster.containerd_pid(node), before);
    }
    for node in stays {
        let told = ["have not come back", &name_of_pod(node)];
        cluster.event_tells("Node", node, &told).await;
    }
    eventually("Farrier has looked after the pod on 1.7", async || {
        let node = cluster.nodes().get(returns).await.unwrap();
        let annotations = node.metadata.annotations.unwrap_or_default();
        let applied = annotations.get("farrier.dev/applied").cloned();
        match applied.unwrap_or_default() {
            applied if applied.contains("endedPods") => Err(applied),
            _ => Ok(()),
        }
    })
    .await;
    assert!(state(cluster, returns).await["running"].is_object());
    let events: Api<Event> = Api::all(cluster.client.clone());
    let of_node = format!("reason=PodsNotRunning,involvedObject.name={returns}");
    let told = events.list(&ListParams::default().fields(&of_node)).await;
    assert!(told.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_restart_waits_for_pods_that_it_would_end_or_evicts_them_or_names_those_that_stay_down() {
    let cluster = Cluster::with_farrier().await;
    let nodes = ["1.7", "2.1", "2.4"].map(|series| cluster.node_with(series));
    let [deleted, drained, restarted] = &nodes;
    cluster
        .create_shim(&shim_for(BESIDE, &cluster.artifacts.upgrade))
        .await;
    let beside = format!("test.farrier.dev/{BESIDE}");
    cluster.label(restarted, &beside, Some("true")).await;
    for node in &nodes {
        cluster.annotate(node, Some("true")).await;
    }
    for node in &nodes {
        cluster
            .label_becomes(node, "handler.farrier.dev/wasmi", "true")
            .await;
    }
    cluster
        .label_becomes(restarted, "handler.farrier.dev/beside", "true")
        .await;
    listening(&cluster, &nodes).await;
    of_runc(&cluster, &[drained, restarted]).await;
    let runc_since = running_since(&cluster, drained).await;
    let processes = nodes.clone().map(|node| cluster.containerd_pid(&node));

    // Refuse, the default: the nodes wait, and say for which pods.
    cluster
        .create_shim(&shim_for(SECOND, &cluster.artifacts.upgrade))
        .await;
    let selected = format!("test.farrier.dev/{SECOND}");
    for node in &nodes {
        cluster.label(node, &selected, Some("true")).await;
    }
    for node in &nodes {
        let pod = format!("1 pod: default/{} (handler wasmi)", name_of_pod(node));
        let help = "Delete these pods, or set spec.onRestart of Shim wasmi to Drain or Allow";
        cluster.event_tells("Node", node, &[&pod, help]).await;
        cluster
            .condition_becomes(SECOND, "Ready", "False", &format!("{node}: the restart of"))
            .await;
        cluster
            .label_becomes(node, "farrier.dev/second", "pending")
            .await;
        let marks = cluster.marks(node).await;
        assert_eq!(marks["handler.farrier.dev/wasmi"], "true", "still served");
    }
    cluster.condition_becomes(SHIM, "Ready", "True", "").await;
    let now = nodes.clone().map(|node| cluster.containerd_pid(&node));
    assert_eq!(now, processes);
    cluster.delete_pod(&name_of_pod(deleted)).await;
    cluster
        .label_becomes(deleted, "handler.farrier.dev/second", "true")
        .await;

    // Drain, where a budget protects the pod of one node.
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(cluster.client.clone(), "default");
    let budget = create(json!({
        "metadata": {"name": "protected"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"node": restarted}}},
    }));
    let parameters = PostParams::default();
    budgets.create(&parameters, &budget).await.unwrap();
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/farrier");
    let values = "--set=drain.enabled=true,drainTimeoutSeconds=15";
    let upgrade = ["upgrade", "farrier", chart, "-n", "farrier", "--wait"];
    cluster.helm(&[&upgrade[..], &["--reuse-values", values]].concat());
    set_policy(&cluster, json!("Drain")).await;
    is_drained(&cluster, restarted).await;
    cluster
        .label_becomes(drained, "handler.farrier.dev/second", "true")
        .await;
    assert!(state(&cluster, drained).await.is_null(), "evicted");
    let runc_now = running_since(&cluster, drained).await;
    assert_eq!(runc_now, runc_since, "a pod of another handler");
    let told = ["were not evicted within 15 s", &name_of_pod(restarted)];
    cluster.event_tells("Node", restarted, &told).await;
    assert!(state(&cluster, restarted).await["running"].is_object());
    for node in [drained, restarted] {
        eventually("the taint is gone", async || {
            match taints(&cluster, node).await.as_slice() {
                [] => Ok(()),
                taints => Err(taints.to_vec()),
            }
        })
        .await;
        cluster
            .label_becomes(node, "handler.farrier.dev/wasmi", "true")
            .await;
    }

    listening(&cluster, &[deleted.clone(), drained.clone()]).await;
    restarts_and_names_the_pods_that_stay_down(&cluster, &nodes).await;

    let parameters = DeleteParams::default();
    budgets.delete("protected", &parameters).await.unwrap();
    for node in &nodes {
        cluster.delete_pod(&name_of_pod(node)).await;
    }
    for node in [drained, restarted] {
        let since = running_since(&cluster, node).await;
        assert!(since.is_some(), "a pod of runc survives all restarts");
        cluster.delete_pod(&format!("runc-{node}")).await;
    }
    set_policy(&cluster, Value::Null).await;
    shims_without_a_pod_are_in_use(&cluster, &nodes).await;
}

/// A removal of all shims from these nodes leaves those that outlived their pods, until doctor is told to end them.
async fn shims_without_a_pod_are_in_use(cluster: &Cluster, nodes: &[String]) {
    let mut found = Vec::new();
    // The former shim outlives the pod on 1.7, too, where the pod has come back in another sandbox.
    for node in nodes {
        found.push(find_shims_without_a_pod(cluster, node).await);
    }
    for node in nodes {
        for shim in [SECOND, THIRD, BESIDE] {
            let selected = format!("test.farrier.dev/{shim}");
            cluster.label(node, &selected, None).await;
        }
        cluster.annotate(node, None).await;
    }
    for (node, pids) in nodes.iter().zip(found) {
        let told = [
            SHIM,
            "without a pod still run",
            &format!("the binary of the handler: {}", list(&pids)),
        ];
        cluster.event_tells("Node", node, &told).await;
        cluster
            .label_becomes(node, "farrier.dev/wasmi", "removing")
            .await;
        for pid in pids {
            cluster.sh(node, &format!("[ -d /proc/{pid} ]"));
        }
        end_shims_without_a_pod(cluster, node).await;
        // The next attempt is due after half a minute, and without the summary of the last one at once.
        let summary = json!({"farrier.dev/applied": null});
        let patch = json!({"metadata": {"annotations": summary}});
        cluster.patch_node(node, patch).await;
    }
    for shim in [SECOND, THIRD, BESIDE] {
        cluster.delete_shim(shim).await;
    }
    for node in nodes {
        cluster.marks_vanish(node).await;
    }
}

/// PIDs in the words of a report.
fn list(pids: &[String]) -> String {
    let word = if pids.len() == 1 { "PID" } else { "PIDs" };
    format!("{word} {}", pids.join(", "))
}
