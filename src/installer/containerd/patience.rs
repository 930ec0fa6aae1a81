//! Decides how long a run waits for a containerd that has been started. Reads no process and no socket.
//!
//! A containerd with many containers or a slow disk restores its state for minutes before its CRI answers. Ending it meanwhile would only
//! begin these minutes again.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// How long a containerd that lives and works may take to serve, at most: the longest start in public reports is some ten minutes
/// (containerd #5597, #6646).
pub const PATIENCE: Duration = Duration::from_mins(10);

/// The end of a run's time that is not spent on waiting: the files of an undone change, and the report.
const RESERVE: Duration = Duration::from_secs(30);

/// Interval between two log lines about a wait.
pub(super) const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Fraction of a service's limit (one sixth) for which no containerd process may exist. A service manager or supervisor has started
/// containerd by then. A containerd that ended has refused its configuration, and a longer wait only keeps the node without containerd.
const ABSENT_PART: u32 = 6;

/// Fraction of a service's limit (one half) for which a containerd that does not answer may be idle. A process that reads its state uses
/// CPU time or reads from the disk within seconds.
const IDLE_PART: u32 = 2;

/// The time at which a run is ended from outside, as a Job is at its `activeDeadlineSeconds`; by default, no time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// The deadline of a Job, which runs for `limit` at most. The Job began before this process did: it pulled images and fetched
    /// artifacts. `artifacts`, the directory that the kubelet created for the pod, is evidence for its start.
    #[must_use]
    pub fn of_job(limit: Duration, artifacts: Option<&Path>) -> Self {
        let metadata = artifacts.and_then(|path| std::fs::metadata(path).ok());
        let created = metadata.and_then(|it| it.created().or_else(|_| it.modified()).ok());
        let elapsed = created.and_then(|created| SystemTime::now().duration_since(created).ok());
        Self::after(limit.saturating_sub(elapsed.unwrap_or_default()))
    }

    /// The deadline in `left` from now.
    #[must_use]
    pub fn after(left: Duration) -> Self {
        // A deadline beyond the range of the clock is none.
        Self(Instant::now().checked_add(left))
    }

    /// How long a change may wait for a live containerd. The rollback may need the same wait, so it gets half of the remaining time.
    #[must_use]
    pub fn for_change(&self) -> Duration {
        self.left()
            .map_or(PATIENCE, |left| (left / 2).min(PATIENCE))
    }

    /// How long a rollback may wait for a live containerd: nothing follows it but the report.
    #[must_use]
    pub fn for_rollback(&self) -> Duration {
        self.left().map_or(PATIENCE, |left| left.min(PATIENCE))
    }

    fn left(&self) -> Option<Duration> {
        let left = self.0?.saturating_duration_since(Instant::now());
        Some(left.saturating_sub(RESERVE))
    }
}

/// What a check has found of the started containerd. Times are those since the beginning of the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// The search for processes failed.
    Unknown,
    /// No containerd runs.
    Absent,
    /// The containerd from before the restart still runs.
    Former,
    /// A new containerd runs.
    Started {
        /// PID and start time.
        process: (u32, u64),
        /// A number that grows while the process works, such as its CPU time.
        work: u64,
        /// Whether its CRI says that it is not initialized yet.
        initializes: bool,
    },
}

/// What follows from a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Check again.
    Wait,
    /// Check again, and log that the wait goes on.
    Tell,
    /// The started containerd has ended.
    Ended,
    /// The time is over.
    TooLong,
}

/// A wait for a started containerd.
///
/// A new process may take `serve_limit` to serve, whatever it does. Beyond that, it gets the time up to `patience` as long as it is the
/// first one since the restart, and either its CRI answers that it is not initialized yet, or it works. Nothing is waited for longer after
/// a process has ended.
#[derive(Debug)]
pub(super) struct Wait {
    serve_limit: Duration,
    /// When the service manager reported the restart.
    restarted: Duration,
    patience: Duration,
    process: Option<(u32, u64)>,
    has_ended: bool,
    /// The last time at which a process was present.
    present: Duration,
    work: u64,
    /// The last time at which the process had worked since the check before.
    worked: Duration,
    told: Duration,
}

impl Wait {
    pub(super) fn new(serve_limit: Duration, restarted: Duration, patience: Duration) -> Self {
        Self {
            serve_limit,
            restarted,
            patience,
            process: None,
            has_ended: false,
            present: restarted,
            work: 0,
            worked: restarted,
            told: Duration::ZERO,
        }
    }

    /// What follows from `seen` at the time `now`.
    pub(super) fn next(&mut self, now: Duration, seen: Seen) -> Next {
        let before = self.process;
        self.process = match seen {
            Seen::Unknown => before,
            Seen::Absent | Seen::Former => None,
            Seen::Started { process, .. } => Some(process),
        };
        self.has_ended |= before.is_some() && before != self.process;
        if seen != Seen::Absent {
            self.present = now;
        }
        if let Seen::Started { work, .. } = seen
            && work != self.work
        {
            (self.work, self.worked) = (work, now);
        }
        let within_limit = now.saturating_sub(self.restarted) < self.serve_limit;
        let is_gone = now.saturating_sub(self.present) > self.serve_limit / ABSENT_PART;
        if is_gone || (self.has_ended && self.process.is_none() && !within_limit) {
            return Next::Ended;
        }
        let may_wait = now < self.patience && self.is_worth_waiting_for(now, seen);
        if !within_limit && !may_wait {
            return Next::TooLong;
        }
        if now.saturating_sub(self.told) < LOG_INTERVAL {
            return Next::Wait;
        }
        self.told = now;
        Next::Tell
    }

