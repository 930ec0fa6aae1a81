//! What the API server rejected to make, remembered until it takes it: the next decision tells people why. No decision, no write.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::controller::decide::job_due::backoff;

/// The next decision only writes down what the API server said, or that it says it no longer.
const AT_ONCE: Duration = Duration::from_secs(1);

/// More objects than this are not rejected at a time; what is left of those that are gone is forgotten with the others.
const MOST: usize = 1_000;

/// What was rejected, by the UID of the node or Shim that it was for.
#[derive(Debug, Default)]
pub struct RejectedWrites(HashMap<String, RejectedWrite>);

/// What was rejected for one object.
#[derive(Debug, Clone)]
pub struct RejectedWrite {
    /// What people should know.
    pub sentence: String,
    /// Times in a row.
    times: u32,
    /// Version of the spec that it was rejected for.
    generation: Option<i64>,
    /// When to try again, if the spec stays.
    again: Instant,
}

impl RejectedWrite {
    /// How long it would still be rejected: the spec is the same, and not enough time has passed to hope.
    pub fn rest(&self, generation: Option<i64>, now: Instant) -> Option<Duration> {
        let rest = self.again.saturating_duration_since(now);
        (self.generation == generation && !rest.is_zero()).then_some(rest)
    }
}

impl RejectedWrites {
    /// What was rejected last for the object `uid`.
    pub fn of(&self, uid: &str) -> Option<RejectedWrite> {
        self.0.get(uid).cloned()
    }

    /// Remembers a rejection, or that there is none any more; when to decide again, where that changed something.
    pub fn after(
        &mut self,
        uid: &str,
        generation: Option<i64>,
        rejection: Option<String>,
    ) -> Option<Duration> {
        let Some(sentence) = rejection else {
            return self.0.remove(uid).map(|_| AT_ONCE);
        };
        if self.0.len() >= MOST {
            self.0.clear();
        }
        let before = self.0.get(uid);
        let times = before.map_or(0, |before| before.times).saturating_add(1);
        let told = before.is_some_and(|before| before.sentence == sentence);
        let wait = backoff(times);
        let again = Instant::now() + wait;
        let rejection = RejectedWrite {
            sentence,
            times,
            generation,
            again,
        };
        self.0.insert(uid.to_owned(), rejection);
        Some(if told { wait } else { AT_ONCE })
    }
}
