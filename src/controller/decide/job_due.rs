//! Whether a host needs a Job, when, and whether one could do its work now. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::desired::{Desired, Verdict};
use super::types::Observed;
use crate::controller::cluster::node_view::{Applied, NodeView};
use crate::handoff::ShimRequest;

/// First wait after a failure; doubled by each further one. Long enough for a mirror's hiccup or a node's reboot to pass.
const FIRST_RETRY: Duration = Duration::from_secs(30);

/// Longest wait between attempts: an operator who repaired the cause sees the node recover within it.
const LONGEST_RETRY: Duration = Duration::from_mins(10);

/// How far the clock that wrote a time may be ahead of ours and still be believed.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(10);

/// A kubelet asks its runtime every 5 s and publishes handlers with its status, every 10 s if something changed: many beats.
const LISTING_PATIENCE: Duration = Duration::from_mins(2);

/// Between two looks at a host of which nothing is heard: a binary that somebody removed shows nowhere else. Half a day of it is spread
/// over the nodes, so that they don't all come at once.
const LOOK_EVERY: Duration = Duration::from_hours(18);
const SPREAD_SECONDS: u64 = 12 * 60 * 60;

/// Interrupted attempts in a row that are followed by the next at once. A node that shuts down or a drain interrupts one or two; what
/// ends every pod within seconds, for example an eviction for want of memory, must not make Job after Job, and gets the back-off of a
/// failure from here on.
pub const INTERRUPTIONS_AT_ONCE: u32 = 3;

/// Whether the host needs a Job.
#[derive(Debug, PartialEq, Eq)]
pub enum Need {
    /// It is as it should be.
    Nothing,
    /// Not before this has passed.
    Wait(Duration),
    /// At once.
    Now,
}

/// What the host needs.
#[must_use]
pub fn need(seen: &Observed, desired: &Desired, applied: Option<&Applied>) -> Need {
    let Some(applied) = applied else {
        // A label without a summary: a claim whose Job nobody has heard of. The host may carry anything.
        let claimed = seen.node.labelled().any(|(shim, _)| {
            !matches!(
                desired.verdicts.get(shim),
                Some(Verdict::Impossible(_) | Verdict::Unsupported(_))
            )
        });
        return if desired.request.shims.is_empty() && !claimed {
            Need::Nothing
        } else {
            Need::Now
        };
    };
    let digest = &desired.digest;
    let same_host = applied.machine_id == seen.node.machine_id
        && applied.boot_id == seen.node.boot_id
        && (applied.runtime.is_empty() || applied.runtime == seen.node.runtime);
    let listed = all_listed(seen.node, applied);
    let interrupted = applied.attempted == *digest && applied.interruptions > 0;
    let is_known = applied.digest == *digest && same_host && listed && applied.reason.is_none();
    if is_known && !interrupted && next_look(seen, Some(applied)).is_none_or(|rest| !rest.is_zero())
    {
        return Need::Nothing;
    }
    let at_once = interrupted && applied.interruptions <= INTERRUPTIONS_AT_ONCE;
    if applied.attempted != *digest || applied.attempts == 0 || at_once {
        return Need::Now;
    }
    if seen.now.duration_since(applied.at) < -CLOCK_SKEW {
        // Nobody waits for a time that no clock of ours has shown.
        return Need::Now;
    }
    let since = age(seen.now, applied.at);
    let patience = if applied.reason.is_none() && !listed {
        LISTING_PATIENCE
    } else {
        Duration::ZERO
    };
    match backoff(applied.attempts).max(patience).checked_sub(since) {
        Some(rest) if !rest.is_zero() => Need::Wait(rest),
        _ => Need::Now,
    }
}

/// How long until a host that is as it should be is looked at again; nothing where it carries nothing.
#[must_use]
pub fn next_look(seen: &Observed, applied: Option<&Applied>) -> Option<Duration> {
    let applied = applied.filter(|applied| !applied.shims.is_empty())?;
    let mut hasher = DefaultHasher::new();
    seen.node.uid.hash(&mut hasher);
    let after = LOOK_EVERY + Duration::from_secs(hasher.finish() % SPREAD_SECONDS);
    Some(after.saturating_sub(age(seen.now, applied.at)))
}

/// Whether the kubelet agrees with the report on every handler.
#[must_use]
pub fn all_listed(node: &NodeView, applied: &Applied) -> bool {
    applied
        .shims
        .values()
        .flat_map(|shim| &shim.handlers)
        .all(|(handler, served)| !served || node.lists(handler))
}

/// How long to wait after so many attempts.
#[must_use]
pub fn backoff(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(10);
    (FIRST_RETRY * 2_u32.pow(doublings)).min(LONGEST_RETRY)
}

/// Whether a Job could do its work on the node now. Its kubelet has to run it; and a cordoned node is being worked on: nothing is
/// brought there, but what is to go may go.
#[must_use]
pub fn may_begin(seen: &Observed, desired: &Desired, applied: Option<&Applied>) -> bool {
    let known = |shim: &ShimRequest| {
        let known = applied.and_then(|applied| applied.shims.get(&shim.name));
        known.is_some_and(|known| known.request.as_ref() == Some(shim))
    };
    let brings = desired.request.shims.iter().any(|shim| !known(shim));
    seen.node.ready && !(seen.node.cordoned && brings)
}

/// How long ago something was; nothing where clocks disagree.
#[must_use]
pub fn age(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}
