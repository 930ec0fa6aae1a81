//! Decides which binaries a change stores and symlinks, which are lost, and which no handler needs any more. Pure. The cleanup after a change
//! decides again, with the files and pods of that moment.

use std::collections::{BTreeMap, BTreeSet};

use super::goal::Goal;
use crate::handoff::Sha256Digest;
use crate::installer::inspect::{HostFacts, verified_digest};
use crate::installer::state::{InstallPaths, OwnedHandler, State};

/// SHA-256 of the binaries that the store lacks and that this run has fetched.
///
/// A binary that the state file does not record is stored anew. Another user may have made the file and have it open for writing still,
/// although an administrator has changed its owner since.
pub(crate) fn to_store(
    facts: &HostFacts,
    goal: &Goal,
    next: &BTreeMap<String, OwnedHandler>,
) -> BTreeSet<Sha256Digest> {
    let fetched: BTreeSet<&Sha256Digest> = goal.binaries.values().flatten().collect();
    let needed = next.values().filter(|owned| is_stored(facts, owned));
    needed
        .filter_map(OwnedHandler::sha256)
        .filter(|sha256| fetched.contains(sha256) && !facts.stores(*sha256))
        .collect()
}

/// Handlers whose stored binary is lost or damaged, and that this run has no binary for, because the goal does not name their shims.
pub(crate) fn lost(
    facts: &HostFacts,
    next: &BTreeMap<String, OwnedHandler>,
    store: &BTreeSet<Sha256Digest>,
) -> Vec<String> {
    let is_lost = |sha256| !facts.stored.contains(&sha256) && !store.contains(&sha256);
    next.iter()
        .filter(|(_, owned)| is_stored(facts, owned) && owned.sha256().is_some_and(is_lost))
        .map(|(name, _)| name.clone())
        .collect()
}

/// The stable paths that do not point to their binary yet, with the SHA-256 of the binary, if the store has it or will have it.
pub(crate) fn symlinks(
    facts: &HostFacts,
    next: &BTreeMap<String, OwnedHandler>,
    store: &BTreeSet<Sha256Digest>,
) -> BTreeMap<String, Sha256Digest> {
    next.iter()
        .filter_map(|(name, owned)| {
            let path = facts.install_paths.declared_path(name, owned);
            Some((path, owned.sha256()?))
        })
        .filter(|(path, sha256)| verified_digest(facts, path) != Some(*sha256))
        .filter(|(_, sha256)| facts.stored.contains(sha256) || store.contains(sha256))
        .collect()
}

/// Whether the binary of a handler belongs into the store. A binary that was taken over unchanged stays at its legacy path.
fn is_stored(facts: &HostFacts, owned: &OwnedHandler) -> bool {
    let legacy_binary = owned
        .path
        .as_ref()
        .and_then(|path| facts.legacy.binaries.get(path));
    let is_at_legacy_path = legacy_binary.is_some_and(|legacy_binary| {
        !legacy_binary.is_symlink && Some(legacy_binary.sha256) == owned.sha256()
    });
    !is_at_legacy_path
}

/// Paths of symlinks and stored files that `state` does not need, symlinks first. `symlinks` are Farrier's stable paths by file name, each
/// with the SHA-256 of its binary; `stored` are the names of Farrier's files in the store; `is_used` returns whether pods run on a handler.
pub(crate) fn unneeded(
    install_paths: &InstallPaths,
    state: Option<&State>,
    symlinks: &BTreeMap<String, Sha256Digest>,
    stored: &BTreeSet<String>,
    is_used: impl Fn(&str) -> bool,
) -> Vec<String> {
    let owned_handlers = || {
        state
            .iter()
            .flat_map(|state| state.handlers.iter().chain(&state.draining))
    };
    let with_symlink: BTreeSet<&str> = owned_handlers()
        .filter(|(_, owned)| !owned.is_reserved() && owned.path.is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    let owned_files = owned_handlers().filter_map(|(_, owned)| owned.sha256());
    let mut needed: BTreeSet<String> = owned_files.map(|sha256| sha256.to_string()).collect();
    let mut paths = Vec::new();
    for (name, sha256) in symlinks {
        match InstallPaths::handler_of(name) {
            Some(handler) if with_symlink.contains(handler) => {}
            // A pod may have started while its handler left. containerd needs the binary to stop the sandbox of this pod.
            Some(handler) if is_used(handler) => {
                needed.insert(sha256.to_string());
            }
            Some(_) | None => paths.push(format!("{}/{name}", install_paths.bin())),
        }
    }
    let stored = stored.iter().filter(|name| !needed.contains(*name));
    paths.extend(stored.map(|name| install_paths.store_path(name)));
    paths
}
