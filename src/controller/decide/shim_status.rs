//! The decision about one Shim: its finalizer, its RuntimeClasses, its status and Events. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::event::{EventSpec, LONGEST_NOTE};
use super::runtime_classes;
use super::types::{RuntimeClassPlan, RuntimeClassStep, Tally};
use crate::api::{FirstBinary, MOST_BINARIES, ServedBinary, ShimStatus};
use crate::controller::cluster::shim_view::ShimView;
use crate::handoff::{Problem, elide, printable_up_to};
use crate::names::reasons;

/// Number of nodes that a condition names; the number of further nodes follows.
const NODES_NAMED: usize = 5;

/// Longest message of a condition, in bytes, so that people can read it. Kubernetes allows 32,768.
const LONGEST_MESSAGE: usize = 2_000;

/// Longest answer of the API server about a RuntimeClass of others in a condition, in bytes.
const LONGEST_REFUSAL: usize = 400;

/// What to do about one Shim, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct ShimPlan {
    /// What to do about Farrier's finalizer.
    pub finalizer: Finalizer,
    /// What to do about its RuntimeClasses.
    pub runtime_classes: Vec<RuntimeClassStep>,
    /// The status to write, if it differs from the present status.
    pub status: Option<ShimStatus>,
    /// The Events to publish.
    pub events: Vec<EventSpec>,
}

impl ShimPlan {
    /// The plan that adds the finalizer and does nothing else.
    #[must_use]
    pub fn finalizer_only() -> Self {
        Self {
            finalizer: Finalizer::Add,
            ..Self::default()
        }
    }

    /// The plan without the writes to these targets.
    #[must_use]
    pub fn without(mut self, targets: &BTreeSet<String>) -> Self {
        let steps = &mut self.runtime_classes;
        steps.retain(|step| !targets.contains(&step.target()));
        if self.finalizer == Finalizer::Add && targets.contains(Finalizer::TARGET) {
            self.finalizer = Finalizer::Keep;
        }
        self
    }
}

/// Whether the Shim is to get Farrier's finalizer.
#[must_use]
pub fn needs_finalizer(shim: &ShimView) -> bool {
    !shim.deleting && !shim.has_finalizer
}

/// What to do about Farrier's finalizer.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Finalizer {
    /// Nothing.
    #[default]
    Keep,
    /// Add it, before any node is changed.
    Add,
    /// Remove it: no node carries the Shim any more.
    Release,
}

impl Finalizer {
    /// The finalizer as the target of a write, beside [the RuntimeClasses](super::types::RuntimeClassStep::target).
    pub const TARGET: &str = "the finalizer";
}

/// Everything that a decision about one Shim depends on.
#[derive(Debug)]
pub struct ObservedShim<'a> {
    /// The Shim.
    pub shim: &'a ShimView,
    /// All Shims.
    pub shims: &'a [ShimView],
    /// Its progress on all nodes.
    pub tally: &'a Tally,
    /// Its binaries on the first node of each platform, as far as its spec has no SHA-256 for them.
    pub first_binaries: &'a [FirstBinary],
    /// Every RuntimeClass.
    pub classes: &'a [&'a RuntimeClass],
    /// Why the API server rejected the last write for it.
    pub rejected: Option<&'a Problem>,
    /// The current time.
    pub now: Timestamp,
}

