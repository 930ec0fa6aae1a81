//! Decides which changes bring a host to its goal. Pure: no file, no process, no clock, no logging.
//!
//! An empty [`HostPlan`] writes nothing and restarts nothing. containerd is restarted when a handler is first declared, and when the last
//! handler of Farrier leaves. In between, a removed handler stays declared without a binary until the next change that restarts containerd.

pub mod binaries;
pub mod config_edit;
pub mod config_source;
pub mod expected;
pub mod goal;
pub mod handlers;
pub mod in_use;
pub mod pending;
pub mod preconditions;
pub mod stale_config;
pub mod takeover;
mod types;

use std::collections::{BTreeMap, BTreeSet};

use crate::containerd_config::Handler;
use crate::handoff::{EndingPod, HandlerReport, Owner, Problem, Proof, Sha256Digest};
use crate::installer::host::Target;
use crate::installer::inspect::HostFacts;
use crate::installer::state::{OwnedConfig, OwnedHandler, State, StateAfter, owner_name};
use binaries::{lost, symlinks, to_store, unneeded};
use config_edit::{ConfigEdit, CurrentConfig, check_prerequisites, declarations};
use expected::{former_declarations, is_served};
pub use goal::{Goal, Scope};
use handlers::{from_command_line, handler_set, notes, unknown_shims};
use in_use::{Dependents, note_on_orphans};
use preconditions::{
    check_host, check_owner, check_restart, is_bare, notes_on_ending, unwritable_config,
    write_problem,
};
use takeover::legacy_cleanup;
pub(crate) use types::{ALLOW_POD_RESTARTS, HandlerSet};
pub use types::{ConfigChange, Error, HostPlan, LegacyCleanup, LockChange};

/// Checks what no binary of the goal changes: whose handlers it names, and whether this host can be changed.
///
/// # Errors
/// The refusal of [`decide`], whatever the binaries are.
pub fn check(facts: &HostFacts, goal: &Goal) -> Result<(), Error> {
    if goal.shims.is_empty() && is_bare(facts) {
        return Ok(());
    }
    check_owner(facts, goal)?;
    check_host(facts)
}

/// The changes that bring the host with these `facts` to `goal`.
///
/// # Errors
/// When nothing may be changed on the host. A problem of one shim alone is in the reports on its handlers.
pub fn decide(facts: &HostFacts, goal: &Goal) -> Result<HostPlan, Error> {
    if goal.shims.is_empty() && is_bare(facts) {
        // There is nothing to install and nothing to remove, even on a host that may not be changed.
        let mut notes = unknown_shims(goal, |_| false);
        notes.extend(note_on_orphans(facts, &[]));
        return Ok(HostPlan {
            notes,
            ..HostPlan::default()
        });
    }
    check(facts, goal)?;
    let current = CurrentConfig::find(facts)?;
    let plan = match assemble(&current, facts, goal, handler_set(facts, goal, &current)) {
        Err(Error::EndsPods(pods)) => without_restart(&current, facts, goal, pods)?,
        plan => plan?,
    };
    let obstacle = facts.obstacle.as_ref();
    let obstacle = obstacle.or_else(|| untrusted_path(facts, &plan));
    match obstacle.or_else(|| unwritable(facts, &plan)) {
        // Without a change, installed handlers keep working despite the obstacle.
        Some(obstacle) if !plan.is_empty() => Err(Error::Obstacle(obstacle.clone())),
        Some(_) | None => Ok(plan),
    }
}

/// Why another user than root could replace the program of a handler that is at the path of a legacy installer after `plan`.
fn untrusted_path<'a>(facts: &'a HostFacts, plan: &HostPlan) -> Option<&'a Problem> {
    let after = match &plan.state {
        StateAfter::Write(state) => state,
        StateAfter::Keep => &facts.state,
        StateAfter::Remove => return None,
    };
    let mut paths = after.handlers.values().filter_map(|it| it.path.as_ref());
    paths.find_map(|path| facts.legacy.untrusted.get(path))
}

