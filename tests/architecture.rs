//! Holds the code to its floors: imports go down, no two files import each other in a circle, decisions have no effects, one
//! directory writes to the API server, and a file has one subject. `CONTRIBUTING.md` has the same tree as a map.
#![allow(
    clippy::unwrap_used,
    reason = "clippy exempts test functions, not what they call"
)]

#[path = "architecture/graph.rs"]
mod graph;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use graph::{Graph, circles, read_tree};

/// The modules of the library, and the modules that each may import. `main` may import all of them.
const MODULES: &[(&str, &[&str])] = &[
    ("api", &["handoff", "names"]),
    ("cli", &["handoff", "names"]),
    ("containerd_config", &[]),
    (
        "controller",
        &["api", "dns", "handoff", "metrics", "names", "server"],
    ),
    ("dns", &[]),
    ("handoff", &["names"]),
    ("installer", &["containerd_config", "dns", "handoff"]),
    ("metrics", &[]),
    ("names", &[]),
    ("server", &[]),
    ("telemetry", &[]),
];

/// The floors of a directory, from the top. A file or directory imports from lower floors only.
const FLOORS: &[(&str, &[&[&str]])] = &[
    (
        "containerd_config",
        &[
            &["mod"],
            &["edit", "placement", "start_needs"],
            &["startup_checks"],
            &["dump", "edit_template", "foreign_lines", "imports"],
            &["legacy"],
            &["template"],
            &["document"],
            &["inline_table"],
            &["render"],
            &["error"],
            &["types"],
            &["glob", "schema", "secrets"],
        ],
    ),
    (
        "controller",
        &[
            &["mod"],
            &["status_table", "uninstall"],
            &["operate"],
            &["crd_watch", "error", "leader", "reconcile"],
            &["apply", "memory"],
            &["decide"],
            &["cluster"],
            &["settings"],
        ],
    ),
    (
        "handoff",
        &[
            &["mod"],
            &["report", "request"],
            &["ending_pods"],
            &["name"],
            &["location", "problem"],
            &["digest", "document", "printable", "proof", "restart_policy"],
        ],
    ),
    (
        "installer",
        &[
            &["mod"],
            &["options"],
            &["report"],
            &["transaction"],
            &["plan"],
            &["inspect"],
            &["containerd"],
            &["artifact", "distro"],
            &["state"],
            &["host"],
        ],
    ),
];

/// Files without effects, by the start of their path below `src`.
const PURE: &[&str] = &[
    "api.rs",
    "api/",
    "cli.rs",
    "containerd_config/",
    "controller/cluster/job_view.rs",
    "controller/cluster/node_view.rs",
    "controller/cluster/shim_view.rs",
    "controller/cluster/slim.rs",
    "controller/decide/",
    "controller/memory/aggregate.rs",
    "controller/memory/node_summary.rs",
    "controller/settings.rs",
    "handoff/",
    "installer/containerd/command_line.rs",
    "installer/containerd/process/cgroup.rs",
    "installer/containerd/systemd_unit/syntax.rs",
    "installer/distro/",
    "installer/host/path.rs",
    "installer/plan/",
    "installer/report/",
    "installer/state/",
    "names.rs",
];

/// Paths that a file without effects does not name.
const EFFECTS: &[&str] = &[
    "jiff::Timestamp::now",
    "kube::Client",
    "kube::api::Api",
    "nix",
    "reqwest",
    "rustix",
    "std::env::var",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::process",
    "std::thread",
    "std::time::Instant::now",
    "std::time::SystemTime",
    "tokio",
    "tonic",
    "tracing",
    "zbus",
];

/// Names of `kube::api` that a write to the API server takes.
const WRITES: &[&str] = &["DeleteParams", "Patch", "PatchParams", "PostParams"];

/// Lines of a file without its tests: one subject per file has been no longer.
const LONGEST_FILE: usize = 800;

/// Directories whose files belong to one component with a file beside the directory, as `process.rs` beside `process/`.
fn component(path: &str) -> &str {
    let first = path.split('/').next().unwrap();
    first.strip_suffix(".rs").unwrap_or(first)
}

fn own_graph() -> Graph {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    Graph::of(&read_tree(&root), "farrier")
}

