//! Checks whether a process is the main process of a systemd unit, or a child of the main process.

use super::types::{Init, ProcessFacts, Reason, SMALL, namespace};
use crate::installer::containerd::systemd_unit::UNIT_DIRECTORIES;
use crate::installer::host::HostRoot;

/// Checks that a process with its own mounts (`PrivateTmp=`, a strictly confined snap) is the main process of the unit, or its child.
///
/// # Errors
/// The evidence that is missing.
pub(crate) fn check_main_process(
    host: &HostRoot,
    init: &Init,
    facts: &ProcessFacts,
    unit: &str,
) -> Result<(), Reason> {
    let refuse = |why: String| Err(Reason::Mounts { why });
    let path = unit_file(host, unit);
    let Some(path) = path else {
        return refuse(format!("the host has no unit file of {unit}"));
    };
    host.check_owner(&path).map_err(Reason::UnitFile)?;
    if is_started_by_systemd(host, init, facts, unit) {
        return Ok(());
    }
    let parent = ProcessFacts::of(host, facts.parent).filter(|parent| {
        parent.uids == facts.uids && parent.cgroup == facts.cgroup && parent.mounts == facts.mounts
    });
    match parent {
        Some(parent) if is_started_by_systemd(host, init, &parent, unit) => Ok(()),
        _ => refuse(format!(
            "it is neither the main process of {unit} nor a child of the main process"
        )),
    }
}

/// Whether process 1 is the parent of the process, in the cgroup of the unit and with the present invocation ID of the unit. Other children
/// of process 1 in this cgroup, such as shims whose parent has ended, have an earlier invocation ID or the mounts of process 1.
fn is_started_by_systemd(host: &HostRoot, init: &Init, facts: &ProcessFacts, unit: &str) -> bool {
    let processes = namespace(host, facts.pid, "pid");
    if facts.parent != 1 || processes.is_none() || processes != init.processes {
        return false;
    }
    // systemd sets an ID of each start in the environment of the processes (systemd.exec(5), `$INVOCATION_ID`).
    let current = host.symlink_target(&format!("/run/systemd/units/invocation:{unit}"));
    // Without the present ID, no process counts.
    let Ok(current) = current else {
        return false;
    };
    let environment = host.read(&format!("/proc/{}/environ", facts.pid), SMALL);
    let environment = environment.ok().flatten().unwrap_or_default();
    let own = environment
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(b"INVOCATION_ID="));
    match (current, own) {
        (Some(current), Some(own)) => current.as_bytes() == own,
        // A program may replace its own environment, so an absent ID is no evidence.
        _ => true,
    }
}

/// The path of a unit file; for an instance without its own file, that of the template.
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
    paths.find(|path| host.seems_to_exist(path))
}
