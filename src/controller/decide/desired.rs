//! The desired set of a node: makes the request for the node's Job from the Shim objects. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::support;
use crate::api::{self, FirstBinary, ShimSpec, is_label_name};
use crate::controller::cluster::node_view::{Applied, AppliedShim, NodeView};
use crate::controller::cluster::shim_view::ShimView;
use crate::handoff::{
    OnRestart, OptionValue, Owner, Problem, ProvisionRequest, RestartPolicy, Sha256Digest,
    ShimRequest,
};
use crate::names::{self, Progress};

/// Name prefix of the chart's Shims. A user's own Shim takes precedence over them.
const DEFAULT_PREFIX: &str = "default-";

/// Most bytes of a node's Shims in the Job, and of their summary in the annotation of the node. All annotations of an object together may
/// take 256 KiB (Kubernetes, `ValidateAnnotationsSize`).
const LARGEST_SET: usize = 128 * 1024;

/// Most bytes of the policies of restarts in the Job, an eighth of the limit for annotations.
const LARGEST_POLICY: usize = 32 * 1024;

/// Bytes that the annotation needs for a Shim: a reason, a digest, the handlers.
const SUMMARY_OF_ONE: usize = 1024;

/// The decision about one Shim on one node that it selects.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The node should carry this. A Shim that is not acted on is to be kept as it is.
    Wanted(ShimRequest),
    /// The Shim as specified is not possible for this reason, so the node keeps what it has.
    PinnedToLastApplied(ShimRequest, Problem),
    /// The Shim as specified is not possible for this reason, and the node has none of it.
    Impossible(Problem),
    /// The node can't carry the Shim, as the reason says. This is no failure.
    Unsupported(Problem),
    /// The Shim is to change and waits for the reason given; meanwhile the node keeps what it has, if anything.
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

    fn request_mut(&mut self) -> Option<&mut ShimRequest> {
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
    /// Every Shim is being removed, and no controller is left afterwards.
    pub uninstalling: bool,
    /// Nodes need no annotation.
    pub auto_provision: bool,
    /// Handlers of all Shims with their options: a node declares them when it restarts containerd anyway.
    pub reserved: BTreeMap<String, BTreeMap<String, OptionValue>>,
    /// What a restart of containerd may do to pods where no Shim specifies it.
    pub on_restart: OnRestart,
    /// By Shim, what a restart may do to its pods, where the Shim specifies it and counts.
    pub on_restart_by_shim: BTreeMap<String, OnRestart>,
    /// Time limit for the eviction of the pods of a node; `None` if Farrier may evict no pod.
    pub drain_timeout: Option<Duration>,
    /// Keys of the taints that a node loses when it serves its Shims, or never will.
    pub startup_taints: Vec<String>,
    /// By Shim, the binaries that the first node of each platform got, where the spec has no SHA-256.
    pub first_binaries: BTreeMap<String, Vec<FirstBinary>>,
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
        let mut cluster = Self {
            shims,
            auto_provision,
            reserved,
            ..Self::default()
        };
        let of_status = |shim: &ShimView| {
            let status = shim.status.as_ref();
            let first = status.and_then(|status| status.first_binaries.clone());
            first.map(|first| (shim.name.clone(), first))
        };
        let known: Vec<_> = cluster.shims.iter().filter_map(of_status).collect();
        for (shim, first) in known {
            for binary in first {
                cluster.add_first_binary(&shim, binary);
            }
        }
        cluster
    }

    /// With restarts of containerd that may end any pod.
    #[must_use]
    pub fn with_all_restarts(self) -> Self {
        Self {
            on_restart: OnRestart::Allow,
            on_restart_by_shim: BTreeMap::new(),
            ..self
        }
    }

    /// With what a restart of containerd may do to pods: what the Shims specify, and `default` elsewhere. `drain_timeout` is the time limit
    /// for evictions; without it, no pod is evicted.
    #[must_use]
    pub fn with_restart_policy(
        mut self,
        default: OnRestart,
        drain_timeout: Option<Duration>,
    ) -> Self {
        let of_shim = |shim: &ShimView| {
            let policy = shim.spec.as_ref().ok()?.on_restart?;
            Some((shim.name.clone(), policy))
        };
        self.on_restart_by_shim = self.shims.iter().filter_map(of_shim).collect();
        self.on_restart = default;
        self.drain_timeout = drain_timeout;
        self
    }

    /// Whether a policy lets the controller evict pods.
    #[must_use]
    pub fn may_drain(&self) -> bool {
        let mut policies = self.on_restart_by_shim.values().chain([&self.on_restart]);
        self.drain_timeout.is_some() && policies.any(|policy| *policy == OnRestart::Drain)
    }

    /// The policy for the handlers of these Shims. The strictest Shim of a handler counts, and the strictest of all where the Job has no room
    /// for the policies of so many handlers.
    fn restart_policy(&self, handlers_by_shim: &BTreeMap<String, Vec<String>>) -> RestartPolicy {
        let default = self.on_restart;
        let mut policy = RestartPolicy::from(default);
        if self.on_restart_by_shim.is_empty() {
            return policy;
        }
        for (shim, handlers) in handlers_by_shim {
            let of_shim = self.on_restart_by_shim.get(shim).copied();
            let of_shim = of_shim.unwrap_or(default);
            for handler in handlers {
                let of_handler = policy.handlers.entry(handler.clone()).or_insert(of_shim);
                *of_handler = of_shim.min(*of_handler);
            }
        }
        policy
            .handlers
            .retain(|_, of_handler| *of_handler != default);
        if json_size(&policy.handlers) > LARGEST_POLICY {
            let strictest = policy.handlers.values().min().copied();
            return strictest.unwrap_or(default).min(default).into();
        }
        policy
    }

    /// Whether this is the first binary of its platform, from the present location and file of a Shim without a SHA-256.
    #[must_use]
    pub fn is_first_binary(&self, shim: &str, first: &FirstBinary) -> bool {
        let spec = self.shims.iter().find(|it| it.name == shim);
        let spec = spec.and_then(|it| it.spec.as_ref().ok());
        let artifact = spec.and_then(|spec| spec.artifact(&first.os, &first.arch).ok());
        let is_current =
            |it: api::Artifact| it.trusts_first_node() && it.location == first.location;
        let binary = spec.map(|spec| spec.fetch_strategy.binary.as_deref().unwrap_or_default());
        let is_named = |it: &String| Some(it.as_str()) == binary;
        artifact.is_some_and(is_current)
            && first.binary.as_ref().is_none_or(is_named)
            && first.sha256.parse::<Sha256Digest>().is_ok()
            && api::platform(&first.os, &first.arch).is_some()
            && self.first_binary(shim, &first.os, &first.arch).is_none()
    }

    /// Records the first binary of a platform, if it is the first. Returns whether it is.
    pub fn add_first_binary(&mut self, shim: &str, first: FirstBinary) -> bool {
        let is_first = self.is_first_binary(shim, &first);
        // The names of platforms come from the kubelets: another spelling is no other platform.
        if is_first && let Some((os, arch)) = api::platform(&first.os, &first.arch) {
            let known = self.first_binaries.entry(shim.to_owned()).or_default();
            known.push(FirstBinary {
                os: os.to_owned(),
                arch: arch.to_owned(),
                ..first
            });
        }
        is_first
    }

    /// With the first binaries of `before`, which the status of a Shim may not have yet.
    #[must_use]
    pub fn with_first_binaries_of(mut self, before: &Self) -> Self {
        for (shim, known) in &before.first_binaries {
            for first in known {
                self.add_first_binary(shim, first.clone());
            }
        }
        self
    }

    /// SHA-256 of the binary that the first node of a platform got from the present location of the Shim.
    fn first_binary(&self, shim: &str, os: &str, arch: &str) -> Option<Sha256Digest> {
        let (os, arch) = api::platform(os, arch)?;
        let mut known = self.first_binaries.get(shim)?.iter();
        let first = known.find(|first| first.os == os && first.arch == arch)?;
        first.sha256.parse().ok()
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
    /// Shims that are to be removed and that the rollout still blocks.
    pub staying: BTreeSet<String>,
    /// `(loser, handler, winner)` for each handler that two Shims use.
    pub lost: Vec<(String, String, String)>,
    /// The handlers of each Shim that is kept as it is, as far as the node may be labelled with them.
    pub kept: BTreeMap<String, Vec<String>>,
    /// Kept Shims of whose handlers in the annotation the node may be labelled with none, so that a Job has to report them.
    pub unproven: BTreeSet<String>,
    /// Shims whose binary on the node is another one than the first node got. Their handlers are not advertised.
    pub distrusted: BTreeSet<String>,
    /// Shims that select the node by KWasm's annotation.
    pub annotated: BTreeSet<String>,
    /// By Shim, the handlers that it has on the node: those that it is to have, and those that it still has there.
    pub handlers_by_shim: BTreeMap<String, Vec<String>>,
    /// What a restart of containerd may do to pods, by handler. A Shim counts for the handlers that it has on the node.
    pub restart_policy: RestartPolicy,
    /// Why the node can carry no shim at all. It then gets no Job.
    pub node_problem: Option<Problem>,
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
            staying: BTreeSet::new(),
            lost: Vec::new(),
            kept: BTreeMap::new(),
            unproven: BTreeSet::new(),
            distrusted: BTreeSet::new(),
            annotated: BTreeSet::new(),
            handlers_by_shim: BTreeMap::new(),
            restart_policy: cluster.on_restart.into(),
            node_problem: support::node_problem(node),
        };
        let seen = Seen {
            node,
            applied,
            cluster,
            blocked,
        };
        let mut wanting: Vec<&ShimView> = cluster
            .shims
            .iter()
            .filter(|shim| selects(shim, node, applied, cluster.auto_provision))
            .collect();
        wanting.sort_by_key(|shim| precedence(shim));
        if let Some(problem) = &desired.node_problem {
            let unsupported = || Verdict::Unsupported(problem.clone());
            let names = wanting.iter().map(|shim| shim.name.clone());
            desired.verdicts = names.map(|name| (name, unsupported())).collect();
            return desired;
        }
        let too_large = too_large(&wanting, &seen);
        let mut owners: BTreeMap<String, String> = BTreeMap::new();
        for shim in wanting {
            let is_too_large = too_large.contains(shim.name.as_str());
            let verdict = desired.verdict(shim, &seen, &owners, is_too_large);
            let claimed = match (&verdict, &shim.spec) {
                // While the rollout blocks a Shim, the other Shim keeps the handlers.
                (Verdict::Waiting(None, _), Ok(spec)) => {
                    let mut handlers = spec.handlers().unwrap_or_default();
                    handlers.retain(|handler| !is_carried(applied, handler));
                    handlers
                }
                (verdict, _) => desired.handlers_of(verdict).to_vec(),
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
        for shim in &cluster.shims {
            let handlers = desired.handlers_on_node(shim, node, applied, &owners);
            if !handlers.is_empty() {
                let by_shim = &mut desired.handlers_by_shim;
                by_shim.insert(shim.name.clone(), handlers);
            }
        }
        desired.restart_policy = cluster.restart_policy(&desired.handlers_by_shim);
        let wanted = desired.verdicts.values().filter_map(Verdict::request);
        let staying = desired.staying.iter().map(ShimRequest::kept);
        let shims = wanted.cloned().chain(staying).collect();
        desired.request =
            ProvisionRequest::new(Owner::Cluster, node.uid.clone(), shims, Vec::new());
        desired.digest = desired.request.digest();
        desired
    }

    /// The handlers that a verdict wants on the node.
    #[must_use]
    pub fn handlers_of<'a>(&'a self, verdict: &'a Verdict) -> &'a [String] {
        let Some(request) = verdict.request() else {
            return &[];
        };
        let kept = self.kept.get(&request.name).filter(|_| request.keep);
        kept.unwrap_or(&request.handlers)
    }

    /// The handlers of one Shim in [`handlers_by_shim`](Self::handlers_by_shim).
    fn handlers_on_node(
        &self,
        shim: &ShimView,
        node: &NodeView,
        applied: Option<&Applied>,
        owners: &BTreeMap<String, String>,
    ) -> Vec<String> {
        let wanted = self.verdicts.get(&shim.name);
        let wanted = wanted.map_or(&[][..], |verdict| self.handlers_of(verdict));
        let known = applied.and_then(|applied| applied.shims.get(&shim.name));
        let mut handlers = known.map_or_else(Vec::new, |known| {
            advertisable(shim, node, applied, Some(known))
        });
        handlers.retain(|handler| owners.get(handler).is_none_or(|owner| *owner == shim.name));
        handlers.extend(wanted.iter().cloned());
        handlers
    }

    /// Whether the last report says that the host has exactly the desired set.
    #[must_use]
    pub fn is_fulfilled(&self, applied: &Applied) -> bool {
        self.unproven.is_empty() && applied.fulfils(&self.request.shims)
    }

    /// The request, the policy of restarts, and the handlers of other Shims to declare, so that these Shims later need no restart. The
    /// digest does not depend on these.
    #[must_use]
    pub fn request_with_reserved(&self, cluster: &Cluster) -> ProvisionRequest {
        let mut request = self.request.clone();
        request.on_restart = self.restart_policy.default;
        request.on_restart_by_handler = self.restart_policy.handlers.clone();
        if request.shims.is_empty() {
            return request;
        }
        let verdicts = self.verdicts.values();
        let own: BTreeSet<&String> = verdicts
            .flat_map(|verdict| self.handlers_of(verdict))
            .collect();
        let others = cluster
            .reserved
            .iter()
            .filter(|(handler, _)| !own.contains(handler));
        let others: BTreeMap<String, _> = others
            .map(|(handler, options)| (handler.clone(), options.clone()))
            .collect();
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
            let mut handlers = known.handlers.keys();
            let has_own = handlers.any(|handler| !owners.contains_key(handler));
            if known.fulfilled.is_some() && waits && has_own {
                self.staying.insert(name.clone());
            }
        }
    }

    fn verdict(
        &mut self,
        shim: &ShimView,
        seen: &Seen<'_>,
        owners: &BTreeMap<String, String>,
        is_too_large: bool,
    ) -> Verdict {
        let Seen {
            node,
            applied,
            blocked,
            ..
        } = *seen;
        let is_kept = is_kept(shim, node, applied);
        // A node that has not reported its platform yet is not changed.
        let unknown = node.os.is_empty() || node.arch.is_empty();
        let kept = ShimRequest::kept(&shim.name);
        let mut verdict = match (&shim.spec, is_kept) {
            (Ok(spec), true) if spec.paused || unknown => Verdict::Wanted(kept),
            (Ok(spec), false) if spec.paused || unknown || !shim.has_finalizer => {
                return Verdict::Idle;
            }
            (Ok(spec), false) if let Some(problem) = support::platform_problem(node, spec) => {
                return Verdict::Unsupported(problem);
            }
            (Ok(spec), _) => match (resolve(&shim.name, spec, seen), is_kept) {
                (Ok(_), true) if is_too_large => Verdict::PinnedToLastApplied(kept, too_much()),
                (Ok(_), false) if is_too_large => return Verdict::Impossible(too_much()),
                (Ok(request), _) => {
                    let blocked = waits_for(shim, &request, applied, blocked);
                    match (another_binary(&request, applied), blocked) {
                        (Some(problem), _) => {
                            self.distrusted.insert(shim.name.clone());
                            Verdict::PinnedToLastApplied(kept, problem)
                        }
                        (None, None) => Verdict::Wanted(request),
                        (None, Some(why)) => Verdict::Waiting(is_kept.then_some(kept), why),
                    }
                }
                (Err(error), true) => {
                    Verdict::PinnedToLastApplied(kept, Problem::new(&error, error.help()))
                }
                (Err(error), false) => {
                    return Verdict::Impossible(Problem::new(&error, error.help()));
                }
            },
            (Err(_), true) => Verdict::Wanted(kept),
            (Err(_), false) => return Verdict::Idle,
        };
        let Some(request) = verdict.request_mut() else {
            return verdict;
        };
        let mut handlers = if request.keep {
            let known = applied.and_then(|applied| applied.shims.get(&shim.name));
            advertisable(shim, node, applied, known)
        } else {
            std::mem::take(&mut request.handlers)
        };
        let before = handlers.len();
        let mut winner = None;
        handlers.retain(|handler| match owners.get(handler) {
            None => true,
            Some(owner) => {
                self.lost
                    .push((shim.name.clone(), handler.clone(), owner.clone()));
                winner = Some(owner.clone());
                false
            }
        });
        if request.keep {
            if before == 0 {
                self.unproven.insert(shim.name.clone());
            }
            self.kept.insert(shim.name.clone(), handlers.clone());
        } else {
            request.handlers.clone_from(&handlers);
        }
        match winner {
            Some(winner) if handlers.is_empty() => Verdict::HandlersTaken(winner),
            Some(_) | None => verdict,
        }
    }
}

