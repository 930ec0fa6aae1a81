//! Finds the service of a process from its cgroups and those of process 1 (cgroups(7): `hierarchy:controllers:path`). Pure.

use super::types::{Managers, Reason, SESSIONS};

/// The hierarchies that systemd manages: its own in cgroup v1, and the only one in cgroup v2.
const SYSTEMD_HIERARCHIES: [&str; 2] = ["name=systemd", ""];

/// The hierarchy of `OpenRC` in cgroup v1 (`sh/rc-cgroup.sh`).
const OPENRC_HIERARCHY: &str = "name=openrc";

/// The cgroup of k3s in a container: the kubelet moves k3s there (`pkg/cgroups`, `--kubelet-cgroups=/k3s`).
const K3S_CGROUP: &str = "k3s";

/// The owner of a process's cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CgroupOwner {
    /// A unit of the system manager, as in `containerd.service`.
    Unit(String),
    /// An `OpenRC` service, as in `k3s-agent`.
    OpenRc(String),
    /// Process 1.
    Init,
}

/// The position of a cgroup relative to the cgroup that process 1 was started in: the root of the host, or of the container.
#[derive(Debug, PartialEq, Eq)]
enum Relative<'a> {
    /// The cgroup of process 1.
    Own,
    /// Below the root that process 1 was started in.
    Below(Vec<&'a str>),
    /// Elsewhere.
    Outside(Vec<&'a str>),
}

/// The owner of the cgroups `own`, given the cgroups `init` of process 1. Both must come from the same `/proc`, because the paths depend on
/// the reader's cgroup namespace (`cgroup_namespaces(7)`).
///
/// # Errors
/// The reason for not using the process.
pub(crate) fn cgroup_owner(
    init: &str,
    own: &str,
    managers: Managers,
) -> Result<CgroupOwner, Reason> {
    let init = hierarchies(init);
    let is_complete = |own: &[(&str, &str)]| {
        init.iter()
            .all(|(name, _)| own.iter().any(|(other, _)| name == other))
    };
    let base = |name: &str| init.iter().find(|(other, _)| *other == name);
    let own = hierarchies(own);
    if !is_complete(&own) {
        return Err(Reason::Unknown { what: "its cgroup" });
    }
    let own: Vec<(&str, &str, Relative<'_>)> = own
        .into_iter()
        .map(|(name, path)| {
            let relative = base(name).map_or_else(
                || Relative::Outside(components(path)),
                |(_, init)| relative(init, path),
            );
            (name, path, relative)
        })
        .collect();
    // Check every hierarchy: a runtime moves containers only in those hierarchies that it sets limits in.
    for (_, path, relative) in &own {
        let names = match relative {
            Relative::Own => continue,
            Relative::Below(names) | Relative::Outside(names) => names,
        };
        if let Some(part) = names.iter().find(|name| is_session_or_container(name)) {
            return Err(Reason::Below {
                cgroup: (*path).to_owned(),
                part: (*part).to_owned(),
            });
        }
    }
    let all_of = |known: &dyn Fn(&[&str]) -> bool| {
        own.iter().all(|(_, _, relative)| match relative {
            Relative::Own => true,
            Relative::Below(names) => known(names),
            Relative::Outside(_) => false,
        })
    };
    if managers.systemd
        && let Some(unit) = unit(&own)
    {
        return Ok(CgroupOwner::Unit(unit.to_owned()));
    }
    if managers.openrc
        && let Some(service) = own.iter().find_map(openrc_service)
        && all_of(&|names| is_cgroup_of_openrc_service(names, service))
    {
        return Ok(CgroupOwner::OpenRc(service.to_owned()));
    }
    if all_of(&|names| !managers.systemd && names == [K3S_CGROUP]) {
        return Ok(CgroupOwner::Init);
    }
    let mut paths = own.iter().filter(|(_, _, other)| *other != Relative::Own);
    Err(Reason::NoService {
        cgroup: paths
            .next()
            .map_or_else(String::new, |(_, path, _)| (*path).to_owned()),
    })
}

/// Whether a cgroup is that of a session, virtual machine or container, by the names that systemd and the kubelet use
/// (systemd.special(7); kubelet, `pkg/kubelet/cm`: below a root of its own as in `kubelet-kubepods.slice`).
fn is_session_or_container(name: &str) -> bool {
    let is_scope = name.strip_suffix(".scope").is_some();
    is_scope
        || matches!(name, SESSIONS | "machine.slice")
        || name.starts_with("kubepods")
        || name.contains("-kubepods")
}

/// The controllers and the path of each line.
fn hierarchies(text: &str) -> Vec<(&str, &str)> {
    let parse = |line| {
        let (_, rest) = str::split_once(line, ':')?;
        rest.split_once(':')
    };
    text.lines().filter_map(parse).collect()
}

fn components(path: &str) -> Vec<&str> {
    path.split('/').filter(|name| !name.is_empty()).collect()
}

/// The position of `path` relative to process 1. The cgroup of process 1 may be one below the root: systemd uses `init.scope`, `OpenRC`
/// `rc.init` (`init.d/cgroups`), and the entry points of k3d and Docker-in-Docker `init`.
fn relative<'a>(init: &'a str, path: &'a str) -> Relative<'a> {
    let (mut base, names) = (components(init), components(path));
    if base == names {
        return Relative::Own;
    }
    if matches!(base.last(), Some(&("init.scope" | "rc.init" | "init"))) {
        base.pop();
    }
    // The start of a path with more `..` than that of process 1 is unknown.
    match names.strip_prefix(base.as_slice()) {
        Some(below) if below.first() != Some(&"..") => Relative::Below(below.to_vec()),
        _ => Relative::Outside(names),
    }
}

/// The unit of a cgroup whose path is slices and a service. A deeper cgroup belongs to a program with a delegated subtree (`Delegate=`).
fn unit<'a>(own: &[(&str, &'a str, Relative<'a>)]) -> Option<&'a str> {
    let mut cgroups = own
        .iter()
        .filter(|(name, _, cgroup)| SYSTEMD_HIERARCHIES.contains(name) && *cgroup != Relative::Own)
        .map(|(_, _, cgroup)| cgroup);
    let first = cgroups.next()?;
    let Relative::Below(names) = first else {
        return None;
    };
    let (unit, slices) = names.split_last()?;
    let name = unit.strip_suffix(".service")?;
    let is_slice = |name: &&str| name.strip_suffix(".slice").is_some();
    let is_one =
        !name.is_empty() && slices.iter().all(is_slice) && cgroups.all(|cgroup| cgroup == first);
    is_one.then_some(unit)
}

/// The `OpenRC` service of a cgroup. The service k3s has the cgroup `openrc.k3s` in cgroup v2, and `k3s` in `OpenRC`'s hierarchy in v1.
fn openrc_service<'a>((name, _, cgroup): &(&str, &'a str, Relative<'a>)) -> Option<&'a str> {
    let Relative::Below(names) = cgroup else {
        return None;
    };
    match (*name, names.as_slice()) {
        (OPENRC_HIERARCHY, [service]) => Some(service),
        ("", [service]) => service.strip_prefix("openrc."),
        _ => None,
    }
}

/// Whether this is the cgroup of the service in one of the hierarchies.
fn is_cgroup_of_openrc_service(names: &[&str], service: &str) -> bool {
    let [name] = names else {
        return false;
    };
    let rest = name
        .strip_prefix("openrc")
        .and_then(|rest| rest.strip_prefix(['.', '_']));
    *name == service || rest == Some(service) || *name == K3S_CGROUP
}
