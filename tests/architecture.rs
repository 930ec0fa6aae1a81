//! Holds the house to its plan: who may import whom, where input and output may happen, and how long a file may be.
#![allow(
    clippy::unwrap_used,
    reason = "clippy exempts test functions, not what they call"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each room, and what of ours it may name.
const IMPORTS: &[(&str, &[&str])] = &[
    ("api", &["handoff", "names"]),
    ("cli", &["handoff"]),
    ("containerd_config", &[]),
    (
        "controller",
        &["api", "handoff", "metrics", "names", "server"],
    ),
    ("dns", &[]),
    ("handoff", &["names"]),
    ("installer", &["containerd_config", "dns", "handoff"]),
    ("metrics", &[]),
    ("names", &[]),
    ("server", &[]),
    ("telemetry", &[]),
];

/// Files (by the start of their path below `src`) that decide without touching anything.
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
    "installer/adopt.rs",
    "installer/binaries.rs",
    "installer/bounds.rs",
    "installer/desired.rs",
    "installer/distro",
    "installer/doctor.rs",
    "installer/moved.rs",
    "installer/notes.rs",
    "installer/plan.rs",
    "installer/proof.rs",
    "installer/readiness.rs",
    "installer/report.rs",
    "installer/site.rs",
    "installer/source.rs",
    "installer/state.rs",
    "installer/text.rs",
    "installer/want.rs",
    "names.rs",
];

/// What a pure file does not name.
const EFFECTS: &[&str] = &[
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::net::ToSocketAddrs",
    "std::process",
    "std::thread",
    "tokio",
    "reqwest",
    "zbus",
    "tonic",
    "nix::",
    "kube::Client",
    "Api<",
    "Timestamp::now",
    "SystemTime",
    "Instant::now",
    "env::var",
    "tracing::",
];

/// Lines of a file that are not tests: about what a reader holds in mind.
const LONGEST_FILE: usize = 800;

/// Files that may be longer: documents whose types and their descriptions belong side by side.
const DOCUMENTS: &[&str] = &["api.rs"];

/// Lines of such a file that are not tests.
const LONGEST_DOCUMENT: usize = 800;

fn sources() -> Vec<(String, String)> {
    fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files
        .into_iter()
        .map(|file| {
            let name = file
                .strip_prefix(&root)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            (name, fs::read_to_string(file).unwrap())
        })
        .collect()
}

/// The part of a file that is neither its tests nor a comment.
fn code(text: &str) -> String {
    let body = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    body.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn is_tests(name: &str) -> bool {
    name.ends_with("tests.rs") || name.contains("tests/")
}

/// The rooms that `text` names through `crate::`, one by one or in braces.
fn named(text: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for rest in text.split("crate::").skip(1) {
        let word = |text: &str| {
            text.chars()
                .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                .collect::<String>()
        };
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0_u32;
            let mut start = true;
            for (at, letter) in group.char_indices() {
                match letter {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    letter if start && !letter.is_whitespace() => {
                        rooms.insert(word(&group[at..]));
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            rooms.insert(word(rest));
        }
    }
    rooms
}

#[test]
fn imports_only_go_down() {
    for (name, text) in sources() {
        let room = name.split(['/', '.']).next().unwrap().to_owned();
        if matches!(room.as_str(), "main" | "lib") || is_tests(&name) {
            continue;
        }
        let Some((_, allowed)) = IMPORTS.iter().find(|(known, _)| *known == room) else {
            panic!("{name} is in a room that the table does not know");
        };
        for import in named(&code(&text)) {
            assert!(
                import == room || allowed.contains(&import.as_str()),
                "{name} names crate::{import}"
            );
        }
    }
}

#[test]
fn what_decides_touches_nothing() {
    for (name, text) in sources() {
        if PURE.iter().any(|pure| name.starts_with(pure)) && !is_tests(&name) {
            let code = code(&text);
            for effect in EFFECTS {
                assert!(!code.contains(effect), "{name} names {effect}");
            }
        }
    }
}

#[test]
fn only_apply_writes_to_the_api_server() {
    for (name, text) in sources() {
        if name.starts_with("controller/") && !name.starts_with("controller/apply") {
            let code = code(&text);
            for write in ["PatchParams", "PostParams", "DeleteParams", "Patch::"] {
                assert!(!code.contains(write), "{name} names {write}");
            }
        }
    }
}

#[test]
fn every_file_says_what_lives_in_it_and_stays_short() {
    for (name, text) in sources() {
        assert!(
            text.starts_with("//! "),
            "{name} does not open with its purpose"
        );
        if !is_tests(&name) {
            let tests = ["#[cfg(test)]\nmod ", "#[cfg(test)]\npub(super) mod "];
            let end = tests.iter().filter_map(|start| text.find(start)).min();
            let lines = text[..end.unwrap_or(text.len())].lines().count();
            let document = DOCUMENTS.contains(&name.as_str());
            assert!(
                lines
                    <= if document {
                        LONGEST_DOCUMENT
                    } else {
                        LONGEST_FILE
                    },
                "{name} has {lines} lines"
            );
        }
    }
}

#[test]
fn the_reader_of_imports_reads_groups() {
    let text = "use crate::{names::{self, reasons}, api::Shim};\ncrate::handoff::X";
    assert_eq!(
        named(text).into_iter().collect::<Vec<_>>(),
        ["api", "handoff", "names"]
    );
}