/// Everything that a desired set depends on.
struct Seen<'a> {
    node: &'a NodeView,
    applied: Option<&'a Applied>,
    cluster: &'a Cluster,
    blocked: &'a BTreeMap<String, String>,
}

/// The problem of a node that got another binary for a request than the first node. Both fetched at the same time, so that the request of
/// neither had the digest of the other.
fn another_binary(request: &ShimRequest, applied: Option<&Applied>) -> Option<Problem> {
    let known = applied?.shims.get(&request.name)?;
    let (found, first) = (known.sha256?, request.first_binary_sha256?);
    let differs = found != first && known.fulfils(request);
    differs.then(|| {
        Problem::with_help(
            format!(
                "the binary has SHA-256 {found}, and another node got the binary with SHA-256 {first} from the same location"
            ),
            "find out which binary is the right one, and specify its SHA-256 as binarySha256 in the Shim (spec.fetchStrategy.platforms)",
        )
    })
}

/// The reason why the rollout blocks a change of the Shim on the node; `None` if there is no change or the change has begun.
fn waits_for(
    shim: &ShimView,
    request: &ShimRequest,
    applied: Option<&Applied>,
    blocked: &BTreeMap<String, String>,
) -> Option<String> {
    let known = applied.and_then(|applied| applied.shims.get(&shim.name));
    let is_there = known.is_some_and(|known| known.settles(request));
    let begun = applied
        .and_then(|applied| applied.tried.get(&shim.name))
        .is_some_and(|tried| *tried == request.fingerprint());
    blocked
        .get(&shim.name)
        .filter(|_| !is_there && !begun)
        .cloned()
}

