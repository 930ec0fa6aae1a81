//! Records Farrier's own writes until the watches deliver them, as the expectations of Kubernetes' controllers do. A decision on a stale
//! store would send patches that conflict, and would count a node as idle although its Job is being created. Writes nothing.

use std::collections::{HashMap, HashSet};

use kube::ResourceExt;

use super::aggregate::Fleet;
use super::node_summary::NodeSummary;
use crate::controller::cluster::slim::NodeObject;
use crate::controller::decide::types::{JobStep, Plan};

/// Farrier's own writes that the watches have not delivered yet.
#[derive(Debug, Default)]
pub struct Expectations {
    /// The version of each node that Farrier's last write replaced, by name.
    replaced: HashMap<String, Option<String>>,
    /// UIDs of deleted Jobs.
    deleted_jobs: HashSet<String>,
    /// The summaries of nodes whose Jobs are being created, and of nodes that are being drained: no store may have that yet.
    claimed: HashMap<String, NodeSummary>,
}

impl Expectations {
    /// Whether the watch has yet to deliver Farrier's last write to this node.
    pub fn is_stale(&mut self, node: &NodeObject) -> bool {
        let name = node.name_any();
        let replaced = self.replaced.get(&name);
        let is_stale = replaced.is_some_and(|replaced| *replaced == node.resource_version());
        if !is_stale {
            self.replaced.remove(&name);
        }
        is_stale
    }

    /// Records the writes that a plan is about to make for a node. Drops the deletion of a Job from the plan if the Job was deleted
    /// already.
    pub fn begin(&mut self, node: &str, plan: &mut Plan, summary: &NodeSummary) {
        if matches!(&plan.job, JobStep::Delete(uid) if self.deleted_jobs.contains(uid)) {
            plan.job = JobStep::None;
        }
        if plan.drains || matches!(plan.job, JobStep::Create { .. }) {
            self.claimed.insert(node.to_owned(), summary.clone());
        } else {
            self.claimed.remove(node);
        }
    }

    /// Records that a plan was written to this version of the node, and the version that the patch returned. A patch that changed nothing
    /// causes no event of the watch, so nothing is expected then.
    pub fn done(&mut self, node: &NodeObject, plan: &Plan, patched: Option<&str>) {
        let replaced = node.resource_version();
        if patched.is_some_and(|patched| replaced.as_deref() != Some(patched)) {
            self.replaced.insert(node.name_any(), replaced);
        }
        if let JobStep::Delete(uid) = &plan.job {
            self.deleted_jobs.insert(uid.clone());
        }
    }

    /// Adds the summaries of the nodes whose Jobs are being created, and of the nodes that are being drained.
    pub fn count(&self, fleet: &mut Fleet) {
        for (node, summary) in &self.claimed {
            fleet.put(node, summary.clone());
        }
    }

    /// A Job is gone. Returns whether Farrier has deleted it.
    pub fn job_is_gone(&mut self, uid: &str) -> bool {
        self.deleted_jobs.remove(uid)
    }

    /// A node is gone.
    pub fn node_is_gone(&mut self, node: &str) {
        self.replaced.remove(node);
        self.claimed.remove(node);
    }

    /// A watch has listed again: some writes may have been delivered and replaced in the meantime.
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
    fn a_node_counts_as_changing_while_its_job_is_created_and_no_watch_has_delivered_it() {
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
        // The next decision replaces the summary.
        expectations.begin("n1", &mut Plan::default(), &summary);
        let mut fleet = Fleet::default();
        expectations.count(&mut fleet);
        assert!(!fleet.is_changing("n1"));
    }
}
