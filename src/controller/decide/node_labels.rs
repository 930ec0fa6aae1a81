//! What a node's labels and its annotation should say, as an edit of what they say. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::desired::{Desired, Verdict};
use super::event::EventSpec;
use super::types::{JobStep, NodeEdit, Observed, Plan};
use crate::controller::cluster::node_view::{Applied, NodeView};
use crate::controller::cluster::shim_view::ShimView;
use crate::controller::cluster::slim::Taint;
use crate::handoff;
use crate::names::{self, Progress};

/// Whether a handler is served: the report said so, of this very host, and the kubelet doesn't deny it.
fn served(node: &NodeView, applied: Option<&Applied>, shim: &str, handler: &str) -> bool {
    applied.is_some_and(|applied| {
        applied.machine_id == node.machine_id
            && applied
                .shims
                .get(shim)
                .is_some_and(|shim| shim.handlers.get(handler) == Some(&true))
    }) && node.lists(handler)
}

/// How far one Shim that the node wants has come, and why it is no further.
#[must_use]
pub fn progress(
    node: &NodeView,
    applied: Option<&Applied>,
    shim: &str,
    verdict: &Verdict,
    digest: &str,
) -> Option<(Progress, Option<String>)> {
    if let Some(reason) = verdict.fault() {
        return Some((Progress::Failed, Some(reason.to_owned())));
    }
    let request = verdict.request()?;
    let known = applied.and_then(|applied| applied.shims.get(shim));
    let fulfilled = known.is_some_and(|known| known.request.as_ref() == Some(request));
    if fulfilled
        && request
            .handlers
            .iter()
            .all(|handler| served(node, applied, shim, handler))
    {
        return Some((Progress::Provisioned, None));
    }
    // A failure is one of this desired set only; another set's says nothing of the attempt to come.
    let reason = applied
        .filter(|applied| applied.attempted == digest)
        .and_then(|applied| {
            let whole = applied.reason.as_ref()?;
            let own = known.and_then(|known| known.reason.as_ref());
            own.or((!fulfilled).then_some(whole)).cloned()
        });
    match reason {
        Some(reason) => Some((Progress::Failed, Some(reason))),
        None => Some((Progress::Pending, None)),
    }
}

/// Labels as they should be, and nothing else.
#[must_use]
pub fn settled(seen: &Observed, desired: &Desired, applied: Option<Applied>, job: JobStep) -> Plan {
    let edit = edit(
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

/// What to publish_event people where a Shim's label turns to `failed` because of how the Shim is written.
fn impossible(edit: &NodeEdit, desired: &Desired) -> Option<EventSpec> {
    let failed = Some(Progress::Failed.label().to_owned());
    let notes: Vec<String> = desired
        .verdicts
        .iter()
        .filter(|(shim, _)| edit.labels.get(&names::shim_label(shim)) == Some(&failed))
        .filter_map(|(shim, verdict)| Some(format!("shim {shim}: {}", verdict.fault()?)))
        .collect();
    (!notes.is_empty()).then(|| EventSpec::failure(&notes.join("; ")))
}

/// The edit that makes the node say what is known, if it does not already.
///
/// While the node's Job is there, so is the annotation: it tells that the Job's report has been read.
fn edit(
    node: &NodeView,
    shims: &[ShimView],
    desired: &Desired,
    applied: Option<Applied>,
    job_is_there: bool,
) -> Option<NodeEdit> {
    let digest = &desired.digest;
    let mut wanted: BTreeMap<String, Option<String>> = BTreeMap::new();
    // KWasm's label: set once all that an annotated node asked for is served, and kept while nothing else is known.
    let (mut complete, mut stays) = (!desired.annotated.is_empty(), true);
    let mut done = !node.os.is_empty();
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
            .and_then(|verdict| progress(node, applied.as_ref(), shim, verdict, digest))
        {
            Some((progress, _)) => Some(progress),
            None => leaving(node, applied.as_ref(), shim, digest).then_some(Progress::Removing),
        };
        done &= is_done(shims, shim, verdict, now);
        if desired.annotated.contains(shim) {
            let done = now == Some(Progress::Provisioned)
                || matches!(verdict, Some(Verdict::HandlersTaken(_)));
            complete &= done;
            stays &= done || still_served(node, applied.as_ref(), shim, now);
        }
        let label = names::shim_label(shim);
        // A bare label goes with ours: without ours, it was another's all along.
        let told = now.is_some() || node.labels.contains_key(&label);
        wanted.insert(label, now.map(|now| now.label().to_owned()));
        if told && bare_label_is_ours(node, shims, shim) {
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
    // What only stays until its turn to go is no longer advertised.
    for shim in desired.verdicts.values().filter_map(Verdict::request) {
        for handler in shim
            .handlers
            .iter()
            .filter(|handler| served(node, applied.as_ref(), &shim.name, handler))
        {
            wanted.insert(names::handler_label(handler), Some("true".to_owned()));
        }
    }
    // A Shim that can't be read may be one that the annotation asks for.
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
            .filter(|applied| job_is_there || !idle(applied, &desired.request.shims))
            .map(|applied| summary(&applied)),
    )]);
    let edit = NodeEdit {
        taints: done.then(|| without_startup_taint(&node.taints)).flatten(),
        labels: changed(wanted, &node.labels),
        annotations: changed(annotations, &node.annotations),
    };
    (edit != NodeEdit::default()).then_some(edit)
}

