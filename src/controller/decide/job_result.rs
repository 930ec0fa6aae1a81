//! The end of a Job: the new state of the host, and the Event. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::desired::Desired;
use super::ending_pods;
use super::event::{EventSpec, LONGEST_REASON, shortened};
use super::job_due::{age, all_listed, backoff, pause};
use super::job_event::{followed_by, problem, sentence, with_served, with_taken_over};
use super::types::{Ended, Observed};
use super::unlisted::mark_unlisted;
use crate::api::is_label_name;
use crate::controller::cluster::job_view::{JobProgress, JobView};
use crate::controller::cluster::node_view::{
    Applied, AppliedShim, EndedPods, HoldingPods, Unlisted, WaitingForPods,
};
use crate::handoff::{
    EndingPods, HandlerReport, Outcome, Problem, ProvisionReport, ProvisionRequest, ShimRequest,
    release_in,
};
use crate::names::reasons;

/// Time limit for the pod of a Job to appear, and to end. The Job controller creates a pod within a second. After a minute, a quota, an
/// admission policy or a missing account prevents the pod, unless the Job is suspended: a queue may suspend it for hours. A pod ends within
/// its grace period. After a minute, its node is probably down.
const POD_PATIENCE: Duration = Duration::from_mins(1);

/// Whether the Job should have a pod by now, and has none.
#[must_use]
pub fn lacks_pod(job: &JobView) -> bool {
    let has_none = job.progress == JobProgress::NoPod && !job.suspended;
    has_none && job.without_pod_for >= POD_PATIENCE
}

/// The problem of a Job without a pod, where `refusal` is why the Job controller can't create one.
#[must_use]
pub fn refused_pod(refusal: &str) -> Problem {
    Problem::with_help(
        format!("the Job has had no pod for one minute: {refusal}"),
        "correct the quota, the limits or the policy, or adapt job.resources and job.labels in the chart's values",
    )
}

/// The problem of a Job without a pod, where nothing else is known.
fn no_pod() -> Problem {
    Problem::with_help(
        "the Job has had no pod for one minute",
        "check the Job's Events for a quota or an admission policy",
    )
}

/// The problem of a Job that others deleted, for example a cleanup policy.
#[must_use]
pub fn deleted_job() -> Problem {
    Problem::with_help(
        "the Job of the last attempt was deleted before it reported",
        "look for a policy or a person that deletes Jobs in Farrier's namespace",
    )
}

/// The end of a Job.
#[derive(Debug)]
pub struct JobEnd {
    /// What is known about the host now.
    pub applied: Applied,
    /// The values for the metrics.
    pub ended: Ended,
    /// The Event to publish.
    pub event: Option<EventSpec>,
    /// When to reconcile again even if nothing changes.
    pub look_again: Option<Duration>,
}

/// The end of a Job that is not recorded yet; `None` while it is running.
#[must_use]
pub fn of(
    seen: &Observed,
    desired: &Desired,
    applied: Option<&Applied>,
    job: &JobView,
) -> Option<JobEnd> {
    let applied = applied.cloned().unwrap_or_default();
    let Some(request) = &job.request else {
        let message = "failed to read the request of the Job for this node object";
        return Some(fail(seen, applied, job, &Problem::new(message, None)));
    };
    match &job.progress {
        JobProgress::Running | JobProgress::Fetching => None,
        JobProgress::Answered(report) => {
            let mut end = read(seen, desired, applied, job, request, report);
            end.event = with_taken_over(end.event, report);
            Some(end)
        }
        JobProgress::Stuck(problem) | JobProgress::Silent(problem) => {
            Some(fail(seen, applied, job, problem))
        }
        JobProgress::NoPod => lacks_pod(job).then(|| {
            let problem = job.hindrance.clone().unwrap_or_else(no_pod);
            fail(seen, applied, job, &problem)
        }),
        JobProgress::Overdue { problem, .. } => patience(seen, job)
            .is_none()
            .then(|| fail(seen, applied, job, problem)),
    }
}

