//! Records writes that the API server rejected, so that the next decision can report them. Writes nothing.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::controller::decide::job_due::{FIRST_RETRY, backoff};
use crate::handoff::Problem;

/// Wait after a new rejection and after its end: the next decision reports the change.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Most objects with rejected writes at a time. Above this number, all records are dropped, also those of deleted objects.
const MOST: usize = 1_000;

/// Why the last eviction from a node was refused, by the UID of the node.
#[derive(Debug, Default)]
pub struct RefusedEvictions(HashMap<String, String>);

impl RefusedEvictions {
    /// Why the last eviction from the node `uid` was refused.
    pub fn of(&self, uid: &str) -> Option<String> {
        self.0.get(uid).cloned()
    }

    /// Records the refusal, or with `None` that no eviction is refused.
    pub fn after(&mut self, uid: String, refusal: Option<String>) {
        if self.0.len() >= MOST {
            self.0.clear();
        }
        match refusal {
            Some(refusal) => self.0.insert(uid, refusal),
            None => self.0.remove(&uid),
        };
    }
}

/// Why a write was rejected.
#[derive(Debug, Clone)]
pub struct Rejection {
    /// The problem for operators.
    pub problem: Problem,
    /// An admission webhook did not answer. It may answer again without a change of any object.
    pub is_outage: bool,
    /// The targets of the rejected writes of a Shim.
    pub targets: BTreeSet<String>,
}

/// The last rejected write of each node and Shim, by UID.
#[derive(Debug, Default)]
pub struct RejectedWrites(HashMap<String, RejectedWrite>);

/// A rejected write.
#[derive(Debug, Clone)]
pub struct RejectedWrite {
    /// The problem for operators.
    pub problem: Problem,
    /// An admission webhook did not answer.
    pub is_outage: bool,
    /// The targets of the rejected writes of a Shim. Other writes for the Shim need not wait.
    pub targets: BTreeSet<String>,
    /// Rejections in a row.
    times: u32,
    /// Generation of the spec that was rejected.
    generation: Option<i64>,
    /// When to try again if the spec does not change.
    again: Instant,
}

impl RejectedWrite {
    /// How long to wait before the same spec is written again.
    pub fn rest(&self, generation: Option<i64>, now: Instant) -> Option<Duration> {
        let rest = self.again.saturating_duration_since(now);
        (self.generation == generation && !rest.is_zero()).then_some(rest)
    }
}

impl RejectedWrites {
    /// The last rejected write of the object `uid`.
    pub fn of(&self, uid: &str) -> Option<RejectedWrite> {
        self.0.get(uid).cloned()
    }

    /// Records a rejection, or with `None` its end. Returns when to reconcile again, if the record changed.
    pub fn after(
        &mut self,
        uid: &str,
        generation: Option<i64>,
        rejection: Option<Rejection>,
    ) -> Option<Duration> {
        let Some(Rejection {
            problem,
            is_outage,
            mut targets,
        }) = rejection
        else {
            return self.0.remove(uid).map(|_| AT_ONCE);
        };
        if self.0.len() >= MOST {
            self.0.clear();
        }
        let before = self.0.get(uid);
        let times = before.map_or(0, |before| before.times).saturating_add(1);
        let already_reported = before.is_some_and(|before| before.problem == problem);
        let wait = if is_outage {
            FIRST_RETRY
        } else {
            backoff(times)
        };
        let now = Instant::now();
        if let Some(before) = before.filter(|it| it.rest(generation, now).is_some()) {
            // These were left out of this write, and still wait.
            targets.extend(before.targets.iter().cloned());
        }
        let again = now + wait;
        let rejection = RejectedWrite {
            problem,
            is_outage,
            targets,
            times,
            generation,
            again,
        };
        self.0.insert(uid.to_owned(), rejection);
        Some(if already_reported { wait } else { AT_ONCE })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::of_an_object(false, [1, 60, 120, 240, 480])]
    #[case::in_an_outage(true, [1, 30, 30, 30, 30])]
    fn the_wait_after_a_rejection_grows_except_in_an_outage(
        #[case] is_outage: bool,
        #[case] expected: [u64; 5],
    ) {
        let mut writes = RejectedWrites::default();
        let mut after = || {
            let problem = Problem::new("so it is", None);
            let rejection = Rejection {
                problem,
                is_outage,
                targets: BTreeSet::new(),
            };
            writes.after("u", None, Some(rejection))
        };
        let waits = expected.map(|_| after());
        assert_eq!(waits, expected.map(|wait| Some(Duration::from_secs(wait))));
        assert_eq!(writes.after("u", None, None), Some(AT_ONCE));
    }

    #[test]
    fn a_rejection_keeps_the_targets_that_were_left_out() {
        let mut writes = RejectedWrites::default();
        for target in ["one", "other"] {
            let problem = Problem::new("so it is", None);
            let rejection = Rejection {
                problem,
                is_outage: false,
                targets: [target.to_owned()].into(),
            };
            let _ = writes.after("u", Some(1), Some(rejection));
        }
        assert_eq!(writes.of("u").unwrap().targets.len(), 2);
    }
}