/// Decides what to do about one Shim.
#[must_use]
pub fn decide(seen: &ObservedShim<'_>) -> ShimPlan {
    let ObservedShim { shim, tally, .. } = *seen;
    let mut classes = runtime_classes::decide(shim, seen.shims, seen.classes, tally.ready > 0);
    let (refused, rejected) = match seen.rejected {
        Some(problem) if is_of_others(&classes, problem) => (Some(problem), None),
        rejected => (None, rejected.cloned()),
    };
    let unusable = match &shim.spec {
        Ok(_) => rejected,
        Err(error) => Some(Problem::with_help(
            format!("failed to read the Shim: {error}"),
            "upgrade Farrier, or write the Shim for this release",
        )),
    };
    let finalizer = match (shim.deleting, shim.has_finalizer || shim.has_rcm_finalizer) {
        (false, _) if needs_finalizer(shim) => Finalizer::Add,
        (true, true) if shim.forced => Finalizer::Release,
        // An adopted RuntimeClass is returned first, unless the API server refuses that.
        (true, true) if tally.carried == 0 && (!classes.returns || seen.rejected.is_some()) => {
            Finalizer::Release
        }
        (_, _) => Finalizer::Keep,
    };
    // The status of such a Shim can't be read either; a fixed time makes every write of it equal.
    let now = if shim.spec.is_ok() {
        seen.now
    } else {
        shim.created
    };
    let status = ShimStatus {
        first_binaries: first_binaries(shim, seen.first_binaries),
        ..status(shim, tally, unusable.as_ref(), &classes, refused, now)
    };
    // The finalizer is set on the version that was read. The status follows with the next decision, unless it has to tell that the API
    // server rejects a write: that of the finalizer may be it.
    let is_accepted = seen.rejected.is_none();
    let keep_status =
        finalizer != Finalizer::Keep && is_accepted || shim.status.as_ref() == Some(&status);
    ShimPlan {
        events: if keep_status {
            Vec::new()
        } else {
            events(shim.status.as_ref(), &status)
        },
        finalizer,
        runtime_classes: std::mem::take(&mut classes.steps),
        status: (!keep_status).then_some(status),
    }
}

/// The Events for a status: for conditions that now hold or have another reason, and one that takes back the last failure where none of
/// them does.
fn events(before: Option<&ShimStatus>, now: &ShimStatus) -> Vec<EventSpec> {
    let reason = |kind: &str| {
        let conditions = before.into_iter().flat_map(|status| &status.conditions);
        let mut named = conditions.filter(|condition| condition.type_ == kind);
        named.next().map(|condition| condition.reason.as_str())
    };
    let changed = now.conditions.iter().filter(|condition| {
        let is_reported = match condition.type_.as_str() {
            reasons::DEGRADED => condition.status == "True",
            reasons::PROGRESSING => {
                [reasons::HALTED, reasons::WAITING_FOR_PODS].contains(&condition.reason.as_str())
            }
            _ => condition.reason == reasons::PROVISIONED,
        };
        is_reported && reason(&condition.type_) != Some(condition.reason.as_str())
    });
    let event = |condition: &Condition| EventSpec {
        warning: ![
            reasons::WAITING_FOR_PODS,
            reasons::PROVISIONED,
            reasons::AS_EXPECTED,
        ]
        .contains(&condition.reason.as_str()),
        reason: condition.reason.clone(),
        note: printable_up_to(&condition.message, LONGEST_NOTE),
    };
    let mut events: Vec<EventSpec> = changed.map(event).collect();
    let mended = now.conditions.iter().find(|condition| {
        condition.type_ == reasons::DEGRADED
            && condition.reason == reasons::AS_EXPECTED
            && reason(reasons::DEGRADED).is_some_and(|before| before != reasons::AS_EXPECTED)
    });
    if events.is_empty() {
        events.extend(mended.map(event));
    }
    events
}

fn status(
    shim: &ShimView,
    tally: &Tally,
    unusable: Option<&Problem>,
    classes: &RuntimeClassPlan,
    refused: Option<&Problem>,
    now: Timestamp,
) -> ShimStatus {
    let failed = tally.failures.len();
    let problems = classes.conflicts.iter();
    let problems = problems.chain(unusable).map(Problem::sentence);
    let conflicts: Vec<String> = tally.lost.keys().cloned().chain(problems).collect();
    let conflict = unusable.map_or(reasons::CONFLICT, |_| reasons::UNUSABLE);
    let degraded = match (failed, conflicts.is_empty()) {
        (0, true) => (false, reasons::AS_EXPECTED, "no node failed".to_owned()),
        (0, false) => (true, conflict, conflicts.join("; ")),
        (_, _) => (true, reasons::PROVISION_FAILED, failures(tally, &conflicts)),
    };
    let mut progressing = progressing(shim, tally);
    let ready = if failed == 0 && !conflicts.is_empty() && !shim.deleting {
        let message = format!("{}; {}", counts(tally), conflicts.join("; "));
        Some((false, conflict, message))
    } else {
        let notes = notes(classes, refused);
        let ready = ready(shim, tally, classes);
        if ready.is_none() {
            progressing.2.push_str(&notes);
        }
        ready.map(|(is_ready, reason, message)| (is_ready, reason, message + &notes))
    };
    let state = state(shim, ready.as_ref(), &progressing);
    let conditions = [
        (reasons::READY, ready),
        (reasons::PROGRESSING, Some(progressing)),
        (reasons::DEGRADED, Some(degraded)),
    ];
    ShimStatus {
        conditions: conditions
            .into_iter()
            .filter_map(|(kind, state)| Some(condition(shim, kind, state?, now)))
            .collect(),
        state: Some(state.to_owned()),
        nodes: count(tally.nodes()),
        nodes_ready: count(tally.ready),
        nodes_pending: count(tally.underway()),
        nodes_failed: count(failed),
        observed_generation: shim.generation,
        binaries: binaries(tally),
        first_binaries: None,
    }
}

