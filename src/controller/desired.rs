//! Which Shims a node should carry, and what that means for it: Shim objects become one request. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::observed::{Applied, NodeView, ShimView};
use crate::api::{ShimSpec, is_label_name};
use crate::handoff::{OptionValue, Owner, ProvisionRequest, ShimRequest};
use crate::names;

/// Name prefix of the Shims that come with the chart: a user's own beat them to a handler.
const DEFAULT_PREFIX: &str = "default-";

/// All annotations of an object together may take 256 KiB (Kubernetes, `ValidateAnnotationsSize`); a node's set of Shims stays
/// below half of it, in the Job that carries it and in the summary that is kept of it.
const LARGEST_SET: usize = 128 * 1024;

/// What the summary keeps of a Shim beside its request: a reason, a digest, the handlers once more.
const SUMMARY_OF_ONE: usize = 1024;

/// What one Shim means for one node that wants it.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The node should carry this.
    Wanted(ShimRequest),
    /// The node should go on carrying this though the Shim as written can't be had, for the reason given.
    Kept(ShimRequest, String),
    /// It can't be had, for the reason given, and the node has none of it.
    Impossible(String),
    /// All its handlers belong to another Shim that the node wants too: its name.
    Shadowed(String),
    /// Nothing is to be done yet or any more: it is paused, or not held by our finalizer yet.
    Resting,
}

impl Verdict {
    /// What the request to the node holds of it.
    #[must_use]
    pub fn request(&self) -> Option<&ShimRequest> {
        match self {
            Self::Wanted(request) | Self::Kept(request, _) => Some(request),
            Self::Impossible(_) | Self::Shadowed(_) | Self::Resting => None,
        }
    }
}

/// The Shims that a node wants, by name, and the handlers that one lost to another.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Desired {
    /// One verdict for each Shim that selects the node.
    pub verdicts: BTreeMap<String, Verdict>,
    /// `(loser, handler, winner)` for each handler that two of them want.
    pub lost: Vec<(String, String, String)>,
    /// Shims of those that the node asked for by KWasm's annotation.
    pub annotated: BTreeSet<String>,
}

impl Desired {
    /// What `node` should carry of `shims`, given what it carries.
    #[must_use]
    pub fn new(
        node: &NodeView,
        applied: Option<&Applied>,
        shims: &[ShimView],
        auto_provision: bool,
    ) -> Self {
        let mut desired = Self::default();
        let mut wanting: Vec<&ShimView> = shims
            .iter()
            .filter(|shim| selects(shim, node, applied, auto_provision))
            .collect();
        wanting.sort_by_key(|shim| precedence(shim));
        let mut owners: BTreeMap<String, String> = BTreeMap::new();
        let mut room = LARGEST_SET;
        for shim in wanting {
            let kept = kept(applied, shim).cloned();
            let mut verdict = desired.verdict(shim, node, kept, &owners);
            if let Some(request) = verdict.request() {
                match room.checked_sub(size(request) + SUMMARY_OF_ONE) {
                    Some(rest) => room = rest,
                    None => verdict = Verdict::Impossible(TOO_MUCH.to_owned()),
                }
            }
            for handler in verdict
                .request()
                .into_iter()
                .flat_map(|request| &request.handlers)
            {
                owners.insert(handler.clone(), shim.name.clone());
            }
            if by_annotation(shim) {
                desired.annotated.insert(shim.name.clone());
            }
            desired.verdicts.insert(shim.name.clone(), verdict);
        }
        desired
    }

