//! The two processes of a rehearsal below Farrier's own. The first one creates the namespaces, and has one thread, as a change of the
//! mount namespace requires. The second one is process 1 of the new PID namespace: it builds the root, starts containerd, asks its CRI, and
//! ends. With process 1, the kernel ends every process of the namespace.
//!
//! Each process dies with the one that started it, so a killed Farrier leaves no process, and the namespaces end with their last process.

use std::ffi::OsString;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{close, getppid};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::built_root::{self, BuiltRoot};
use super::listening::Listening;
use crate::installer::containerd::cri::{self, STEADY, Served};
use crate::installer::host::HostRoot;

/// First argument of a start of Farrier as a process of a rehearsal.
pub const CHILD_ARGUMENT: &str = "__rehearse";

/// Second argument of the process that creates the namespaces. The third one is the PID of its parent.
pub(super) const NAMESPACES: &str = "namespaces";
/// Second argument of process 1 of the new PID namespace.
const INIT: &str = "init";

/// Exit status if the root can't be built or a namespace can't be created.
const FAILED: i32 = 1;

/// The time for the start of containerd. A start takes some 0.1 s; the limit leaves room for a node under load.
pub(super) const START_LIMIT: Duration = Duration::from_secs(20);

/// Interval between two questions to the CRI: short compared with a start.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The time for the rest of the log after the end of containerd. Another process may still have the pipe open.
const LOG_LIMIT: Duration = Duration::from_millis(200);

/// Bytes of the log that are kept. A start writes some 30 kB, and 1 MB with the level `trace`.
const MAX_LOG: usize = 1 << 20;

/// The configuration files and the environment, as JSON, have this many bytes at most.
const MAX_INPUT: u64 = 64 << 20;

/// What happened to containerd in a rehearsal.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Observed {
    /// The CRI serves.
    Served(Served),
    /// containerd runs without its CRI, as the message of the call shows.
    NoCri(String),
    /// containerd has ended, with this status.
    Ended(String),
    /// The CRI did not serve within [`START_LIMIT`]; the answer to the last question.
    TooLate(String),
    /// containerd could not be started.
    NotStarted(String),
}

/// The result of a rehearsal as its process 1 prints it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Observation {
    pub(super) observed: Observed,
    /// The start of containerd's log.
    pub(super) log: String,
    /// Where containerd listens.
    pub(super) listening: Listening,
}

/// Runs one of the two processes; `arguments` are those after [`CHILD_ARGUMENT`]. Returns the exit status.
#[must_use]
pub fn child_main(arguments: &[OsString]) -> i32 {
    let argument = |at: usize| arguments.get(at).and_then(|argument| argument.to_str());
    let ended = match (argument(0), argument(1)) {
        (Some(NAMESPACES), Some(parent)) => create_namespaces(parent),
        (Some(INIT), None) => init().map(|()| 0),
        _ => Err("unknown arguments".to_owned()),
    };
    ended.unwrap_or_else(|message| {
        // The parent reads standard error. A failed write means that the parent has ended.
        let _ = io::stderr().write_all(message.as_bytes());
        FAILED
    })
}

fn failed<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> String {
    move |error| format!("failed to {what}: {error}")
}

/// Lets this process end with its parent.
fn end_with_parent() -> Result<(), String> {
    set_pdeathsig(Signal::SIGKILL).map_err(failed("set the signal for the end of the parent"))
}

/// Creates the namespaces, and starts process 1 in them. Returns its exit status.
fn create_namespaces(parent: &str) -> Result<i32, String> {
    end_with_parent()?;
    // The parent may have ended before. The PID of a parent in another PID namespace is 0.
    let now = getppid().as_raw();
    if now != 0 && parent.parse() != Ok(now) {
        return Ok(FAILED);
    }
    let mut input = Vec::new();
    let read = io::stdin().take(MAX_INPUT).read_to_end(&mut input);
    read.map_err(failed("read the instructions"))?;
    input.push(b'\n');
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .map_err(failed("create namespaces"))?;
    let mut child = std::process::Command::new("/proc/self/exe")
        .args([CHILD_ARGUMENT, INIT])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(failed("start a process in new namespaces"))?;
    let mut stdin = child.stdin.take();
    if let Some(stdin) = &mut stdin {
        // A process that has ended has said why on standard error.
        let _ = stdin.write_all(&input);
    }
    let status = child.wait().map_err(failed("wait for the rehearsal"))?;
    // As long as this pipe is open, process 1 knows that this process lives.
    drop(stdin);
    Ok(status.code().unwrap_or(FAILED))
}

