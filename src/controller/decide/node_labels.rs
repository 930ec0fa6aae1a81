//! The labels and the annotation of a node, as an edit of the present ones. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::desired::{Cluster, Desired, Verdict};
use super::ending_pods;
use super::event::{EventSpec, by_cause};
use super::types::{JobStep, NodeEdit, Observed, Plan};
use crate::controller::cluster::node_view::{Applied, Binary, NodeView};
use crate::controller::cluster::shim_view::ShimView;
use crate::controller::cluster::slim::Taint;
use crate::handoff::{self, Problem};
use crate::names::{self, Progress};

/// Whether a handler is served: according to the report of this host, and the kubelet lists the handler or lists none at all.
fn served(node: &NodeView, applied: Option<&Applied>, shim: &str, handler: &str) -> bool {
    applied.is_some_and(|applied| {
        applied.machine_id == node.machine_id
            && applied
                .shims
                .get(shim)
                .is_some_and(|shim| shim.handlers.get(handler) == Some(&true))
    }) && node.lists(handler)
}

/// The binary of a Shim that the host serves, as specified or not. `None` if the kubelet does not list its handler, and on a node that can
/// carry no shim: no pod there can use what the host has.
#[must_use]
pub fn served_binary(applied: Option<&Applied>, shim: &str, desired: &Desired) -> Option<Binary> {
    let known = applied?.shims.get(shim)?;
    let is_trusted = desired.node_problem.is_none() && !desired.distrusted.contains(shim);
    known.served_binary().filter(|_| is_trusted)
}

/// The progress of one Shim on the node, and the reason if it failed or is unsupported.
#[must_use]
pub fn progress(
    node: &NodeView,
    applied: Option<&Applied>,
    shim: &str,
    verdict: &Verdict,
    desired: &Desired,
) -> Option<(Progress, Option<String>)> {
    let known = applied.and_then(|applied| applied.shims.get(shim));
    let serving = served_binary(applied, shim, desired);
    let serving = serving.map_or(String::new(), |it| format!("; still serves {it}"));
    let while_serving = |reason: String| reason + &serving;
    if let Some(problem) = verdict.fault() {
        let progress = match verdict {
            Verdict::Unsupported(_) => Progress::Unsupported,
            Verdict::Wanted(_)
            | Verdict::PinnedToLastApplied(..)
            | Verdict::Impossible(_)
            | Verdict::Waiting(..)
            | Verdict::HandlersTaken(_)
            | Verdict::Idle => Progress::Failed,
        };
        let problem = Problem {
            message: while_serving(problem.message.clone()),
            help: problem.help.clone(),
        };
        return Some((progress, Some(problem.sentence())));
    }
    let request = verdict.request()?;
    if let Some(known) = known.filter(|known| known.is_unsupported(request)) {
        return Some((
            Progress::Unsupported,
            known.reason.clone().map(while_serving),
        ));
    }
    let fulfilled = known.is_some_and(|known| known.fulfils(request));
    let handlers = desired.handlers_of(verdict);
    let all_served = || {
        let mut handlers = handlers.iter();
        handlers.all(|handler| served(node, applied, shim, handler))
    };
    if fulfilled && !handlers.is_empty() && all_served() {
        return Some((Progress::Provisioned, None));
    }
    // A failure counts only for the desired set of that attempt, and no longer after a change.
    let reason = applied
        .filter(|applied| applied.attempted == Some(desired.digest))
        .and_then(|applied| {
            let whole = applied.reason.as_ref()?;
            let own = known.and_then(|known| known.reason.as_ref());
            let waiting = applied.waiting_for_pods.as_ref();
            let waits = waiting.is_some_and(|waiting| waiting.shims.contains(shim));
            own.or((!fulfilled && !waits).then_some(whole)).cloned()
        });
    match reason {
        Some(reason) if fulfilled => Some((Progress::Failed, Some(reason))),
        Some(reason) => Some((Progress::Failed, Some(while_serving(reason)))),
        None => Some((Progress::Pending, None)),
    }
}

