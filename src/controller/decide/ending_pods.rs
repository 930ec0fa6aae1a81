//! A node whose containerd may not be restarted while pods run that a restart ends: the policy for these pods, and what people read. Also the
//! pods that hold up a removal. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use super::desired::{Cluster, Desired};
use super::event::{EventSpec, LONGEST_NOTE};
use super::types::Observed;
use crate::controller::cluster::ending_pods::PodStates;
use crate::controller::cluster::node_view::{Applied, HoldingPods, WaitingForPods};
use crate::handoff::{EndingPod, EndingPods, OnRestart, Problem, printable_up_to};
use crate::names::reasons;

/// Shortest wait between two looks at the pods of one node.
pub const POD_LOOK_EVERY: Duration = Duration::from_secs(5);

/// Longest wait for an answer of the API server about the pods.
const LONGEST_WAIT: Duration = Duration::from_mins(10);

/// Nodes whose pods are looked at per second, at most: a look is a request or a few to the API server, twenty at most.
const LOOKS_PER_SECOND: u32 = 20;

/// How long one of `nodes` waits between two looks at its pods.
#[must_use]
pub fn look_every(nodes: usize) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    POD_LOOK_EVERY.max(Duration::from_secs(u64::from(nodes / LOOKS_PER_SECOND)))
}

/// The pods that a change to the desired set waits for, if the last attempt was refused because of them.
#[must_use]
pub fn waiting<'a>(applied: Option<&'a Applied>, desired: &Desired) -> Option<&'a WaitingForPods> {
    let applied = applied.filter(|applied| applied.attempted == Some(desired.digest))?;
    applied.waiting_for_pods.as_ref()
}

/// What to do about these pods: the strictest policy of their handlers. Without a time limit for a drain, no pod is evicted.
#[must_use]
pub fn policy(cluster: &Cluster, desired: &Desired, pods: &EndingPods) -> OnRestart {
    match specified(desired, pods) {
        OnRestart::Drain if cluster.drain_timeout.is_none() => OnRestart::Refuse,
        policy => policy,
    }
}

/// The strictest policy of the pods and of the handlers in the report, which others may have written apart from each other.
fn specified(desired: &Desired, pods: &EndingPods) -> OnRestart {
    let policy = &desired.restart_policy;
    let of_pods = pods.pods.iter().map(|pod| &pod.handler);
    let handlers: Vec<&str> = of_pods.chain(&pods.handlers).map(String::as_str).collect();
    if handlers.is_empty() {
        policy.default
    } else {
        policy.strictest(handlers)
    }
}

/// Why the node waits, and what ends the wait.
#[must_use]
pub fn problem(cluster: &Cluster, desired: &Desired, waiting: &WaitingForPods) -> Problem {
    let pods = &waiting.pods;
    let (number, are) = match pods.len() {
        1 => ("1 pod".to_owned(), "is"),
        number => (format!("{number} pods"), "are"),
    };
    let place = place_of_policy(desired, pods);
    if waiting.ended && waiting.attempts == 0 {
        return Problem::with_help(
            "all known pods that the restart of containerd would have ended are gone",
            "Farrier restarts containerd as soon as the node is ready and its turn has come",
        );
    }
    if waiting.ended {
        let message = format!(
            "the restart of containerd would have ended {number}, which the API server does not know: {pods}"
        );
        let help = format!(
            "Farrier asks containerd again within ten minutes. If `crictl pods` on the node still lists these pods, remove them there, or set {place} to Allow"
        );
        return Problem::with_help(message, help);
    }
    if waiting.draining_since.is_some() {
        return Problem::new(
            format!(
                "{number} must end before the restart of containerd, and {are} being evicted: {pods}"
            ),
            None,
        );
    }
    let message = format!("the restart of containerd would end {number}: {pods}");
    let specified = specified(desired, pods);
    let drains = specified == OnRestart::Drain;
    if drains && !waiting.static_pods.is_empty() {
        let of = EndingPods::of(&waiting.static_pods);
        let help = format!(
            "remove the manifests of these static pods from the node, because no eviction ends them, or set {place} to Allow: {of}"
        );
        return Problem::with_help(message, help);
    }
    let help = match (cluster.drain_timeout, drains, &waiting.undone_because) {
        (Some(_), true, Some(because)) => format!("{because}, or set {place} to Allow"),
        (Some(_), true, None) => {
            "Farrier evicts these pods as soon as the node is ready, not cordoned, and its turn has come".to_owned()
        }
        (None, true, _) => format!(
            "set drain.enabled in the chart so that Farrier may evict pods, delete these pods, or set {place} to Allow"
        ),
        (_, false, _) if specified == OnRestart::Allow => {
            "delete these pods, or set onRestart in the chart to Allow: others than Farrier declare their handlers".to_owned()
        }
        (_, false, _) => format!("delete these pods, or set {place} to Drain or Allow"),
    };
    Problem::with_help(message, help)
}

