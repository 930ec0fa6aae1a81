//! Runs a program of the host inside the host's root, with limits on time and output. The callers choose the program.
//!
//! A child process that changes its root needs either `unsafe` code between fork and exec or a second start of Farrier. Farrier starts
//! itself again: `main` calls [`child_main`] for such a start before it parses its own arguments. At that point the process has one
//! thread, as a change of the mount namespace requires (setns(2)).

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::io::retry_on_intr;
use rustix::process::{self, WaitId, WaitIdOptions};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

mod enter;

use self::enter::{CHILD_FAILED, PATH, ProgramSource};
pub use self::enter::{ExecContext, child_main};
use super::HostRoot;
use super::owner::ProgramError;
use super::program::Program;
use crate::containerd_config::DUMP_LIMIT;
use crate::handoff::printable_up_to;

/// First argument of a second start of Farrier, which changes its root and executes a program of the host.
pub const CHILD_ARGUMENT: &str = "__enter-root";

/// Limit in bytes for each output stream. `containerd config dump` has the longest output; the longest dump seen has 40 kB.
const MAX_OUTPUT: u64 = DUMP_LIMIT as u64;

/// Bytes of a program's error output in a message, at most: five lines of a terminal.
const MAX_MESSAGE: usize = 400;

/// Bytes of the last line of a program's error output in a message, at most.
const MAX_LINE: usize = 300;

/// The program of Farrier, whose `main` calls [`child_main`] for a second start.
static FARRIER: OnceLock<PathBuf> = OnceLock::new();

/// Declares that `main` of `farrier`, by default the program of this process, calls [`child_main`] for a start with [`CHILD_ARGUMENT`].
/// Without this call, as in a test, no program of another root is run.
pub fn enable_child_main(farrier: Option<&Path>) {
    let own = Path::new("/proc/self/exe");
    // The first call counts.
    let _ = FARRIER.set(farrier.unwrap_or(own).to_owned());
}

/// Why a program of the host has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A user other than root can replace the program.
    #[error("failed to run {program} on the host: {source}")]
    NotTrusted {
        /// The program's path.
        program: String,
        /// The first component of the path that a user other than root can change.
        #[source]
        source: ProgramError,
    },
    /// The program could not be started.
    #[error("failed to run {program} on the host: {source}")]
    Start {
        /// The program's path.
        program: String,
        /// The error of the system call.
        #[source]
        source: std::io::Error,
    },
    /// The program did not end in time.
    #[error("{program} on the host did not end within {limit:?}")]
    TooLong {
        /// The program's path.
        program: String,
        /// The time limit.
        limit: Duration,
    },
    /// The program ended with a failure.
    #[error("{program} on the host failed: {message}")]
    Failed {
        /// The program's path.
        program: String,
        /// The last line of its standard error.
        message: String,
        /// Its standard error in one line, in at most 400 bytes.
        all: String,
    },
    /// The program wrote more than the limit.
    #[error("{program} on the host wrote more than {MAX_OUTPUT} bytes")]
    TooMuch {
        /// The program's path.
        program: String,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::NotTrusted { source, .. } => source.help(),
            Self::Start { .. }
            | Self::TooLong { .. }
            | Self::Failed { .. }
            | Self::TooMuch { .. } => None,
        }
    }
}

/// Path of the standard input, which holds the opened program.
const DESCRIPTOR: &str = "/proc/self/fd/0";

