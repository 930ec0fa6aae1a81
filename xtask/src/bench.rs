//! `cargo xtask bench`: figures that Farrier promises, measured on nodes of this machine. The measuring is in `benches`.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::cargo;
use crate::cluster::{self, Cluster, NodeSpec, Spec};
use crate::image::Parts;
use crate::interrupt;
use crate::progress::Progress;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// What is measured.
    what: What,
    /// Name of the cluster: another name stands beside this one.
    #[arg(long, default_value = "bench")]
    name: String,
    /// The nodes that it is measured on.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "n17=1.7.35,n24=2.4.2",
        value_name = "NAME=CONTAINERD"
    )]
    nodes: Vec<NodeSpec>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum What {
    /// Changes of a host: how long the CRI is away, an install with nothing to do, restarts, memory.
    Host,
}

/// Measures what `options` ask for, with the binary that is released.
///
/// # Errors
/// When a target is missed, or nothing can be measured.
pub fn run(options: Options, cache: &Cache, progress: &Progress) -> Result<()> {
    let What::Host = options.what;
    let parts = Parts::build(cache, progress)?;
    let spec = Spec {
        name: options.name,
        nodes: options.nodes,
    };
    let cluster = cluster::up(cache, &spec, progress)?;
    let result = measure(&cluster, &parts, progress);
    let down = progress.step("taking the cluster down", || cluster.down());
    result.and(down)
}

fn measure(cluster: &Cluster, parts: &Parts, progress: &Progress) -> Result<()> {
    use std::os::unix::process::CommandExt as _;

    progress.line("measuring; this takes minutes");
    let mut command: Command = cargo::command(&["test", "--quiet", "--locked", "--bench", "host"]);
    command
        .env("FARRIER_CLUSTER", cluster.state_path())
        .env("FARRIER_BINARY", &parts.binary)
        .env("FARRIER_SHIM", &parts.shim)
        .stdin(Stdio::null())
        .process_group(0);
    let (mut child, tracked) =
        interrupt::spawn_tracked(&mut command).context("cannot run cargo")?;
    let status = child.wait().context("cannot wait for cargo")?;
    drop(tracked);
    if !status.success() {
        bail!("a target is missed, or could not be measured ({status})");
    }
    Ok(())
}
