//! Whether and when a node needs a Job, and whether the Job could run now. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::desired::{Desired, Verdict};
use super::ending_pods;
use super::types::Observed;
use crate::controller::cluster::node_view::{Applied, NodeView, WaitingForPods};
use crate::handoff::ShimRequest;
use crate::names::Progress;

/// Wait after the first failure. Each further failure doubles the wait. Long enough for a short outage of a mirror, or a reboot of the
/// node.
pub const FIRST_RETRY: Duration = Duration::from_secs(30);

/// Longest wait between attempts. After an operator removed the cause, the node recovers within this time.
pub const LONGEST_RETRY: Duration = Duration::from_mins(10);

/// How far a recorded time may lie in the future. A time after that is ignored.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(10);

/// A kubelet asks its runtime every 5 s and publishes changed handlers within 10 s.
const LISTING_PATIENCE: Duration = Duration::from_mins(2);

/// Interval between two checks of a host without any event, because nothing else shows that a binary was removed. Spread over half a day,
/// so that the nodes are not checked at the same time.
const LOOK_EVERY: Duration = Duration::from_hours(18);
const SPREAD_SECONDS: u64 = 12 * 60 * 60;

/// Time until the decision that undoes a drain after its time limit is repeated, if its write was lost.
const END_OF_DRAIN: Duration = Duration::from_secs(1);

/// Interrupted attempts in a row that are repeated at once. A node shutdown or a drain interrupts one or two attempts. Memory pressure, for
/// example, may evict every pod within seconds, and must not cause one Job after the other. So each further attempt follows after a pause.
const INTERRUPTIONS_AT_ONCE: u32 = 3;

/// Whether the node needs a Job.
#[derive(Debug, PartialEq, Eq)]
pub enum Need {
    /// The host is as it should be.
    Nothing,
    /// A Job is due after this time.
    Wait(Duration),
    /// A Job is due now.
    Now,
}

/// Whether the node needs a Job.
#[must_use]
pub fn need(seen: &Observed, desired: &Desired, applied: Option<&Applied>) -> Need {
    if desired.node_problem.is_some() {
        return Need::Nothing;
    }
    let Some(applied) = applied else {
        // A label without an annotation: a claim without a known Job. The host may carry anything.
        let claimed = seen.node.labelled().any(|(shim, progress)| {
            let verdict = desired.verdicts.get(shim);
            let is_not_wanted = matches!(
                verdict,
                Some(Verdict::Impossible(_) | Verdict::Unsupported(_))
            );
            progress != Progress::Unsupported && !is_not_wanted
        });
        return if desired.request.shims.is_empty() && !claimed {
            Need::Nothing
        } else {
            Need::Now
        };
    };
    let digest = Some(desired.digest);
    let same_host = applied.machine_id == seen.node.machine_id
        && applied.boot_id == seen.node.boot_id
        && (applied.runtime.is_empty() || applied.runtime == seen.node.runtime);
    let listed = all_listed(seen.node, applied);
    let interrupted = applied.attempted == digest && applied.interruptions > 0;
    // The digest is not compared: a request to keep a Shim asks for less than the request that was fulfilled, and needs no new Job.
    let waiting = ending_pods::waiting(Some(applied), desired);
    let is_known = desired.is_fulfilled(applied) && same_host && listed && applied.reason.is_none();
    // A host whose files were changed needs a restart, too, and may wait for pods.
    let is_known = is_known && waiting.is_none();
    if is_known && !interrupted && next_look(seen, Some(applied)).is_none_or(|rest| !rest.is_zero())
    {
        return Need::Nothing;
    }
    if let Some(waiting) = waiting {
        return need_after_pods(seen, desired, applied, waiting);
    }
    if applied.attempted != digest || (applied.attempts == 0 && !interrupted) {
        return Need::Now;
    }
    if seen.now.duration_since(applied.at) < -CLOCK_SKEW {
        // A time this far in the future is ignored.
        return Need::Now;
    }
    let since = age(seen.now, applied.at);
    let patience = if applied.reason.is_none() && !listed {
        LISTING_PATIENCE
    } else {
        Duration::ZERO
    };
    let wait = if interrupted {
        pause(applied.interruptions)
    } else {
        backoff(applied.attempts).max(patience)
    };
    let holding = applied.holding_pods.as_ref();
    let wait = match holding.filter(|holding| ending_pods::are_gone(seen, holding)) {
        Some(holding) => wait.min(pause_after_pods(holding.attempts)),
        None => wait,
    };
    match wait.checked_sub(since) {
        Some(rest) if !rest.is_zero() && holding.is_some() => Need::Wait(rest.min(seen.look_every)),
        Some(rest) if !rest.is_zero() => Need::Wait(rest),
        _ => Need::Now,
    }
}

/// The pause after so many Jobs in a row that were created because pods had ended, and that named pods again. Pods that come and go, and
/// pods that the API server does not know, must not cause one Job after the other.
fn pause_after_pods(attempts: u32) -> Duration {
    match attempts.saturating_sub(INTERRUPTIONS_AT_ONCE - 1) {
        0 => Duration::ZERO,
        more => backoff(more),
    }
}

