//! A real Kubernetes cluster on this machine: what can be asked for, and the life of one from `up` to `down`.

pub mod boot;
pub mod state;

mod bring_up;
mod certificates;
mod cgroups;
mod control_plane;
mod host;
pub mod kwok;
mod names;
mod network;
mod pause;
mod rootfs;
mod teardown;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

pub use self::bring_up::up;
pub use self::state::State;
use self::state::{NodeState, Owner};
use crate::cache::Cache;
use crate::interrupt::{self, Registration};
use crate::process;
use crate::tools::ContainerdVersion;

/// Directory of logs in a cluster's directory, and of logs that outlive clusters in the cache.
const LOGS: &str = "logs";

/// The cluster that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its name on this machine: a DNS label.
    pub name: String,
    /// Its nodes; where there are none, kwok plays the kubelets of whatever Node objects are made, and of no pods but those of Jobs.
    pub nodes: Vec<NodeSpec>,
    /// Requests a second that each controller of the controller manager may send, where that is not to be its default, 20.
    pub controller_manager_qps: Option<u32>,
}

impl Spec {
    fn check(&self) -> Result<()> {
        if self.nodes.len() > names::MOST_NODES {
            bail!(
                "a cluster has at most {} nodes, not {}",
                names::MOST_NODES,
                self.nodes.len()
            );
        }
        for name in self.nodes.iter().map(|node| &node.name).chain([&self.name]) {
            check_name(name)?;
        }
        for (position, node) in self.nodes.iter().enumerate() {
            if self.nodes[..position]
                .iter()
                .any(|seen| seen.name == node.name)
            {
                bail!("two nodes are called {}", node.name);
            }
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<()> {
    if !names::is_name(name) {
        bail!(
            "{name:?} is no name: use up to 40 lower-case letters, digits and hyphens, a letter first"
        );
    }
    Ok(())
}

/// The node that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its name: a DNS label.
    pub name: String,
    /// Its containerd.
    pub containerd: ContainerdVersion,
    /// How its administrator set containerd up.
    pub setup: NodeSetup,
}

impl NodeSpec {
    /// A node with the setup that is usual for its containerd: one plain file on 1.x, a drop-in directory on 2.x.
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

impl std::str::FromStr for NodeSpec {
    type Err = String;

    /// Reads `NAME=CONTAINERD`, as in `worker-1=1.7.35`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, containerd) = text
            .split_once('=')
            .ok_or_else(|| format!("write NAME=CONTAINERD, not {text:?}"))?;
        Ok(Self::new(name, containerd.parse()?))
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
    directory: PathBuf,
    cache: Cache,
    /// Present while this process answers for the cluster.
    registration: Option<Registration>,
}

impl Cluster {
    /// Finds a cluster that was kept, or that another process holds up. Dropping the value leaves it alone.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn find(cache: &Cache, name: &str) -> Result<Self> {
        check_name(name)?;
        let directory = directory(cache, name);
        let state = State::read(&directory).with_context(|| {
            format!("there is no cluster {name}; `cargo xtask cluster up --name {name}` makes it")
        })?;
        Ok(Self {
            state,
            directory,
            cache: cache.clone(),
            registration: None,
        })
    }

    /// Every cluster that this cache knows of.
    #[must_use]
    pub fn all(cache: &Cache) -> Vec<Self> {
        let mut names: Vec<String> = fs::read_dir(cache.path(CLUSTERS))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
            .iter()
            .filter_map(|name| Self::find(cache, name).ok())
            .collect()
    }

    /// What stands.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The state file, which tests are given as `FARRIER_CLUSTER`.
    #[must_use]
    pub fn state_path(&self) -> PathBuf {
        self.directory.join(state::FILE)
    }

    /// Whether its control plane still has its place on this machine, which a crash of xtask leaves and a reboot takes.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.state.is_of_this_boot() && network::path(&self.state.control_plane_netns).exists()
    }

    /// Runs kubectl as the administrator and returns what it printed.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        process::run(kubectl_command(&self.state).args(arguments))
    }

    /// Runs a program on a node and returns what it printed, whatever its status.
    ///
    /// # Errors
    /// When there is no such node or the program can't be started.
    pub fn exec(&self, node: &str, command: &[&str]) -> Result<Output> {
        process::output(&mut self.node_command(node, command)?)
    }

    /// `command` on a node, to be run by the caller.
    ///
    /// # Errors
    /// When there is no such node, or it doesn't run.
    pub fn node_command(&self, node: &str, command: &[&str]) -> Result<Command> {
        node_command(self.state.node(node)?, command)
    }

