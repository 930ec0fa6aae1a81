//! Restarts containerd and waits until the new process serves the CRI. The caller checks the served handlers.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use tracing::info;

use super::cri::{self, STEADY, Served};
use super::daemon::{Daemon, find_daemon};
use super::patience::{LOG_INTERVAL, Next, Seen, Wait};
use super::process::{Clock, work};
use super::service::{self, Service};
use crate::installer::host::HostRoot;

/// Interval between two checks: short compared with a start of containerd (65 ms or more), and no load over minutes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Why containerd does not serve after a restart.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service manager failed to restart containerd.
    #[error(transparent)]
    Service(#[from] service::Error),
    /// containerd runs, and its CRI plugin does not.
    #[error(transparent)]
    Cri(#[from] cri::Error),
    /// containerd did not serve in time.
    #[error("containerd did not serve within {limit:?} after its restart: {message}")]
    TooLong {
        /// The limit.
        limit: Duration,
        /// Result of the last check.
        message: String,
    },
    /// The new process has ended. The field is the result of the last check.
    #[error("containerd ended after its restart: {0}")]
    Ended(String),
    /// The network of the pods was ready before the restart.
    #[error(
        "the network of pods was not ready within {limit:?} after the restart of containerd: {message}"
    )]
    NoNetwork {
        /// The time since containerd serves.
        limit: Duration,
        /// Result of the last check.
        message: String,
    },
    /// containerd serves other handlers than expected.
    #[error("containerd restarted, but {0}")]
    NotVerified(String),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Service(error) => return error.help(),
            Self::Cri(error) => return error.help(),
            Self::TooLong { .. } | Self::Ended(_) => {
                Cow::Borrowed("read the log of containerd on the node")
            }
            Self::NoNetwork { .. } => Cow::Borrowed(
                "check the CNI configuration of the node and the settings of the CNI in containerd's configuration",
            ),
            Self::NotVerified(_) => return None,
        })
    }
}

/// Restarts the service, and returns the handlers of the new process and the time without CRI.
///
/// `before` is the process that the restart ends. A new process that works is waited for up to `patience`. `count` grows by one once
/// `before` has ended, even if the restart failed.
///
/// # Errors
/// When the service does not restart, the CRI plugin does not run, or containerd does not serve in time.
pub async fn restart(
    host: &HostRoot,
    service: &Service,
    socket: &str,
    before: Option<&Daemon>,
    patience: Duration,
    count: &mut u32,
) -> Result<(Served, Duration), Error> {
    let served = try_restart(host, service, socket, before, patience).await;
    // If the former process has ended or was absent, the failed restart counts: it ended or started a containerd.
    if served.is_ok() || !before.is_some_and(|before| before.still_runs(host)) {
        *count += 1;
    }
    served
}

/// How long containerd takes to connect to the shims of its pods, at most. One that hangs longer is ended.
const STARTING: Duration = Duration::from_secs(15);

