//! Decides which handlers a host has after a change, and the report on each: installed, kept, removed or reserved. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::config_edit::{CurrentConfig, found_problem, passes_options};
use super::goal::{Goal, Scope};
use super::in_use::Users;
use super::preconditions::note_on_cluster;
use super::takeover::takeover_candidates;
use super::types::HandlerSet;
use crate::containerd_config::is_usable_name;
use crate::handoff::{HandlerReport, Owner, Problem, Proof, Sha256Digest, ShimRequest, TakenOver};
use crate::installer::host::Target;
use crate::installer::inspect::{HostFacts, verified_digest};
use crate::installer::state::{Binary, OwnedHandler, owner_name};

/// Builds a [`HandlerSet`] step by step.
struct Builder<'a> {
    facts: &'a HostFacts,
    goal: &'a Goal,
    config: &'a CurrentConfig<'a>,
    /// Handlers that the goal names.
    kept: BTreeSet<String>,
    set: HandlerSet,
}

/// The handlers that the host has before and after a change to `goal`.
pub(crate) fn handler_set(
    facts: &HostFacts,
    goal: &Goal,
    config: &CurrentConfig<'_>,
) -> HandlerSet {
    let next = facts.state.handlers.clone();
    let mut before = facts.state.draining.clone();
    before.extend(next.clone());
    let mut builder = Builder {
        facts,
        goal,
        config,
        kept: BTreeSet::new(),
        set: HandlerSet {
            before,
            next,
            legacy: takeover_candidates(facts, &config.target.path),
            taken_over: BTreeMap::new(),
            leaving: BTreeSet::new(),
            draining: BTreeMap::new(),
            reports: Vec::new(),
        },
    };
    builder.add_requested();
    let has_any = builder.has_any_requested();
    if has_any {
        builder.remove_unrequested();
    }
    builder.keep_draining();
    builder.reserve(if has_any { &goal.reserve } else { &[] });
    let mut set = builder.set;
    // Reserved handlers leave with the last installed one.
    if set.next.values().all(OwnedHandler::is_reserved) {
        set.next.clear();
    }
    set
}

