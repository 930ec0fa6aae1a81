//! `cargo xtask demo`: on a cluster of this machine, from the annotation of a node to the output of a Wasm pod.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::artifacts::{self, Artifacts};
use crate::cache::Cache;
use crate::cargo;
use crate::cluster::{self, Cluster, NodeSetup, NodeSpec, Spec};
use crate::image::{self, Parts};
use crate::interrupt;
use crate::process;
use crate::progress::{Progress, Took};
use crate::tools::ContainerdVersion;

/// Name of the demo's Shim, its handler and its RuntimeClass.
const SHIM: &str = "wasmi";

/// The annotated node. The other node stays unchanged.
const NODE: &str = "n1";

/// Time limit for the node to serve the shim. A Job takes seconds on an idle machine.
const PROVISIONED: Duration = Duration::from_mins(3);

/// A kubelet whose containerd was just restarted may fail its first pod and come back after 15 s.
const POD_DONE: Duration = Duration::from_mins(2);

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Stop the cluster at the end. Without this option, the cluster runs until Ctrl-C.
    #[arg(long)]
    once: bool,
    /// Name of the cluster. Clusters with different names can run side by side.
    #[arg(long, default_value = "demo")]
    name: String,
}

/// Runs all steps of the demo. After a failure, prints logs and states for a developer and stops the cluster.
///
/// # Errors
/// When a step fails.
pub fn run(options: &Options, cache: &Cache, progress: &Progress) -> Result<()> {
    let Options { once, name } = options;
    let start = Instant::now();
    let parts = Parts::build(cache, progress)?;
    let node = |name: &str, containerd, setup| NodeSpec {
        name: name.to_owned(),
        containerd,
        setup,
    };
    let spec = Spec {
        name: name.clone(),
        nodes: vec![
            node(NODE, ContainerdVersion::V1_7, NodeSetup::Plain),
            node("n2", ContainerdVersion::V2_1, NodeSetup::DropIn),
        ],
        controller_manager_qps: None,
    };
    let cluster = cluster::up(cache, &spec, progress)?;
    let artifacts = match show(&cluster, &parts, progress) {
        Ok(artifacts) => artifacts,
        Err(error) => {
            diagnose(&cluster, progress);
            // The first failure is the cause.
            if let Err(left) = cluster.down() {
                progress.line(&format!("{left:#}"));
            }
            return Err(error);
        }
    };
    progress.line(&format!("all of it in {}", Took(start.elapsed())));
    if *once {
        return progress.step("taking the cluster down", || cluster.down());
    }
    progress.line(&farewell(&cluster, &artifacts));
    interrupt::wait_for_signal()
}

/// How to look around while the cluster is up.
fn farewell(cluster: &Cluster, artifacts: &Artifacts) -> String {
    let state = cluster.state();
    let (kubeconfig, name) = (state.kubeconfig.display(), &state.name);
    let (kubectl, helm) = (state.kubectl.display(), state.helm.display());
    let (url, sha256) = (&artifacts.shim.url, &artifacts.shim.sha256);
    format!(
        "\nThe cluster stays up until Ctrl-C. To look around, paste this into another terminal:\n
    export KUBECONFIG={kubeconfig}; alias kubectl={kubectl} helm={helm}\n
On a node, from this checkout:\n
    cargo xtask cluster --name {name} exec {NODE} -- journalctl -u containerd -n 50\n
The shim, for a Shim of your own, is served at {url}
with the SHA-256 {sha256}\n"
    )
}

fn show(cluster: &Cluster, parts: &Parts, progress: &Progress) -> Result<Artifacts> {
    let (_, artifacts) = artifacts::start(cluster, &parts.shim, progress)?;
    progress.step("loading images on the nodes", || {
        cluster.load(&parts.farrier_image)?;
        cluster.load(&parts.hello_image)
    })?;
    progress.step("helm install farrier charts/farrier", || {
        install(cluster, &artifacts)
    })?;
    progress.step(
        format!("kubectl annotate node {NODE} kwasm.sh/kwasm-node=true"),
        || cluster.kubectl(&["annotate", "node", NODE, "kwasm.sh/kwasm-node=true"]),
    )?;
    progress.step(format!("waiting until {NODE} serves {SHIM}"), || {
        served(cluster)
    })?;
    let output = progress.step("running a Wasm pod", || run_pod(cluster))?;
    progress.line(&format!("\n{}\n", output.trim_end()));
    progress.line(&status(cluster, &parts.binary)?);
    Ok(artifacts)
}

/// Installs the chart as a user does, with the demo's own Shim in place of the default ones.
fn install(cluster: &Cluster, artifacts: &Artifacts) -> Result<()> {
    let directory = cluster.state_path();
    let values_file = directory.with_file_name("values.json");
    let values = serde_json::to_vec_pretty(&values(artifacts)?)?;
    fs::write(&values_file, values)
        .with_context(|| format!("failed to write {}", values_file.display()))?;
    process::run(
        Command::new(&cluster.state().helm)
            .args([
                "install",
                "farrier",
                "charts/farrier",
                "-n",
                "farrier",
                "--create-namespace",
            ])
            .args(["--wait", "--timeout", "2m", "--values"])
            .arg(values_file)
            .env("KUBECONFIG", &cluster.state().kubeconfig)
            .current_dir(cargo::workspace()),
    )?;
    Ok(())
}

