//! Finds the processes that Farrier may use as the host's containerd and kubelet, by evidence that only root can create. Reads `/proc`.
//!
//! As root, Farrier runs the program of such a process, connects to its socket and restarts its unit. A name is no evidence: any user,
//! and a container with access to the host's files, can choose the name of a process. The evidence is in the kernel (credentials,
//! cgroup, namespaces) and in the owners of files.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use crate::installer::distro;
use crate::installer::host::path::{file_name, parent_directory};
use crate::installer::host::{HostRoot, Target};

mod cgroup;
mod types;
mod unit;

use cgroup::CgroupOwner;
pub(crate) use types::read_bytes;
use types::{Init, ProcessFacts, namespace, read};
pub use types::{Process, Reason, Refusal};
use unit::check_main_process;

/// Ancestors of a service below process 1, at most. A chain of parents is longer only if it changes while Farrier reads it.
const MAX_PARENTS: usize = 64;

/// Processes by PID, each with its name from the list searched for.
pub type NamedProcesses = BTreeMap<u32, (&'static str, Result<Process, Refusal>)>;

/// Finds all processes of the host with one of these names: the process, or the reason for not using it. Leaves out processes of
/// containers, and those that are ending.
///
/// # Errors
/// When `/proc` can't be listed.
pub fn find_by_name(
    host: &HostRoot,
    names: &[&'static str],
) -> Result<NamedProcesses, crate::installer::host::Error> {
    let init = Init::of(host);
    let found = pids(host)?.into_iter().filter_map(|pid| {
        let comm = read(host, pid, "comm")?;
        let name = names
            .iter()
            .find(|name| comm.strip_suffix('\n') == Some(name))?;
        Some((pid, (*name, check_process(host, &init, pid, name)?)))
    });
    Ok(found.collect())
}

/// A process of the host that runs one of the programs searched for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningProgram {
    /// PID and start time (field 22 of `proc_pid_stat(5)`). The pair is unique until a reboot.
    pub id: (u32, u64),
    /// The PID of its parent.
    pub parent: u32,
    /// Path of its program on the host, also if the program was removed or replaced.
    pub program: String,
    /// Its command line, with a NUL after each argument. An argument need not be text.
    pub arguments: Vec<u8>,
}

/// Finds the processes of programs whose path `is_wanted`, as far as root started them as part of the host, by PID. The path is that of the
/// file that the kernel executes. A process chooses the name in its command line itself.
///
/// # Errors
/// When `/proc` can't be listed.
pub fn find_by_program(
    host: &HostRoot,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Vec<RunningProgram>, crate::installer::host::Error> {
    let init = Init::of(host);
    let mut pids: Vec<u32> = pids(host)?;
    pids.sort_unstable();
    let found = pids.into_iter().filter_map(|pid| {
        // The kernel has the text of this symlink. Reading it does not open the file.
        let exe = host.symlink_target(&format!("/proc/{pid}/exe")).ok()??;
        let program = without_deleted_mark(&exe);
        if !is_wanted(program) {
            return None;
        }
        let start = start_time(host, pid)?;
        let facts = ProcessFacts::of(host, pid)?;
        if !is_of_host(host, &init, &facts) || !runs_program_of_host(host, pid, &exe) {
            return None;
        }
        let arguments = read_bytes(host, pid, "cmdline")?;
        // With another start time, some facts may be those of a later process with the same PID.
        (start_time(host, pid) == Some(start)).then(|| RunningProgram {
            id: (pid, start),
            parent: facts.parent,
            program: program.to_owned(),
            arguments,
        })
    });
    Ok(found.collect())
}

/// The parent of each process, by PID. Processes that end meanwhile may be missing.
///
/// # Errors
/// When `/proc` can't be listed.
pub(super) fn parents(
    host: &HostRoot,
) -> Result<BTreeMap<u32, u32>, crate::installer::host::Error> {
    let parents = pids(host)?
        .into_iter()
        .filter_map(|pid| Some((pid, parent(host, pid)?)));
    Ok(parents.collect())
}

/// The parent of process `pid`; `None` if there is no such process.
pub(super) fn parent(host: &HostRoot, pid: u32) -> Option<u32> {
    Some(ProcessFacts::of(host, pid)?.parent)
}

fn pids(host: &HostRoot) -> Result<Vec<u32>, crate::installer::host::Error> {
    let names = host.list("/proc")?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Whether root started the process as a part of the host, and not of a session or a container. The mounts may differ from those of process
/// 1: a shim may have its own.
fn is_of_host(host: &HostRoot, init: &Init, facts: &ProcessFacts) -> bool {
    let own = namespace(host, facts.pid, "pid");
    if own.is_none() || own != init.processes || check_root_uids(facts, "shim").is_err() {
        return false;
    }
    let cgroup_owner = match (&init.cgroup, &facts.cgroup) {
        (Some(init_cgroup), Some(own)) => cgroup::cgroup_owner(init_cgroup, own, init.managers),
        // A kernel without cgroups has no `cgroup` file for any process.
        (None, None) => Ok(CgroupOwner::Init),
        _ => return false,
    };
    let is_of_host = match cgroup_owner {
        Ok(CgroupOwner::Unit(_) | CgroupOwner::OpenRc(_)) => true,
        Ok(CgroupOwner::Init) => check_descends_from_init(host, facts).is_ok(),
        Err(_) => false,
    };
    // Last: the root of a container may be on a file server, and reading it may never return.
    is_of_host && host.is_root_of(facts.pid)
}

/// Whether the program of a process, at the path `exe`, is that file of the host. Of a removed or replaced program, only its path is left:
/// then only root may have put it there.
fn runs_program_of_host(host: &HostRoot, pid: u32, exe: &str) -> bool {
    if let Some(removed) = exe.strip_suffix(" (deleted)") {
        return host.check_only_root_writes(removed, Target::Live).is_ok();
    }
    let opened = host.open_program(exe).ok();
    let named = opened.and_then(|opened| opened.identity().ok());
    named.is_some() && named == host.identity_of_program(pid)
}

/// The clock of the host, to convert start times of processes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// Now, since the epoch.
    now: Duration,
    since_boot: Duration,
    /// Per second.
    ticks: u64,
}

impl Clock {
    /// The clock now; `None` if the kernel does not tell.
    pub(crate) fn now() -> Option<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
        let ticks = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
        Some(Self {
            now: now.ok()?,
            since_boot: since_boot.into(),
            ticks: ticks.max(1),
        })
    }

    /// The time of a start, since the epoch by today's clock.
    pub(crate) fn time_of(&self, start: u64) -> Option<Duration> {
        Some(self.now.checked_sub(self.since_boot)? + self.after_boot(start)?)
    }

    /// The time since a start.
    pub(crate) fn age_of(&self, start: u64) -> Option<Duration> {
        self.since_boot.checked_sub(self.after_boot(start)?)
    }

    fn after_boot(&self, start: u64) -> Option<Duration> {
        let milliseconds = start.checked_mul(1000)? / self.ticks;
        Some(Duration::from_millis(milliseconds))
    }
}

/// The start time of process `pid`, in clock ticks since boot; `None` if there is no such process, or only a zombie.
#[must_use]
pub fn start_time(host: &HostRoot, pid: u32) -> Option<u64> {
    Some(Stat::of(host, pid)?.start)
}

/// The facts in the file `stat` of a process that is no zombie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    /// Its start, in clock ticks since boot.
    start: u64,
    /// The kernel is ending the process. Its program, its files and its cgroup are gone or go before it is a zombie.
    is_exiting: bool,
}

