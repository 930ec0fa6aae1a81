//! What stands, as a file: `cluster.json` in the directory of a cluster. Tests in other crates read it; add fields, never rename.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::NodeSetup;
use crate::tools::ContainerdVersion;

/// Name of the state file.
pub const FILE: &str = "cluster.json";

/// A cluster, as far as it was brought up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Its name: that of its directory.
    pub name: String,
    /// The number, unique on this machine, in its addresses and the names of its namespaces.
    pub index: u8,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The program `kubectl`.
    pub kubectl: PathBuf,
    /// The program `helm`.
    pub helm: PathBuf,
    /// The process with which the cluster goes down; none where it stays until `cluster down`.
    pub owner_pid: Option<u32>,
    /// When that process started, in the kernel's clock ticks, since its number is used again one day.
    pub owner_start: Option<u64>,
    /// The boot of this machine that it lives in: another one took everything but the directory, and its index may be somebody else's now.
    pub boot_id: String,
    /// The nodes, in the order that they were asked for.
    pub nodes: Vec<NodeState>,
    /// Name of the network namespace of the control plane.
    pub control_plane_netns: String,
    /// Address of the control plane, the same from nodes, pods and the host.
    pub control_plane_ip: Ipv4Addr,
    /// Requests a second that each controller of the controller manager may send; none for its default.
    #[serde(default)]
    pub controller_manager_qps: Option<u32>,
    /// The programs that the control plane runs.
    pub binaries: Binaries,
    /// Directory with a log per process.
    pub logs: PathBuf,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// Name of the Node object, and the host's name.
    pub name: String,
    /// Its containerd.
    pub containerd: ContainerdVersion,
    /// How its administrator set containerd up.
    pub setup: NodeSetup,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its process 1, as this machine numbers it; none before it boots.
    pub pid: Option<u32>,
    /// Its root file system, as this machine sees it.
    pub root: PathBuf,
    /// Name of its network namespace.
    pub netns: String,
}

/// The programs of a control plane, for tests that want an API server of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binaries {
    /// `etcd`.
    pub etcd: PathBuf,
    /// `kube-apiserver`.
    pub kube_apiserver: PathBuf,
    /// `kube-controller-manager`.
    pub kube_controller_manager: PathBuf,
    /// `kube-scheduler`.
    pub kube_scheduler: PathBuf,
    /// `kubelet`.
    pub kubelet: PathBuf,
    /// `kwok`, in a cluster without nodes of its own.
    #[serde(default)]
    pub kwok: Option<PathBuf>,
}

impl State {
    /// Reads the state in `directory`; none where nothing readable is there.
    #[must_use]
    pub fn read(directory: &Path) -> Option<Self> {
        let text = fs::read_to_string(directory.join(FILE)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes the state into `directory`, whole or not at all.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        let partial = path.with_added_extension("partial");
        let text = serde_json::to_string_pretty(self)?;
        fs::write(&partial, text + "\n")
            .and_then(|()| fs::rename(&partial, &path))
            .with_context(|| format!("failed to write {}", path.display()))
    }

    /// The node `name`.
    ///
    /// # Errors
    /// When there is none of that name; the message lists those that are.
    pub fn node(&self, name: &str) -> Result<&NodeState> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| {
                let names: Vec<_> = self.nodes.iter().map(|node| node.name.as_str()).collect();
                format!(
                    "cluster {} has no node {name:?}, only {}",
                    self.name,
                    names.join(", ")
                )
            })
    }

    /// The process that keeps this cluster up.
    #[must_use]
    pub fn owner(&self) -> Owner {
        match (self.owner_pid, self.owner_start) {
            (Some(pid), start) if start.is_some() && start_of(pid) == start => Owner::Lives(pid),
            (Some(_), _) => Owner::Died,
            (None, _) => Owner::Unowned,
        }
    }

    /// Whether the machine has not rebooted since the cluster was started.
    #[must_use]
    pub fn is_of_this_boot(&self) -> bool {
        boot_id().is_ok_and(|id| id == self.boot_id)
    }

    /// Makes this process the owner.
    pub fn own(&mut self) {
        let pid = std::process::id();
        self.owner_pid = Some(pid);
        self.owner_start = start_of(pid);
    }

    /// Makes nobody the owner.
    pub fn disown(&mut self) {
        self.owner_pid = None;
        self.owner_start = None;
    }
}

/// Who keeps a cluster up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A process that is there.
    Lives(u32),
    /// A process that is gone: what it left is to be cleaned up.
    Died,
    /// It stays until it is taken down.
    Unowned,
}

/// The number of this machine's boot (`random(4)`, `/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// When it can't be read.
pub fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).with_context(|| format!("failed to read {path}"))?;
    Ok(text.trim().to_owned())
}

/// When the process `pid` started; none when there is no such process.
fn start_of(pid: u32) -> Option<u64> {
    start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22 of `/proc/PID/stat` (`proc_pid_stat(5)`); the program's name before it may hold spaces and parentheses.
fn start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_parsed_after_any_program_name() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        assert_eq!(start_time(stat), Some(777));
        assert_eq!(start_time("nonsense"), None);
    }

    #[test]
    fn the_current_process_is_alive() {
        assert!(start_of(std::process::id()).is_some());
    }
}