/// The imports between modules that the table does not allow.
fn forbidden_imports(graph: &Graph, modules: &[(&str, &[&str])]) -> String {
    let mut text = String::new();
    for (file, source) in &graph.sources {
        let module = component(file);
        if matches!(module, "main" | "lib") {
            continue;
        }
        let allowed = modules.iter().find(|(known, _)| *known == module);
        let Some((_, allowed)) = allowed else {
            writeln!(text, "{file} is in a module that the table does not have").unwrap();
            continue;
        };
        for (target, names) in &source.imports {
            let import = component(target);
            if import != module && !allowed.contains(&import) {
                writeln!(text, "{file} names {names:?} in {target}").unwrap();
            }
        }
    }
    text
}

/// The imports of a directory that do not go down its floors.
fn upward_imports(graph: &Graph, directory: &str, floors: &[&[&str]]) -> String {
    let prefix = format!("{directory}/");
    let floor = |path: &str| {
        let component = component(path);
        floors
            .iter()
            .position(|floor| floor.contains(&component))
            .unwrap_or_else(|| panic!("no floor has {prefix}{component}"))
    };
    let mut text = String::new();
    for (file, source) in &graph.sources {
        let Some(from) = file.strip_prefix(&prefix) else {
            continue;
        };
        for (target, names) in &source.imports {
            let Some(to) = target.strip_prefix(&prefix) else {
                continue;
            };
            if component(from) != component(to) && floor(from) >= floor(to) {
                writeln!(text, "{file} names {names:?} in {target}").unwrap();
            }
        }
    }
    text
}

/// Every circle between files, and between the parts of one directory.
fn all_circles(graph: &Graph) -> String {
    let mut text = String::new();
    for circle in graph.circles() {
        writeln!(text, "{} files import each other:", circle.len()).unwrap();
        text += &graph.describe_circle(&circle);
    }
    let directories: BTreeSet<&str> = graph
        .sources
        .keys()
        .flat_map(|file| file.match_indices('/').map(|(at, _)| &file[..=at]))
        .collect();
    for directory in directories {
        let mut parts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (file, source) in &graph.sources {
            let Some(from) = file.strip_prefix(directory) else {
                continue;
            };
            let targets = source.imports.keys();
            let targets = targets.filter_map(|target| target.strip_prefix(directory));
            let targets = targets.map(component).filter(|to| *to != component(from));
            let of_part = parts.entry(component(from).to_owned()).or_default();
            of_part.extend(targets.map(str::to_owned));
        }
        for circle in circles(&parts) {
            writeln!(text, "parts of {directory} import each other: {circle:?}").unwrap();
        }
    }
    text
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let forbidden = forbidden_imports(&own_graph(), MODULES);
    assert!(forbidden.is_empty(), "\n{forbidden}");
}

#[test]
fn imports_go_down_the_floors_of_their_directory() {
    let graph = own_graph();
    for (directory, floors) in FLOORS {
        let upward = upward_imports(&graph, directory, floors);
        assert!(upward.is_empty(), "\n{upward}");
    }
}

#[test]
fn no_files_and_no_directories_import_each_other_in_a_circle() {
    let graph = own_graph();
    let found = all_circles(&graph);
    assert!(found.is_empty(), "\n{found}");
    // Shown by `cargo test --test architecture -- --nocapture`.
    let lines: usize = graph.sources.values().map(|source| source.lines).sum();
    eprintln!(
        "{} files, {} imports, longest chain {}, {lines} lines without tests",
        graph.sources.len(),
        graph.edges(),
        graph.longest_chain(),
    );
}

#[test]
fn a_file_that_decides_has_no_effects() {
    let graph = own_graph();
    for pure in PURE {
        let any = graph.sources.keys().any(|file| file.starts_with(pure));
        assert!(any, "no file begins with {pure}");
    }
    for (file, source) in &graph.sources {
        if !PURE.iter().any(|pure| file.starts_with(pure)) {
            continue;
        }
        for path in &source.external {
            let is_effect = |effect: &&&str| {
                let rest = path.strip_prefix(**effect);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            };
            let effect = EFFECTS.iter().find(is_effect);
            assert_eq!(effect, None, "{file} names {path}");
        }
    }
}

