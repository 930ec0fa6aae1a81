//! Restores the host and containerd to their state before a change. Called by the run that began the change, or by a later run that finds
//! the change unfinished (`recovery`). These callers decide whether to undo.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use tracing::warn;

use super::failure::{Error, Failure, Progress, Restarts};
use super::journal::{Journal, Undo, put_config};
use crate::handoff::{EndingPod, Problem};
use crate::installer::containerd::cri::{self, Served};
use crate::installer::containerd::daemon::{Daemon, find_daemon};
use crate::installer::containerd::patience::Deadline;
use crate::installer::containerd::restart::{self, restart};
use crate::installer::containerd::service::Service;
use crate::installer::containerd::tasks::ending_pods;
use crate::installer::host::{self, HostRoot, Target, text_digest};
use crate::installer::inspect::{gather, release_of};
use crate::installer::plan::remove_declarations;
use crate::installer::state::{JOURNAL_FILE, STATE_FILE};

/// Restarts containerd and adds the restarts to `tally`. `before` is the process that must have ended afterwards, and a new process that
/// works is waited for up to `patience`.
///
/// # Errors
/// As for [`restart`].
pub(crate) async fn restart_and_count(
    host: &HostRoot,
    service: &Service,
    socket: &str,
    before: Option<&Daemon>,
    patience: Duration,
    tally: &mut Restarts,
) -> Result<Served, restart::Error> {
    let (since, mut count) = (Instant::now(), 0);
    let served = restart(host, service, socket, before, patience, &mut count).await;
    if count > 0 {
        let away = match &served {
            Ok((_, away)) => *away,
            Err(_) => since.elapsed(),
        };
        tally.restarts += count;
        tally.away = Some(tally.away.unwrap_or_default() + away);
    }
    served.map(|(served, _)| served)
}

/// Undoes the change before `deadline` and returns the state of the host afterwards.
pub(crate) async fn roll_back(
    host: &HostRoot,
    journal: &mut Journal,
    cause: Error,
    progress: Progress,
    deadline: Deadline,
) -> Failure {
    warn!(%cause, "undoing the change");
    let Progress { live, mut tally } = progress;
    // Before the undoing: a supervisor that watches the configuration restarts containerd as soon as the files change.
    let running = find_daemon(host);
    let service = journal.service_to_undo(host);
    let (mut ending, restarts) = (Vec::new(), tally.restarts);
    if journal.restarting
        && let Ok(Some(daemon)) = &running
        // The process from before the change needs no restart.
        && journal.process != Some(daemon.process)
    {
        // Whatever these pods are: without the restart, containerd would serve a configuration that is no longer on the disk. The restart of
        // the change ended all such pods seconds ago, where its policy allowed that.
        let pods = pods_that_end(host, &journal.socket, daemon).await;
        ending = pods.unwrap_or_default();
    }
    let mut failures = undo(host, journal).await;
    if journal.restarting {
        let restored = match running {
            Ok(running) => {
                let patience = deadline.for_rollback();
                serve_restored_config(host, journal, &service, running, patience, &mut tally).await
            }
            // After a failed search, the old containerd may still run and could be mistaken for the restarted one.
            Err(error) => Err(error.into()),
        };
        let verified = restored
            .map_err(|error| Problem::new(&error, error.help()))
            .and_then(|served| verify_undone(journal, &served));
        failures.extend(verified.err());
    }
    if failures.is_empty()
        && let Err(error) = discard_journal(host, journal)
    {
        failures.push(Problem::new(&error, error.help()));
    }
    let ended = if tally.restarts > restarts {
        ending
    } else {
        Vec::new()
    };
    if !failures.is_empty() {
        Failure::Broken {
            cause,
            failures,
            tally,
            ended,
        }
    } else if live {
        Failure::RolledBack {
            cause,
            tally,
            ended,
        }
    } else {
        Failure::Refused(cause)
    }
}

/// How long the pods are looked for that a restart ends. This takes some 20 ms; a containerd that does not answer has to be restarted.
const PODS_LIMIT: Duration = Duration::from_secs(5);

/// The pods that a restart of `daemon` ends; none if its CRI does not answer, as only a restart brings it back then.
///
/// # Errors
/// When the CRI answers, and does not list its pods.
pub(crate) async fn pods_that_end(
    host: &HostRoot,
    socket: &str,
    daemon: &Daemon,
) -> Result<Vec<EndingPod>, Problem> {
    let served = timeout(PODS_LIMIT, cri::served(host, socket)).await;
    let Ok(Ok(served)) = served else {
        return Ok(Vec::new());
    };
    let ending = async {
        let sandboxes = cri::sandboxes(host, socket).await?;
        let release = release_of(host, &daemon.program).await;
        ending_pods(host, socket, &sandboxes, &served, release).await
    };
    match timeout(PODS_LIMIT, ending).await {
        Ok(ending) => ending.map_err(|error| Problem::new(&error, error.help())),
        Err(_) => Err(Problem::new("containerd does not list its pods", None)),
    }
}

/// Makes containerd serve the restored configuration, with a restart if necessary. `running` is the process from before the undoing.
async fn serve_restored_config(
    host: &HostRoot,
    journal: &mut Journal,
    service: &Service,
    running: Option<Daemon>,
    patience: Duration,
    tally: &mut Restarts,
) -> Result<Served, Error> {
    if let Some(served) = already_restored(host, journal).await? {
        return Ok(served);
    }
    let running = running.as_ref();
    let restored = restart_on_restored_config(host, journal, service, running, patience, tally);
    Ok(restored.await?)
}

