//! The configuration editor against whole files: each directory of `tests/config` is a node's file before and after.
//!
//! `case.toml` names the release of containerd and the wanted handlers. `in.toml` is the file before, and missing where the file is absent.
//! `out.toml` is the file after. Removing all handlers must restore `in.toml` byte for byte.
//! `FARRIER_BLESS=1` in the environment writes the `out.toml` anew; read the diff.

#![allow(clippy::unwrap_used, reason = "a test that can't go on stops")]

#[path = "support/config_files.rs"]
mod config_files;
#[path = "support/handlers.rs"]
mod handler_names;
#[path = "support/random.rs"]
mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use config_files::{ROOT, one_file};
use farrier::containerd_config::{
    ConfigFiles, ConfigTarget, Error, Handler, SourceFile, Value, compare_dumps, config_target,
    edit, handlers, imports, runtimes_of_dump,
};
use handler_names::names;
use random::Random;
use rstest::rstest;
use toml_edit::{DocumentMut, Item, TableLike};

/// One directory of `tests/config`.
struct Case {
    containerd: String,
    files: ConfigFiles,
    path: String,
    plugin: String,
    desired: Vec<Handler>,
    before: Option<String>,
    after: PathBuf,
}

fn text(table: &dyn TableLike, key: &str) -> Option<String> {
    table.get(key).and_then(Item::as_str).map(str::to_owned)
}

fn read(case: &Path) -> Case {
    let directory = case.parent().unwrap();
    let document: DocumentMut = fs::read_to_string(case).unwrap().parse().unwrap();
    let before = fs::read_to_string(directory.join("in.toml")).ok();
    let path = text(document.as_table(), "path").unwrap_or_else(|| ROOT.to_owned());
    let root = match text(document.as_table(), "root") {
        Some(text) => Some(text),
        None => before.clone(),
    };
    let mut imported: Vec<SourceFile> = document
        .get("imported")
        .and_then(Item::as_array_of_tables)
        .into_iter()
        .flatten()
        .map(|file| SourceFile {
            path: text(file, "path").unwrap(),
            text: text(file, "text"),
        })
        .collect();
    if path != ROOT && before.is_some() {
        imported.push(SourceFile {
            path: path.clone(),
            text: before.clone(),
        });
    }
    let desired = document["want"]
        .as_table_like()
        .unwrap()
        .iter()
        .map(|(name, item)| wanted(name, item.as_table_like().unwrap()))
        .collect();
    Case {
        containerd: text(document.as_table(), "containerd").unwrap(),
        files: ConfigFiles {
            root: SourceFile {
                path: ROOT.to_owned(),
                text: root,
            },
            imported,
        },
        path,
        plugin: text(document.as_table(), "plugin").unwrap(),
        desired,
        before,
        after: directory.join("out.toml"),
    }
}

fn wanted(name: &str, table: &dyn TableLike) -> Handler {
    let options = table.get("options").and_then(Item::as_table_like);
    Handler {
        name: name.to_owned(),
        runtime_type: text(table, "runtime_type").unwrap(),
        options: options
            .into_iter()
            .flat_map(TableLike::iter)
            .map(|(key, item)| {
                let value = match (item.as_bool(), item.as_integer(), item.as_str()) {
                    (Some(value), _, _) => Value::Boolean(value),
                    (_, Some(value), _) => Value::Integer(value),
                    (_, _, value) => Value::String(value.unwrap().to_owned()),
                };
                (key.to_owned(), value)
            })
            .collect(),
    }
}

fn handler(name: &str) -> Handler {
    Handler {
        name: name.to_owned(),
        runtime_type: format!("/opt/farrier/bin/containerd-shim-{name}"),
        options: BTreeMap::from([("SystemdCgroup".to_owned(), Value::Boolean(true))]),
    }
}

/// Edits as on a node whose containerd had the usual `runc` before.
fn apply(
    before: Option<&str>,
    target: &ConfigTarget,
    managed: &BTreeSet<String>,
    desired: &[Handler],
) -> Result<Option<String>, Error> {
    edit(before, target, managed, desired, Some(&Handler::runc()))
}

#[rstest]
fn a_file_gets_the_wanted_handlers_and_removing_them_restores_its_first_bytes(
    #[files("tests/config/*/case.toml")] case: PathBuf,
) {
    let case = read(&case);
    let target = config_target(&case.files, &case.containerd.parse().unwrap()).unwrap();
    assert_eq!(target.path, case.path);
    assert_eq!(target.plugin.key(), case.plugin);

    let before = case.before.as_deref();
    let managed = names(&case.desired);
    let after = apply(before, &target, &BTreeSet::new(), &case.desired).unwrap();
    if std::env::var_os("FARRIER_BLESS").is_some() {
        fs::write(&case.after, after.as_deref().unwrap()).unwrap();
    }
    assert_eq!(after, Some(fs::read_to_string(&case.after).unwrap()));
    assert_eq!(
        apply(after.as_deref(), &target, &managed, &case.desired).unwrap(),
        after
    );
    assert_eq!(
        apply(after.as_deref(), &target, &managed, &[]).unwrap(),
        case.before
    );
}

