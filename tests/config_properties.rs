//! Properties of the configuration editor for any text: generated files in every notation, mutated files of the corpus, and random text.
//! `PROPTEST_CASES` sets the number of cases for each property (256).

#![allow(clippy::unwrap_used, reason = "a test that can't go on stops")]

#[path = "support/config_files.rs"]
mod config_files;
#[path = "support/handlers.rs"]
mod handler_names;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use config_files::{ROOT, one_file};
use farrier::containerd_config::{
    ConfigTarget, Handler, PluginId, Value, compare_dumps, config_target, edit, edit_template,
    handlers, imports, runtimes_of_dump, startup_checks,
};
use handler_names::names;
use proptest::prelude::*;
use toml_edit::{Document, Item, TableLike};

const RELEASES: [&str; 7] = [
    "1.6.36", "1.7.35", "2.0.7", "2.1.9", "2.2.7", "2.3.4", "2.4.2",
];

const IDS: [&str; 3] = [
    "cri",
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
];

/// How the runtimes of a generated file are written.
#[derive(Debug, Clone, Copy)]
enum Notation {
    Headers,
    DottedAtTheRoot,
    DottedInTheSection,
    InlineRuntimes,
    InlineEach,
}

/// A file to be generated.
#[derive(Debug, Clone)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is there or not, whatever the others are"
)]
struct Shape {
    version: Option<u8>,
    id: usize,
    notation: Notation,
    quote: char,
    spaces: bool,
    indent: &'static str,
    names: BTreeSet<&'static str>,
    imports: bool,
    comments: bool,
    before: bool,
    after: bool,
    carriage_returns: bool,
    final_newline: bool,
}

