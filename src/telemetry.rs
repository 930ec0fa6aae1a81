//! Logging: which lines are written to standard error, and how. Standard output belongs to results.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging can't be set up.
#[derive(Debug, thiserror::Error)]
#[error(
    "the log filter {filter:?} can't be read: {source}; write a level such as info, or farrier=debug,kube=info"
)]
pub struct Error {
    /// As it was given.
    filter: String,
    /// What the parser says.
    #[source]
    source: ParseError,
}

/// Sends what `filter` lets through to standard error, for the rest of the process.
///
/// # Errors
/// When `filter` can't be read.
pub fn init(filter: &str, format: Format) -> Result<(), Error> {
    let filter = EnvFilter::try_new(filter).map_err(|source| Error {
        filter: filter.to_owned(),
        source,
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match format {
        Format::Text => subscriber.with_target(false).init(),
        Format::Json => subscriber.json().flatten_event(true).init(),
    }
    Ok(())
}