/// Whether a Job is due on a node that waits for pods.
fn need_after_pods(
    seen: &Observed,
    desired: &Desired,
    applied: &Applied,
    waiting: &WaitingForPods,
) -> Need {
    if is_drained_for_too_long(seen, waiting) {
        // The drain is undone first.
        return Need::Wait(END_OF_DRAIN);
    }
    let drains = waiting.draining_since.is_some();
    let since = age(seen.now, applied.at);
    let is_due = if ending_pods::are_over(seen, desired, waiting, since) {
        !has_no_turn(seen, desired, applied)
    } else {
        // Another Shim failed in the last attempt, or the API server rejected the Job. Neither waits for the pods. A drain ends by itself.
        !drains && applied.reason.is_some() && since >= backoff(applied.attempts.max(1))
    };
    if !is_due {
        return Need::Wait(if drains {
            ending_pods::POD_LOOK_EVERY
        } else {
            seen.look_every
        });
    }
    let pause = pause_after_pods(waiting.attempts);
    // The API server has rejected the last Job.
    let pause = if applied.reason.is_some() && waiting.shims.is_empty() {
        pause.max(backoff(applied.attempts.max(1)))
    } else {
        pause
    };
    match pause.checked_sub(since) {
        Some(rest) if !rest.is_zero() && drains => {
            Need::Wait(rest.min(ending_pods::POD_LOOK_EVERY))
        }
        Some(rest) if !rest.is_zero() => Need::Wait(rest),
        _ => Need::Now,
    }
}

/// Whether the time limit of a drain is over.
#[must_use]
pub fn is_drained_for_too_long(seen: &Observed, waiting: &WaitingForPods) -> bool {
    let limit = seen.cluster.drain_timeout.unwrap_or_default();
    let since = waiting.draining_since;
    since.is_some_and(|since| since <= seen.now && age(seen.now, since) >= limit)
}

/// Whether the rollout has no place for the node now. A node that waits for pods has begun its change, and holds no place. If another Shim
/// failed beside those that wait, only these count.
#[must_use]
pub fn has_no_turn(seen: &Observed, desired: &Desired, applied: &Applied) -> bool {
    let wanted = &desired.request.shims;
    let is_due = |request: &&ShimRequest| {
        let known = applied.shims.get(&request.name);
        !known.is_some_and(|known| known.settles(request))
    };
    let due = wanted.iter().filter(is_due).map(|request| &request.name);
    let is_wanted = |name: &&String| wanted.iter().any(|request| request.name == **name);
    let leaving = applied.shims.keys().filter(|name| !is_wanted(name));
    let waiting = applied.waiting_for_pods.as_ref().map(|it| &it.shims);
    let waiting = waiting.filter(|shims| !shims.is_empty());
    let counts = |name: &&String| waiting.is_none_or(|shims| shims.contains(*name));
    let mut changing = due.chain(leaving).filter(counts);
    changing.any(|name| seen.blocked_by_rollout.contains_key(name))
}

/// Time until the next regular check of a host; `None` if it carries nothing.
#[must_use]
pub fn next_look(seen: &Observed, applied: Option<&Applied>) -> Option<Duration> {
    let applied = applied.filter(|applied| !applied.shims.is_empty())?;
    let mut hasher = DefaultHasher::new();
    seen.node.uid.hash(&mut hasher);
    let after = LOOK_EVERY + Duration::from_secs(hasher.finish() % SPREAD_SECONDS);
    Some(after.saturating_sub(age(seen.now, applied.at)))
}

/// Whether the kubelet lists every served handler.
#[must_use]
pub fn all_listed(node: &NodeView, applied: &Applied) -> bool {
    node.lists_all(applied)
}

/// The wait after so many failed attempts: [`FIRST_RETRY`], doubled for each attempt after the first one.
#[must_use]
pub fn backoff(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(10);
    (FIRST_RETRY * 2_u32.pow(doublings)).min(LONGEST_RETRY)
}

/// The pause after so many interrupted attempts in a row. It does not grow, because an interrupted attempt is no failure.
#[must_use]
pub fn pause(interruptions: u32) -> Duration {
    if interruptions <= INTERRUPTIONS_AT_ONCE {
        Duration::ZERO
    } else {
        FIRST_RETRY
    }
}

/// Whether a Job could run on the node now. The node must be ready. On a cordoned node, shims are removed but not installed, unless only
/// the restart of containerd is left, and the pods that it would have ended are gone: `kubectl drain` has removed them.
#[must_use]
pub fn may_begin(seen: &Observed, desired: &Desired, applied: Option<&Applied>) -> bool {
    let known = |shim: &ShimRequest| {
        let known = applied.and_then(|applied| applied.shims.get(&shim.name));
        shim.keep || known.is_some_and(|known| known.settles(shim))
    };
    let brings = desired.request.shims.iter().any(|shim| !known(shim));
    let waiting = ending_pods::waiting(applied, desired);
    let is_drained = waiting.is_some_and(|waiting| ending_pods::have_ended(seen, waiting));
    seen.node.ready && (!seen.node.cordoned || !brings || is_drained)
}

/// Time since `then`; zero if `then` lies in the future.
#[must_use]
pub fn age(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}
