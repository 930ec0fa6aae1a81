//! Restarts containerd and waits until the new process serves the CRI. The caller checks the served handlers.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::cri::{self, Served};
use super::daemon::{Daemon, find_daemon};
use super::service::{self, Service};
use crate::installer::host::HostRoot;

/// Fraction of the limit (one sixth) for which no containerd process may exist. A service manager or supervisor has started containerd by
/// then. A containerd that ended has refused its configuration, and a longer wait only keeps the node without containerd.
const ABSENT_PART: u32 = 6;

/// Interval between two checks: short compared with a start of containerd (65 ms or more), and no load over a minute.
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
            Self::NotVerified(_) => return None,
        })
    }
}

/// Restarts the service, and returns the handlers of the new process and the time without CRI.
///
/// `before` is the process that the restart ends. `count` grows by one once `before` has ended, even if the restart failed.
///
/// # Errors
/// When the service does not restart, the CRI plugin does not run, or containerd does not serve in time.
pub async fn restart(
    host: &HostRoot,
    service: &Service,
    socket: &str,
    before: Option<&Daemon>,
    count: &mut u32,
) -> Result<(Served, Duration), Error> {
    let served = try_restart(host, service, socket, before).await;
    // If the former process has ended or was absent, the failed restart counts: it ended or started a containerd.
    if served.is_ok() || !before.is_some_and(|before| before.still_runs(host)) {
        *count += 1;
    }
    served
}

async fn try_restart(
    host: &HostRoot,
    service: &Service,
    socket: &str,
    before: Option<&Daemon>,
) -> Result<(Served, Duration), Error> {
    let since = Instant::now();
    service.restart(host).await?;
    let restarted = Instant::now();
    let mut message = "no process listens on its socket".to_owned();
    let mut present = Instant::now();
    let mut now: Option<Daemon> = None;
    while restarted.elapsed() < service.serve_limit {
        // Scan all processes only while no containerd is known: a slow start can take minutes.
        if !now.as_ref().is_some_and(|now| now.still_runs(host)) {
            match find_daemon(host) {
                Ok(found) => now = found,
                Err(error) => {
                    // Unknown does not count as absent.
                    (now, present) = (None, Instant::now());
                    message = error.to_string();
                }
            }
        }
        if now.is_some() {
            present = Instant::now();
        } else if present.elapsed() > service.serve_limit / ABSENT_PART {
            return Err(Error::Ended(message));
        }
        let process = now.as_ref().map(|now| now.process);
        if process.is_some() && process != before.map(|before| before.process) {
            match cri::served(host, socket).await {
                // The runtime is not ready only during the start.
                Ok(served) if served.ready => return Ok((served, since.elapsed())),
                Ok(_) => "its runtime is not ready".clone_into(&mut message),
                Err(error @ cri::Error::Unimplemented { .. }) => return Err(error.into()),
                Err(error) => message = error.to_string(),
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let limit = service.serve_limit;
    Err(Error::TooLong { limit, message })
}
