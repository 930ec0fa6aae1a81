//! `cargo xtask`: parses the command line and calls the commands that build, demonstrate and test Farrier on this machine.

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

/// Build, demonstrate and test Farrier on a real cluster on this machine.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster on this machine, install Farrier, and run a Wasm pod.
    Demo(demo::Options),
    /// Run all checks and tests, or one part of them.
    Test(test::Options),
    /// Take random steps of people and faults on a cluster, and check after each that all is as asked for.
    Chaos(test::ChaosOptions),
    /// Measure the values in docs/benchmarks.md on this machine. Fails if a target is missed.
    Bench(bench::Options),
    /// Write the CustomResourceDefinition in the chart and the plain manifests.
    Generate {
        /// Write nothing, and fail if a file is out of date.
        #[arg(long)]
        check: bool,
    },
    /// Build farrier as a static binary and its image as a docker-archive, and print the paths.
    Image,
    /// Compare the dependencies with the advisories of rustsec.org. Needs the network.
    Advisories,
    /// Start, use and stop a Kubernetes cluster on this machine. Needs no container engine.
    Cluster(cluster_command::ClusterCommand),
    /// Start process 1 of a node. `cluster up` calls this.
    #[command(name = cluster::boot::LAUNCH, hide = true)]
    NodeLaunch {
        name: String,
        netns: String,
        root: PathBuf,
        console: PathBuf,
    },
    /// Become process 1 of a node. `node-launch` calls this.
    #[command(name = cluster::boot::INIT, hide = true)]
    NodeInit { name: String, root: PathBuf },
    /// Serve the directory that `demo` or `test` prepared. Both call this.
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
        // These two commands change their own process, which must have no other thread. So they do not listen for signals.
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
        Command::Chaos(options) => {
            on_this_machine(|cache, progress| test::chaos(&options, cache, progress))
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

/// Checks this machine, installs missing packages and runs `work`. After a signal, the registered teardowns run.
fn on_this_machine(work: impl FnOnce(&Cache, &Progress) -> Result<()>) -> Result<ExitCode> {
    interrupt::listen()?;
    let progress = Progress::default();
    preflight::ensure(&progress)?;
    work(&Cache::open()?, &progress)?;
    Ok(ExitCode::SUCCESS)
}
