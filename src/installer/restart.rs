//! Restarts containerd and waits until the new process serves. What it should serve is the caller's business.

use std::time::{Duration, Instant};

use super::cri::{self, Served};
use super::facts::{Daemon, find_daemon};
use super::host::HostRoot;
use super::systemd::{self, Systemd};

/// containerd answers 0.1 to 0.3 s after its start, with hundreds of pods after seconds; releases that run every shim's `-info` at
/// the start, one after the other, take longer.
const SERVE_LIMIT: Duration = Duration::from_mins(1);

/// Short beside the 65 ms that a start takes at least, and no load in a minute of asking.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Why containerd does not serve after a restart.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// systemd could not restart it.
    #[error(transparent)]
    Systemd(#[from] systemd::Error),
    /// It runs and will not serve.
    #[error(transparent)]
    Cri(#[from] cri::Error),
    /// It did not answer in time.
    #[error(
        "containerd did not come back within {SERVE_LIMIT:?}: {0}; see `journalctl -u containerd` on the node"
    )]
    TooLong(String),
    /// It serves something else.
    #[error("containerd came back, but {0}")]
    Unproven(String),
}

/// Restarts `unit` and returns what the new process serves, and how long the CRI was away.
///
/// `before` is the process that must be gone by then.
///
/// # Errors
/// When the unit does not restart, the CRI plugin is down, or nothing answers in time.
pub async fn restart(
    host: &HostRoot,
    unit: &str,
    socket: &str,
    before: Option<&Daemon>,
) -> Result<(Served, Duration), Error> {
    let since = Instant::now();
    Systemd::connect(host).await?.restart(unit).await?;
    let restarted = Instant::now();
    let mut words = "nothing listens at its socket".to_owned();
    while restarted.elapsed() < SERVE_LIMIT {
        let is_new = find_daemon(host)
            .ok()
            .flatten()
            .is_some_and(|now| before.is_none_or(|before| before.process != now.process));
        if is_new {
            match cri::served(host, socket).await {
                // Its runtime counts as not ready only while it starts.
                Ok(served) if served.ready => return Ok((served, since.elapsed())),
                Ok(_) => "its runtime is not ready".clone_into(&mut words),
                Err(error @ cri::Error::Unimplemented { .. }) => return Err(error.into()),
                Err(error) => words = error.to_string(),
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    Err(Error::TooLong(words))
}