    fn verdict(
        &mut self,
        shim: &ShimView,
        node: &NodeView,
        kept: Option<ShimRequest>,
        owners: &BTreeMap<String, String>,
    ) -> Verdict {
        // A node that has not said what it is yet is no reason to change it.
        let unknown = node.os.is_empty() || node.arch.is_empty();
        let resolved = match (&shim.spec, kept.clone()) {
            (Ok(spec), Some(kept)) if spec.paused || unknown => Ok(kept),
            (Ok(spec), None) if spec.paused || unknown || !shim.held => return Verdict::Resting,
            (Ok(spec), _) => resolve(&shim.name, spec, node),
            (Err(_), Some(kept)) => Ok(kept),
            (Err(_), None) => return Verdict::Resting,
        };
        let (mut request, reason) = match (resolved, kept) {
            (Ok(request), _) => (request, None),
            (Err(reason), Some(kept)) => (kept, Some(reason)),
            (Err(reason), None) => return Verdict::Impossible(reason),
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
        match (request.handlers.is_empty(), winner, reason) {
            (true, Some(winner), _) => Verdict::Shadowed(winner),
            (_, _, Some(reason)) => Verdict::Kept(request, reason),
            (_, _, None) => Verdict::Wanted(request),
        }
    }

    /// The one request that the node gets.
    #[must_use]
    pub fn request(&self, node: &NodeView) -> ProvisionRequest {
        let shims = self
            .verdicts
            .values()
            .filter_map(Verdict::request)
            .cloned()
            .collect();
        ProvisionRequest::new(Owner::Cluster, node.uid.clone(), shims, Vec::new())
    }
}

const TOO_MUCH: &str = "the node's Shims together are too much for one Job; let fewer Shims select the node, or shorten their options";

/// How many bytes a request takes on its way.
fn size(request: &ShimRequest) -> usize {
    // Maps here have string keys and no type can refuse, so this can't fail.
    serde_json::to_string(request).map_or(LARGEST_SET, |text| text.len())
}

/// The request of `shim` that was fulfilled last.
fn kept<'a>(applied: Option<&'a Applied>, shim: &ShimView) -> Option<&'a ShimRequest> {
    applied?.shims.get(&shim.name)?.request.as_ref()
}

/// A user's Shim beats a default one, then the older one wins; the name decides between twins.
#[must_use]
pub fn precedence(shim: &ShimView) -> (bool, jiff::Timestamp, String) {
    (
        shim.name.starts_with(DEFAULT_PREFIX),
        shim.created,
        shim.name.clone(),
    )
}

/// Whether the Shim asks for KWasm's annotation.
fn by_annotation(shim: &ShimView) -> bool {
    shim.spec.as_ref().is_ok_and(|spec| {
        let selector = spec.annotation_selector.as_ref();
        selector.is_some_and(|selector| selector.contains_key(names::KWASM_NODE_ANNOTATION))
    })
}

/// Whether `node` should carry `shim`. One that can't be read stays where it is.
fn selects(
    shim: &ShimView,
    node: &NodeView,
    applied: Option<&Applied>,
    auto_provision: bool,
) -> bool {
    if shim.deleting || node.deleting {
        return false;
    }
    let Ok(spec) = &shim.spec else {
        return kept(applied, shim).is_some();
    };
    let asked_for = |key: &str| auto_provision && key == names::KWASM_NODE_ANNOTATION;
    let mut labels = spec.node_selector.iter().flatten();
    let mut annotations = spec.annotation_selector.iter().flatten();
    labels.all(|(key, value)| node.labels.get(key) == Some(value))
        && annotations
            .all(|(key, value)| node.annotations.get(key) == Some(value) || asked_for(key))
}

/// The request for the Shim `name` on the platform of `node`, or why there is none.
fn resolve(name: &str, spec: &ShimSpec, node: &NodeView) -> Result<ShimRequest, String> {
    if !is_label_name(name) {
        return Err(format!(
            "the name {name:?} can't be a node label; use at most 63 characters"
        ));
    }
    let artifact = spec
        .artifact(&node.os, &node.arch)
        .map_err(|error| error.to_string())?;
    let handlers = spec.handlers().map_err(|error| error.to_string())?;
    let options = spec.containerd_runtime_options.iter().flatten();
    Ok(ShimRequest {
        name: name.to_owned(),
        handlers,
        location: artifact.location,
        sha256: artifact.sha256,
        binary_sha256: artifact.binary_sha256,
        binary: spec.fetch_strategy.binary.clone(),
        options: options
            .map(|(key, value)| (key.clone(), OptionValue::from_text(value)))
            .collect(),
    })
}