/// Prepares the child process. `opened` is the program to execute; without it, the program is found by its path. `argv[0]` is the path in
/// both cases.
fn command(
    host: &HostRoot,
    context: ExecContext,
    program: &str,
    opened: Option<Program>,
    arguments: &[&str],
) -> std::io::Result<Command> {
    let source = match &opened {
        None => ProgramSource::Path,
        Some(opened) if opened.is_script() => ProgramSource::Script,
        Some(_) => ProgramSource::Descriptor,
    };
    let mut command = if !host.is_own_root() {
        let Some(farrier) = FARRIER.get() else {
            return Err(std::io::Error::other(
                "this process can't start a program in another root directory",
            ));
        };
        let mut command = Command::new(farrier);
        command
            .args([CHILD_ARGUMENT, context.name(), source.name()])
            .arg(host.path())
            .arg(program);
        command
    } else if opened.is_some() {
        let mut command = Command::new(DESCRIPTOR);
        command.arg0(program);
        command
    } else {
        Command::new(program)
    };
    let (name, value) = PATH.split_once('=').unwrap_or_default();
    // Only this child inherits the descriptor, and no child that is started at the same time.
    let stdin = opened.map_or_else(Stdio::null, |opened| Stdio::from(opened.into_file()));
    command
        .args(arguments)
        .env_clear()
        .env(name, value)
        .current_dir("/")
        .stdin(stdin)
        .kill_on_drop(true);
    Ok(command)
}

/// Opens a program that no user other than root can replace.
fn open(host: &HostRoot, program: &str) -> Result<Program, Error> {
    host.open_program(program)
        .map_err(|source| Error::NotTrusted {
            program: program.to_owned(),
            source,
        })
}

/// Runs `program`, an absolute path on the host, in the host's root and returns its standard output. Every component of the path is
/// checked first, and the checked descriptor is executed.
///
/// # Errors
/// When a user other than root can replace the program, and when the program can't be started, ends with a failure, takes longer than
/// `limit` or writes more than 4 MiB.
pub async fn run(
    host: &HostRoot,
    program: &str,
    arguments: &[&str],
    limit: Duration,
) -> Result<String, Error> {
    run_in(host, ExecContext::Root, program, arguments, limit).await
}

/// The outputs of a program that has ended, and its status.
#[derive(Debug)]
pub struct ProgramOutput {
    /// The exit status, or the signal.
    pub status: ExitStatus,
    /// The standard output.
    pub stdout: Vec<u8>,
    /// The standard error.
    pub stderr: Vec<u8>,
}

impl ProgramOutput {
    /// The output, or the error of a program that has failed.
    fn into_result(self, program: &str) -> Result<String, Error> {
        if self.status.success() {
            Ok(String::from_utf8_lossy(&self.stdout).into_owned())
        } else {
            Err(failure(program, &self.stderr, self.status))
        }
    }

    /// The last line of the standard error, or the status if there is none.
    #[must_use]
    pub fn message(&self) -> String {
        last_line(
            &String::from_utf8_lossy(&self.stderr),
            &self.status.to_string(),
        )
    }
}

/// As [`run`], by the path and without the check of its owners: for a binary that Farrier itself has installed. Also returns the outputs of
/// a program that ends with a failure.
///
/// # Errors
/// As [`run`]'s, but never [`Error::Failed`].
pub async fn run_unchecked(
    host: &HostRoot,
    program: &str,
    arguments: &[&str],
    limit: Duration,
) -> Result<ProgramOutput, Error> {
    let own = ExecContext::Root;
    let command = command(host, own, program, None, arguments);
    run_to_end(host, command, program, limit).await
}

/// Checks that programs can run in the host's root: that this process may change its root to that directory.
///
/// # Errors
/// [`Error::Start`] with the cause.
pub async fn check_enter(host: &HostRoot, limit: Duration) -> Result<(), Error> {
    if host.is_own_root() || FARRIER.get().is_none() {
        return Ok(());
    }
    // A directory can't be executed, which the second start of Farrier finds only after the change of the root.
    match run_unchecked(host, "/", &[], limit).await {
        Err(error @ Error::Start { .. }) => Err(error),
        Ok(_)
        | Err(
            Error::NotTrusted { .. }
            | Error::TooLong { .. }
            | Error::Failed { .. }
            | Error::TooMuch { .. },
        ) => Ok(()),
    }
}

/// As [`run`], in the given context.
///
/// # Errors
/// As [`run`]'s.
pub async fn run_in(
    host: &HostRoot,
    context: ExecContext,
    program: &str,
    arguments: &[&str],
    limit: Duration,
) -> Result<String, Error> {
    let opened = Some(open(host, program)?);
    let command = command(host, context, program, opened, arguments);
    output_of(host, command, program, limit).await
}