/// A plan that corrects the labels, and carries out `job`.
#[must_use]
pub fn plan_with_labels(
    seen: &Observed,
    desired: &Desired,
    applied: Option<Applied>,
    job: JobStep,
) -> Plan {
    // The end of a Job that is being deleted is recorded already, and a finalizer may keep that Job.
    let job_is_there = seen.job.is_some_and(|job| job.deleting.is_none());
    let edit = edit(seen.node, seen.cluster, desired, applied, job_is_there);
    let event = edit
        .as_ref()
        .and_then(|edit| verdict_event(edit, desired).or_else(|| served_again(edit, seen.node)));
    Plan {
        edit,
        event,
        job,
        ..Plan::default()
    }
}

/// The Event for Shims whose label turns to `failed` or `unsupported` because of their spec or of the node.
fn verdict_event(edit: &NodeEdit, desired: &Desired) -> Option<EventSpec> {
    let notes = |progress: Progress| {
        let label = Some(progress.label().to_owned());
        let turned = desired
            .verdicts
            .iter()
            .filter(|(shim, _)| edit.labels.get(&names::shim_label(shim)) == Some(&label));
        let faults =
            turned.filter_map(|(shim, verdict)| Some((shim.clone(), verdict.fault()?.clone())));
        let notes: Vec<String> = by_cause(faults).iter().map(Problem::sentence).collect();
        (!notes.is_empty()).then(|| notes.join("; "))
    };
    let unsupported = || {
        let notes = notes(Progress::Unsupported)?;
        let of_node = desired.node_problem.as_ref().map(Problem::sentence);
        Some(EventSpec::unsupported(&of_node.unwrap_or(notes)))
    };
    let failure = notes(Progress::Failed).map(|notes| EventSpec::failure(&notes));
    failure.or_else(unsupported)
}

/// The Event for Shims that are served after a failure, also where no Job was needed.
fn served_again(edit: &NodeEdit, node: &NodeView) -> Option<EventSpec> {
    let was_failed = |label: &str| {
        let before = node.labels.get(label).map(String::as_str);
        before == Some(Progress::Failed.label())
    };
    let now_served = edit.labels.iter().filter_map(|(label, value)| {
        let shim = label.strip_prefix(names::SHIM_LABEL_PREFIX)?;
        let is_served = value.as_deref() == Some(Progress::Provisioned.label());
        (is_served && was_failed(label)).then_some(shim)
    });
    let shims: Vec<&str> = now_served.collect();
    (!shims.is_empty()).then(|| EventSpec::provisioned(&shims))
}

