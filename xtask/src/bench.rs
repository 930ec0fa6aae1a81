//! `cargo xtask bench host`: nodes without pods, and the measurements of `benches/host.rs` on them. Never a part of `test`.

use anyhow::Result;
use clap::Subcommand;

use crate::cache::Cache;
use crate::cargo;
use crate::cluster::{self, NodeSpec, Spec};
use crate::image::Parts;
use crate::progress::Progress;
use crate::test::aloud;
use crate::tools::ContainerdVersion;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// What a change of a host costs: time without a CRI, restarts, memory.
    Host {
        /// The containerd releases to measure on, one node each.
        #[arg(long, value_delimiter = ',', default_value = "1.7.35,2.4.2")]
        nodes: Vec<ContainerdVersion>,
        /// Name of the cluster: another name stands beside this one.
        #[arg(long, default_value = "bench")]
        name: String,
    },
}

/// Measures, and fails where a target is missed.
///
/// # Errors
/// When a part can't be built or brought up, or a target is missed.
pub fn run(bench: &Bench, cache: &Cache, progress: &Progress) -> Result<()> {
    let Bench::Host { nodes, name } = bench;
    let parts = Parts::build(cache, progress)?;
    let spec = Spec {
        name: name.clone(),
        nodes: nodes
            .iter()
            .zip(1..)
            .map(|(containerd, number)| NodeSpec::new(&format!("n{number}"), *containerd))
            .collect(),
    };
    let cluster = cluster::up(cache, &spec, progress)?;
    // The profile is of what measures; what is measured is the release that nodes get.
    let mut command = cargo::command(&["bench", "--profile=dev", "--locked", "--bench=host"]);
    command
        .env("FARRIER_CLUSTER", cluster.state_path())
        .env("FARRIER_BINARY", &parts.binary)
        .env("FARRIER_SHIM", &parts.shim);
    progress.line("cargo bench --bench host");
    let result = aloud("the measurements", &mut command);
    let down = progress.step("taking the cluster down", || cluster.down());
    result.and(down)
}