/// How long to wait for the Job, if the wait is limited.
#[must_use]
pub fn patience(seen: &Observed, job: &JobView) -> Option<Duration> {
    let waited = match &job.progress {
        JobProgress::NoPod if job.suspended => return None,
        JobProgress::NoPod => job.without_pod_for,
        JobProgress::Overdue { since, .. } => age(seen.now, *since),
        JobProgress::Running
        | JobProgress::Fetching
        | JobProgress::Answered(_)
        | JobProgress::Stuck(_)
        | JobProgress::Silent(_) => return None,
    };
    let rest = POD_PATIENCE.saturating_sub(waited);
    (!rest.is_zero()).then_some(rest)
}

/// The Job did not report: keeps the known state, and records the reason.
fn fail(seen: &Observed, mut applied: Applied, job: &JobView, problem: &Problem) -> JobEnd {
    applied.reason = Some(shortened(problem, LONGEST_REASON));
    applied.interruptions = 0;
    applied.waiting_for_pods = None;
    finish_attempt(seen, applied, job, None, true)
}

/// Records the report.
fn read(
    seen: &Observed,
    desired: &Desired,
    mut applied: Applied,
    job: &JobView,
    request: &ProvisionRequest,
    report: &ProvisionReport,
) -> JobEnd {
    if report.interrupted && report.result == Outcome::RolledBack {
        return interrupted(seen, applied, job, report);
    }
    applied.interruptions = 0;
    let refused = match report.result {
        // An installer that does not say why names only those pods, unless it has restarted containerd.
        Outcome::Refused | Outcome::RolledBack => report.refused_for_pods || report.restarts == 0,
        Outcome::Applied | Outcome::Partial | Outcome::Unchanged | Outcome::Broken => false,
    };
    if refused && !report.ending_pods.is_empty() {
        return refused_for_pods(seen, desired, applied, job, report);
    }
    let waiting_shims = shims_that_wait(request, report);
    let waiting = (!waiting_shims.is_empty()).then(|| next_wait(seen, &applied, report));
    applied.waiting_for_pods = None;
    let done = matches!(report.result, Outcome::Applied | Outcome::Unchanged);
    let is_reported = report.result != Outcome::Unchanged
        || applied.digest != job.digest
        || applied.reason.is_some();
    let before = std::mem::take(&mut applied.shims);
    let served_before = served_handlers(&before);
    applied.shims = shims_after_report(before, request, report, &waiting_shims);
    let reported = report.handlers.iter().map(|entry| entry.handler.clone());
    applied.reported = reported.filter(|handler| is_label_name(handler)).collect();
    let lingering = record_still_there(&mut applied, request, report);
    applied.holding_pods = next_holding(applied.holding_pods.as_ref(), request, report);
    let is_same = report.restarts == 0 && served_before == served_handlers(&applied.shims);
    let counted = applied.unlisted.take().filter(|_| is_same);
    applied.unlisted = (!all_listed(seen.node, &applied)).then(|| {
        counted.unwrap_or(Unlisted {
            heartbeat: seen.node.heartbeat,
            writes: 0,
        })
    });
    if applied.unlisted.as_ref().is_some_and(Unlisted::is_certain) {
        mark_unlisted(&mut applied, seen.node);
    }
    applied.digest = job.digest;
    applied.machine_id.clone_from(&seen.node.machine_id);
    // A report from before the last reboot proves nothing about the node now, so the next decision tries again. If the second attempt
    // reports the same old boot ID, take that of the kubelet: the two read it differently.
    let is_older = !report.boot_id.is_empty() && applied.attempts <= 1;
    applied.boot_id.clone_from(if is_older {
        &report.boot_id
    } else {
        &seen.node.boot_id
    });
    applied.runtime.clone_from(&seen.node.runtime);
    let unsupported = unsupported_shims(request, &applied);
    let unserved = applied.shims.iter().any(|(name, shim)| {
        let is_unserved = shim.handlers.values().any(|served| !served);
        let is_excused = waiting_shims.contains(name) || unsupported.contains(name);
        !is_excused && (shim.reason.is_some() || is_unserved)
    });
    if let Some(mut waiting) = waiting {
        if !lingering && !unserved {
            return finish_waiting_attempt(seen, desired, applied, job, report, waiting);
        }
        waiting.shims = waiting_shims;
        applied.waiting_for_pods = Some(waiting);
    }
    // The run did all that this host allows.
    let is_unsupported = matches!(report.result, Outcome::Refused | Outcome::Partial)
        && !(unsupported.is_empty() || lingering || unserved);
    let failed = !(done || is_unsupported) || lingering || unserved;
    applied.reason = failed.then(|| sentence(&applied, report));
    let mut well = request
        .shims
        .iter()
        .filter_map(|shim| applied.shims.get(&shim.name));
    let only_lingers = lingering && well.all(|shim| shim.reason.is_none());
    let waits = applied.waiting_for_pods.is_some();
    if !waits {
        record_ended_pods(seen, &mut applied, report);
    }
    let unsupported = is_unsupported.then(|| sentence(&applied, report));
    let mut end = finish_attempt(seen, applied, job, Some(report), failed);
    if only_lingers && let Some(event) = &mut end.event {
        // Pods still use the shim. Farrier removes the shim after these pods have ended.
        (event.warning, event.reason) = (false, reasons::REMOVING.to_owned());
    }
    if !failed && !is_reported {
        end.event = None;
    } else if let Some(note) = unsupported {
        let well = end.applied.shims.iter();
        let well = well.filter(|(_, shim)| shim.reason.is_none() && shim.fulfilled.is_some());
        let well: Vec<&str> = well.map(|(name, _)| name.as_str()).collect();
        let note = if well.is_empty() {
            note
        } else {
            followed_by(&note, &format!("the host serves {}", well.join(", ")))
        };
        end.event = Some(EventSpec::unsupported(&note));
    }
    end
}

