//! The desired set of a node: makes the request for the node's Job from the Shim objects. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::api::{self, ShimSpec, is_label_name};
use crate::controller::cluster::node_view::{Applied, NodeView};
use crate::controller::cluster::shim_view::ShimView;
use crate::handoff::{
    self, OnRestart, OptionValue, Owner, Problem, ProvisionRequest, Sha256Digest, ShimRequest,
};
use crate::names;

/// Name prefix of the chart's Shims. A user's own Shim takes precedence over them.
const DEFAULT_PREFIX: &str = "default-";

/// Most bytes of a node's Shims, in the Job and in the annotation of the node. All annotations of an object together may take 256 KiB
/// (Kubernetes, `ValidateAnnotationsSize`).
const LARGEST_SET: usize = 128 * 1024;

/// Bytes that the annotation needs for a Shim beside its request: a reason, a digest, the handlers.
const SUMMARY_OF_ONE: usize = 1024;

/// The decision about one Shim on one node that it selects.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The node should carry this.
    Wanted(ShimRequest),
    /// The Shim as specified is not possible for this reason, so the node keeps the last fulfilled request.
    PinnedToLastApplied(ShimRequest, Problem),
    /// The Shim as specified is not possible for this reason, and the node has none of it.
    Impossible(Problem),
    /// The Shim does not support the platform of the node, as the reason says. This is no failure.
    Unsupported(Problem),
    /// The Shim is to change and waits for the reason given; meanwhile the node keeps this request, if any.
    Waiting(Option<ShimRequest>, String),
    /// All of its handlers belong to this other Shim, which also selects the node.
    HandlersTaken(String),
    /// Nothing is to be done: the Shim is paused, or has no finalizer yet.
    Idle,
}

impl Verdict {
    /// Why the Shim as specified is not possible on this node, if so.
    #[must_use]
    pub fn fault(&self) -> Option<&Problem> {
        match self {
            Self::PinnedToLastApplied(_, problem)
            | Self::Impossible(problem)
            | Self::Unsupported(problem) => Some(problem),
            Self::Wanted(_) | Self::Waiting(..) | Self::HandlersTaken(_) | Self::Idle => None,
        }
    }

    /// The request for it, if it is part of the node's request.
    #[must_use]
    pub fn request(&self) -> Option<&ShimRequest> {
        match self {
            Self::Wanted(request)
            | Self::PinnedToLastApplied(request, _)
            | Self::Waiting(Some(request), _) => Some(request),
            Self::Waiting(None, _)
            | Self::Impossible(_)
            | Self::Unsupported(_)
            | Self::HandlersTaken(_)
            | Self::Idle => None,
        }
    }
}

/// The Shims and the settings that apply to all nodes.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Every Shim.
    pub shims: Vec<ShimView>,
    /// Nodes need no annotation.
    pub auto_provision: bool,
    /// Handlers of all Shims with their options: a node declares them when it restarts containerd anyway.
    pub reserved: BTreeMap<String, BTreeMap<String, OptionValue>>,
}

impl Cluster {
    /// For these Shims. With `reserve`, nodes declare the handlers of all Shims.
    #[must_use]
    pub fn new(shims: Vec<ShimView>, auto_provision: bool, reserve: bool) -> Self {
        let mut reserved = BTreeMap::new();
        let mut by_precedence: Vec<&ShimView> = shims.iter().filter(|_| reserve).collect();
        by_precedence.sort_by_key(|shim| precedence(shim));
        let specs = by_precedence
            .into_iter()
            .filter(|shim| !shim.deleting)
            .filter_map(|shim| shim.spec.as_ref().ok());
        let mut room = LARGEST_RESERVED;
        for spec in specs {
            for handler in spec.handlers().unwrap_or_default() {
                let options = options(spec);
                let size = handler.len() + json_size(&options);
                if size <= room && !reserved.contains_key(&handler) {
                    room -= size;
                    reserved.insert(handler, options);
                }
            }
        }
        Self {
            shims,
            auto_provision,
            reserved,
        }
    }
}