#[test]
fn only_one_directory_writes_to_the_api_server() {
    let graph = own_graph();
    let writers: BTreeSet<&String> = graph
        .sources
        .values()
        .filter(|source| {
            let mut names = source
                .external
                .iter()
                .filter_map(|path| path.strip_prefix("kube::api::"));
            names.any(|name| WRITES.contains(&name.split("::").next().unwrap()))
        })
        .map(|source| &source.file)
        .collect();
    assert!(!writers.is_empty());
    for file in writers {
        assert!(file.starts_with("controller/apply/"), "{file} writes");
    }
}

#[test]
fn every_file_opens_with_its_purpose_and_has_one_subject() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (file, text) in read_tree(&root) {
        assert!(
            text.starts_with("//! "),
            "{file} does not open with its purpose"
        );
    }
    for (file, source) in own_graph().sources {
        let lines = source.lines;
        assert!(lines <= LONGEST_FILE, "{file} has {lines} lines");
    }
}

/// A tree of five files: `a` and `b/mod` import each other through `b/c`, `d` imports its tests alone.
fn known_tree() -> Graph {
    let texts = [
        (
            "lib.rs",
            "pub mod a; pub mod b; pub mod d; #[cfg(test)] mod tests;",
        ),
        (
            "a.rs",
            "use crate::b::{self, Up as Higher}; use std::fs::File; fn f() { vec![b::c::G]; }",
        ),
        (
            "b/mod.rs",
            "pub mod c; pub use c::Up; #[cfg(test)] mod tests { use crate::d::D; }",
        ),
        (
            "b/c.rs",
            "use std::fs; pub struct Up(super::super::a::A); fn g() { fs::read(\"x\"); }",
        ),
        (
            "d.rs",
            "#[cfg(test)] use crate::a::A; fn f() { own::a::A; }",
        ),
        ("tests.rs", "use crate::d::D;"),
    ];
    let texts = texts.map(|(file, text)| (file.to_owned(), text.to_owned()));
    Graph::of(&BTreeMap::from(texts), "own")
}

#[test]
fn a_known_circle_is_found_with_the_names_that_tie_it() {
    let graph = known_tree();
    let circle = BTreeSet::from(["a.rs", "b/c.rs", "b/mod.rs"].map(str::to_owned));
    assert_eq!(graph.circles(), [circle]);
    let text = all_circles(&graph);
    assert!(text.contains("3 files import each other"), "{text}");
    assert!(text.contains("a.rs names G in b/c.rs"), "{text}");
    assert!(text.contains("b/c.rs names A in a.rs"), "{text}");
}

#[test]
fn paths_in_bodies_macros_groups_and_aliases_are_imports_and_tests_are_not() {
    let graph = known_tree();
    assert!(!graph.sources.contains_key("tests.rs"));
    let imports = |file: &str| {
        let imports = graph.sources[file].imports.keys();
        imports.map(String::as_str).collect::<Vec<_>>()
    };
    assert_eq!(imports("a.rs"), ["b/c.rs", "b/mod.rs"]);
    assert_eq!(imports("b/mod.rs"), ["b/c.rs"]);
    assert_eq!(imports("b/c.rs"), ["a.rs"]);
    assert_eq!(imports("d.rs"), ["a.rs"]);
    assert_eq!(graph.edges(), 5);
    assert_eq!(graph.longest_chain(), 2);
    let external = &graph.sources["b/c.rs"].external;
    assert!(external.contains("std::fs::read"), "{external:?}");
}

#[test]
fn an_import_that_goes_up_or_out_of_the_table_is_found() {
    let graph = known_tree();
    let up = upward_imports(&graph, "b", &[&["mod"], &["c"]]);
    assert!(up.is_empty(), "{up}");
    let up = upward_imports(&graph, "b", &[&["c"], &["mod"]]);
    assert!(up.contains("b/mod.rs names"), "{up}");
    let modules: &[(&str, &[&str])] = &[("a", &["b"]), ("b", &[]), ("d", &["a"])];
    let forbidden = forbidden_imports(&graph, modules);
    assert!(
        forbidden.contains("b/c.rs names {\"A\"} in a.rs"),
        "{forbidden}"
    );
    assert_eq!(forbidden.lines().count(), 1, "{forbidden}");
}