/// Records the pods that the restarts of a run ended. Pods of an earlier restart may not have come back yet either.
fn record_ended_pods(seen: &Observed, applied: &mut Applied, report: &ProvisionReport) {
    if report.restarts > 0 && !report.ending_pods.is_empty() {
        let before = applied.ended_pods.take().unwrap_or_default();
        applied.ended_pods = Some(EndedPods {
            pods: report.ending_pods.clone().and(&before.pods).bounded(),
            at: seen.now,
        });
    }
}

/// What is known of the node's Shims after a report; `waiting` are those that wait for pods.
fn shims_after_report(
    before: BTreeMap<String, AppliedShim>,
    request: &ProvisionRequest,
    report: &ProvisionReport,
    waiting: &BTreeSet<String>,
) -> BTreeMap<String, AppliedShim> {
    let done = matches!(report.result, Outcome::Applied | Outcome::Unchanged);
    let after = |shim: &ShimRequest| {
        let before = before.get(&shim.name);
        let known = if waiting.contains(&shim.name) {
            shim_while_waiting(shim, before, report)?
        } else if shim.keep {
            kept_after_report(shim, before, report, done)
        } else {
            shim_after_report(shim, before, report, done)
        };
        Some((shim.name.clone(), known))
    };
    let mut shims: BTreeMap<_, _> = request.shims.iter().filter_map(after).collect();
    if matches!(
        report.result,
        Outcome::Refused | Outcome::RolledBack | Outcome::Broken
    ) {
        // Nothing was removed from the host.
        for (name, known) in before {
            shims.entry(name).or_insert(known);
        }
    }
    shims
}

/// A signal ended the installer before the host was changed. Keeps the known state. The attempt is no failure.
fn interrupted(
    seen: &Observed,
    mut applied: Applied,
    job: &JobView,
    report: &ProvisionReport,
) -> JobEnd {
    applied.interruptions = applied.interruptions.saturating_add(1);
    applied.waiting_for_pods = None;
    record_ended_pods(seen, &mut applied, report);
    applied.attempts = applied.attempts.saturating_sub(1);
    let pause = pause(applied.interruptions);
    let ended = Ended {
        outcome: "interrupted",
        ..ended(seen, &applied, Some(report))
    };
    applied.node_uid.clone_from(&seen.node.uid);
    applied.job.clone_from(&job.uid);
    applied.at = seen.now;
    let event = EventSpec {
        warning: false,
        reason: reasons::INTERRUPTED.to_owned(),
        note: "a signal ended the installer before the host was changed, for example at a node shutdown. Farrier repeats the attempt".to_owned(),
    };
    JobEnd {
        event: Some(event),
        ended,
        look_again: Some(pause).filter(|pause| !pause.is_zero()),
        applied,
    }
}