/// Why a file can't be written that `plan` writes outside of Farrier's own directories.
fn unwritable<'a>(facts: &'a HostFacts, plan: &HostPlan) -> Option<&'a Problem> {
    let mut symlinks = plan.symlinks.keys();
    unwritable_config(facts, &plan.config)
        .or_else(|| symlinks.find_map(|path| write_problem(facts, path)))
}

/// The part of a change that needs no restart, where a restart would end `pods`. The shims that need the restart stay as they are.
fn without_restart(
    current: &CurrentConfig<'_>,
    facts: &HostFacts,
    goal: &Goal,
    pods: Vec<EndingPod>,
) -> Result<HostPlan, Error> {
    let set = handler_set(facts, goal, current);
    let mut before = set.before.clone();
    // A draining handler is not declared, so to declare it again needs a restart.
    before.retain(|name, _| {
        facts.state.handlers.contains_key(name) || set.taken_over.contains_key(name)
    });
    let (before, next) = (declarations(facts, &before), declarations(facts, &set.next));
    let needs_restart = |name: &String| {
        let mut next = next.iter();
        next.any(|handler| handler.name == *name && !before.contains(handler))
    };
    let refusal = Error::EndsPods(pods.clone());
    let mut part = goal.clone();
    let requested = goal.shims.iter().filter(|shim| !shim.keep);
    let waiting = requested.filter(|shim| shim.handlers.iter().any(needs_restart));
    for shim in waiting {
        let problem = Problem::new(&refusal, refusal.help());
        part.binaries.insert(shim.name.clone(), Err(problem));
        part.waiting.insert(shim.name.clone());
    }
    let plan = assemble(current, facts, &part, handler_set(facts, &part, current));
    // Another shim may have a problem of its own.
    let has_own_problem =
        |report: &HandlerReport| report.reason.is_some() && !report.waits_for_pods;
    match plan {
        Ok(plan) if !plan.is_empty() || plan.handlers.iter().any(has_own_problem) => Ok(HostPlan {
            waits_for: pods,
            ..plan
        }),
        Ok(_) | Err(_) => Err(refusal),
    }
}

fn assemble(
    current: &CurrentConfig<'_>,
    facts: &HostFacts,
    goal: &Goal,
    mut set: HandlerSet,
) -> Result<HostPlan, Error> {
    let edit = &ConfigEdit::new(facts, current, &set);
    let Configured {
        next,
        declared,
        changes: config,
        after,
        restart,
        notes: of_restart,
    } = configure(current, edit, facts, goal, &set.next)?;
    let store = to_store(facts, goal, &next);
    let symlinks = symlinks(facts, &next, &store);
    let mut notes = notes(facts, goal, &set, &next);
    let taken_over = from_command_line(facts, &next);
    notes.extend(taken_over.iter().map(|it| it.message.clone()));
    notes.extend(note_on_orphans(facts, &[&set.next, &set.draining]));
    notes.extend(of_restart);
    if !config.is_empty() && !next.is_empty() {
        notes.extend(facts.distro.note(&current.target.path));
    }
    if restart {
        notes.extend(notes_on_ending(facts));
    }
    let replaced = config
        .iter()
        .filter_map(|change| facts.write_targets.get(&change.path));
    notes.extend(replaced.flat_map(|target| target.notes.clone()));
    let mut requested = declared.clone();
    requested.retain(|handler| goal.has_handler(&handler.name));
    notes.extend(current.notes_on_search(facts, &requested, !config.is_empty()));
    let legacy_cleanup = legacy_cleanup(facts, &set, &next, &edit.unmanaged());
    let leaving = set.leaving_as_they_were();
    let new_directories = if next.is_empty() {
        Vec::new()
    } else {
        edit.new_directories(facts)
    };
    let is_whole = set.reports.iter().all(|report| report.reason.is_none());
    if let Some(problem) = facts.untried.as_ref().filter(|_| !config.is_empty()) {
        notes.push(problem.sentence());
    }
    notes.extend(set.report_lost(goal.owner, &lost(facts, &next, &store)));
    let prove = to_prove(&facts.state, &next);
    let mut state = State {
        handlers: next,
        draining: set.draining,
        directory: facts.install_paths.directory.clone(),
        ..facts.state.clone()
    };
    state.directories.extend(new_directories.iter().cloned());
    if !config.is_empty() {
        state.config = after.map(|after| OwnedConfig {
            path: current.target.path.clone(),
            sha256: Some(Sha256Digest::of(after.as_bytes())),
            root: Some(facts.config_files.root.path.clone()),
            runc: Some(edit.declares_runc(&after)),
        });
    }
    record_request_digest(&mut state, &facts.state, goal, is_whole);
    let state = Some(state).filter(|state| !state.is_empty());
    let obsolete_files = unneeded(
        &facts.install_paths,
        state.as_ref(),
        &facts.binaries,
        &facts.store_files(),
        |handler| facts.in_use.contains_key(handler),
    );
    let mut managed = edit.managed.clone();
    managed.extend(declared.iter().map(|handler| handler.name.clone()));
    Ok(HostPlan {
        new_directories,
        store,
        symlinks,
        config,
        restart,
        restart_policy: goal.effective_restart_policy(facts),
        accept_pending_changes: goal.accept_pending_changes,
        obsolete_files,
        obsolete_directories: if state.is_none() {
            facts.state.directories.clone()
        } else {
            Vec::new()
        },
        state: match state {
            Some(state) if state == facts.state => StateAfter::Keep,
            Some(state) => StateAfter::Write(Box::new(state)),
            None if facts.state == State::default() => StateAfter::Keep,
            None => StateAfter::Remove,
        },
        legacy_cleanup,
        leaving,
        waits_for: Vec::new(),
        handlers: set.reports,
        taken_over,
        notes,
        managed,
        declared,
        prove,
    })
}

