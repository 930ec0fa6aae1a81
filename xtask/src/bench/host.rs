//! `cargo xtask bench host`: nodes for `benches/host.rs`.

use anyhow::Result;

use super::measure;
use crate::cache::Cache;
use crate::cluster::{self, NodeSpec, Spec};
use crate::image::Parts;
use crate::progress::Progress;

/// Options of `cargo xtask bench host`.
#[derive(Debug, clap::Args)]
pub struct Options {
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

/// Measures on the nodes that `options` ask for.
///
/// # Errors
/// When a target is missed, or nothing can be measured.
pub fn run(options: Options, cache: &Cache, progress: &Progress) -> Result<()> {
    let parts = Parts::build(cache, progress)?;
    let spec = Spec {
        name: options.name,
        nodes: options.nodes,
        controller_manager_qps: None,
    };
    let cluster = cluster::up(cache, &spec, progress)?;
    progress.line("measuring; this takes minutes");
    let result = measure(
        "host",
        &[
            ("FARRIER_CLUSTER", cluster.state_path()),
            ("FARRIER_BINARY", parts.binary),
            ("FARRIER_SHIM", parts.shim),
        ],
    );
    let down = progress.step("taking the cluster down", || cluster.down());
    result.and(down)
}
