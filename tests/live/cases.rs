//! Random cases: their seed and their number. No tests.

use std::ops::ControlFlow;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::containerd::programs;
use crate::trace::{follow, is_change};

/// The value of an environment variable that is a number.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap())
}

/// `FARRIER_SEED`, or another seed in each run, the same for all tests. A failed test shows it: with this seed, the test has the same cases
/// again.
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    let seed = *SEED.get_or_init(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        number("FARRIER_SEED").unwrap_or_else(|| now.subsec_nanos().into())
    });
    println!("FARRIER_SEED={seed}");
    seed
}

/// The number of cases of a test on one release: `default` on all releases together, or `FARRIER_CASES`.
pub fn count(default: u64) -> u64 {
    let all = number("FARRIER_CASES").unwrap_or(default);
    all.div_ceil(programs().len() as u64)
}

/// Runs the change `command` to its end; returns the number of its writes.
pub fn count_writes(command: &Command) -> usize {
    let mut writes = 0;
    let status = follow(command, Stdio::null(), |program, call| {
        writes += usize::from(is_change(program, call));
        ControlFlow::Continue(None)
    });
    assert_eq!(status, Some(0));
    writes
}

/// One in so many of the writes of a change, by default: each of two releases takes the half that the other one leaves out.
const ONE_IN: usize = 2;

/// The writes of a change at which something happens on this release: every second one, or as many as fit into `FARRIER_CASES`, which
/// count the changes in both directions on two releases.
pub fn sample(seed: u64, release: usize, writes: usize) -> impl Iterator<Item = usize> {
    let one_in = number("FARRIER_CASES").map_or(ONE_IN, |cases| {
        let cases = usize::try_from(cases).unwrap().div_ceil(4);
        writes.div_ceil(cases.max(1))
    });
    let first = usize::try_from(seed).unwrap().wrapping_add(release) % one_in;
    (1..=writes).skip(first).step_by(one_in)
}
