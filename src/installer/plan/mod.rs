//! Decides what has to change on a host so that it carries what is wanted. Pure: no file, no process, no clock, no logging.
//!
//! An empty [`HostPlan`] means that nothing is written and nothing restarted. What a handler of ours costs is a restart when it is
//! first declared and one when the last of ours leaves: in between, a handler that goes stays declared without a binary, and
//! leaves with the next change that restarts containerd anyway.

pub mod binaries;
pub mod config_edit;
pub mod config_source;
pub mod expected;
pub mod goal;
pub mod handlers;
pub mod preconditions;
pub mod stale_config;
pub mod takeover;
mod types;

use std::collections::BTreeMap;

use crate::containerd_config::Handler;
use crate::handoff::{Owner, Sha256Digest};
use crate::installer::host::Target;
use crate::installer::inspect::HostFacts;
use crate::installer::state::{OwnedConfig, OwnedHandler, State, StateAfter, owner_word};
use binaries::{lost, symlinks, to_store, unneeded};
use config_edit::{ConfigEdit, CurrentConfig, declarations};
use expected::is_served;
pub use goal::{Goal, Scope};
use handlers::{handler_set, notes, unknown_shims};
use preconditions::{check_host, check_restart, is_bare};
use takeover::legacy_cleanup;
pub(crate) use types::HandlerSet;
pub use types::{ConfigChange, Error, HostPlan, LegacyCleanup, LockChange};

/// The changes that make the host that `facts` describe carry `goal`.
///
/// # Errors
/// When nothing may be changed at all. What is wrong with one shim alone is in its handlers' reports.
pub fn decide(facts: &HostFacts, goal: &Goal) -> Result<HostPlan, Error> {
    if goal.shims.is_empty() && is_bare(facts) {
        // There is nothing to install and nothing to remove, whatever state the host is in.
        return Ok(HostPlan {
            notes: unknown_shims(goal, |_| false),
            ..HostPlan::default()
        });
    }
    check_host(facts)?;
    let current = CurrentConfig::find(facts)?;
    let set = handler_set(facts, goal, &current);
    let edit = ConfigEdit::new(facts, &current, &set);
    let plan = assemble(&current, &edit, facts, goal, set)?;
    match &facts.obstacle {
        // Handlers that are in place go on working.
        Some(obstacle) if !plan.is_empty() => Err(Error::Obstacle(obstacle.clone())),
        Some(_) | None => Ok(plan),
    }
}

fn assemble(
    current: &CurrentConfig<'_>,
    edit: &ConfigEdit<'_>,
    facts: &HostFacts,
    goal: &Goal,
    mut set: HandlerSet,
) -> Result<HostPlan, Error> {
    let Configured {
        next,
        declared,
        changes: config,
        after,
        restart,
    } = configure(current, edit, facts, goal, &set.next)?;
    let store = to_store(facts, goal, &next);
    let symlinks = symlinks(facts, &next, &store);
    let mut notes = notes(facts, goal, &set, &next);
    if !config.is_empty() && !next.is_empty() {
        notes.extend(facts.distro.note(&current.target.path));
    }
    let legacy_cleanup = legacy_cleanup(facts, &set, &next, &edit.unmanaged());
    let leaving = set.leaving_as_they_were();
    let new_directories = if next.is_empty() {
        Vec::new()
    } else {
        edit.new_directories(facts)
    };
    let is_whole = set.reports.iter().all(|report| report.reason.is_none());
    notes.extend(set.report_lost(goal.owner, &lost(facts, &next, &store)));
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
        });
    }
    record_request_digest(&mut state, goal, is_whole);
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
        handlers: set.reports,
        notes,
        managed,
        declared,
    })
}

/// The configuration of containerd after a change.
struct Configured {
    /// The handlers that are ours afterwards.
    next: BTreeMap<String, OwnedHandler>,
    /// Those of them that are declared.
    declared: Vec<Handler>,
    /// The files that change.
    changes: Vec<ConfigChange>,
    /// The text of the file that declares them.
    after: Option<String>,
    restart: bool,
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
        // A reservation for Shims that may come is never worth a restart.
        let mut without = next.clone();
        without
            .retain(|name, owned| !owned.is_reserved() || facts.state.handlers.contains_key(name));
        if edit.render(&declarations(facts, &without))?.as_deref() == current.text {
            next = without;
        }
    }
    let mut after = edit.render(&declarations(facts, &next))?;
    if after.as_deref() != current.text || is_removed_elsewhere {
        // containerd is restarted anyway, so reservations that no request names any more leave with this change.
        next.retain(|name, owned| {
            !owned.is_reserved() || owned.owner != goal.owner || goal.reserve.contains(name)
        });
        after = edit.render(&declarations(facts, &next))?;
    }
    let declared = declarations(facts, &next);
    let changes = edit.changes(facts, after.as_deref(), &declared, other_files)?;
    let served = facts.served.as_ref().ok();
    let pending = served.is_some_and(|served| !is_served(served, &declared, &edit.managed));
    let is_live = facts.containerd.target() == Target::Live;
    let restart = is_live && (changes.iter().any(|change| change.live) || pending);
    if restart || !changes.is_empty() {
        current.check_restart(facts, &edit.managed)?;
    }
    if restart {
        check_restart(facts, goal)?;
    }
    Ok(Configured {
        next,
        declared,
        changes,
        after,
        restart,
    })
}

/// Records the request that the host answers. A request that is carried out in part is not answered.
fn record_request_digest(state: &mut State, goal: &Goal, is_whole: bool) {
    let owner = owner_word(goal.owner).to_owned();
    match goal.digest {
        None => {
            state.requests.remove(&owner);
        }
        Some(digest) if is_whole => {
            state.requests.insert(owner, digest);
        }
        Some(_) => {}
    }
}

/// Removes the declarations of a change that is being undone from a configuration that somebody edited since; `declares` names them.
///
/// # Errors
/// When the configuration of today can't be edited.
pub fn remove_declarations(
    facts: &HostFacts,
    declares: &[String],
) -> Result<Vec<ConfigChange>, Error> {
    let current = CurrentConfig::find(facts)?;
    // A legacy handler that the change took over keeps the lines of its former owner.
    let is_legacy = |name: &&String| {
        let legacy = facts.legacy.handlers.get(*name);
        legacy.is_some_and(|legacy| !legacy.declared.marked)
    };
    let edit = ConfigEdit::undoing(&current, declares.iter().filter(|name| !is_legacy(name)));
    let declared = declarations(facts, &facts.state.handlers);
    let after = edit.render(&declared)?;
    let others = edit.remove_from_other_files(facts)?;
    edit.changes(facts, after.as_deref(), &declared, others)
}

#[cfg(test)]
mod tests;