#[rstest]
fn adding_and_removing_any_sets_in_any_order_restores_the_first_bytes(
    #[files("tests/config/*/case.toml")] case: PathBuf,
) {
    let case = read(&case);
    let target = config_target(&case.files, &case.containerd.parse().unwrap()).unwrap();
    let all = ["a", "b.c", "d"].map(handler);
    let mut random = Random(2);
    for _ in 0..32 {
        let walk = random.below(512);
        let mut now = case.before.clone();
        let mut managed = BTreeSet::new();
        for step in [walk & 7, walk >> 3 & 7, walk >> 6 & 7, 0] {
            let desired: Vec<Handler> = (0..3)
                .filter(|bit| step >> bit & 1 == 1)
                .map(|bit| all[bit].clone())
                .collect();
            now = apply(now.as_deref(), &target, &managed, &desired).unwrap();
            managed = names(&desired);
            let declared = handlers(now.as_deref().unwrap_or_default(), &target).unwrap();
            for handler in &all {
                assert_eq!(
                    declared.contains_key(&handler.name),
                    managed.contains(&handler.name)
                );
            }
        }
        assert_eq!(now, case.before, "walk {walk}");
    }
}

#[rstest]
fn broken_text_never_panics_and_every_edit_can_be_undone(
    #[files("tests/config/*/case.toml")] case: PathBuf,
) {
    const PIECES: [&str; 16] = [
        "[",
        "]",
        "{",
        "}",
        "=",
        ".",
        "\"",
        "'",
        "\n",
        "\r\n",
        "#",
        ", ",
        "\u{feff}",
        "[[plugins]]",
        "plugins = {}",
        "# farrier: managed handler; change its Shim or run farrier install instead\n",
    ];
    let case = read(&case);
    let after = fs::read_to_string(&case.after).unwrap();
    let mut random = Random(1);
    let mut below = |limit: usize| {
        let limit = u64::try_from(limit).unwrap();
        usize::try_from(random.below(limit)).unwrap()
    };
    let desired = [handler("a"), handler("b.c")];
    let managed = names(&desired);
    for round in 0..60 {
        let whole = case
            .before
            .as_deref()
            .filter(|_| round & 1 == 0)
            .unwrap_or(&after);
        let mut text: Vec<char> = whole.chars().collect();
        for _ in 0..=below(3) {
            if text.is_empty() {
                break;
            }
            let at = below(text.len().max(1));
            match below(4) {
                0 => text.truncate(at),
                1 => drop(text.drain(at..text.len().min(at + 1 + below(30)))),
                2 => drop(text.splice(at..at, PIECES[below(16)].chars())),
                _ => drop(text.remove(at)),
            }
        }
        let text: String = text.into_iter().collect();
        let _ = imports(&text);
        let _ = runtimes_of_dump(&text);
        let _ = compare_dumps(whole, &text, &managed);
        for release in ["1.6.36", "2.1.9", "2.4.2"] {
            let Ok(target) = config_target(&one_file(&text), &release.parse().unwrap()) else {
                continue;
            };
            let before = (!target.drop_in).then_some(text.as_str());
            if let Ok(after) = apply(before, &target, &BTreeSet::new(), &desired) {
                let back = apply(after.as_deref(), &target, &managed, &[]).unwrap();
                // Handlers below a comment of Farrier in the first text count as managed.
                assert!(
                    text.contains("# farrier:") || back.as_deref() == before,
                    "{text:?}"
                );
            }
        }
    }
}

#[test]
fn text_that_is_nested_deeper_than_any_configuration_is_refused() {
    let keys = vec!["a"; 79].join(".");
    let inside = (0..79).fold(format!("{keys} = 1"), |inside, _| {
        format!("{keys} = {{ {inside} }}")
    });
    let text = format!("[{keys}]\n{inside}\n");
    assert!(config_target(&one_file(&text), &"2.1.9".parse().unwrap()).is_err());
    for bracket in ["[", "{a=", "a."] {
        let text = format!("a = {}", bracket.repeat(100_000));
        assert!(config_target(&one_file(&text), &"2.1.9".parse().unwrap()).is_err());
    }
}