/// Status, reason and message of a condition.
type State = (bool, &'static str, String);

/// The state of the condition Ready of a Shim without conflicts. None while the Shim selects no node: if it were true, `kubectl wait` would
/// end before the first node is selected, and if it were false, tools that wait for all objects of a release would wait for ever.
fn ready(shim: &ShimView, tally: &Tally, classes: &RuntimeClassPlan) -> Option<State> {
    let withdrawn = &classes.withdrawn;
    let nodes = tally.nodes();
    let counts = counts(tally);
    let (is_ready, reason) = match (shim.deleting, nodes) {
        (true, _) => {
            let mut message = "the Shim is being deleted".to_owned();
            if !withdrawn.is_empty() {
                let names = withdrawn.join(" or ");
                message = format!(
                    "{message}, and its RuntimeClasses are deleted first: new pods with the runtimeClassName {names} are refused as \"not found\""
                );
            }
            return Some((false, reasons::REMOVING, message));
        }
        (false, 0) if tally.unsupported.is_empty() => return None,
        (false, 0) => (false, reasons::UNSUPPORTED),
        (false, _) if tally.ready == nodes && !classes.is_held_back => (true, reasons::PROVISIONED),
        (false, _) if !tally.failures.is_empty() => (false, reasons::PROVISION_FAILED),
        (false, _) if is_paused(shim) => {
            let classes = if classes.is_held_back {
                ": its RuntimeClasses are not changed"
            } else {
                ""
            };
            let message = format!("{counts}; spec.paused is true{classes}");
            return Some((false, reasons::PAUSED, message));
        }
        (false, _) => match waits_for(tally) {
            Some(reasons::WAITING_FOR_PODS) => {
                let pods = named(&tally.waiting_for_pods).join("; ");
                let message = format!("{counts}; waiting for pods: {pods}");
                return Some((false, reasons::WAITING_FOR_PODS, message));
            }
            Some(reason) => (false, reason),
            None => (false, reasons::PROVISIONING),
        },
    };
    Some((is_ready, reason, counts))
}

/// Whether the API server has refused to let Farrier change a RuntimeClass of others.
fn is_of_others(classes: &RuntimeClassPlan, rejected: &Problem) -> bool {
    let mut names = classes.unrestricted.iter();
    names.any(|name| {
        let named = format!("RuntimeClass {name}:");
        rejected.message.contains(&named)
    })
}

/// What is to be known about RuntimeClasses of others that have a handler of the Shim. They are no reason for the Shim not to be ready.
fn notes(classes: &RuntimeClassPlan, refused: Option<&Problem>) -> String {
    let mut notes = Vec::new();
    let mut add = |names: &[String], text: &str| {
        if !names.is_empty() {
            notes.push(format!("; RuntimeClass {}: {text}", names.join(", ")));
        }
    };
    add(
        &classes.adopted,
        "it belongs to others, so Farrier adds only the node selector of the handler, and neither tolerations nor overhead",
    );
    let refusal = refused.map_or(String::new(), |problem| {
        let cause = elide(&problem.message, LONGEST_REFUSAL);
        format!(" ({cause}. List the handler in admissionPolicies.adoptableHandlers of the chart)")
    });
    add(
        &classes.unrestricted,
        &format!(
            "it belongs to others and has no node selector of the handler, so its pods may be scheduled to nodes where they do not start{refusal}"
        ),
    );
    add(
        &classes.replaceable,
        "if it is deleted, running pods stay, and Farrier creates its own",
    );
    if classes.from_k3s {
        let again = "; k3s creates its RuntimeClasses again at each start, unless it is started with --disable=runtimes";
        notes.push(again.to_owned());
    }
    notes.concat()
}

/// The state of the Shim in one word.
fn state(shim: &ShimView, ready: Option<&State>, progressing: &State) -> &'static str {
    match ready {
        None if is_paused(shim) => reasons::PAUSED,
        None => reasons::NO_NODES,
        Some((_, reasons::PROVISION_FAILED, _)) if progressing.1 == reasons::HALTED => {
            reasons::HALTED
        }
        Some((true, _, _)) if is_paused(shim) => reasons::PAUSED,
        Some((true, _, _)) => reasons::READY,
        Some((false, reason, _)) => reason,
    }
}