/// The Shims that a node should carry. Computed once per decision and passed on.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// The request for the node's Job.
    pub request: ProvisionRequest,
    /// Its digest.
    pub digest: Sha256Digest,
    /// One verdict for each Shim that selects the node.
    pub verdicts: BTreeMap<String, Verdict>,
    /// Requests that are to be removed and that the rollout still blocks, by Shim.
    pub staying: BTreeMap<String, ShimRequest>,
    /// `(loser, handler, winner)` for each handler that two Shims use.
    pub lost: Vec<(String, String, String)>,
    /// Shims that are not acted on, so that their requests come from the node's annotation.
    pub pinned: BTreeSet<String>,
    /// Shims that select the node by KWasm's annotation.
    pub annotated: BTreeSet<String>,
}

impl Desired {
    /// The Shims that `node` should carry. `applied` is the present state of the host. `blocked` are Shims that the rollout blocks, each
    /// with the reason.
    #[must_use]
    pub fn new(
        node: &NodeView,
        applied: Option<&Applied>,
        cluster: &Cluster,
        blocked: &BTreeMap<String, String>,
    ) -> Self {
        let nothing = ProvisionRequest::new(Owner::Cluster, node.uid.clone(), vec![], vec![]);
        let mut desired = Self {
            digest: nothing.digest(),
            request: nothing,
            verdicts: BTreeMap::new(),
            staying: BTreeMap::new(),
            lost: Vec::new(),
            pinned: BTreeSet::new(),
            annotated: BTreeSet::new(),
        };
        let mut wanting: Vec<&ShimView> = cluster
            .shims
            .iter()
            .filter(|shim| selects(shim, node, applied, cluster.auto_provision))
            .collect();
        wanting.sort_by_key(|shim| precedence(shim));
        let mut owners: BTreeMap<String, String> = BTreeMap::new();
        let mut room = LARGEST_SET;
        for shim in wanting {
            let mut verdict = desired.verdict(shim, node, applied, blocked, &owners);
            if let Some(request) = verdict.request() {
                match room.checked_sub(json_size(request) + SUMMARY_OF_ONE) {
                    Some(rest) => room = rest,
                    None => verdict = Verdict::Impossible(too_much()),
                }
            }
            let claimed = match (&verdict, &shim.spec) {
                // While the rollout blocks a Shim, the other Shim keeps the handlers.
                (Verdict::Waiting(None, _), Ok(spec)) => {
                    let mut handlers = spec.handlers().unwrap_or_default();
                    handlers.retain(|handler| !is_carried(applied, handler));
                    handlers
                }
                (verdict, _) => verdict
                    .request()
                    .map_or_else(Vec::new, |request| request.handlers.clone()),
            };
            for handler in claimed {
                owners.entry(handler).or_insert_with(|| shim.name.clone());
            }
            if by_annotation(shim) {
                desired.annotated.insert(shim.name.clone());
            }
            desired.verdicts.insert(shim.name.clone(), verdict);
        }
        desired.keep_until_turn(applied, blocked, &owners);
        let wanted = desired.verdicts.values().filter_map(Verdict::request);
        let shims = wanted.chain(desired.staying.values()).cloned().collect();
        desired.request =
            ProvisionRequest::new(Owner::Cluster, node.uid.clone(), shims, Vec::new());
        desired.digest = desired.request.digest();
        desired
    }

    /// The request and the handlers of other Shims to declare, so that these Shims later need no restart. The digest does not depend on
    /// them.
    #[must_use]
    pub fn request_with_reserved(&self, cluster: &Cluster) -> ProvisionRequest {
        let mut request = self.request.clone();
        if request.shims.is_empty() {
            return request;
        }
        let own: BTreeSet<&String> = request
            .shims
            .iter()
            .flat_map(|shim| &shim.handlers)
            .collect();
        let others = cluster
            .reserved
            .iter()
            .filter(|(handler, _)| !own.contains(handler));
        let others: BTreeMap<String, _> = others
            .map(|(handler, options)| (handler.clone(), options.clone()))
            .collect();
        // No Job waits for pods: the controller has no state for a node that waits.
        request.on_restart = OnRestart::Allow;
        request.reserve = others.keys().cloned().collect();
        request.reserve_options = others;
        request
            .reserve_options
            .retain(|_, options| !options.is_empty());
        request
    }

