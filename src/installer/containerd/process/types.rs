//! A process, the facts about it, and the reasons that it does not count. Reads `/proc`; decides nothing.

use std::borrow::Cow;
use std::fmt;

use crate::handoff::printable;
use crate::installer::host::HostRoot;
use crate::installer::host::owner::ProgramError;

/// The slice of all sessions (systemd.special(7)).
pub(crate) const SESSIONS: &str = "user.slice";

/// Why a process is not taken for the host's containerd or kubelet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// One of its user ids is not 0.
    #[error("as uid {uid}: a rootless {name} is not supported")]
    Rootless {
        /// `containerd` or `kubelet`.
        name: &'static str,
        /// The id.
        uid: u32,
    },
    /// It is part of a session, a container or a virtual machine.
    #[error("in cgroup {cgroup}, below {part}, where no system service runs")]
    Below {
        /// Its cgroup.
        cgroup: String,
        /// The component.
        part: String,
    },
    /// Its cgroup says nothing of who started it.
    #[error("in cgroup {cgroup}, which belongs to no system service and is not that of process 1")]
    NoService {
        /// Its cgroup.
        cgroup: String,
    },
    /// It came into the host from outside.
    #[error("without being a descendant of process 1")]
    NoDescendant,
    /// It sees other mounts than process 1, so that its paths may be those of other files.
    #[error("in a mount namespace of its own, and {why}")]
    Mounts {
        /// What is missing.
        why: String,
    },
    /// The unit file, which would vouch for the mount namespace, is not root's.
    #[error("in a mount namespace of its own, and its unit file is not root's: {0}")]
    UnitFile(#[source] ProgramError),
    /// Others can replace its program.
    #[error("and others than root can replace that: {0}")]
    Program(#[source] ProgramError),
    /// Any user may have started it.
    #[error(
        "and that has a set-user-ID or set-group-ID bit or capabilities, so any user can start it"
    )]
    Privileged,
    /// The program is not the file at its path.
    #[error("and another file than that is there")]
    OtherFile,
    /// `/proc` does not say.
    #[error("and {what} can't be read")]
    Unknown {
        /// What is needed.
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
            | Self::NoDescendant => Cow::Borrowed("run it as a system service"),
            Self::Mounts { .. } => Cow::Borrowed("run it as the main process of a systemd service"),
            Self::Privileged => Cow::Borrowed("run containerd itself as a system service"),
            Self::OtherFile => Cow::Borrowed("restart it"),
            Self::Unknown { .. } => Cow::Borrowed("run farrier as root, with a /proc of the host"),
            Self::Program(error) | Self::UnitFile(error) => return error.help(),
        })
    }

    /// Whether the cgroup is that of a container or a virtual machine, and not that of a session.
    pub(crate) fn is_of_a_container(&self) -> bool {
        matches!(self, Self::Below { part, .. } if part != SESSIONS)
    }
}

/// A process that root started as part of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its PID, and when it started (field 22 of `proc_pid_stat(5)`): together they never come again before a reboot.
    pub id: (u32, u64),
    /// The PID of its parent.
    pub parent: u32,
    /// Path of its program on the host.
    pub program: String,
    /// Its command line, with a NUL behind each argument.
    pub arguments: String,
    /// The unit that it runs in; a service of `OpenRC` is one with `.service` behind its name.
    pub unit: Option<String>,
}

/// A process that has the right name and does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its PID.
    pub pid: u32,
    /// Path of its program, as the process sees it.
    pub program: String,
    /// Why it does not count.
    pub reason: Reason,
}

/// What `/proc` says about a process that has the right name.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) pid: u32,
    pub(crate) uids: Vec<u32>,
    pub(crate) parent: u32,
    pub(crate) cgroup: Option<String>,
    pub(crate) mounts: Option<String>,
}

impl Refusal {
    /// Whether an ordinary user may have started the process. Nothing may depend on whether there is such a process.
    #[must_use]
    pub fn is_user_process(&self) -> bool {
        match self.reason {
            Reason::Rootless { .. } | Reason::Below { .. } | Reason::Privileged => true,
            Reason::NoService { .. }
            | Reason::NoDescendant
            | Reason::Mounts { .. }
            | Reason::Program(_)
            | Reason::UnitFile(_)
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

impl Seen {
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

/// Files of `/proc` about one process; the command line of a kubelet has some kilobytes.
pub(crate) const SMALL: u64 = 1 << 18;

pub(crate) fn read(host: &HostRoot, pid: u32, name: &str) -> Option<String> {
    let path = format!("/proc/{pid}/{name}");
    host.read_text(&path, SMALL).ok().flatten()
}

pub(crate) fn namespace(host: &HostRoot, pid: u32, name: &str) -> Option<String> {
    host.symlink_target(&format!("/proc/{pid}/ns/{name}"))
        .ok()
        .flatten()
}

/// What is compared with process 1 of the host.
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
            // Both make their directory below `/run` when they start (`sd_booted(3)`; `OpenRC`'s `RC_SVCDIR`).
            managers: Managers {
                systemd: host.is_seen("/run/systemd/system"),
                openrc: host.is_seen("/run/openrc"),
            },
        }
    }
}

/// Who runs the services of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Managers {
    pub(crate) systemd: bool,
    pub(crate) openrc: bool,
}
