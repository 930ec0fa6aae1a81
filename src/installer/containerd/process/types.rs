//! A process, its facts from `/proc`, and the reasons for not using it. Contains no decisions.

use std::borrow::Cow;
use std::fmt;

use crate::handoff::printable;
use crate::installer::host::HostRoot;
use crate::installer::host::owner::ProgramError;

/// The slice of all user sessions (systemd.special(7)).
pub(crate) const SESSIONS: &str = "user.slice";

/// Why Farrier does not use a process as the host's containerd or kubelet. Each message continues `process PID runs PROGRAM`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// One of its user IDs is not 0.
    #[error("as UID {uid}: a rootless {name} is not supported")]
    Rootless {
        /// `containerd` or `kubelet`.
        name: &'static str,
        /// The user ID.
        uid: u32,
    },
    /// The process is part of a session, a container or a virtual machine.
    #[error("in cgroup {cgroup}, below {part}, where no system service runs")]
    Below {
        /// Path of the cgroup.
        cgroup: String,
        /// The component of the path that names a session, container or virtual machine.
        part: String,
    },
    /// The cgroup is not that of a system service.
    #[error("in cgroup {cgroup}, which belongs to no system service and is not that of process 1")]
    NoService {
        /// Path of the cgroup.
        cgroup: String,
    },
    /// The process was started from outside of the host, as with `docker exec`.
    #[error("without being a descendant of process 1")]
    NoDescendant,
    /// The process has other mounts than process 1, so its paths may name other files.
    #[error("in a mount namespace of its own, and {why}")]
    Mounts {
        /// The evidence that is missing.
        why: String,
    },
    /// The unit file, the evidence for the mount namespace, is not owned by root.
    #[error("in a mount namespace of its own, and its unit file is not owned by root alone: {0}")]
    UnitFile(#[source] ProgramError),
    /// Users other than root can replace the program.
    #[error("and users other than root can replace this program: {0}")]
    Program(#[source] ProgramError),
    /// The program was removed, so a restart starts nothing.
    #[error("which was removed, so a restart could not start it")]
    Removed,
    /// Any user may have started the program.
    #[error(
        "and this program has a set-user-ID or set-group-ID bit or capabilities, so any user can start it"
    )]
    Privileged,
    /// The process is a script, or has another program under its name.
    #[error("under the name {name}")]
    OtherProgram {
        /// `containerd` or `kubelet`.
        name: &'static str,
    },
    /// The program is not the file at its path.
    #[error("and another file is at that path")]
    OtherFile,
    /// A fact can't be read from `/proc`.
    #[error("and {what} can't be read")]
    Unknown {
        /// The fact, as in `its status`.
        what: &'static str,
    },
}

impl Reason {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Rootless { .. }
            | Self::Below { .. }
            | Self::NoService { .. }
            | Self::NoDescendant => Cow::Borrowed("run the process as a system service"),
            Self::Mounts { .. } => {
                Cow::Borrowed("run the process as the main process of a systemd service")
            }
            Self::Removed => Cow::Borrowed("install the program again at that path"),
            Self::Privileged => Cow::Borrowed("run containerd itself as a system service"),
            Self::OtherProgram { name } => Cow::Owned(format!(
                "let the script end with `exec`, so that {name} takes its place"
            )),
            Self::OtherFile => Cow::Borrowed("restart the process"),
            Self::Unknown { .. } => {
                Cow::Borrowed("run farrier as root, with the /proc of the host")
            }
            Self::Program(error) | Self::UnitFile(error) => return error.help(),
        })
    }

    /// Whether the cgroup is that of a container or a virtual machine, not of a session.
    pub(crate) fn is_of_a_container(&self) -> bool {
        matches!(self, Self::Below { part, .. } if part != SESSIONS)
    }
}