/// Where the policy of these pods is specified: by Shims that have their handlers on the node, or by the chart.
fn place_of_policy(desired: &Desired, pods: &EndingPods) -> String {
    let mut without_shim = pods.handlers.clone();
    let mut names = BTreeSet::new();
    for (shim, handlers) in &desired.handlers_by_shim {
        for handler in handlers {
            if pods.handlers.contains(handler) {
                without_shim.remove(handler);
                names.insert(shim.as_str());
            }
        }
    }
    let names: Vec<&str> = names.into_iter().collect();
    let of_shims =
        (!names.is_empty()).then(|| format!("spec.onRestart of Shim {}", names.join(" and ")));
    let of_chart =
        (!without_shim.is_empty() || names.is_empty()).then(|| "onRestart in the chart".to_owned());
    of_shims
        .into_iter()
        .chain(of_chart)
        .collect::<Vec<_>>()
        .join(" and ")
}

/// The pods that the node waits for, of those that have not ended.
#[must_use]
pub fn left(waiting: &WaitingForPods, left: &[EndingPod]) -> Vec<EndingPod> {
    let named = waiting.pods.pods.iter();
    named.filter(|pod| left.contains(pod)).cloned().collect()
}

/// Whether the API server says that the pods have ended.
#[must_use]
pub fn have_ended(seen: &Observed, waiting: &WaitingForPods) -> bool {
    seen.pods
        .is_some_and(|pods| left(waiting, &pods.left).is_empty())
}

/// Whether the API server says that the pods that hold up a removal have ended.
#[must_use]
pub fn are_gone(seen: &Observed, holding: &HoldingPods) -> bool {
    let pods = &holding.pods.pods;
    let is_gone = |states: &PodStates| pods.iter().all(|pod| !states.left.contains(pod));
    !pods.is_empty() && seen.pods.is_some_and(is_gone)
}

/// Whether the restart may be tried, `since` the last attempt: the pods have ended, or may end.
#[must_use]
pub fn are_over(
    seen: &Observed,
    desired: &Desired,
    waiting: &WaitingForPods,
    since: Duration,
) -> bool {
    match (policy(seen.cluster, desired, &waiting.pods), seen.pods) {
        // An installer that refuses nevertheless knows that others declare the handlers.
        (OnRestart::Allow, _) if waiting.attempts == 0 => true,
        (_, Some(_)) => have_ended(seen, waiting),
        // The API server says nothing about the pods, and a Job asks containerd.
        (_, None) => waiting.draining_since.is_none() && since >= LONGEST_WAIT,
    }
}

/// The Event of a node that waits for pods.
#[must_use]
pub fn waits(cluster: &Cluster, desired: &Desired, waiting: &WaitingForPods) -> EventSpec {
    EventSpec {
        warning: false,
        reason: reasons::WAITING_FOR_PODS.to_owned(),
        note: printable_up_to(
            &problem(cluster, desired, waiting).sentence_up_to(LONGEST_NOTE),
            LONGEST_NOTE,
        ),
    }
}
