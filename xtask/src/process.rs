//! Runs programs: their output, their errors and the waits for them. Independent of the single program.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::interrupt;

/// Lines of standard error that go into the message of a failure: a compiler's or a package manager's last words.
const LAST_LINES: usize = 20;

/// Interval between two checks of a condition. A boot takes seconds, and a check takes milliseconds.
const POLL: Duration = Duration::from_millis(50);

/// Runs `command` to its end with nothing on standard input, and returns what it printed, whatever its status.
///
/// # Errors
/// When it can't be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A process group of its own: a signal to this process ends the whole group, and Ctrl-C reaches the group only through this process.
        .process_group(0);
    let (child, tracked) = interrupt::spawn_tracked(command)
        .with_context(|| format!("failed to run {}", program(command)))?;
    let output = child
        .wait_with_output()
        .with_context(|| format!("failed to wait for {}", program(command)));
    drop(tracked);
    // The exit status has no meaning if the teardown of this process killed the program.
    drop(interrupt::pass());
    output
}

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
/// When it can't be started or fails; the message ends with the last lines of its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed ({}):\n{}",
            describe(command),
            output.status,
            last_lines(&text)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `program` with `arguments`; see [`run`].
///
/// # Errors
/// As [`run`].
pub fn call(program: &str, arguments: &[&str]) -> Result<String> {
    run(Command::new(program).args(arguments))
}

/// This program, for as long as this process runs: cargo may replace the file meanwhile.
#[must_use]
pub fn own_program() -> PathBuf {
    // Not `self`: another program may be the one that executes it.
    format!("/proc/{}/exe", std::process::id()).into()
}

/// Starts a program that outlives this function, with its output appended to the file `log`.
///
/// # Errors
/// When the log can't be opened or the program not be started.
pub fn start(command: &mut Command, log: &Path) -> Result<Child> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("failed to open {}", log.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0);
    interrupt::spawn(command).with_context(|| format!("failed to start {}", program(command)))
}

/// Waits until `look` finds something.
///
/// # Errors
/// The error of `look`, and a sentence with `what` when `patience` is over.
pub fn wait_until<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("{what} took longer than {} s", patience.as_secs());
        }
        thread::sleep(POLL);
    }
}

/// The last lines of a program's log, for the message of a failure.
#[must_use]
pub fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_command_and_its_last_lines() {
        let error = call("sh", &["-c", "echo why >&2; exit 3"]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sh -c") && text.ends_with("why"), "{text}");
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let text = "first\n".to_owned() + &"next\n".repeat(LAST_LINES);
        let kept = last_lines(&text);
        assert_eq!(kept, "next\n".repeat(LAST_LINES).trim_end());
    }

    #[test]
    fn waiting_ends_with_the_result_or_an_error() {
        assert_eq!(wait_until("it", Duration::ZERO, || Ok(Some(1))).unwrap(), 1);
        let error = wait_until::<()>("the API server", Duration::ZERO, || Ok(None)).unwrap_err();
        assert_eq!(error.to_string(), "the API server took longer than 0 s");
    }
}