impl Stat {
    fn of(host: &HostRoot, pid: u32) -> Option<Self> {
        /// `PF_EXITING` of the flags of a task (Linux, `include/linux/sched.h`).
        const EXITING: u64 = 0x4;

        let stat = read(host, pid, "stat")?;
        // The name in parentheses may contain any character. Field 3, the state, follows the last parenthesis.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?;
        if matches!(state, "Z" | "X") {
            return None;
        }
        let flags: u64 = fields.nth(5)?.parse().ok()?;
        Some(Self {
            start: fields.nth(12)?.parse().ok()?,
            is_exiting: flags & EXITING != 0,
        })
    }
}

/// The name of the supervisor of `OpenRC`, which starts a service again after a crash (supervise-daemon(8)). The kernel cuts names after 15
/// bytes (`proc_pid_comm(5)`).
const SUPERVISOR: &str = "supervise-daemo";

/// The main process of the service that the process `pid` is part of: its highest ancestor below process 1 or below the supervisor, such as
/// k3s for its containerd.
pub(crate) fn service_process(host: &HostRoot, pid: u32) -> u32 {
    let is_supervisor =
        |pid: u32| read(host, pid, "comm").is_some_and(|name| name.trim() == SUPERVISOR);
    let mut pid = pid;
    for _ in 0..MAX_PARENTS {
        match ProcessFacts::of(host, pid) {
            Some(facts) if facts.parent > 1 && !is_supervisor(facts.parent) => pid = facts.parent,
            Some(_) | None => break,
        }
    }
    pid
}

/// The value of a variable in the environment that process `pid` was started with.
#[must_use]
pub(crate) fn environment_of(host: &HostRoot, pid: u32, variable: &str) -> Option<String> {
    let environment = read(host, pid, "environ")?;
    let mut variables = environment.split('\0').filter_map(|it| it.split_once('='));
    variables
        .find(|(name, _)| *name == variable)
        .map(|(_, value)| value.to_owned())
}

