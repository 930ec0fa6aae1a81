//! Runs a program of the host inside the host's root, bounded in time and output.
//!
//! Entering another root in a child process needs either `unsafe` between fork and exec or a second start of this very program;
//! it is the latter. `main` hands such a start to [`child_main`] before it looks at its own arguments. There is no thread yet at that
//! point, which a change of the mount namespace needs (setns(2)).

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::host::HostRoot;
use crate::containerd_config::DUMP_LIMIT;
use crate::handoff::printable;

/// First argument of a start of this program that only enters a root and becomes another program.
pub const CHILD_ARGUMENT: &str = "__enter-root";

/// Exit status of a start that could not enter the root, or could not execute the file at all, as `chroot(1)` has it.
const CHILD_FAILED: i32 = 125;
/// Exit status where a program or its loader is missing or must not be executed, as shells have it.
const NOT_FOUND: i32 = 127;

/// Nothing that is run prints more than `containerd config dump`, of which 40 kB is the longest seen.
const MAX_OUTPUT: u64 = DUMP_LIMIT as u64;

/// Programs of a host look for others here; nothing of our own environment reaches them.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether a second start of this process's program ends in [`child_main`].
static HANDS_OVER: AtomicBool = AtomicBool::new(false);

/// Says that `main` hands a start with [`CHILD_ARGUMENT`] to [`child_main`]: without that, as in a test, nothing of another root is run.
pub fn main_hands_over() {
    HANDS_OVER.store(true, Ordering::Relaxed);
}

/// Why a program of the host gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("can't run {program} of the host: {source}")]
    Start {
        /// The program.
        program: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// It did not end in time.
    #[error("{program} of the host did not end within {limit:?}")]
    TooLong {
        /// The program.
        program: String,
        /// The bound.
        limit: Duration,
    },
    /// It ended with a failure.
    #[error("{program} of the host failed: {words}")]
    Failed {
        /// The program.
        program: String,
        /// The last line that it wrote to standard error.
        words: String,
    },
    /// It wrote more than anything sensible.
    #[error("{program} of the host wrote more than {MAX_OUTPUT} bytes")]
    TooMuch {
        /// The program.
        program: String,
    },
}

/// Where a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the host's root. Enough for whatever only reads its arguments and files.
    Root,
    /// In the host's root and also in the mount namespace and the cgroup of its process 1, as if started on the host itself: what
    /// starts a service or looks for one needs this, where we run in a pod.
    Host,
}

impl Place {
    fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Host => "host",
        }
    }
}

fn command(
    host: &HostRoot,
    place: Place,
    program: &str,
    arguments: &[&str],
) -> std::io::Result<Command> {
    if !host.is_own_root() && !HANDS_OVER.load(Ordering::Relaxed) {
        return Err(std::io::Error::other("nobody would enter its root"));
    }
    let mut command = if host.is_own_root() {
        Command::new(program)
    } else {
        let mut command = Command::new("/proc/self/exe");
        command
            .args([CHILD_ARGUMENT, place.word()])
            .arg(host.path())
            .arg(program);
        command
    };
    let (name, value) = PATH.split_once('=').unwrap_or_default();
    command
        .args(arguments)
        .env_clear()
        .env(name, value)
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    Ok(command)
}

/// Runs `program`, an absolute path on the host, in the host's root and returns what it wrote to standard output.
///
/// # Errors
/// When it can't be started, ends with a failure, takes longer than `limit` or writes more than 4 MiB.
pub async fn run(
    host: &HostRoot,
    program: &str,
    arguments: &[&str],
    limit: Duration,
) -> Result<String, Error> {
    run_in(host, Place::Root, program, arguments, limit).await
}

