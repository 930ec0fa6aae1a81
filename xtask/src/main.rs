//! `cargo xtask`: builds, demonstrates and tests Farrier on a real cluster on this machine. Parses and dispatches, no more.

mod archive;
mod artifacts;
mod bench;
mod cache;
mod cargo;
mod cluster;
mod cluster_command;
mod demo;
mod digest;
mod generate;
mod image;
mod interrupt;
mod preflight;
mod process;
mod progress;
mod shim;
mod test;
mod tools;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::cache::Cache;
use self::progress::Progress;

/// Builds, demonstrates and tests Farrier on a real cluster on this machine.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show Farrier's main job on a cluster of this machine.
    Demo(demo::Options),
    /// Run every check and every test, or one part of them.
    Test(test::Options),
    /// Measure the figures that Farrier promises, on nodes of this machine.
    Bench(bench::Options),
    /// Write the CRD and the plain manifests anew.
    Generate {
        /// Write nothing; fail if something is out of date.
        #[arg(long)]
        check: bool,
    },
    /// Build farrier as a static binary, and its image as a docker-archive.
    Image,
    /// Compare the dependencies with the advisories of rustsec.org.
    Advisories,
    /// A Kubernetes cluster on this machine, without a container engine.
    Cluster(cluster_command::ClusterCommand),
    /// Starts a node's process 1; `cluster up` calls this.
    #[command(name = cluster::boot::LAUNCH, hide = true)]
    NodeLaunch {
        name: String,
        netns: String,
        root: PathBuf,
        console: PathBuf,
    },
    /// Becomes a node's process 1; `node-launch` calls this.
    #[command(name = cluster::boot::INIT, hide = true)]
    NodeInit { name: String, root: PathBuf },
    /// Serves the folder that `demo` or `test` prepared; they call this.
    #[command(hide = true)]
    ServeArtifacts { directory: PathBuf, address: IpAddr },
}

fn main() -> ExitCode {
    let result = run(Cli::parse().command);
    drop(interrupt::pass());
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        // These two change the process that they run in, which must have no other thread: no signal is listened for.
        Command::NodeLaunch {
            name,
            netns,
            root,
            console,
        } => cluster_command::launch(&name, &netns, &root, &console),
        Command::NodeInit { name, root } => {
            cluster::boot::init(&name, &root).map(|()| ExitCode::SUCCESS)
        }
        Command::ServeArtifacts { directory, address } => {
            artifacts::serve(&directory, address).map(|()| ExitCode::SUCCESS)
        }
        Command::Cluster(command) => interrupt::listen().and_then(|()| command.run()),
        Command::Demo(options) => {
            on_this_machine(|cache, progress| demo::run(&options, cache, progress))
        }
        Command::Test(options) => {
            on_this_machine(|cache, progress| test::run(&options, cache, progress))
        }
        Command::Bench(options) => {
            on_this_machine(|cache, progress| bench::run(options, cache, progress))
        }
        Command::Generate { check } => {
            on_this_machine(|cache, progress| generate::generate(check, cache, progress))
        }
        Command::Image => on_this_machine(|_, progress| image::show(progress)),
        Command::Advisories => on_this_machine(test::advisories),
    }
}

/// Runs `work` on a machine that has all that it takes, and cleans up after it when a signal comes.
fn on_this_machine(work: impl FnOnce(&Cache, &Progress) -> Result<()>) -> Result<ExitCode> {
    interrupt::listen()?;
    let progress = Progress::default();
    preflight::ensure(&progress)?;
    work(&Cache::open()?, &progress)?;
    Ok(ExitCode::SUCCESS)
}
