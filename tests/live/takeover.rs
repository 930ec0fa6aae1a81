//! Nodes that KWasm or runtime-class-manager provisioned, and whose containerd serves their handlers.

use std::collections::BTreeMap;
use std::path::Path;

use farrier::handoff::Outcome;
use farrier::names::sha256_hex;

use crate::containerd::programs;
use crate::distributions::{BASE_2, K3S, node};
use crate::legacy::{kwasm_table, rcm_lock, rcm_table};
use crate::node::{CONFIG, CONFIG_PATH, Node, Run, on_each, shim};

const SCHEMA_2: &str = "io.containerd.grpc.v1.cri";
const SCHEMA_3: &str = "io.containerd.cri.v1.runtime";
const CONFIG_3: &str = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n";

/// The changes of KWasm's installer on a node: three handlers of its seven.
fn add_kwasm(node: &Node) -> String {
    let mut tables = String::new();
    for (seed, name) in [(1, "spin-v2"), (2, "wws-v1"), (3, "slight-v1")] {
        let path = format!("/opt/kwasm/bin/containerd-shim-{name}");
        node.write(&path, &shim(seed, Run::Ends), 0o755);
        let (handler, _) = name.rsplit_once('-').unwrap();
        tables += &kwasm_table(handler, &path);
    }
    node.write("/opt/kwasm/active", b"", 0o644);
    format!("\n{tables}\n")
}

/// The changes of runtime-class-manager's installer on a node: two shims, the first with an option.
fn add_rcm(node: &Node, plugin: &str) -> String {
    let (mut tables, mut binaries) = (String::new(), Vec::new());
    for (seed, name, option) in [(1, "spin-v2", true), (2, "wws-v1", false)] {
        let path = format!("/opt/rcm/bin/containerd-shim-{name}");
        let bytes = shim(seed, Run::Ends);
        node.write(&path, &bytes, 0o755);
        tables += &rcm_table(plugin, name, &path, option);
        binaries.push((name, sha256_hex(&bytes), path));
    }
    let lock = rcm_lock(&binaries);
    node.write("/opt/rcm/rcm-lock.json", lock.as_bytes(), 0o644);
    tables
}

/// Takes over the handlers of a legacy installer on a node of `config`, checks that a second run changes nothing, and removes all handlers.
fn is_taken_over(release: &Path, config: &str, add: impl Fn(&Node) -> String, shims: &[&str]) {
    let node = Node::stopped(release, &[]);
    node.write(CONFIG_PATH, config.as_bytes(), 0o644);
    node.start();
    let before = node.tree();
    let theirs = format!("{config}{}", add(&node));
    node.write(CONFIG_PATH, theirs.as_bytes(), 0o644);
    node.start();
    // No shim of Farrier has these handlers yet.
    assert!(!node.farrier(&["doctor"]).status.success());
    let process = node.process();
    let install = [&["install"], shims].concat();
    let (status, report) = node.change(&install);
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
    assert_eq!((report.restarts, node.process()), (0, process.clone()));
    let served: BTreeMap<_, _> = report
        .handlers
        .iter()
        .map(|handler| (&handler.handler, handler.served))
        .collect();
    assert!(served.len() == shims.len() && served.values().all(|served| *served));
    assert_eq!(node.config(), theirs);
    node.assert_healthy();
    let (_, report) = node.change(&install);
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
    assert_eq!(node.process(), process);

    let (status, report) = node.change(&["uninstall", "--all"]);
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
    assert_eq!(report.restarts, 1);
    assert_eq!(node.config(), config);
    assert_eq!(node.tree(), before);
    node.assert_healthy();
}

#[test]
fn handlers_of_kwasm_in_use_are_taken_over_and_removed() {
    // KWasm installed one of the binaries, and the others are newer.
    let shims = [
        "--shim=spin=file:///srv/a",
        "--shim=wws=file:///srv/a",
        "--shim=slight=file:///srv/b",
    ];
    on_each(|release| is_taken_over(release, CONFIG, add_kwasm, &shims));
}

const RCM_SHIMS: [&str; 2] = [
    "--shim=spin-v2=file:///srv/b,option.SystemdCgroup=true",
    "--shim=wws-v1=file:///srv/b",
];

#[test]
fn handlers_of_runtime_class_manager_are_taken_over_and_removed() {
    let add = |node: &Node| add_rcm(node, SCHEMA_2);
    on_each(|release| is_taken_over(release, CONFIG, add, &RCM_SHIMS));
}

#[test]
fn handlers_of_runtime_class_manager_in_schema_3_are_taken_over_and_removed() {
    for release in &programs()[2..] {
        let add = |node: &Node| add_rcm(node, SCHEMA_3);
        let work = || is_taken_over(release, CONFIG_3, add, &RCM_SHIMS);
        let done = std::thread::scope(|scope| scope.spawn(work).join());
        assert!(done.is_ok(), "on {}", release.display());
    }
}

#[test]
fn handlers_of_runtime_class_manager_in_a_template_are_taken_over_and_removed() {
    let directory = "/var/lib/rancher/k3s/agent/etc/containerd";
    let program = "/var/lib/rancher/k3s/data/0/bin/containerd";
    let node = node(1, K3S, program, BASE_2);
    let path = format!("{directory}/config.toml.tmpl");
    let template = "{{ template \"base\" . }}\n";
    node.write(&path, template.as_bytes(), 0o600);
    node.start_service("k3s");
    let before = node.tree();
    let theirs = format!("{template}{}", add_rcm(&node, SCHEMA_2));
    node.write(&path, theirs.as_bytes(), 0o600);
    node.start_service("k3s");
    let process = node.process();
    let install = [&["install"], RCM_SHIMS.as_slice()].concat();
    let (status, report) = node.change(&install);
    assert_eq!((status, report.restarts), (0, 0), "{report:?}");
    assert_eq!(node.process(), process);
    assert!(report.handlers.iter().all(|handler| handler.served));
    node.assert_healthy();
    let (status, report) = node.change(&["uninstall", "--all"]);
    assert_eq!((status, report.restarts), (0, 1), "{report:?}");
    assert_eq!(node.tree(), before);
    node.assert_healthy();
}
