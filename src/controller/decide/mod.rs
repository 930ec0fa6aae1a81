//! The decision about one node: what to do next. Pure: no client, no clock, no logging. An empty plan means that the node is as it should
//! be.
//!
//! The steps are claim, act, prove and advertise, one per decision: labels and annotation are written before the Job is created, and the
//! report is recorded before the Job is deleted.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;

use crate::api::FirstBinary;
use crate::controller::cluster::job_view::JobView;
use crate::controller::cluster::node_view::{Applied, NodeView};
use crate::handoff::{Problem, ShimRequest};
use crate::names::Progress;

pub mod adopted_classes;
pub mod desired;
pub mod drain;
pub mod ending_pods;
pub mod event;
pub mod job_due;
pub mod job_event;
pub mod job_result;
pub mod job_spec;
pub mod node_labels;
pub mod rollout;
pub mod runtime_classes;
pub mod shim_status;
pub mod support;
pub mod types;
pub mod unlisted;

use desired::{Cluster, Desired, Verdict, hint};
use event::{EventSpec, LONGEST_REASON, shortened};
use job_due::{Need, age, backoff, may_begin, need, next_look};
use job_result::JobEnd;
use node_labels::plan_with_labels;
use types::{Decision, Hold, JobStep, Observed, Plan};

/// Time limit for the deletion of a Job, which usually takes a second. After this time, a finalizer prevents the deletion.
const DELETION_PATIENCE: Duration = Duration::from_mins(1);

/// The problem of a Job whose finalizers prevent its deletion.
fn job_with_finalizer() -> Problem {
    Problem::with_help(
        "the node's previous Job is not deleted because it has finalizers",
        "remove the Job's finalizers",
    )
}

/// Whether the node's Job is running, or its end is not recorded yet.
fn job_is_unrecorded(seen: &Observed, applied: Option<&Applied>) -> bool {
    seen.job.is_some_and(|job| {
        job.deleting.is_none() && applied.is_none_or(|applied| applied.job != job.uid)
    })
}

/// The known state of the host, without Shims that exist neither in the cluster nor as a label of the node: their names would become labels.
/// The entry of such a Shim is forged, or its label was removed. A Job then finds out what the host has.
fn applied(node: &NodeView, cluster: &Cluster) -> Option<Applied> {
    let mut applied = node.applied()?;
    let before = applied.shims.len();
    applied.shims.retain(|name, _| {
        cluster.shims.iter().any(|shim| shim.name == *name)
            || node.labelled().any(|(labelled, _)| labelled == name)
    });
    if applied.shims.len() < before {
        applied.digest = None;
        applied.attempted = None;
    }
    if support::node_problem(node).is_some() {
        // No Job changes this node, so no pod is evicted for one.
        applied.waiting_for_pods = None;
        applied.ended_pods = None;
    }
    Some(applied)
}

/// Decides what to do next about one node; `None` for a node that is being deleted.
#[must_use]
pub fn decide(seen: &Observed) -> Option<Decision> {
    if seen.node.deleting {
        return None;
    }
    let mut applied = applied(seen.node, seen.cluster);
    let job_is_unrecorded = job_is_unrecorded(seen, applied.as_ref());
    // A Job that is running may restart containerd.
    let known = applied.as_mut().filter(|_| !job_is_unrecorded);
    let unlisted = known.and_then(|applied| unlisted::count_unlisted(seen.node, applied));
    let unread = seen.job.filter(|_| job_is_unrecorded);
    let desired = Desired::new(
        seen.node,
        applied.as_ref(),
        seen.cluster,
        seen.blocked_by_rollout,
    );
    let ended = unread.and_then(|job| job_result::of(seen, &desired, applied.as_ref(), job));
    if let (Some(job), Some(ended)) = (unread, ended) {
        let desired = Desired::new(
            seen.node,
            Some(&ended.applied),
            seen.cluster,
            seen.blocked_by_rollout,
        );
        let applied = Some(ended.applied.clone());
        let first_binaries = first_binaries(seen, job, &ended.applied);
        let plan = Plan {
            first_binaries,
            ..record_job_end(seen, &desired, job, ended)
        };
        return Some(Decision {
            plan,
            desired,
            applied,
            job_is_unrecorded,
        });
    }
    let plan = next(seen, &desired, applied.clone());
    Some(Decision {
        plan: Plan {
            event: unlisted.or(plan.event),
            ..plan
        },
        desired,
        applied,
        job_is_unrecorded,
    })
}

