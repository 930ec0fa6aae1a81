//! What was written and has not come back by the watches: whoever decides on what is known to be old writes what is rejected, and counts
//! nodes that change as ones that don't. No decision, no write.

use std::collections::{HashMap, HashSet};

use kube::ResourceExt;

use super::aggregate::Fleet;
use super::node_summary::NodeSummary;
use crate::controller::cluster::slim::NodeObject;
use crate::controller::decide::types::{JobStep, Plan};

/// What was written and has not come back.
#[derive(Debug, Default)]
pub struct Expectations {
    /// Nodes by name, each with the version that a write of ours has replaced.
    replaced: HashMap<String, Option<String>>,
    /// UIDs of Jobs that were deleted.
    deleted_jobs: HashSet<String>,
    /// Nodes whose Jobs are being made, each with what it adds to the whole: none of the stores may know of it yet.
    claimed: HashMap<String, NodeSummary>,
}

impl Expectations {
    /// Whether the watch has yet to bring what was written to this node.
    pub fn is_stale(&mut self, node: &NodeObject) -> bool {
        let name = node.name_any();
        let replaced = self.replaced.get(&name);
        let is_stale = replaced.is_some_and(|replaced| *replaced == node.resource_version());
        if !is_stale {
            self.replaced.remove(&name);
        }
        is_stale
    }

    /// Takes in what is about to be written for a node, and takes out of it what is written already.
    pub fn begin(&mut self, node: &str, plan: &mut Plan, summary: &NodeSummary) {
        if matches!(&plan.job, JobStep::Delete(uid) if self.deleted_jobs.contains(uid)) {
            plan.job = JobStep::None;
        }
        if matches!(plan.job, JobStep::Create { .. }) {
            self.claimed.insert(node.to_owned(), summary.clone());
        } else {
            self.claimed.remove(node);
        }
    }

    /// Takes in what was written by a plan for this version of the node, given the version that the patch returned, if there was one.
    /// A patch that changed nothing brings no event of the watch: nothing is waited for then.
    pub fn done(&mut self, node: &NodeObject, plan: &Plan, patched: Option<&str>) {
        let replaced = node.resource_version();
        if patched.is_some_and(|patched| replaced.as_deref() != Some(patched)) {
            self.replaced.insert(node.name_any(), replaced);
        }
        if let JobStep::Delete(uid) = &plan.job {
            self.deleted_jobs.insert(uid.clone());
        }
    }

    /// Counts the nodes whose Jobs are being made as what they are about to be.
    pub fn count(&self, fleet: &mut Fleet) {
        for (node, summary) in &self.claimed {
            fleet.put(node, summary.clone());
        }
    }

    /// A Job is gone.
    pub fn job_is_gone(&mut self, uid: &str) {
        self.deleted_jobs.remove(uid);
    }

    /// A node is gone.
    pub fn node_is_gone(&mut self, node: &str) {
        self.replaced.remove(node);
        self.claimed.remove(node);
    }

    /// A list came as a whole: some of what was written may have come and gone while the watch was away.
    pub fn listed(&mut self) {
        self.replaced.clear();
        self.deleted_jobs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::{Owner, ProvisionRequest};

    #[test]
    fn a_node_whose_job_is_being_made_counts_as_one_that_changes_though_nobody_has_seen_it() {
        let (mut expectations, summary) = (Expectations::default(), NodeSummary::default());
        let changing = NodeSummary {
            changing: true,
            ..summary.clone()
        };
        let request = ProvisionRequest::new(Owner::Cluster, "uid".to_owned(), vec![], vec![]);
        let mut plan = Plan {
            job: JobStep::Create {
                digest: request.digest(),
                request: Box::new(request),
            },
            ..Plan::default()
        };
        expectations.begin("n1", &mut plan, &changing);
        expectations.listed();
        let mut fleet = Fleet::default();
        fleet.put("n1", summary.clone());
        expectations.count(&mut fleet);
        assert!(fleet.is_changing("n1"));
        // The next decision looks at what came of it.
        expectations.begin("n1", &mut Plan::default(), &summary);
        let mut fleet = Fleet::default();
        expectations.count(&mut fleet);
        assert!(!fleet.is_changing("n1"));
    }
}