/// The handlers of `next` that are not proven yet with their binary and their options.
fn to_prove(before: &State, next: &BTreeMap<String, OwnedHandler>) -> BTreeSet<String> {
    let is_proven = |name: &String, owned: &OwnedHandler| {
        let before = before.handlers.get(name);
        before.is_some_and(|before| {
            before.proof == owned.proof
                && before.sha256() == owned.sha256()
                && before.options == owned.options
        })
    };
    let unproven = next.iter().filter(|(name, owned)| match owned.proof {
        Proof::None => false,
        Proof::Sandbox => !is_proven(name, owned),
    });
    unproven.map(|(name, _)| name.clone()).collect()
}

/// Checks that the configuration of others needs no managed handler that is no longer `declared`.
///
/// # Errors
/// Why such a handler must stay.
fn check_dependents(
    facts: &HostFacts,
    edit: &ConfigEdit<'_>,
    declared: &[Handler],
) -> Result<(), Error> {
    let is_declared = |name: &&String| declared.iter().any(|handler| handler.name == **name);
    let mut gone = edit
        .managed
        .iter()
        .filter(|name| !is_declared(name))
        .peekable();
    if gone.peek().is_none() {
        return Ok(());
    }
    let dependents = Dependents::of(facts);
    let problem = gone.find_map(|name| {
        let owned = facts.state.handlers.get(name);
        // The set of handlers keeps those that are installed.
        let owned = owned.filter(|owned| owned.is_reserved());
        dependents.reason(&facts.install_paths, name, owned)
    });
    problem.map_or(Ok(()), |problem| Err(Error::Obstacle(problem)))
}

/// The configuration of containerd after a change.
struct Configured {
    /// The managed handlers afterwards.
    next: BTreeMap<String, OwnedHandler>,
    /// The handlers of `next` as they are declared.
    declared: Vec<Handler>,
    /// The changes of files.
    changes: Vec<ConfigChange>,
    /// The text of the file that declares them; `None` where the file is absent.
    after: Option<String>,
    restart: bool,
    /// Notes on the restart for an operator.
    notes: Vec<String>,
}

