//! The heart: what to do next about one node. Pure: no client, no clock, no logging; an empty plan means that all is as it should be.
//!
//! Claim, act, prove, advertise, one step a decision: the labels and the annotation are written before the Job is made, the
//! report is written down before the Job goes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use super::desired::{Cluster, Desired};
use super::labels::{self, NodeEdit};
use super::need::{Need, age, backoff, may_begin, need, next_look};
use super::observed::{Applied, NodeView};
use super::outcome::{self, JobEnd};
use super::progress::JobView;
use super::request::{fingerprint, hint};
use super::text::{LONGEST_NOTE, cut};
use crate::handoff::ProvisionRequest;
use crate::names::{self, Progress, reasons};

/// Deleting a Job takes a second; a minute is a finalizer that somebody set and nobody removes.
const DELETION_PATIENCE: Duration = Duration::from_mins(1);

/// What to do about such a finalizer.
const HELD_JOB: &str = "the node's last Job is held by a finalizer and can't make room for the next; remove its finalizers";

/// All that a decision about one node looks at.
#[derive(Debug)]
pub struct Observed<'a> {
    /// The node.
    pub node: &'a NodeView,
    /// What is asked of all nodes alike.
    pub cluster: &'a Cluster,
    /// Shims that the node is not to change yet, each with what it waits for.
    pub held: &'a BTreeMap<String, String>,
    /// The node's Job, if there is one.
    pub job: Option<&'a JobView>,
    /// Why the API server did not take the Job that was last to be made.
    pub refused: Option<&'a str>,
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
    Crowded,
    /// Shims have just come or changed, and more may be on their way: not before this has passed.
    Settling(Duration),
}

/// What to do about one node, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Labels and annotation to write.
    pub edit: Option<NodeEdit>,
    /// What people should read.
    pub event: Option<News>,
    /// What to do about the Job.
    pub job: JobStep,
    /// A Job that ended.
    pub ended: Option<Ended>,
    /// When to decide again though nothing changes.
    pub look_again: Option<Duration>,
    /// A Job is due and is not made until fewer Jobs have no pod.
    pub crowded: bool,
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

/// What people should read about a node or a Shim.
#[derive(Debug, PartialEq)]
pub struct News {
    /// Something is wrong.
    pub warning: bool,
    /// A word of [`reasons`].
    pub reason: String,
    /// One sentence.
    pub note: String,
}

