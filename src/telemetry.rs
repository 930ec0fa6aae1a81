//! Logging to standard error. Standard output is for results.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// Format of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text for a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

/// The reason why logging can't be set up. [`Error::help`] says how to correct the cause.
#[derive(Debug, thiserror::Error)]
#[error("invalid log filter {filter:?}: {source}")]
pub struct Error {
    /// The filter.
    filter: String,
    /// The error of the parser.
    #[source]
    source: ParseError,
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> &'static str {
        "use a level such as info, or a filter such as farrier=debug,kube=info"
    }
}

/// Writes log lines that pass `filter` to standard error, for the rest of the process.
///
/// # Errors
/// When `filter` is invalid.
pub fn init(filter: &str, format: Format) -> Result<(), Error> {
    let filter = EnvFilter::try_new(filter).map_err(|source| Error {
        filter: filter.to_owned(),
        source,
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        // Otherwise the subscriber prints a failed write to standard error with `eprintln!`, which panics there: a terminal whose connection
        // has ended would end a change halfway.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    match format {
        Format::Text => subscriber.with_target(false).init(),
        Format::Json => subscriber.json().flatten_event(true).init(),
    }
    Ok(())
}