impl Shape {
    fn text(&self) -> String {
        let mut lines = Vec::new();
        let comment = |lines: &mut Vec<String>, text: &str| {
            if self.comments {
                lines.push(format!("# {text}"));
                lines.push(String::new());
            }
        };
        comment(&mut lines, "grün, by hand");
        if let Some(version) = self.version {
            lines.push(format!("version = {version} # schema"));
        }
        if self.imports {
            lines.push("imports = ['/etc/containerd/conf.d/*.toml']".to_owned());
        }
        lines.push("oom_score = 0".to_owned());
        let quoted = |name: &str| format!("{0}{name}{0}", self.quote);
        let dot = if self.spaces { " . " } else { "." };
        let section = ["plugins".to_owned(), quoted(IDS[self.id])].join(dot);
        let runtimes = ["containerd", "runtimes"].join(dot);
        let runtime =
            |name: &str| format!("{{ runtime_type = 'io.x.{name}.v2', options = {{ A = true }} }}");
        if let Notation::DottedAtTheRoot = self.notation {
            for name in &self.names {
                let key = [section.as_str(), &runtimes, &quoted(name)].join(dot);
                lines.push(format!("{key}{dot}runtime_type = 'io.x.v2'"));
                lines.push(format!("{key}{dot}options{dot}A = true"));
            }
        }
        if self.before {
            lines.extend(["[debug]", "  level = 'info'"].map(str::to_owned));
            comment(&mut lines, "[plugins] come now");
        }
        match self.notation {
            Notation::Headers => {
                for name in &self.names {
                    let table = [section.as_str(), &runtimes, &quoted(name)].join(dot);
                    lines.push(format!("{}[{table}]", self.indent));
                    lines.push(format!("{0}{0}runtime_type = 'io.x.v2' # [x]", self.indent));
                    lines.push(format!("{}[{table}{dot}options]", self.indent));
                    lines.push(format!("{}A = true", self.indent));
                    comment(&mut lines, name);
                }
            }
            Notation::DottedAtTheRoot => {}
            Notation::DottedInTheSection => {
                lines.push(format!("[{section}]"));
                for name in &self.names {
                    let key = [runtimes.as_str(), &quoted(name)].join(dot);
                    lines.push(format!("{}{key}{dot}runtime_type = 'io.x.v2'", self.indent));
                }
            }
            Notation::InlineRuntimes => {
                lines.push(format!("[{section}{dot}containerd]"));
                let all = self
                    .names
                    .iter()
                    .map(|name| format!("{} = {}", quoted(name), runtime(name)));
                lines.push(format!(
                    "runtimes = {{ {} }}",
                    all.collect::<Vec<_>>().join(" , ")
                ));
            }
            Notation::InlineEach => {
                lines.push(format!("[{section}{dot}{runtimes}]"));
                for name in &self.names {
                    lines.push(format!(
                        "{}{} = {}",
                        self.indent,
                        quoted(name),
                        runtime(name)
                    ));
                }
            }
        }
        if self.after {
            comment(&mut lines, "the end");
            lines.extend(
                ["[timeouts]", "'x.y' = '5s'", "[[z]]", "a = [1,", "  2]"].map(str::to_owned),
            );
        }
        let newline = if self.carriage_returns { "\r\n" } else { "\n" };
        let text = lines.join(newline);
        if self.final_newline {
            text + newline
        } else {
            text
        }
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    let notation = prop_oneof![
        Just(Notation::Headers),
        Just(Notation::DottedAtTheRoot),
        Just(Notation::DottedInTheSection),
        Just(Notation::InlineRuntimes),
        Just(Notation::InlineEach),
    ];
    let names = prop::collection::btree_set(
        prop::sample::select(vec![
            "runc",
            "kata",
            "w t",
            "a.b",
            "123",
            "nvidia-cdi",
            "x_1",
        ]),
        0..4,
    );
    let version = prop::option::weighted(0.9, 1_u8..=4);
    let look = (
        prop::sample::select(vec!['"', '\'']),
        any::<bool>(),
        prop::sample::select(vec!["", "  ", "\t"]),
    );
    let shape = (version, 0..IDS.len(), notation, names);
    (shape, look, any::<[bool; 6]>()).prop_map(
        |((version, id, notation, names), (quote, spaces, indent), flags)| {
            let [
                imports,
                comments,
                before,
                after,
                carriage_returns,
                final_newline,
            ] = flags;
            Shape {
                version,
                id,
                notation,
                quote,
                spaces,
                indent,
                names,
                imports,
                comments,
                before,
                after,
                carriage_returns,
                final_newline,
            }
        },
    )
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::Boolean),
        any::<i64>().prop_map(Value::Integer),
        any::<String>().prop_map(Value::String),
    ]
}

/// Handlers to declare: at most four, each with another name.
fn wanted() -> impl Strategy<Value = Vec<Handler>> {
    let options = prop::collection::btree_map("[A-Za-z][A-Za-z0-9_. -]{0,9}", value(), 0..3);
    let handler = (any::<String>(), options);
    prop::collection::btree_map("f-[a-z0-9. {}'=#\\[\\]-]{0,8}", handler, 1..5).prop_map(|all| {
        all.into_iter()
            .filter(|(name, _)| farrier::containerd_config::is_usable_name(name))
            .map(|(name, (runtime_type, options))| Handler {
                name,
                runtime_type,
                options,
            })
            .collect()
    })
}

/// Every value of a file, by the keys that lead to it.
fn values(text: &str) -> BTreeMap<Vec<String>, String> {
    fn walk(
        table: &dyn TableLike,
        path: &mut Vec<String>,
        values: &mut BTreeMap<Vec<String>, String>,
    ) {
        for (key, item) in table.iter() {
            path.push(key.to_owned());
            match (item, item.as_table_like()) {
                (_, Some(table)) => walk(table, path, values),
                (Item::ArrayOfTables(tables), None) => {
                    for (index, table) in tables.iter().enumerate() {
                        path.push(index.to_string());
                        walk(table, path, values);
                        path.pop();
                    }
                }
                (item, None) => {
                    values.insert(path.clone(), item.to_string().trim().to_owned());
                }
            }
            path.pop();
        }
    }
    let document = Document::parse(text.trim_start_matches('\u{feff}')).unwrap();
    let mut all = BTreeMap::new();
    walk(document.as_table(), &mut Vec::new(), &mut all);
    all
}

