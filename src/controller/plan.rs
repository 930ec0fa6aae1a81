//! The heart: what to do next about one node. Pure: no client, no clock, no logging; an empty plan means that all is as it should be.
//!
//! Claim, act, prove, advertise, one step a decision: the labels and the annotation are written before the Job is made, the
//! report is written down before the Job goes.

use std::time::Duration;

use jiff::Timestamp;

use super::desired::{Desired, Verdict};
use super::labels::{self, NodeEdit};
use super::observed::{Applied, AppliedShim, JobProgress, JobView, NodeView, ShimView};
use crate::handoff::{HandlerReport, Outcome, ProvisionReport, ProvisionRequest};
use crate::names::{self, Progress, reasons};

/// First wait after a failure; doubled by each further one. Long enough for a mirror's hiccup or a node's reboot to pass.
const FIRST_RETRY: Duration = Duration::from_secs(30);

/// Longest wait between attempts: an operator who repaired the cause sees the node recover within it.
const LONGEST_RETRY: Duration = Duration::from_mins(10);

/// The job controller makes a pod within a second; a minute without one is a quota, an admission rule or a missing account.
const POD_PATIENCE: Duration = Duration::from_mins(1);

/// A kubelet asks its runtime every 5 s and publishes handlers with its status, every 10 s if something changed: many beats.
const LISTING_PATIENCE: Duration = Duration::from_mins(2);

/// Longest sentence that is kept per Shim: thirty of them stay far below the 256 KiB that a node's annotations may take.
const LONGEST_REASON: usize = 400;

/// Kubernetes bounds an Event's note at 1,024 bytes (events.k8s.io/v1).
const LONGEST_NOTE: usize = 1_000;

/// All that a decision about one node looks at.
#[derive(Debug)]
pub struct Observed<'a> {
    /// The node.
    pub node: &'a NodeView,
    /// Every Shim of the cluster.
    pub shims: &'a [ShimView],
    /// The node's Job, if there is one.
    pub job: Option<&'a JobView>,
    /// What time it is.
    pub now: Timestamp,
    /// Nodes need no annotation.
    pub auto_provision: bool,
    /// Finished Jobs are left to the API server to remove.
    pub keep_jobs: bool,
}

/// What to do about one node, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Labels and annotation to write.
    pub edit: Option<NodeEdit>,
    /// What people should read.
    pub event: Option<NodeEvent>,
    /// What to do about the Job.
    pub job: JobStep,
    /// A Job that ended: outcome, and restarts of containerd.
    pub ended: Option<(&'static str, u32)>,
    /// When to decide again though nothing changes.
    pub look_again: Option<Duration>,
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
    Create(Box<ProvisionRequest>),
    /// Delete the one with this UID.
    Delete(String),
}

/// What people should read about a node.
#[derive(Debug, PartialEq)]
pub struct NodeEvent {
    /// Something is wrong.
    pub warning: bool,
    /// A word of [`reasons`].
    pub reason: &'static str,
    /// One sentence.
    pub note: String,
}

/// Decides what to do next about one node.
#[must_use]
pub fn decide(seen: &Observed) -> Plan {
    if seen.node.deleting {
        return Plan::default();
    }
    let applied = seen.node.applied();
    let desired = Desired::new(seen.node, applied.as_ref(), seen.shims, seen.auto_provision);
    match seen.job {
        Some(job) if job.deleting => settled(seen, &desired, applied, JobStep::None),
        Some(job)
            if applied
                .as_ref()
                .is_some_and(|applied| applied.job == job.uid) =>
        {
            after_reading(seen, &desired, applied, job)
        }
        Some(job) => follow(seen, applied, job),
        None => act(seen, &desired, applied),
    }
}

/// Labels as they should be, and nothing else.
fn settled(seen: &Observed, desired: &Desired, applied: Option<Applied>, job: JobStep) -> Plan {
    let edit = labels::edit(seen.node, seen.shims, desired, applied);
    let event = edit.as_ref().and_then(|edit| impossible(edit, desired));
    Plan {
        edit,
        event,
        job,
        ..Plan::default()
    }
}

