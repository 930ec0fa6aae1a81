//! Random edits of a running containerd's configuration by others, valid and invalid ones: whatever the edit, no command leaves the node
//! without its CRI, or changes a byte of the edit.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rstest::rstest;
use toml_edit::{DocumentMut, Item, TableLike, Value};

use crate::cases;
use crate::containerd::programs;
use crate::node::{CONFIG_PATH, Node, POLL_INTERVAL};
use crate::random::Random;

const INSTALL: [&str; 2] = ["install", "--shim=a=file:///srv/a"];
const UNINSTALL: [&str; 2] = ["uninstall", "--all"];

/// Edits on all releases together, unless `FARRIER_CASES` has another number.
const CASES: u64 = 100;

/// Time limit for a start with an edit, which takes 0.1 s on an idle machine. A containerd that does not serve by then counts as one that
/// does not start, and the edit is left out.
const LIMIT: Duration = Duration::from_secs(5);

/// A part of the default configuration.
struct Setting {
    table: Vec<String>,
    /// A key of the table and its default value; `None` for a table without keys.
    default: Option<(String, Value)>,
}

/// Every setting in the default configuration of a release: all sections and all plugins.
fn settings(release: &Path) -> (i64, Vec<Setting>) {
    let output = Command::new(release)
        .args(["config", "default"])
        .output()
        .unwrap();
    let document: DocumentMut = String::from_utf8(output.stdout).unwrap().parse().unwrap();
    let version = document["version"].as_integer().unwrap();
    let mut settings = Vec::new();
    collect(document.as_table(), &[], &mut settings);
    settings.retain(|setting| !matches!(&setting.default, Some((key, _)) if key == "version"));
    (version, settings)
}

fn collect(table: &dyn TableLike, path: &[String], settings: &mut Vec<Setting>) {
    for (key, item) in table.iter() {
        match item {
            Item::Value(value) if value.as_inline_table().is_none() => settings.push(Setting {
                table: path.to_vec(),
                default: Some((key.to_owned(), value.clone())),
            }),
            _ => {
                let Some(inner) = item.as_table_like() else {
                    continue;
                };
                let table = [path, &[key.to_owned()]].concat();
                if inner.is_empty() {
                    let default = None;
                    settings.push(Setting { table, default });
                } else {
                    collect(inner, &table, settings);
                }
            }
        }
    }
}

impl Random {
    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        let at = self.below(of.len() as u64);
        of[usize::try_from(at).unwrap()]
    }
}

/// A value for a setting: a sound one, one that containerd refuses, or one of another type.
fn value(random: &mut Random, default: &Value) -> String {
    let default_text = default.to_string();
    if random.below(8) == 0 {
        return random.pick(&["7", "\"x\"", "[]", "{}", "true"]).to_owned();
    }
    match default {
        Value::String(_) => random
            .pick(&[
                default_text.trim(),
                "\"\"",
                "\"gone\"",
                "\"/proc/x/y\"",
                "\"127.0.0.1:99999\"",
                "\"4h\"",
                "\"-1\"",
            ])
            .to_owned(),
        Value::Integer(_) => random
            .pick(&[default_text.trim(), "0", "-1", "99999", "1099511627776"])
            .to_owned(),
        Value::Boolean(_) => random.pick(&["true", "false"]).to_owned(),
        Value::Array(_) => random
            .pick(&[
                default_text.trim(),
                "[]",
                "[\"x\"]",
                "[\"io.containerd.grpc.v1.cri\"]",
            ])
            .to_owned(),
        Value::Float(_) | Value::Datetime(_) | Value::InlineTable(_) => default_text,
    }
}

/// `base` with one to three random lines.
fn edited(random: &mut Random, base: &str, settings: &[Setting]) -> String {
    let mut text = base.to_owned();
    for _ in 0..=random.below(3) {
        let is_empty = random.below(4) == 0;
        let of_kind = settings.iter();
        let of_kind = of_kind.filter(|setting| setting.default.is_none() == is_empty);
        let of_kind: Vec<&Setting> = of_kind.collect();
        let at = random.below(of_kind.len() as u64);
        let setting = of_kind[usize::try_from(at).unwrap()];
        let line = setting
            .default
            .as_ref()
            .map_or_else(String::new, |(key, default)| {
                format!("{key:?} = {}\n", value(random, default))
            });
        if setting.table.is_empty() {
            text = line + &text;
        } else {
            let keys = setting.table.iter().map(|key| format!("{key:?}"));
            let table = keys.collect::<Vec<_>>().join(".");
            text.extend(["\n[", &table, "]\n", &line]);
        }
    }
    text
}

