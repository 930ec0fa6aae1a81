//! Nodes without a kubelet. A test acts as their kubelet and installer. Helpers, no tests.

use std::collections::BTreeMap;
use std::time::Duration;

use farrier::handoff::{HandlerReport, Outcome, ProvisionReport, ProvisionRequest, Sha256Digest};
use farrier::{api::Shim, names};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use crate::support::{Cluster, eventually};

/// The node controller waits 50 s for a kubelet (Kubernetes 1.34, `--node-monitor-grace-period`).
const BEAT: Duration = Duration::from_secs(10);

/// A cluster with one more node, which has no kubelet, and a Shim for this node.
pub struct Stage {
    pub cluster: Cluster,
    pub name: &'static str,
    /// The task that writes the node's heartbeats.
    heart: Option<AbortHandle>,
}

pub fn create<K>(object: Value) -> K
where
    K: DeserializeOwned,
{
    serde_json::from_value(object).unwrap()
}

/// A Shim for the nodes that carry the label `test.farrier.dev/<name>`. The shim is never fetched.
pub fn shim(name: &str) -> Shim {
    create(json!({
        "apiVersion": "runtime.spinkube.dev/v1alpha1", "kind": "Shim", "metadata": {"name": name},
        "spec": {
            "nodeSelector": {format!("test.farrier.dev/{name}"): "true"},
            "fetchStrategy": {"anonHttp": {"location": "https://example.org/shim.tar.gz"}},
            "runtimeClass": {"name": name, "handler": name},
            "rolloutStrategy": {"type": "recreate"},
        },
    }))
}

pub async fn vanishes<K>(api: Api<K>, name: &str)
where
    K: Clone + std::fmt::Debug + DeserializeOwned + Resource,
{
    eventually(&format!("{name} is gone"), async || {
        match api.get_opt(name).await.unwrap() {
            None => Ok(()),
            Some(object) => Err(object.meta().clone()),
        }
    })
    .await;
}

impl Stage {
    /// A stage with the node and the Shim `name`. The node requests the Shim.
    pub async fn set(name: &'static str) -> Self {
        let mut stage = Self::new(name).await;
        stage.register().await;
        let shim = shim(name);
        stage.cluster.create_shim(&shim).await;
        stage
    }

    /// A stage without the node and the Shim.
    pub async fn new(name: &'static str) -> Self {
        Cluster::with_farrier().await;
        Self::beside(name).await
    }

    /// As [`Stage::new`], and does not install Farrier.
    pub async fn beside(name: &'static str) -> Self {
        Self {
            cluster: Cluster::connect().await,
            name,
            heart: None,
        }
    }

    /// Creates the node as a kubelet does, and then reports that the node is ready. Without reports, the node controller takes the node for
    /// lost.
    pub async fn register(&mut self) -> Node {
        let node = create(json!({
            "metadata": {"name": self.name, "labels": {format!("test.farrier.dev/{}", self.name): "true"}},
            // No kubelet runs the pods that would be scheduled to this node.
            "spec": {"taints": [{"key": "test.farrier.dev/stand-in", "effect": "NoSchedule"}]},
            "status": {"nodeInfo": {
                "operatingSystem": "linux", "architecture": "amd64", "machineID": self.name, "bootID": "first",
                "systemUUID": "", "kernelVersion": "", "osImage": "", "containerRuntimeVersion": "containerd://1.7.35",
                "kubeletVersion": "v1.34.4", "kubeProxyVersion": "",
            }},
        }));
        let nodes = self.cluster.nodes();
        let node = nodes.create(&PostParams::default(), &node).await.unwrap();
        self.beat().await;
        node
    }

    /// The kubelet reports its status from now on.
    pub async fn beat(&mut self) {
        let (nodes, name) = (self.cluster.nodes(), self.name);
        beat(&nodes, name).await;
        let heart = tokio::spawn(async move {
            loop {
                tokio::time::sleep(BEAT).await;
                beat(&nodes, name).await;
            }
        });
        self.stop();
        self.heart = Some(heart.abort_handle());
    }

    /// The kubelet no longer reports its status.
    pub fn stop(&self) {
        if let Some(heart) = &self.heart {
            heart.abort();
        }
    }

