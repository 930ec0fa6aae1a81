//! What the API server refused to make, remembered until it takes it: the next decision tells people why. No decision, no write.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::apply;
use super::plan::backoff;

/// The next decision only writes down what the API server said, or that it says it no longer.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What was refused, by the UID of the node or Shim that it was for: the sentence, and how many times in a row.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<HashMap<String, (String, u32)>>);

impl Refusals {
    /// What was refused last for the object `uid`.
    pub fn sentence(&self, uid: &str) -> Option<String> {
        self.all().get(uid).map(|(sentence, _)| sentence.clone())
    }

    /// Remembers a refusal, or that there is none any more; when to decide again, where that changed something.
    ///
    /// # Errors
    /// Hands on every error that is no refusal: to try again is all that it takes.
    pub fn after(
        &self,
        uid: &str,
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
        let (said, times) = all.entry(uid.to_owned()).or_default();
        *times = if *said == sentence {
            times.saturating_add(1)
        } else {
            1
        };
        *said = sentence;
        Ok(Some(if *times == 1 {
            AT_ONCE
        } else {
            backoff(*times)
        }))
    }

    // Whoever panicked while it held the lock left whole entries.
    fn all(&self) -> MutexGuard<'_, HashMap<String, (String, u32)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