fn configure(
    current: &CurrentConfig<'_>,
    edit: &ConfigEdit<'_>,
    facts: &HostFacts,
    goal: &Goal,
    next: &BTreeMap<String, OwnedHandler>,
) -> Result<Configured, Error> {
    let mut next = next.clone();
    let other_files = edit.remove_from_other_files(facts)?;
    let is_removed_elsewhere = other_files.iter().any(|change| change.live);
    if goal.owner == Owner::Cluster && !is_removed_elsewhere {
        // A reservation alone never restarts containerd.
        let mut without = next.clone();
        without
            .retain(|name, owned| !owned.is_reserved() || facts.state.handlers.contains_key(name));
        if edit.render(&declarations(facts, &without))?.as_deref() == current.text {
            next = without;
        }
    }
    let mut after = edit.render(&declarations(facts, &next))?;
    if after.as_deref() != current.text || is_removed_elsewhere {
        // This change restarts containerd, so reservations that the request no longer names are removed.
        next.retain(|name, owned| {
            !owned.is_reserved() || owned.owner != goal.owner || goal.reserve.contains(name)
        });
        after = edit.render(&declarations(facts, &next))?;
    }
    let declared = declarations(facts, &next);
    current.check_not_taken(&declared)?;
    let changes = edit.changes(facts, after.as_deref(), &declared, other_files)?;
    // An operator can accept other obstacles, so this one comes first.
    check_dependents(facts, edit, &declared)?;
    let served = facts.served.as_ref().ok();
    let former = former_declarations(facts, &edit.managed);
    let searches = facts.distro.searches();
    let is_unserved = served
        .is_some_and(|served| !is_served(served, &declared, &edit.managed, &former, searches));
    let is_live = facts.containerd.target() == Target::Live;
    let mut restart = is_live && (changes.iter().any(|change| change.live) || is_unserved);
    if restart && changes.is_empty() {
        // A restart alone helps only if containerd then loads the handlers as they are declared.
        current.check_visible(&declared)?;
    }
    let accepted = goal.accept_pending_changes;
    let mut notes = Vec::new();
    if restart && let Some(problem) = config_source::still_unloadable(facts, &edit.managed) {
        // The cause is not Farrier's, so a restart would fail. Handlers that leave need none.
        if !declared.is_empty() {
            return Err(Error::Obstacle(problem));
        }
        restart = false;
        let (unit, problem) = (facts.unit(), problem.sentence());
        notes.push(format!(
            "{unit} does not run, and is not restarted: {problem}"
        ));
    }
    if restart {
        check_restart(facts, goal)?;
        notes.extend(current.check_restart(facts, &edit.managed, accepted)?);
    } else if !changes.is_empty() {
        current.check_runtimes(facts, &edit.managed, accepted)?;
        check_prerequisites(facts)?;
    }
    Ok(Configured {
        next,
        declared,
        changes,
        after,
        restart,
        notes,
    })
}

/// Records the digest of the request that the host fulfils. A request that is fulfilled in part is not recorded. A removal that changed a
/// handler ends the record, and one that found nothing to remove changes nothing.
fn record_request_digest(state: &mut State, before: &State, goal: &Goal, is_whole: bool) {
    let owner = owner_name(goal.owner).to_owned();
    match goal.digest {
        None => {
            if state.handlers != before.handlers {
                state.requests.remove(&owner);
            }
        }
        Some(digest) if is_whole => {
            state.requests.insert(owner, digest);
        }
        Some(_) => {}
    }
}

/// The edits that undo a change in a configuration that was edited by others since; the change declared the handlers `declares`.
///
/// # Errors
/// When the present configuration can't be edited.
pub fn remove_declarations(
    facts: &HostFacts,
    declares: &[String],
) -> Result<Vec<ConfigChange>, Error> {
    let current = CurrentConfig::find(facts)?;
    // A legacy handler that the change took over keeps the lines of its legacy installer.
    let is_legacy = |name: &&String| {
        let legacy = facts.legacy.handlers.get(*name);
        legacy.is_some_and(|legacy| !legacy.declared.marked)
    };
    let edit = ConfigEdit::undoing(
        facts,
        &current,
        declares.iter().filter(|name| !is_legacy(name)),
    );
    let declared = declarations(facts, &facts.state.handlers);
    let after = edit.render(&declared)?;
    let others = edit.remove_from_other_files(facts)?;
    edit.changes(facts, after.as_deref(), &declared, others)
}

#[cfg(test)]
mod tests;
