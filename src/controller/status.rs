//! What to do about one Shim object: its finalizer, its RuntimeClasses and its status. Pure.

use jiff::Timestamp;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::desired::{Desired, Verdict};
use super::labels;
use super::observed::{NodeView, ShimView};
use super::plan::cut;
use super::runtime_class;
use crate::api::ShimStatus;
use crate::names::{self, Progress, reasons};

/// Failing nodes that a condition names one by one; the count of the others follows.
const NODES_NAMED: usize = 5;

/// A condition's message may take 32,768 bytes; people read less.
const LONGEST_MESSAGE: usize = 2_000;

/// What to do about one Shim, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct ShimPlan {
    /// What to do about our finalizer.
    pub finalizer: Finalizer,
    /// What to do about its RuntimeClasses.
    pub runtime_classes: Vec<runtime_class::Step>,
    /// The status to write, if it differs from what is there.
    pub status: Option<ShimStatus>,
}

/// What to do about our finalizer.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Finalizer {
    /// It is as it should be.
    #[default]
    Keep,
    /// Set it, before any node is touched.
    Add,
    /// Let the Shim go: no node carries it any more.
    Release,
}

/// What the nodes say of one Shim.
#[derive(Debug, Default)]
struct Tally {
    ready: usize,
    pending: usize,
    removing: usize,
    failures: Vec<String>,
    lost: std::collections::BTreeSet<String>,
}

/// Decides what to do about the Shim `shim` of `shims`.
#[must_use]
pub fn decide(
    shim: &ShimView,
    shims: &[ShimView],
    nodes: &[NodeView],
    classes: &[&RuntimeClass],
    refused: Option<&str>,
    auto_provision: bool,
    now: Timestamp,
) -> ShimPlan {
    let (runtime_classes, foreign) = runtime_class::decide(shim, classes);
    let unusable = match &shim.spec {
        Ok(_) => refused.map(str::to_owned),
        Err(error) => Some(format!(
            "this release can't read the Shim: {error}; upgrade Farrier, or write the Shim as its release does"
        )),
    };
    let finalizer = match (shim.deleting, shim.held) {
        (false, false) => Finalizer::Add,
        (true, true) if shim.forced || nodes.iter().all(|node| !carries(node, shim)) => {
            Finalizer::Release
        }
        (_, _) => Finalizer::Keep,
    };
    let tally = tally(shim, shims, nodes, auto_provision);
    // The status of such a Shim can't be read either: a time that stays makes every write of it the same.
    let now = if shim.spec.is_ok() { now } else { shim.created };
    let status = status(shim, &tally, unusable.as_deref(), &foreign, now);
    // The finalizer is set on the version that was decided on; the status follows in the decision after.
    let said = finalizer != Finalizer::Keep || shim.status.as_ref() == Some(&status);
    ShimPlan {
        finalizer,
        runtime_classes,
        status: (!said).then_some(status),
    }
}

/// Whether anything on the node object tells of the Shim.
fn carries(node: &NodeView, shim: &ShimView) -> bool {
    let labelled = node
        .labelled()
        .any(|(name, progress)| name == shim.name && progress != Progress::Failed);
    // What failed before anything was asked of the host is a label only.
    labelled
        || node.labels.contains_key(&names::shim_label(&shim.name)) && node.applied().is_some()
        || node
            .applied()
            .is_some_and(|applied| applied.shims.contains_key(&shim.name))
}

fn tally(shim: &ShimView, shims: &[ShimView], nodes: &[NodeView], auto_provision: bool) -> Tally {
    let mut tally = Tally::default();
    for node in nodes {
        let applied = node.applied();
        let desired = Desired::new(node, applied.as_ref(), shims, auto_provision);
        for (_, handler, winner) in desired
            .lost
            .iter()
            .filter(|(loser, _, _)| *loser == shim.name)
        {
            tally.lost.insert(format!("handler {handler} belongs to Shim {winner}; rename it in spec.runtimeClass.handler or spec.handlerAliases"));
        }
        let Some(verdict) = desired.verdicts.get(&shim.name) else {
            tally.removing += usize::from(carries(node, shim));
            continue;
        };
        let digest = desired.request(node).digest();
        match (
            verdict,
            labels::progress(node, applied.as_ref(), &shim.name, verdict, &digest),
        ) {
            (_, Some((Progress::Provisioned, _))) => tally.ready += 1,
            (_, Some((Progress::Failed, reason))) => {
                tally
                    .failures
                    .push(format!("{}: {}", node.name, reason.unwrap_or_default()));
            }
            (_, Some((Progress::Pending | Progress::Removing, _))) | (Verdict::Resting, None) => {
                tally.pending += 1;
            }
            (
                Verdict::Wanted(_)
                | Verdict::Kept(..)
                | Verdict::Impossible(_)
                | Verdict::Shadowed(_),
                None,
            ) => {}
        }
    }
    tally
}