/// The Shims for which the Job of the node has no room. First comes what the node has as specified, then what it has in another version,
/// then the order of precedence: a Shim that is too large takes no room from a Shim that is there.
fn too_large<'a>(wanting: &[&'a ShimView], seen: &Seen<'_>) -> BTreeSet<&'a str> {
    let (node, applied) = (seen.node, seen.applied);
    let specified = |shim: &&'a ShimView| {
        let spec = shim.spec.as_ref().ok().filter(|spec| !spec.paused)?;
        Some((*shim, resolve(&shim.name, spec, seen).ok()?))
    };
    let mut in_order: Vec<_> = wanting.iter().filter_map(specified).collect();
    // The sort is stable, so it keeps the order of precedence.
    in_order.sort_by_key(|(shim, request)| {
        let known = applied.and_then(|applied| applied.shims.get(&shim.name));
        let is_there = known.is_some_and(|known| known.fulfils(request));
        (!is_there, !is_kept(shim, node, applied))
    });
    // Each Shim that is kept by its name has room, whatever its specification needs.
    let size_of_kept = |shim: &ShimView| {
        if is_kept(shim, node, applied) {
            json_size(&ShimRequest::kept(&shim.name)) + SUMMARY_OF_ONE
        } else {
            0
        }
    };
    let kept: usize = wanting.iter().map(|shim| size_of_kept(shim)).sum();
    let mut room = LARGEST_SET.saturating_sub(kept);
    let mut too_large = BTreeSet::new();
    for (shim, request) in in_order {
        let size = json_size(&request) + SUMMARY_OF_ONE;
        match room.checked_sub(size.saturating_sub(size_of_kept(shim))) {
            Some(rest) => room = rest,
            None => {
                too_large.insert(shim.name.as_str());
            }
        }
    }
    too_large
}

