//! What a restart of containerd reads, each with its last change by the clock of the host. `inspect::pending` finds it, and `plan::pending`
//! decides.

use std::time::Duration;

use crate::handoff::Problem;
use crate::installer::containerd::rehearsal::Rehearsal;
use crate::installer::host::path::file_name;

/// How far the clock may have been set back since containerd started, if nothing shows that it was not. An edit right after the start then
/// seems older than the process.
const CLOCK_STEP: Duration = Duration::from_mins(1);

/// How long containerd takes from its start until it listens, at most, for its socket to show that the clock was not set. This takes 0.1 s
/// on an idle node, and many seconds with hundreds of pods or on a busy node.
const LISTEN_LIMIT: Duration = Duration::from_mins(1);

/// Resolution of the start time of a process and of the times of a file together: a clock tick and a timer interrupt, 10 ms each. The times
/// of files lag by more where a virtual machine waits for its processor, as the kernel takes them from its last timer interrupt.
const RESOLUTION: Duration = Duration::from_millis(20);

/// Everything that a restart of containerd reads.
#[derive(Debug, Clone, PartialEq)]
pub struct RestartInputs {
    /// The files and directories.
    pub inputs: Vec<Input>,
    /// The start of a second containerd on the present files.
    pub rehearsal: Rehearsal,
}

impl RestartInputs {
    /// Whether the verdict on an input depends on a rehearsal.
    #[must_use]
    pub fn need_rehearsal(&self) -> bool {
        let is_open = |input: &Input| {
            let is_unknown = matches!(input.contents, Contents::Foreign | Contents::Edited);
            let is_rehearsed = match input.kind {
                InputKind::Config
                | InputKind::AbsentConfig
                | InputKind::ImportDirectory
                | InputKind::Program => true,
                InputKind::NriPlugin
                | InputKind::NriPlugins
                | InputKind::Unit
                | InputKind::Distribution => false,
            };
            is_unknown && is_rehearsed && input.change.is_pending()
        };
        self.inputs.iter().any(is_open)
    }
}

impl RestartInputs {
    /// The path of the program of containerd where a restart starts another one than the running one.
    #[must_use]
    pub fn replaced_program(&self) -> Option<&str> {
        let mut inputs = self.inputs.iter();
        let replaced = inputs.find(|input| {
            let is_containerd = file_name(&input.path).contains("containerd");
            (input.kind, input.change) == (InputKind::Program, Change::Replaced) && is_containerd
        });
        Some(replaced?.path.as_str())
    }
}

impl Default for RestartInputs {
    fn default() -> Self {
        Self {
            inputs: Vec::new(),
            rehearsal: Rehearsal::NotPossible(Problem::new("no rehearsal was made", None)),
        }
    }
}

/// A file or directory that a restart of containerd reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Absolute path on the host; for [`Change::NotReloaded`], the name of the unit.
    pub path: String,
    /// What it is.
    pub kind: InputKind,
    /// Its last change.
    pub change: Change,
    /// Whose contents it has.
    pub contents: Contents,
}

/// What an input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// A file of containerd's configuration.
    Config,
    /// The root configuration file where it is absent: containerd loads its defaults. The change is that of the directory.
    AbsentConfig,
    /// A directory that the configuration imports files from.
    ImportDirectory,
    /// The program.
    Program,
    /// An NRI plugin, which containerd starts.
    NriPlugin,
    /// The directory of the NRI plugins.
    NriPlugins,
    /// A file of the unit: unit file, drop-in or environment file, or a directory of drop-ins.
    Unit,
    /// A file or directory of the distribution's own configuration, which containerd itself does not load: a template or a snippet, too.
    Distribution,
}

/// The last change of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The path was changed at the first time, since the epoch. The process that has read it started at the second.
    At(Duration, StartTime),
    /// The running program is not the file at the path.
    Replaced,
    /// The path existed when the running process had started, as an earlier run recorded, and is absent now.
    Removed,
    /// systemd has not loaded the present files of the unit (`NeedDaemonReload`).
    NotReloaded,
}

impl Change {
    /// Whether the change may be younger than the running process.
    #[must_use]
    pub fn is_pending(self) -> bool {
        match self {
            Self::At(changed, start) => start.may_be_before(changed),
            Self::Replaced | Self::Removed | Self::NotReloaded => true,
        }
    }
}

