//! The progress of each Shim on all nodes, updated node by node, so that no decision has to read every node. Pure: no client, no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::node_summary::{NodeSummary, Phase, ShimOnNode};
use crate::controller::cluster::triggers::Requeue;
use crate::controller::decide::rollout::Others;
use crate::controller::decide::types::Tally;

impl Tally {
    fn count(&mut self, node: &str, summary: &NodeSummary, on_node: &ShimOnNode) {
        self.carried += usize::from(on_node.carried);
        if let Some(binary) = &on_node.binary {
            *self.binaries.entry(binary.clone()).or_default() += 1;
        }
        self.workers += usize::from(is_worker_left(summary, on_node));
        if is_queued(summary, on_node) {
            self.queue.insert((summary.control_plane, node.to_owned()));
        }
        match &on_node.phase {
            Phase::Ready => self.ready += 1,
            Phase::Pending | Phase::Idle => self.pending += 1,
            Phase::Fetching => {
                self.pending += 1;
                self.fetching += 1;
            }
            Phase::Waiting => self.waiting += 1,
            Phase::WaitingForPods(pods) => {
                self.waiting_for_pods.insert(node.to_owned(), pods.clone());
            }
            Phase::WaitingForNode(state) => {
                self.waiting_for_nodes.insert(node.to_owned(), state);
            }
            Phase::Unsupported(reason) => {
                self.unsupported.insert(node.to_owned(), reason.clone());
            }
            Phase::Failed { reason, halts } => {
                self.failures.insert(node.to_owned(), reason.clone());
                if *halts {
                    self.halting.insert(node.to_owned());
                }
            }
            Phase::Removing { reason, .. } => {
                self.removing.insert(node.to_owned(), reason.clone());
            }
            Phase::HandlersTaken => {}
        }
    }

    fn discount(&mut self, node: &str, summary: &NodeSummary, on_node: &ShimOnNode) {
        self.carried -= usize::from(on_node.carried);
        if let Some(binary) = &on_node.binary
            && let Some(nodes) = self.binaries.get_mut(binary)
        {
            *nodes -= 1;
            self.binaries.retain(|_, nodes| *nodes > 0);
        }
        self.workers -= usize::from(is_worker_left(summary, on_node));
        self.queue.remove(&(summary.control_plane, node.to_owned()));
        match &on_node.phase {
            Phase::Ready => self.ready -= 1,
            Phase::Pending | Phase::Idle => self.pending -= 1,
            Phase::Fetching => {
                self.pending -= 1;
                self.fetching -= 1;
            }
            Phase::Waiting => self.waiting -= 1,
            Phase::WaitingForPods(_) => {
                self.waiting_for_pods.remove(node);
            }
            Phase::WaitingForNode(_) => {
                self.waiting_for_nodes.remove(node);
            }
            Phase::Unsupported(_) => {
                self.unsupported.remove(node);
            }
            Phase::Failed { .. } => {
                self.failures.remove(node);
                self.halting.remove(node);
            }
            Phase::Removing { .. } => {
                self.removing.remove(node);
            }
            Phase::HandlersTaken => {}
        }
    }
}

/// Whether the node could be changed, and the rollout makes it wait.
fn is_queued(summary: &NodeSummary, on_node: &ShimOnNode) -> bool {
    let waits = matches!(
        on_node.phase,
        Phase::Waiting | Phase::Removing { waits: true, .. }
    );
    summary.fit && waits
}

/// Whether a worker node is in progress or queued, so that control-plane nodes have to wait.
fn is_worker_left(summary: &NodeSummary, on_node: &ShimOnNode) -> bool {
    let works = match on_node.phase {
        Phase::Pending | Phase::Fetching => summary.changing || summary.fit,
        // With `WaitingForPods`, a node that is being drained.
        Phase::Removing { .. } | Phase::WaitingForPods(_) | Phase::WaitingForNode(_) => {
            summary.changing
        }
        Phase::Ready
        | Phase::Idle
        | Phase::Waiting
        | Phase::Failed { .. }
        | Phase::Unsupported(_)
        | Phase::HandlersTaken => false,
    };
    !summary.control_plane && (works || is_queued(summary, on_node))
}

impl Tally {
    /// Updates the handlers that the Shim lost on a node. Returns whether the lost handlers differ from before.
    fn lose(
        &mut self,
        shim: &str,
        before: &BTreeSet<(String, String)>,
        now: &BTreeSet<(String, String)>,
    ) -> bool {
        let of = |lost: &BTreeSet<(String, String)>| -> BTreeSet<String> {
            let own = lost.iter().filter(|(loser, _)| loser == shim);
            own.map(|(_, sentence)| sentence.clone()).collect()
        };
        let (before, now) = (of(before), of(now));
        for sentence in &now {
            *self.lost.entry(sentence.clone()).or_default() += 1;
        }
        for sentence in &before {
            if let Some(nodes) = self.lost.get_mut(sentence) {
                *nodes -= 1;
            }
        }
        self.lost.retain(|_, nodes| *nodes > 0);
        before != now
    }
}

/// Number of waiting nodes to reconcile when a node ends its change. Each of these nodes triggers further nodes later, so that every node
/// is reached.
const REQUEUE_BATCH: usize = 4;

/// Most Jobs without a pod at a time. Kubernetes' Job controller creates four or five pods a second by default (`--kube-api-qps`, 20), and
/// a Job without a pod for a minute counts as failed.
const MOST_WITHOUT_POD: usize = 100;

/// A node that may carry Shims, or has labels or the annotation of Farrier.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Carrier {
    /// The Shims; empty for a node that has only the annotation.
    pub shims: Vec<String>,
    /// Why the last attempt did not remove a Shim: one sentence.
    pub reason: Option<String>,
}