/// The change was refused because the restart of containerd would end pods. Keeps the known state, except handlers that are no longer
/// served.
fn refused_for_pods(
    seen: &Observed,
    desired: &Desired,
    mut applied: Applied,
    job: &JobView,
    report: &ProvisionReport,
) -> JobEnd {
    for (name, known) in &mut applied.shims {
        keep_served(name, known, report);
    }
    let waiting = next_wait(seen, &applied, report);
    finish_waiting_attempt(seen, desired, applied, job, report, waiting)
}

/// The requested Shims that wait for the pods of a report, while others went on or failed.
fn shims_that_wait(request: &ProvisionRequest, report: &ProvisionReport) -> BTreeSet<String> {
    let is_told = report.result == Outcome::Partial && !report.ending_pods.is_empty();
    let waits = |shim: &&ShimRequest| {
        let mut entries = report.handlers.iter();
        is_told && entries.any(|entry| entry.shim == shim.name && entry.waits_for_pods)
    };
    let waiting = request.shims.iter().filter(waits);
    waiting.map(|shim| shim.name.clone()).collect()
}

/// The requested Shims that the host can't carry.
fn unsupported_shims(request: &ProvisionRequest, applied: &Applied) -> BTreeSet<String> {
    let is_unsupported = |shim: &&ShimRequest| {
        let known = applied.shims.get(&shim.name);
        known.is_some_and(|known| known.is_unsupported(shim))
    };
    let unsupported = request.shims.iter().filter(is_unsupported);
    unsupported.map(|shim| shim.name.clone()).collect()
}

/// The wait for the pods of a report.
fn next_wait(seen: &Observed, applied: &Applied, report: &ProvisionReport) -> WaitingForPods {
    let before = applied.waiting_for_pods.clone().unwrap_or_default();
    let pods = report.ending_pods.clone().bounded();
    let is_left = pods.pods.iter().any(|pod| before.pods.pods.contains(pod));
    // A report names ten pods at most. That fewer and fewer pods are left ends by itself, and the time limit of a drain is for each ten.
    let progresses = !is_left && pods.len() < before.pods.len();
    let draining_since = before.draining_since;
    if progresses {
        return WaitingForPods {
            pods,
            draining_since: draining_since.map(|_| seen.now),
            ..WaitingForPods::default()
        };
    }
    WaitingForPods {
        pods,
        attempts: before.attempts,
        draining_since,
        // Also for pods that came in the place of the former ones.
        undone_at: before.undone_at,
        undone: before.undone,
        // What ended the drain before says nothing about other pods.
        undone_because: before.undone_because.filter(|_| is_left),
        ..WaitingForPods::default()
    }
}

/// The pods of a report that hold up a removal; `None` if there are none.
fn next_holding(
    before: Option<&HoldingPods>,
    request: &ProvisionRequest,
    report: &ProvisionReport,
) -> Option<HoldingPods> {
    let leaving = report.handlers.iter();
    let leaving = leaving.filter(|entry| is_leaving(request, entry));
    let leaving: BTreeSet<&str> = leaving.map(|entry| entry.handler.as_str()).collect();
    let pods = of_handlers(&report.using_pods, |handler| leaving.contains(handler));
    if pods.is_empty() {
        return None;
    }
    let Some(before) = before else {
        return Some(HoldingPods { pods, attempts: 0 });
    };
    // A report names ten pods at most. That fewer and fewer pods are left ends by itself.
    let is_left = pods.pods.iter().any(|pod| before.pods.pods.contains(pod));
    let progresses = !is_left && pods.len() < before.pods.len();
    let attempts = if progresses { 0 } else { before.attempts };
    Some(HoldingPods { pods, attempts })
}