/// Runs a program as [`run`] does, in a place of the caller's choice.
///
/// # Errors
/// As [`run`]'s.
pub async fn run_in(
    host: &HostRoot,
    place: Place,
    program: &str,
    arguments: &[&str],
    limit: Duration,
) -> Result<String, Error> {
    let start = |source| Error::Start {
        program: program.to_owned(),
        source,
    };
    let mut child = command(host, place, program, arguments)
        .map_err(start)?
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(start)?;
    let _group = Group::of(&child);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let all = async {
        let (stdout, stderr) = futures::join!(bounded(stdout), bounded(stderr));
        let (stdout, stderr) = (stdout?, stderr?);
        Ok::<_, std::io::Error>((child.wait().await?, stdout, stderr))
    };
    let (status, stdout, stderr) = tokio::time::timeout(limit, all)
        .await
        .map_err(|_| Error::TooLong {
            program: program.to_owned(),
            limit,
        })?
        .map_err(start)?;
    if stdout.len() as u64 > MAX_OUTPUT {
        return Err(Error::TooMuch {
            program: program.to_owned(),
        });
    }
    if status.code() == Some(CHILD_FAILED) && !host.is_own_root() {
        let words = last_words(
            &String::from_utf8_lossy(&stderr),
            "it could not be executed",
        );
        return Err(start(std::io::Error::other(words)));
    }
    if !status.success() {
        return Err(Error::Failed {
            program: program.to_owned(),
            words: last_words(&String::from_utf8_lossy(&stderr), &status.to_string()),
        });
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// Runs a program of the host that leaves others running, as service managers do, and waits for the program alone.
///
/// What it leaves holds its standard error: a pipe would end it with its first word after us, so that is a file in memory, which
/// takes nothing more once the program has ended.
///
/// # Errors
/// When it can't be started, ends with a failure or takes longer than `limit`.
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
    let words = memfd_create(c"words", flags).map_err(|errno| failed(errno.into()))?;
    let mut words = File::from(words);
    let stderr = words.try_clone().map_err(failed)?;
    let mut child = command(host, Place::Host, program, arguments)
        .map_err(failed)?
        .stdout(Stdio::null())
        .stderr(stderr)
        // Ctrl-C on a terminal signals our group: whoever restarts containerd must not be cut off half-way.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let ended = tokio::time::timeout(limit, child.wait()).await;
    let sealed = fcntl(&words, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW));
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
    words.rewind().map_err(failed)?;
    let read = words.take(MAX_OUTPUT).read_to_end(&mut bytes);
    read.map_err(failed)?;
    Err(Error::Failed {
        program: program.to_owned(),
        words: last_words(&String::from_utf8_lossy(&bytes), &status.to_string()),
    })
}

/// The processes that a program started, which end with this value: one that is cut off must leave nothing at work on the host.
struct Group(Option<Pid>);

