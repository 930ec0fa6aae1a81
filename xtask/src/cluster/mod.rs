//! A real Kubernetes cluster on this machine: what can be asked for, and the life of one from `up` to `down`.

pub mod state;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

pub use self::state::State;
use crate::cache::Cache;
use crate::progress::Progress;
use crate::tools::ContainerdVersion;

/// The cluster that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its name on this machine.
    pub name: String,
    /// Its nodes.
    pub nodes: Vec<NodeSpec>,
}

/// The node that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its name.
    pub name: String,
    /// Its containerd.
    pub containerd: ContainerdVersion,
    /// How its administrator set containerd up.
    pub setup: NodeSetup,
}

impl NodeSpec {
    /// A node with the setup that is usual for its containerd: one plain file on 1.x, a drop-in folder on 2.x.
    #[must_use]
    pub fn new(name: &str, containerd: ContainerdVersion) -> Self {
        let setup = if containerd.is_1() {
            NodeSetup::Plain
        } else {
            NodeSetup::DropIn
        };
        Self {
            name: name.to_owned(),
            containerd,
            setup,
        }
    }
}

/// How a node's administrator set containerd up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeSetup {
    /// One configuration file without `imports`.
    Plain,
    /// A configuration file that imports `/etc/containerd/conf.d/*.toml`, and a file of the administrator's in there.
    DropIn,
}

/// A cluster that stands. Dropping it takes it down, unless it was told to [`keep`](Cluster::keep).
#[derive(Debug)]
pub struct Cluster {
    state: State,
    folder: PathBuf,
}

/// Brings a cluster up and returns when every node is Ready.
///
/// # Errors
/// When a part can't be built or doesn't come up; nothing is left of the cluster then, but for its logs.
pub fn up(_cache: &Cache, _spec: &Spec, _progress: &Progress) -> Result<Cluster> {
    bail!("not written yet")
}

impl Cluster {
    /// What stands.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The state file, which tests are given as `FARRIER_CLUSTER`.
    #[must_use]
    pub fn state_path(&self) -> PathBuf {
        self.folder.join(state::FILE)
    }

    /// Runs kubectl as the administrator and returns what it printed.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn kubectl(&self, _arguments: &[&str]) -> Result<String> {
        bail!("not written yet")
    }

    /// Runs a program on a node and returns what it printed, whatever its status.
    ///
    /// # Errors
    /// When there is no such node or the program can't be started.
    pub fn exec(&self, _node: &str, _command: &[&str]) -> Result<Output> {
        bail!("not written yet")
    }

    /// Imports an image, a docker-archive, on every node.
    ///
    /// # Errors
    /// When a containerd refuses it.
    pub fn load(&self, _image: &Path) -> Result<()> {
        bail!("not written yet")
    }

    /// `program` in the network namespace of the control plane, to be started with [`process::start`](crate::process::start);
    /// it is killed when the cluster goes down.
    #[must_use]
    pub fn control_plane_command(&self, program: &Path) -> Command {
        Command::new(program)
    }

    /// Leaves the cluster up when this value goes, until `cluster down`.
    ///
    /// # Errors
    /// When that can't be noted in the state file.
    pub fn keep(self) -> Result<()> {
        bail!("not written yet")
    }

    /// Takes the cluster down.
    ///
    /// # Errors
    /// When something of it can't be removed; the message lists what is left.
    pub fn down(self) -> Result<()> {
        bail!("not written yet")
    }
}
