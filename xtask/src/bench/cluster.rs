//! `cargo xtask bench cluster`: a fresh control plane per number of nodes for `benches/cluster.rs`, and the tables of what came out.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::measure;
use crate::cache::Cache;
use crate::cargo;
use crate::cluster::{self, Cluster, Spec, kwok};
use crate::image;
use crate::process;
use crate::progress::Progress;

/// The largest and the smallest cost of a node, by the number of nodes beside it, may differ by this factor.
const FLAT: f64 = 1.3;

/// Options of `cargo xtask bench cluster`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Name of the cluster: another name stands beside this one.
    #[arg(long, default_value = "bench")]
    name: String,
    /// How many nodes there are, in one run after the other.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,5000")]
    sizes: Vec<u32>,
    /// Requests a second that each controller of Kubernetes may send: 20 is its default, with which four Jobs a second come to an
    /// end, and 100 what Kubernetes' own tests of 5,000 nodes set.
    #[arg(long, default_value_t = 100)]
    controller_manager_qps: u32,
}

/// What one run tells, as `benches/cluster.rs` writes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    lines: Vec<Line>,
    /// What the controller asked of the API server per node: verb and resource, number.
    requests: Vec<(String, f64)>,
    cpu_milliseconds_per_node: f64,
}

/// A line of the table.
#[derive(Debug, Deserialize)]
struct Line {
    what: String,
    measured: String,
    target: String,
    met: bool,
}

/// Measures with each number of nodes that `options` ask for, and prints a table beside the targets.
///
/// # Errors
/// When a target is missed, or nothing can be measured.
pub fn run(options: &Options, cache: &Cache, progress: &Progress) -> Result<()> {
    let (binary, _) = image::farrier(progress)?;
    let mut all = Vec::new();
    for &nodes in &options.sizes {
        let figures = with_nodes(nodes, options, &binary, cache, progress)?;
        show_requests(nodes, &figures, progress);
        all.push((nodes, figures));
    }
    let mut missed = 0;
    progress.line("\n| what | measured | target | |\n| --- | --- | --- | --- |");
    for line in all
        .iter()
        .flat_map(|(_, figures)| &figures.lines)
        .chain(flatness(&all).as_ref())
    {
        let Line {
            what,
            measured,
            target,
            met,
        } = line;
        let verdict = if *met { "met" } else { "MISSED" };
        missed += usize::from(!met);
        progress.line(&format!("| {what} | {measured} | {target} | {verdict} |"));
    }
    if missed > 0 {
        bail!("{missed} targets are missed");
    }
    Ok(())
}

fn show_requests(nodes: u32, figures: &Figures, progress: &Progress) {
    progress.line(&format!(
        "\n| requests of the controller with {nodes} nodes | per node |\n| --- | --- |"
    ));
    for (request, count) in &figures.requests {
        progress.line(&format!("| {request} | {count:.3} |"));
    }
    progress.line("");
}

/// What a node costs with few nodes beside it and with many.
fn flatness(all: &[(u32, Figures)]) -> Option<Line> {
    let costs = || {
        all.iter()
            .map(|(_, figures)| figures.cpu_milliseconds_per_node)
    };
    let least = costs().reduce(f64::min)?;
    let most = costs().reduce(f64::max)?;
    let told: Vec<String> = all
        .iter()
        .map(|(nodes, figures)| format!("{:.2} ms with {nodes}", figures.cpu_milliseconds_per_node))
        .collect();
    Some(Line {
        what: "the controller's CPU time per node, by number of nodes".to_owned(),
        measured: format!("{}: {:.2} times", told.join(", "), most / least),
        target: format!("within {FLAT} times"),
        met: most <= FLAT * least,
    })
}

fn with_nodes(
    nodes: u32,
    options: &Options,
    binary: &Path,
    cache: &Cache,
    progress: &Progress,
) -> Result<Figures> {
    let spec = Spec {
        name: options.name.clone(),
        nodes: Vec::new(),
        controller_manager_qps: Some(options.controller_manager_qps),
    };
    let cluster = cluster::up(cache, &spec, progress)?;
    let figures = (|| {
        progress.step("helm install farrier charts/farrier", || install(&cluster))?;
        progress.line(&format!("measuring with {nodes} nodes"));
        let path = cluster.state_path().with_file_name("figures.json");
        measure(
            "cluster",
            &[
                ("FARRIER_CLUSTER", cluster.state_path()),
                ("FARRIER_BINARY", binary.to_owned()),
                ("FARRIER_AUDIT_LOG", kwok::audit_log(cluster.state())),
                ("FARRIER_NODES", nodes.to_string().into()),
                ("FARRIER_FIGURES", path.clone()),
            ],
        )?;
        let text = fs::read_to_string(&path)
            .with_context(|| format!("failed to read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} has no figures", path.display()))
    })();
    let down = progress.step("taking the cluster down", || cluster.down());
    figures.and_then(|figures| down.map(|()| figures))
}

/// Installs the chart for what it gives the controller: rights, settings, policies. The controller itself runs on this machine.
fn install(cluster: &Cluster) -> Result<()> {
    process::run(
        Command::new(&cluster.state().helm)
            .args(["install", "farrier", "charts/farrier", "--no-hooks"])
            .args(["-n", "farrier", "--create-namespace"])
            .args(["--set", "shims.preset=none"])
            .env("KUBECONFIG", &cluster.state().kubeconfig)
            .current_dir(cargo::workspace()),
    )?;
    cluster.kubectl(&[
        "scale",
        "deployment",
        "--all",
        "-n",
        "farrier",
        "--replicas=0",
    ])?;
    Ok(())
}
