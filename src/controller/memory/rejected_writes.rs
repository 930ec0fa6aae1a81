//! What the API server refused to make, remembered until it takes it: the next decision tells people why. No decision, no write.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::controller::decide::job_due::backoff;

/// The next decision only writes down what the API server said, or that it says it no longer.
const AT_ONCE: Duration = Duration::from_secs(1);

/// More objects than this are not refused at a time; what is left of those that are gone is forgotten with the others.
const MOST: usize = 1_000;

/// What was refused, by the UID of the node or Shim that it was for.
#[derive(Debug, Default)]
pub struct Refusals(HashMap<String, Refusal>);

/// What was refused for one object.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// What people should know.
    pub sentence: String,
    /// Times in a row.
    times: u32,
    /// Version of the spec that it was refused for.
    generation: Option<i64>,
    /// When to try again, if the spec stays.
    again: Instant,
}

impl Refusal {
    /// How long it would still be refused: the spec is the same, and not enough time has passed to hope.
    pub fn rest(&self, generation: Option<i64>, now: Instant) -> Option<Duration> {
        let rest = self.again.saturating_duration_since(now);
        (self.generation == generation && !rest.is_zero()).then_some(rest)
    }
}

impl Refusals {
    /// What was refused last for the object `uid`.
    pub fn of(&self, uid: &str) -> Option<Refusal> {
        self.0.get(uid).cloned()
    }

    /// Remembers a refusal, or that there is none any more; when to decide again, where that changed something.
    pub fn after(
        &mut self,
        uid: &str,
        generation: Option<i64>,
        refusal: Option<String>,
    ) -> Option<Duration> {
        let Some(sentence) = refusal else {
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
        let refusal = Refusal {
            sentence,
            times,
            generation,
            again,
        };
        self.0.insert(uid.to_owned(), refusal);
        Some(if told { wait } else { AT_ONCE })
    }
}