impl Builder<'_> {
    fn report(
        &mut self,
        shim: &str,
        handler: &str,
        sha256: Option<Sha256Digest>,
        problem: Option<Problem>,
    ) {
        let (reason, remedy) = problem.map_or((None, None), |it| (Some(it.message), it.help));
        let install_paths = &self.facts.install_paths;
        let owned = self.set.after(handler);
        self.set.reports.push(HandlerReport {
            shim: shim.to_owned(),
            handler: handler.to_owned(),
            path: sha256.is_some().then(|| match owned {
                Some(owned) => install_paths.declared_path(handler, owned),
                None => install_paths.binary_path(handler),
            }),
            served: sha256.is_some(),
            sha256,
            reason,
            remedy,
            waits_for_pods: self.goal.waiting.contains(shim),
        });
    }

    fn add_requested(&mut self) {
        let goal = self.goal;
        for shim in goal.shims.iter().filter(|shim| shim.keep) {
            self.keep(shim);
        }
        let handlers = self.facts.state.handlers.iter();
        let staying = handlers
            .filter(|(_, owned)| owned.owner == goal.owner && goal.waiting.contains(&owned.shim));
        self.kept.extend(staying.map(|(name, _)| name.clone()));
        for shim in goal.shims.iter().filter(|shim| !shim.keep) {
            let foreign = shim.handlers.iter().find_map(|name| self.foreign(name));
            let names = || shim.handlers.iter().chain(shim.options.keys());
            let unusable = names().find(|name| !is_usable_name(name));
            let binary = match (foreign, goal.binaries.get(&shim.name)) {
                _ if unusable.is_some() => Err(Problem::with_help(
                    format!(
                        "invalid name {:?} of a handler or an option: it is empty, reserved or not printable",
                        unusable.map_or("", String::as_str)
                    ),
                    "use another name",
                )),
                (Some(problem), _) => Err(problem),
                (None, Some(binary)) => binary.clone(),
                (None, None) => Err(Problem::new("the artifact was not fetched", None)),
            };
            for handler in &shim.handlers {
                match &binary {
                    Ok(sha256) => self.install(shim, handler, *sha256),
                    Err(problem) => self.keep_served(shim, handler, problem),
                }
            }
        }
    }

    /// Whether a shim of the request can be had, or the request is to remove shims only. A command whose shims all fail is probably mistyped,
    /// so it removes nothing. In a cluster, a Shim that can't be had must not keep another on its nodes.
    fn has_any_requested(&self) -> bool {
        let mut reports = self.set.reports.iter();
        self.goal.owner == Owner::Cluster
            || self.goal.shims.is_empty()
            || reports.any(|report| report.reason.is_none())
    }

    /// Keeps a shim as the state file describes it: the request has only its name.
    fn keep(&mut self, shim: &ShimRequest) {
        let (facts, goal) = (self.facts, self.goal);
        let kept: Vec<_> = facts
            .state
            .kept_handlers(goal.owner, shim, &goal.shims)
            .collect();
        if kept.is_empty() {
            let problem = nothing_to_keep(goal.owner);
            self.report(&shim.name, NO_HANDLER, None, Some(problem));
        }
        for (handler, owned) in kept {
            self.kept.insert(handler.clone());
            self.report(&shim.name, handler, owned.sha256(), None);
        }
    }

    /// Why `handler` can't be Farrier's: others declare it, or will at their next start.
    fn foreign(&self, handler: &str) -> Option<Problem> {
        let (config, facts) = (self.config, self.facts);
        let is_foreign = config.is_foreign(handler);
        let found = config.found(handler).filter(|_| is_foreign);
        match found.or_else(|| config.will_find(facts, handler)) {
            Some(program) => Some(found_problem(facts, handler, program)),
            None => is_foreign.then(|| {
                Problem::with_help(
                    format!(
                        "handler {handler} is declared in containerd's configuration by an administrator or another program"
                    ),
                    "remove that declaration, or use another handler name",
                )
            }),
        }
    }

    fn install(&mut self, shim: &ShimRequest, handler: &str, sha256: Sha256Digest) {
        self.set.take_over(handler, self.goal.owner);
        // A legacy path without a binary may have lost its directory, too.
        let has_path = |owned: &&OwnedHandler| {
            !self.set.taken_over.contains_key(handler) || !owned.is_reserved()
        };
        let before = self.set.before.get(handler);
        let path = before.filter(has_path).and_then(|owned| owned.path.clone());
        let owned = OwnedHandler {
            shim: shim.name.clone(),
            owner: self.goal.owner,
            path,
            options: shim.options.clone(),
            // An image runs no pods, and what runs at a path of others proves nothing.
            proof: if self.facts.containerd.target() == Target::Live
                && self.config.found(handler).is_none()
            {
                shim.proof
            } else {
                Proof::None
            },
            binary: Binary::Installed {
                sha256,
                location: shim.location.clone(),
                artifact_sha256: shim.sha256,
                file: Some(shim.file_name()),
            },
        };
        self.set.next.insert(handler.to_owned(), owned);
        self.kept.insert(handler.to_owned());
        // The declaration stays: it is in effect again once the distribution finds no program.
        match self.config.found(handler) {
            Some(program) => {
                let problem = found_problem(self.facts, handler, program);
                self.report(&shim.name, handler, None, Some(problem));
            }
            None => self.report(&shim.name, handler, Some(sha256), None),
        }
    }

    /// Keeps the served version of a shim that has no artifact.
    fn keep_served(&mut self, shim: &ShimRequest, handler: &str, problem: &Problem) {
        let sha256 = self.set.after(handler).and_then(|owned| {
            let path = self.facts.install_paths.declared_path(handler, owned);
            let sha256 = owned.sha256()?;
            (verified_digest(self.facts, &path) == Some(sha256)).then_some(sha256)
        });
        self.kept.insert(handler.to_owned());
        self.report(&shim.name, handler, sha256, Some(problem.clone()));
    }

    fn remove_unrequested(&mut self) {
        let next = self.set.next.clone();
        for (name, owned) in &next {
            let Some(sha256) = self.leaving_binary(name, owned, is_in_scope(owned, self.goal))
            else {
                continue;
            };
            let is_others = owned.owner != self.goal.owner;
            if is_others && matches!(self.goal.scope, Scope::Shims(_)) {
                let owner = owner_name(owned.owner);
                let problem = Problem::with_help(
                    format!("handler {name} belongs to {owner}"),
                    "let its owner remove the handler, or use --all",
                );
                self.report(&owned.shim, name, Some(sha256), Some(problem));
            } else {
                self.remove(name, owned, sha256);
            }
        }
        let legacy = self.set.legacy.clone();
        for (name, owned) in &legacy {
            let in_scope = match &self.goal.scope {
                Scope::Owner | Scope::Nothing => false,
                Scope::Shims(shims) => shims.contains(&owned.shim),
                Scope::Everything => true,
            };
            if let Some(sha256) = self.leaving_binary(name, owned, in_scope) {
                self.remove(name, owned, sha256);
            }
        }
    }

    /// The SHA-256 of the binary that a handler loses; `None` where the handler stays or has no binary.
    fn leaving_binary(
        &self,
        name: &str,
        owned: &OwnedHandler,
        in_scope: bool,
    ) -> Option<Sha256Digest> {
        let leaves = in_scope && !self.kept.contains(name);
        owned.sha256().filter(|_| leaves)
    }

    /// Removes the binary of a handler, unless pods or shim processes use it. The handler stays reserved.
    fn remove(&mut self, name: &str, owned: &OwnedHandler, sha256: Sha256Digest) {
        if let Some(used) = Users::of(self.facts).reason(name, Some(owned)) {
            self.report(&owned.shim, name, Some(sha256), Some(used));
            return;
        }
        if self.config.replaced.contains(name) {
            // Others declare the handler with another program, so Farrier's handler is gone already.
            self.set.leaving.insert(name.to_owned());
            self.set.next.remove(name);
            return;
        }
        let is_legacy = self.set.legacy.contains_key(name);
        self.set.take_over(name, self.goal.owner);
        self.set.leaving.insert(name.to_owned());
        let reserved = OwnedHandler {
            // The owner that removes a legacy handler becomes the owner of the reservation.
            owner: if is_legacy {
                self.goal.owner
            } else {
                owned.owner
            },
            binary: Binary::Reserved,
            proof: Proof::None,
            ..owned.clone()
        };
        self.set.next.insert(name.to_owned(), reserved);
    }

    /// Keeps the binaries of handlers that left while pods started on them, until these pods and their shims have ended.
    fn keep_draining(&mut self) {
        for (name, owned) in &self.facts.state.draining {
            let Some(problem) = Users::of(self.facts).reason(name, Some(owned)) else {
                continue;
            };
            let next = self.set.next.get(name);
            if next.is_some_and(|next| !next.is_reserved()) {
                continue;
            }
            self.set.draining.insert(name.clone(), owned.clone());
            if is_in_scope(owned, self.goal) {
                self.set.reports.push(HandlerReport {
                    shim: owned.shim.clone(),
                    handler: name.clone(),
                    path: Some(self.facts.install_paths.declared_path(name, owned)),
                    sha256: owned.sha256(),
                    served: false,
                    reason: Some(problem.message),
                    remedy: problem.help,
                    waits_for_pods: false,
                });
            }
        }
    }

    fn reserve(&mut self, names: &[String]) {
        let taken = &self.config.taken;
        let next = &mut self.set.next;
        next.retain(|name, owned| !(owned.is_reserved() && taken.contains(name)));
        for name in names {
            let is_free = !self.set.next.contains_key(name)
                && !self.set.legacy.contains_key(name)
                && !self.config.is_foreign(name)
                && !taken.contains(name)
                && self.config.will_find(self.facts, name).is_none();
            if is_free && is_usable_name(name) {
                let options = self.goal.reserve_options.get(name);
                let owned = OwnedHandler {
                    shim: String::new(),
                    owner: self.goal.owner,
                    path: None,
                    options: options.cloned().unwrap_or_default(),
                    proof: Proof::None,
                    binary: Binary::Reserved,
                };
                self.set.next.insert(name.clone(), owned);
            }
        }
    }
}

