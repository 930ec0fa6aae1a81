//! Restarts containerd and waits until the new process serves. What it should serve is the caller's business.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::cri::{self, Served};
use super::daemon::{Daemon, find_daemon};
use super::service::{self, Service};
use crate::installer::host::HostRoot;

/// The part of the limit for which there may be no process at all. Its manager has started it by then, or its own parent does so
/// soon; one that ended has refused its configuration, and waiting longer keeps the node without it.
const ABSENT_PART: u32 = 6;

/// Short beside the 65 ms that a start takes at least, and no load in a minute of asking.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Why containerd does not serve after a restart.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its manager could not restart it.
    #[error(transparent)]
    Service(#[from] service::Error),
    /// It runs and will not serve.
    #[error(transparent)]
    Cri(#[from] cri::Error),
    /// It did not answer in time.
    #[error("containerd did not come back within {limit:?}: {message}")]
    TooLong {
        /// The bound.
        limit: Duration,
        /// What the last look at it gave.
        message: String,
    },
    /// Its process is gone.
    #[error("containerd ended after its restart ({0})")]
    Ended(String),
    /// It serves something else.
    #[error("containerd came back, but {0}")]
    NotVerified(String),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Service(error) => return error.help(),
            Self::Cri(error) => return error.help(),
            Self::TooLong { .. } | Self::Ended(_) => Cow::Borrowed("see its log on the node"),
            Self::NotVerified(_) => return None,
        })
    }
}

/// Restarts the service and returns what the new process serves, and how long the CRI was away.
///
/// `before` is the process that must be gone by then. `count` grows by one if it is, whatever came after it.
///
/// # Errors
/// When the service does not restart, the CRI plugin is down, or nothing answers in time.
pub async fn restart(
    host: &HostRoot,
    service: &Service,
    socket: &str,
    before: Option<&Daemon>,
    count: &mut u32,
) -> Result<(Served, Duration), Error> {
    let served = try_restart(host, service, socket, before).await;
    // Unless the process of before goes on, it was ended, or one that did not last was started.
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
    let mut message = "nothing listens at its socket".to_owned();
    let mut present = Instant::now();
    let mut now: Option<Daemon> = None;
    while restarted.elapsed() < service.serve_limit {
        // Every process is looked at only while there is none: this goes on for minutes beside a containerd that starts slowly.
        if !now.as_ref().is_some_and(|now| now.still_runs(host)) {
            match find_daemon(host) {
                Ok(found) => now = found,
                Err(error) => {
                    // Nobody can tell that none is there.
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
                // Its runtime counts as not ready only while it starts.
                Ok(served) if served.ready => return Ok((served, since.elapsed())),
                Ok(_) => "its runtime is not ready".clone_into(&mut message),
                Err(error @ cri::Error::Unimplemented { .. }) => return Err(error.into()),
                Err(error) => message = error.to_string(),
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    let limit = service.serve_limit;
    Err(Error::TooLong { limit, message })
}
