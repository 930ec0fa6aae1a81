//! Several nodes, several replicas, and all changes of a node, with a real API server. The tests act as kubelets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use farrier::handoff::{Outcome, ProvisionReport};
use farrier::names;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::stage::{Stage, done, shim};
use crate::support::{Cluster, eventually};

const CONTROLLER: &str = "app.kubernetes.io/component=controller";

/// Stand-ins that request one Shim, which `strategy` rolls out.
async fn stages<const N: usize>(
    names: [&'static str; N],
    shim_name: &str,
    strategy: Value,
) -> [Stage; N] {
    let mut stages = Vec::new();
    Cluster::with_farrier().await;
    for name in names {
        let mut stage = Stage::beside(name).await;
        stage.register().await;
        stages.push(stage);
    }
    let mut shim = shim(shim_name);
    shim.spec.rollout_strategy = serde_json::from_value(strategy).unwrap();
    stages[0].cluster.create_shim(&shim).await;
    for stage in &stages {
        let key = format!("test.farrier.dev/{shim_name}");
        stage.cluster.label(stage.name, &key, Some("true")).await;
    }
    stages
        .try_into()
        .unwrap_or_else(|_| panic!("as many as names"))
}

/// Nodes with a pod of a Job without a result.
async fn asked(stages: &[Stage]) -> BTreeSet<String> {
    let pods = stages[0].pods().list(&ListParams::default()).await.unwrap();
    let waits = |pod: &&Pod| {
        let status = pod.status.as_ref();
        status.and_then(|status| status.phase.as_deref()) == Some("Pending")
    };
    let waiting = pods.items.iter().filter(waits);
    let nodes = waiting.filter_map(|pod| pod.annotations().get(names::NODE_NAME_ANNOTATION));
    let known = |name: &&String| stages.iter().any(|stage| stage.name == **name);
    nodes.filter(known).cloned().collect()
}

async fn asked_become(stages: &[Stage], count: usize) -> BTreeSet<String> {
    eventually(&format!("{count} nodes are asked"), async || {
        let asked = asked(stages).await;
        if asked.len() == count {
            Ok(asked)
        } else {
            Err(asked)
        }
    })
    .await
}

fn named<'a>(stages: &'a [Stage], name: &str) -> &'a Stage {
    stages.iter().find(|stage| stage.name == name).unwrap()
}

#[tokio::test]
async fn a_rolling_shim_reaches_one_node_after_the_other_and_a_failure_halts_it() {
    let strategy = json!({"type": "rolling", "rolling": {"maxUpdate": 1}});
    let stages = stages(["roll-a", "roll-b", "roll-c"], "roll", strategy).await;
    let cluster = &stages[0].cluster;
    let first = asked_become(&stages, 1).await.pop_first().unwrap();
    let pod = named(&stages, &first).asked().await;
    named(&stages, &first).does(&pod).await;
    let second = eventually("the next node is asked", async || {
        let asked = asked(&stages).await;
        match asked.first() {
            Some(node) if asked.len() == 1 && *node != first => Ok(node.clone()),
            _ => Err(asked),
        }
    })
    .await;
    let pod = named(&stages, &second).asked().await;
    let mut report = ProvisionReport::new(Outcome::RolledBack);
    report.reason = Some("containerd did not come back".to_owned());
    let answered = done(&pod);
    report.request_digest = answered.request_digest;
    report.node_uid = answered.node_uid;
    named(&stages, &second).says(&pod, &report.to_json()).await;
    let told = format!("because node {second} failed");
    cluster
        .condition_becomes("roll", "Progressing", "False", &told)
        .await;
    cluster.event_tells("Shim", "roll", &[&told]).await;
    assert_eq!(asked(&stages).await, BTreeSet::new());
    // The failed node is tried again after half a minute, and then the last node changes.
    named(&stages, &second).an_hour_passes().await;
    let pod = named(&stages, &second).asked().await;
    named(&stages, &second).does(&pod).await;
    let last = eventually("the last node is asked", async || {
        let asked = asked(&stages).await;
        match asked.first() {
            Some(node) if *node != first && *node != second => Ok(node.clone()),
            _ => Err(asked),
        }
    })
    .await;
    let pod = named(&stages, &last).asked().await;
    named(&stages, &last).does(&pod).await;
    cluster
        .condition_becomes("roll", "Ready", "True", "3 of 3")
        .await;
    cluster.event_tells("Shim", "roll", &["3 of 3"]).await;
    for stage in &stages {
        stage.delete_node().await;
    }
    stages[0].cluster.delete_shim("roll").await;
}

