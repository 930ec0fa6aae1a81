//! What decisions look at and what they come to: types that several of them share. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use super::desired::{Cluster, Desired};
use super::event::EventSpec;
use crate::controller::cluster::job_view::JobView;
use crate::controller::cluster::node_view::{Applied, NodeView};
use crate::controller::cluster::slim::Taint;
use crate::handoff::ProvisionRequest;

/// All that a decision about one node looks at.
#[derive(Debug)]
pub struct Observed<'a> {
    /// The node.
    pub node: &'a NodeView,
    /// What is asked of all nodes alike.
    pub cluster: &'a Cluster,
    /// Shims that the node is not to change yet, each with what it waits for.
    pub blocked_by_rollout: &'a BTreeMap<String, String>,
    /// The node's Job, if there is one.
    pub job: Option<&'a JobView>,
    /// Why the API server did not take the Job that was last to be made.
    pub rejected: Option<&'a str>,
    /// Why no Job is to be made now, if one is due.
    pub hold: Hold,
    /// What time it is.
    pub now: Timestamp,
    /// Finished Jobs are left to the API server to remove.
    pub keep_jobs: bool,
}

/// Why no Job is to be made now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hold {
    /// There is no reason.
    #[default]
    None,
    /// Too many have no pod yet: the node is asked anew when one has.
    NoPodSlot,
    /// Shims have just come or changed, and more may be on their way: not before this has passed.
    Settling(Duration),
}

/// What to do about one node, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Labels and annotation to write.
    pub edit: Option<NodeEdit>,
    /// What people should read.
    pub event: Option<EventSpec>,
    /// What to do about the Job.
    pub job: JobStep,
    /// A Job that ended.
    pub ended: Option<Ended>,
    /// When to decide again though nothing changes.
    pub look_again: Option<Duration>,
    /// A Job is due and is not made until fewer Jobs have no pod.
    pub waiting_for_pod_slot: bool,
}

impl Plan {
    /// Whether nothing is to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edit.is_none() && self.event.is_none() && self.job == JobStep::None
    }
}

/// What to do about the node's Job.
#[derive(Debug, Default, PartialEq)]
pub enum JobStep {
    /// Nothing.
    #[default]
    None,
    /// Make it.
    Create {
        /// What it carries.
        request: Box<ProvisionRequest>,
        /// Digest of that.
        digest: String,
    },
    /// Delete the one with this UID.
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

/// A Job that ended, for who counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// A word of a bounded set.
    pub outcome: &'static str,
    /// Restarts of containerd.
    pub restarts: u32,
    /// Whether the host was changed without one.
    pub spared: bool,
    /// From the claim to the report.
    pub took: Duration,
}

/// Changes to a node object, written in one patch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeEdit {
    /// All taints that stay, where the startup taint goes.
    pub taints: Option<Vec<Taint>>,
    /// Labels to set, or to remove where there is no value.
    pub labels: BTreeMap<String, Option<String>>,
    /// Annotations to set, or to remove where there is no value.
    pub annotations: BTreeMap<String, Option<String>>,
}

/// The labels as kubectl would be told them: `key=value` to set, `key-` to remove.
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

/// What was decided on one node, with all that it rests on.
#[derive(Debug)]
pub struct Decision {
    /// What to do.
    pub plan: Plan,
    /// What the node should carry.
    pub desired: Desired,
    /// What is known of its host, with what the end of its Job says.
    pub applied: Option<Applied>,
    /// Its Job is at work, or its end is not written down yet.
    pub works: bool,
}

/// How far one Shim is on all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Nodes that serve it as it should be.
    pub ready: usize,
    /// Nodes on which it is on its way.
    pub pending: usize,
    /// Nodes whose turn has not come.
    pub waiting: usize,
    /// Nodes that are to let it go, each with why it is there still, if an attempt was made.
    pub removing: BTreeMap<String, Option<String>>,
    /// Nodes that may carry anything of it, wanted or not.
    pub carried: usize,
    /// Nodes on which the last attempt failed, each with the reason.
    pub failures: BTreeMap<String, String>,
    /// Nodes that want it and can't carry it, each with the reason: no failure, and none of those that are counted.
    pub unsupported: BTreeMap<String, String>,
    /// Failed nodes whose failure might be that of every node.
    pub halting: BTreeSet<String>,
    /// What it lost to other Shims, as sentences, each with the number of nodes.
    pub lost: BTreeMap<String, usize>,
    /// Nodes that could be changed once it is their turn, those of the control plane last.
    pub queue: BTreeSet<(bool, String)>,
    /// Nodes without the control plane that are on their way or could be.
    pub workers: usize,
}

impl Tally {
    /// Nodes that want it.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.ready + self.pending + self.waiting + self.failures.len()
    }

    /// The node other than `node`, if any, whose failure might be that of every node, and why it failed.
    #[must_use]
    pub fn halted_by(&self, node: &str) -> Option<(&str, &str)> {
        let other = self.halting.iter().find(|name| *name != node)?;
        Some((other, self.failures.get(other)?))
    }

    /// Whether a node without the control plane is on its way, or could be.
    #[must_use]
    pub fn has_workers_left(&self) -> bool {
        self.workers > 0
    }
}
