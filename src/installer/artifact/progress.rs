//! Tells the progress of downloads: on a terminal a line that is redrawn, and otherwise a log line every ten seconds.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{Level, info};

/// Time between two log lines about one download.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two drawings of the line on a terminal.
const DRAW_INTERVAL: Duration = Duration::from_secs(1);
/// Most characters of that line: a longer one would wrap on a terminal with 80 columns, and a wrapped line can't be overwritten.
const COLUMNS: usize = 79;
/// Erases the rest of the line (ECMA-48, *EL*).
const ERASE: &str = "\x1b[K";

/// The running downloads, by the name of their shim.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<BTreeMap<String, Bytes>>);

/// The bytes of one download.
#[derive(Debug, Default)]
struct Bytes {
    received: u64,
    /// The size of the artifact, if the server tells it.
    total: Option<u64>,
    /// The bytes that were received when the progress was last told.
    told: u64,
}

/// One download, which ends when this is dropped.
pub(crate) struct Download<'a> {
    progress: &'a Progress,
    shim: &'a str,
}

impl Progress {
    /// Begins the download for a shim.
    pub(crate) fn begin<'a>(&'a self, shim: &'a str) -> Download<'a> {
        self.bytes().insert(shim.to_owned(), Bytes::default());
        let progress = self;
        Download { progress, shim }
    }

    /// Waits for `work`, and tells the progress of its downloads meanwhile.
    pub(crate) async fn tell_during<T>(&self, work: impl Future<Output = T>) -> T {
        if !(io::stderr().is_terminal() && tracing::enabled!(Level::INFO)) {
            let log = || {
                for (shim, progress) in self.tell(LOG_INTERVAL) {
                    info!(shim, "downloading: {progress}");
                }
            };
            return every(LOG_INTERVAL, work, log).await;
        }
        // The cursor stays at the beginning of the line, so that a log line overwrites it. A failure of these writes can't be told anywhere.
        let draw = || {
            let downloads = self.tell(DRAW_INTERVAL);
            let parts = downloads.iter().map(|(shim, it)| format!("{shim}: {it}"));
            let line = parts.collect::<Vec<_>>().join("; ");
            let line: String = line.chars().take(COLUMNS).collect();
            let _ = write!(io::stderr(), "{line}{ERASE}\r");
        };
        let done = every(DRAW_INTERVAL, work, draw).await;
        let _ = write!(io::stderr(), "{ERASE}");
        done
    }

    /// The progress of each download since the last call, which was `interval` ago.
    fn tell(&self, interval: Duration) -> Vec<(String, String)> {
        let mut downloads = self.bytes();
        let told = downloads.iter_mut().map(|(shim, bytes)| {
            let rate = bytes.received.saturating_sub(bytes.told) / interval.as_secs().max(1);
            bytes.told = bytes.received;
            let received = shown(bytes.received);
            let of = bytes.total.map(|total| format!(" of {}", shown(total)));
            let of = of.unwrap_or_default();
            (
                shim.clone(),
                format!("{received}{of} received, {}/s", shown(rate)),
            )
        });
        told.collect()
    }

    fn bytes(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        // The counters are valid after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Download<'_> {
    /// Begins an attempt to download an artifact of this size.
    pub(crate) fn begin_attempt(&self, total: Option<u64>) {
        self.update(|bytes| {
            *bytes = Bytes {
                total,
                ..Bytes::default()
            };
        });
    }

    /// Counts bytes that arrived.
    pub(crate) fn add(&self, received: u64) {
        self.update(|bytes| bytes.received = bytes.received.saturating_add(received));
    }

    fn update(&self, change: impl FnOnce(&mut Bytes)) {
        if let Some(bytes) = self.progress.bytes().get_mut(self.shim) {
            change(bytes);
        }
    }
}

impl Drop for Download<'_> {
    fn drop(&mut self) {
        self.progress.bytes().remove(self.shim);
    }
}

/// Waits for `work`, and calls `tell` each time that `interval` has passed.
async fn every<T>(interval: Duration, work: impl Future<Output = T>, mut tell: impl FnMut()) -> T {
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = ticks.tick() => tell(),
        }
    }
}

/// A number of bytes for people, in decimal units.
fn shown(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{}.{} kB", bytes / 1_000, bytes / 100 % 10),
        1_000_000.. => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, "0 B")]
    #[case(999, "999 B")]
    #[case(1_250, "1.2 kB")]
    #[case(45_060_000, "45.0 MB")]
    #[case(512 << 20, "536.8 MB")]
    fn bytes_are_shown_in_decimal_units(#[case] bytes: u64, #[case] expected: &str) {
        assert_eq!(shown(bytes), expected);
    }

    #[test]
    fn each_download_is_told_with_its_bytes_and_its_rate() {
        let progress = Progress::default();
        let interval = Duration::from_secs(10);
        let told = || progress.tell(interval);
        let of = |text: &str| vec![("spin".to_owned(), text.to_owned())];
        let download = progress.begin("spin");
        assert_eq!(told(), of("0 B received, 0 B/s"));
        download.begin_attempt(Some(45_000_000));
        download.add(12_300_000);
        assert_eq!(told(), of("12.3 MB of 45.0 MB received, 1.2 MB/s"));
        download.add(5_000);
        assert_eq!(told(), of("12.3 MB of 45.0 MB received, 500 B/s"));
        download.begin_attempt(None);
        assert_eq!(told(), of("0 B received, 0 B/s"));
        drop(download);
        assert_eq!(told(), []);
    }

    #[tokio::test]
    async fn the_progress_is_told_until_the_work_is_done() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let mut sender = Some(sender);
        let mut times = 0;
        let tell = || {
            times += 1;
            if times == 3 {
                sender.take().unwrap().send("done").unwrap();
            }
        };
        let done = every(Duration::from_millis(1), receiver, tell).await;
        assert_eq!(done, Ok("done"));
        assert_eq!(times, 3);
    }
}