/// Whether a handler of a report was not requested, and is on the host nevertheless.
fn is_leaving(request: &ProvisionRequest, entry: &HandlerReport) -> bool {
    let mut shims = request.shims.iter();
    let is_requested = shims.any(|shim| {
        shim.name == entry.shim && (shim.keep || shim.handlers.contains(&entry.handler))
    });
    !is_requested && (entry.served || entry.reason.is_some())
}

/// The pods of some handlers.
fn of_handlers(pods: &EndingPods, is_one: impl Fn(&str) -> bool) -> EndingPods {
    let mut pods = pods.clone().bounded();
    let all = pods.handlers.len();
    pods.handlers.retain(|handler| is_one(handler));
    pods.pods.retain(|pod| is_one(&pod.handler));
    if pods.handlers.len() < all {
        // The further pods may be those of the other handlers.
        pods.more = 0;
    }
    pods
}

/// Records that the attempt waits for pods, which is no failure.
fn finish_waiting_attempt(
    seen: &Observed,
    desired: &Desired,
    mut applied: Applied,
    job: &JobView,
    report: &ProvisionReport,
    waiting: WaitingForPods,
) -> JobEnd {
    let ended = Ended {
        outcome: "waiting",
        ..ended(seen, &applied, Some(report))
    };
    let event = ending_pods::waits(seen.cluster, desired, &waiting);
    applied.attempts = applied.attempts.saturating_sub(1);
    applied.reason = None;
    applied.waiting_for_pods = Some(waiting);
    applied.node_uid.clone_from(&seen.node.uid);
    applied.job.clone_from(&job.uid);
    applied.at = seen.now;
    JobEnd {
        event: Some(event),
        ended,
        look_again: Some(seen.look_every),
        applied,
    }
}

/// The values for the metrics; `applied` still has the time of the claim.
fn ended(seen: &Observed, applied: &Applied, report: Option<&ProvisionReport>) -> Ended {
    Ended {
        outcome: report.map_or("silent", |report| outcome(report.result)),
        restarts: report.map_or(0, |report| report.restarts),
        spared: report.is_some_and(|report| report.changed && report.restarts == 0),
        took: Duration::try_from(seen.now.duration_since(applied.at)).unwrap_or_default(),
    }
}

/// The state of a Shim that waits for pods: as before, except handlers that are no longer served. `None` for a Shim that is not on the host.
fn shim_while_waiting(
    shim: &ShimRequest,
    before: Option<&AppliedShim>,
    report: &ProvisionReport,
) -> Option<AppliedShim> {
    let Some(mut known) = before.cloned() else {
        // The handler is that of another Shim, which the request no longer names.
        let entries = report.handlers.iter();
        let entries = entries.filter(|entry| entry.shim == shim.name);
        let served = entries.filter(|entry| entry.served && is_label_name(&entry.handler));
        let handlers: BTreeMap<String, bool> =
            served.map(|entry| (entry.handler.clone(), true)).collect();
        return (!handlers.is_empty()).then(|| AppliedShim {
            handlers,
            ..AppliedShim::default()
        });
    };
    keep_served(&shim.name, &mut known, report);
    Some(known)
}

/// Updates the state of a Shim on which nothing was done: handlers that are no longer served, and no failure.
fn keep_served(shim: &str, known: &mut AppliedShim, report: &ProvisionReport) {
    for entry in report.handlers.iter().filter(|entry| entry.shim == shim) {
        if let Some(served) = known.handlers.get_mut(&entry.handler) {
            *served &= entry.served;
        }
    }
    known.reason = None;
}