impl Group {
    /// `child` was started as the leader of a group of its own.
    fn of(child: &Child) -> Self {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        Self(pid.map(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Mostly there is nobody left.
        let _ = self.0.map(|leader| killpg(leader, Signal::SIGKILL));
    }
}

async fn bounded(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_OUTPUT + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// The last line that says something, at most 300 characters of it: containerd puts the cause there.
fn last_words(stderr: &str, otherwise: &str) -> String {
    let line = stderr
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .unwrap_or(otherwise);
    printable(line).chars().take(300).collect()
}

/// Goes to the place in the first argument, of the root in the second, and becomes the program in the third, with the rest as its
/// arguments. Returns the exit status of a start that failed, and else not at all.
#[must_use]
pub fn child_main(arguments: Vec<OsString>) -> i32 {
    match become_program(arguments) {
        Ok(never) => match never {},
        Err((status, words)) => {
            // The parent reads standard error; there is nothing to do about a parent that is gone.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), words.as_bytes());
            status
        }
    }
}

fn become_program(arguments: Vec<OsString>) -> Result<Infallible, (i32, String)> {
    let mut arguments = arguments.into_iter();
    let failed = |words: String| (CHILD_FAILED, words);
    let absent = |what: &str| failed(format!("no {what} was named"));
    let place = arguments.next().ok_or_else(|| absent("place"))?;
    let root = arguments.next().ok_or_else(|| absent("root"))?;
    let root = Path::new(&root);
    let program: Vec<CString> = arguments
        .map(|argument| CString::new(argument.into_vec()))
        .collect::<Result<_, _>>()
        .map_err(|error| failed(error.to_string()))?;
    let path = program.first().ok_or_else(|| absent("program"))?;
    if place == Place::Host.word() {
        enter_host(root).map_err(failed)?;
    } else {
        nix::unistd::chroot(root)
            .and_then(|()| nix::unistd::chdir("/"))
            .map_err(|errno| failed(format!("can't enter {}: {errno}", root.display())))?;
    }
    let environment = CString::new(PATH).map_err(|error| failed(error.to_string()))?;
    nix::unistd::execve(path, &program, &[environment]).map_err(|errno| match errno {
        // execve(2): also where the file is there and its loader is not.
        Errno::ENOENT => (
            NOT_FOUND,
            "the program or its loader is not there".to_owned(),
        ),
        Errno::EACCES => (NOT_FOUND, errno.to_string()),
        errno => failed(errno.to_string()),
    })
}

/// Goes where process 1 of the host is. Where `root` is not that process' root, the host is but a folder, and that is entered.
fn enter_host(root: &Path) -> Result<(), String> {
    let can_t = |what: &str, words: &dyn std::fmt::Display| format!("can't enter {what}: {words}");
    let open = |name: &str| {
        let path = root.join("proc/1").join(name);
        File::open(&path).map_err(|error| can_t(&path.display().to_string(), &error))
    };
    let init_root = open("root")?;
    let is_root_of_init = same_file(&init_root, &File::open(root)).unwrap_or_default();
    if !is_root_of_init {
        return nix::unistd::chroot(root)
            .and_then(|()| nix::unistd::chdir("/"))
            .map_err(|errno| can_t(&root.display().to_string(), &errno));
    }
    // Both are opened before the first is entered: `root` means nothing afterwards.
    let (mounts, cgroups) = (open("ns/mnt")?, open("ns/cgroup"));
    // A process that stayed in the pod's cgroup would end with the pod. Its namespace is missing from kernels without cgroups.
    if let Ok(cgroups) = cgroups {
        setns(cgroups, CloneFlags::CLONE_NEWCGROUP)
            .map_err(|errno| can_t("the host's cgroup namespace", &errno))?;
    }
    setns(mounts, CloneFlags::CLONE_NEWNS)
        .and_then(|()| nix::unistd::fchdir(&init_root))
        .and_then(|()| nix::unistd::chroot("."))
        .map_err(|errno| can_t("the host's mount namespace", &errno))?;
    join_cgroups();
    Ok(())
}

fn same_file(one: &File, other: &std::io::Result<File>) -> Option<bool> {
    use std::os::unix::fs::MetadataExt as _;

    let (one, other) = (one.metadata().ok()?, other.as_ref().ok()?.metadata().ok()?);
    Some((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Moves this process into the cgroups of process 1 (cgroups(7): `hierarchy:controllers:path`). Best effort: a hierarchy that is not
/// mounted has no process to lose.
fn join_cgroups() {
    let cgroups = std::fs::read_to_string("/proc/1/cgroup").unwrap_or_default();
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let hierarchy = controllers.trim_start_matches("name=");
        // "0" is whoever writes it.
        let _ = std::fs::write(
            format!("/sys/fs/cgroup/{hierarchy}{path}/cgroup.procs"),
            "0",
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    async fn shell(script: &str, limit: Duration) -> Result<String, Error> {
        let host = HostRoot::open(Path::new("/")).unwrap();
        run(&host, "/bin/sh", &["-c", script], limit).await
    }

    #[tokio::test]
    async fn a_program_s_output_and_nothing_of_our_environment_comes_through() {
        let limit = Duration::from_secs(10);
        assert_eq!(shell("echo $HOME$CARGO", limit).await.unwrap(), "\n");
    }

    #[tokio::test]
    async fn a_program_that_leaves_others_running_has_a_process_group_of_its_own() {
        let host = HostRoot::open(Path::new("/")).unwrap();
        // proc(5): the fifth field of `stat` is the group.
        let leads = "test $(cut -d ' ' -f 5 /proc/self/stat) = $$";
        let started = start(&host, "/bin/sh", &["-c", leads], Duration::from_secs(10)).await;
        assert!(started.is_ok(), "{started:?}");
    }

    #[tokio::test]
    async fn a_failing_program_is_quoted_by_its_last_words() {
        let error = shell(
            "echo one >&2; echo two >&2; exit 3",
            Duration::from_secs(10),
        )
        .await
        .unwrap_err();
        assert_eq!(error.to_string(), "/bin/sh of the host failed: two");
    }

    #[tokio::test]
    async fn words_of_a_program_reach_no_terminal_as_commands() {
        let script = "printf '\\033[31mred\\007 \\342\\200\\256turned\\n' >&2; exit 1";
        let error = shell(script, Duration::from_secs(10)).await.unwrap_err();
        assert!(error.to_string().ends_with("failed: [31mred turned"));
    }

    #[tokio::test]
    async fn nothing_that_a_program_started_outlives_it() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
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
        // It ends when nobody has the pipe open any more.
        assert_eq!(reader.join().unwrap(), "a\n");
    }

    #[tokio::test]
    async fn a_program_that_hangs_or_floods_is_ended() {
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