impl News {
    /// That something on a node failed, for the reason given.
    #[must_use]
    pub fn failure(reason: &str) -> Self {
        Self {
            warning: true,
            reason: reasons::PROVISION_FAILED.to_owned(),
            note: cut(reason, LONGEST_NOTE),
        }
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

/// Whether the node's Job is at work, or its end is not written down yet.
fn works(seen: &Observed, applied: Option<&Applied>) -> bool {
    seen.job.is_some_and(|job| {
        job.deleting.is_none() && applied.is_none_or(|applied| applied.job != job.uid)
    })
}

/// Decides what to do next about one node; nothing about one that is being deleted.
#[must_use]
pub fn decide(seen: &Observed) -> Option<Decision> {
    if seen.node.deleting {
        return None;
    }
    let applied = seen.node.applied();
    let works = works(seen, applied.as_ref());
    let unread = seen.job.filter(|_| works);
    let ended = unread.and_then(|job| outcome::of(seen, applied.as_ref(), job));
    if let (Some(job), Some(ended)) = (unread, ended) {
        let desired = Desired::new(seen.node, Some(&ended.applied), seen.cluster, seen.held);
        let applied = Some(ended.applied.clone());
        let plan = write_down(seen, &desired, job, ended);
        return Some(Decision {
            plan,
            desired,
            applied,
            works,
        });
    }
    let desired = Desired::new(seen.node, applied.as_ref(), seen.cluster, seen.held);
    Some(Decision {
        plan: next(seen, &desired, applied.clone()),
        desired,
        applied,
        works,
    })
}

/// What a node is like before anything is decided on it; nothing of one that is being deleted.
#[must_use]
pub fn undecided(seen: &Observed) -> Option<Decision> {
    let applied = seen.node.applied();
    (!seen.node.deleting).then(|| Decision {
        plan: Plan::default(),
        desired: Desired::new(seen.node, applied.as_ref(), seen.cluster, seen.held),
        works: works(seen, applied.as_ref()),
        applied,
    })
}

fn next(seen: &Observed, desired: &Desired, applied: Option<Applied>) -> Plan {
    match seen.job {
        Some(JobView {
            deleting: Some(since),
            ..
        }) => while_deleted(seen, desired, applied, *since),
        Some(job)
            if applied
                .as_ref()
                .is_some_and(|applied| applied.job == job.uid) =>
        {
            after_reading(seen, desired, applied, job)
        }
        // Labels may change meanwhile, for example where a Shim was deselected.
        Some(job) => Plan {
            look_again: outcome::patience(seen, job),
            ..settled(seen, desired, applied, JobStep::None)
        },
        None => act(seen, desired, applied),
    }
}

/// The end of the Job is written down and told; the Job goes in the same step, unless finished Jobs are kept.
fn write_down(seen: &Observed, desired: &Desired, job: &JobView, ended: JobEnd) -> Plan {
    let step = if seen.keep_jobs {
        JobStep::None
    } else {
        JobStep::Delete(job.uid.clone())
    };
    Plan {
        event: ended.event,
        ended: Some(ended.ended),
        look_again: ended.look_again,
        ..settled(seen, desired, Some(ended.applied), step)
    }
}

/// Labels as they should be, and nothing else.
fn settled(seen: &Observed, desired: &Desired, applied: Option<Applied>, job: JobStep) -> Plan {
    let edit = labels::edit(
        seen.node,
        &seen.cluster.shims,
        desired,
        applied,
        seen.job.is_some(),
    );
    let event = edit.as_ref().and_then(|edit| impossible(edit, desired));
    Plan {
        edit,
        event,
        job,
        ..Plan::default()
    }
}

/// What to tell people where a Shim's label turns to `failed` because of how the Shim is written.
fn impossible(edit: &NodeEdit, desired: &Desired) -> Option<News> {
    let failed = Some(Progress::Failed.label().to_owned());
    let notes: Vec<String> = desired
        .verdicts
        .iter()
        .filter(|(shim, _)| edit.labels.get(&names::shim_label(shim)) == Some(&failed))
        .filter_map(|(shim, verdict)| Some(format!("shim {shim}: {}", verdict.fault()?)))
        .collect();
    (!notes.is_empty()).then(|| News::failure(&notes.join("; ")))
}

/// The Job has been read: it goes now if it must make room, or unless finished Jobs are kept.
fn after_reading(
    seen: &Observed,
    desired: &Desired,
    applied: Option<Applied>,
    job: &JobView,
) -> Plan {
    let (step, look_again) = match need(seen, desired, applied.as_ref()) {
        Need::Nothing if seen.keep_jobs => (JobStep::None, next_look(seen, applied.as_ref())),
        Need::Wait(wait) if seen.keep_jobs => (JobStep::None, Some(wait)),
        Need::Wait(wait) => (JobStep::Delete(job.uid.clone()), Some(wait)),
        Need::Nothing | Need::Now => (JobStep::Delete(job.uid.clone()), None),
    };
    Plan {
        look_again,
        ..settled(seen, desired, applied, step)
    }
}

/// The Job is on its way out; one that doesn't go holds up the node, which people should know.
fn while_deleted(
    seen: &Observed,
    desired: &Desired,
    applied: Option<Applied>,
    since: Timestamp,
) -> Plan {
    let step = settled(seen, desired, applied.clone(), JobStep::None);
    let rest = DELETION_PATIENCE.saturating_sub(age(seen.now, since));
    match (need(seen, desired, applied.as_ref()), applied) {
        (Need::Nothing, _) => step,
        (Need::Wait(_) | Need::Now, _) if !rest.is_zero() => Plan {
            look_again: Some(rest),
            ..step
        },
        (_, Some(applied)) if applied.reason.as_deref() == Some(HELD_JOB) => step,
        (_, applied) => not_made(seen, desired, applied.unwrap_or_default(), HELD_JOB),
    }
}

/// No Job: make one if the host is not known to be as it should.
fn act(seen: &Observed, desired: &Desired, applied: Option<Applied>) -> Plan {
    if let (Some(reason), Some(applied)) = (seen.refused, applied.clone()) {
        return not_made(seen, desired, applied, reason);
    }
    match need(seen, desired, applied.as_ref()) {
        Need::Nothing => Plan {
            look_again: next_look(seen, applied.as_ref()),
            ..settled(seen, desired, applied, JobStep::None)
        },
        Need::Wait(wait) => Plan {
            look_again: Some(wait),
            ..settled(seen, desired, applied, JobStep::None)
        },
        Need::Now if !may_begin(seen, desired, applied.as_ref()) => {
            settled(seen, desired, applied, JobStep::None)
        }
        Need::Now => match seen.hold {
            Hold::None => claim(seen, desired, applied),
            Hold::Crowded => Plan {
                crowded: true,
                ..held(seen, desired, applied, None)
            },
            Hold::Settling(rest) => held(seen, desired, applied, Some(rest)),
        },
    }
}

/// What is to go is withdrawn at once; that something is to come is written with the claim.
fn held(
    seen: &Observed,
    desired: &Desired,
    applied: Option<Applied>,
    look_again: Option<Duration>,
) -> Plan {
    let mut plan = settled(seen, desired, applied, JobStep::None);
    let pending = Progress::Pending.label();
    if let Some(edit) = &plan.edit
        && edit.taints.is_none()
        && edit.annotations.is_empty()
        && edit
            .labels
            .values()
            .all(|value| value.as_deref() == Some(pending))
    {
        plan.edit = None;
    }
    Plan { look_again, ..plan }
}

/// Writes down that an attempt begins, then makes the Job.
fn claim(seen: &Observed, desired: &Desired, applied: Option<Applied>) -> Plan {
    let mut request = desired.request_with_reserved(seen.cluster);
    let digest = desired.digest.clone();
    let mut applied = applied.unwrap_or_default();
    if !applied.machine_id.is_empty() && applied.machine_id != seen.node.machine_id {
        // Another host answers under this node object: nothing that was known holds.
        applied = Applied::default();
    }
    if applied.attempted != digest {
        applied.attempts = 0;
        applied.interruptions = 0;
        applied.reason = None;
    }
    applied.attempts = applied.attempts.saturating_add(1);
    applied.attempted.clone_from(&digest);
    let tried = request.shims.iter();
    applied.tried = tried
        .map(|shim| (shim.name.clone(), fingerprint(shim)))
        .collect();
    applied.node_uid.clone_from(&seen.node.uid);
    applied.at = seen.now;
    hint(desired, &applied, &mut request);
    settled(
        seen,
        desired,
        Some(applied),
        JobStep::Create {
            request: Box::new(request),
            digest,
        },
    )
}

/// The Job could not be made, for the reason given.
fn not_made(seen: &Observed, desired: &Desired, mut applied: Applied, reason: &str) -> Plan {
    let note = outcome::shortened(reason);
    applied.reason = Some(note.clone());
    applied.node_uid.clone_from(&seen.node.uid);
    Plan {
        event: Some(News::failure(&note)),
        look_again: Some(backoff(applied.attempts)),
        ..settled(seen, desired, Some(applied), JobStep::None)
    }
}

#[cfg(test)]
mod tests;
