//! Finishes or undoes what a former run left half done. What undoing is stands in `perform`, beside the changes that it undoes.

use tracing::info;

use super::Error;
use super::clearing::{InUse, finish, keep_used};
use super::cri::{self, Served};
use super::daemon::{Daemon, find_daemon};
use super::host::HostRoot;
use super::journal::Journal;
use super::perform::{Failure, bring_back, commit, forget, undo};
use super::state::{JOURNAL_FILE, STATE_FILE, STATE_FOLDER, STATE_LIMIT};

/// Undoes or finishes the change that a former run left half done; returns how often containerd was restarted for that, or `None`
/// where there was no such change.
///
/// # Errors
/// [`Failure::Broken`] when the host could not be put back, [`Failure::Refused`] when the journal can't be read.
pub async fn recover(host: &HostRoot, offline: bool) -> Result<Option<u32>, Failure> {
    let state = host.read_text(STATE_FILE, STATE_LIMIT);
    let loaded = state
        .map_err(Error::from)
        .and_then(|state| Ok((state, Journal::load(host)?)));
    let (state, mut journal) = match loaded.map_err(Failure::Refused)? {
        (state, None) => {
            if state.is_none() {
                forget_beginning(host);
            }
            return Ok(None);
        }
        (state, Some(journal)) => (state, journal),
    };
    if journal.is_committed(state.as_deref()) {
        info!("finishing a change that was interrupted");
        let in_use = InUse::ask(host, &journal.socket, offline).await;
        finish(host, &journal, &in_use).map_err(Failure::Refused)?;
        return Ok(Some(0));
    }
    let running = if offline {
        None
    } else {
        find_daemon(host).ok().flatten()
    };
    let has_restarted = has_restarted(host, &journal, running.as_ref()).await;
    if has_restarted && !journal.undone && journal.can_be_finished() && journal.stands(host) {
        info!("a change that ended with its own restart is live");
        let in_use = InUse::ask(host, &journal.socket, offline).await;
        keep_used(host, &mut journal, &in_use)
            .and_then(|_| commit(host, &journal))
            .and_then(|()| finish(host, &journal, &in_use))
            .map_err(Failure::Refused)?;
        return Ok(Some(0));
    }
    info!("undoing a change that was interrupted");
    let mut failures = undo(host, &journal).await;
    let mut restarts = 0;
    let is_back = journal.undone && has_restarted;
    if journal.restarting && !offline && !is_back {
        let restored = bring_back(host, &mut journal, running.as_ref(), &mut restarts).await;
        failures.extend(restored.err().map(|error| error.to_string()));
    }
    if failures.is_empty()
        && let Err(error) = forget(host, &journal)
    {
        failures.push(error.to_string());
    }
    if failures.is_empty() {
        return Ok(Some(restarts));
    }
    Err(Failure::Broken {
        cause: Error::Interrupted,
        failures,
        restarts,
    })
}

/// Whether another containerd than the one that the journal names serves what it should. Where a restart ends the pod that asked for
/// it, or the whole node, this is how the next run learns that it came about, and asks for no other.
async fn has_restarted(host: &HostRoot, journal: &Journal, running: Option<&Daemon>) -> bool {
    let is_another = running.is_some_and(|running| match journal.process {
        Some(before) => running.process != before,
        // None ran when everything was put back; only then does none say something.
        None => journal.undone,
    });
    let declared = |served: &Served| {
        let mut names = journal.declares.iter();
        names.all(|name| served.handlers.contains_key(name))
    };
    journal.restarting
        && is_another
        && matches!(
            cri::served(host, &journal.socket).await,
            Ok(served) if served.ready && (journal.undone || declared(&served))
        )
}

/// A run that was killed, or found no room, before its journal was on disk leaves a folder at most. Best effort, as nothing is in it.
fn forget_beginning(host: &HostRoot) {
    host.discard_new(JOURNAL_FILE);
    let _ = host.remove_folder(STATE_FOLDER);
}