/// Whether a Shim that is on its way is served still as it was, or as somebody else's label says while no report has come: an upgrade
/// withdraws nothing, and neither does a move from KWasm. A restarting kubelet rejects running pods whose selector no longer matches.
fn still_served(
    node: &NodeView,
    applied: Option<&Applied>,
    shim: &str,
    now: Option<Progress>,
) -> bool {
    let reported = applied.filter(|applied| !applied.digest.is_empty());
    let handlers = reported
        .and_then(|applied| applied.shims.get(shim))
        .map(|known| &known.handlers);
    match (reported, handlers) {
        // What was known of another host is no reason to believe this one's label.
        (None, _) => {
            let before = node.applied();
            now == Some(Progress::Pending) && before.is_none_or(|before| before.digest.is_empty())
        }
        (Some(_), None) => false,
        (Some(_), Some(handlers)) => handlers
            .keys()
            .all(|handler| served(node, applied, shim, handler)),
    }
}

/// Whether nothing more is to come of a Shim on this node before pods may: it is served, or will never be.
fn is_done(
    shims: &[ShimView],
    shim: &str,
    verdict: Option<&Verdict>,
    now: Option<Progress>,
) -> bool {
    match verdict {
        Some(Verdict::Wanted(_)) => now == Some(Progress::Provisioned),
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

/// The taints without the one that a node starts with; nothing where it isn't there.
fn without_startup_taint(taints: &[Taint]) -> Option<Vec<Taint>> {
    let rest: Vec<Taint> = taints
        .iter()
        .filter(|taint| taint.key != names::STARTUP_TAINT)
        .cloned()
        .collect();
    (rest.len() < taints.len()).then_some(rest)
}

/// Whether the host may still carry a Shim that the node no longer wants.
fn leaving(node: &NodeView, applied: Option<&Applied>, shim: &str, digest: &str) -> bool {
    // A label without an entry in the summary speaks of a claim that no report has answered yet.
    let claimed = node.labels.contains_key(&names::shim_label(shim))
        && applied.is_none_or(|applied| applied.digest != digest);
    claimed || applied.is_some_and(|applied| applied.shims.contains_key(shim))
}

/// Nothing is wanted, nothing is left, nothing is under way: the node carries no trace.
fn idle(applied: &Applied, wanted: &[handoff::ShimRequest]) -> bool {
    wanted.is_empty() && applied.shims.is_empty() && applied.attempts == 0
}

fn summary(applied: &Applied) -> String {
    handoff::to_json(applied)
}

/// The label `<shim>` is written only between the words of runtime-class-manager, and never where a Shim selects on it, as one
/// that can't be read may.
fn bare_label_is_ours(node: &NodeView, shims: &[ShimView], shim: &str) -> bool {
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

/// Only what differs from what is there.
fn changed(
    wanted: BTreeMap<String, Option<String>>,
    there: &BTreeMap<String, String>,
) -> BTreeMap<String, Option<String>> {
    wanted
        .into_iter()
        .filter(|(key, value)| there.get(key) != value.as_ref())
        .collect()
}