    /// The rollout blocks a removal like an installation, unless the removal has begun.
    fn keep_until_turn(
        &mut self,
        applied: Option<&Applied>,
        blocked: &BTreeMap<String, String>,
        owners: &BTreeMap<String, String>,
    ) {
        for (name, known) in applied.iter().flat_map(|applied| &applied.shims) {
            let begun = applied.is_some_and(|applied| !applied.tried.contains_key(name));
            let waits = blocked.contains_key(name) && !self.verdicts.contains_key(name) && !begun;
            if let Some(request) = known.request.as_ref().filter(|_| waits) {
                let mut request = request.clone();
                request
                    .handlers
                    .retain(|handler| !owners.contains_key(handler));
                if !request.handlers.is_empty() {
                    self.staying.insert(name.clone(), request);
                }
            }
        }
    }

    fn verdict(
        &mut self,
        shim: &ShimView,
        node: &NodeView,
        applied: Option<&Applied>,
        blocked: &BTreeMap<String, String>,
        owners: &BTreeMap<String, String>,
    ) -> Verdict {
        let last = last_applied(applied, shim).cloned();
        // A node that has not reported its platform yet is not changed.
        let unknown = node.os.is_empty() || node.arch.is_empty();
        let resolved = match (&shim.spec, last.clone()) {
            (Ok(spec), Some(last)) if spec.paused || unknown => {
                self.pinned.insert(shim.name.clone());
                Ok(last)
            }
            (Ok(spec), None) if spec.paused || unknown || !shim.has_finalizer => {
                return Verdict::Idle;
            }
            (Ok(spec), _) => resolve(&shim.name, spec, node),
            (Err(_), Some(last)) => {
                self.pinned.insert(shim.name.clone());
                Ok(last)
            }
            (Err(_), None) => return Verdict::Idle,
        };
        let (mut request, verdict, why): (_, fn(ShimRequest, Problem) -> Verdict, _) =
            match (resolved, last) {
                (Ok(request), last) => match (waits_for(shim, &request, applied, blocked), last) {
                    (None, _) => (
                        request,
                        |request, _| Verdict::Wanted(request),
                        Problem::new("", None),
                    ),
                    (Some(why), Some(last)) => (
                        last,
                        |last, why| Verdict::Waiting(Some(last), why.message),
                        Problem::new(why, None),
                    ),
                    (Some(why), None) => return Verdict::Waiting(None, why),
                },
                (Err(error), Some(last)) => (
                    last,
                    Verdict::PinnedToLastApplied,
                    Problem::new(&error, error.help()),
                ),
                (Err(error @ api::Error::NoPlatform { .. }), None) => {
                    return Verdict::Unsupported(Problem::new(&error, error.help()));
                }
                (Err(error), None) => {
                    return Verdict::Impossible(Problem::new(&error, error.help()));
                }
            };
        let mut winner = None;
        request
            .handlers
            .retain(|handler| match owners.get(handler) {
                None => true,
                Some(owner) => {
                    self.lost
                        .push((shim.name.clone(), handler.clone(), owner.clone()));
                    winner = Some(owner.clone());
                    false
                }
            });
        match winner {
            Some(winner) if request.handlers.is_empty() => Verdict::HandlersTaken(winner),
            Some(_) | None => verdict(request, why),
        }
    }
}

/// The reason why the rollout blocks a change of the Shim on the node; `None` if there is no change or the change has begun.
fn waits_for(
    shim: &ShimView,
    request: &ShimRequest,
    applied: Option<&Applied>,
    blocked: &BTreeMap<String, String>,
) -> Option<String> {
    let known = last_applied(applied, shim) == Some(request);
    let begun = applied
        .and_then(|applied| applied.tried.get(&shim.name))
        .is_some_and(|tried| *tried == fingerprint(request));
    blocked
        .get(&shim.name)
        .filter(|_| !known && !begun)
        .cloned()
}

/// Most bytes of reserved handlers, a quarter of the limit for annotations: one Shim with thousands of options must not prevent the Job of
/// every node.
const LARGEST_RESERVED: usize = 64 * 1024;

/// The problem of a Shim for which the Job of the node has no room.
fn too_much() -> Problem {
    Problem::with_help(
        "the Shims of the node are together too large for one Job",
        "select the node with fewer Shims, or shorten their options",
    )
}

/// The size of a part of the request in JSON, in bytes.
fn json_size(part: &impl Serialize) -> usize {
    // Serialisation of these types can't fail.
    serde_json::to_string(part).map_or(LARGEST_SET, |text| text.len())
}

