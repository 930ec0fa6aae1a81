//! How a Job's end becomes what is known of a host, and what people read of it. Pure; the steps around it are those of `decide`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::event::{EventSpec, LONGEST_NOTE, cut};
use super::job_due::{INTERRUPTIONS_AT_ONCE, age, all_listed, backoff};
use super::types::{Ended, Observed};
use crate::api::is_label_name;
use crate::controller::cluster::job_view::{JobProgress, JobView};
use crate::controller::cluster::node_view::{Applied, AppliedShim, NodeView};
use crate::handoff::{
    HandlerReport, Outcome, ProvisionReport, ProvisionRequest, ShimRequest, elide, is_sha256,
};
use crate::names::reasons;

/// Longest sentence that is kept per Shim: thirty of them stay far below the 256 KiB that a node's annotations may take.
const LONGEST_REASON: usize = 400;

/// The job controller makes a pod within a second; a minute without one is a quota, an admission rule or a missing account. And a pod
/// ends within the 30 s of its grace period; one that doesn't is on a node that nobody hears of.
const POD_PATIENCE: Duration = Duration::from_mins(1);

/// What to do about a Job that never got one.
const NO_POD: &str = "the Job has had no pod for a minute; see the Events of the Job, often a quota or an admission policy";

/// What the end of a Job comes to.
#[derive(Debug)]
pub struct JobEnd {
    /// What is known of the host now.
    pub applied: Applied,
    /// What is counted of it.
    pub ended: Ended,
    /// What people should read of it.
    pub event: Option<EventSpec>,
    /// When to decide again though nothing changes.
    pub look_again: Option<Duration>,
}

/// What the end of a Job comes to that has not been read yet; nothing while it works, or may still.
#[must_use]
pub fn of(seen: &Observed, applied: Option<&Applied>, job: &JobView) -> Option<JobEnd> {
    let applied = applied.cloned().unwrap_or_default();
    let Some(request) = &job.request else {
        let reason = "the Job carries no request for this node object that this release reads";
        return Some(fail(seen, applied, job, reason));
    };
    let over = || patience(seen, job).is_none();
    match &job.progress {
        JobProgress::Running => None,
        JobProgress::Answered(report) => Some(read(seen, applied, job, request, report)),
        JobProgress::Stuck(reason) | JobProgress::Silent(reason) => {
            Some(fail(seen, applied, job, reason))
        }
        JobProgress::NoPod => over().then(|| fail(seen, applied, job, NO_POD)),
        JobProgress::Overdue { reason, .. } => over().then(|| fail(seen, applied, job, reason)),
    }
}

/// How long the Job is still waited for, where there is a bound.
#[must_use]
pub fn patience(seen: &Observed, job: &JobView) -> Option<Duration> {
    let since = match &job.progress {
        JobProgress::NoPod => job.created,
        JobProgress::Overdue { since, .. } => *since,
        JobProgress::Running
        | JobProgress::Answered(_)
        | JobProgress::Stuck(_)
        | JobProgress::Silent(_) => return None,
    };
    let rest = POD_PATIENCE.saturating_sub(age(seen.now, since));
    (!rest.is_zero()).then_some(rest)
}

/// The Job said nothing of the host: what was known stays, the reason is written down.
fn fail(seen: &Observed, mut applied: Applied, job: &JobView, reason: &str) -> JobEnd {
    applied.reason = Some(shortened(reason));
    applied.unsupported = false;
    applied.interruptions = 0;
    conclude(seen, applied, job, None, true)
}

/// The Job's report becomes what is known of the host.
fn read(
    seen: &Observed,
    mut applied: Applied,
    job: &JobView,
    request: &ProvisionRequest,
    report: &ProvisionReport,
) -> JobEnd {
    if report.interrupted && report.result == Outcome::RolledBack {
        return interrupted(seen, applied, job, report);
    }
    applied.interruptions = 0;
    let done = matches!(report.result, Outcome::Applied | Outcome::Unchanged);
    let is_news = report.result != Outcome::Unchanged
        || applied.digest != job.digest
        || applied.reason.is_some();
    let before = std::mem::take(&mut applied.shims);
    for shim in &request.shims {
        let known = became(shim, before.get(&shim.name), report, done);
        applied.shims.insert(shim.name.clone(), known);
    }
    if matches!(
        report.result,
        Outcome::Refused | Outcome::RolledBack | Outcome::Broken
    ) {
        // Nothing went off the host: what was to go is still there.
        for (name, known) in before {
            applied.shims.entry(name).or_insert(known);
        }
    }
    let lingering = linger(&mut applied, request, report);
    // A kubelet has had its time once an attempt was made for its list alone.
    if applied.attempts > 1 {
        deny(&mut applied, seen.node);
    }
    applied.digest.clone_from(&job.digest);
    applied.machine_id.clone_from(&seen.node.machine_id);
    // What a host said before it rebooted is no proof of what it is now; one that says so twice and its kubelet see it differently.
    let is_older = !report.boot_id.is_empty() && applied.attempts <= 1;
    applied.boot_id.clone_from(if is_older {
        &report.boot_id
    } else {
        &seen.node.boot_id
    });
    applied.runtime.clone_from(&seen.node.runtime);
    applied.unsupported = report.unsupported;
    let unserved = applied
        .shims
        .iter()
        .any(|(_, shim)| shim.reason.is_some() || shim.handlers.values().any(|served| !served));
    let failed = !done || lingering || unserved;
    applied.reason = failed.then(|| sentence(&applied, report));
    let mut well = request
        .shims
        .iter()
        .filter_map(|shim| applied.shims.get(&shim.name));
    let only_lingers = lingering && well.all(|shim| shim.reason.is_none());
    let mut end = conclude(seen, applied, job, Some(report), failed);
    if only_lingers && let Some(event) = &mut end.event {
        // Pods use it: it goes once they have ended.
        (event.warning, event.reason) = (false, reasons::REMOVING.to_owned());
    }
    if !failed && !is_news {
        end.event = None;
    }
    end
}

