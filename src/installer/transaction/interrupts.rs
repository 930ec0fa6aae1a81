//! SIGTERM, SIGINT and SIGHUP: whether one has come, for a change that looks between its steps and while it waits.

use std::future::poll_fn;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use futures::FutureExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::Error;

/// The signals that ask a run to end. The first one counts. A later one changes nothing: whatever the run does by then ends it as soon as
/// the host allows, and a host that is left half changed needs another run. SIGKILL remains, and the journal for the run after that.
#[derive(Debug, Default)]
pub struct Interrupts {
    signals: Mutex<Vec<(&'static str, Signal)>>,
    received: OnceLock<&'static str>,
}

impl Interrupts {
    /// Listens for SIGTERM and SIGINT from now on, and for SIGHUP, which the end of a terminal's connection sends: they don't end this process any more, and the kernel delivers them also where it is
    /// process 1 of a container (`pid_namespaces(7)`). SIGHUP stays ignored where `nohup(1)` has it so. A value of [`Default`] leaves the signals to their usual effect.
    ///
    /// # Errors
    /// When the kernel takes no handler.
    pub fn listen() -> io::Result<Self> {
        let mut signals = vec![
            ("SIGTERM", signal(SignalKind::terminate())?),
            ("SIGINT", signal(SignalKind::interrupt())?),
        ];
        if !ignores_hangup() {
            signals.push(("SIGHUP", signal(SignalKind::hangup())?));
        }
        Ok(Self {
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

    /// The name of the signal that came, as soon as one has.
    pub async fn received(&self) -> &'static str {
        poll_fn(|context| self.poll(context)).await
    }

    /// The name of the signal that has come by now.
    pub(crate) async fn try_received(&self) -> Option<&'static str> {
        // The runtime looks for signals when its task waits, and the steps of a change don't.
        tokio::task::yield_now().await;
        self.received().now_or_never()
    }

    /// # Errors
    /// [`Error::Signal`] where one has come.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        self.try_received()
            .await
            .map_or(Ok(()), |name| Err(Error::Signal { name }))
    }

    /// Does `work`, which changes nothing that isn't undone when it is cut off.
    ///
    /// # Errors
    /// [`Error::Signal`] where a signal comes first.
    pub(crate) fn run_unless_interrupted<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> impl Future<Output = Result<T, Error>> {
        // On the heap: whatever waits for the work would hold it twice.
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