/// What to tell people where a Shim's label turns to `failed` because of how the Shim is written.
fn impossible(edit: &NodeEdit, desired: &Desired) -> Option<NodeEvent> {
    let failed = Some(Progress::Failed.label().to_owned());
    let notes: Vec<String> = desired
        .verdicts
        .iter()
        .filter(|(shim, _)| edit.labels.get(&names::shim_label(shim)) == Some(&failed))
        .filter_map(|(shim, verdict)| match verdict {
            Verdict::Impossible(reason) | Verdict::Kept(_, reason) => {
                Some(format!("shim {shim}: {reason}"))
            }
            Verdict::Wanted(_) | Verdict::Shadowed(_) | Verdict::Resting => None,
        })
        .collect();
    (!notes.is_empty()).then(|| NodeEvent {
        warning: true,
        reason: reasons::PROVISION_FAILED,
        note: cut(&notes.join("; "), LONGEST_NOTE),
    })
}

/// The Job has been read: it goes now if it must make room, or unless finished Jobs are kept.
fn after_reading(
    seen: &Observed,
    desired: &Desired,
    applied: Option<Applied>,
    job: &JobView,
) -> Plan {
    let step = match need(seen, desired, applied.as_ref()) {
        Need::Nothing | Need::Wait(_) if seen.keep_jobs => JobStep::None,
        Need::Nothing | Need::Wait(_) | Need::Now => JobStep::Delete(job.uid.clone()),
    };
    let mut plan = settled(seen, desired, applied.clone(), step);
    if let Need::Wait(wait) = need(seen, desired, applied.as_ref()) {
        plan.look_again = Some(wait);
    }
    plan
}

/// No Job: make one if the host is not known to be as it should.
fn act(seen: &Observed, desired: &Desired, applied: Option<Applied>) -> Plan {
    match need(seen, desired, applied.as_ref()) {
        Need::Nothing => settled(seen, desired, applied, JobStep::None),
        Need::Wait(wait) => Plan {
            look_again: Some(wait),
            ..settled(seen, desired, applied, JobStep::None)
        },
        Need::Now => claim(seen, desired, applied),
    }
}

/// Writes down that an attempt begins, then makes the Job.
fn claim(seen: &Observed, desired: &Desired, applied: Option<Applied>) -> Plan {
    let request = desired.request(seen.node);
    let digest = request.digest();
    let mut applied = applied.unwrap_or_default();
    if !applied.machine_id.is_empty() && applied.machine_id != seen.node.machine_id {
        // Another host answers under this node object: nothing that was known holds.
        applied = Applied::default();
    }
    if applied.attempted != digest {
        applied.attempts = 0;
        applied.reason = None;
    }
    applied.attempts = applied.attempts.saturating_add(1);
    applied.attempted = digest;
    applied.node_uid.clone_from(&seen.node.uid);
    applied.at = seen.now;
    settled(
        seen,
        desired,
        Some(applied),
        JobStep::Create(Box::new(request)),
    )
}

/// Whether the host needs a Job.
enum Need {
    /// It is as it should be.
    Nothing,
    /// Not before this has passed.
    Wait(Duration),
    /// At once.
    Now,
}

