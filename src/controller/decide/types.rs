//! Input and output types of the decisions. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::ResourceExt;

use super::desired::{Cluster, Desired};
use super::event::EventSpec;
use crate::api::FirstBinary;
use crate::controller::cluster::ending_pods::PodStates;
use crate::controller::cluster::job_view::JobView;
use crate::controller::cluster::node_view::{Applied, Binary, NodeView};
use crate::controller::cluster::slim::Taint;
use crate::handoff::{EndingPod, Problem, ProvisionRequest, Sha256Digest};

/// Everything that a decision about one node depends on.
#[derive(Debug)]
pub struct Observed<'a> {
    /// The node.
    pub node: &'a NodeView,
    /// The Shims and settings.
    pub cluster: &'a Cluster,
    /// Shims that the rollout blocks on this node, each with the reason.
    pub blocked_by_rollout: &'a BTreeMap<String, String>,
    /// The node's Job, if there is one.
    pub job: Option<&'a JobView>,
    /// Why the API server rejected the last Job.
    pub rejected: Option<&'a Problem>,
    /// That rejection only lasts as long as an admission webhook does not answer.
    pub is_outage: bool,
    /// Why the last eviction of a pod of the node was refused.
    pub refused_eviction: Option<&'a str>,
    /// Why no Job may be created now.
    pub hold: Hold,
    /// The state of the pods that the annotation names, if they were looked at just now.
    pub pods: Option<&'a PodStates>,
    /// How long a node waits between two looks at its pods.
    pub look_every: Duration,
    /// The current time.
    pub now: Timestamp,
    /// Finished Jobs are left to the API server to delete.
    pub keep_jobs: bool,
}

/// Why no Job may be created now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hold {
    /// A Job may be created.
    #[default]
    None,
    /// Too many Jobs have no pod. The node is queued again when one of these Jobs has a pod.
    NoPodSlot,
    /// Shims have just changed, and more may follow within this time.
    Settling(Duration),
}

/// What to do about one node, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Labels and annotation to write.
    pub edit: Option<NodeEdit>,
    /// The Event to publish.
    pub event: Option<EventSpec>,
    /// What to do about the Job.
    pub job: JobStep,
    /// Pods to evict.
    pub evict: Vec<EndingPod>,
    /// The node is being drained after this plan.
    pub drains: bool,
    /// The Job that ended.
    pub ended: Option<Ended>,
    /// When to reconcile again even if nothing changes.
    pub look_again: Option<Duration>,
    /// A Job is due and waits until fewer Jobs have no pod.
    pub waiting_for_pod_slot: bool,
    /// Binaries that no other node of the platform has reported yet, each with its Shim.
    pub first_binaries: Vec<(String, FirstBinary)>,
}

impl Plan {
    /// Whether nothing is to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let writes = self.edit.is_some() || self.event.is_some() || !self.evict.is_empty();
        !writes && self.job == JobStep::None
    }
}

/// What to do about the node's Job.
#[derive(Debug, Default, PartialEq)]
pub enum JobStep {
    /// Nothing.
    #[default]
    None,
    /// Create it.
    Create {
        /// The request.
        request: Box<ProvisionRequest>,
        /// Its digest.
        digest: Sha256Digest,
    },
    /// Delete the Job with this UID.
    Delete(String),
}

impl fmt::Display for JobStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Create { .. } => "create",
            Self::Delete(_) => "delete",
        })
    }
}

/// A Job that ended, for the metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// The outcome, one of a bounded set.
    pub outcome: &'static str,
    /// Number of restarts of containerd.
    pub restarts: u32,
    /// Whether the host was changed without a restart.
    pub spared: bool,
    /// Time from the claim to the report.
    pub took: Duration,
}

/// Changes to a node object, written in one patch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeEdit {
    /// The taints, if Farrier's own are added or removed.
    pub taints: Option<Vec<Taint>>,
    /// Labels to set, or to remove where there is no value.
    pub labels: BTreeMap<String, Option<String>>,
    /// Annotations to set, or to remove where there is no value.
    pub annotations: BTreeMap<String, Option<String>>,
}

/// The labels in kubectl's notation: `key=value` to set, `key-` to remove.
impl fmt::Display for NodeEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.labels.iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            match value {
                Some(value) => write!(f, "{gap}{key}={value}")?,
                None => write!(f, "{gap}{key}-")?,
            }
        }
        Ok(())
    }
}

/// A decision on one node, and what it is based on.
#[derive(Debug)]
pub struct Decision {
    /// The plan.
    pub plan: Plan,
    /// What the node should carry.
    pub desired: Desired,
    /// What is known about the host, including the end of its Job.
    pub applied: Option<Applied>,
    /// Its Job is running, or its end is not recorded yet.
    pub job_is_unrecorded: bool,
}

