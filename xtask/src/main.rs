//! `cargo xtask`: builds, demonstrates and tests Farrier on a real cluster on this machine. Parses and dispatches, no more.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

mod archive;
mod artifacts;
mod cache;
mod cargo;
mod cluster;
mod demo;
mod digest;
mod generate;
mod image;
mod interrupt;
mod process;
mod progress;
mod shim;
mod test;
mod tools;

/// Builds, demonstrates and tests Farrier on a real cluster on this machine.
#[derive(Debug, Parser)]
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
    /// Serve what `artifacts` prepared in a folder.
    #[command(hide = true)]
    ServeArtifacts { folder: PathBuf, address: IpAddr },
}

fn main() -> anyhow::Result<()> {
    let Cli { command } = Cli::parse();
    interrupt::listen()?;
    let progress = progress::Progress::default();
    let cache = cache::Cache::open()?;
    match command {
        Command::Demo(options) => demo::run(&options, &cache, &progress),
        Command::Test(options) => test::run(&options, &cache, &progress),
        Command::Generate { check } => generate::generate(check, &cache, &progress),
        Command::Image => {
            image::farrier(&progress).map(|(_, image)| progress.line(&image.display().to_string()))
        }
        Command::Advisories => test::advisories(&cache, &progress),
        Command::ServeArtifacts { folder, address } => artifacts::serve(&folder, address),
    }
}