/// All nodes.
#[derive(Debug, Default)]
pub struct Fleet {
    summaries: HashMap<String, NodeSummary>,
    tallies: BTreeMap<String, Tally>,
    changing: BTreeSet<String>,
    without_pod: BTreeSet<String>,
    waiting_for_pod_slot: BTreeSet<String>,
    waiting_for_pods: BTreeSet<String>,
    /// The tally of a Shim that is on no node.
    none: Tally,
}

impl Fleet {
    /// The progress of a Shim on all nodes.
    #[must_use]
    pub fn tally(&self, shim: &str) -> &Tally {
        self.tallies.get(shim).unwrap_or(&self.none)
    }

    /// The state of the nodes other than `node`.
    #[must_use]
    pub fn others(&self, node: &str) -> Others<'_> {
        let is_changing = self.is_changing(node);
        Others {
            changing: self.changing.len() - usize::from(is_changing),
            is_changing,
            tallies: &self.tallies,
        }
    }

    /// Whether the host of `node` is being changed.
    #[must_use]
    pub fn is_changing(&self, node: &str) -> bool {
        self.changing.contains(node)
    }

    /// Whether `node` has to wait because too many Jobs have no pod yet.
    #[must_use]
    pub fn has_no_pod_slot_for(&self, node: &str) -> bool {
        self.without_pod.len() >= MOST_WITHOUT_POD && !self.without_pod.contains(node)
    }

    /// Number of nodes that wait for pods to end.
    #[must_use]
    pub fn waiting_for_pods(&self) -> usize {
        self.waiting_for_pods.len()
    }

    /// Whether any node may carry a Shim.
    #[must_use]
    pub fn carries(&self) -> bool {
        self.tallies.values().any(|tally| tally.carried > 0)
    }

    /// Nodes that may carry a Shim, each with the Shims.
    #[must_use]
    pub fn carriers(&self) -> BTreeMap<String, Carrier> {
        let carrier = |summary: &NodeSummary| -> Carrier {
            let mut carrier = Carrier::default();
            for (shim, on_node) in summary.shims.iter().filter(|(_, it)| it.carried) {
                carrier.shims.push(shim.clone());
                if let Phase::Removing { reason, .. } = &on_node.phase {
                    carrier.reason = carrier.reason.or_else(|| reason.clone());
                }
            }
            carrier
        };
        let all = self.summaries.iter();
        all.map(|(node, summary)| (node.clone(), carrier(summary)))
            .filter(|(_, carrier)| !carrier.shims.is_empty())
            .collect()
    }

    /// Updates one node.
    pub fn put(&mut self, node: &str, summary: NodeSummary) -> Requeue {
        if self.summaries.get(node) == Some(&summary) {
            return Requeue::default();
        }
        let mut touched: BTreeSet<String> = summary.shims.keys().cloned().collect();
        touched.extend(summary.lost.iter().map(|(loser, _)| loser.clone()));
        let before = self.summaries.remove(node).unwrap_or_default();
        let requeue = self.replace(node, &before, &summary, touched);
        self.summaries.insert(node.to_owned(), summary);
        requeue
    }

    /// Forgets a node that is gone.
    pub fn remove(&mut self, node: &str) -> Requeue {
        match self.summaries.remove(node) {
            Some(before) => self.replace(node, &before, &NodeSummary::default(), BTreeSet::new()),
            None => Requeue::default(),
        }
    }

    fn replace(
        &mut self,
        node: &str,
        before: &NodeSummary,
        now: &NodeSummary,
        mut touched: BTreeSet<String>,
    ) -> Requeue {
        touched.extend(before.shims.keys().cloned());
        touched.extend(before.lost.iter().map(|(loser, _)| loser.clone()));
        let mut requeue = Requeue::default();
        let makes_room = before.changing && !now.changing;
        for (nodes, is_one) in [
            (&mut self.changing, now.changing),
            (&mut self.without_pod, now.without_pod),
            (&mut self.waiting_for_pod_slot, now.waiting_for_pod_slot),
            (&mut self.waiting_for_pods, now.waiting_for_pods),
        ] {
            if is_one {
                nodes.insert(node.to_owned());
            } else {
                nodes.remove(node);
            }
        }
        if before.without_pod && !now.without_pod {
            requeue.nodes.extend(
                self.waiting_for_pod_slot
                    .iter()
                    .take(REQUEUE_BATCH)
                    .cloned(),
            );
        }
        for shim in touched {
            let tally = self.tallies.entry(shim.clone()).or_default();
            let (then, on_node_now) = (before.shims.get(&shim), now.shims.get(&shim));
            let was_halted = tally.failures.len();
            let had_workers = tally.has_workers_left();
            if let Some(on_node) = then {
                tally.discount(node, before, on_node);
            }
            if let Some(on_node) = on_node_now {
                tally.count(node, now, on_node);
            }
            let lost_differ = tally.lose(&shim, &before.lost, &now.lost);
            if was_halted > tally.failures.len() || had_workers && !tally.has_workers_left() {
                let next = tally.queue.iter().take(REQUEUE_BATCH);
                requeue.nodes.extend(next.map(|(_, name)| name.clone()));
            }
            if then != on_node_now || lost_differ {
                requeue.shims.insert(shim);
            }
        }
        if makes_room {
            let all = self.tallies.values();
            let next = all.flat_map(|tally| tally.queue.iter().take(REQUEUE_BATCH));
            requeue.nodes.extend(next.map(|(_, name)| name.clone()));
        }
        self.tallies.retain(|_, tally| *tally != Tally::default());
        requeue
    }
}