fn status(
    shim: &ShimView,
    tally: &Tally,
    unusable: Option<&str>,
    foreign: &[String],
    now: Timestamp,
) -> ShimStatus {
    let failed = tally.failures.len();
    let nodes = tally.ready + tally.pending + failed;
    let conflicts: Vec<&str> = tally
        .lost
        .iter()
        .chain(foreign)
        .map(String::as_str)
        .chain(unusable)
        .collect();
    let conflict = unusable.map_or(reasons::CONFLICT, |_| reasons::UNUSABLE);
    let counts = format!("{} of {nodes} nodes serve it", tally.ready);
    let degraded = match (failed, conflicts.is_empty()) {
        (0, true) => (false, reasons::AS_EXPECTED, "nothing failed".to_owned()),
        (0, false) => (true, conflict, conflicts.join("; ")),
        (_, _) => (
            true,
            reasons::PROVISION_FAILED,
            failures(&tally.failures, &conflicts),
        ),
    };
    let progressing = match (
        shim.deleting || tally.removing > 0,
        shim.spec.as_ref().is_ok_and(|spec| spec.paused),
        tally.pending,
    ) {
        (true, _, _) => (
            true,
            reasons::REMOVING,
            format!(
                "{} nodes still carry it and are to let it go",
                tally.removing
            ),
        ),
        (false, true, _) => (
            false,
            reasons::PAUSED,
            "spec.paused is set; nothing is changed".to_owned(),
        ),
        (false, false, 0) => (false, reasons::AS_EXPECTED, counts.clone()),
        (false, false, pending) => (
            true,
            reasons::PROVISIONING,
            format!("{pending} of {nodes} nodes are on their way"),
        ),
    };
    let ready = match (
        shim.deleting,
        nodes,
        tally.ready == nodes && conflicts.is_empty(),
    ) {
        (true, _, _) => (
            false,
            reasons::REMOVING,
            "the Shim is being deleted".to_owned(),
        ),
        (false, 0, true) => (true, reasons::NO_NODES, "no node wants it".to_owned()),
        (false, _, true) => (true, reasons::PROVISIONED, counts),
        (false, _, false) if failed > 0 => (false, reasons::PROVISION_FAILED, counts),
        (false, _, false) if !conflicts.is_empty() => (false, conflict, counts),
        (false, _, false) => (false, reasons::PROVISIONING, counts),
    };
    let conditions = [
        (reasons::READY, ready),
        (reasons::PROGRESSING, progressing),
        (reasons::DEGRADED, degraded),
    ];
    ShimStatus {
        conditions: conditions
            .into_iter()
            .map(|(kind, said)| condition(shim, kind, said, now))
            .collect(),
        nodes: count(nodes),
        nodes_ready: count(tally.ready),
        nodes_pending: count(tally.pending),
        nodes_failed: count(failed),
        observed_generation: shim.generation,
    }
}

fn failures(failures: &[String], conflicts: &[&str]) -> String {
    let mut parts: Vec<String> = failures.iter().take(NODES_NAMED).cloned().collect();
    if failures.len() > NODES_NAMED {
        parts.push(format!("and {} more nodes", failures.len() - NODES_NAMED));
    }
    parts.extend(conflicts.iter().map(|conflict| (*conflict).to_owned()));
    parts.join("; ")
}

/// The condition as it should read; it keeps its time while its status stays.
fn condition(
    shim: &ShimView,
    kind: &str,
    (holds, reason, message): (bool, &str, String),
    now: Timestamp,
) -> Condition {
    let status = if holds { "True" } else { "False" };
    let before = shim
        .status
        .iter()
        .flat_map(|status| &status.conditions)
        .find(|condition| condition.type_ == kind && condition.status == status);
    // The API server keeps whole seconds; a time with a fraction would never compare equal.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: cut(&message, LONGEST_MESSAGE),
        observed_generation: shim.generation,
        last_transition_time: before.map_or(Time(now), |condition| {
            condition.last_transition_time.clone()
        }),
    }
}

fn count(nodes: usize) -> i32 {
    i32::try_from(nodes).unwrap_or(i32::MAX)
}