impl HandlerSet {
    /// Reports `owner`'s handlers whose binary is lost or damaged. Returns a note for each such handler of another owner.
    pub(crate) fn report_lost(&mut self, owner: Owner, lost: &[String]) -> Vec<String> {
        let mut notes = Vec::new();
        for name in lost {
            let Some(owned) = self.next.get(name) else {
                continue;
            };
            let known = self
                .reports
                .iter_mut()
                .find(|report| report.handler == *name);
            if let Some(known) = known {
                known.served = false;
                if known.reason.is_none() {
                    known.reason = Some(DAMAGED.to_owned());
                    known.remedy = Some(INSTALL_SHIM_AGAIN.to_owned());
                }
            } else if owned.owner == owner {
                self.reports.push(HandlerReport {
                    shim: owned.shim.clone(),
                    handler: name.clone(),
                    path: None,
                    sha256: None,
                    served: false,
                    reason: Some(DAMAGED.to_owned()),
                    remedy: Some(INSTALL_SHIM_AGAIN.to_owned()),
                    waits_for_pods: false,
                });
            } else {
                let owner = owner_name(owned.owner);
                notes.push(format!(
                    "handler {name}, which belongs to {owner}, is not served: {DAMAGED}"
                ));
            }
        }
        notes
    }
}

fn is_in_scope(owned: &OwnedHandler, goal: &Goal) -> bool {
    match &goal.scope {
        Scope::Owner => owned.owner == goal.owner,
        Scope::Nothing => false,
        Scope::Shims(shims) => shims.contains(&owned.shim),
        Scope::Everything => true,
    }
}

/// The handler in the report on a shim that has none.
const NO_HANDLER: &str = "";

/// The problem of a shim of `owner` that is to be kept and is not on the host.
fn nothing_to_keep(owner: Owner) -> Problem {
    let owner = owner_name(owner);
    Problem::with_help(
        format!(
            "this host has no handler of this shim that belongs to {owner}, so there is nothing to keep"
        ),
        "let Farrier install the Shim: end its pause (spec.paused), or correct its spec",
    )
}

