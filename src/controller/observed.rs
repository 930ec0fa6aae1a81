//! What the cluster looks like, as far as decisions need it: wire objects end here and views begin. Pure: no client, no clock.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Node, Pod, PodStatus};
use kube::core::DeserializeGuard;
use kube::{Resource as _, ResourceExt};
use serde::{Deserialize, Serialize};

use crate::api::{Shim, ShimSpec, is_label_name};
use crate::handoff::{ProvisionReport, ProvisionRequest, ShimRequest};
use crate::names;

/// The kubelet keeps this much of a termination message (Kubernetes API reference, `terminationMessagePath`).
const LONGEST_MESSAGE: usize = 4096;

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
        (applied.node_uid == self.uid && applied.is_sound()).then_some(applied)
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

impl Applied {
    /// Whether every name in it can be a label and belongs where it stands: whoever may edit the node may have written it.
    fn is_sound(&self) -> bool {
        self.shims.iter().all(|(name, shim)| {
            let request = shim.request.as_ref();
            is_label_name(name)
                && shim.handlers.keys().all(|handler| is_label_name(handler))
                && request.is_none_or(|request| {
                    request.name == *name
                        && request
                            .handlers
                            .iter()
                            .all(|handler| is_label_name(handler))
                })
        })
    }
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

/// A Shim as it comes from the API server. One that can't be read must not keep the others from being listed.
pub type ShimObject = DeserializeGuard<Shim>;

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
    /// The spec as written, or why this release can't read it: a release with a newer definition wrote it.
    pub spec: Result<ShimSpec, String>,
    /// The status as written.
    pub status: Option<crate::api::ShimStatus>,
}

impl From<&ShimObject> for ShimView {
    fn from(shim: &ShimObject) -> Self {
        let (spec, status) = match &shim.0 {
            Ok(shim) => (Ok(shim.spec.clone()), shim.status.clone()),
            Err(error) => (Err(error.to_string()), None),
        };
        Self {
            name: shim.name_any(),
            uid: shim.uid().unwrap_or_default(),
            created: shim
                .creation_timestamp()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            generation: shim.meta().generation,
            deleting: shim.meta().deletion_timestamp.is_some(),
            held: shim
                .finalizers()
                .iter()
                .any(|finalizer| finalizer == names::SHIM_FINALIZER),
            forced: shim
                .annotations()
                .get(names::FORCE_DELETE_ANNOTATION)
                .is_some_and(|value| value == "true"),
            spec,
            status,
        }
    }
}

/// A Job of ours as decisions see it, its pod included.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// UID of the Job.
    pub uid: String,
    /// What it asks of the host; absent where it can't be read, or is for another node object.
    pub request: Option<ProvisionRequest>,
    /// When it was made.
    pub created: Timestamp,
    /// Since when it is on its way out.
    pub deleting: Option<Timestamp>,
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
    /// The view of `job`, the one of the node object `node_uid`, with those of `pods` that are its own.
    #[must_use]
    pub fn new(job: &Job, pods: &[&Pod], node_uid: &str) -> Self {
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
            .and_then(|text| ProvisionRequest::from_json(text).ok())
            .filter(|request| request.node_uid == node_uid);
        let digest = request
            .as_ref()
            .map(ProvisionRequest::digest)
            .unwrap_or_default();
        let progress = progress(job, pods, &digest, node_uid);
        Self {
            uid: job.uid().unwrap_or_default(),
            request,
            created: job
                .creation_timestamp()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            deleting: job.metadata.deletion_timestamp.as_ref().map(|time| time.0),
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
    let status = pod.status.as_ref()?;
    let Some(ended) = ended(
        status.container_statuses.as_deref(),
        names::INSTALL_CONTAINER,
    ) else {
        return never_ran(status).map(Err);
    };
    let text = ended.message.as_deref().unwrap_or_default();
    if text.is_empty() {
        return Some(Err(exit(names::INSTALL_CONTAINER, ended)));
    }
    if text.len() > LONGEST_MESSAGE {
        return Some(Err("it is longer than a report can be".to_owned()));
    }
    Some(match ProvisionReport::from_json(text) {
        Ok(report) if report.request_digest == digest && report.node_uid == node_uid => Ok(report),
        Ok(_) => Err("its report answers another request".to_owned()),
        Err(error) => Err(error.to_string()),
    })
}

/// Why a pod that has failed never came to run its installer.
fn never_ran(status: &PodStatus) -> Option<String> {
    if status.phase.as_deref() != Some("Failed") {
        return None;
    }
    let fetch = ended(
        status.init_container_statuses.as_deref(),
        names::FETCH_CONTAINER,
    );
    Some(match fetch.filter(|ended| ended.exit_code != 0) {
        Some(ended) => format!(
            "{} {}",
            exit(names::FETCH_CONTAINER, ended),
            ended.message.as_deref().unwrap_or_default()
        ),
        None => format!(
            "its pod failed: {}: {}",
            status.reason.as_deref().unwrap_or("no reason"),
            status.message.as_deref().unwrap_or("no message")
        ),
    })
}

fn ended<'a>(
    statuses: Option<&'a [ContainerStatus]>,
    name: &str,
) -> Option<&'a ContainerStateTerminated> {
    let status = statuses?.iter().find(|status| status.name == name)?;
    status.state.as_ref()?.terminated.as_ref()
}

fn exit(container: &str, ended: &ContainerStateTerminated) -> String {
    let why = ended.reason.as_deref().unwrap_or("no reason");
    format!(
        "container {container} ended with exit status {}, {why}",
        ended.exit_code
    )
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
