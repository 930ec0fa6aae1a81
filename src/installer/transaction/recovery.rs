//! Finishes or undoes the change of an interrupted run. The steps of undoing are in `rollback`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::cleanup::{InUse, commit, finish, retain_in_use};
use super::failure::{Error, Failure, Restarts};
use super::journal::Journal;
use super::rollback::{
    already_restored, discard_journal, pods_that_end, restart_on_restored_config, undo,
    verify_undone,
};
use crate::containerd_config::contains_handlers;
use crate::handoff::{EndingPod, Problem, RestartPolicy};
use crate::installer::containerd::cri::{self, Served};
use crate::installer::containerd::daemon::{self, Containerd, Daemon};
use crate::installer::containerd::patience::Deadline;
use crate::installer::containerd::service::{RestartEffect, Service};
use crate::installer::containerd::{restart, sandbox};
use crate::installer::host::{HostRoot, Target};
use crate::installer::inspect::{HostFacts, dump_config, gather};
use crate::installer::plan;
use crate::installer::plan::pending;
use crate::installer::plan::preconditions::check_ending_pods;
use crate::installer::state::{JOURNAL_FILE, STATE_DIRECTORY, STATE_FILE, STATE_LIMIT};

/// The time to wait for a restart in progress. A restart takes a second at most, or about eight seconds with the supervisor of k0s, which
/// collects changes for three seconds and starts an ended process after five.
const RESTART_WAIT: Duration = Duration::from_secs(15);

/// The interval between two inspections; one takes some 50 ms.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// What a recovery did.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The restarts of containerd.
    pub tally: Restarts,
    /// The pods that its restart ended.
    pub ended: Vec<EndingPod>,
}

/// The restarts that a recovery may make.
#[derive(Debug)]
pub struct Allowed {
    /// A restart that ends all pods of the node.
    pub pod_restarts: bool,
    /// A restart that ends pods whose shims report no process, by handler.
    pub policy: RestartPolicy,
}

/// Finishes or undoes the change of an interrupted run. Returns what that took, or `None` without such a change. The recovery ends before
/// `deadline`.
///
/// # Errors
/// [`Failure::Broken`] when undoing fails, [`Failure::Refused`] when the journal can't be read or the necessary restart is not allowed.
pub async fn recover(
    host: &HostRoot,
    target: Target,
    allowed: &Allowed,
    deadline: Deadline,
) -> Result<Option<Recovered>, Failure> {
    let state = host.read_text(STATE_FILE, STATE_LIMIT);
    let found = state
        .map_err(Error::from)
        .and_then(|state| Ok((state, Journal::load(host)?)));
    let (state, mut journal) = match found.map_err(Failure::Refused)? {
        (state, None) => {
            if state.is_none() {
                remove_empty_directories(host);
            }
            return Ok(None);
        }
        (state, Some(journal)) => (state, journal),
    };
    if journal.is_committed(state.as_deref()) {
        info!("finishing the interrupted change");
        let in_use = InUse::query(host, &journal, target).await;
        finish(host, &journal, &in_use).map_err(Failure::Refused)?;
        return Ok(Some(Recovered::default()));
    }
    let containerd = running(host, target).map_err(Failure::Refused)?;
    if let Containerd::Live(daemon) = &containerd
        && journal.restarting
        && journal.process != Some(daemon.process)
    {
        // The killed run may have been waiting for this containerd.
        restart::await_started(host, &journal.socket).await;
        let patience = deadline.for_change();
        restart::await_initialized(host, &journal.socket, daemon, patience).await;
    }
    if let Containerd::Live(_) = &containerd
        && !journal.prove.is_empty()
    {
        sandbox::remove_leftovers(host, &journal.socket).await;
    }
    if let Containerd::Live(daemon) = &containerd
        && is_live(host, &journal, daemon).await
        && is_proven(host, &journal, deadline).await
    {
        info!("the interrupted change is already in effect; finishing it");
        let in_use = InUse::query(host, &journal, target).await;
        retain_in_use(host, &mut journal, &in_use)
            .and_then(|_| commit(host, &journal))
            .and_then(|()| finish(host, &journal, &in_use))
            .map_err(Failure::Refused)?;
        return Ok(Some(Recovered::default()));
    }
    let patience = deadline.for_rollback();
    let undone = roll_back_interrupted(host, &mut journal, &containerd, allowed, patience);
    undone.await.map(Some)
}