/// A number that grows while process `pid` works: its CPU time and that of its ended children in clock ticks (fields 14 to 17 of
/// `proc_pid_stat(5)`), and the bytes that it read from and wrote to disks (`proc_pid_io(5)`), as far as they can be read.
#[must_use]
pub(crate) fn work(host: &HostRoot, pid: u32) -> u64 {
    let stat = read(host, pid, "stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = fields.split(' ').skip(11).take(4);
    let io = read(host, pid, "io").unwrap_or_default();
    let bytes = io.lines().filter_map(|line| line.split_once("_bytes: "));
    let numbers = ticks.chain(bytes.map(|(_, number)| number));
    let numbers = numbers.filter_map(|number| number.parse::<u64>().ok());
    numbers.fold(0, u64::wrapping_add)
}

/// The path of a program without the kernel's mark of a replaced file: a restart runs the new file at that path.
pub(crate) fn without_deleted_mark(program: &str) -> &str {
    program.strip_suffix(" (deleted)").unwrap_or(program)
}

/// The process `pid`, or the reason for not using it; `None` if it has ended, is ending or is part of a container.
///
/// Reads the facts in the kernel (credentials, cgroup, mount namespace) first: the command line of a user's process may be in memory from a
/// FUSE file system or `userfaultfd(2)`, the root of a container on a file server, and a read of either may never return.
fn check_process(
    host: &HostRoot,
    init: &Init,
    pid: u32,
    name: &'static str,
) -> Option<Result<Process, Refusal>> {
    let start = start_time(host, pid)?;
    // The kernel has the text of this symlink, too. Reading it does not open the file.
    let exe = host.symlink_target(&format!("/proc/{pid}/exe"));
    let exe = exe.ok().flatten();
    let decided = match ProcessFacts::of(host, pid) {
        Some(facts) => {
            let checked = kernel_evidence(host, init, &facts, name)?;
            checked
                .and_then(|evidence| process(host, &facts, start, name, &evidence, exe.as_deref()))
        }
        None => Err(Reason::Unknown { what: "its status" }),
    };
    // With another start time, some facts may be those of a later process with the same PID. A process that is ending lacks some.
    let now = Stat::of(host, pid)?;
    if now.start != start || now.is_exiting {
        return None;
    }
    Some(decided.map_err(|reason| Refusal {
        pid,
        program: exe.map_or_else(
            || name.to_owned(),
            |exe| without_deleted_mark(&exe).to_owned(),
        ),
        reason,
    }))
}

/// The evidence in the kernel for a process that root started as part of the host.
struct KernelEvidence {
    cgroup_owner: CgroupOwner,
    has_own_mounts: bool,
}

/// Checks the evidence in the kernel that root started the process as part of the host; `None` for a process of a container.
fn kernel_evidence(
    host: &HostRoot,
    init: &Init,
    facts: &ProcessFacts,
    name: &'static str,
) -> Option<Result<KernelEvidence, Reason>> {
    let cgroup_owner = match (&init.cgroup, &facts.cgroup) {
        (Some(init_cgroup), Some(own)) => cgroup::cgroup_owner(init_cgroup, own, init.managers),
        // A kernel without cgroups has no `cgroup` file for any process.
        (None, None) => Ok(CgroupOwner::Init),
        _ => Err(Reason::Unknown {
            what: "its cgroup, or that of process 1,",
        }),
    };
    let has_own_mounts = match (&init.mounts, &facts.mounts) {
        (Some(init), Some(own)) => Some(init != own),
        _ => None,
    };
    if has_own_mounts == Some(true) && cgroup_owner.as_ref().is_err_and(Reason::is_of_a_container) {
        return None;
    }
    if let Err(reason) = check_root_uids(facts, name) {
        return Some(Err(reason));
    }
    let checked = cgroup_owner.and_then(|cgroup_owner| {
        let Some(has_own_mounts) = has_own_mounts else {
            return Err(Reason::Unknown {
                what: "its mount namespace, or that of process 1,",
            });
        };
        match &cgroup_owner {
            CgroupOwner::Unit(unit) if has_own_mounts => {
                check_main_process(host, init, facts, unit)?;
            }
            CgroupOwner::OpenRc(_) | CgroupOwner::Init if has_own_mounts => {
                let why = "it is part of no systemd service".to_owned();
                return Err(Reason::Mounts { why });
            }
            CgroupOwner::Unit(_) | CgroupOwner::OpenRc(_) => {}
            CgroupOwner::Init => check_descends_from_init(host, facts)?,
        }
        Ok(KernelEvidence {
            cgroup_owner,
            has_own_mounts,
        })
    });
    // snapd sets another root for a strictly confined snap. Only a snap of a Kubernetes distribution counts: the program of any other snap would
    // run outside of its confinement. `process` compares the program with the file of the host.
    let may_have_own_root = checked.as_ref().is_ok_and(|found| {
        found.has_own_mounts
            && matches!(&found.cgroup_owner, CgroupOwner::Unit(unit) if distro::is_embedded_unit(unit))
    });
    (may_have_own_root || host.is_root_of(facts.pid)).then_some(checked)
}

/// The path of a program under the name of its process, if such a file is beside it. k3s is one program with many names, each a symlink
/// beside it; and in place of a renamed program, the next restart runs the file with the old name.
fn program_path(host: &HostRoot, program: &str, name: &str) -> String {
    let symlink = format!("{}/{name}", parent_directory(program));
    if file_name(program) != name && host.seems_to_exist(&symlink) {
        return symlink;
    }
    program.to_owned()
}

/// The process, if only root can have put its program in place.
fn process(
    host: &HostRoot,
    facts: &ProcessFacts,
    start: u64,
    name: &'static str,
    evidence: &KernelEvidence,
    exe: Option<&str>,
) -> Result<Process, Reason> {
    let exe = exe.ok_or(Reason::Unknown {
        what: "the path of its program",
    })?;
    let running = without_deleted_mark(exe);
    let program = program_path(host, running, name);
    let opened = host.open_program(&program);
    let opened = opened.map_err(|error| match host.exists(&program) {
        Ok(false) => Reason::Removed,
        Ok(true) | Err(_) => Reason::Program(error),
    })?;
    // Any user can start a set-user-ID program with all UIDs 0 and any process name, in every service that runs processes of users.
    let executed = if running == program {
        None
    } else {
        Some(host.open_program(running).map_err(Reason::Program)?)
    };
    if executed.as_ref().unwrap_or(&opened).gives_privileges() {
        return Err(Reason::Privileged);
    }
    // The process of a script has the name of the script and the program of the interpreter, which Farrier must not run with containerd's
    // arguments. The program of a renamed file still has the name in its path, as in `containerd.old`.
    let is_same = executed.is_some_and(|executed| {
        let executed = executed.identity().ok();
        executed.is_some() && executed == opened.identity().ok()
    });
    if !is_same && !file_name(running).contains(name) {
        return Err(Reason::OtherProgram { name });
    }
    // With other mounts, the path may name another file. The symlink of a replaced program ends with ` (deleted)`.
    if evidence.has_own_mounts && !exe.ends_with(" (deleted)") {
        let running = host.identity_of_program(facts.pid);
        if running.is_none() || running != opened.identity().ok() {
            return Err(Reason::OtherFile);
        }
    }
    let arguments = read_bytes(host, facts.pid, "cmdline").ok_or(Reason::Unknown {
        what: "its command line",
    })?;
    Ok(Process {
        id: (facts.pid, start),
        parent: facts.parent,
        program,
        arguments,
        directory: working_directory(host, facts.pid),
        unit: match &evidence.cgroup_owner {
            CgroupOwner::Unit(unit) => Some(unit.clone()),
            CgroupOwner::OpenRc(service) => Some(format!("{service}.service")),
            CgroupOwner::Init => None,
        },
    })
}

/// The working directory of a process; `None` if it was removed or is not below the root.
pub(super) fn working_directory(host: &HostRoot, pid: u32) -> Option<String> {
    let directory = host.symlink_target(&format!("/proc/{pid}/cwd")).ok()??;
    let is_gone = directory.ends_with(" (deleted)") || !directory.starts_with('/');
    (!is_gone).then_some(directory)
}

/// Checks that all four UIDs are 0. The real UID of a set-user-ID program is that of the user.
fn check_root_uids(facts: &ProcessFacts, name: &'static str) -> Result<(), Reason> {
    match facts.uids.iter().find(|uid| **uid != 0) {
        Some(&uid) => Err(Reason::Rootless { name, uid }),
        None if facts.uids.len() == 4 => Ok(()),
        None => Err(Reason::Unknown { what: "its status" }),
    }
}

fn check_descends_from_init(host: &HostRoot, facts: &ProcessFacts) -> Result<(), Reason> {
    let mut parent = if facts.pid == 1 { 1 } else { facts.parent };
    for _ in 0..MAX_PARENTS {
        match parent {
            0 => break,
            1 => return Ok(()),
            above => match ProcessFacts::of(host, above) {
                Some(above) => parent = above.parent,
                None => break,
            },
        }
    }
    Err(Reason::NoDescendant)
}

#[cfg(test)]
pub(crate) mod tests;
