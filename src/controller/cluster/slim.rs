//! Objects of the API server with only the fields that decisions read. A cluster has thousands of nodes, a Node lists all of its images,
//! and a Job its whole pod. Pure: types alone.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

/// A node.
#[derive(Resource, Debug, Clone, Default, Deserialize)]
#[resource(inherit = "Node")]
pub struct NodeObject {
    /// The metadata.
    pub metadata: ObjectMeta,
    /// The spec.
    #[serde(default)]
    pub spec: NodeSpec,
    /// The status.
    #[serde(default)]
    pub status: NodeStatus,
}

/// The spec of a node.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct NodeSpec {
    /// The node is cordoned.
    #[serde(default)]
    pub unschedulable: bool,
    /// The taints. All of them are written back when the startup taint is removed.
    #[serde(default)]
    pub taints: Vec<Taint>,
}

/// A taint with all of its fields, because it is written back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Taint {
    /// The key.
    pub key: String,
    /// The value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The effect.
    pub effect: String,
    /// The time at which it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_added: Option<String>,
}

/// The status of a node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Conditions such as `Ready`.
    #[serde(default)]
    pub conditions: Vec<NodeCondition>,
    /// The host.
    #[serde(default)]
    pub node_info: NodeInfo,
    /// Handlers that the runtime reported to the kubelet.
    #[serde(default)]
    pub runtime_handlers: Option<Vec<RuntimeHandler>>,
}

/// One condition of a node.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct NodeCondition {
    /// Conditions such as `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Time of the kubelet's last write of the status (Kubernetes API reference, `NodeCondition`).
    #[serde(default, rename = "lastHeartbeatTime")]
    pub last_heartbeat: Option<Time>,
}

/// The host of a node.
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

/// A handler that the runtime reported to the kubelet.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RuntimeHandler {
    /// The name; empty for the default handler.
    #[serde(default)]
    pub name: Option<String>,
}

/// A Job.
#[derive(Resource, Debug, Clone, Default, Deserialize)]
#[resource(inherit = "Job")]
pub struct JobObject {
    /// The metadata.
    pub metadata: ObjectMeta,
    /// The spec.
    #[serde(default)]
    pub spec: JobSpec,
    /// The status.
    #[serde(default)]
    pub status: JobStatus,
}

/// The spec of a Job.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct JobSpec {
    /// The Job controller creates no pod.
    #[serde(default)]
    pub suspend: bool,
    /// The pod template.
    #[serde(default)]
    pub template: PodTemplate,
}

/// The pod template of a Job.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct PodTemplate {
    /// The metadata.
    #[serde(default)]
    pub metadata: PodTemplateMetadata,
}

/// The metadata of a Job's pods.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct PodTemplateMetadata {
    /// The annotations, of which one is the request.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// The status of a Job.
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
    /// The metadata.
    pub metadata: ObjectMeta,
    /// The spec.
    #[serde(default)]
    pub spec: PodSpec,
    /// The status.
    #[serde(default)]
    pub status: PodStatus,
}

impl PodObject {
    /// UID of the object that created and manages the pod. Other owners don't count: whoever creates a pod may name any Job among them.
    #[must_use]
    pub fn controller_uid(&self) -> Option<&str> {
        let owners = self.metadata.owner_references.as_deref()?;
        let controller = owners.iter().find(|owner| owner.controller == Some(true));
        controller.map(|owner| owner.uid.as_str())
    }
}

/// The spec of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Name of the node whose kubelet runs the pod and writes its status.
    pub node_name: Option<String>,
    /// Name of the RuntimeClass.
    pub runtime_class_name: Option<String>,
}

/// The status of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// The phase, such as `Failed`.
    pub phase: Option<String>,
    /// The reason for the phase.
    pub reason: Option<String>,
    /// The message for the phase.
    pub message: Option<String>,
    /// Statuses of the init containers.
    pub init_container_statuses: Vec<ContainerStatus>,
    /// Statuses of the containers.
    pub container_statuses: Vec<ContainerStatus>,
}