/// Process 1 of the new PID namespace. Prints the [`Observation`].
fn init() -> Result<(), String> {
    end_with_parent()?;
    close_inherited().map_err(failed("close inherited files"))?;
    let mut line = Vec::new();
    let read = io::stdin()
        .lock()
        .take(MAX_INPUT + 1)
        .read_until(b'\n', &mut line);
    read.map_err(failed("read the instructions"))?;
    if parent_has_ended().map_err(failed("read the instructions"))? {
        return Ok(());
    }
    let built = serde_json::from_slice(&line).map_err(failed("parse the instructions"))?;
    drop(line);
    built_root::enter(&built)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start the runtime"))?;
    let observation = runtime.block_on(observe(&built))?;
    let printed = serde_json::to_writer(io::stdout(), &observation);
    printed.map_err(failed("write the result"))
}

/// Closes every file but the standard streams: the process that started Farrier may have left files open.
fn close_inherited() -> io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        open.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        match close(descriptor) {
            // That of the listing itself.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Whether the parent has ended. It may have ended before [`end_with_parent`] had an effect; afterwards, its end ends this process.
fn parent_has_ended() -> io::Result<bool> {
    let stdin = io::stdin();
    fcntl(stdin.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut byte = [0];
    match nix::unistd::read(stdin.as_fd(), &mut byte) {
        Ok(0) => Ok(true),
        Ok(_) | Err(Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Starts containerd and asks its CRI until the result is certain.
async fn observe(built: &BuiltRoot) -> Result<Observation, String> {
    let host = HostRoot::open("/".as_ref()).map_err(|error| error.to_string())?;
    let mut arguments = built.arguments.iter();
    let name = arguments.next().unwrap_or(&built.program);
    let spawned = Command::new(&built.program)
        .arg0(name)
        .args(arguments)
        .env_clear()
        .envs(&built.environment)
        .current_dir(&built.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let message = format!("failed to start {}: {error}", built.program);
            return Ok(Observation {
                observed: Observed::NotStarted(message),
                log: String::new(),
                listening: Listening::default(),
            });
        }
    };
    let log = tokio::spawn(read_log(child.stderr.take()));
    let observed = await_cri(&host, &built.socket, &mut child)
        .await
        .map_err(failed("wait for containerd"))?;
    let pid = child.id();
    let listening = pid.map_or_else(Listening::default, |pid| Listening::of(&host, pid));
    let _ = child.start_kill();
    let log = match tokio::time::timeout(LOG_LIMIT, log).await {
        Ok(Ok(log)) => log,
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    Ok(Observation {
        observed,
        log: String::from_utf8_lossy(&log).into_owned(),
        listening,
    })
}

async fn await_cri(host: &HostRoot, socket: &str, child: &mut Child) -> io::Result<Observed> {
    let started = Instant::now();
    let mut message = "no answer".to_owned();
    let mut ready_since: Option<Instant> = None;
    while let Some(left) = START_LIMIT.checked_sub(started.elapsed()) {
        if let Some(status) = child.try_wait()? {
            return Ok(Observed::Ended(status.to_string()));
        }
        let mut pause = POLL_INTERVAL;
        match tokio::time::timeout(left, cri::served(host, socket)).await {
            Ok(Ok(served)) if served.ready => {
                let since = ready_since.get_or_insert_with(Instant::now);
                pause = STEADY.saturating_sub(since.elapsed());
                if pause.is_zero() {
                    return Ok(Observed::Served(served));
                }
            }
            Ok(Ok(_)) => {
                ready_since = None;
                "its runtime is not ready".clone_into(&mut message);
            }
            Ok(Err(error @ (cri::Error::Unimplemented { .. } | cri::Error::Unreadable { .. }))) => {
                return Ok(Observed::NoCri(error.to_string()));
            }
            Ok(Err(
                error @ (cri::Error::Unavailable { .. } | cri::Error::Uninitialized { .. }),
            )) => {
                ready_since = None;
                message = error.to_string();
            }
            Err(_) => break,
        }
        // The end of containerd ends the pause; the next round reads the status.
        let _ = tokio::time::timeout(pause, child.wait()).await;
    }
    Ok(Observed::TooLate(message))
}

/// Reads the log to its end, so that containerd never waits for a reader; returns the start.
async fn read_log(log: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 1 << 14]);
    let Some(mut log) = log else {
        return kept;
    };
    while let Ok(read @ 1..) = log.read(&mut buffer).await {
        let room = MAX_LOG.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
    kept
}