/// The edit that brings labels, annotation and taints of the node up to date; `None` if they are.
///
/// While the Job exists, the annotation stays, because it shows whether the report of the Job was recorded.
fn edit(
    node: &NodeView,
    cluster: &Cluster,
    desired: &Desired,
    applied: Option<Applied>,
    job_is_there: bool,
) -> Option<NodeEdit> {
    let shims = cluster.shims.as_slice();
    let mut wanted: BTreeMap<String, Option<String>> = BTreeMap::new();
    // KWasm's label is set when the node serves all Shims that its annotation selects, and is kept until a report shows another state.
    let (mut complete, mut stays) = (!desired.annotated.is_empty(), true);
    let mut done = !node.os.is_empty() || desired.node_problem.is_some();
    let mut tracked: BTreeSet<&str> = node.labelled().map(|(shim, _)| shim).collect();
    tracked.extend(
        applied
            .iter()
            .flat_map(|applied| applied.shims.keys())
            .map(String::as_str),
    );
    tracked.extend(desired.verdicts.keys().map(String::as_str));
    for shim in tracked {
        let verdict = desired.verdicts.get(shim);
        let now = match verdict
            .and_then(|verdict| progress(node, applied.as_ref(), shim, verdict, desired))
        {
            Some((progress, _)) => Some(progress),
            None => {
                may_be_on_host(node, applied.as_ref(), shim, desired).then_some(Progress::Removing)
            }
        };
        done &= needs_no_wait(shims, shim, verdict, now);
        if desired.annotated.contains(shim) {
            let done = now == Some(Progress::Provisioned)
                || matches!(verdict, Some(Verdict::HandlersTaken(_)));
            complete &= done;
            stays &= done || still_served(node, applied.as_ref(), shim, now);
        }
        let label = names::shim_label(shim);
        // A bare label is removed together with Farrier's label. Without Farrier's label, it belongs to another program.
        let is_managed = now.is_some() || node.labels.contains_key(&label);
        wanted.insert(label, now.map(|now| now.label().to_owned()));
        if is_managed && is_bare_label_managed(node, shims, shim) {
            wanted.insert(shim.to_owned(), now.map(|now| now.bare_label().to_owned()));
        }
    }
    for key in node
        .labels
        .keys()
        .filter(|key| key.starts_with(names::HANDLER_LABEL_PREFIX))
    {
        wanted.insert(key.clone(), None);
    }
    let startup_taints = if done {
        cluster.startup_taints.as_slice()
    } else {
        &[]
    };
    let draining = ending_pods::waiting(applied.as_ref(), desired);
    let draining = draining.filter(|waiting| waiting.draining_since.is_some());
    let (drains, drained) = match draining {
        Some(waiting) => (true, waiting.pods.handlers.clone()),
        None => (false, BTreeSet::new()),
    };
    // A Shim whose removal waits for the rollout is no longer advertised.
    let trusted = desired.verdicts.iter();
    let trusted = trusted.filter(|(shim, _)| !desired.distrusted.contains(*shim));
    for (shim, verdict) in trusted {
        for handler in desired
            .handlers_of(verdict)
            .iter()
            .filter(|handler| served(node, applied.as_ref(), shim, handler))
            .filter(|handler| !drained.contains(*handler))
        {
            wanted.insert(names::handler_label(handler), Some("true".to_owned()));
        }
    }
    // The annotation may select a Shim that can't be read.
    let legible = shims.iter().all(|shim| shim.spec.is_ok());
    let stays = stays && !desired.annotated.is_empty();
    if legible && (applied.is_some() && !stays || complete) {
        let value =
            (complete && node.name.len() <= crate::api::LONGEST_NAME).then(|| node.name.clone());
        wanted.insert(names::KWASM_PROVISIONED_LABEL.to_owned(), value);
    }
    let annotations = BTreeMap::from([(
        names::APPLIED_ANNOTATION.to_owned(),
        applied
            .filter(|applied| job_is_there || !is_unused(applied, desired))
            .map(|applied| summary(&applied)),
    )]);
    let edit = NodeEdit {
        taints: taints(&node.taints, startup_taints, drains),
        labels: changed(wanted, &node.labels),
        annotations: changed(annotations, &node.annotations),
    };
    (edit != NodeEdit::default()).then_some(edit)
}

/// Whether a Shim in progress is still served in its former version, or, before the first report, according to the label of KWasm. Neither
/// an upgrade nor a takeover removes the label, because a restarting kubelet rejects running pods whose node selector no longer matches.
fn still_served(
    node: &NodeView,
    applied: Option<&Applied>,
    shim: &str,
    now: Option<Progress>,
) -> bool {
    let reported = applied.filter(|applied| applied.digest.is_some());
    let handlers = reported
        .and_then(|applied| applied.shims.get(shim))
        .map(|known| &known.handlers);
    match (reported, handlers) {
        // The annotation describes another host, and does not count for this label.
        (None, _) => {
            let before = node.applied();
            now == Some(Progress::Pending) && before.is_none_or(|before| before.digest.is_none())
        }
        (Some(_), None) => false,
        (Some(_), Some(handlers)) => handlers
            .keys()
            .all(|handler| served(node, applied, shim, handler)),
    }
}

/// Whether pods need not wait for a Shim on this node, because the Shim is served or never will be.
fn needs_no_wait(
    shims: &[ShimView],
    shim: &str,
    verdict: Option<&Verdict>,
    now: Option<Progress>,
) -> bool {
    match verdict {
        Some(Verdict::Wanted(_)) => {
            matches!(now, Some(Progress::Provisioned | Progress::Unsupported))
        }
        Some(Verdict::Idle) => {
            let mut named = shims.iter().filter(|other| other.name == shim);
            named.any(|shim| shim.spec.as_ref().is_ok_and(|spec| spec.paused))
        }
        Some(Verdict::Waiting(..)) => false,
        Some(
            Verdict::PinnedToLastApplied(..)
            | Verdict::Impossible(_)
            | Verdict::Unsupported(_)
            | Verdict::HandlersTaken(_),
        )
        | None => true,
    }
}