/// Checks all properties of edits of `text` for `target`. Checks nothing where the first edit is refused.
fn edits_hold(
    text: Option<&str>,
    target: &ConfigTarget,
    desired: &[Handler],
) -> Result<(), TestCaseError> {
    let apply = |text: Option<&str>, managed: &BTreeSet<String>, desired: &[Handler]| {
        edit(text, target, managed, desired, Some(&Handler::runc()))
    };
    let none = BTreeSet::new();
    let managed = names(desired);
    let Ok(after) = apply(text, &none, desired) else {
        return Ok(());
    };
    let after = after.as_deref();
    let again = apply(after, &managed, desired).unwrap();
    prop_assert_eq!(again.as_deref(), after, "not idempotent");
    let undone = apply(after, &managed, &[]).unwrap();
    prop_assert_eq!(undone.as_deref(), text, "not restored");
    let reversed: Vec<Handler> = desired.iter().rev().cloned().collect();
    let other = apply(text, &none, &reversed).unwrap();
    prop_assert_eq!(other.as_deref(), after, "depends on the order of handlers");
    let last = &desired[desired.len() - 1..];
    let first = apply(text, &none, last).unwrap();
    let then = apply(first.as_deref(), &names(last), desired).unwrap();
    prop_assert_eq!(then.as_deref(), after, "depends on earlier edits");

    let declared = handlers(after.unwrap_or_default(), target).unwrap();
    for handler in desired {
        prop_assert_eq!(&declared[&handler.name].runtime_type, &handler.runtime_type);
        prop_assert_eq!(&declared[&handler.name].options, &handler.options);
    }
    let before = values(text.unwrap_or_default());
    let after = values(after.unwrap_or_default());
    for (path, value) in &before {
        prop_assert_eq!(after.get(path), Some(value), "{:?} changed", path);
    }
    for path in after.keys().filter(|path| !before.contains_key(*path)) {
        let allowed = match path.as_slice() {
            [key] => key == "version",
            [plugins, _, _, runtimes, name, ..] => {
                plugins == "plugins"
                    && runtimes == "runtimes"
                    && (managed.contains(name) || name == "runc")
            }
            _ => false,
        };
        prop_assert!(allowed, "{path:?} appeared");
    }
    Ok(())
}