/// Gathers the facts of a host after a recovery. The killed run may have requested a restart that is still in progress, so the facts are
/// gathered again for [`RESTART_WAIT`] until containerd serves.
///
/// # Errors
/// As for [`gather`].
pub(crate) async fn gather_after(
    host: &HostRoot,
    config: Option<&str>,
    target: Target,
) -> Result<HostFacts, Error> {
    let since = Instant::now();
    loop {
        let facts = gather(host, config, target).await?;
        let serves = facts.served.as_ref().is_ok_and(|served| served.ready);
        let is_queried = target == Target::Live && facts.distro.unsupported.is_none();
        if serves || !is_queried || since.elapsed() > RESTART_WAIT {
            return Ok(facts);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The running containerd of the host.
///
/// # Errors
/// When `/proc` can't be read, or root runs only a containerd that does not count, or several with an unknown kubelet. The containerd of the
/// cluster may serve the change, so undoing the change could take its restart.
fn running(host: &HostRoot, target: Target) -> Result<Containerd, Error> {
    let mut containerd = daemon::find(host, target)?.containerd;
    match &mut containerd {
        Containerd::NotFound { refused } => {
            refused.retain(|refusal| !refusal.is_user_process());
            if !refused.is_empty() {
                let refused = std::mem::take(refused);
                return Err(plan::Error::NoDaemon { refused }.into());
            }
        }
        Containerd::UnknownKubelet { refused } => {
            let refused = std::mem::take(refused);
            return Err(plan::Error::UnknownKubelet { refused }.into());
        }
        Containerd::NotOfKubelet {
            socket,
            of_distro,
            refused,
        } => {
            let error = plan::Error::NotOfKubelet {
                socket: socket.take(),
                of_distro: of_distro.take(),
                refused: std::mem::take(refused),
            };
            return Err(error.into());
        }
        Containerd::Live(_) | Containerd::Image => {}
    }
    Ok(containerd)
}

/// Whether only the state file of the change is missing: another containerd process than that of the journal serves the expected
/// handlers. After a restart that ended the installer's pod or the whole node, the next run detects the completed restart this way.
async fn is_live(host: &HostRoot, journal: &Journal, running: &Daemon) -> bool {
    let is_another = journal.process != Some(running.process);
    let Some(expected) = &journal.expected else {
        return false;
    };
    if !journal.restarting || journal.undone || !is_another {
        return false;
    }
    if !journal.can_be_finished() || !journal.has_written_config(host) {
        return false;
    }
    let declared = match cri::served(host, &journal.socket).await {
        Ok(served) if expected.verify_change(&served).is_ok() => expected.declared_in(&served),
        Ok(_) | Err(_) => return false,
    };
    if declared.is_empty() {
        return true;
    }
    // A distribution may have rendered the file again, so the file must also declare the handlers for the next start.
    let dump = dump_config(host, &running.program, &journal.root).await;
    dump.is_ok_and(|dump| contains_handlers(&dump, &declared).is_ok())
}

/// Runs the sandboxes that the interrupted run may not have run. If one of them fails, the change is undone, and the present run makes it
/// again and reports the failure.
async fn is_proven(host: &HostRoot, journal: &Journal, deadline: Deadline) -> bool {
    let (Some(expected), false) = (&journal.expected, journal.prove.is_empty()) else {
        return true;
    };
    let Ok(served) = cri::served(host, &journal.socket).await else {
        return false;
    };
    // What the distribution declares in place of Farrier is not proven.
    let declared = expected.declared_in(&served);
    let prove = journal.prove.iter();
    let prove = prove.filter(|name| declared.iter().any(|handler| handler.name == **name));
    let prove: BTreeSet<String> = prove.cloned().collect();
    let proven = sandbox::prove(host, &journal.socket, &prove, deadline).await;
    if let Err(error) = &proven {
        warn!(%error, "the interrupted change fails its proof");
    }
    proven.is_ok()
}

/// Undoes the interrupted change, and restarts containerd if it may have loaded the change.
async fn roll_back_interrupted(
    host: &HostRoot,
    journal: &mut Journal,
    containerd: &Containerd,
    allowed: &Allowed,
    patience: Duration,
) -> Result<Recovered, Failure> {
    let mut tally = Restarts::default();
    let mut ending = Vec::new();
    let may_have_restarted = journal.restarting && containerd.target() == Target::Live;
    let service = journal.service_to_undo(host);
    let mut served = None;
    if may_have_restarted {
        let restored = already_restored(host, journal).await;
        served = match restored.map_err(|error| Failure::Refused(error.into()))? {
            None => already_undone(host, journal).await,
            restored => restored,
        };
        if served.is_none() {
            let daemon = containerd.daemon();
            // Undoing needs no facts.
            let facts = match daemon {
                Some(_) => gather(host, Some(&journal.root), Target::Live).await.ok(),
                None => None,
            };
            let checked = check_restart(host, journal, &service, daemon, facts.as_ref(), allowed);
            ending = checked.await.map_err(Failure::Refused)?;
            if let Some(facts) = facts {
                let checked = check_pending(host, facts).await;
                checked.map_err(Failure::Refused)?;
            }
        }
    }
    info!("undoing the interrupted change");
    let mut failures = undo(host, journal).await;
    if may_have_restarted && served.is_none() {
        let running = containerd.daemon();
        let restored =
            restart_on_restored_config(host, journal, &service, running, patience, &mut tally);
        match restored.await {
            Ok(restored) => served = Some(restored),
            Err(error) => failures.push(Problem::new(&error, error.help())),
        }
    }
    if failures.is_empty()
        && let Err(error) = discard_journal(host, journal)
    {
        failures.push(Problem::new(&error, error.help()));
    }
    // After the journal is removed, so only this run reports the difference: an administrator may have made it in the meantime.
    let differs = served.and_then(|served| verify_undone(journal, &served).err());
    failures.extend(differs);
    let ended = if tally.restarts > 0 {
        ending
    } else {
        Vec::new()
    };
    if failures.is_empty() {
        return Ok(Recovered { tally, ended });
    }
    Err(Failure::Broken {
        cause: Error::Interrupted,
        failures,
        tally,
        ended,
    })
}

/// The handlers that containerd serves, if they and the configuration are the same as before the change. A run that was killed before it
/// wrote the configuration, or after it restored it, leaves a journal whose restart is unnecessary.
async fn already_undone(host: &HostRoot, journal: &Journal) -> Option<Served> {
    let before = journal.expected.as_ref()?.before();
    let served = cri::served(host, &journal.socket).await.ok()?;
    let is_same = served.has_same_handlers(&before) && journal.has_original_config(host);
    is_same.then_some(served)
}

/// Checks before the undoing that containerd can and may be restarted, and returns the pods that the restart will end. A service whose
/// restart has an unknown effect passes: the files are restored even if the restart fails. The pods may have run for days since the
/// interrupted run, so its own permission to end pods does not count.
///
/// # Errors
/// When Farrier's PID namespace rules out the restart, or the restart ends pods that may not end. Nothing was changed by then.
async fn check_restart(
    host: &HostRoot,
    journal: &Journal,
    service: &Service,
    daemon: Option<&Daemon>,
    facts: Option<&HostFacts>,
    allowed: &Allowed,
) -> Result<Vec<EndingPod>, Error> {
    let reachable = service.check_reachable(host);
    reachable.map_err(restart::Error::Service)?;
    let status = service.status(host).await;
    match status.map(|status| status.restart_effect) {
        Ok(RestartEffect::PodsEnd { .. } | RestartEffect::NodeEnds) if !allowed.pod_restarts => {
            return Err(Error::InterruptedWithPods);
        }
        Ok(_) | Err(_) => {}
    }
    let Some(daemon) = daemon else {
        return Ok(Vec::new());
    };
    let ending = pods_that_end(host, &journal.socket, daemon).await;
    if !allowed.pod_restarts {
        // Pods of handlers that the interrupted change declared may have started since.
        let is_own = |handler: &str| {
            facts.is_some_and(|facts| facts.is_own(handler))
                || journal.declares.iter().any(|declared| declared == handler)
        };
        check_ending_pods(&ending, &allowed.policy.clone().limited_to(is_own))?;
    }
    Ok(ending.unwrap_or_default())
}

/// Checks before the undoing that a restart would not put a change of others into effect with which containerd does not start. containerd has
/// loaded the interrupted change, so a start that fails now fails because of others. Whatever else others changed since does not delay the
/// undoing.
///
/// # Errors
/// The changes of others. Nothing was changed by then.
async fn check_pending(host: &HostRoot, mut facts: HostFacts) -> Result<(), Error> {
    if !facts.restart_inputs.need_rehearsal() {
        return Ok(());
    }
    if let Err(problem) = &facts.dump {
        return Err(Error::ConfigRefused(problem.clone()));
    }
    facts.rehearse_pending(host).await;
    pending::check(&facts, true).map_err(plan::Error::from)?;
    Ok(())
}

/// Removes the empty state directory of a run that was killed, or had no disk space, before it wrote its journal. Best effort.
fn remove_empty_directories(host: &HostRoot) {
    host.discard_new(JOURNAL_FILE);
    let _ = host.remove_directory(STATE_DIRECTORY);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::installer::containerd::process::tests::{CONTAINERD, Given, Tree};

    #[test]
    fn a_recovery_is_refused_while_only_an_untrusted_containerd_runs() {
        let tree = Tree::new("0::/init.scope\n", &["/run/systemd/system"]);
        let none = Containerd::NotFound {
            refused: Vec::new(),
        };
        assert_eq!(running(&tree.host(), Target::Live).unwrap(), none);
        let of_a_user = Given {
            uids: "1000\t1000\t1000\t1000",
            ..CONTAINERD
        };
        tree.process(900, &of_a_user);
        assert_eq!(running(&tree.host(), Target::Live).unwrap(), none);
        tree.process(812, &CONTAINERD);
        tree.mode("/usr/bin/containerd", 0o777);
        let error = running(&tree.host(), Target::Live).unwrap_err().to_string();
        assert!(error.contains("process 812"), "{error}");
        // Two containerd, of which one is that of a kubelet which others can change.
        tree.mode("/usr/bin/containerd", 0o755);
        tree.process(813, &CONTAINERD);
        tree.process(
            901,
            &Given {
                comm: "kubelet",
                program: "/usr/bin/kubelet",
                ..CONTAINERD
            },
        );
        tree.mode("/usr/bin/kubelet", 0o757);
        let error = running(&tree.host(), Target::Live).unwrap_err();
        assert!(error.to_string().contains("process 901"), "{error}");
        assert_eq!(
            error.help().unwrap(),
            "move the program elsewhere, or run `chmod o-w /usr/bin/kubelet` on the host"
        );
        let image = running(&tree.host(), Target::Image).unwrap();
        assert_eq!(image, Containerd::Image);
    }
}
