//! What the API server refused to make, remembered until it takes it: the next decision tells people why. No decision, no write.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::apply;
use super::need::backoff;

/// The next decision only writes down what the API server said, or that it says it no longer.
const AT_ONCE: Duration = Duration::from_secs(1);

/// More objects than this are not refused at a time; what is left of those that are gone is forgotten with the others.
const MOST: usize = 1_000;

/// What was refused, by the UID of the node or Shim that it was for.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<HashMap<String, Refusal>>);

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
        self.all().get(uid).cloned()
    }

    /// Remembers a refusal, or that there is none any more; when to decide again, where that changed something.
    ///
    /// # Errors
    /// Hands on every error that is no refusal: to try again is all that it takes.
    pub fn after(
        &self,
        uid: &str,
        generation: Option<i64>,
        answer: Result<(), apply::Error>,
    ) -> Result<Option<Duration>, apply::Error> {
        let error = match answer {
            Ok(()) => return Ok(self.all().remove(uid).map(|_| AT_ONCE)),
            Err(error) => error,
        };
        let Some(sentence) = error.refusal() else {
            return Err(error);
        };
        tracing::warn!(%error, "refused");
        let mut all = self.all();
        if all.len() >= MOST {
            all.clear();
        }
        let before = all.get(uid);
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
        all.insert(uid.to_owned(), refusal);
        Ok(Some(if told { wait } else { AT_ONCE }))
    }

    // Whoever panicked while it held the lock left whole entries.
    fn all(&self) -> MutexGuard<'_, HashMap<String, Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
