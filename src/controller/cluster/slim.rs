//! Objects of the API server, cut to what decisions look at: a cluster has thousands of nodes, and a node's object lists all of its
//! images, a Job's all of its pod. Pure: types alone.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};
use kube::Resource;
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

/// A node.
#[derive(Resource, Debug, Clone, Default, Deserialize)]
#[resource(inherit = "Node")]
pub struct NodeObject {
    /// As everywhere.
    pub metadata: ObjectMeta,
    /// What is asked of it.
    #[serde(default)]
    pub spec: NodeSpec,
    /// What its kubelet says.
    #[serde(default)]
    pub status: NodeStatus,
}

/// What is asked of a node.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct NodeSpec {
    /// It is cordoned.
    #[serde(default)]
    pub unschedulable: bool,
    /// Its taints; they are written back whole where ours goes.
    #[serde(default)]
    pub taints: Vec<Taint>,
}

/// A taint, with all that it has: it is written back as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Taint {
    /// What it is called.
    pub key: String,
    /// What it is set to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What it does to pods.
    pub effect: String,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_added: Option<String>,
}

/// What a kubelet says of its node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// `Ready` among others.
    #[serde(default)]
    pub conditions: Vec<NodeCondition>,
    /// What host it is.
    #[serde(default)]
    pub node_info: NodeInfo,
    /// Handlers that the runtime told it of.
    #[serde(default)]
    pub runtime_handlers: Option<Vec<RuntimeHandler>>,
}

/// One condition of a node.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct NodeCondition {
    /// `Ready` among others.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

/// What host a node is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeInfo {
    /// `linux`.
    pub operating_system: String,
    /// `amd64`.
    pub architecture: String,
    /// `/etc/machine-id`.
    #[serde(rename = "machineID")]
    pub machine_id: String,
    /// Changes with each boot.
    #[serde(rename = "bootID")]
    pub boot_id: String,
    /// `containerd://2.1.9`.
    pub container_runtime_version: String,
}

/// A handler that the runtime told a kubelet of.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RuntimeHandler {
    /// Empty for the default one.
    #[serde(default)]
    pub name: Option<String>,
}

/// A Job.
#[derive(Resource, Debug, Clone, Default, Deserialize)]
#[resource(inherit = "Job")]
pub struct JobObject {
    /// As everywhere.
    pub metadata: ObjectMeta,
    /// What it is to do.
    #[serde(default)]
    pub spec: JobSpec,
    /// How far it is.
    #[serde(default)]
    pub status: JobStatus,
}

/// What a Job is to do.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct JobSpec {
    /// Its pods.
    #[serde(default)]
    pub template: PodTemplate,
}

/// What a Job's pods are like.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct PodTemplate {
    /// Labels and annotations.
    #[serde(default)]
    pub metadata: PodTemplateMetadata,
}

/// Labels and annotations of a Job's pods.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct PodTemplateMetadata {
    /// The request is one.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// How far a Job is.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct JobStatus {
    /// `Complete` or `Failed` once it has ended.
    #[serde(default)]
    pub conditions: Vec<JobCondition>,
}

/// A pod.
#[derive(Resource, Debug, Clone, Default, Deserialize)]
#[resource(inherit = "Pod")]
pub struct PodObject {
    /// As everywhere.
    pub metadata: ObjectMeta,
    /// How far it is.
    #[serde(default)]
    pub status: PodStatus,
}

/// How far a pod is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Failed` among others.
    pub phase: Option<String>,
    /// Why, in a word.
    pub reason: Option<String>,
    /// Why, in a sentence.
    pub message: Option<String>,
    /// Of its init containers.
    pub init_container_statuses: Vec<ContainerStatus>,
    /// Of its containers.
    pub container_statuses: Vec<ContainerStatus>,
}