/// Whether the node carries the handler of any Shim.
fn is_carried(applied: Option<&Applied>, handler: &String) -> bool {
    let shims = applied
        .into_iter()
        .flat_map(|applied| applied.shims.values());
    let mut requests = shims.filter_map(|shim| shim.request.as_ref());
    requests.any(|request| request.handlers.contains(handler))
}

/// The last fulfilled request of `shim`.
fn last_applied<'a>(applied: Option<&'a Applied>, shim: &ShimView) -> Option<&'a ShimRequest> {
    applied?.shims.get(&shim.name)?.request.as_ref()
}

/// Order of precedence: a user's Shim before a default Shim, then the older one, then by name.
#[must_use]
pub fn precedence(shim: &ShimView) -> (bool, jiff::Timestamp, String) {
    (
        shim.name.starts_with(DEFAULT_PREFIX),
        shim.created,
        shim.name.clone(),
    )
}

/// Whether the Shim selects nodes by KWasm's annotation.
fn by_annotation(shim: &ShimView) -> bool {
    shim.spec.as_ref().is_ok_and(|spec| {
        let selector = spec.annotation_selector.as_ref();
        selector.is_some_and(|selector| selector.contains_key(names::KWASM_NODE_ANNOTATION))
    })
}

/// Whether `shim` selects `node`. A Shim that can't be read or is paused stays on its nodes.
fn selects(
    shim: &ShimView,
    node: &NodeView,
    applied: Option<&Applied>,
    auto_provision: bool,
) -> bool {
    if shim.deleting || node.deleting {
        return false;
    }
    let is_kept = last_applied(applied, shim).is_some();
    let Ok(spec) = &shim.spec else {
        return is_kept;
    };
    if spec.paused && is_kept {
        return true;
    }
    let asked_for = |key: &str| auto_provision && key == names::KWASM_NODE_ANNOTATION;
    let mut labels = spec.node_selector.iter().flatten();
    let mut annotations = spec.annotation_selector.iter().flatten();
    labels.all(|(key, value)| node.labels.get(key) == Some(value))
        && annotations
            .all(|(key, value)| node.annotations.get(key) == Some(value) || asked_for(key))
}

/// The request for the Shim `name` on the platform of `node`, or why it is not possible.
fn resolve(name: &str, spec: &ShimSpec, node: &NodeView) -> Result<ShimRequest, api::Error> {
    if !is_label_name(name) {
        return Err(api::Error::Name {
            name: name.to_owned(),
        });
    }
    let handlers = spec.handlers()?;
    let artifact = spec.artifact(&node.os, &node.arch)?;
    Ok(ShimRequest {
        name: name.to_owned(),
        handlers,
        location: artifact.location,
        sha256: artifact.sha256,
        binary_sha256: artifact.binary_sha256,
        binary: spec.fetch_strategy.binary.clone(),
        options: options(spec),
        on_restart: None,
        present: None,
    })
}

fn options(spec: &ShimSpec) -> BTreeMap<String, OptionValue> {
    let options = spec.containerd_runtime_options.iter().flatten();
    options
        .map(|(key, value)| (key.clone(), OptionValue::from_text(value)))
        .collect()
}

/// Marks the binaries in the request that the node has reported, so that they are not fetched again. A Shim that only the node's annotation
/// names is never fetched: an account with access to the annotation must not choose the programs of a host.
pub fn hint(desired: &Desired, applied: &Applied, request: &mut ProvisionRequest) {
    for shim in &mut request.shims {
        let known = applied.shims.get(&shim.name);
        let placed = known.and_then(|known| known.sha256);
        let is_wanted = matches!(desired.verdicts.get(&shim.name), Some(Verdict::Wanted(_)));
        shim.present = if is_wanted && !desired.pinned.contains(&shim.name) {
            let is_well = known.is_some_and(|known| {
                known.request.as_ref() == Some(&*shim)
                    && known.reason.is_none()
                    && known.handlers.values().all(|served| *served)
            });
            placed.filter(|_| is_well)
        } else {
            placed.or(Some(Sha256Digest::from_bytes([0; 32])))
        };
    }
}

/// A short digest of a request for the annotation: 16 hexadecimal digits.
#[must_use]
pub fn fingerprint(request: &ShimRequest) -> String {
    let text = handoff::to_json(request);
    let mut digest = names::sha256_hex(text.as_bytes());
    digest.truncate(16);
    digest
}