/// The state of a requested Shim on the host.
fn shim_after_report(
    shim: &ShimRequest,
    before: Option<&AppliedShim>,
    report: &ProvisionReport,
    done: bool,
) -> AppliedShim {
    let handlers_of_shim = || {
        report
            .handlers
            .iter()
            .filter(|entry| entry.shim == shim.name)
    };
    // A shortened report lacks some handlers. For these, the outcome of the whole report counts.
    let served = |handler: &String| {
        handlers_of_shim()
            .find(|entry| entry.handler == *handler)
            .map_or(done, |entry| entry.served)
    };
    let handlers: BTreeMap<String, bool> = shim
        .handlers
        .iter()
        .map(|handler| (handler.clone(), served(handler)))
        .collect();
    let why = handlers_of_shim().find_map(problem);
    let fulfilled = handlers.values().all(|served| *served)
        && why.is_none()
        && (done || report.result == Outcome::Partial);
    let any = handlers.values().any(|served| *served);
    let release = if fulfilled {
        release_in(&shim.location)
    } else {
        before
            .and_then(|before| before.release.clone())
            .filter(|_| any)
    };
    // A host that serves another release of the shim can carry the shim: its artifact is wrong.
    let is_for_another_cpu = report.unsupported_shims.contains(&shim.name) && !any;
    let unsupported = !fulfilled && (report.unsupported || is_for_another_cpu);
    let last_applied = before
        .and_then(|before| before.fulfilled.clone())
        .filter(|_| any);
    AppliedShim {
        fulfilled: if fulfilled {
            Some(shim.fingerprint())
        } else {
            last_applied
        },
        unsupported: unsupported.then(|| shim.fingerprint()),
        handlers,
        sha256: handlers_of_shim().find_map(|entry| entry.sha256),
        release,
        reason: why
            .or_else(|| Some(Problem::new(report.reason.as_ref()?, None)))
            .filter(|_| !fulfilled)
            .map(|problem| shortened(&problem, LONGEST_REASON)),
    }
}

/// The state of a Shim that was to be kept. Its handlers are those of the report. If the report has none of them, the host was not looked at,
/// and what was known before still counts.
fn kept_after_report(
    shim: &ShimRequest,
    before: Option<&AppliedShim>,
    report: &ProvisionReport,
    done: bool,
) -> AppliedShim {
    let entries: Vec<&HandlerReport> = report
        .handlers
        .iter()
        .filter(|entry| entry.shim == shim.name)
        .collect();
    let before = before.cloned().unwrap_or_default();
    let whole = report.reason.as_ref().map(|why| Problem::new(why, None));
    if entries.is_empty() {
        let silent = || Problem::new("the report does not name this Shim", None);
        let problem = whole.unwrap_or_else(silent);
        return AppliedShim {
            reason: Some(shortened(&problem, LONGEST_REASON)),
            ..before
        };
    }
    let handlers: BTreeMap<String, bool> = entries
        .iter()
        .filter(|entry| is_label_name(&entry.handler))
        .map(|entry| (entry.handler.clone(), entry.served))
        .collect();
    let why = entries.iter().find_map(|entry| problem(entry));
    let is_well = why.is_none() && handlers.values().all(|served| *served);
    let is_well = is_well && (done || report.result == Outcome::Partial);
    // The host has no handler of a Shim that it does not know.
    let fulfilled = before.fulfilled.unwrap_or_else(|| shim.fingerprint());
    AppliedShim {
        fulfilled: Some(fulfilled).filter(|_| !handlers.is_empty()),
        unsupported: None,
        handlers,
        sha256: entries.iter().find_map(|entry| entry.sha256),
        release: before.release,
        reason: why
            .or(whole)
            .filter(|_| !is_well)
            .map(|problem| shortened(&problem, LONGEST_REASON)),
    }
}

/// The served handlers of all Shims.
fn served_handlers(shims: &BTreeMap<String, AppliedShim>) -> BTreeSet<String> {
    let handlers = shims.values().flat_map(|shim| &shim.handlers);
    let served = handlers.filter(|(_, served)| **served);
    served.map(|(handler, _)| handler.clone()).collect()
}