/// How long a containerd must serve to count as one that was started. Some faults end it after its CRI has answered.
const STEADY: Duration = Duration::from_millis(500);

/// Restarts containerd; returns whether it serves, and goes on doing so.
fn restart(node: &Node) -> bool {
    node.start_without_waiting("containerd");
    let (since, pid) = (Instant::now(), node.process());
    let program = node.path(&format!("/proc/{}/exe", pid.trim()));
    let mut serving = None;
    while since.elapsed() < LIMIT && fs::symlink_metadata(&program).is_ok() {
        match node.serves() {
            Err(_) => return false,
            Ok(false) => serving = None,
            Ok(true) => {
                if serving.get_or_insert_with(Instant::now).elapsed() > STEADY {
                    return true;
                }
            }
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    false
}

/// Whether `text` has all lines of `others` in their order.
fn keeps(text: &str, others: &str) -> bool {
    let mut lines = text.lines();
    others.lines().all(|line| lines.any(|kept| kept == line))
}

/// Runs every command on the edit `theirs`, which is `alone` without the lines of Farrier.
fn is_survived(node: &Node, theirs: &str, alone: &str, when: &str) {
    let process = node.process();
    let doctor = node.farrier(&["doctor"]).status.code();
    assert!(matches!(doctor, Some(0 | 1)), "{when}: {doctor:?}");
    assert_eq!(node.process(), process, "{when}: doctor");
    let dry_run = [&INSTALL[..], &["--dry-run"]].concat();
    for arguments in [&dry_run[..], &INSTALL, &UNINSTALL] {
        let process = node.process();
        let (status, report) = node.change(arguments);
        let when = format!("{when}: {}: {report:?}", arguments.join(" "));
        assert!(matches!(status, 0 | 1 | 3 | 4), "{when}\n{}", node.log());
        let now = node.config();
        if matches!(status, 3 | 4) || arguments.contains(&"--dry-run") {
            assert_eq!(now, theirs, "{when}");
        }
        if status == 3 || arguments.contains(&"--dry-run") {
            assert_eq!(node.process(), process, "{when}");
        }
        if arguments == UNINSTALL && status == 0 {
            assert_eq!(now, alone, "{when}");
        } else {
            assert!(keeps(&now, theirs), "{when}: {now}");
        }
        assert!(node.serves().unwrap(), "{when}\n{}", node.log());
    }
}

/// The names in the root directory of a node, which is the working directory of its containerd.
fn names(node: &Node) -> BTreeSet<OsString> {
    let entries = fs::read_dir(node.path("/")).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

/// A test for each release, because the edits with which containerd hangs take their time limits.
#[rstest]
fn no_edit_of_others_costs_the_node_its_cri(#[values(0, 1, 2, 3)] release: usize) {
    let program = &programs()[release];
    let seed = cases::seed();
    let (version, settings) = settings(program);
    let plugin = if version < 3 {
        "io.containerd.grpc.v1.cri"
    } else {
        "io.containerd.cri.v1.runtime"
    };
    let base = format!(
        "version = {version}\n\n[plugins.\"{plugin}\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\" # theirs\n"
    );
    let mut random = Random(seed.wrapping_add(release as u64));
    let node = Node::stopped(program, &[]);
    // An edit that names a cgroup would create one on this machine.
    let mut hide_cgroups = node.enter("mount");
    hide_cgroups.args(["-t", "tmpfs", "none", "/sys/fs/cgroup"]);
    assert!(hide_cgroups.status().unwrap().success());
    let before = names(&node);
    for case in 0..cases::count(CASES) {
        node.write(CONFIG_PATH, base.as_bytes(), 0o644);
        node.start();
        // What edits with relative paths have left: no rehearsal sees that a directory is where a socket should be.
        for name in names(&node).difference(&before) {
            let path = Path::new("/").join(name);
            let removed = node.enter("rm").arg("-r").arg(path).status();
            assert!(removed.unwrap().success(), "{name:?}");
        }
        let _ = node.change(&UNINSTALL);
        let alone = edited(&mut random, &base, &settings);
        let when = format!("FARRIER_SEED={seed}, case {case}: {alone}");
        // An edit of a file that Farrier never wrote, of one that it wrote, or one with which containerd serves already.
        let kind = random.below(3);
        let ours = if kind == 1 {
            assert_eq!(node.change(&INSTALL).0, 0, "{when}");
            node.config()
        } else {
            base.clone()
        };
        let theirs = alone.replace(&base, &ours);
        node.write(CONFIG_PATH, theirs.as_bytes(), 0o644);
        if kind < 2 || restart(&node) {
            is_survived(&node, &theirs, &alone, &when);
        }
    }
}
