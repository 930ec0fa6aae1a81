//! Logging to standard error. Standard output is for results.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

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
#[error("invalid log filter {filter:?}: {cause}")]
pub struct Error {
    /// The filter.
    filter: String,
    /// What is wrong with it.
    cause: String,
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

/// The levels, from no line to all lines.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The directives of `filter`, a level or levels by module. A level is that of Farrier's own lines. Libraries log at `info` at most unless a
/// module is named: the frames of HTTP/2 would hide what Farrier decides.
///
/// # Errors
/// What is wrong with the filter: an unknown level, which the subscriber would take for the name of a module.
fn directives(filter: &str) -> Result<String, String> {
    if filter.contains('[') {
        // A filter on spans, which may contain commas.
        return Ok(filter.to_owned());
    }
    let (mut own, mut modules) = (None, Vec::new());
    for part in filter.split(',').map(str::trim) {
        let (module, level) = match part.rsplit_once('=') {
            Some((module, level)) => (module.trim(), level.trim()),
            None => ("", part),
        };
        let lower = level.to_ascii_lowercase();
        if !LEVELS.contains(&lower.as_str()) {
            return Err(format!("{level:?} is not a level"));
        }
        if part.contains('=') {
            modules.push(format!("{module}={lower}"));
        } else {
            own = Some(lower);
        }
    }
    let (libraries, own) = match own.as_deref() {
        Some(level @ ("debug" | "trace")) => ("info", level),
        Some(level) => (level, level),
        // Failures of the other modules are logged, too.
        None => ("warn", "info"),
    };
    if !modules.iter().any(|it| it.starts_with("farrier=")) {
        modules.insert(0, format!("farrier={own}"));
    }
    modules.insert(0, libraries.to_owned());
    Ok(modules.join(","))
}

/// Writes log lines that pass `filter` to standard error, for the rest of the process.
///
/// # Errors
/// When `filter` is invalid.
pub fn init(filter: &str, format: Format) -> Result<(), Error> {
    let invalid = |cause: String| Error {
        filter: filter.to_owned(),
        cause,
    };
    let directives = directives(filter).map_err(invalid)?;
    let filter = EnvFilter::try_new(directives).map_err(|error| invalid(error.to_string()))?;
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

    #[rstest]
    #[case::level("info", "info,farrier=info")]
    #[case::upper_case("WARN", "warn,farrier=warn")]
    #[case::debug("debug", "info,farrier=debug")]
    #[case::trace("trace", "info,farrier=trace")]
    #[case::off("off", "off,farrier=off")]
    #[case::module("farrier=debug", "warn,farrier=debug")]
    #[case::library("debug, h2=trace", "info,farrier=debug,h2=trace")]
    #[case::modules("farrier=debug,kube=info", "warn,farrier=debug,kube=info")]
    #[case::span(
        "farrier[reconcile{node=n1}]=debug",
        "farrier[reconcile{node=n1}]=debug"
    )]
    fn a_level_is_that_of_the_own_lines(#[case] filter: &str, #[case] expected: &str) {
        let directives = directives(filter).unwrap();
        assert_eq!(directives, expected);
        EnvFilter::try_new(directives).unwrap();
    }

    #[rstest]
    #[case::no_level("verbose", "\"verbose\" is not a level")]
    #[case::of_a_module("farrier=verbose", "\"verbose\" is not a level")]
    #[case::module_without_a_level("farrier", "\"farrier\" is not a level")]
    #[case::empty("", "\"\" is not a level")]
    #[case::empty_part("info,", "\"\" is not a level")]
    fn an_unknown_level_is_refused(#[case] filter: &str, #[case] cause: &str) {
        assert_eq!(directives(filter).unwrap_err(), cause);
    }
}