async fn output_of(
    host: &HostRoot,
    command: std::io::Result<Command>,
    program: &str,
    limit: Duration,
) -> Result<String, Error> {
    let output = run_to_end(host, command, program, limit).await?;
    output.into_result(program)
}

async fn run_to_end(
    host: &HostRoot,
    command: std::io::Result<Command>,
    program: &str,
    limit: Duration,
) -> Result<ProgramOutput, Error> {
    let command = command.map_err(start_error(program))?;
    let output = collect(command, &[], program, limit).await?;
    if output.status.code() == Some(CHILD_FAILED) && !host.is_own_root() {
        let message = last_line(
            &String::from_utf8_lossy(&output.stderr),
            "the child process gave no cause",
        );
        return Err(start_error(program)(std::io::Error::other(message)));
    }
    Ok(output)
}

/// Starts Farrier itself again with `arguments`, and with `input` as its standard input. Returns its standard output. `main` recognises the
/// first argument before it parses its own arguments.
///
/// # Errors
/// As [`run`]'s.
pub async fn run_farrier(
    arguments: &[&str],
    input: &[u8],
    limit: Duration,
) -> Result<String, Error> {
    const NAME: &str = "farrier";

    let Some(farrier) = FARRIER.get() else {
        let source = std::io::Error::other("this process can't start itself again");
        return Err(start_error(NAME)(source));
    };
    let mut command = Command::new(farrier);
    command
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .kill_on_drop(true);
    let output = collect(command, input, NAME, limit).await?;
    output.into_result(NAME)
}

fn start_error(program: &str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Start {
        program: program.to_owned(),
        source,
    }
}

/// Starts `command` in a process group of its own, and returns its status and both outputs.
async fn collect(
    mut command: Command,
    input: &[u8],
    program: &str,
    limit: Duration,
) -> Result<ProgramOutput, Error> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut group = Group::spawn(&mut command).map_err(start_error(program))?;
    let stdin = group.child.stdin.take();
    let (stdout, stderr) = (group.child.stdout.take(), group.child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A program that ends without reading its input has said why on standard error.
            let _ = stdin.write_all(input).await;
        }
    };
    let all = async {
        let ((), stdout, stderr) = futures::join!(write, bounded(stdout), bounded(stderr));
        let (stdout, stderr) = (stdout?, stderr?);
        Ok::<_, std::io::Error>(ProgramOutput {
            status: group.wait().await?,
            stdout,
            stderr,
        })
    };
    let collected = tokio::time::timeout(limit, all)
        .await
        .map_err(|_| Error::TooLong {
            program: program.to_owned(),
            limit,
        })?
        .map_err(start_error(program))?;
    if collected.stdout.len() as u64 > MAX_OUTPUT {
        return Err(Error::TooMuch {
            program: program.to_owned(),
        });
    }
    Ok(collected)
}

/// Runs a program of the host that starts daemons, such as the command of a service manager, and waits for the program alone.
///
/// The daemons inherit the program's standard error. A write to a closed pipe would end a daemon with SIGPIPE, so standard error is a file
/// in memory (memfd). The file is sealed against growth once the program has ended.
///
/// # Errors
/// When the program can't be started, ends with a failure or takes longer than `limit`.
pub async fn start(
    host: &HostRoot,
    program: &str,
    arguments: &[&str],
    limit: Duration,
) -> Result<(), Error> {
    let failed = |source| Error::Start {
        program: program.to_owned(),
        source,
    };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let buffer = memfd_create(c"stderr", flags).map_err(|errno| failed(errno.into()))?;
    let mut buffer = File::from(buffer);
    let stderr = buffer.try_clone().map_err(failed)?;
    let opened = Some(open(host, program)?);
    let mut child = command(host, ExecContext::Host, program, opened, arguments)
        .map_err(failed)?
        .stdout(Stdio::null())
        .stderr(stderr)
        // Ctrl-C on a terminal signals Farrier's process group; a restart of containerd must not be interrupted.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let ended = tokio::time::timeout(limit, child.wait()).await;
    let sealed = fcntl(&buffer, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW));
    sealed.map_err(|errno| failed(errno.into()))?;
    let status: ExitStatus = ended
        .map_err(|_| Error::TooLong {
            program: program.to_owned(),
            limit,
        })?
        .map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let mut bytes = Vec::new();
    buffer.rewind().map_err(failed)?;
    let read = buffer.take(MAX_OUTPUT).read_to_end(&mut bytes);
    read.map_err(failed)?;
    Err(failure(program, &bytes, status))
}

