//! `cargo xtask`: builds, demonstrates and tests Farrier on a real cluster on this machine. Parses and dispatches, no more.

mod archive;
mod cache;
mod cluster;
mod cluster_command;
mod digest;
mod interrupt;
mod preflight;
mod process;
mod progress;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, demonstrates and tests Farrier on a real cluster on this machine.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A Kubernetes cluster on this machine, without containers.
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
        Command::Cluster(command) => interrupt::listen().and_then(|()| command.run()),
    }
}