/// Checks that containerd serves the same handlers as before the change, if the journal has them.
///
/// # Errors
/// One sentence with the difference.
pub(crate) fn verify_undone(journal: &Journal, served: &Served) -> Result<(), Problem> {
    match &journal.expected {
        Some(expected) => expected
            .verify_undone(served)
            .map_err(|difference| Problem::new(difference, None)),
        None => Ok(()),
    }
}

/// Undoes the steps of the journal, and removes Farrier's tables from configuration files that were edited since. Returns the errors of the
/// failed steps.
pub(crate) async fn undo(host: &HostRoot, journal: &Journal) -> Vec<Problem> {
    let undone = journal.undo(host);
    let mut failures = undone.failures;
    if undone.config_changed {
        let result = match gather(host, Some(&journal.root), Target::Image).await {
            Ok(facts) => remove_declarations(&facts, &journal.declares).map_err(Error::from),
            Err(error) => Err(Error::from(error)),
        };
        let written = result.and_then(|changes| {
            for change in changes {
                let now = text_digest(change.before.as_deref());
                let after = change.after.as_deref();
                put_config(host, &change.path, after, now)?;
            }
            Ok(())
        });
        failures.extend(
            written
                .err()
                .map(|error| Problem::new(&error, error.help())),
        );
    }
    failures
}

/// Removes the journal of an undone change, and the directories that the change created.
pub(crate) fn discard_journal(host: &HostRoot, journal: &Journal) -> Result<(), Error> {
    journal.discard(host)?;
    host.discard_new(STATE_FILE);
    host.discard_new(JOURNAL_FILE);
    host.remove_file(JOURNAL_FILE)?;
    for step in journal.undo.iter().rev() {
        if let Undo::Directory { path } = step {
            host.remove_directory(path)?;
        }
    }
    Ok(())
}

/// The handlers that containerd serves, if it has loaded the configuration from before the change and needs no restart: either it is the
/// process from before the change, or it started after the files were restored. `None` also if no containerd runs or serves.
///
/// # Errors
/// When the search for the running containerd fails.
pub(crate) async fn already_restored(
    host: &HostRoot,
    journal: &Journal,
) -> Result<Option<Served>, host::Error> {
    let Some(now) = find_daemon(host)? else {
        return Ok(None);
    };
    let is_same = journal.process == Some(now.process);
    if is_same == journal.undone {
        return Ok(None);
    }
    let served = cri::served(host, &journal.socket).await.ok();
    Ok(served.filter(|served| served.ready))
}

/// Restarts containerd with the restored configuration, and returns the handlers that it serves. `running` is the process that must have
/// ended afterwards.
pub(crate) async fn restart_on_restored_config(
    host: &HostRoot,
    journal: &mut Journal,
    service: &Service,
    running: Option<&Daemon>,
    patience: Duration,
    tally: &mut Restarts,
) -> Result<Served, restart::Error> {
    journal.undone = true;
    journal.process = running.map(|daemon| daemon.process);
    // Best effort: without this record, the next run restarts containerd once more.
    let _ = journal.save(host);
    let socket = &journal.socket;
    restart_and_count(host, service, socket, running, patience, tally).await
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::containerd_config;

    fn causes() -> [Error; 3] {
        // The first error can also arise after a restart, from a rendered configuration.
        let not_visible = containerd_config::Error::HandlerNotVisible {
            handler: "a".to_owned(),
        };
        let not_verified = restart::Error::NotVerified("it differs".to_owned());
        [
            Error::Config(not_visible),
            Error::ConfigRefused(Problem::new("no", None)),
            Error::Restart(not_verified),
        ]
    }

    fn journal(restarting: bool) -> Journal {
        let text = format!(
            r#"{{"apiVersion":"farrier.dev/v1","undo":[],"declares":[],"root":"/c","unit":"u","socket":"/s","restarting":{restarting},"commits":null}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[tokio::test]
    async fn a_containerd_that_can_t_be_looked_for_is_not_taken_for_one_that_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("proc", directory.path().join("proc")).unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        let cause = Error::ConfigRefused(Problem::new("no", None));
        let progress = Progress {
            live: true,
            ..Progress::default()
        };
        let deadline = Deadline::default();
        let failure = roll_back(&host, &mut journal(true), cause, progress, deadline).await;
        let Failure::Broken { failures, .. } = failure else {
            panic!("{failure:?}");
        };
        assert!(failures[0].message.contains("/proc"), "{failures:?}");
        assert_eq!(failures.len(), 1, "{failures:?}");
    }

    #[rstest]
    #[tokio::test]
    async fn a_change_that_took_effect_is_rolled_back_and_not_refused(
        #[values(false, true)] live: bool,
    ) {
        for cause in causes() {
            let directory = tempfile::tempdir().unwrap();
            let host = HostRoot::open(directory.path()).unwrap();
            let mut journal = journal(false);
            let progress = Progress {
                live,
                ..Progress::default()
            };
            let deadline = Deadline::default();
            let failure = roll_back(&host, &mut journal, cause, progress, deadline).await;
            assert_eq!(matches!(failure, Failure::RolledBack { .. }), live);
            assert_eq!(matches!(failure, Failure::Refused(_)), !live);
        }
    }
}