async fn bounded(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_OUTPUT + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn failure(program: &str, stderr: &[u8], status: ExitStatus) -> Error {
    let stderr = String::from_utf8_lossy(stderr);
    let status = status.to_string();
    let lines = stderr.lines().map(str::trim);
    let all: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let all = printable_up_to(&all.join(" "), MAX_MESSAGE);
    Error::Failed {
        program: program.to_owned(),
        message: last_line(&stderr, &status),
        all: if all.is_empty() { status } else { all },
    }
}

/// The last line that is not empty: containerd writes the cause there. `otherwise` if there is none.
fn last_line(stderr: &str, otherwise: &str) -> String {
    let line = stderr
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .unwrap_or(otherwise);
    printable_up_to(line, MAX_LINE)
}

/// A program and the processes that it started. All of them are killed when the program ends or when this value is dropped, so that an
/// interrupted program leaves no process on the host.
struct Group {
    child: Child,
    /// PID of the leader, until the leader is reaped; afterwards the kernel may reuse the PID.
    leader: Option<Pid>,
}

impl Group {
    /// Starts the program as the leader of a new process group.
    fn spawn(command: &mut Command) -> std::io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        let leader = child.id().and_then(|pid| i32::try_from(pid).ok());
        Ok(Self {
            child,
            leader: leader.map(Pid::from_raw),
        })
    }

    /// Waits until the program has ended, without reaping it.
    async fn ended(&self) -> std::io::Result<()> {
        let leader = self
            .leader
            .and_then(|leader| process::Pid::from_raw(leader.as_raw()));
        let leader = leader.ok_or(Errno::ESRCH)?;
        let handle = process::pidfd_open(leader, process::PidfdFlags::empty())?;
        // The wait blocks a thread of its own until the program ends; dropping the group kills the program.
        let wait = move || {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            retry_on_intr(|| process::waitid(WaitId::PidFd(handle.as_fd()), options))
        };
        tokio::task::spawn_blocking(wait).await??;
        Ok(())
    }

    /// Waits until the program has ended, kills the rest of its group, and reaps the program.
    async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        if self.leader.is_some() {
            self.ended().await?;
            self.kill();
        }
        self.child.wait().await
    }

    /// Kills all processes of the group. The group's ID is the leader's PID, which may be another group's once the leader is reaped.
    fn kill(&mut self) {
        if let Some(leader) = self.leader.take() {
            // ESRCH is the usual case: no process is left.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nix::sys::signal::killpg;

    use super::*;

    async fn shell(script: &str, limit: Duration) -> Result<String, Error> {
        let host = HostRoot::open(Path::new("/")).unwrap();
        run(&host, "/bin/sh", &["-c", script], limit).await
    }

    #[tokio::test]
    async fn a_program_gets_no_environment_of_the_caller_and_returns_its_output() {
        let limit = Duration::from_secs(10);
        assert_eq!(shell("echo $HOME$CARGO", limit).await.unwrap(), "\n");
    }

    #[tokio::test]
    async fn a_program_runs_in_its_own_process_group() {
        let host = HostRoot::open(Path::new("/")).unwrap();
        // proc(5): the fifth field of `stat` is the group.
        let leads = "test $(cut -d ' ' -f 5 /proc/self/stat) = $$";
        let started = start(&host, "/bin/sh", &["-c", leads], Duration::from_secs(10)).await;
        assert!(started.is_ok(), "{started:?}");
    }

    #[tokio::test]
    async fn the_error_of_a_failed_program_quotes_its_last_lines() {
        let error = shell(
            "echo one >&2; echo two >&2; exit 3",
            Duration::from_secs(10),
        )
        .await
        .unwrap_err();
        assert_eq!(error.to_string(), "/bin/sh on the host failed: two");
    }

    #[tokio::test]
    async fn a_program_is_not_reaped_before_the_last_of_its_processes_is_killed() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep infinity & exit 3"]);
        let mut group = Group::spawn(&mut command).unwrap();
        let leader = group.leader.unwrap();
        group.ended().await.unwrap();
        // A zombie: the kernel does not reuse its PID.
        let stat = std::fs::read_to_string(format!("/proc/{leader}/stat")).unwrap();
        assert!(stat.contains(") Z "), "{stat}");
        assert!(killpg(leader, None).is_ok());
        assert_eq!(group.wait().await.unwrap().code(), Some(3));
        assert_eq!(group.leader, None, "the group is signalled once more");
    }

    #[tokio::test]
    async fn the_error_of_a_failed_program_can_quote_its_whole_output() {
        let script = "echo Job for a.service failed. >&2; echo See status. >&2; exit 1";
        let error = shell(script, Duration::from_secs(10)).await.unwrap_err();
        let Error::Failed { all, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(all, "Job for a.service failed. See status.");
        let error = shell("exit 4", Duration::from_secs(10)).await.unwrap_err();
        assert!(matches!(error, Error::Failed { all, .. } if all == "exit status: 4"));
    }

    #[tokio::test]
    async fn quoted_output_has_no_control_characters() {
        let script = "printf '\\033[31mred\\007 \\342\\200\\256turned\\n' >&2; exit 1";
        let error = shell(script, Duration::from_secs(10)).await.unwrap_err();
        assert!(error.to_string().ends_with("failed: [31mred turned"));
    }

    /// A directory that only root, or the user of the tests, can write, as all of its parents.
    fn home() -> tempfile::TempDir {
        tempfile::tempdir_in(std::env::home_dir().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_program_that_is_replaced_after_the_check_is_not_run() {
        let directory = home();
        let path = directory.path().join("program");
        let write = |script: &str| {
            let new = directory.path().join("new");
            std::fs::write(&new, script).unwrap();
            let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&new, executable).unwrap();
            std::fs::rename(new, &path).unwrap();
        };
        let host = HostRoot::open(Path::new("/")).unwrap();
        let program = path.to_str().unwrap();
        write("#!/bin/sh\necho looked at, $1\n");
        let opened = open(&host, program).unwrap();
        write("#!/bin/sh\necho replaced\n");
        let command = command(&host, ExecContext::Root, program, Some(opened), &["asked"]);
        let limit = Duration::from_secs(10);
        let said = output_of(&host, command, program, limit).await.unwrap();
        assert_eq!(said, "looked at, asked\n");
    }

    #[tokio::test]
    async fn a_program_that_others_can_replace_is_not_run() {
        let directory = home();
        let path = directory.path().join("program");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        for mode in [0o757, 0o777] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&path, mode).unwrap();
            let host = HostRoot::open(Path::new("/")).unwrap();
            let program = path.to_str().unwrap();
            let error = run(&host, program, &[], Duration::from_secs(10)).await;
            let message = error.unwrap_err().to_string();
            assert!(message.contains("is writable by every user"), "{message}");
        }
    }

    #[tokio::test]
    async fn the_children_of_a_program_are_killed_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = format!(
            "sh -c 'exec 3>{}; echo a >&3; sleep infinity'; :",
            pipe.display()
        );
        let reader = std::thread::spawn(move || std::fs::read_to_string(pipe).unwrap());
        let error = shell(&script, Duration::from_millis(500))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::TooLong { .. }), "{error}");
        // The reader ends when no process has the pipe open.
        assert_eq!(reader.join().unwrap(), "a\n");
    }

    #[tokio::test]
    async fn a_program_that_hangs_or_prints_without_end_is_killed() {
        let error = shell("exec sleep 60", Duration::from_millis(50))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::TooLong { .. }));
        let error = shell("exec head -c 9000000 /dev/zero", Duration::from_secs(20))
            .await
            .unwrap_err();
        assert!(matches!(
            error,
            Error::TooMuch { .. } | Error::Start { .. } | Error::Failed { .. }
        ));
    }
}
