//! Receives SIGTERM, SIGINT and SIGHUP, and has the deadline of a run. A change checks for signals between its steps and while it waits.

use std::future::poll_fn;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use futures::FutureExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::Error;
use crate::installer::containerd::patience::Deadline;

/// What ends a run from outside: signals, and its deadline. The first signal counts, and later ones have no effect: the run is already undoing or finishing its
/// change, and ending it sooner would leave a half-changed host. After SIGKILL, the next run works from the journal.
#[derive(Debug, Default)]
pub struct Interrupts {
    /// When the run is ended without a signal that it could obey.
    pub deadline: Deadline,
    signals: Mutex<Vec<(&'static str, Signal)>>,
    received: OnceLock<&'static str>,
}

impl Interrupts {
    /// Handles SIGTERM, SIGINT and SIGHUP (the end of a terminal's connection) from now on, so they no longer end this process. With a
    /// handler, the kernel delivers them also to PID 1 of a container (`pid_namespaces(7)`). SIGHUP stays ignored under `nohup(1)`. A
    /// value of [`Default`] leaves the default action of the signals.
    ///
    /// # Errors
    /// When registering a signal handler fails.
    pub fn listen() -> io::Result<Self> {
        let mut signals = vec![
            ("SIGTERM", signal(SignalKind::terminate())?),
            ("SIGINT", signal(SignalKind::interrupt())?),
        ];
        if !ignores_hangup() {
            signals.push(("SIGHUP", signal(SignalKind::hangup())?));
        }
        Ok(Self {
            deadline: Deadline::default(),
            signals: Mutex::new(signals),
            received: OnceLock::new(),
        })
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<&'static str> {
        if let Some(name) = self.received.get() {
            return Poll::Ready(name);
        }
        let mut signals = self.signals.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, signal) in signals.iter_mut() {
            if signal.poll_recv(context).is_ready() {
                return Poll::Ready(self.received.get_or_init(|| name));
            }
        }
        Poll::Pending
    }

    /// Waits for the first signal and returns its name.
    pub async fn received(&self) -> &'static str {
        poll_fn(|context| self.poll(context)).await
    }

    /// The name of the first signal, if one has arrived.
    pub(crate) async fn try_received(&self) -> Option<&'static str> {
        // Tokio processes signals only when a task yields, and the steps of a change do not yield.
        tokio::task::yield_now().await;
        self.received().now_or_never()
    }

    /// Checks between two steps that no signal has arrived.
    ///
    /// # Errors
    /// [`Error::Signal`] after a signal.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        self.try_received()
            .await
            .map_or(Ok(()), |name| Err(Error::Signal { name }))
    }

    /// Runs `work` until it ends or a signal arrives. Dropping `work` halfway must leave only changes that the journal undoes.
    ///
    /// # Errors
    /// [`Error::Signal`] when a signal arrives before the end of `work`.
    pub(crate) fn run_unless_interrupted<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> impl Future<Output = Result<T, Error>> {
        // On the heap: the caller's future would hold the work twice.
        let work = Box::pin(work);
        async move {
            tokio::select! {
                biased;
                name = self.received() => Err(Error::Signal { name }),
                done = work => Ok(done),
            }
        }
    }
}

/// Whether this process was started with SIGHUP ignored (`proc_pid_status(5)`, `SigIgn`: the lowest bit is that of signal 1).
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 != 0)
}