/// The edit that ends a drain for which no controller is left: the taint goes, and where the node `keeps` its Shims, the handlers that the
/// host serves are advertised again.
#[must_use]
pub fn without_drain(node: &NodeView, keeps: bool) -> Option<NodeEdit> {
    let taints = taints(&node.taints, &[], false)?;
    let applied = node.applied().unwrap_or_default();
    let waiting = applied.waiting_for_pods.clone().unwrap_or_default();
    let is_served = |handler: &&String| {
        let mut shims = applied.shims.keys();
        shims.any(|shim| served(node, Some(&applied), shim, handler))
    };
    let handlers = waiting.pods.handlers.iter().filter(|_| keeps);
    let handlers = handlers.filter(is_served);
    let labels = handlers.map(|handler| (names::handler_label(handler), Some("true".to_owned())));
    Some(NodeEdit {
        taints: Some(taints),
        labels: changed(labels.collect(), &node.labels),
        annotations: BTreeMap::new(),
    })
}

/// The taints without those whose keys are in `without`, and with the taint of a restart exactly where the node `drains`; `None` if the node
/// has them.
fn taints(taints: &[Taint], without: &[String], drains: bool) -> Option<Vec<Taint>> {
    let is_restarting = |taint: &Taint| taint.key == names::RESTARTING_TAINT;
    let mut rest: Vec<Taint> = taints
        .iter()
        .filter(|taint| !without.contains(&taint.key))
        .filter(|taint| drains || !is_restarting(taint))
        .cloned()
        .collect();
    if drains && !rest.iter().any(is_restarting) {
        rest.push(Taint {
            key: names::RESTARTING_TAINT.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        });
    }
    (rest != taints).then_some(rest)
}

/// Whether the host may still carry a Shim that no longer selects the node.
fn may_be_on_host(
    node: &NodeView,
    applied: Option<&Applied>,
    shim: &str,
    desired: &Desired,
) -> bool {
    if desired.node_problem.is_some() {
        // No Job can remove what the host may have, and no pod can use it.
        return false;
    }
    // A label without an entry in the annotation belongs to a claim without a report, unless the Shim was never claimed.
    let label = node.labels.get(&names::shim_label(shim));
    let claimed = label.is_some_and(|value| value != Progress::Unsupported.label())
        && applied.is_none_or(|applied| {
            applied.digest != Some(desired.digest) && !desired.is_fulfilled(applied)
        });
    claimed || applied.is_some_and(|applied| applied.shims.contains_key(shim))
}

/// No Shim is selected, installed or in progress, and no pod is looked after, so the annotation is removed. On a node that can carry no shim,
/// it stays until no Shim selects the node.
fn is_unused(applied: &Applied, desired: &Desired) -> bool {
    if desired.node_problem.is_some() {
        return desired.verdicts.is_empty();
    }
    let waits = ending_pods::waiting(Some(applied), desired).is_some();
    let waits = waits || applied.ended_pods.is_some();
    let wanted = &desired.request.shims;
    wanted.is_empty() && applied.shims.is_empty() && applied.attempts == 0 && !waits
}

fn summary(applied: &Applied) -> String {
    handoff::to_json(applied)
}

/// Whether Farrier may write the label `<shim>`: only between the values of runtime-class-manager, and never if a Shim selects nodes by it,
/// as a Shim that can't be read may.
fn is_bare_label_managed(node: &NodeView, shims: &[ShimView], shim: &str) -> bool {
    let selected = shims.iter().any(|other| {
        other.spec.as_ref().map_or(true, |spec| {
            let selector = spec.node_selector.as_ref();
            selector.is_some_and(|selector| selector.contains_key(shim))
        })
    });
    let words = ["pending", "provisioned", "failed", "uninstall"];
    !selected
        && node
            .labels
            .get(shim)
            .is_none_or(|value| words.contains(&value.as_str()))
}

/// The differences only.
fn changed(
    wanted: BTreeMap<String, Option<String>>,
    there: &BTreeMap<String, String>,
) -> BTreeMap<String, Option<String>> {
    wanted
        .into_iter()
        .filter(|(key, value)| there.get(key) != value.as_ref())
        .collect()
}
