//! What a start of this program does that only enters a root and becomes a program of the host. Looks at nothing but its arguments.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sched::{CloneFlags, setns};

/// Exit status of a start that could not enter the root, or could not execute the file at all, as `chroot(1)` has it.
pub(crate) const CHILD_FAILED: i32 = 125;

/// Exit status where a program or its loader is missing or must not be executed, as shells have it.
pub(crate) const NOT_FOUND: i32 = 127;

/// Programs of a host look for others here; nothing of our own environment reaches them.
pub(crate) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecContext {
    /// In the host's root. Enough for whatever only reads its arguments and files.
    Root,
    /// In the host's root and also in the mount namespace and the cgroup of its process 1, as if started on the host itself: what
    /// starts a service or looks for one needs this, where we run in a pod.
    Host,
}

/// How a start of this program that enters a root finds what it becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// By its path in that root.
    Path,
    /// By the descriptor that is its standard input.
    Descriptor,
    /// By that descriptor, which the script's interpreter opens once more and therefore has to find there.
    Script,
}

impl ExecContext {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Host => "host",
        }
    }
}

impl Source {
    const ALL: [Self; 3] = [Self::Path, Self::Descriptor, Self::Script];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Descriptor => "descriptor",
            Self::Script => "script",
        }
    }
}

/// Goes to the place in the first argument, of the root in the third, and becomes the program in the fourth, found as the second
/// says, with the rest as its arguments. Returns the exit status of a start that failed, and else not at all.
#[must_use]
pub fn child_main(arguments: Vec<OsString>) -> i32 {
    match become_program(arguments) {
        Ok(never) => match never {},
        Err((status, message)) => {
            // The parent reads standard error; there is nothing to do about a parent that is gone.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), message.as_bytes());
            status
        }
    }
}

fn become_program(arguments: Vec<OsString>) -> Result<Infallible, (i32, String)> {
    let mut arguments = arguments.into_iter();
    let failed = |message: String| (CHILD_FAILED, message);
    let absent = |what: &str| failed(format!("no {what} was named"));
    let context = arguments.next().ok_or_else(|| absent("place"))?;
    let source = arguments.next().ok_or_else(|| absent("source"))?;
    let source = Source::ALL
        .into_iter()
        .find(|known| source == known.name())
        .ok_or_else(|| absent("known source"))?;
    let root = arguments.next().ok_or_else(|| absent("root"))?;
    let root = Path::new(&root);
    let program: Vec<CString> = arguments
        .map(|argument| CString::new(argument.into_vec()))
        .collect::<Result<_, _>>()
        .map_err(|error| failed(error.to_string()))?;
    let path = program.first().ok_or_else(|| absent("program"))?;
    let opened = match source {
        Source::Descriptor => Some(take_stdin().map_err(|error| failed(error.to_string()))?),
        Source::Path | Source::Script => None,
    };
    if context == ExecContext::Host.name() {
        enter_host(root).map_err(failed)?;
    } else {
        nix::unistd::chroot(root)
            .and_then(|()| nix::unistd::chdir("/"))
            .map_err(|errno| failed(format!("can't enter {}: {errno}", root.display())))?;
    }
    let environment = CString::new(PATH).map_err(|error| failed(error.to_string()))?;
    let environment = [environment];
    let never = match (&opened, source) {
        (Some(opened), _) => {
            let flags = AtFlags::AT_EMPTY_PATH;
            nix::unistd::execveat(opened, c"", &program, &environment, flags)
        }
        (None, Source::Script) => nix::unistd::execve(c"/proc/self/fd/0", &program, &environment),
        (None, _) => nix::unistd::execve(path, &program, &environment),
    };
    never.map_err(|errno| match errno {
        // execve(2): also where the file is there and its loader is not.
        Errno::ENOENT => (
            NOT_FOUND,
            "the program or its loader is not there".to_owned(),
        ),
        Errno::EACCES => (NOT_FOUND, errno.to_string()),
        errno => failed(errno.to_string()),
    })
}

/// The descriptor that is standard input, which nothing that is run gets to see, with nothing in its place.
fn take_stdin() -> std::io::Result<OwnedFd> {
    let opened = std::io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(opened)
}

/// Goes where process 1 of the host is. Where `root` is not that process' root, the host is but a folder, and that is entered.
fn enter_host(root: &Path) -> Result<(), String> {
    let failed_to_enter =
        |what: &str, message: &dyn std::fmt::Display| format!("can't enter {what}: {message}");
    let open = |name: &str| {
        let path = root.join("proc/1").join(name);
        File::open(&path).map_err(|error| failed_to_enter(&path.display().to_string(), &error))
    };
    let init_root = open("root")?;
    let is_root_of_init = same_file(&init_root, &File::open(root)).unwrap_or_default();
    if !is_root_of_init {
        return nix::unistd::chroot(root)
            .and_then(|()| nix::unistd::chdir("/"))
            .map_err(|errno| failed_to_enter(&root.display().to_string(), &errno));
    }
    // Both are opened before the first is entered: `root` means nothing afterwards.
    let (mounts, cgroups) = (open("ns/mnt")?, open("ns/cgroup"));
    // A process that stayed in the pod's cgroup would end with the pod. Its namespace is missing from kernels without cgroups.
    if let Ok(cgroups) = cgroups {
        setns(cgroups, CloneFlags::CLONE_NEWCGROUP)
            .map_err(|errno| failed_to_enter("the host's cgroup namespace", &errno))?;
    }
    setns(mounts, CloneFlags::CLONE_NEWNS)
        .and_then(|()| nix::unistd::fchdir(&init_root))
        .and_then(|()| nix::unistd::chroot("."))
        .map_err(|errno| failed_to_enter("the host's mount namespace", &errno))?;
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