/// The reason that a handler with a lost or damaged binary is not served.
const DAMAGED: &str = "the binary is lost or damaged";

/// The remedy for [`DAMAGED`].
const INSTALL_SHIM_AGAIN: &str = "run `farrier install` again with the shim of this handler";

/// Notes for an operator on a successful change, each one sentence.
pub(crate) fn notes(
    facts: &HostFacts,
    goal: &Goal,
    set: &HandlerSet,
    next: &BTreeMap<String, OwnedHandler>,
) -> Vec<String> {
    let with_options = next.iter().filter(|(_, owned)| !owned.options.is_empty());
    let without = with_options.filter(|_| !passes_options(facts));
    let without = without.map(|(name, _)| {
        format!(
            "the options of handler {name} are left out until the first run on containerd 1.7 or later, because containerd 1.6 passes options only to runc's shim"
        )
    });
    let taken_over = next.iter().filter_map(|(name, owned)| {
        let (from, to) = (set.taken_over.get(name)?, owner_name(owned.owner));
        let from = owner_name(*from);
        Some(format!(
            "handler {name} is taken over from {from}: its owner is now {to}, which also removes it"
        ))
    });
    let from_cluster = next.iter().filter(|(name, owned)| {
        let before = facts.state.handlers.get(*name);
        owned.owner != Owner::Cluster
            && before.is_some_and(|it| it.owner == Owner::Cluster && !it.is_reserved())
    });
    let from_cluster = from_cluster.map(|(name, owned)| {
        let owner = owner_name(owned.owner);
        format!("handler {name} is taken over from the cluster: its owner is now {owner}")
    });
    let of_cluster = note_on_cluster(facts).filter(|_| goal.owner != Owner::Cluster);
    let reserved = set.leaving.iter().filter(|name| next.contains_key(*name));
    let reserved = reserved.map(|name| {
        format!(
            "handler {name} stays declared without a binary until the next change that restarts containerd"
        )
    });
    without
        .chain(taken_over)
        .chain(from_cluster)
        .chain(of_cluster)
        .chain(reserved)
        .chain(unknown_shims(goal, |shim| {
            let known = set.before.values().chain(set.legacy.values());
            known.map(|owned| &owned.shim).any(|known| known == shim)
        }))
        .collect()
}

/// The handlers that the cluster takes over from the command line. A host that was prepared with the shims of its cluster is adopted as it
/// is.
pub(crate) fn from_command_line(
    facts: &HostFacts,
    next: &BTreeMap<String, OwnedHandler>,
) -> Vec<TakenOver> {
    let taken_over = next.iter().filter_map(|(name, owned)| {
        let before = facts.state.handlers.get(name)?;
        let is_taken_over =
            owned.owner == Owner::Cluster && before.owner == Owner::Local && !before.is_reserved();
        is_taken_over.then(|| taken_over(name, before, owned))
    });
    taken_over.collect()
}

fn taken_over(handler: &str, before: &OwnedHandler, owned: &OwnedHandler) -> TakenOver {
    let mut changes = Vec::new();
    if before.sha256() != owned.sha256() {
        let (before, now) = (described_binary(before), described_binary(owned));
        changes.push(format!("its binary {before} is replaced by {now}"));
    }
    if before.options != owned.options {
        changes.push("its options are replaced by those of the Shim".to_owned());
    }
    let replaced = !changes.is_empty();
    let what = if replaced {
        changes.join(", and ")
    } else {
        "its binary and its options are the same".to_owned()
    };
    TakenOver {
        handler: handler.to_owned(),
        replaced,
        message: format!(
            "handler {handler}, which the command line installed as shim {}, belongs to Shim {} of the cluster now: {what}",
            before.shim, owned.shim
        ),
    }
}

/// The release and the SHA-256 of the binary of a handler.
fn described_binary(owned: &OwnedHandler) -> String {
    let digest = owned.sha256().map(|it| format!("SHA-256 {it}"));
    let digest = digest.unwrap_or_default();
    match owned.release() {
        Some(release) => format!("{release} ({digest})"),
        None => digest,
    }
}

/// A note for each shim that the goal removes and that is not installed.
pub(crate) fn unknown_shims(goal: &Goal, is_known: impl Fn(&str) -> bool) -> Vec<String> {
    let named = match &goal.scope {
        Scope::Shims(shims) => shims.clone(),
        Scope::Owner | Scope::Nothing | Scope::Everything => BTreeSet::new(),
    };
    let unknown = named.into_iter().filter(|shim| !is_known(shim));
    unknown
        .map(|shim| {
            format!("no shim {shim} is installed on this host (`farrier doctor` lists all installed shims)")
        })
        .collect()
}