#[tokio::test]
async fn a_rebooted_or_upgraded_node_is_verified_and_keeps_its_labels() {
    let stage = Stage::set("drift").await;
    stage.provision().await;
    for info in [
        json!({"bootID": "second"}),
        json!({"containerRuntimeVersion": "containerd://2.1.9"}),
    ] {
        let patch = Patch::Merge(json!({"status": {"nodeInfo": info}}));
        let nodes = stage.cluster.nodes();
        nodes
            .patch_status("drift", &PatchParams::default(), &patch)
            .await
            .unwrap();
        let pod = stage.asked().await;
        let marks = stage.cluster.marks("drift").await;
        assert_eq!(marks[&stage.handler()], "true");
        stage.does(&pod).await;
        let wanted = info.as_object().unwrap().values().next().unwrap().clone();
        stage
            .cluster
            .marks_become("drift", "the summary tells of it", |marks| {
                marks[names::APPLIED_ANNOTATION].contains(wanted.as_str().unwrap())
            })
            .await;
    }
    stage.clear().await;
}

#[tokio::test]
async fn the_startup_taint_is_removed_once_all_shims_are_served() {
    let mut stage = Stage::new("tainted").await;
    stage.register().await;
    let taints = json!([
        {"key": "test.farrier.dev/stand-in", "effect": "NoSchedule"},
        {"key": names::STARTUP_TAINT, "effect": "NoSchedule"},
    ]);
    // As a pool sets it on a node that asks for a Shim.
    stage.cluster.create_shim(&shim("tainted")).await;
    stage.asked().await;
    stage
        .cluster
        .patch_node("tainted", json!({"spec": {"taints": taints}}))
        .await;
    stage.provision().await;
    eventually("the taint is gone, and no other", async || {
        let node = stage.cluster.nodes().get("tainted").await.unwrap();
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let keys: Vec<String> = taints.into_iter().map(|taint| taint.key).collect();
        let is_gone = !keys.iter().any(|key| key == names::STARTUP_TAINT);
        if is_gone && keys.iter().any(|key| key == "test.farrier.dev/stand-in") {
            Ok(())
        } else {
            Err(keys)
        }
    })
    .await;
    stage.clear().await;
}

#[tokio::test]
async fn a_node_that_is_not_ready_gets_no_job() {
    let mut stage = Stage::new("silent").await;
    stage.register().await;
    stage.stop();
    let status =
        json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Test"}]}});
    let nodes = stage.cluster.nodes();
    nodes
        .patch_status("silent", &PatchParams::default(), &Patch::Strategic(status))
        .await
        .unwrap();
    stage.cluster.create_shim(&shim("silent")).await;
    stage
        .label_becomes(&stage.progress(), Some("pending"))
        .await;
    let uid = nodes.get("silent").await.unwrap().uid().unwrap();
    let job = names::job_name(&uid);
    assert!(stage.jobs().get_opt(&job).await.unwrap().is_none());
    stage.beat().await;
    stage.provision().await;
    stage.clear().await;
}

impl Stage {
    async fn controllers(&self) -> Vec<Pod> {
        let ours = ListParams::default().labels(CONTROLLER);
        self.pods().list(&ours).await.unwrap().items
    }