    /// Imports an image, a docker-archive, on every node.
    ///
    /// # Errors
    /// When a containerd refuses it.
    pub fn load(&self, image: &Path) -> Result<()> {
        on_every_node(&self.state, |node| load(node, image))
    }

    /// `program` in the network namespace of the control plane, to be started with [`process::start`](crate::process::start);
    /// it is killed when the cluster goes down.
    #[must_use]
    pub fn control_plane_command(&self, program: &Path) -> Command {
        network::inside(&self.state.control_plane_netns, program)
    }

    /// Leaves the cluster up when this value goes, until `cluster down`.
    ///
    /// # Errors
    /// When that can't be noted in the state file.
    pub fn keep(mut self) -> Result<()> {
        self.state.disown();
        self.state.write(&self.directory)?;
        self.registration = None;
        Ok(())
    }

    /// Takes the cluster down.
    ///
    /// # Errors
    /// When something of it can't be removed, where the message lists what is left, or when another process holds it up.
    pub fn down(mut self) -> Result<()> {
        if let (None, Owner::Lives(pid)) = (&self.registration, self.state.owner()) {
            bail!(
                "process {pid} holds cluster {} up: end that process instead",
                self.state.name
            );
        }
        let _lock = host::lock()?;
        let result = self.tear_down();
        self.registration = None;
        result
    }

    fn tear_down(&self) -> Result<()> {
        let logs = logs(&self.cache, &self.state.name);
        if self.state.is_of_this_boot() {
            teardown::tear_down(self.state.index, &self.directory, &logs)
        } else {
            teardown::remove_directory(&self.directory, &logs)
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.registration.is_none() {
            return;
        }
        // A signal may come meanwhile: the registration goes last.
        let result = host::lock().and_then(|_lock| self.tear_down());
        if let Err(error) = result {
            eprintln!("{error:#}");
        }
    }
}

/// Directory of all clusters in the cache.
const CLUSTERS: &str = "clusters";

/// Directory of the cluster `name`.
fn directory(cache: &Cache, name: &str) -> PathBuf {
    cache.path(CLUSTERS).join(name)
}

/// Where the logs of the last cluster `name` are once it is down.
fn logs(cache: &Cache, name: &str) -> PathBuf {
    cache.path(LOGS).join(name)
}

fn kubectl_command(state: &State) -> Command {
    let mut command = Command::new(&state.kubectl);
    command.arg("--kubeconfig").arg(&state.kubeconfig);
    // What it remembers of an API server goes with the cluster: the next one has the same address.
    command.env("KUBECACHEDIR", state.kubeconfig.with_file_name("kubectl"));
    command
}

fn node_command(node: &NodeState, words: &[&str]) -> Result<Command> {
    let pid = node
        .pid
        .with_context(|| format!("node {} does not run", node.name))?;
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &pid.to_string()])
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
        .args(["--root", "--wd", "--"])
        .args(words)
        .env_clear()
        .envs([
            (
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ),
            ("HOME", "/root"),
            ("LANG", "C.UTF-8"),
        ]);
    if let Some(terminal) = std::env::var_os("TERM") {
        command.env("TERM", terminal);
    }
    Ok(command)
}

fn load(node: &NodeState, image: &Path) -> Result<()> {
    // Not in the node's /tmp: a tmpfs that this machine does not see.
    let name = format!("load-{}.tar", std::process::id());
    let copy = node.root.join("opt/images").join(&name);
    fs::copy(image, &copy)
        .with_context(|| format!("failed to read the image {}", image.display()))?;
    let path = format!("/opt/images/{name}");
    let mut words = vec!["ctr", "--namespace", "k8s.io", "images", "import"];
    words.extend(rootfs::local_import(node.containerd));
    words.extend(["--snapshotter", "native", &path]);
    let result = process::run(&mut node_command(node, &words)?)
        .with_context(|| format!("node {} refused the image {}", node.name, image.display()));
    fs::remove_file(&copy)?;
    result.map(drop)
}

/// Does `work` for all nodes at the same time.
fn on_every_node(state: &State, work: impl Fn(&NodeState) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = state
            .nodes
            .iter()
            .map(|node| scope.spawn(|| work(node)))
            .collect();
        // All are waited for, whichever failed.
        let results: Vec<Result<()>> = threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
            })
            .collect();
        results.into_iter().collect()
    })
}

/// Has the cluster taken down when a signal ends this process.
fn register(index: u8, directory: PathBuf, logs: PathBuf) -> Registration {
    interrupt::on_signal(move || {
        if let Err(error) = teardown::tear_down(index, &directory, &logs) {
            eprintln!("{error:#}");
        }
    })
}