fn is_paused(shim: &ShimView) -> bool {
    shim.spec.as_ref().is_ok_and(|spec| spec.paused)
}

/// The reason if every node that is left waits for the end of pods or for a change of its own state.
fn waits_for(tally: &Tally) -> Option<&'static str> {
    match (
        tally.pending + tally.waiting,
        tally.waiting_for_pods.len(),
        tally.waiting_for_nodes.len(),
    ) {
        (1.., _, _) | (0, 0, 0) => None,
        (0, 1.., _) => Some(reasons::WAITING_FOR_PODS),
        (0, 0, 1..) => Some(reasons::WAITING_FOR_NODES),
    }
}

/// How many nodes serve the Shim as specified, and what is said about the others.
fn counts(tally: &Tally) -> String {
    let (ready, nodes) = (tally.ready, tally.nodes());
    let mut counts = format!("{ready} of {nodes} nodes serve the Shim as specified");
    if let Some(waiting) = waiting_for_nodes(tally) {
        counts = format!("{counts}; {waiting}");
    }
    if !tally.unsupported.is_empty() {
        let unsupported = named(&tally.unsupported).join("; ");
        counts = format!("{counts}; unsupported nodes: {unsupported}");
    }
    counts
}

/// The nodes that no Job may change now: `1 waits: n2 is cordoned`.
fn waiting_for_nodes(tally: &Tally) -> Option<String> {
    let nodes = &tally.waiting_for_nodes;
    let wait = match nodes.len() {
        0 => return None,
        1 => "1 waits".to_owned(),
        more => format!("{more} wait"),
    };
    let states = nodes
        .iter()
        .map(|(node, state)| format!("{node} is {state}"));
    Some(format!(
        "{wait}: {}",
        first_of(states, nodes.len()).join("; ")
    ))
}

/// The state of the condition Progressing.
fn progressing(shim: &ShimView, tally: &Tally) -> State {
    let halted = tally.halted_by("").filter(|_| tally.waiting > 0);
    let nodes = tally.nodes();
    let waiting = waiting_for_nodes(tally).map_or(String::new(), |waiting| format!("; {waiting}"));
    match (
        shim.deleting || !tally.removing.is_empty(),
        is_paused(shim),
        tally.underway(),
    ) {
        (false, false, _) if let Some((node, reason)) = halted => (
            false,
            reasons::HALTED,
            format!(
                "the rollout is halted because node {node} failed, {} nodes wait: {reason}",
                tally.waiting
            ),
        ),
        (true, _, _) => (true, reasons::REMOVING, removing(&tally.removing)),
        (false, true, _) => (
            false,
            reasons::PAUSED,
            "spec.paused is true: no node is changed".to_owned(),
        ),
        (false, false, 0) if nodes == 0 && tally.unsupported.is_empty() => {
            let message = match tally.lost.values().max() {
                // The condition Degraded names the Shims.
                Some(1) => "another Shim has the handlers of the only node that the Shim selects"
                    .to_owned(),
                Some(nodes) => {
                    format!(
                        "other Shims have the handlers of all {nodes} nodes that the Shim selects"
                    )
                }
                None => selects_no_node(shim),
            };
            (false, reasons::NO_NODES, message)
        }
        (false, false, 0) => (false, reasons::AS_EXPECTED, counts(tally)),
        (false, false, underway) => match waits_for(tally) {
            Some(reasons::WAITING_FOR_PODS) => (
                false,
                reasons::WAITING_FOR_PODS,
                named(&tally.waiting_for_pods).join("; ") + &waiting,
            ),
            Some(reason) => (false, reason, counts(tally)),
            None => {
                let active = underway - tally.waiting_for_nodes.len();
                let fetching = match tally.fetching {
                    0 => String::new(),
                    fetching => format!(" ({fetching} fetching the artifact)"),
                };
                let message = match tally.waiting {
                    0 => format!("{active} of {nodes} nodes are in progress{fetching}"),
                    turn => format!(
                        "{} of {nodes} nodes are in progress{fetching}, {turn} wait for their turn",
                        tally.pending
                    ),
                };
                (true, reasons::PROVISIONING, message + &waiting)
            }
        },
    }
}

