//! `cargo xtask cluster`: what each subcommand prints and calls. The work is in [`cluster`](crate::cluster).

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use crate::cache::Cache;
use crate::cluster::state::Owner;
use crate::cluster::{self, Cluster, NodeSpec, Spec, boot};
use crate::preflight;
use crate::progress::Progress;

/// `cargo xtask cluster`.
#[derive(Debug, Args)]
pub struct ClusterCommand {
    /// Name of the cluster.
    #[arg(long, global = true, default_value = "dev")]
    name: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start a cluster. It runs until `down`.
    Up {
        /// The nodes with their releases of containerd, separated by commas.
        #[arg(
            long,
            value_delimiter = ',',
            default_value = "n1=1.7.35,n2=2.1.9",
            value_name = "NAME=CONTAINERD"
        )]
        nodes: Vec<NodeSpec>,
    },
    /// Stop a cluster and remove everything of it except the logs.
    Down,
    /// List the clusters of this machine and their nodes.
    Status,
    /// Run a program on a node.
    Exec {
        /// Name of the node.
        node: String,
        /// The program and its arguments.
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Import an image on every node.
    Load {
        /// The image as a docker-archive.
        image: PathBuf,
    },
}

impl ClusterCommand {
    /// Carries out the subcommand. The exit status of `exec` is that of the program.
    ///
    /// # Errors
    /// When a step fails, in one sentence.
    pub fn run(self) -> Result<ExitCode> {
        let cache = Cache::open()?;
        let progress = Progress::default();
        let Self { name, action } = self;
        match action {
            Action::Up { nodes } => up(
                &cache,
                &Spec {
                    name,
                    nodes,
                    controller_manager_qps: None,
                },
                &progress,
            )?,
            Action::Down => {
                let cluster = Cluster::find(&cache, &name)?;
                progress.step(format!("taking cluster {name} down"), || cluster.down())?;
            }
            Action::Status => status(&cache)?,
            Action::Exec { node, command } => {
                let words: Vec<&str> = command.iter().map(String::as_str).collect();
                let mut command = Cluster::find(&cache, &name)?.node_command(&node, &words)?;
                // The program replaces this process, so that it gets Ctrl-C and sets the exit status.
                return Err(command.exec()).context("failed to run nsenter");
            }
            Action::Load { image } => {
                let cluster = Cluster::find(&cache, &name)?;
                progress.step(format!("loading {}", image.display()), || {
                    cluster.load(&image)
                })?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn up(cache: &Cache, spec: &Spec, progress: &Progress) -> Result<()> {
    preflight::ensure(progress)?;
    let cluster = cluster::up(cache, spec, progress)?;
    let line = format!("export KUBECONFIG={}", cluster.state().kubeconfig.display());
    let kubectl = cluster.state().kubectl.display().to_string();
    cluster.keep()?;
    progress.line(&format!("{line}   # then {kubectl} get nodes"));
    Ok(())
}

fn status(cache: &Cache) -> Result<()> {
    let mut out = io::stdout().lock();
    let clusters = Cluster::all(cache);
    if clusters.is_empty() {
        writeln!(out, "no cluster is up")?;
    }
    for cluster in clusters {
        let state = cluster.state();
        let owner = match state.owner() {
            Owner::Lives(pid) => format!("belongs to process {pid}"),
            Owner::Died => "left by a crashed run, removed by the next `up`".to_owned(),
            Owner::Unowned if cluster.stands() => "up".to_owned(),
            Owner::Unowned => "ended by a reboot, removed by the next `up`".to_owned(),
        };
        writeln!(out, "{} ({}): {owner}", state.name, state.control_plane_ip)?;
        if cluster.stands() {
            let nodes = cluster.kubectl(&["get", "nodes", "-o", "wide", "--request-timeout=5s"]);
            match nodes {
                Ok(table) => write!(out, "{table}")?,
                Err(error) => writeln!(out, "{error:#}")?,
            }
        }
    }
    Ok(())
}

/// Starts process 1 of a node and prints its PID for the waiting process.
///
/// # Errors
/// When the kernel refuses.
pub fn launch(name: &str, netns: &str, root: &Path, console: &Path) -> Result<ExitCode> {
    let pid = boot::launch(name, netns, root, console)?;
    writeln!(io::stdout(), "{pid}")?;
    Ok(ExitCode::SUCCESS)
}