/// The rules that led to a decision, for the log: the verdict on each Shim, whether a Job is due, and what it waits for.
#[must_use]
pub fn explain(seen: &Observed, decision: &Decision) -> String {
    let Decision {
        desired,
        applied,
        job_is_unrecorded,
        ..
    } = decision;
    let applied = applied.as_ref();
    let verdicts = desired.verdicts.iter().map(|(shim, verdict)| {
        let rule: Cow<'_, str> = match verdict {
            Verdict::Wanted(request) if request.keep => "is kept as it is".into(),
            Verdict::Wanted(_) => "is wanted".into(),
            Verdict::Waiting(_, why) => format!("waits: {why}").into(),
            Verdict::HandlersTaken(winner) => format!("has lost its handlers to {winner}").into(),
            Verdict::Idle => "is paused or has no finalizer".into(),
            Verdict::PinnedToLastApplied(..) | Verdict::Impossible(_) | Verdict::Unsupported(_) => {
                let fault = verdict.fault().map_or("", |problem| &problem.message);
                format!("is not possible: {fault}").into()
            }
        };
        format!("{shim} {rule}")
    });
    let leaving = applied.into_iter().flat_map(|applied| applied.shims.keys());
    let leaving = leaving.filter(|shim| !desired.verdicts.contains_key(*shim));
    let leaving = leaving.map(|shim| format!("{shim} leaves"));
    let job = match need(seen, desired, applied) {
        _ if *job_is_unrecorded => "the Job runs".to_owned(),
        Need::Nothing => "no Job is due".to_owned(),
        Need::Wait(wait) => format!("the next Job is due in {} s", wait.as_secs()),
        Need::Now if !may_begin(seen, desired, applied) => {
            "a Job is due once the node is ready and not cordoned".to_owned()
        }
        Need::Now => format!("a Job is due, hold {:?}", seen.hold),
    };
    let shims: Vec<String> = verdicts.chain(leaving).collect();
    let shims = if shims.is_empty() {
        "no Shim".to_owned()
    } else {
        shims.join(", ")
    };
    format!("{shims}; {job}")
}

/// The binaries in the report of a Job whose Shims specify no digest.
fn first_binaries(seen: &Observed, job: &JobView, applied: &Applied) -> Vec<(String, FirstBinary)> {
    let requests = job.request.iter().flat_map(|request| &request.shims);
    let found = requests
        .filter(|request| !request.keep)
        .filter_map(|request| {
            let known = applied.shims.get(&request.name)?;
            // A Shim that failed kept another binary, and the annotation may claim that this one fulfils the request.
            let is_new = known.reason.is_none() && known.fulfils(request);
            let sha256 = known.sha256.filter(|_| is_new)?;
            let mut handlers = known.handlers.keys();
            let is_reported = handlers.any(|handler| applied.reported.contains(handler));
            let first = FirstBinary {
                os: seen.node.os.clone(),
                arch: seen.node.arch.clone(),
                location: request.location.clone(),
                binary: Some(request.binary.clone().unwrap_or_default()),
                sha256: sha256.to_string(),
            };
            is_reported.then(|| (request.name.clone(), first))
        });
    found
        .filter(|(shim, first)| seen.cluster.is_first_binary(shim, first))
        .collect()
}

/// The state of a node before a decision; `None` for a node that is being deleted.
#[must_use]
pub fn undecided(seen: &Observed) -> Option<Decision> {
    let applied = applied(seen.node, seen.cluster);
    (!seen.node.deleting).then(|| Decision {
        plan: Plan::default(),
        desired: Desired::new(
            seen.node,
            applied.as_ref(),
            seen.cluster,
            seen.blocked_by_rollout,
        ),
        job_is_unrecorded: job_is_unrecorded(seen, applied.as_ref()),
        applied,
    })
}

