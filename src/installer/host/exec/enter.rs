//! The second start of Farrier: changes the root and executes a program of the host. Uses only its arguments.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sched::{CloneFlags, setns};

/// Exit status when the root could not be changed or the file could not be executed, as of `chroot(1)`.
pub(crate) const CHILD_FAILED: i32 = 125;

/// Exit status when the program or its loader is missing or may not be executed, as of a shell.
pub(crate) const NOT_FOUND: i32 = 127;

/// The whole environment of a program of the host. No variable of Farrier's own environment is passed on.
pub(crate) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The root and namespaces in which a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecContext {
    /// In the host's root. Sufficient for a program that only reads its arguments and files.
    Root,
    /// In the host's root and also in the mount namespace and the cgroup of the host's process 1, as if started on the host itself. A
    /// program that starts or queries services needs this when Farrier runs in a pod.
    Host,
}

/// How the second start of Farrier finds the program that it executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgramSource {
    /// By its path in the new root.
    Path,
    /// By the descriptor in its standard input.
    Descriptor,
    /// By the descriptor in its standard input, which stays open: the script's interpreter opens the script once more.
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

impl ProgramSource {
    const ALL: [Self; 3] = [Self::Path, Self::Descriptor, Self::Script];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Descriptor => "descriptor",
            Self::Script => "script",
        }
    }
}

/// Changes the root and executes a program. Arguments: the context ([`ExecContext`]), the source of the program, the root directory, the
/// program's path, and the program's arguments. Returns only on a failure, with the exit status.
#[must_use]
pub fn child_main(arguments: Vec<OsString>) -> i32 {
    match become_program(arguments) {
        Ok(never) => match never {},
        Err((status, message)) => {
            // The parent reads standard error. A failed write means that the parent has ended.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), message.as_bytes());
            status
        }
    }
}

fn become_program(arguments: Vec<OsString>) -> Result<Infallible, (i32, String)> {
    let mut arguments = arguments.into_iter();
    let failed = |message: String| (CHILD_FAILED, message);
    let absent = |what: &str| failed(format!("missing argument: {what}"));
    let context = arguments.next().ok_or_else(|| absent("context"))?;
    let source = arguments.next().ok_or_else(|| absent("source"))?;
    let source = ProgramSource::ALL
        .into_iter()
        .find(|known| source == known.name())
        .ok_or_else(|| absent("valid source"))?;
    let root = arguments.next().ok_or_else(|| absent("root directory"))?;
    let root = Path::new(&root);
    let program: Vec<CString> = arguments
        .map(|argument| CString::new(argument.into_vec()))
        .collect::<Result<_, _>>()
        .map_err(|error| failed(error.to_string()))?;
    let path = program.first().ok_or_else(|| absent("program"))?;
    let opened = match source {
        ProgramSource::Descriptor => Some(take_stdin().map_err(|error| failed(error.to_string()))?),
        ProgramSource::Path | ProgramSource::Script => None,
    };
    if context == ExecContext::Host.name() {
        enter_host(root).map_err(failed)?;
    } else {
        nix::unistd::chroot(root)
            .and_then(|()| nix::unistd::chdir("/"))
            .map_err(|errno| failed(format!("failed to enter {}: {errno}", root.display())))?;
    }
    let environment = CString::new(PATH).map_err(|error| failed(error.to_string()))?;
    let environment = [environment];
    let never = match (&opened, source) {
        (Some(opened), _) => {
            let flags = AtFlags::AT_EMPTY_PATH;
            nix::unistd::execveat(opened, c"", &program, &environment, flags)
        }
        (None, ProgramSource::Script) => {
            nix::unistd::execve(c"/proc/self/fd/0", &program, &environment)
        }
        (None, _) => nix::unistd::execve(path, &program, &environment),
    };
    never.map_err(|errno| match errno {
        // execve(2): also when the file exists and its loader does not.
        Errno::ENOENT => (
            NOT_FOUND,
            "the program or its loader does not exist".to_owned(),
        ),
        Errno::EACCES => (NOT_FOUND, errno.to_string()),
        errno => failed(errno.to_string()),
    })
}

/// Takes the descriptor out of standard input and puts `/dev/null` there, which the executed program inherits.
fn take_stdin() -> std::io::Result<OwnedFd> {
    let opened = std::io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(opened)
}

/// Enters the root, mount namespace and cgroups of the host's process 1. If `root` is not the root of process 1, as with an unpacked
/// image, only the root is changed.
fn enter_host(root: &Path) -> Result<(), String> {
    let failed_to_enter =
        |what: &str, message: &dyn std::fmt::Display| format!("failed to enter {what}: {message}");
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
    // Both are opened before the first is entered: afterwards `root` is no valid path.
    let (mounts, cgroups) = (open("ns/mnt")?, open("ns/cgroup"));
    // A process that stays in the pod's cgroup ends with the pod. Kernels without cgroups have no cgroup namespace.
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
/// mounted is skipped.
fn join_cgroups() {
    let cgroups = std::fs::read_to_string("/proc/1/cgroup").unwrap_or_default();
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let hierarchy = controllers.trim_start_matches("name=");
        // "0" is the writing process (cgroups(7)).
        let _ = std::fs::write(
            format!("/sys/fs/cgroup/{hierarchy}{path}/cgroup.procs"),
            "0",
        );
    }
}