/// Whether the node has the Shim, as far as the controller knows: the label counts beside the annotation. Otherwise whoever changes the
/// annotation would remove a Shim that is not acted on.
fn is_kept(shim: &ShimView, node: &NodeView, applied: Option<&Applied>) -> bool {
    let known = applied.and_then(|applied| applied.shims.get(&shim.name));
    let label = node.labels.get(&names::shim_label(&shim.name));
    known.is_some_and(|known| known.fulfilled.is_some())
        || label.is_some_and(|value| value == Progress::Provisioned.label())
}

/// The handlers of a Shim that is kept as it is, as far as the node may be labelled with them. The annotation alone names none: the Shim
/// specifies them, the node is labelled with them already, or the report that is read just now has them.
fn advertisable(
    shim: &ShimView,
    node: &NodeView,
    applied: Option<&Applied>,
    known: Option<&AppliedShim>,
) -> Vec<String> {
    let spec = shim.spec.as_ref().ok();
    let specified = spec.and_then(|spec| spec.handlers().ok());
    let specified = specified.unwrap_or_default();
    let handlers = known
        .into_iter()
        .flat_map(|known| known.handlers.keys().cloned());
    handlers
        .filter(|handler| {
            specified.contains(handler)
                || node.labels.contains_key(&names::handler_label(handler))
                || applied.is_some_and(|applied| applied.reported.contains(handler))
        })
        .collect()
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
    let mut carried = shims.filter(|shim| shim.fulfilled.is_some());
    carried.any(|shim| shim.handlers.contains_key(handler))
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
    let is_kept = is_kept(shim, node, applied);
    let Ok(spec) = &shim.spec else {
        return is_kept;
    };
    spec.paused && is_kept || matches(spec, node, auto_provision)
}