/// A signal ended the Job before it changed the host: what was known of the host stays, and the attempt is no failure.
fn interrupted(
    seen: &Observed,
    mut applied: Applied,
    job: &JobView,
    report: &ProvisionReport,
) -> JobEnd {
    applied.interruptions = applied.interruptions.saturating_add(1);
    let at_once = applied.interruptions <= INTERRUPTIONS_AT_ONCE;
    if at_once {
        applied.attempts = applied.attempts.saturating_sub(1);
    }
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
        note: "a signal ended the installer before it changed the host, for example because the node shuts down; the change is tried again".to_owned(),
    };
    JobEnd {
        event: Some(event),
        ended,
        look_again: (!at_once).then(|| backoff(applied.attempts)),
        applied,
    }
}

/// What became of a Job, as a count; `applied` has the time of the claim still.
fn ended(seen: &Observed, applied: &Applied, report: Option<&ProvisionReport>) -> Ended {
    Ended {
        outcome: report.map_or("silent", |report| outcome(report.result)),
        restarts: report.map_or(0, |report| report.restarts),
        spared: report.is_some_and(|report| report.changed && report.restarts == 0),
        took: Duration::try_from(seen.now.duration_since(applied.at)).unwrap_or_default(),
    }
}

/// What the host has of a Shim that it was asked for.
fn became(
    shim: &ShimRequest,
    before: Option<&AppliedShim>,
    report: &ProvisionReport,
    done: bool,
) -> AppliedShim {
    let told = || report.handlers.iter().filter(|told| told.shim == shim.name);
    // A report that had to be cut short says nothing of some handlers; its verdict as a whole stands.
    let served = |handler: &String| {
        told()
            .find(|told| told.handler == *handler)
            .map_or(done, |told| told.served)
    };
    let handlers: BTreeMap<String, bool> = shim
        .handlers
        .iter()
        .map(|handler| (handler.clone(), served(handler)))
        .collect();
    let why = told().find_map(|told| told.reason.as_deref());
    let fulfilled = handlers.values().all(|served| *served)
        && why.is_none()
        && (done || report.result == Outcome::Partial);
    let any = handlers.values().any(|served| *served);
    let kept = before
        .and_then(|before| before.request.clone())
        .filter(|_| any);
    AppliedShim {
        request: if fulfilled { Some(shim.clone()) } else { kept },
        handlers,
        sha256: told().find_map(digest),
        reason: why
            .or(report.reason.as_deref())
            .filter(|_| !fulfilled)
            .map(shortened),
    }
}

/// The digest of a handler's binary, if it is one.
fn digest(told: &HandlerReport) -> Option<String> {
    told.sha256.clone().filter(|digest| is_sha256(digest))
}

/// Says of each Shim that containerd serves and the kubelet does not list that it is not served.
fn deny(applied: &mut Applied, node: &NodeView) {
    for shim in applied.shims.values_mut() {
        let served = shim.handlers.iter().filter(|(_, served)| **served);
        let unlisted: Vec<&str> = served
            .map(|(handler, _)| handler.as_str())
            .filter(|handler| !node.lists(handler))
            .collect();
        if !unlisted.is_empty() && shim.reason.is_none() {
            shim.reason = Some(format!(
                "containerd serves {} and the kubelet does not list it; see that both are of one containerd",
                unlisted.join(", ")
            ));
        }
    }
}

