//! Bringing a cluster up: sweep what crashed runs left, claim an index, start the control plane and boot the nodes beside each other.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};

use super::cgroups::Layout;
use super::state::{Binaries, FILE, NodeState, Owner, State, boot_id};
use super::{
    CLUSTERS, Cluster, LOGS, Spec, boot, control_plane, directory, host, logs, names, network,
    node_command, on_every_node, pause, register, rootfs,
};
use crate::cache::{Cache, remove_tree};
use crate::process;
use crate::progress::Progress;
use crate::tools::Tool;

/// How long a node may take from boot to Ready, in kubectl's terms: 3 s when the machine is idle.
const NODE_PATIENCE: &str = "--timeout=90s";

/// Brings a cluster up and returns when every node is Ready. What isn't built yet is built first.
///
/// This process answers for the cluster until the value is dropped or [kept](Cluster::keep).
///
/// # Errors
/// When a part can't be built or doesn't come up; nothing is left of the cluster then but its logs.
pub fn up(cache: &Cache, spec: &Spec, progress: &Progress) -> Result<Cluster> {
    spec.check()?;
    let parts = Parts::make(cache, spec, progress)?;
    let mut cluster = claim(cache, spec, &parts, progress)?;
    cluster.bring_up(&parts, progress).with_context(|| {
        format!(
            "failed to start cluster {} (logs: {})",
            spec.name,
            logs(cache, &spec.name).display()
        )
    })?;
    Ok(cluster)
}

/// What a cluster is made of, all of it in the cache.
struct Parts {
    kubectl: PathBuf,
    helm: PathBuf,
    binaries: Binaries,
    /// The directory with containerd, for each node in the order of the specification.
    containerds: Vec<PathBuf>,
    base: PathBuf,
    pause: PathBuf,
}

impl Parts {
    fn make(cache: &Cache, spec: &Spec, progress: &Progress) -> Result<Self> {
        let kubernetes = cache.tool(Tool::Kubernetes, progress)?;
        let assets = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let asset = |name: &str| {
            assets
                .as_ref()
                .and_then(|directory| directory.join(name).canonicalize().ok())
        };
        let etcd = match asset("etcd") {
            Some(etcd) => etcd,
            None => cache.tool(Tool::Etcd, progress)?.join("etcd"),
        };
        let containerds = spec
            .nodes
            .iter()
            .map(|node| cache.tool(Tool::Containerd(node.containerd), progress))
            .collect::<Result<_>>()?;
        let kwok = if spec.nodes.is_empty() {
            Some(cache.tool(Tool::Kwok, progress)?.join("kwok"))
        } else {
            None
        };
        Ok(Self {
            kubectl: kubernetes.join("kubectl"),
            helm: cache.tool(Tool::Helm, progress)?.join("helm"),
            binaries: Binaries {
                etcd,
                kube_apiserver: asset("kube-apiserver")
                    .unwrap_or_else(|| kubernetes.join("kube-apiserver")),
                kube_controller_manager: kubernetes.join("kube-controller-manager"),
                kube_scheduler: kubernetes.join("kube-scheduler"),
                kubelet: kubernetes.join("kubelet"),
                kwok,
            },
            containerds,
            base: rootfs::base(cache, progress)?,
            pause: pause::image(cache)?,
        })
    }
}

/// Takes an index and the name, under the lock: from here on a signal, a drop or the next run takes down what there is.
fn claim(cache: &Cache, spec: &Spec, parts: &Parts, progress: &Progress) -> Result<Cluster> {
    let _lock = host::lock()?;
    sweep(cache, &spec.name, progress)?;
    let others: Vec<u8> = Cluster::all(cache)
        .iter()
        .map(|other| other.state().index)
        .collect();
    let index = names::free_index(|index| {
        others.contains(&index)
            || network::path(&names::control_plane_netns(index)).exists()
            || !network::host_interfaces(index).is_empty()
    })
    .context("200 clusters are up on this machine: stop one of them")?;
    let directory = directory(cache, &spec.name);
    let mut state = state(spec, parts, index, &directory)?;
    state.own();
    fs::create_dir_all(&state.logs)
        .with_context(|| format!("failed to create {}", state.logs.display()))?;
    state.write(&directory)?;
    let registration = register(index, directory.clone(), logs(cache, &spec.name));
    let cluster = Cluster {
        state,
        directory,
        cache: cache.clone(),
        registration: Some(registration),
    };
    host::save_settings()?;
    network::create_namespace(&cluster.state.control_plane_netns)?;
    Ok(cluster)
}

/// Removes what crashed runs left. A cluster whose owner lives, and a kept one of another name, are not touched.
fn sweep(cache: &Cache, wanted: &str, progress: &Progress) -> Result<()> {
    // A directory without a state was left between two lines of `claim`: nothing else of that cluster exists.
    for entry in fs::read_dir(cache.path(CLUSTERS))
        .into_iter()
        .flatten()
        .flatten()
    {
        if !entry.path().join(FILE).exists() {
            remove_tree(&entry.path())?;
        }
    }
    for cluster in Cluster::all(cache) {
        let name = cluster.state.name.clone();
        match cluster.state.owner() {
            Owner::Lives(pid) if name == wanted => {
                bail!(
                    "cluster {name} belongs to process {pid}: end the process, or choose another name with --name"
                );
            }
            Owner::Unowned if name == wanted && cluster.stands() => {
                bail!(
                    "cluster {name} is up already: run `cargo xtask cluster down --name {name}`, or choose another name with --name"
                );
            }
            Owner::Lives(_) => {}
            Owner::Unowned if cluster.stands() => {}
            Owner::Unowned | Owner::Died => {
                progress.step(format!("removing the rest of cluster {name}"), || {
                    cluster.tear_down()
                })?;
            }
        }
    }
    Ok(())
}

