//! The summary of one node: the progress of each Shim on the node. Pure. `aggregate` adds the summaries up.

use std::collections::{BTreeMap, BTreeSet};

use crate::controller::cluster::job_view::{JobProgress, JobView};
use crate::controller::cluster::node_view::{Applied, Binary, NodeView};
use crate::controller::decide::desired::{self, Desired, Verdict};
use crate::controller::decide::ending_pods;
use crate::controller::decide::job_due::may_begin;
use crate::controller::decide::node_labels;
use crate::controller::decide::types::{Decision, JobStep, Observed};
use crate::handoff::{Problem, ShimRequest};
use crate::names::{self, Progress};

/// The state of a node whose Job another program has suspended, in words that follow "the node is".
const SUSPENDED: &str = "not changed yet, because its Job is suspended (a queue such as Kueue has no room, or job.labels of the chart's values name none)";

/// The progress of one Shim on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The Shim is served as specified.
    Ready,
    /// The Shim is in progress.
    Pending,
    /// The Shim is in progress, and the Job of the node fetches the artifacts.
    Fetching,
    /// The node does not serve the Shim as specified, and is not changed: the Shim is paused, or has no finalizer yet.
    Idle,
    /// No Job may change the node now, because the node is `cordoned` or `not ready`, or its Job is suspended.
    WaitingForNode(&'static str),
    /// A change of the Shim waits for the rollout.
    Waiting,
    /// A change of the Shim waits for pods to end: one sentence.
    WaitingForPods(String),
    /// The last attempt failed.
    Failed {
        /// The reason: one sentence.
        reason: String,
        /// Whether other nodes might fail in the same way, so that the rollout halts.
        halts: bool,
    },
    /// The node can't carry the Shim, for this reason.
    Unsupported(String),
    /// The Shim is to be removed from the node.
    Removing {
        /// The removal waits for the rollout.
        waits: bool,
        /// Why the last attempt did not remove the Shim.
        reason: Option<String>,
    },
    /// Another Shim has all handlers of this Shim.
    HandlersTaken,
}

/// One Shim on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShimOnNode {
    /// The progress.
    pub phase: Phase,
    /// Whether the host may carry a part of the Shim, or a Job is about to install the Shim.
    pub carried: bool,
    /// The binary that the host serves, as specified or not.
    pub binary: Option<Binary>,
}

/// The summary of one node.
#[allow(clippy::struct_excessive_bools, reason = "each is counted by itself")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSummary {
    /// The node is a control-plane node.
    pub control_plane: bool,
    /// The node could be changed now: it is ready and not cordoned.
    pub fit: bool,
    /// The host is being changed, or is about to be changed.
    pub changing: bool,
    /// The Job of the node has no pod yet, and is not suspended.
    pub without_pod: bool,
    /// The node waits for pods to end, or its pods are being evicted. Pods of the node are looked at.
    pub waiting_for_pods: bool,
    /// The node waits until fewer Jobs have no pod.
    pub waiting_for_pod_slot: bool,
    /// The Shims of the node, by name.
    pub shims: BTreeMap<String, ShimOnNode>,
    /// Handlers that one Shim lost to another: the losing Shim, and a sentence.
    pub lost: BTreeSet<(String, String)>,
}

