//! What stands in the cluster: nodes, Shims, and the bare Jobs that Farrier's are compared with.

use std::time::{Duration, Instant};

use farrier::api::Shim;
use farrier::names;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Resource as _};
use serde_json::json;

use crate::{LOOK_EVERY, NAMESPACE, Setup, follow, patience, until};

/// As many as the controller has under way at a time.
const CONCURRENT_WRITES: usize = 8;

/// The Shims; every node wants all of them.
pub const SHIMS: [&str; 3] = ["one", "two", "three"];

pub fn shim(name: &str) -> Shim {
    serde_json::from_value(json!({
        "apiVersion": "runtime.spinkube.dev/v1alpha1",
        "kind": "Shim",
        "metadata": {"name": name},
        "spec": {
            "annotationSelector": {names::KWASM_NODE_ANNOTATION: "true"},
            "fetchStrategy": {"platforms": [{
                "os": "linux",
                "arch": "amd64",
                "location": format!("https://downloads.example.com/releases/v1.2.3/containerd-shim-{name}-v2-linux-x86_64.tar.gz"),
                "sha256": names::sha256_hex(name.as_bytes()),
            }]},
            "runtimeClass": {"name": name, "handler": name},
            "rolloutStrategy": {"type": "recreate"},
        },
    }))
    .unwrap()
}

fn node_name(number: usize) -> String {
    format!("node-{number}.region-1.example.internal")
}

fn node(number: usize) -> Node {
    let name = node_name(number);
    serde_json::from_value(json!({
        "metadata": {
            "name": name,
            // What a cloud provider and its kubelet put on a node.
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "node.kubernetes.io/instance-type": "standard-4",
                "topology.kubernetes.io/region": "region-1",
                "topology.kubernetes.io/zone": format!("region-1-{}", number % 3),
                "example.com/node-pool": "default",
            },
            "annotations": {names::KWASM_NODE_ANNOTATION: "true"},
        },
        "spec": {"providerID": format!("example://region-1/{number}")},
    }))
    .unwrap()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// One of Farrier's Jobs, which the bare ones are made after.
pub async fn first_job(jobs: &Api<Job>) -> Job {
    let deadline = Instant::now() + patience(0);
    loop {
        let listed = jobs.list(&ListParams::default().limit(1)).await.unwrap();
        if let Some(job) = listed.items.into_iter().next() {
            return job;
        }
        assert!(Instant::now() < deadline, "the controller makes no Job");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Setup {
    /// Makes the nodes and waits until kwok has them Ready.
    pub async fn join_nodes(&self) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let make = |number| {
            let nodes = nodes.clone();
            async move { nodes.create(&PostParams::default(), &node(number)).await }
        };
        futures::stream::iter(0..self.nodes)
            .map(make)
            .buffer_unordered(CONCURRENT_WRITES)
            .try_for_each(async |_| Ok(()))
            .await
            .unwrap();
        let ready = until(self.nodes, Duration::from_secs(2), async || {
            let listed = nodes.list(&ListParams::default()).await.unwrap();
            listed.iter().filter(|node| is_ready(node)).count() == self.nodes
        });
        assert!(ready.await, "kwok does not make the nodes Ready");
    }

    /// The time in which as many Jobs of the shape of `template` are made, as the administrator, and end, with nobody to look after them.
    pub async fn bare_jobs(&self, mut template: Job) -> Option<Duration> {
        template.metadata = kube::core::ObjectMeta {
            annotations: template.metadata.annotations,
            ..Default::default()
        };
        template.status = None;
        let spec = template.spec.as_mut().unwrap();
        spec.selector = None;
        let labels = spec.template.metadata.as_mut().unwrap().labels.as_mut();
        labels.unwrap().retain(|label, _| {
            !label.starts_with("batch.kubernetes.io/")
                && !["controller-uid", "job-name"].contains(&label.as_str())
        });
        // Written before the clock starts: the controller's own time for that is in its CPU time.
        let bodies: Vec<Vec<u8>> = (0..self.nodes)
            .map(|number| {
                template.metadata.name = Some(format!("bare-{number}"));
                let pod = template.spec.as_mut().unwrap().template.spec.as_mut();
                pod.unwrap().node_name = Some(node_name(number));
                serde_json::to_vec(&template).unwrap()
            })
            .collect();
        let request = kube::core::Request::new(Job::url_path(&(), Some(NAMESPACE)));
        let ended = follow::<Job>(
            Api::namespaced(self.client.clone(), NAMESPACE),
            watcher::Config::default().fields("status.successful=1"),
        );
        let began = Instant::now();
        futures::stream::iter(bodies)
            .map(|body| {
                let request = request.create(&PostParams::default(), body).unwrap();
                self.client.request_text(request)
            })
            .buffer_unordered(CONCURRENT_WRITES)
            .try_for_each(async |_| Ok(()))
            .await
            .unwrap();
        let all = || ended.lock().unwrap().len() >= self.nodes;
        let complete = until(self.nodes, LOOK_EVERY, async || all()).await;
        complete.then(|| began.elapsed())
    }
}
