//! Logging to standard error. Standard output is for results.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::OnceLock;

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

/// The format that [`init`] has set.
static FORMAT: OnceLock<Format> = OnceLock::new();

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
        .with_ansi(io::stderr().is_terminal() && wants_colour(std::env::var_os("NO_COLOR")))
        // Otherwise the subscriber prints a failed write to standard error with `eprintln!`, which panics there: a terminal whose connection
        // has ended would end a change halfway.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    match format {
        Format::Text => subscriber.with_target(false).init(),
        Format::Json => subscriber.json().flatten_event(true).init(),
    }
    // A second call panics above.
    let _ = FORMAT.set(format);
    Ok(())
}

/// Whether `NO_COLOR` permits colours: it is unset or empty (<https://no-color.org>).
fn wants_colour(no_color: Option<OsString>) -> bool {
    no_color.is_none_or(|value| value.is_empty())
}

/// Writes the error that a command ends with, and how to correct the cause, to standard error: in the style of the errors of the command
/// line, or as a log line where log lines are JSON.
pub fn print_error(error: &dyn Display, help: Option<&str>) {
    match FORMAT.get() {
        Some(Format::Json) => tracing::error!(help, "{error}"),
        // Before the format is known, too. A failure of this write can't be reported anywhere.
        Some(Format::Text) | None => {
            let _ = io::stderr().write_all(error_text(error, help).as_bytes());
        }
    }
}

fn error_text(error: &dyn Display, help: Option<&str>) -> String {
    match help {
        Some(help) => format!("error: {error}\nhelp: {help}\n"),
        None => format!("error: {error}\n"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::unset(None, true)]
    #[case::empty(Some(""), true)]
    #[case::set(Some("1"), false)]
    #[case::of_any_value(Some("0"), false)]
    fn no_color_turns_colours_off(#[case] no_color: Option<&str>, #[case] expected: bool) {
        assert_eq!(wants_colour(no_color.map(OsString::from)), expected);
    }

    #[test]
    fn the_help_of_an_error_is_on_the_next_line() {
        assert_eq!(error_text(&"no room", None), "error: no room\n");
        let text = error_text(&"no room", Some("delete a file"));
        assert_eq!(text, "error: no room\nhelp: delete a file\n");
    }
}