/// The chart's values for the demo.
fn values(artifacts: &Artifacts) -> Result<Value> {
    let authority = fs::read_to_string(&artifacts.ca)
        .with_context(|| format!("failed to read {}", artifacts.ca.display()))?;
    Ok(json!({
        "extraCA": authority,
        "shims": {
            "preset": "none",
            "extra": [{
                "name": SHIM,
                "annotationSelector": {"kwasm.sh/kwasm-node": "true"},
                "fetchStrategy": {
                    "binary": artifacts::SHIM_BINARY,
                    "platforms": [{
                        "os": "linux",
                        "arch": "amd64",
                        "location": artifacts.shim.url,
                        "sha256": artifacts.shim.sha256,
                        "binarySha256": artifacts.shim.binary_sha256,
                    }],
                },
                "runtimeClass": {"name": SHIM, "handler": SHIM},
                "rolloutStrategy": {"type": "recreate"},
            }],
        },
    }))
}

/// Waits until the node serves the shim. Ends at once if Farrier reports a failure.
fn served(cluster: &Cluster) -> Result<()> {
    let what = format!("provisioning {NODE}");
    process::wait_until(&what, PROVISIONED, || {
        let node: Value =
            serde_json::from_str(&cluster.kubectl(&["get", "node", NODE, "-o", "json"])?)?;
        let label = |name: &str| node["metadata"]["labels"][name].as_str();
        if label(&format!("farrier.dev/{SHIM}")) == Some("failed") {
            bail!("Farrier labelled {NODE} as failed");
        }
        Ok((label(&format!("handler.farrier.dev/{SHIM}")) == Some("true")).then_some(()))
    })
}

/// Runs the demo's module through the RuntimeClass and returns what it printed.
fn run_pod(cluster: &Cluster) -> Result<String> {
    let manifest: PathBuf = cluster.state_path().with_file_name("hello.json");
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "hello", "namespace": "default"},
        "spec": {
            "runtimeClassName": SHIM,
            "restartPolicy": "Never",
            "containers": [{
                "name": "hello",
                "image": image::HELLO,
                "imagePullPolicy": "Never",
                "args": ["fitted", "by", "Farrier"],
            }],
        },
    });
    fs::write(&manifest, pod.to_string())
        .with_context(|| format!("failed to write {}", manifest.display()))?;
    cluster.kubectl(&["apply", "-f", &manifest.to_string_lossy()])?;
    process::wait_until("the Wasm pod", POD_DONE, || {
        let phase = cluster.kubectl(&["get", "pod", "hello", "-o", "jsonpath={.status.phase}"])?;
        match phase.as_str() {
            "Succeeded" => Ok(Some(())),
            "Failed" => bail!("the Wasm pod failed"),
            _ => Ok(None),
        }
    })?;
    cluster.kubectl(&["logs", "hello"])
}

/// The table of nodes and shims, by the same binary that runs in the cluster.
fn status(cluster: &Cluster, farrier: &Path) -> Result<String> {
    process::run(
        Command::new(farrier)
            .arg("status")
            .env("KUBECONFIG", &cluster.state().kubeconfig),
    )
}

/// Prints the logs and states of a cluster after a failure.
pub fn diagnose(cluster: &Cluster, progress: &Progress) {
    let kubectl: [(&str, &[&str]); 6] = [
        ("nodes", &["get", "nodes", "--show-labels"]),
        ("pods", &["get", "pods", "-A", "-o", "wide"]),
        (
            "Shims",
            &["get", "shims.runtime.spinkube.dev", "-o", "yaml"],
        ),
        (
            "Events",
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
        ),
        ("Farrier's pods", &["describe", "pods", "-n", "farrier"]),
        (
            "logs of the controller and of the Jobs",
            &[
                "logs",
                "-n",
                "farrier",
                "-l",
                "app.kubernetes.io/component",
                "--all-containers",
                "--tail=60",
                "--prefix",
            ],
        ),
    ];
    for (what, arguments) in kubectl {
        print(progress, what, cluster.kubectl(arguments));
    }
    for node in &cluster.state().nodes {
        let journal = cluster
            .exec(
                &node.name,
                &[
                    "journalctl",
                    "-n",
                    "60",
                    "--no-pager",
                    "-u",
                    "containerd",
                    "-u",
                    "kubelet",
                ],
            )
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        print(progress, &format!("journal of {}", node.name), journal);
    }
}

fn print(progress: &Progress, what: &str, text: Result<String>) {
    let text = text.unwrap_or_else(|error| format!("{error:#}"));
    progress.line(&format!("--- {what}\n{}\n", text.trim_end()));
}