fn need(seen: &Observed, desired: &Desired, applied: Option<&Applied>) -> Need {
    let request = desired.request(seen.node);
    let Some(applied) = applied else {
        // A label without a summary: a claim whose Job nobody has heard of. The host may carry anything.
        let claimed = seen
            .node
            .labelled()
            .any(|(shim, _)| !matches!(desired.verdicts.get(shim), Some(Verdict::Impossible(_))));
        return if request.shims.is_empty() && !claimed {
            Need::Nothing
        } else {
            Need::Now
        };
    };
    let digest = request.digest();
    let same_host =
        applied.machine_id == seen.node.machine_id && applied.boot_id == seen.node.boot_id;
    let listed = all_listed(seen.node, applied);
    if applied.digest == digest && same_host && listed && applied.reason.is_none() {
        return Need::Nothing;
    }
    if applied.attempted != digest || applied.attempts == 0 {
        return Need::Now;
    }
    let since = Duration::try_from(seen.now.duration_since(applied.at)).unwrap_or_default();
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

/// Whether the kubelet agrees with the report on every handler.
fn all_listed(node: &NodeView, applied: &Applied) -> bool {
    applied
        .shims
        .values()
        .flat_map(|shim| &shim.handlers)
        .all(|(handler, served)| !served || labels::listed(node, handler))
}

/// How long to wait after so many attempts.
fn backoff(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(10);
    (FIRST_RETRY * 2_u32.pow(doublings)).min(LONGEST_RETRY)
}

/// A Job that has not been read yet: wait for it, or write its outcome down.
fn follow(seen: &Observed, applied: Option<Applied>, job: &JobView) -> Plan {
    let age = Duration::try_from(seen.now.duration_since(job.created)).unwrap_or_default();
    let failed = match &job.progress {
        JobProgress::Running => None,
        JobProgress::NoPod if age < POD_PATIENCE => {
            let mut plan = waiting(seen, applied);
            plan.look_again = Some(POD_PATIENCE.saturating_sub(age));
            return plan;
        }
        JobProgress::NoPod => Some("the Job has had no pod for a minute; see the Events of the Job, often a quota or an admission policy".to_owned()),
        JobProgress::Stuck(reason) | JobProgress::Silent(reason) => Some(reason.clone()),
        JobProgress::Answered(report) => return read(seen, applied, job, report),
    };
    match failed {
        None => waiting(seen, applied),
        Some(reason) => fail(seen, applied, job, &reason),
    }
}

/// The Job works: labels may change meanwhile, for example where a Shim was deselected.
fn waiting(seen: &Observed, applied: Option<Applied>) -> Plan {
    let desired = Desired::new(seen.node, applied.as_ref(), seen.shims, seen.auto_provision);
    settled(seen, &desired, applied, JobStep::None)
}

/// The Job said nothing of the host: what was known stays, the reason is written down.
fn fail(seen: &Observed, applied: Option<Applied>, job: &JobView, reason: &str) -> Plan {
    let mut applied = applied.unwrap_or_default();
    applied.reason = Some(shortened(reason));
    conclude(seen, applied, job, "silent", 0, true)
}

/// The Job's report becomes what is known of the host.
fn read(
    seen: &Observed,
    applied: Option<Applied>,
    job: &JobView,
    report: &ProvisionReport,
) -> Plan {
    let mut applied = applied.unwrap_or_default();
    // A report is only taken for an answer when the Job's request could be read.
    let Some(request) = &job.request else {
        return fail(
            seen,
            Some(applied),
            job,
            "the Job's request can't be read any more",
        );
    };
    let done = matches!(report.result, Outcome::Applied | Outcome::Unchanged);
    let before = std::mem::take(&mut applied.shims);
    for shim in &request.shims {
        let told: Vec<&HandlerReport> = report
            .handlers
            .iter()
            .filter(|told| told.shim == shim.name)
            .collect();
        let reason = told
            .iter()
            .find_map(|told| told.reason.as_deref())
            .or(report.reason.as_deref().filter(|_| !done));
        let handlers = shim
            .handlers
            .iter()
            .map(|handler| {
                let served = told
                    .iter()
                    .find(|told| told.handler == *handler)
                    .map_or(done, |told| told.served);
                (handler.clone(), served)
            })
            .collect::<std::collections::BTreeMap<_, _>>();
        let told_why = told.iter().find_map(|told| told.reason.as_deref());
        let fulfilled = handlers.values().all(|served| *served)
            && told_why.is_none()
            && (done || report.result == Outcome::Partial);
        let kept = before
            .get(&shim.name)
            .and_then(|shim| shim.request.clone())
            .filter(|_| handlers.values().any(|served| *served));
        applied.shims.insert(
            shim.name.clone(),
            AppliedShim {
                request: if fulfilled { Some(shim.clone()) } else { kept },
                handlers,
                sha256: told.iter().find_map(|told| told.sha256.clone()),
                reason: if fulfilled {
                    None
                } else {
                    reason.map(shortened)
                },
            },
        );
    }
    let lingering = linger(&mut applied, request, report);
    applied.digest = request.digest();
    applied.machine_id.clone_from(&seen.node.machine_id);
    applied.boot_id.clone_from(&seen.node.boot_id);
    let unserved = applied
        .shims
        .iter()
        .any(|(_, shim)| shim.reason.is_some() || shim.handlers.values().any(|served| !served));
    let failed = !done || lingering || unserved;
    applied.reason = failed.then(|| sentence(&applied, report));
    conclude(
        seen,
        applied,
        job,
        outcome(report.result),
        report.restarts,
        failed,
    )
}

/// Keeps what the host still serves though it was not asked for: it is in use, or could not be taken away.
fn linger(applied: &mut Applied, request: &ProvisionRequest, report: &ProvisionReport) -> bool {
    let mut any = false;
    for told in &report.handlers {
        if told.served && request.shims.iter().all(|shim| shim.name != told.shim) {
            any = true;
            let shim = applied.shims.entry(told.shim.clone()).or_default();
            shim.handlers.insert(told.handler.clone(), true);
            shim.sha256.clone_from(&told.sha256);
            shim.reason = Some(
                told.reason
                    .as_deref()
                    .map_or_else(|| "it is still served".to_owned(), shortened),
            );
        }
    }
    any
}

/// Writes the outcome down, tells people, and lets the Job go in the step after.
fn conclude(
    seen: &Observed,
    mut applied: Applied,
    job: &JobView,
    outcome: &'static str,
    restarts: u32,
    failed: bool,
) -> Plan {
    applied.node_uid.clone_from(&seen.node.uid);
    applied.job.clone_from(&job.uid);
    applied.at = seen.now;
    if let Some(request) = &job.request {
        let digest = request.digest();
        if applied.attempted != digest {
            applied.attempted = digest;
            applied.attempts = 1;
        }
    }
    // A handler that the kubelet has yet to list is no failure, but neither is the attempt over.
    let open = failed || !all_listed(seen.node, &applied);
    applied.attempts = if open { applied.attempts.max(1) } else { 0 };
    let note = applied.reason.clone();
    let shims: Vec<String> = applied.shims.keys().cloned().collect();
    let desired = Desired::new(seen.node, Some(&applied), seen.shims, seen.auto_provision);
    let event = match (note, shims.is_empty()) {
        (Some(note), _) => NodeEvent {
            warning: true,
            reason: reasons::PROVISION_FAILED,
            note,
        },
        (None, true) => NodeEvent {
            warning: false,
            reason: reasons::REMOVED,
            note: "no shim is left on the host".to_owned(),
        },
        (None, false) => NodeEvent {
            warning: false,
            reason: reasons::PROVISIONED,
            note: format!("the host serves {}", shims.join(", ")),
        },
    };
    Plan {
        event: Some(event),
        ended: Some((outcome, restarts)),
        look_again: open.then(|| backoff(applied.attempts)),
        ..settled(seen, &desired, Some(applied), JobStep::None)
    }
}

/// One sentence that names each Shim that is not as asked, and what the operator can do.
fn sentence(applied: &Applied, report: &ProvisionReport) -> String {
    let whole = report.reason.clone();
    let each = applied.shims.iter().filter_map(|(name, shim)| {
        let reason = shim.reason.as_ref()?;
        (whole.as_ref() != Some(reason)).then(|| format!("shim {name}: {reason}"))
    });
    let remedy = report.remedy.clone();
    let parts: Vec<String> = whole.iter().cloned().chain(each).chain(remedy).collect();
    if parts.is_empty() {
        "the installer gave no reason; see the log of its pod".to_owned()
    } else {
        cut(&parts.join("; "), LONGEST_NOTE)
    }
}

/// The report's outcome as a metric's label.
fn outcome(result: Outcome) -> &'static str {
    match result {
        Outcome::Applied => "applied",
        Outcome::Partial => "partial",
        Outcome::Unchanged => "unchanged",
        Outcome::Refused => "refused",
        Outcome::RolledBack => "rolledBack",
        Outcome::Broken => "broken",
    }
}

fn shortened(text: &str) -> String {
    cut(text, LONGEST_REASON)
}

/// At most `longest` bytes of `text`, on one line.
#[must_use]
pub fn cut(text: &str, longest: usize) -> String {
    let mut line: String = text
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect();
    if line.len() > longest {
        let end = (0..=longest.saturating_sub('…'.len_utf8()))
            .rev()
            .find(|&end| line.is_char_boundary(end))
            .unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line
}