    /// The number of restarts of the controllers.
    async fn controller_restarts(&self) -> i32 {
        let pods = self.controllers().await;
        let statuses = pods
            .iter()
            .filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref());
        statuses.flatten().map(|status| status.restart_count).sum()
    }

    async fn holder(&self) -> Option<String> {
        let leases: Api<Lease> = Api::namespaced(self.cluster.client.clone(), "farrier");
        let lease = leases.get_opt("farrier").await.unwrap()?;
        lease.spec?.holder_identity
    }

    async fn replicas_become(&self, count: usize) {
        self.cluster.scale_controller(count).await;
        eventually(&format!("{count} controllers are ready"), async || {
            let pods = self.controllers().await;
            let ready = |pod: &&Pod| {
                let mut conditions = pod
                    .status
                    .iter()
                    .flat_map(|status| &status.conditions)
                    .flatten();
                conditions.any(|it| it.type_ == "Ready" && it.status == "True")
            };
            let ready = pods.iter().filter(ready).count();
            if ready == count && pods.len() == count {
                Ok(())
            } else {
                Err((ready, pods.len()))
            }
        })
        .await;
    }

    /// The answer of a controller's pod over HTTP.
    async fn answer(&self, pod: &str, path: &str) -> String {
        let path = format!("/api/v1/namespaces/farrier/pods/{pod}:8080/proxy{path}");
        let request = hyper::Request::get(path).body(Vec::new()).unwrap();
        self.cluster.client.request_text(request).await.unwrap()
    }

    /// Ends a pod as a power failure of its node does: the Lease is not released.
    async fn kill(&self, pod: &str) {
        let pods = self.pods();
        pods.delete(pod, &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn the_second_replica_takes_over_within_twenty_seconds() {
    let stage = Stage::set("twins").await;
    stage.provision().await;
    stage.replicas_become(2).await;
    let leader = eventually("a replica holds the Lease", async || {
        let holder = stage.holder().await;
        let pods = stage.controllers().await;
        let is_there = |name: &String| pods.iter().any(|pod| pod.name_any() == *name);
        holder.clone().filter(is_there).ok_or(holder)
    })
    .await;
    stage.cluster.signal_controller(&leader, "STOP").await;
    let since = Instant::now();
    eventually("another replica holds the Lease", async || {
        let holder = stage.holder().await;
        if holder.as_ref().is_some_and(|holder| *holder != leader) {
            Ok(())
        } else {
            Err(holder)
        }
    })
    .await;
    assert!(
        since.elapsed() < Duration::from_secs(20),
        "{:?}",
        since.elapsed()
    );
    stage
        .cluster
        .label("twins", "test.farrier.dev/twins", None)
        .await;
    let pod = stage.asked().await;
    // A controller that continues after that sees another holder, and does not act on its outdated state.
    stage.cluster.signal_controller(&leader, "CONT").await;
    stage.does(&pod).await;
    stage
        .cluster
        .marks_become("twins", "no mark", BTreeMap::is_empty)
        .await;
    stage.replicas_become(1).await;
    stage.clear().await;
}

#[tokio::test]
async fn a_controller_that_gets_sigterm_releases_the_lease() {
    let stage = Stage::new("back").await;
    stage.replicas_become(1).await;
    eventually("somebody holds the Lease", async || {
        stage.holder().await.ok_or("nobody")
    })
    .await;
    // An expired Lease keeps the name of its holder.
    stage.replicas_become(0).await;
    assert_eq!(stage.holder().await, None);
    stage.replicas_become(1).await;
}

#[tokio::test]
async fn the_metrics_count_the_actions_of_the_controller() {
    let stage = Stage::set("counted").await;
    stage.replicas_become(1).await;
    let controller = stage.controllers().await[0].name_any();
    stage.provision().await;
    eventually("the node is counted", async || {
        let text = stage.answer(&controller, "/metrics").await;
        let says = |line: &str| text.lines().any(|there| there == line);
        let node = "farrier_nodes{shim=\"counted\",state=\"ready\"} 1";
        if says(node) && says("farrier_leader 1") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(stage.answer(&controller, path).await, "ok");
    }
    stage.idle_clients_delay_nobody().await;
    stage.clear().await;
}

impl Stage {
    /// A program on the node of the controller opens more connections than the controller serves, and sends nothing on them.
    async fn idle_clients_delay_nobody(&self) {
        let controller = self.controllers().await.remove(0);
        let address = controller.status.unwrap().pod_ip.unwrap();
        let node = controller.spec.unwrap().node_name.unwrap();
        let script = format!(
            "for each in $(seq 130); do exec {{idle}}<>/dev/tcp/{address}/8080; done
            for target in 8081/livez 8081/readyz 8080/metrics; do
                exec {{client}}<>/dev/tcp/{address}/${{target%/*}}
                printf 'GET /%s HTTP/1.0\r\n\r\n' ${{target#*/}} >&$client
                timeout 2 head --lines=1 <&$client
            done"
        );
        let answers = self
            .cluster
            .sh(&node, &format!("bash -s <<'END'\n{script}\nEND"));
        let answers: Vec<&str> = answers.lines().map(str::trim).collect();
        assert_eq!(answers, ["HTTP/1.0 200 OK"; 3]);
    }
}

#[tokio::test]
async fn a_controller_that_is_killed_at_any_time_loses_and_repeats_no_job() {
    let strategy = json!({"type": "rolling", "rolling": {"maxUpdate": "34%"}});
    let stages = stages(["kill-a", "kill-b", "kill-c"], "kill", strategy).await;
    let mut answered: BTreeSet<String> = BTreeSet::new();
    // The controller is killed before the claim, between claim and Job, while a Job runs, and before its report is read.
    for round in 0_u64.. {
        let ready = stages[0].cluster.shims().get("kill").await.unwrap();
        if ready.status.is_some_and(|status| status.nodes_ready == 3) {
            break;
        }
        assert!(round < 60, "it never ends; answered: {answered:?}");
        for pod in stages[0].controllers().await {
            stages[0].kill(&pod.name_any()).await;
        }
        let asked = eventually("a node is asked, or all are done", async || {
            let status = stages[0].cluster.shims().get("kill").await.unwrap().status;
            let is_done = status.is_some_and(|status| status.nodes_ready == 3);
            let asked = asked(&stages).await;
            if is_done || !asked.is_empty() {
                Ok(asked)
            } else {
                Err(asked)
            }
        })
        .await;
        assert!(asked.len() <= 2, "{asked:?}");
        if let Some(node) = asked.into_iter().next() {
            let stage = named(&stages, &node);
            let pod = stage.asked().await;
            stage.does(&pod).await;
            answered.insert(pod.uid().unwrap());
        }
    }
    assert_eq!(answered.len(), 3, "a node was asked twice");
    for stage in &stages {
        stage.delete_node().await;
    }
    stages[0].cluster.delete_shim("kill").await;
}

#[tokio::test]
async fn nodes_are_changed_despite_restarts_of_the_api_server() {
    let stage = Stage::set("again").await;
    let restarts = stage.controller_restarts().await;
    let pod = stage.asked().await;
    stage.cluster.restart_api_server().await;
    stage.does(&pod).await;
    stage.label_becomes(&stage.handler(), Some("true")).await;
    stage.cluster.restart_api_server().await;
    stage
        .cluster
        .label("again", "test.farrier.dev/again", None)
        .await;
    let second = stage.asked().await;
    assert_ne!(pod.uid(), second.uid());
    stage.does(&second).await;
    stage
        .cluster
        .marks_become("again", "no mark", BTreeMap::is_empty)
        .await;
    assert_eq!(stage.controller_restarts().await, restarts);
    stage.clear().await;
}
