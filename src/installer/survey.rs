//! Looks at a host for what the table of distributions depends on: which row fits, where its files are, what stands in the way. Reads
//! only; the running containerd is found in `daemon`.

use super::daemon::{Daemon, still_named};
use super::distro::{self, DistroSpec, Evidence};
use super::facts::{PROGRAMS, SMALL};
use super::host::HostRoot;
use super::kubelet;
use super::source::candidates;
use super::state::{State, folder_of};
use crate::containerd_config::{SourceFile, TEXT_LIMIT};

/// The row of the table that fits the host.
pub(super) fn row(
    host: &HostRoot,
    daemon: Option<&Daemon>,
    config: Option<&str>,
    offline: bool,
) -> Result<&'static DistroSpec, super::Error> {
    let os_release = host
        .read_text("/etc/os-release", SMALL)?
        .unwrap_or_default();
    let init = (!offline).then(|| host.read("/proc/1/cmdline", SMALL).ok().flatten());
    let init = String::from_utf8_lossy(&init.flatten().unwrap_or_default()).into_owned();
    let endpoint = if offline {
        None
    } else {
        kubelet::endpoint(host)?
    };
    let evidence = Evidence {
        program: daemon.map(|daemon| daemon.program.as_str()),
        unit: daemon.and_then(|daemon| daemon.unit.as_deref()),
        config,
        init: &init,
        endpoint: endpoint.as_deref(),
        installed: PROGRAMS.into_iter().any(|path| host.exists(path)),
        os_release: &os_release,
    };
    Ok(distro::detect(&evidence, |path| host.exists(path)))
}

/// The files that a distribution makes the configuration at `root` from.
pub(super) fn sources(
    host: &HostRoot,
    distro: &DistroSpec,
    root: &str,
) -> Result<Vec<SourceFile>, super::Error> {
    let read = |path: String| {
        let text = host.read_text(&path, TEXT_LIMIT as u64)?;
        Ok(SourceFile { path, text })
    };
    candidates(distro.edited, root)
        .into_iter()
        .map(read)
        .collect()
}

/// Where binaries are kept, and what is in the way of that. It stays what it was when the first one came.
pub(super) fn folder(
    host: &HostRoot,
    distro: &DistroSpec,
    state: &State,
    offline: bool,
) -> (String, Option<String>) {
    let first = distro.folders.first().copied().unwrap_or_default();
    // The file systems that an image is unpacked on are not those that it will run on.
    if !state.is_empty() || offline {
        let folder = if state.is_empty() {
            first
        } else {
            &state.folder
        };
        return (folder.to_owned(), None);
    }
    let mut obstacle = None;
    for folder in distro.folders {
        match host.mount_of(folder) {
            Ok(mount) if mount.read_only => {
                obstacle.get_or_insert(format!("{folder} is on a read-only file system, so no shim can be put there; make it writable, or use other nodes"));
            }
            Ok(mount) if mount.no_exec => {
                obstacle.get_or_insert(format!("{folder} is on a file system mounted noexec, so no shim can be run from there; mount it with exec"));
            }
            Ok(_) => return ((*folder).to_owned(), None),
            Err(error) => {
                obstacle.get_or_insert(error.to_string());
            }
        }
    }
    (first.to_owned(), obstacle)
}

/// Why the configuration at `path` can't be changed, whoever asks.
pub(super) fn unwritable(host: &HostRoot, path: &str) -> Option<String> {
    let real = host.follow(path).unwrap_or_else(|_| path.to_owned());
    let mount = host.mount_of(folder_of(&real)).ok()?;
    mount.read_only.then(|| {
        format!("{path} is on a read-only file system; copy it to /etc/containerd/config.toml and have the unit of containerd name that")
    })
}

/// The program that says the distribution's own release, and the word for that: the one which runs the node, or that is installed.
pub(super) fn releaser(
    host: &HostRoot,
    distro: &DistroSpec,
    daemon: Option<&Daemon>,
) -> Option<(String, &'static str)> {
    let (programs, word) = distro.release;
    let name = programs.first()?.rsplit('/').next()?;
    let parent = daemon
        .and_then(|daemon| parent_program(host, daemon))
        .filter(|program| program.rsplit('/').next() == Some(name));
    let installed = || programs.iter().find(|path| host.exists(path));
    let program = parent.or_else(|| installed().map(|path| (*path).to_owned()))?;
    Some((program, word))
}

/// The program that started a containerd, as k3s and others start theirs.
fn parent_program(host: &HostRoot, daemon: &Daemon) -> Option<String> {
    let (pid, _) = daemon.process;
    let stat = host.read_text(&format!("/proc/{pid}/stat"), SMALL).ok()??;
    let parent: u32 = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
    let program = host.link_target(&format!("/proc/{parent}/exe"))?;
    Some(still_named(&program).to_owned())
}