fn next(seen: &Observed, desired: &Desired, applied: Option<Applied>) -> Plan {
    match seen.job {
        Some(JobView {
            deleting: Some(since),
            ..
        }) => plan_while_job_is_deleted(seen, desired, applied, *since),
        Some(job)
            if applied
                .as_ref()
                .is_some_and(|applied| applied.job == job.uid) =>
        {
            plan_after_recording(seen, desired, applied, job)
        }
        // Labels may change while the Job runs, for example when a Shim no longer selects the node.
        Some(job) => Plan {
            look_again: job_result::patience(seen, job),
            ..plan_with_labels(seen, desired, applied, JobStep::None)
        },
        None => plan_without_job(seen, desired, applied),
    }
}

/// Records and reports the end of the Job, and deletes the Job unless finished Jobs are kept.
fn record_job_end(seen: &Observed, desired: &Desired, job: &JobView, ended: JobEnd) -> Plan {
    let step = if seen.keep_jobs {
        JobStep::None
    } else {
        JobStep::Delete(job.uid.clone())
    };
    let mut plan = plan_with_labels(seen, desired, Some(ended.applied), step);
    // The report says that the host serves a Shim whose binary is another one than on the first node.
    let failed = plan.event.take();
    let failed = failed.filter(|event| event.warning && !desired.distrusted.is_empty());
    Plan {
        event: failed.or(ended.event),
        ended: Some(ended.ended),
        look_again: ended.look_again,
        ..plan
    }
}

/// The end of the Job is recorded. The Job is deleted if the node needs another Job, or if finished Jobs are not kept.
fn plan_after_recording(
    seen: &Observed,
    desired: &Desired,
    applied: Option<Applied>,
    job: &JobView,
) -> Plan {
    let delete = JobStep::Delete(job.uid.clone());
    let (step, wait) = match need(seen, desired, applied.as_ref()) {
        // An uninstall ends as soon as the nodes are clean, and the annotation of a node stays as long as its Job.
        Need::Nothing if seen.keep_jobs && !seen.cluster.uninstalling => {
            (JobStep::None, next_look(seen, applied.as_ref()))
        }
        Need::Wait(wait) if seen.keep_jobs => (JobStep::None, Some(wait)),
        Need::Wait(wait) => (delete, Some(wait)),
        Need::Nothing | Need::Now => return plan_with_labels(seen, desired, applied, delete),
    };
    wait_for(seen, desired, applied, step, wait)
}

/// The Job is being deleted. If the deletion takes too long, the node is blocked, and the decision reports it.
fn plan_while_job_is_deleted(
    seen: &Observed,
    desired: &Desired,
    applied: Option<Applied>,
    since: Timestamp,
) -> Plan {
    let step = plan_with_labels(seen, desired, applied.clone(), JobStep::None);
    let rest = DELETION_PATIENCE.saturating_sub(age(seen.now, since));
    let problem = job_with_finalizer();
    let reason = shortened(&problem, LONGEST_REASON);
    match (need(seen, desired, applied.as_ref()), applied) {
        (Need::Nothing, _) => step,
        (Need::Wait(_) | Need::Now, _) if !rest.is_zero() => Plan {
            look_again: Some(rest),
            ..step
        },
        (_, Some(applied)) if applied.reason.as_ref() == Some(&reason) => step,
        (_, applied) => job_not_created(seen, desired, applied.unwrap_or_default(), &problem),
    }
}

/// There is no Job. A Job is created unless the host is known to carry the desired set.
fn plan_without_job(seen: &Observed, desired: &Desired, applied: Option<Applied>) -> Plan {
    if desired.node_problem.is_some() {
        return plan_with_labels(seen, desired, applied, JobStep::None);
    }
    if let (Some(problem), Some(applied)) = (seen.rejected, applied.clone()) {
        return job_not_created(seen, desired, applied, problem);
    }
    match need(seen, desired, applied.as_ref()) {
        Need::Nothing => {
            let look_again = next_look(seen, applied.as_ref());
            wait_for(seen, desired, applied, JobStep::None, look_again)
        }
        Need::Wait(wait) => wait_for(seen, desired, applied, JobStep::None, Some(wait)),
        Need::Now if !may_begin(seen, desired, applied.as_ref()) => {
            wait_for(seen, desired, applied, JobStep::None, None)
        }
        Need::Now => match seen.hold {
            Hold::None => claim(seen, desired, applied),
            Hold::NoPodSlot => Plan {
                waiting_for_pod_slot: true,
                ..suppress_pending_label(seen, desired, applied, None)
            },
            Hold::Settling(rest) => suppress_pending_label(seen, desired, applied, Some(rest)),
        },
    }
}

