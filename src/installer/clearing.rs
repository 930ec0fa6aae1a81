//! Clears up after a change that was carried out, and looks at the pods once more before a binary goes. Decides nothing else.

use std::collections::{BTreeMap, BTreeSet};

use tracing::warn;

use super::Error;
use super::bounds::is_digest;
use super::candidate;
use super::cri;
use super::facts::Facts;
use super::host::{HostRoot, NEW_SUFFIX};
use super::journal::Journal;
use super::stamps;
use super::state::{
    JOURNAL_FILE, OwnedHandler, Places, STATE_FILE, STATE_FOLDER, STATE_LIMIT, State, folder_of,
    target_digest,
};

/// Clears up after a change that was carried out: binaries that nothing names, folders of ours, and the journal last.
///
/// A pod may have come since the host was looked at: what `in_use` names keeps its binary, without which its sandbox could never be
/// ended. The next run takes it.
pub(super) fn finish(host: &HostRoot, journal: &Journal, in_use: &InUse) -> Result<(), Error> {
    journal.discard(host)?;
    let state = State::from_json(host.read_text(STATE_FILE, STATE_LIMIT)?.as_deref())?;
    let places = Places {
        folder: journal.folder.clone(),
    };
    clear_binaries(host, &places, &state, in_use)?;
    journal.clear_leftovers(host)?;
    let folders = || journal.drop_folders.iter().rev();
    if state.is_empty() {
        for folder in [places.bin(), places.store(), places.folder.clone()] {
            host.remove_folder(&folder)?;
        }
        for folder in folders() {
            host.remove_folder(folder)?;
        }
    }
    if state.is_empty() {
        host.discard_new(stamps::FILE);
        host.remove_file(stamps::FILE)?;
    }
    host.remove_file(JOURNAL_FILE)?;
    if state.is_empty() {
        host.remove_folder(STATE_FOLDER)?;
        for folder in folders() {
            host.remove_folder(folder)?;
        }
    }
    Ok(())
}

fn clear_binaries(
    host: &HostRoot,
    places: &Places,
    state: &State,
    in_use: &InUse,
) -> Result<(), Error> {
    let carried = |handler: &str| {
        let owned = state.handlers.get(handler);
        owned.is_some_and(|owned| owned.sha256.is_some() && owned.path.is_none())
    };
    // What was taken over is in our store only where a link at its path says so.
    let is_stored = |owned: &&OwnedHandler| {
        let path = owned.path.as_deref();
        path.is_none_or(|path| host.link_target(path).is_some())
    };
    let mut stored: BTreeSet<String> = state
        .handlers
        .values()
        .filter(is_stored)
        .filter_map(|owned| owned.sha256.clone())
        .collect();
    for name in host.list(&places.bin())? {
        let path = format!("{}/{name}", places.bin());
        // Whoever put something else there keeps it.
        let target = host.link_target(&path);
        if !target.as_deref().is_some_and(is_own_link) {
            continue;
        }
        let used = Places::handler_of(&name).filter(|handler| in_use.counts(handler));
        if let Some(handler) = used.filter(|handler| !carried(handler)) {
            warn!(
                handler,
                "a pod came that uses the handler: its binary stays until the next run"
            );
            stored.extend(target.as_deref().and_then(target_digest));
        } else if !Places::handler_of(&name).is_some_and(carried) {
            host.remove_file(&path)?;
        }
    }
    for name in host.list(&places.store())? {
        let digest = name.strip_suffix(NEW_SUFFIX).unwrap_or(&name);
        if is_digest(digest) && !stored.contains(&name) {
            host.remove_file(&places.store_path(&name))?;
        }
    }
    Ok(())
}

/// Whether a link in our folder is one of ours.
fn is_own_link(target: &str) -> bool {
    target_digest(target).is_some_and(|digest| is_digest(&digest))
}

/// Files that only a run that was killed leaves: half written, or put there to be judged.
///
/// # Errors
/// When a folder can't be listed.
pub(super) fn leftovers(host: &HostRoot, facts: &Facts) -> Result<Vec<String>, Error> {
    let root = folder_of(&facts.loaded.root.path).to_owned();
    let places = &facts.places;
    let mut found = Vec::new();
    // What stands in the store and belongs to no handler is told by its path alone.
    for folder in [root, places.bin(), STATE_FOLDER.to_owned()] {
        for name in host.list(&folder)? {
            let suffixes = [NEW_SUFFIX, candidate::SUFFIX, candidate::IMPORT_SUFFIX];
            if suffixes.iter().any(|suffix| name.ends_with(suffix)) {
                found.push(format!("{folder}/{name}"));
            }
        }
    }
    Ok(found)
}

/// What pods use at the moment at which binaries go.
pub(super) enum InUse {
    /// Handlers with the number of their sandboxes.
    Known(BTreeMap<String, usize>),
    /// The CRI gave no answer: anything may be.
    Unknown,
}

impl InUse {
    pub(super) async fn ask(host: &HostRoot, socket: &str, offline: bool) -> Self {
        if offline {
            return Self::Known(BTreeMap::new());
        }
        match cri::in_use(host, socket).await {
            Ok(in_use) => Self::Known(in_use),
            Err(error) => {
                warn!(%error, "binaries that leave stay until the next run");
                Self::Unknown
            }
        }
    }

    fn counts(&self, handler: &str) -> bool {
        match self {
            Self::Known(in_use) => in_use.contains_key(handler),
            Self::Unknown => true,
        }
    }
}