    fn is_worth_waiting_for(&self, now: Duration, seen: Seen) -> bool {
        let idle = now.saturating_sub(self.worked);
        let works = idle <= self.serve_limit / IDLE_PART;
        match seen {
            Seen::Started { initializes, .. } => !self.has_ended && (initializes || works),
            Seen::Unknown | Seen::Absent | Seen::Former => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const MINUTE: u64 = 60;
    const FIRST: (u32, u64) = (812, 1);
    const SECOND: (u32, u64) = (900, 2);

    fn started(process: (u32, u64), work: u64, initializes: bool) -> Seen {
        Seen::Started {
            process,
            work,
            initializes,
        }
    }

    /// What is seen at a second.
    type Course = fn(u64) -> Seen;

    /// The second of the end, and the end, of a wait for this course of a service with a limit of a minute.
    fn end(course: Course, patience: u64) -> (u64, Next) {
        let limit = Duration::from_secs(MINUTE);
        let mut wait = Wait::new(limit, Duration::ZERO, Duration::from_secs(patience));
        let mut ends = (0..2 * 600).map(|second| {
            let now = Duration::from_secs(second);
            (second, wait.next(now, course(second)))
        });
        ends.find(|(_, next)| matches!(next, Next::Ended | Next::TooLong))
            .unwrap_or((2 * 600, Next::Wait))
    }

    #[rstest]
    #[case::says_that_it_initializes(|_| started(FIRST, 0, true), 600, (600, Next::TooLong))]
    #[case::reads_its_state_before_it_listens(|at| started(FIRST, at, false), 600, (600, Next::TooLong))]
    #[case::works_then_initializes(|at: u64| started(FIRST, at.min(200), at > 200), 600, (600, Next::TooLong))]
    #[case::works_in_spurts(|at| started(FIRST, at / 25, false), 600, (600, Next::TooLong))]
    #[case::initializes_with_little_time_left(|_| started(FIRST, 0, true), 90, (90, Next::TooLong))]
    #[case::initializes_without_time_left(|_| started(FIRST, 0, true), 0, (60, Next::TooLong))]
    #[case::hangs(|_| started(FIRST, 1, false), 600, (60, Next::TooLong))]
    #[case::hangs_after_a_while(|at: u64| started(FIRST, at.min(100), false), 600, (131, Next::TooLong))]
    #[case::ends_while_it_initializes(
        |at| if at < 300 { started(FIRST, 0, true) } else { Seen::Absent },
        600,
        (300, Next::Ended)
    )]
    #[case::is_replaced_while_it_initializes(
        |at| started(if at < 300 { FIRST } else { SECOND }, 0, true),
        600,
        (300, Next::TooLong)
    )]
    #[case::is_started_again_and_again(
        |at| started((900 + u32::try_from(at / 9).unwrap(), at / 9), at, true),
        600,
        (60, Next::TooLong)
    )]
    #[case::is_started_again_once(|at| started(if at < 5 { FIRST } else { SECOND }, at, true), 600, (60, Next::TooLong))]
    #[case::ends_at_once(|_| Seen::Absent, 600, (11, Next::Ended))]
    #[case::is_never_restarted(|_| Seen::Former, 600, (60, Next::TooLong))]
    #[case::can_not_be_looked_for(|_| Seen::Unknown, 600, (60, Next::TooLong))]
    fn only_a_first_process_that_works_is_waited_for_beyond_the_limit(
        #[case] course: Course,
        #[case] patience: u64,
        #[case] expected: (u64, Next),
    ) {
        assert_eq!(end(course, patience), expected);
    }

    #[test]
    fn a_wait_is_logged_every_ten_seconds() {
        let limit = Duration::from_secs(MINUTE);
        let mut wait = Wait::new(limit, Duration::ZERO, Duration::from_mins(10));
        let told = (0..6000).filter(|tenth| {
            let now = Duration::from_millis(tenth * 100);
            wait.next(now, started(FIRST, 0, true)) == Next::Tell
        });
        let told: Vec<u64> = told.map(|tenth| tenth / 10).collect();
        assert_eq!(told, (1..60).map(|times| times * 10).collect::<Vec<_>>());
    }

    #[rstest]
    #[case::of_a_job_at_its_start(Some(1800), 600, 600)]
    #[case::of_a_job_after_a_slow_fetch(Some(830), 400, 600)]
    #[case::of_a_short_job(Some(130), 50, 100)]
    #[case::of_a_job_that_is_over(Some(20), 0, 0)]
    #[case::at_a_terminal(None, 600, 600)]
    fn the_change_leaves_its_rollback_as_much_time_as_it_takes(
        #[case] left: Option<u64>,
        #[case] change: u64,
        #[case] rollback: u64,
    ) {
        let deadline = left.map_or_else(Deadline::default, |left| {
            Deadline::after(Duration::from_secs(left) + Duration::from_millis(900))
        });
        assert_eq!(deadline.for_change().as_secs(), change);
        assert_eq!(deadline.for_rollback().as_secs(), rollback);
    }

    #[test]
    fn the_time_since_the_pod_s_directory_was_created_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let left = |artifacts| {
            let deadline = Deadline::of_job(Duration::from_secs(400), artifacts);
            deadline.for_rollback().as_secs()
        };
        assert!((368..=370).contains(&left(Some(directory.path()))));
        assert!((368..=370).contains(&left(None)));
        // The root directory is older than any run.
        assert_eq!(left(Some(Path::new("/"))), 0);
    }
}