/// Keeps what the host still serves though it was not asked for: it is in use, or could not be taken away.
///
/// Names become labels: what can't be one never came from a request of ours.
fn linger(applied: &mut Applied, request: &ProvisionRequest, report: &ProvisionReport) -> bool {
    let mut any = false;
    for told in &report.handlers {
        if is_label_name(&told.shim)
            && is_label_name(&told.handler)
            && told.served
            && request.shims.iter().all(|shim| shim.name != told.shim)
        {
            any = true;
            let shim = applied.shims.entry(told.shim.clone()).or_default();
            shim.handlers.insert(told.handler.clone(), true);
            shim.sha256 = digest(told);
            shim.reason = Some(
                told.reason
                    .as_deref()
                    .map_or_else(|| "it is still served".to_owned(), shortened),
            );
        }
    }
    any
}

/// What every end of a Job has in common: the count of attempts, and what people read.
fn conclude(
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
        applied.attempted.clone_from(&job.digest);
        applied.attempts = 1;
    }
    // A handler that the kubelet has yet to list is no failure, and neither is a boot since the report, but the attempt is not over.
    let rebooted = report.is_some() && applied.boot_id != seen.node.boot_id;
    let open = failed || rebooted || !all_listed(seen.node, &applied);
    applied.attempts = if open { applied.attempts.max(1) } else { 0 };
    let note = applied.reason.clone();
    let shims: Vec<String> = applied.shims.keys().cloned().collect();
    let event = match (note, shims.is_empty()) {
        (Some(note), _) => EventSpec::failure(&note),
        (None, true) => EventSpec {
            warning: false,
            reason: reasons::REMOVED.to_owned(),
            note: "no shim is left on the host".to_owned(),
        },
        (None, false) => EventSpec {
            warning: false,
            reason: reasons::PROVISIONED.to_owned(),
            note: format!("the host serves {}", shims.join(", ")),
        },
    };
    JobEnd {
        event: Some(event),
        ended,
        look_again: open.then(|| backoff(applied.attempts)),
        applied,
    }
}

/// One sentence that names each Shim that is not as asked, and what the operator can do.
fn sentence(applied: &Applied, report: &ProvisionReport) -> String {
    let each = applied.shims.iter().filter_map(|(name, shim)| {
        let reason = shim.reason.as_ref()?;
        (report.reason.as_ref() != Some(reason)).then(|| format!("shim {name}: {reason}"))
    });
    // A reason that is one Shim's stands among the Shims' already, and with it its remedy.
    let whole = report
        .reason
        .as_ref()
        .filter(|reason| !reason.starts_with("shim "));
    let remedy = whole.and(report.remedy.as_ref());
    let parts: Vec<String> = whole
        .into_iter()
        .chain(remedy)
        .cloned()
        .chain(each)
        .collect();
    if parts.is_empty() {
        "the installer gave no reason; see the log of its pod".to_owned()
    } else {
        // Each has its share: the first of many must not talk the others down.
        let share = (LONGEST_NOTE / parts.len()).saturating_sub(2);
        let parts: Vec<String> = parts.iter().map(|part| elide(part, share)).collect();
        cut(&parts.join("; "), LONGEST_NOTE)
    }
}

/// The report's outcome as a metric's label.
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

/// At most [`LONGEST_REASON`] bytes of a sentence, on one line.
#[must_use]
pub fn shortened(text: &str) -> String {
    cut(&elide(text, LONGEST_REASON), LONGEST_REASON)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(shim: &str, reason: &str) -> Applied {
        let known = AppliedShim {
            reason: Some(reason.to_owned()),
            ..AppliedShim::default()
        };
        Applied {
            shims: BTreeMap::from([(shim.to_owned(), known)]),
            ..Applied::default()
        }
    }

    #[test]
    fn what_a_shim_says_of_itself_is_told_once() {
        let mut report = ProvisionReport::new(Outcome::Partial);
        report.reason = Some("shim spin: pods still use it".to_owned());
        report.remedy = Some("delete them".to_owned());
        let told = sentence(&applied("spin", "pods still use it; delete them"), &report);
        assert_eq!(told, "shim spin: pods still use it; delete them");
    }

    #[test]
    fn of_many_shims_each_has_its_say() {
        let mut all = Applied::default();
        for shim in ["spin", "wasmedge", "wasmer", "wasmtime"] {
            all.shims
                .extend(applied(shim, &"no route to it ".repeat(40)).shims);
        }
        let told = sentence(&all, &ProvisionReport::new(Outcome::Refused));
        assert!(told.len() <= LONGEST_NOTE);
        assert!(
            told.contains("shim spin:") && told.contains("shim wasmtime:"),
            "{told}"
        );
    }

    #[test]
    fn what_holds_for_the_whole_host_is_told_once_and_with_its_remedy() {
        let mut report = ProvisionReport::new(Outcome::Refused);
        report.reason = Some("the file can't be parsed".to_owned());
        report.remedy = Some("correct it".to_owned());
        let told = sentence(&applied("spin", "the file can't be parsed"), &report);
        assert_eq!(told, "the file can't be parsed; correct it");
    }
}
