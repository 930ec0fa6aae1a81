//! Where Farrier and a daemon differ about a configuration, and why that is right. Every row is checked on every run. No tests.

/// Why the two differ.
#[derive(Debug, Clone, Copy)]
pub enum Why {
    /// The daemon loads it, and Farrier refuses.
    Justified(&'static str),
    /// The daemon doesn't come up, which neither the text nor its own dump tells: only who asks the running daemon knows.
    OnlyAtStart(&'static str),
}

/// Part of a case's name, the releases' first numbers, and the reason.
const TABLE: &[(&str, &[&str], Why)] = &[];

/// The reason for `case` on `release`.
pub fn of(case: &str, release: &str) -> Option<Why> {
    TABLE
        .iter()
        .find(|(name, releases, _)| {
            case.ends_with(name) && releases.iter().any(|start| release.starts_with(start))
        })
        .map(|(_, _, why)| *why)
}