/// Records the handlers of Shims that were not requested and that the host still has: they are in use, or their removal failed.
///
/// Names become labels. A name that is not a valid label never came from a request.
fn record_still_there(
    applied: &mut Applied,
    request: &ProvisionRequest,
    report: &ProvisionReport,
) -> bool {
    let mut by_shim: BTreeMap<&str, Vec<&HandlerReport>> = BTreeMap::new();
    for entry in &report.handlers {
        let is_requested = request.shims.iter().any(|shim| shim.name == entry.shim);
        let is_valid = is_label_name(&entry.shim) && is_label_name(&entry.handler);
        if is_valid && !is_requested && is_leaving(request, entry) {
            by_shim.entry(&entry.shim).or_default().push(entry);
        }
    }
    for (name, entries) in &by_shim {
        let shim = applied.shims.entry((*name).to_owned()).or_default();
        for entry in entries {
            shim.handlers.insert(entry.handler.clone(), entry.served);
            shim.sha256 = entry.sha256.or(shim.sha256);
        }
        shim.reason = Some(shortened(
            &why_still_there(entries, &report.using_pods),
            LONGEST_REASON,
        ));
    }
    !by_shim.is_empty()
}

/// Why the host still has these handlers of one Shim: all reasons, and the pods of all handlers together.
fn why_still_there(entries: &[&HandlerReport], using: &EndingPods) -> Problem {
    let of_entry = |entry: &&HandlerReport| {
        problem(entry).unwrap_or_else(|| Problem::new("the handler is still served", None))
    };
    let (used, rest): (Vec<_>, Vec<_>) = entries
        .iter()
        .copied()
        .partition(|entry| using.handlers.contains(&entry.handler));
    let mut problems: Vec<Problem> = match used.as_slice() {
        [] | [_] => used.iter().map(of_entry).collect(),
        [first, ..] => {
            let is_used = |handler: &str| used.iter().any(|entry| entry.handler == handler);
            let pods = of_handlers(using, is_used);
            let handlers: Vec<&str> = used.iter().map(|entry| entry.handler.as_str()).collect();
            vec![Problem {
                message: format!(
                    "pods still use the handlers {} ({} on this node: {pods})",
                    handlers.join(", "),
                    pods.len()
                ),
                help: first.remedy.clone(),
            }]
        }
    };
    for problem in rest.iter().map(of_entry) {
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    let messages: Vec<&str> = problems.iter().map(|it| it.message.as_str()).collect();
    let mut helps: Vec<&str> = problems
        .iter()
        .filter_map(|it| it.help.as_deref())
        .collect();
    helps.dedup();
    Problem {
        message: messages.join("; "),
        help: (!helps.is_empty()).then(|| helps.join("; ")),
    }
}

/// Completes every end of a Job: counts the attempt and makes the Event.
fn finish_attempt(
    seen: &Observed,
    mut applied: Applied,
    job: &JobView,
    report: Option<&ProvisionReport>,
    failed: bool,
) -> JobEnd {
    let ended = ended(seen, &applied, report);
    applied.node_uid.clone_from(&seen.node.uid);
    applied.job.clone_from(&job.uid);
    applied.at = seen.now;
    if job.request.is_some() && applied.attempted != job.digest {
        applied.attempted = job.digest;
        applied.attempts = 1;
    }
    // The attempt is also incomplete, without being a failure, if the kubelet does not list a handler yet, or if the node rebooted after
    // the report.
    let rebooted = report.is_some() && applied.boot_id != seen.node.boot_id;
    let open = failed || rebooted || !all_listed(seen.node, &applied);
    applied.attempts = if open { applied.attempts.max(1) } else { 0 };
    let note = applied.reason.clone();
    let shims: Vec<&str> = applied.shims.keys().map(String::as_str).collect();
    let event = match (note, shims.is_empty()) {
        (Some(note), _) => EventSpec::failure(&with_served(&note, &applied)),
        (None, true) => EventSpec {
            warning: false,
            reason: reasons::REMOVED.to_owned(),
            note: "the host carries no shim any more".to_owned(),
        },
        (None, false) => EventSpec::provisioned(&shims),
    };
    JobEnd {
        event: Some(event),
        ended,
        look_again: open.then(|| backoff(applied.attempts)),
        applied,
    }
}

/// The outcome as a label of a metric.
fn outcome(result: Outcome) -> &'static str {
    match result {
        Outcome::Applied => "applied",
        Outcome::Partial => "partial",
        Outcome::Unchanged => "unchanged",
        Outcome::Refused => "rejected",
        Outcome::RolledBack => "rolledBack",
        Outcome::Broken => "broken",
    }
}
