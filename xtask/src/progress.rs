//! Prints the steps of xtask to standard output: one line per step, with its duration.

use std::fmt;
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Prints steps. One per process; share it by reference, threads included.
#[derive(Debug, Default)]
pub struct Progress {
    /// Name of the step whose line still waits for its time.
    open: Mutex<Option<String>>,
}

impl Progress {
    /// Runs `work` and prints `what` before it and the time that it took after it, on one line.
    ///
    /// Steps may nest; the outer one's line is then printed again when it ends.
    ///
    /// # Errors
    /// Whatever `work` returns; the line then says `failed`.
    pub fn step<T>(&self, what: impl Into<String>, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let what = what.into();
        self.begin(&what);
        let start = Instant::now();
        let result = work();
        let took = Took(start.elapsed());
        match &result {
            Ok(_) => self.end(&what, &took.to_string()),
            Err(_) => self.end(&what, &format!("failed after {took}")),
        }
        result
    }

    /// Prints a line of its own.
    pub fn line(&self, text: &str) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let separator = if open.take().is_some() { "\n" } else { "" };
        print(&format!("{separator}{text}\n"));
    }

    fn begin(&self, what: &str) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let separator = if open.is_some() { "\n" } else { "" };
        print(&format!("{separator}{what} ... "));
        *open = Some(what.to_owned());
    }

    fn end(&self, what: &str, outcome: &str) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.take() {
            Some(current) if current == what => print(&format!("{outcome}\n")),
            Some(_) => print(&format!("\n{what} ... {outcome}\n")),
            None => print(&format!("{what} ... {outcome}\n")),
        }
    }
}

/// A closed pipe is no reason to leave a cluster half-built, so that a failed write is dropped.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A duration as people say it: `4 min 52 s`, `3.1 s`.
pub struct Took(pub Duration);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        if seconds >= 60 {
            write!(f, "{} min {} s", seconds / 60, seconds % 60)
        } else {
            write!(f, "{:.1} s", self.0.as_secs_f64())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_printed_in_readable_units() {
        assert_eq!(Took(Duration::from_millis(3_140)).to_string(), "3.1 s");
        assert_eq!(Took(Duration::from_secs(292)).to_string(), "4 min 52 s");
    }

    #[test]
    fn a_step_returns_the_result_of_its_work() {
        let progress = Progress::default();
        assert_eq!(progress.step("adding", || Ok(1 + 1)).unwrap(), 2);
        assert!(
            progress
                .step::<()>("failing", || anyhow::bail!("no"))
                .is_err()
        );
    }
}
