//! The eviction of the pods that a restart of containerd would end, and the pods that do not come back after a restart. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::desired::Desired;
use super::ending_pods::{have_ended, left, policy, waiting, waits};
use super::event::{EventSpec, LONGEST_NOTE, shortened};
use super::job_due::{LONGEST_RETRY, age, has_no_turn, is_drained_for_too_long, may_begin};
use super::types::Observed;
use crate::controller::cluster::node_view::{Applied, WaitingForPods};
use crate::handoff::{EndingPod, EndingPods, OnRestart, Problem, printable_up_to};
use crate::names::reasons;

/// Time after a restart until its pods are looked at. The kubelet starts a container again after 10, 20 and 40 s (Kubernetes, *Pod
/// Lifecycle*, container restarts).
const RECOVERY: Duration = Duration::from_mins(2);

/// Time after a restart until its pods are forgotten if the API server does not answer about them.
const LONGEST_WATCH: Duration = Duration::from_mins(10);

/// Longest pause after a drain that was undone. Each drain evicts pods that may have come back meanwhile, and taints the node.
const LONGEST_REST: Duration = Duration::from_hours(4);

/// Longest answer of the API server to an eviction in a message, in bytes: a message has 1,000 for everything.
const LONGEST_ANSWER: usize = 300;

/// One step of a drain.
#[derive(Debug, Default)]
pub struct DrainStep {
    /// The pods to evict.
    pub evict: Vec<EndingPod>,
    /// The Event to publish.
    pub event: Option<EventSpec>,
    /// Whether the node is being drained after this step.
    pub drains: bool,
}

/// Begins the drain of a node that waits for pods, goes on with it, or undoes it after its time limit.
pub fn advance(seen: &Observed, desired: &Desired, applied: &mut Applied) -> DrainStep {
    let mut step = DrainStep::default();
    let Some(before) = waiting(Some(applied), desired).cloned() else {
        // Another desired set has ended the drain.
        if let Some(former) = &mut applied.waiting_for_pods {
            former.draining_since = None;
        }
        return step;
    };
    let may_drain = policy(seen.cluster, desired, &before.pods) == OnRestart::Drain;
    let drains = may_drain && may_begin(seen, desired, Some(applied));
    // A time in the future is not one of this controller.
    let is_past = |at: &Timestamp| *at <= seen.now;
    let rests = before.undone_at.filter(is_past);
    let rests = rests.is_some_and(|at| age(seen.now, at) < rest(before.undone));
    let mut now = before.clone();
    if let Some(pods) = seen.pods {
        now.static_pods = left(&before, &pods.static_pods);
        now.ended = have_ended(seen, &before);
    }
    // Neither a static pod can be evicted, nor a pod that only containerd knows.
    let drains = drains && now.static_pods.is_empty();
    let is_left = seen.pods.is_some() && !now.ended;
    match before.draining_since.filter(is_past) {
        None if drains && is_left && !rests && !has_no_turn(seen, desired, applied) => {
            now.draining_since = Some(seen.now);
            step.event = Some(waits(seen.cluster, desired, &now));
        }
        Some(_) if drains && is_drained_for_too_long(seen, &before) => {
            now.draining_since = None;
            now.undone_at = Some(seen.now);
            now.undone = now.undone.saturating_add(1);
            now.undone_because = Some(cause(seen, &before));
            step.event = Some(EventSpec {
                warning: true,
                ..waits(seen.cluster, desired, &now)
            });
        }
        Some(_) if drains => {
            // The taint and the labels were written with the step before: a new pod goes to another node.
            let evictable = seen.pods.map_or(&[][..], |pods| &pods.evictable);
            step.evict = left(&before, evictable);
        }
        None | Some(_) => {
            now.draining_since = None;
            let is_news = may_drain && now.static_pods != before.static_pods;
            step.event = is_news.then(|| waits(seen.cluster, desired, &now));
        }
    }
    step.drains = now.draining_since.is_some();
    applied.waiting_for_pods = Some(now);
    step
}

/// The pause after so many drains that were undone: as between attempts, doubled for each drain after the first one.
fn rest(undone: u32) -> Duration {
    let doublings = undone.saturating_sub(1).min(10);
    (LONGEST_RETRY * 2_u32.pow(doublings)).min(LONGEST_REST)
}

/// Why a drain took too long, and what to do.
fn cause(seen: &Observed, waiting: &WaitingForPods) -> String {
    let limit = seen.cluster.drain_timeout.unwrap_or_default().as_secs();
    let Some(pods) = seen.pods else {
        return "the API server did not answer about these pods: delete them".to_owned();
    };
    let left = left(waiting, &pods.left);
    if left.is_empty() && waiting.attempts == 0 {
        format!("the pods have ended, and the restart did not begin within {limit} s")
    } else if left.is_empty() {
        "the API server does not know these pods: remove them on the node if containerd still has them (`crictl pods`)".to_owned()
    } else if left.iter().all(|pod| pods.ending.contains(pod)) {
        format!(
            "the pods were evicted and have not ended within {limit} s: set drainTimeoutSeconds in the chart to more than their terminationGracePeriodSeconds"
        )
    } else {
        let answer = seen.refused_eviction.map_or(String::new(), |answer| {
            format!(" ({})", printable_up_to(answer, LONGEST_ANSWER))
        });
        format!(
            "the pods were not evicted within {limit} s{answer}: check their PodDisruptionBudgets, delete these pods"
        )
    }
}

/// Time until the pods of the last restart are looked at; `None` if there are none.
#[must_use]
pub fn recovery_look(seen: &Observed, applied: Option<&Applied>) -> Option<Duration> {
    let ended = applied?.ended_pods.as_ref()?;
    let rest = RECOVERY.saturating_sub(age(seen.now, ended.at));
    // The API server did not answer about the pods, or another Event came first.
    Some(if rest.is_zero() {
        seen.look_every
    } else {
        rest
    })
}

/// Ends the watch over the pods of the last restart once they had time to start again. Returns the Event about those that did not.
pub fn not_recovered(seen: &Observed, applied: &mut Applied) -> Option<EventSpec> {
    let ended = applied.ended_pods.as_ref()?;
    let since = age(seen.now, ended.at);
    let is_unseen = seen.pods.is_none() && since >= LONGEST_WATCH;
    // An uninstall waits until the annotation is gone.
    if ended.pods.pods.is_empty() || is_unseen || seen.cluster.uninstalling {
        applied.ended_pods = None;
        return None;
    }
    let states = seen.pods.filter(|_| since >= RECOVERY)?;
    let ended = applied.ended_pods.take()?;
    let named = ended.pods.pods.iter();
    let stopped: Vec<_> = named
        .filter(|pod| states.stopped.contains(pod))
        .cloned()
        .collect();
    (!stopped.is_empty()).then(|| {
        let pods = EndingPods::of(&stopped);
        let problem = Problem::with_help(
            format!("these pods have not come back after the restart of containerd: {pods}"),
            "delete these pods, so that their controllers create new ones: a container can't start while the former process holds its port",
        );
        EventSpec {
            warning: true,
            reason: reasons::PODS_NOT_RUNNING.to_owned(),
            note: shortened(&problem, LONGEST_NOTE),
        }
    })
}
