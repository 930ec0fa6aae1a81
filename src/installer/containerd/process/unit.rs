//! Whether a process is the main process of a unit of systemd, or a child of that.

use super::types::{Init, Reason, SMALL, Seen, namespace};
use crate::installer::containerd::systemd_unit::UNIT_DIRECTORIES;
use crate::installer::host::HostRoot;

/// Whether it is the process that systemd started for the unit (`PrivateTmp=`, a strictly confined snap), or a child of that.
///
/// # Errors
/// Says what is missing.
pub(crate) fn is_main_process(
    host: &HostRoot,
    init: &Init,
    seen: &Seen,
    unit: &str,
) -> Result<(), Reason> {
    let refuse = |why: String| Err(Reason::Mounts { why });
    let path = unit_file(host, unit);
    let Some(path) = path else {
        return refuse(format!("no unit file of {unit} is on the host"));
    };
    host.check_owner(&path).map_err(Reason::UnitFile)?;
    if is_started_by_systemd(host, init, seen, unit) {
        return Ok(());
    }
    let parent = Seen::of(host, seen.parent).filter(|parent| {
        parent.uids == seen.uids && parent.cgroup == seen.cgroup && parent.mounts == seen.mounts
    });
    match parent {
        Some(parent) if is_started_by_systemd(host, init, &parent, unit) => Ok(()),
        _ => refuse(format!(
            "it is neither the main process of {unit} nor a child of that"
        )),
    }
}

/// Whether process 1 is its parent in the very cgroup of the unit, for the start of the unit that systemd tells of. What is in
/// there beside the main process, such as shims that outlived their parent, is of an earlier start or has the mounts of process 1.
fn is_started_by_systemd(host: &HostRoot, init: &Init, seen: &Seen, unit: &str) -> bool {
    let processes = namespace(host, seen.pid, "pid");
    if seen.parent != 1 || processes.is_none() || processes != init.processes {
        return false;
    }
    // systemd gives each start an id, which its processes have in their environment (systemd.exec(5), `$INVOCATION_ID`).
    let current = host.symlink_target(&format!("/run/systemd/units/invocation:{unit}"));
    // Whoever can't tell the current start counts nothing of it.
    let Ok(current) = current else {
        return false;
    };
    let environment = host.read(&format!("/proc/{}/environ", seen.pid), SMALL);
    let environment = environment.ok().flatten().unwrap_or_default();
    let own = environment
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(b"INVOCATION_ID="));
    match (current, own) {
        (Some(current), Some(own)) => current.as_bytes() == own,
        // A program may start with an environment of its own.
        _ => true,
    }
}

/// The file of a unit; that of an instance is its template's.
fn unit_file(host: &HostRoot, unit: &str) -> Option<String> {
    let template = unit.split_once('@').and_then(|(name, rest)| {
        let (_, kind) = rest.rsplit_once('.')?;
        Some(format!("{name}@.{kind}"))
    });
    let names = [Some(unit.to_owned()), template];
    let mut paths = names.iter().flatten().flat_map(|name| {
        UNIT_DIRECTORIES
            .iter()
            .map(move |directory| format!("{directory}/{name}"))
    });
    paths.find(|path| host.is_seen(path))
}