/// The progress of one Shim on all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Nodes that serve it as specified.
    pub ready: usize,
    /// Nodes in progress.
    pub pending: usize,
    /// Those of them whose Job fetches the artifacts.
    pub fetching: usize,
    /// Nodes that the rollout blocks.
    pub waiting: usize,
    /// Nodes that wait for pods to end, each with the pods.
    pub waiting_for_pods: BTreeMap<String, String>,
    /// Nodes that no Job may change now, each with the state that prevents it: `cordoned`, `not ready`.
    pub waiting_for_nodes: BTreeMap<String, &'static str>,
    /// Nodes from which the Shim is to be removed, each with the reason why the last attempt did not remove it.
    pub removing: BTreeMap<String, Option<String>>,
    /// Nodes that may carry any of it, selected or not.
    pub carried: usize,
    /// The binaries that nodes serve, as specified or not, each with the number of nodes.
    pub binaries: BTreeMap<Binary, usize>,
    /// Nodes whose last attempt failed, each with the reason.
    pub failures: BTreeMap<String, String>,
    /// Selected nodes that can't carry it, each with the reason. They count neither as failed nor as selected.
    pub unsupported: BTreeMap<String, String>,
    /// Failed nodes that halt the rollout, because other nodes might fail in the same way.
    pub halting: BTreeSet<String>,
    /// Handlers that it lost to other Shims, as sentences, each with the number of nodes.
    pub lost: BTreeMap<String, usize>,
    /// Nodes that could be changed and that the rollout blocks, control-plane nodes last.
    pub queue: BTreeSet<(bool, String)>,
    /// Worker nodes in progress or in the queue.
    pub workers: usize,
}

impl Tally {
    /// Number of selected nodes that can carry it.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.ready + self.underway() + self.failures.len()
    }

    /// Number of nodes that do not serve it yet, and have not failed.
    #[must_use]
    pub fn underway(&self) -> usize {
        let waiting = self.waiting_for_pods.len() + self.waiting_for_nodes.len();
        self.pending + self.waiting + waiting
    }

    /// A failed node other than `node` that halts the rollout, and why it failed.
    #[must_use]
    pub fn halted_by(&self, node: &str) -> Option<(&str, &str)> {
        let other = self.halting.iter().find(|name| *name != node)?;
        Some((other, self.failures.get(other)?))
    }

    /// Whether a worker node is in progress or in the queue.
    #[must_use]
    pub fn has_workers_left(&self) -> bool {
        self.workers > 0
    }
}

/// What to do about one RuntimeClass.
#[derive(Debug, Clone, PartialEq)]
pub enum RuntimeClassStep {
    /// Create it: there is none of this name.
    Create(Box<RuntimeClass>),
    /// Replace the present one, named by UID and version. Of the Shim's own, spec and labels belong to Farrier, and annotations, finalizers
    /// and owners are kept. Of others', only the node selector of the handler and Farrier's annotation differ.
    Replace(Box<RuntimeClass>),
    /// Delete the RuntimeClass with this name and UID, because it is no longer desired or its handler differs. A handler is immutable.
    Delete {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
}

impl RuntimeClassStep {
    /// The object that is written, as text: a new one of a name, or the present one of a UID.
    #[must_use]
    pub fn target(&self) -> String {
        match self {
            Self::Create(class) => format!("RuntimeClass {}", class.name_any()),
            Self::Replace(class) => class.uid().unwrap_or_default(),
            Self::Delete { uid, .. } => uid.clone(),
        }
    }
}

/// What to do and to say about a Shim's RuntimeClasses.
#[derive(Debug, Default, PartialEq)]
pub struct RuntimeClassPlan {
    /// The changes.
    pub steps: Vec<RuntimeClassStep>,
    /// The problem of each name that the Shim can't have.
    pub conflicts: Vec<Problem>,
    /// RuntimeClasses of others with Farrier's node selector.
    pub adopted: Vec<String>,
    /// RuntimeClasses of others without a node selector of the handler.
    pub unrestricted: Vec<String>,
    /// Those of others that the Shim would create if they were deleted.
    pub replaceable: Vec<String>,
    /// One of those of others comes from k3s, which creates them at each start.
    pub from_k3s: bool,
    /// An adopted RuntimeClass is returned to its owner.
    pub returns: bool,
    /// The Shim's own RuntimeClasses are not as specified, and stay so because the Shim is paused.
    pub is_held_back: bool,
    /// The Shim is being deleted, and these RuntimeClasses with it.
    pub withdrawn: Vec<String>,
}