impl NodeSummary {
    /// The summary of the node after the decision is carried out. Empty for a node that is being deleted.
    #[must_use]
    pub fn of(seen: &Observed, decision: Option<&Decision>) -> Self {
        let Observed { node, job, .. } = *seen;
        let Some(decision) = decision else {
            return Self::default();
        };
        let (plan, desired) = (&decision.plan, &decision.desired);
        let (job_is_unrecorded, applied) = (decision.job_is_unrecorded, decision.applied.as_ref());
        let begins = matches!(plan.job, JobStep::Create { .. });
        let asked = requested(job);
        let carried = |shim: &str| {
            let wanted = desired.verdicts.get(shim).and_then(Verdict::request);
            let may_carry = desired.node_problem.is_none() && carries(node, applied, shim);
            may_carry || asked.contains(shim) || begins && wanted.is_some()
        };
        let waiting = ending_pods::waiting(applied, desired);
        let drained = waiting.is_some_and(|waiting| waiting.draining_since.is_some());
        let drains = plan.drains || drained;
        let holds = applied.is_some_and(|applied| applied.holding_pods.is_some());
        let works = job_is_unrecorded || begins;
        let mut changing = works || drains;
        let named = waiting.map(|it| ending_pods::problem(seen.cluster, desired, it).sentence());
        // While the Job asks again, the node is in progress.
        let waiting = named.clone().filter(|_| !works);
        let unrecorded = job.filter(|_| job_is_unrecorded);
        let has_no_pod = unrecorded.filter(|job| job.progress == JobProgress::NoPod);
        let suspended = has_no_pod.is_some_and(|job| job.suspended);
        let obstacle = if works {
            suspended.then_some(SUSPENDED)
        } else {
            obstacle(seen, desired, applied)
        };
        let fetches = unrecorded.is_some_and(|job| job.progress == JobProgress::Fetching);
        let on_node = |shim: &str, phase: Phase| ShimOnNode {
            phase,
            carried: carried(shim),
            binary: node_labels::served_binary(applied, shim, desired),
        };
        let mut shims = BTreeMap::new();
        for (shim, verdict) in &desired.verdicts {
            let progress = node_labels::progress(node, applied, shim, verdict, desired);
            let phase = match (verdict, progress) {
                (Verdict::Waiting(..), _) => Phase::Waiting,
                (Verdict::HandlersTaken(_), _) => Phase::HandlersTaken,
                // A node that is not ready may not have reported its platform yet.
                (Verdict::Idle, _) if node.os.is_empty() || node.arch.is_empty() => {
                    obstacle.map_or(Phase::Idle, Phase::WaitingForNode)
                }
                (Verdict::Idle, _) => Phase::Idle,
                (_, Some((Progress::Provisioned, _))) if is_outdated(seen, applied, shim) => {
                    Phase::Idle
                }
                (_, Some((Progress::Provisioned, _))) => Phase::Ready,
                (_, Some((Progress::Unsupported, reason))) => {
                    Phase::Unsupported(reason.unwrap_or_default())
                }
                (verdict, Some((Progress::Failed, reason))) => Phase::Failed {
                    reason: reason.unwrap_or_default(),
                    halts: matches!(verdict, Verdict::Wanted(_)),
                },
                // The node itself may be what can't be written.
                (Verdict::Wanted(_), _) if let Some(problem) = seen.rejected => Phase::Failed {
                    reason: problem.sentence(),
                    halts: true,
                },
                (_, _) if let Some(waiting) = &waiting => Phase::WaitingForPods(waiting.clone()),
                (verdict, _) => {
                    changing |= begun(applied, shim, verdict);
                    match obstacle {
                        Some(obstacle) => Phase::WaitingForNode(obstacle),
                        None if fetches => Phase::Fetching,
                        None => Phase::Pending,
                    }
                }
            };
            shims.insert(shim.clone(), on_node(shim, phase));
        }
        let hindrance = named.or_else(|| obstacle.map(|state| format!("the node is {state}")));
        let known = applied.into_iter().flat_map(|applied| applied.shims.keys());
        let labelled = node.labelled().map(|(shim, _)| shim.to_owned());
        for shim in known.cloned().chain(labelled) {
            if !shims.contains_key(&shim) && carried(&shim) {
                let known = applied.and_then(|applied| applied.shims.get(&shim));
                let reason = known.and_then(|known| known.reason.clone());
                let phase = Phase::Removing {
                    waits: desired.staying.contains(&shim),
                    reason: reason.or_else(|| hindrance.clone()),
                };
                let removing = on_node(&shim, phase);
                shims.insert(shim, removing);
            }
        }
        Self {
            control_plane: node.control_plane,
            fit: node.ready && !node.cordoned,
            changing,
            without_pod: begins || has_no_pod.is_some() && !suspended,
            waiting_for_pods: waiting.is_some() || drains || holds,
            waiting_for_pod_slot: plan.waiting_for_pod_slot,
            shims,
            lost: lost(desired),
        }
    }
}

/// The Shims in the request of a Job.
fn requested(job: Option<&JobView>) -> BTreeSet<&str> {
    let request = job.and_then(|job| job.request.as_ref());
    let shims = request.into_iter().flat_map(|request| &request.shims);
    shims.map(|shim| shim.name.as_str()).collect()
}

/// The state of the node in which no Job may begin. While a Job runs, the node is in progress, whatever state it is in.
fn obstacle(seen: &Observed, desired: &Desired, applied: Option<&Applied>) -> Option<&'static str> {
    let state = if seen.node.ready {
        "cordoned"
    } else {
        "not ready"
    };
    (!may_begin(seen, desired, applied)).then_some(state)
}

/// The Shims that lost a handler to another one, each with a sentence.
fn lost(desired: &Desired) -> BTreeSet<(String, String)> {
    let lost = desired.lost.iter().map(|(loser, handler, winner)| {
        let problem = Problem::with_help(
            format!("handler {handler} belongs to Shim {winner}"),
            "choose another name in spec.runtimeClass.handler or spec.handlerAliases",
        );
        (loser.clone(), problem.sentence())
    });
    lost.collect()
}

/// Whether the node keeps another version of the Shim than its specification says, because the Shim is paused.
fn is_outdated(seen: &Observed, applied: Option<&Applied>, shim: &str) -> bool {
    let mut shims = seen.cluster.shims.iter().filter(|it| it.name == shim);
    shims.any(|shim| {
        let is_paused = shim.spec.as_ref().is_ok_and(|spec| spec.paused);
        is_paused && !desired::is_as_specified(shim, seen.node, applied, seen.cluster)
    })
}

/// Whether the last attempt requested exactly the request of the verdict.
fn begun(applied: Option<&Applied>, shim: &str, verdict: &Verdict) -> bool {
    let tried = applied.and_then(|applied| applied.tried.get(shim));
    let wanted = verdict.request().map(ShimRequest::fingerprint);
    wanted.is_some() && tried == wanted.as_ref()
}

/// Whether the node object has a label or an annotation of the Shim.
fn carries(node: &NodeView, applied: Option<&Applied>, shim: &str) -> bool {
    // A failure before the first Job leaves a label only, and so does a Shim that the node can't carry.
    let labelled = node.labelled().any(|(name, progress)| {
        name == shim && !matches!(progress, Progress::Failed | Progress::Unsupported)
    });
    labelled
        || node.labels.contains_key(&names::shim_label(shim)) && applied.is_some()
        || applied.is_some_and(|applied| applied.shims.contains_key(shim))
}
