//! End to end: Farrier on a real cluster of this machine, which `cargo xtask test cluster` brings up. The tests install and remove
//! Farrier themselves, one after the other, and know the cluster only by the files that the environment names:
//! `FARRIER_CLUSTER` (what stands), `FARRIER_ARTIFACTS` (what nodes can fetch), `FARRIER_IMAGE`, `FARRIER_HELLO_IMAGE` (images that
//! the nodes have) and `FARRIER_BINARY` (Farrier for this host).
#![allow(
    clippy::unwrap_used,
    reason = "clippy exempts test functions, not what they call"
)]

use std::process::Command;

use serde_json::Value;

/// The JSON file that the environment variable `name` names.
fn file(name: &str) -> Value {
    let path =
        std::env::var_os(name).unwrap_or_else(|| panic!("{name} names a file of the cluster"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Runs kubectl as the cluster's administrator and returns what it printed.
fn kubectl(arguments: &[&str]) -> String {
    let cluster = file("FARRIER_CLUSTER");
    let output = Command::new(cluster["kubectl"].as_str().unwrap())
        .env("KUBECONFIG", cluster["kubeconfig"].as_str().unwrap())
        .args(arguments)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_node_of_the_cluster_is_ready_and_runs_its_containerd() {
    let cluster = file("FARRIER_CLUSTER");
    let nodes: Value = serde_json::from_str(&kubectl(&["get", "nodes", "-o", "json"])).unwrap();
    let nodes = nodes["items"].as_array().unwrap();
    let wanted = cluster["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), wanted.len());
    for wanted in wanted {
        let found = |node: &&Value| node["metadata"]["name"] == wanted["name"];
        let status = &nodes.iter().find(found).unwrap()["status"];
        let runtime = format!("containerd://{}", wanted["containerd"].as_str().unwrap());
        let runtime_seen = status["nodeInfo"]["containerRuntimeVersion"]
            .as_str()
            .unwrap();
        assert_eq!(runtime_seen.replace("://v", "://"), runtime);
        let conditions = status["conditions"].as_array().unwrap();
        let ready = conditions
            .iter()
            .find(|condition| condition["type"] == "Ready")
            .unwrap();
        assert_eq!(ready["status"], "True", "{}", wanted["name"]);
    }
}
