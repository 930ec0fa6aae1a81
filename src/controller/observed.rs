//! What the cluster looks like, as far as decisions need it: wire objects end here and views begin. Pure: no client, no clock.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use crate::api::{Shim, ShimSpec};
use crate::handoff::{ProvisionReport, ProvisionRequest, ShimRequest};
use crate::names;

/// A node as decisions see it.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    /// Name of the node object.
    pub name: String,
    /// UID of the node object.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// `linux`, as the kubelet says it.
    pub os: String,
    /// `amd64`, as the kubelet says it.
    pub arch: String,
    /// `/etc/machine-id`, as the kubelet says it.
    pub machine_id: String,
    /// Changes with each boot.
    pub boot_id: String,
    /// Handlers that the runtime told the kubelet of; absent where the two don't speak of handlers (containerd before 2.0).
    pub runtime_handlers: Option<BTreeSet<String>>,
    /// The node object is being deleted.
    pub deleting: bool,
}

impl From<&Node> for NodeView {
    fn from(node: &Node) -> Self {
        let status = node.status.as_ref();
        let info = status
            .and_then(|status| status.node_info.clone())
            .unwrap_or_default();
        let runtime_handlers = status
            .and_then(|status| status.runtime_handlers.as_deref())
            .map(|handlers| {
                handlers
                    .iter()
                    .filter_map(|handler| handler.name.clone())
                    .filter(|name| !name.is_empty())
                    .collect::<BTreeSet<_>>()
            })
            .filter(|handlers| !handlers.is_empty());
        Self {
            name: node.name_any(),
            uid: node.uid().unwrap_or_default(),
            labels: node.labels().clone(),
            annotations: node.annotations().clone(),
            os: info.operating_system,
            arch: info.architecture,
            machine_id: info.machine_id,
            boot_id: info.boot_id,
            runtime_handlers,
            deleting: node.metadata.deletion_timestamp.is_some(),
        }
    }
}

impl NodeView {
    /// What is known of the host under this very node object.
    #[must_use]
    pub fn applied(&self) -> Option<Applied> {
        let text = self.annotations.get(names::APPLIED_ANNOTATION)?;
        let applied: Applied = serde_json::from_str(text).ok()?;
        (applied.node_uid == self.uid).then_some(applied)
    }

    /// Shims whose progress stands on the node as a label.
    pub fn labelled(&self) -> impl Iterator<Item = (&str, names::Progress)> {
        self.labels.iter().filter_map(|(key, value)| {
            let shim = key.strip_prefix(names::SHIM_LABEL_PREFIX)?;
            Some((shim, names::Progress::from_label(value)?))
        })
    }
}

/// The annotation `farrier.dev/applied`: what the last report said, and how attempts have gone since.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// UID of the node object that this tells of.
    pub node_uid: String,
    /// Digest of the desired set that the last readable report answered; empty where none has.
    #[serde(default)]
    pub digest: String,
    /// Machine id that the kubelet showed then.
    #[serde(default)]
    pub machine_id: String,
    /// Boot id that the kubelet showed then.
    #[serde(default)]
    pub boot_id: String,
    /// Digest of the desired set that was tried last.
    #[serde(default)]
    pub attempted: String,
    /// Attempts at it without full success; 0 once all is as it should be.
    #[serde(default)]
    pub attempts: u32,
    /// When the last attempt began or ended.
    #[serde(default)]
    pub at: Timestamp,
    /// UID of the Job whose outcome was read last.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job: String,
    /// Why the last attempt was no success: one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the host has of each Shim.
    #[serde(default)]
    pub shims: BTreeMap<String, AppliedShim>,
}

/// What a host has of one Shim.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppliedShim {
    /// The request that was fulfilled last; absent while none has been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<ShimRequest>,
    /// Whether each of its handlers is served.
    #[serde(default)]
    pub handlers: BTreeMap<String, bool>,
    /// SHA-256 of its binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Why it is not as asked: one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A Shim as decisions see it.
#[derive(Debug, Clone, PartialEq)]
pub struct ShimView {
    /// Name of the Shim.
    pub name: String,
    /// UID of the object.
    pub uid: String,
    /// When it was made.
    pub created: Timestamp,
    /// Generation of the spec.
    pub generation: Option<i64>,
    /// It is on its way out.
    pub deleting: bool,
    /// Our finalizer holds it.
    pub held: bool,
    /// Its owner lets it go whatever nodes still carry.
    pub forced: bool,
    /// The spec as written.
    pub spec: ShimSpec,
    /// The status as written.
    pub status: Option<crate::api::ShimStatus>,
}

impl From<&Shim> for ShimView {
    fn from(shim: &Shim) -> Self {
        Self {
            name: shim.name_any(),
            uid: shim.uid().unwrap_or_default(),
            created: shim
                .creation_timestamp()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            generation: shim.metadata.generation,
            deleting: shim.metadata.deletion_timestamp.is_some(),
            held: shim
                .finalizers()
                .iter()
                .any(|finalizer| finalizer == names::SHIM_FINALIZER),
            forced: shim
                .annotations()
                .get(names::FORCE_DELETE_ANNOTATION)
                .is_some_and(|value| value == "true"),
            spec: shim.spec.clone(),
            status: shim.status.clone(),
        }
    }
}