/// A process that root started as part of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// PID and start time (field 22 of `proc_pid_stat(5)`). The pair is unique until a reboot.
    pub id: (u32, u64),
    /// The PID of its parent.
    pub parent: u32,
    /// Path of its program on the host.
    pub program: String,
    /// Its command line, with a NUL after each argument. An argument need not be text.
    pub arguments: Vec<u8>,
    /// Its working directory on the host; `None` if the directory was removed or can't be named.
    pub directory: Option<String>,
    /// Its unit; for an `OpenRC` service, the name of the service with `.service`.
    pub unit: Option<String>,
}

/// A process with the right name that Farrier does not use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its PID.
    pub pid: u32,
    /// Path of its program, as the process sees it.
    pub program: String,
    /// The reason for not using it.
    pub reason: Reason,
}

/// The facts from `/proc` about a process with the right name.
#[derive(Debug)]
pub(crate) struct ProcessFacts {
    pub(crate) pid: u32,
    pub(crate) uids: Vec<u32>,
    pub(crate) parent: u32,
    pub(crate) cgroup: Option<String>,
    pub(crate) mounts: Option<String>,
}

impl Refusal {
    /// Whether an ordinary user may have started the process. No decision may depend on such a process.
    #[must_use]
    pub fn is_user_process(&self) -> bool {
        match self.reason {
            Reason::Rootless { .. } | Reason::Below { .. } | Reason::Privileged => true,
            Reason::NoService { .. }
            | Reason::NoDescendant
            | Reason::Mounts { .. }
            | Reason::Program(_)
            | Reason::Removed
            | Reason::UnitFile(_)
            | Reason::OtherProgram { .. }
            | Reason::OtherFile
            | Reason::Unknown { .. } => false,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = printable(&self.program);
        let reason = printable(&self.reason.to_string());
        write!(formatter, "process {} runs {program} {reason}", self.pid)
    }
}

impl ProcessFacts {
    pub(crate) fn of(host: &HostRoot, pid: u32) -> Option<Self> {
        let status = read(host, pid, "status")?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let uids = field("Uid:")?.split_ascii_whitespace();
        Some(Self {
            pid,
            uids: uids.map(str::parse).collect::<Result<_, _>>().ok()?,
            parent: field("PPid:")?.trim().parse().ok()?,
            cgroup: read(host, pid, "cgroup"),
            mounts: namespace(host, pid, "mnt"),
        })
    }
}

/// Size of a file in `/proc/PID`, in bytes, at most. The command line of a kubelet has some kilobytes.
pub(crate) const SMALL: u64 = 1 << 18;

pub(crate) fn read(host: &HostRoot, pid: u32, name: &str) -> Option<String> {
    String::from_utf8(read_bytes(host, pid, name)?).ok()
}

pub(crate) fn read_bytes(host: &HostRoot, pid: u32, name: &str) -> Option<Vec<u8>> {
    let path = format!("/proc/{pid}/{name}");
    host.read(&path, SMALL).ok().flatten()
}

pub(crate) fn namespace(host: &HostRoot, pid: u32, name: &str) -> Option<String> {
    host.symlink_target(&format!("/proc/{pid}/ns/{name}"))
        .ok()
        .flatten()
}

/// The facts about process 1 of the host, to compare other processes with.
#[derive(Debug, Default)]
pub(crate) struct Init {
    pub(crate) cgroup: Option<String>,
    pub(crate) mounts: Option<String>,
    pub(crate) processes: Option<String>,
    pub(crate) managers: Managers,
}

impl Init {
    pub(crate) fn of(host: &HostRoot) -> Self {
        Self {
            cgroup: read(host, 1, "cgroup"),
            mounts: namespace(host, 1, "mnt"),
            processes: namespace(host, 1, "pid"),
            // Both create their directory below `/run` at their start (`sd_booted(3)`; `OpenRC`'s `RC_SVCDIR`).
            managers: Managers {
                systemd: host.seems_to_exist("/run/systemd/system"),
                openrc: host.seems_to_exist("/run/openrc"),
            },
        }
    }
}

/// The service managers that run on a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Managers {
    pub(crate) systemd: bool,
    pub(crate) openrc: bool,
}