proptest! {
    #[test]
    fn an_edit_of_a_generated_file_can_be_undone(shape in shape(), release in prop::sample::select(&RELEASES[..]), desired in wanted()) {
        let text = shape.text();
        if let Ok(target) = config_target(&one_file(&text), &release.parse().unwrap())
            && !desired.is_empty()
        {
            let file = (!target.drop_in).then_some(text.as_str());
            edits_hold(file, &target, &desired)?;
        }
    }

    #[test]
    fn most_generated_files_are_edited(shape in shape()) {
        // Runtimes under the plugin id of the version are read by every release of that version. Only an inline table can't get a runc.
        let fits = matches!((shape.version, shape.id), (Some(2), 1) | (Some(3 | 4), 2));
        let release = if shape.version == Some(2) { "1.7.35" } else { "2.4.2" };
        let braces = matches!(shape.notation, Notation::InlineRuntimes);
        if fits && !(braces && shape.names.is_empty()) {
            let text = shape.text();
            let target = config_target(&one_file(&text), &release.parse().unwrap()).unwrap();
            let file = (!target.drop_in).then_some(text.as_str());
            let mine = Handler { name: "f".to_owned(), ..Handler::runc() };
            prop_assert!(edit(file, &target, &BTreeSet::new(), &[mine], Some(&Handler::runc())).is_ok(), "{}", text);
        }
    }

    #[test]
    fn an_edit_of_a_template_can_be_undone(shape in shape(), at in any::<prop::sample::Index>(), desired in wanted()) {
        let plain = shape.text();
        let newline = if shape.carriage_returns { "\r\n" } else { "\n" };
        let mut lines: Vec<&str> = plain.split_inclusive('\n').collect();
        let action = format!("{{{{ template \"base}}}}\" . }}}}{newline}");
        lines.insert(at.index(lines.len() + 1), &action);
        let text = lines.concat();
        let apply = |text: &str, managed: &BTreeSet<String>, desired: &[Handler]| {
            edit_template(ROOT, Some(text), PluginId::CriV1Runtime, managed, desired)
        };
        let managed = names(&desired);
        let after = apply(&text, &BTreeSet::new(), &desired).unwrap().unwrap();
        prop_assert!(after.starts_with(&text));
        prop_assert_eq!(apply(&after, &managed, &desired).unwrap().unwrap(), after.clone());
        prop_assert_eq!(apply(&after, &managed, &[]).unwrap().unwrap(), text);
    }

    #[test]
    fn no_text_makes_anything_panic(text in text(), other in text(), desired in wanted()) {
        let managed = names(&desired);
        let _ = imports(&text);
        let _ = runtimes_of_dump(&text);
        let _ = startup_checks(&text);
        let _ = compare_dumps(&text, &other, &managed);
        let _ = edit_template(ROOT, Some(&text), PluginId::GrpcV1Cri, &managed, &desired);
        for release in RELEASES {
            if let Ok(target) = config_target(&one_file(&text), &release.parse().unwrap()) {
                let _ = edit(Some(&text), &target, &managed, &desired, None);
            }
        }
    }

    #[test]
    fn an_edit_of_a_mutated_file_of_the_corpus_can_be_undone(
        file in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..20, text()), 0..4),
        release in prop::sample::select(&RELEASES[..]),
        desired in wanted(),
    ) {
        let mut bytes = file.get(&CORPUS).clone();
        for (at, length, put) in &changes {
            let at = at.index(bytes.len() + 1);
            let end = bytes.len().min(at + length);
            let put: Vec<u8> = put.bytes().take(20).collect();
            bytes.splice(at..end, put);
        }
        // The editor gets text alone. Handlers below a comment of Farrier would count as managed.
        if let Ok(text) = String::from_utf8(bytes)
            && !desired.is_empty()
            && let Ok(target) = config_target(&one_file(&text), &release.parse().unwrap())
        {
            let file = (!target.drop_in).then_some(text.as_str());
            edits_hold(file, &target, &desired)?;
        }
    }
}

/// Random text: characters of any script, and pieces of TOML and of templates in any order.
fn text() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "{{",
        "}}",
        "=",
        ".",
        ",",
        "\"",
        "'",
        "'''",
        "\"\"\"",
        "\\",
        "\n",
        "\r\n",
        "\r",
        "#",
        " ",
        "\t",
        "\u{feff}",
        "\u{0}",
        "version = 2\n",
        "version = 3\n",
        "plugins",
        "'io.containerd.grpc.v1.cri'",
        "containerd",
        "runtimes",
        "runc",
        "runtime_type",
        "options",
        "imports = ['/x/*.toml']\n",
        "1",
        "true",
        "{{/*",
        "*/}}",
        "{{- ",
        " -}}",
        "# farrier: managed handler; change its Shim or run farrier install instead\n",
        "# farrier: the schema of the managed handlers\n",
    ]);
    prop_oneof![
        any::<String>(),
        prop::collection::vec(pieces, 0..40).prop_map(|pieces| pieces.concat()),
    ]
}

static CORPUS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut files = Vec::new();
    let mut directories: Vec<PathBuf> =
        vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "toml") {
                files.push(fs::read(path).unwrap());
            }
        }
    }
    files.sort();
    files
});