/// Whether the selectors of a Shim match the node.
fn matches(spec: &ShimSpec, node: &NodeView, auto_provision: bool) -> bool {
    let asked_for = |key: &str| auto_provision && key == names::KWASM_NODE_ANNOTATION;
    let mut labels = spec.node_selector.iter().flatten();
    let mut annotations = spec.annotation_selector.iter().flatten();
    labels.all(|(key, value)| node.labels.get(key) == Some(value))
        && annotations
            .all(|(key, value)| node.annotations.get(key) == Some(value) || asked_for(key))
}

/// Whether the node should have the Shim according to its specification, and has exactly that, whether the Shim is paused or not.
#[must_use]
pub fn is_as_specified(
    shim: &ShimView,
    node: &NodeView,
    applied: Option<&Applied>,
    cluster: &Cluster,
) -> bool {
    let blocked = &BTreeMap::new();
    let seen = Seen {
        node,
        applied,
        cluster,
        blocked,
    };
    let known = applied.and_then(|applied| applied.shims.get(&shim.name));
    let Ok(spec) = &shim.spec else { return false };
    let request = resolve(&shim.name, spec, &seen);
    matches(spec, node, cluster.auto_provision)
        && request.is_ok_and(|request| known.is_some_and(|known| known.fulfils(&request)))
}

