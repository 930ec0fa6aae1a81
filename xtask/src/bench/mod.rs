//! `cargo xtask bench`: figures that Farrier promises, measured on this machine. The measuring is in `benches`.

mod cluster;
mod host;

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::cargo;
use crate::interrupt;
use crate::progress::Progress;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Changes of a host: how long the CRI is away, an install with nothing to do, restarts, memory.
    Host(host::Options),
    /// The controller over thousands of nodes, which kwok plays.
    Cluster(cluster::Options),
}

/// Measures what `options` ask for, with the binary that is released.
///
/// # Errors
/// When a target is missed, or nothing can be measured.
pub fn run(options: Options, cache: &Cache, progress: &Progress) -> Result<()> {
    match options.what {
        What::Host(options) => host::run(options, cache, progress),
        What::Cluster(options) => cluster::run(&options, cache, progress),
    }
}

/// Runs the program `name` of `benches` to its end, with its output going where ours goes.
fn measure(name: &str, environment: &[(&str, PathBuf)]) -> Result<()> {
    use std::os::unix::process::CommandExt as _;

    let mut command = cargo::command(&["test", "--quiet", "--locked", "--bench", name]);
    command
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .process_group(0);
    let (mut child, tracked) =
        interrupt::spawn_tracked(&mut command).context("failed to run cargo")?;
    let status = child.wait().context("failed to wait for cargo")?;
    drop(tracked);
    if !status.success() {
        bail!("a target is missed, or could not be measured ({status})");
    }
    Ok(())
}