fn state(spec: &Spec, parts: &Parts, index: u8, directory: &Path) -> Result<State> {
    let nodes = spec
        .nodes
        .iter()
        .zip(1u8..)
        .map(|(node, number)| NodeState {
            name: node.name.clone(),
            containerd: node.containerd,
            setup: node.setup,
            ip: names::node_ip(index, number),
            pid: None,
            root: directory.join("nodes").join(&node.name),
            netns: names::node_id(index, number),
        })
        .collect();
    if directory.exists() {
        bail!(
            "{} contains a cluster of another release of xtask: stop it with that release",
            directory.display()
        );
    }
    Ok(State {
        name: spec.name.clone(),
        index,
        kubeconfig: directory.join("kubeconfig"),
        kubectl: parts.kubectl.clone(),
        helm: parts.helm.clone(),
        owner_pid: None,
        owner_start: None,
        boot_id: boot_id()?,
        nodes,
        control_plane_netns: names::control_plane_netns(index),
        control_plane_ip: names::control_plane_ip(index),
        controller_manager_qps: spec.controller_manager_qps,
        binaries: parts.binaries.clone(),
        logs: directory.join(LOGS),
    })
}

impl Cluster {
    fn bring_up(&mut self, parts: &Parts, progress: &Progress) -> Result<()> {
        progress.step("starting the control plane", || {
            control_plane::certificates(&self.state, &self.directory)?;
            network::connect_control_plane(self.state.index)?;
            // Copying file systems keeps the disk busy while the API server keeps a processor busy.
            thread::scope(|scope| {
                let prepared = scope.spawn(|| self.prepare_nodes(parts));
                let started = control_plane::start(&self.state, &self.directory);
                let prepared = prepared
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a thread panicked")));
                started.and(prepared)
            })
        })?;
        if self.state.nodes.is_empty() {
            return self.await_service_account();
        }
        let nodes: Vec<String> = self
            .state
            .nodes
            .iter()
            .map(|node| format!("{} (containerd {})", node.name, node.containerd))
            .collect();
        progress.step(format!("booting {}", nodes.join(", ")), || {
            self.boot_nodes()?;
            self.await_nodes()
        })
    }

    fn prepare_nodes(&self, parts: &Parts) -> Result<()> {
        let layout = Layout::here()?;
        let certificates = self.directory.join(control_plane::CERTIFICATES);
        let nodes = self.state.nodes.iter().zip(&parts.containerds).zip(1u8..);
        for ((node, containerd), number) in nodes {
            network::connect_node(self.state.index, number)?;
            layout.create(&node.netns)?;
            let parts = rootfs::Parts {
                base: &parts.base,
                containerd,
                pause: &parts.pause,
                certificates: &certificates,
            };
            rootfs::create(&self.state, node, number, &parts)?;
        }
        Ok(())
    }

    fn boot_nodes(&mut self) -> Result<()> {
        let logs = &self.state.logs;
        for node in &mut self.state.nodes {
            let console = logs.join(format!("{}-console.log", node.name));
            node.pid = Some(boot::boot(node, &console)?);
        }
        self.state.write(&self.directory)
    }

    fn await_nodes(&self) -> Result<()> {
        // The API server's client certificate is nobody's to kubelets until it is bound to their role.
        self.kubectl(&[
            "create",
            "clusterrolebinding",
            "kube-apiserver-kubelet",
            "--clusterrole=system:kubelet-api-admin",
            "--user=kube-apiserver",
        ])?;
        on_every_node(&self.state, |node| {
            let ready = self.await_node(node);
            self.keep_journal(node, ready.is_ok())?;
            ready
        })?;
        self.await_service_account()
    }

    /// Without it the API server takes no pod.
    fn await_service_account(&self) -> Result<()> {
        self.kubectl(&[
            "wait",
            "--for=create",
            "serviceaccount/default",
            NODE_PATIENCE,
        ])?;
        Ok(())
    }

    fn await_node(&self, node: &NodeState) -> Result<()> {
        let object = format!("node/{}", node.name);
        ["--for=create", "--for=condition=Ready"]
            .iter()
            .try_for_each(|condition| {
                self.kubectl(&["wait", condition, &object, NODE_PATIENCE])
                    .map(drop)
            })
            .with_context(|| format!("node {} did not become Ready", node.name))
    }

    /// Copies the node's journal, which goes with the node, to the logs: from now on where it runs, or as it is.
    fn keep_journal(&self, node: &NodeState, runs: bool) -> Result<()> {
        let mut words = vec!["journalctl", "--no-pager", "--output=short-precise"];
        let log = self.state.logs.join(format!("{}-journal.log", node.name));
        if runs {
            words.extend(["--follow", "--lines=all"]);
            return process::start(&mut node_command(node, &words)?, &log).map(drop);
        }
        let journal = self.exec(&node.name, &words)?;
        fs::write(&log, journal.stdout)
            .with_context(|| format!("failed to write {}", log.display()))
    }
}