/// Waits until the network of the pods is ready, as it was before a restart. containerd reads the CNI's configuration before it serves, so
/// this takes a moment only where another program writes that configuration anew.
///
/// # Errors
/// When the network is not ready within `limit`.
pub(crate) async fn await_network(
    host: &HostRoot,
    socket: &str,
    limit: Duration,
) -> Result<(), Error> {
    let since = Instant::now();
    loop {
        let message = match cri::status(host, socket).await {
            Ok(status) if status.network.ready => return Ok(()),
            Ok(_) => "its condition NetworkReady is false".to_owned(),
            Err(error) => error.to_string(),
        };
        let waited = since.elapsed();
        if waited >= limit {
            let limit = Duration::from_secs(waited.as_secs());
            return Err(Error::NoNetwork { limit, message });
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// A new process that serves.
struct Serving {
    process: (u32, u64),
    begin: Instant,
    /// The time without a CRI before.
    away: Duration,
}

async fn try_restart(
    host: &HostRoot,
    service: &Service,
    socket: &str,
    before: Option<&Daemon>,
    patience: Duration,
) -> Result<(Served, Duration), Error> {
    await_started(host, socket).await;
    let since = Instant::now();
    match telling(&service.unit, service.restart(host)).await {
        // The manager goes on: the unit of k3s becomes active only when its containerd serves.
        Err(error) if error.is_timeout() => info!("{error}, and goes on"),
        restarted => restarted?,
    }
    let mut wait = Wait::new(service.serve_limit, since.elapsed(), patience);
    let mut message = "no process listens on its socket".to_owned();
    let mut now: Option<Daemon> = None;
    let mut serving: Option<Serving> = None;
    loop {
        let mut seen = look_for(host, before, &mut now, &mut message);
        if let Seen::Started {
            process,
            initializes,
            ..
        } = &mut seen
        {
            let answer = cri::served(host, socket).await;
            let serves = answer.as_ref().is_ok_and(|served| served.ready);
            serving = serving.filter(|it| serves && it.process == *process);
            match answer {
                // The runtime is not ready only during the start.
                Ok(served) if served.ready => {
                    let Serving { begin, away, .. } = serving.get_or_insert_with(|| Serving {
                        process: *process,
                        begin: Instant::now(),
                        away: since.elapsed(),
                    });
                    if begin.elapsed() >= STEADY {
                        return Ok((served, *away));
                    }
                    "its CRI has answered only for a moment".clone_into(&mut message);
                }
                Ok(_) => "its runtime is not ready".clone_into(&mut message),
                Err(error @ cri::Error::Unimplemented { .. }) => return Err(error.into()),
                Err(error) => {
                    *initializes = matches!(error, cri::Error::Uninitialized { .. });
                    message = error.to_string();
                }
            }
        }
        let waited = since.elapsed();
        let seconds = waited.as_secs();
        match wait.next(waited, seen) {
            _ if serving.is_some() => {}
            Next::Wait => {}
            Next::Tell => info!(seconds, "waiting for containerd to serve: {message}"),
            Next::Ended => return Err(Error::Ended(message)),
            Next::TooLong => {
                let limit = Duration::from_secs(seconds);
                return Err(Error::TooLong { limit, message });
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Does `work`, a restart of `unit`, and logs that it takes long.
async fn telling<T>(unit: &str, work: impl Future<Output = T>) -> T {
    let mut work = Box::pin(work);
    let since = Instant::now();
    loop {
        if let Ok(done) = tokio::time::timeout(LOG_INTERVAL, &mut work).await {
            return done;
        }
        info!(
            seconds = since.elapsed().as_secs(),
            "waiting for the service manager to restart {unit}"
        );
    }
}

/// Looks for the containerd that replaces `before`. `now` is the process that was found last, and `message` becomes the failure of a search.
fn look_for(
    host: &HostRoot,
    before: Option<&Daemon>,
    now: &mut Option<Daemon>,
    message: &mut String,
) -> Seen {
    // Scan all processes only while no containerd is known: a slow start can take minutes.
    if !now.as_ref().is_some_and(|now| now.still_runs(host)) {
        match find_daemon(host) {
            Ok(found) => *now = found,
            Err(error) => {
                *now = None;
                *message = error.to_string();
                return Seen::Unknown;
            }
        }
    }
    match now {
        None => Seen::Absent,
        Some(now) if before.is_some_and(|before| before.process == now.process) => Seen::Former,
        Some(now) => Seen::Started {
            process: now.process,
            work: work(host, now.process.0),
            initializes: false,
        },
    }
}

/// Waits while a containerd that was started just now does not serve yet. At its start, it connects to the shims of all pods. A containerd
/// that is ended meanwhile takes such a shim for dead and ends its pod (seen with 2.4.2). A killed run may have requested the start.
pub(crate) async fn await_started(host: &HostRoot, socket: &str) {
    loop {
        let Ok(Some(running)) = find_daemon(host) else {
            return;
        };
        let age = Clock::now().and_then(|clock| clock.age_of(running.process.1));
        if age.is_none_or(|age| age > STARTING) {
            return;
        }
        match cri::served(host, socket).await {
            Err(cri::Error::Uninitialized { .. } | cri::Error::Unavailable { .. }) => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Ok(_) | Err(_) => return,
        }
    }
}

/// Waits up to `patience` while `running` says that its CRI is not initialized yet. A restart would begin that anew.
pub(crate) async fn await_initialized(
    host: &HostRoot,
    socket: &str,
    running: &Daemon,
    patience: Duration,
) {
    let since = Instant::now();
    let mut told = Duration::ZERO;
    while since.elapsed() < patience && running.still_runs(host) {
        let Err(error @ cri::Error::Uninitialized { .. }) = cri::served(host, socket).await else {
            return;
        };
        let waited = since.elapsed();
        if waited.saturating_sub(told) >= LOG_INTERVAL {
            told = waited;
            let seconds = waited.as_secs();
            info!(seconds, "waiting for containerd to serve: {error}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