/// The message of a Shim without nodes, with its selectors.
fn selects_no_node(shim: &ShimView) -> String {
    let listed = |what: &str, pairs: Option<&BTreeMap<String, String>>| {
        let pairs = pairs.filter(|pairs| !pairs.is_empty())?.iter();
        let pairs: Vec<String> = pairs.map(|(key, value)| format!("{key}={value}")).collect();
        Some(format!("the {what} {}", pairs.join(", ")))
    };
    let spec = shim.spec.as_ref().ok();
    let labels = spec.and_then(|spec| listed("label", spec.node_selector.as_ref()));
    let annotations = spec.and_then(|spec| listed("annotation", spec.annotation_selector.as_ref()));
    let selectors: Vec<String> = labels.into_iter().chain(annotations).collect();
    if selectors.is_empty() {
        return "the Shim selects no node".to_owned();
    }
    format!(
        "the Shim selects no node: no node has {}",
        selectors.join(" and ")
    )
}

/// The binaries for the status. An empty list overwrites a list, and a Shim that can't be read keeps what it has.
fn first_binaries(shim: &ShimView, now: &[FirstBinary]) -> Option<Vec<FirstBinary>> {
    let before = shim.status.as_ref();
    let has_some = before.is_some_and(|status| status.first_binaries.is_some());
    let is_due = shim.spec.is_ok() && (has_some || !now.is_empty());
    is_due.then(|| now.to_vec())
}

/// The binaries that nodes serve, that of most nodes first.
fn binaries(tally: &Tally) -> Vec<ServedBinary> {
    let mut binaries: Vec<_> = tally.binaries.iter().collect();
    // A stable sort: of equally many nodes, the order of releases and digests decides.
    binaries.sort_by_key(|(_, nodes)| Reverse(**nodes));
    let served = binaries.into_iter().map(|(binary, nodes)| ServedBinary {
        release: binary.release.clone(),
        sha256: binary.sha256.to_string(),
        nodes: count(*nodes),
    });
    served.take(MOST_BINARIES).collect()
}

fn removing(nodes: &BTreeMap<String, Option<String>>) -> String {
    if nodes.is_empty() {
        return "no node carries the Shim any more".to_owned();
    }
    format!(
        "the Shim is still on these nodes: {}",
        named(nodes).join("; ")
    )
}

fn failures(tally: &Tally, conflicts: &[String]) -> String {
    [&named(&tally.failures), conflicts].concat().join("; ")
}

/// The first nodes with their reasons, and the number of further nodes.
fn named<R: Clone + Into<Option<String>>>(nodes: &BTreeMap<String, R>) -> Vec<String> {
    let parts = nodes
        .iter()
        .map(|(node, reason)| match reason.clone().into() {
            Some(reason) => format!("{node}: {reason}"),
            None => node.clone(),
        });
    first_of(parts, nodes.len())
}

/// The first of so many sentences about nodes, and the number of further nodes.
fn first_of(nodes: impl Iterator<Item = String>, number: usize) -> Vec<String> {
    let mut parts: Vec<String> = nodes.take(NODES_NAMED).collect();
    if number > NODES_NAMED {
        parts.push(format!("and {} more nodes", number - NODES_NAMED));
    }
    parts
}

/// The condition. It keeps its time while its status stays.
fn condition(
    shim: &ShimView,
    kind: &str,
    (is_true, reason, message): (bool, &str, String),
    now: Timestamp,
) -> Condition {
    let status = if is_true { "True" } else { "False" };
    let before = shim
        .status
        .iter()
        .flat_map(|status| &status.conditions)
        .find(|condition| condition.type_ == kind && condition.status == status);
    // The API server stores whole seconds; a time with a fraction would never compare equal.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: printable_up_to(&message, LONGEST_MESSAGE),
        observed_generation: shim.generation,
        last_transition_time: before.map_or(Time(now), |condition| {
            condition.last_transition_time.clone()
        }),
    }
}

fn count(nodes: usize) -> i32 {
    i32::try_from(nodes).unwrap_or(i32::MAX)
}