/// The request for the Shim `name` on the platform of the node, or why it is not possible.
fn resolve(name: &str, spec: &ShimSpec, seen: &Seen<'_>) -> Result<ShimRequest, api::Error> {
    let node = seen.node;
    if !is_label_name(name) {
        return Err(api::Error::Name {
            name: name.to_owned(),
        });
    }
    let handlers = spec.handlers()?;
    let artifact = spec.artifact(&node.os, &node.arch)?;
    Ok(ShimRequest {
        keep: false,
        handlers,
        location: artifact.location,
        sha256: artifact.sha256,
        binary_sha256: artifact.binary_sha256,
        binary: spec.fetch_strategy.binary.clone(),
        options: options(spec),
        proof: spec.proof.unwrap_or_default(),
        first_binary_sha256: seen.cluster.first_binary(name, &node.os, &node.arch),
        ..ShimRequest::kept(name)
    })
}

fn options(spec: &ShimSpec) -> BTreeMap<String, OptionValue> {
    let options = spec.containerd_runtime_options.iter().flatten();
    options
        .map(|(key, value)| (key.clone(), OptionValue::from_text(value)))
        .collect()
}

/// Marks the binaries in the request that the node has reported, so that they are not fetched again. Nothing is fetched for a Shim that is
/// to be kept.
pub fn hint(applied: &Applied, request: &mut ProvisionRequest) {
    for shim in request.shims.iter_mut().filter(|shim| !shim.keep) {
        let known = applied.shims.get(&shim.name).filter(|known| {
            known.fulfils(shim)
                && known.reason.is_none()
                && known.handlers.values().all(|served| *served)
        });
        shim.present = known.and_then(|known| known.sha256);
    }
}