/// A Job of ours as decisions see it, its pod included.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// UID of the Job.
    pub uid: String,
    /// UID of the node object that it was made for.
    pub node_uid: String,
    /// What it asks of the host; absent where it can't be read any more.
    pub request: Option<ProvisionRequest>,
    /// When it was made.
    pub created: Timestamp,
    /// It is on its way out.
    pub deleting: bool,
    /// How far it is.
    pub progress: JobProgress,
}

/// How far a Job is.
#[derive(Debug, Clone, PartialEq)]
pub enum JobProgress {
    /// It has no pod yet.
    NoPod,
    /// Its pod works.
    Running,
    /// Its pod can't start, for this reason.
    Stuck(String),
    /// Its installer has answered.
    Answered(Box<ProvisionReport>),
    /// It ended without an answer that can be read, for this reason.
    Silent(String),
}

impl JobView {
    /// The view of `job` with those of `pods` that are its own.
    #[must_use]
    pub fn new(job: &Job, pods: &[&Pod]) -> Self {
        let annotations = job.annotations();
        let request = job
            .spec
            .as_ref()
            .and_then(|spec| {
                spec.template
                    .metadata
                    .as_ref()?
                    .annotations
                    .as_ref()?
                    .get(names::REQUEST_ANNOTATION)
            })
            .and_then(|text| ProvisionRequest::from_json(text).ok());
        let digest = request
            .as_ref()
            .map(ProvisionRequest::digest)
            .unwrap_or_default();
        let node_uid = annotations
            .get(names::NODE_UID_ANNOTATION)
            .cloned()
            .unwrap_or_default();
        let progress = progress(job, pods, &digest, &node_uid);
        Self {
            uid: job.uid().unwrap_or_default(),
            node_uid,
            request,
            created: job
                .creation_timestamp()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            deleting: job.metadata.deletion_timestamp.is_some(),
            progress,
        }
    }
}

fn progress(job: &Job, pods: &[&Pod], digest: &str, node_uid: &str) -> JobProgress {
    let uid = job.uid().unwrap_or_default();
    let mut pods: Vec<&Pod> = pods
        .iter()
        .copied()
        .filter(|pod| pod.owner_references().iter().any(|owner| owner.uid == uid))
        .collect();
    pods.sort_by_key(|pod| pod.creation_timestamp().map(|time| time.0));
    let mut unreadable = None;
    // The newest pod speaks last; an older one counts only if it answered before it was replaced.
    for pod in pods.iter().rev() {
        match answer(pod, digest, node_uid) {
            Some(Ok(report)) => return JobProgress::Answered(Box::new(report)),
            Some(Err(reason)) => unreadable = unreadable.or(Some(reason)),
            None => {}
        }
    }
    if let Some(reason) = ending(job) {
        return JobProgress::Silent(unreadable.map_or(reason, |text| {
            format!("the installer left no report: {text}")
        }));
    }
    match pods.last() {
        None => JobProgress::NoPod,
        Some(pod) => stuck(pod).map_or(JobProgress::Running, JobProgress::Stuck),
    }
}

/// The report of the pod's installer: nothing while it runs, and the reason where what it left is none.
fn answer(pod: &Pod, digest: &str, node_uid: &str) -> Option<Result<ProvisionReport, String>> {
    let statuses = pod.status.as_ref()?.container_statuses.as_deref()?;
    let install = statuses
        .iter()
        .find(|status| status.name == names::INSTALL_CONTAINER)?;
    let ended = install.state.as_ref()?.terminated.as_ref()?;
    let text = ended.message.as_deref().unwrap_or_default();
    if text.is_empty() {
        let why = ended.reason.as_deref().unwrap_or("no reason");
        return Some(Err(format!("exit status {}, {why}", ended.exit_code)));
    }
    Some(match ProvisionReport::from_json(text) {
        Ok(report) if report.request_digest == digest && report.node_uid == node_uid => Ok(report),
        Ok(_) => Err("its report answers another request".to_owned()),
        Err(error) => Err(error.to_string()),
    })
}

/// Why the Job has ended, if it has.
fn ending(job: &Job) -> Option<String> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    let ended = conditions.iter().find(|condition| {
        condition.status == "True" && matches!(condition.type_.as_str(), "Complete" | "Failed")
    })?;
    Some(match ended.reason.as_deref() {
        Some("DeadlineExceeded") => "the Job did not end before its deadline; see the log of its pod, or raise --job-deadline".to_owned(),
        reason => format!(
            "the Job ended without a report: {}: {}",
            reason.unwrap_or(&ended.type_),
            ended.message.as_deref().unwrap_or("no message")
        ),
    })
}

/// Why the pod can't start, if a container says so in words that waiting alone does not change.
fn stuck(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let mut containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    containers.find_map(waiting)
}

fn waiting(container: &ContainerStatus) -> Option<String> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    // The kubelet's words for what won't pass by itself soon (kubelet/images and kubelet/kuberuntime, Kubernetes 1.34).
    matches!(
        reason,
        "ImagePullBackOff"
            | "ErrImageNeverPull"
            | "InvalidImageName"
            | "CreateContainerConfigError"
            | "CreateContainerError"
            | "RunContainerError"
    )
    .then(|| {
        format!(
            "container {} of the Job's pod can't start: {reason}: {}",
            container.name,
            waiting.message.as_deref().unwrap_or("no message")
        )
    })
}