/// No Job is due before `wait`. Meanwhile pods may be evicted, or may come back after the last restart.
fn wait_for(
    seen: &Observed,
    desired: &Desired,
    mut applied: Option<Applied>,
    job: JobStep,
    wait: Option<Duration>,
) -> Plan {
    let known = applied.as_mut();
    let (step, stopped) = known.map_or_else(Default::default, |applied| {
        let step = drain::advance(seen, desired, applied);
        // One Event per decision: the other one follows with the next.
        let is_free = step.event.is_none();
        let stopped = is_free.then(|| drain::not_recovered(seen, applied));
        (step, stopped.flatten())
    });
    let looks = [wait, drain::recovery_look(seen, applied.as_ref())];
    let plan = plan_with_labels(seen, desired, applied, job);
    Plan {
        evict: step.evict,
        drains: step.drains,
        event: step.event.or(stopped).or(plan.event),
        look_again: looks.into_iter().flatten().min(),
        ..plan
    }
}

/// Labels are withdrawn at once, but `pending` is written with the claim only.
fn suppress_pending_label(
    seen: &Observed,
    desired: &Desired,
    applied: Option<Applied>,
    look_again: Option<Duration>,
) -> Plan {
    let mut plan = plan_with_labels(seen, desired, applied, JobStep::None);
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

/// Records that an attempt begins, then creates the Job.
fn claim(seen: &Observed, desired: &Desired, applied: Option<Applied>) -> Plan {
    let mut request = desired.request_with_reserved(seen.cluster);
    let digest = desired.digest;
    let mut applied = applied.unwrap_or_default();
    if !applied.machine_id.is_empty() && applied.machine_id != seen.node.machine_id {
        // The node object has another host, about which nothing is known.
        applied = Applied::default();
    }
    if applied.attempted != Some(digest) {
        applied.attempts = 0;
        applied.interruptions = 0;
        applied.reason = None;
        applied.waiting_for_pods = None;
        applied.holding_pods = None;
    }
    if let Some(holding) = &mut applied.holding_pods
        && ending_pods::are_gone(seen, holding)
    {
        holding.attempts = holding.attempts.saturating_add(1);
    }
    if let Some(waiting) = &mut applied.waiting_for_pods
        && ending_pods::are_over(seen, desired, waiting, age(seen.now, applied.at))
    {
        waiting.attempts = waiting.attempts.saturating_add(1);
    }
    applied.attempts = applied.attempts.saturating_add(1);
    applied.attempted = Some(digest);
    let tried = request.shims.iter();
    applied.tried = tried
        .map(|shim| (shim.name.clone(), shim.fingerprint()))
        .collect();
    for shim in request.shims.iter().filter(|shim| shim.keep) {
        // Without an entry, only the label says that the node has the Shim, and the label changes while the Job runs.
        let known = applied.shims.entry(shim.name.clone()).or_default();
        let kept = || ShimRequest::kept(&shim.name).fingerprint();
        known.fulfilled.get_or_insert_with(kept);
    }
    applied.node_uid.clone_from(&seen.node.uid);
    applied.at = seen.now;
    hint(&applied, &mut request);
    plan_with_labels(
        seen,
        desired,
        Some(applied),
        JobStep::Create {
            request: Box::new(request),
            digest,
        },
    )
}

/// The Job could not be created, for the reason given.
fn job_not_created(
    seen: &Observed,
    desired: &Desired,
    mut applied: Applied,
    problem: &Problem,
) -> Plan {
    let note = shortened(problem, LONGEST_REASON);
    applied.reason = Some(note.clone());
    applied.node_uid.clone_from(&seen.node.uid);
    if seen.is_outage {
        // The next attempt follows soon, however long the outage lasts: an attempt without a Job costs the host nothing.
        applied.attempts = applied.attempts.min(1);
    }
    if let Some(waiting) = &mut applied.waiting_for_pods {
        // Pods are not evicted for a Job that can't be created.
        waiting.draining_since = None;
        waiting.undone_at = Some(seen.now);
        // The problem of the Job is that of each Shim.
        waiting.shims.clear();
    }
    Plan {
        event: Some(EventSpec::failure(&note)),
        look_again: Some(backoff(applied.attempts)),
        ..plan_with_labels(seen, desired, Some(applied), JobStep::None)
    }
}