/// Whose contents an input has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// Farrier never wrote the file, or the contents are unknown.
    Foreign,
    /// The same contents as Farrier wrote last.
    AsWritten,
    /// Farrier wrote the file, and others have changed it since.
    Edited,
    /// The same contents as an earlier run recorded for the running process.
    AsLoaded,
}

/// The start of a process, by the clock of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartTime {
    /// Since the epoch.
    at: Duration,
    /// How far the clock may have been set back since.
    clock_step: Duration,
    /// The time of the socket of containerd, if it listens since the start. It is the time of a file, so a file that was changed later has a
    /// later time, however far the times of files lag behind the clock.
    listening: Option<Duration>,
}

impl StartTime {
    /// The start at `at`, computed from the time since the boot and today's clock. `listening` is the time of the socket of containerd, by
    /// the clock at that time: if it follows closely on `at`, the clock was not set since.
    #[must_use]
    pub fn new(at: Duration, listening: Option<Duration>) -> Self {
        let is_steady = listening.is_some_and(|listening| {
            listening + RESOLUTION >= at && listening <= at + LISTEN_LIMIT
        });
        if is_steady {
            return Self::steady(at, listening);
        }
        Self {
            // If the clock was set forward, the times of files from before are older than their order tells.
            at: listening.map_or(at, |listening| listening.min(at)),
            clock_step: CLOCK_STEP,
            listening: None,
        }
    }

    /// The start at `at`, since which the clock was not set. `listening` as in [`StartTime::new`].
    pub(super) fn steady(at: Duration, listening: Option<Duration>) -> Self {
        Self {
            at,
            clock_step: Duration::ZERO,
            listening: listening.filter(|listening| *listening + RESOLUTION >= at),
        }
    }

    /// The start of a process that started earlier by `lead`.
    pub(super) fn before(self, lead: Duration) -> Self {
        Self {
            at: self.at.saturating_sub(lead),
            ..self
        }
    }

    /// Whether a change at `changed`, since the epoch, may have been made after the start.
    #[must_use]
    pub fn may_be_before(self, changed: Duration) -> bool {
        let is_younger = changed + self.clock_step > self.at + RESOLUTION;
        is_younger || self.listening.is_some_and(|listening| changed >= listening)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const START: Duration = Duration::from_secs(1_000_000);

    fn milliseconds(of: i64) -> Duration {
        let by = Duration::from_millis(of.unsigned_abs());
        if of < 0 {
            START.checked_sub(by).unwrap()
        } else {
            START + by
        }
    }

    /// containerd starts at 0, by today's clock; all times are in milliseconds.
    #[rstest]
    #[case::long_before(Some(100), -3_600_000, false)]
    #[case::right_before(Some(100), -30, false)]
    #[case::within_the_resolution(Some(100), 15, false)]
    #[case::after(Some(100), 50, true)]
    #[case::of_a_slow_start(Some(40_000), -30, false)]
    // The times of files lag behind: containerd listened 15 ms after its start by them, and the change came right after that.
    #[case::with_times_that_lag(Some(15), 15, true)]
    #[case::before_times_that_lag(Some(15), 10, false)]
    #[case::with_times_that_lag_more(Some(-15), -15, true)]
    #[case::with_an_unknown_socket(None, -30_000, true)]
    #[case::long_before_with_an_unknown_socket(None, -61_000, false)]
    // The clock was set back by more than a minute, or containerd took so long to listen.
    #[case::after_a_step_back(Some(70_000), -45_000, true)]
    #[case::long_before_a_step_back(Some(70_000), -61_000, false)]
    // The clock was set forward by an hour: the file has the clock of the socket.
    #[case::after_a_step_forward(Some(-3_600_000), -3_599_000, true)]
    #[case::long_before_a_step_forward(Some(-3_600_000), -3_661_000, false)]
    fn a_change_counts_as_newer_if_the_clock_leaves_that_open(
        #[case] listening: Option<i64>,
        #[case] changed: i64,
        #[case] expected: bool,
    ) {
        let start = StartTime::new(START, listening.map(milliseconds));
        assert_eq!(start.may_be_before(milliseconds(changed)), expected);
    }
}