    pub fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.cluster.client.clone(), "farrier")
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.client.clone(), "farrier")
    }

    pub fn classes(&self) -> Api<RuntimeClass> {
        Api::all(self.cluster.client.clone())
    }

    /// The pod of the node's Job, once there is a pod without a result.
    pub async fn asked(&self) -> Pod {
        let uid = self.cluster.nodes().get(self.name).await.unwrap().uid();
        let job = names::job_name(&uid.unwrap());
        eventually(&format!("a pod of Job {job}"), async || {
            let pods = self.pods().list(&ListParams::default()).await.unwrap();
            let waits = |pod: &Pod| {
                let status = pod.status.as_ref();
                let phase = status.and_then(|status| status.phase.as_deref());
                phase == Some("Pending") && pod.meta().deletion_timestamp.is_none()
            };
            let of_job = |pod: &Pod| pod.owner_references().iter().any(|owner| owner.name == job);
            let found = pods.items.into_iter().find(|pod| of_job(pod) && waits(pod));
            found.ok_or("none")
        })
        .await
    }

    /// Ends the pod with a termination message, as kubelet and installer together would.
    pub async fn says(&self, pod: &Pod, message: &str) {
        let status = json!({"status": {"phase": "Succeeded", "containerStatuses": [{
            "name": "install", "image": "farrier", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "message": message}},
        }]}});
        self.status(pod, status).await;
    }

    /// Writes the pod's status as its kubelet would.
    pub async fn status(&self, pod: &Pod, status: Value) {
        let (name, patch) = (pod.name_any(), Patch::Merge(status));
        let pods = self.pods();
        pods.patch_status(&name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    /// The report of an installer that fulfilled the request.
    pub async fn does(&self, pod: &Pod) {
        self.says(pod, &done(pod).to_json()).await;
    }

    pub async fn label_becomes(&self, key: &str, value: Option<&str>) {
        let what = format!("{key}={value:?}");
        let wanted = |marks: &BTreeMap<String, String>| marks.get(key).map(String::as_str) == value;
        self.cluster.marks_become(self.name, &what, wanted).await;
    }

    /// Dates the node's last attempt back by an hour, so that the controller's wait before the next one is over.
    pub async fn an_hour_passes(&self) {
        let nodes = self.cluster.nodes();
        eventually("the last attempt is dated back", async || {
            let node = nodes.get(self.name).await.unwrap();
            let text = &node.annotations()[names::APPLIED_ANNOTATION];
            let mut applied: Value = serde_json::from_str(text).unwrap();
            let at: jiff::Timestamp = create(applied["at"].clone());
            applied["at"] = json!(at - jiff::SignedDuration::from_hours(1));
            // The patch names the version, so that it overwrites no write of the controller.
            let patch = json!({"metadata": {
                "resourceVersion": node.resource_version(),
                "annotations": {names::APPLIED_ANNOTATION: applied.to_string()},
            }});
            let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
            nodes.patch(self.name, &params, &patch).await.map(drop)
        })
        .await;
    }

    pub fn progress(&self) -> String {
        names::shim_label(self.name)
    }

    pub fn handler(&self) -> String {
        names::handler_label(self.name)
    }

    /// Provisions the node: from the claim to the handler's label.
    pub async fn provision(&self) {
        let pod = self.asked().await;
        self.label_becomes(&self.progress(), Some("pending")).await;
        self.does(&pod).await;
        self.label_becomes(&self.handler(), Some("true")).await;
    }

    pub async fn delete_node(&self) {
        self.stop();
        let nodes = self.cluster.nodes();
        nodes
            .delete(self.name, &DeleteParams::default())
            .await
            .unwrap();
        vanishes(nodes, self.name).await;
    }

    /// Deletes the node, then the Shim, which no node carries any more.
    pub async fn clear(self) {
        self.delete_node().await;
        self.cluster.delete_shim(self.name).await;
    }
}

/// Reports that the node is ready, as its kubelet does.
async fn beat(nodes: &Api<Node>, name: &str) {
    let now = jiff::Timestamp::now();
    let status = json!({"status": {"conditions": [{
        "type": "Ready", "status": "True", "reason": "StandIn", "lastHeartbeatTime": now, "lastTransitionTime": now,
    }]}});
    // The heartbeat of a deleted node fails.
    let _ = nodes
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(status))
        .await;
}

pub fn done(pod: &Pod) -> ProvisionReport {
    let request =
        ProvisionRequest::from_json(&pod.annotations()[names::REQUEST_ANNOTATION]).unwrap();
    let mut report = ProvisionReport::new(Outcome::Applied);
    report.request_digest = Some(request.digest());
    report.node_uid.clone_from(&request.node_uid);
    report.restarts = 1;
    for shim in request.shims {
        for handler in shim.handlers {
            report.handlers.push(HandlerReport {
                shim: shim.name.clone(),
                handler,
                path: None,
                sha256: Some(Sha256Digest::of(b"a")),
                served: true,
                reason: None,
                remedy: None,
                waits_for_pods: false,
            });
        }
    }
    report
}
