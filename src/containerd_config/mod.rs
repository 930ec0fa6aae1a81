//! Configuration text of containerd in, configuration text out: where a handler is declared, how, and what changed.
//!
//! A leaf: it knows TOML and containerd's schemas, and no file, process or cluster. What real daemons do was tried on containerd
//! 1.6.20 to 2.4.2; releases and even builds differ, so nothing here replaces asking the host's own containerd about a candidate.
//! The text is parsed to decide and to check, and spliced to change: `toml_edit` printed back whole isn't byte-identical.

mod braces;
mod document;
mod imports;
mod judge;
mod moved;
mod needs;
mod notation;
mod pattern;
mod placement;
mod predecessors;
mod runtimes;
mod schema;
mod startable;
mod template;
mod tree;

use std::collections::{BTreeMap, BTreeSet};

pub use imports::{clean, imports, with_imports};
pub use judge::{address_of_dump, holds, judge, runtimes_of_dump};
pub use moved::without_ours;
pub use needs::{Need, needs};
pub use pattern::Pattern;
pub use placement::place;
pub use predecessors::{Inherited, Predecessor, inherited};
pub use runtimes::{edit, handlers, is_usable_name};
pub use startable::startable;
pub use template::{edit_template, is_template, template_handlers};

/// The most text that is read as one configuration, in bytes. `containerd config dump` prints 20 KiB; a host's file is hostile input.
pub const TEXT_LIMIT: usize = 1 << 20;

/// The longest dump that is read, in bytes: some files at their limit and the defaults, and thousands of registry entries.
pub const DUMP_LIMIT: usize = 4 << 20;

/// Release of a containerd.
///
/// Reads `v1.7.24`, `1.6.20~ds1`, `2.1.9+unknown` and the line that `containerd --version` prints; shows `1.7.24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 1 or 2: the schemas differ.
    pub major: u64,
    /// 3 in 2.3.
    pub minor: u64,
    /// Patch level.
    pub patch: u64,
}

/// A runtime option with its TOML type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML integer.
    Integer(i64),
    /// A TOML string.
    String(String),
}

/// A handler as it should be declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// The key under `containerd.runtimes`, and `RuntimeClass.handler`.
    pub name: String,
    /// Name of the runtime, or the absolute path of the shim, which works on every release from 1.6 without a `PATH`.
    pub runtime_type: String,
    /// What stands under `options`; the table is left out where this is empty.
    pub options: BTreeMap<String, Value>,
}

impl Handler {
    /// The one that every containerd declares since 1.4.
    #[must_use]
    pub fn runc() -> Self {
        Self {
            name: "runc".to_owned(),
            runtime_type: "io.containerd.runc.v2".to_owned(),
            options: BTreeMap::new(),
        }
    }
}

/// A handler as a file or a dump declares it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeclaredHandler {
    /// `runtime_type`; empty where there is none.
    pub runtime_type: String,
    /// The options whose type is one of [`Value`]'s.
    pub options: BTreeMap<String, Value>,
    /// Whether it says anything beside `runtime_type` and those options.
    pub more: bool,
    /// Whether Farrier's comment stands above its table.
    pub marked: bool,
}

impl DeclaredHandler {
    /// The same declaration to be written out: containerd's zero values, which a dump prints and a file needn't, are left out.
    #[must_use]
    pub fn to_handler(&self, name: &str) -> Handler {
        let set = |value: &Value| match value {
            Value::Boolean(value) => *value,
            Value::Integer(value) => *value != 0,
            Value::String(value) => !value.is_empty(),
        };
        Handler {
            name: name.to_owned(),
            runtime_type: self.runtime_type.clone(),
            options: self
                .options
                .iter()
                .filter(|(_, value)| set(value))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        }
    }

    /// Whether this says exactly what `handler` does.
    fn is(&self, handler: &Handler) -> bool {
        !self.more && self.runtime_type == handler.runtime_type && self.options == handler.options
    }
}

/// A configuration file as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Absolute path on the host.
    pub path: String,
    /// What it holds; `None` where it is absent.
    pub text: Option<String>,
}

/// All the configuration that a daemon loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The file that the daemon was given, or its default.
    pub root: SourceFile,
    /// The files that it imports, directly or not, in the order in which they are loaded, each once.
    pub imported: Vec<SourceFile>,
}

impl Loaded {
    /// All of its files, the root first.
    pub fn files(&self) -> impl Iterator<Item = &SourceFile> {
        std::iter::once(&self.root).chain(&self.imported)
    }
}

/// The table under `plugins` that holds the CRI's runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PluginId {
    /// `cri`, in files of version 1.
    Cri,
    /// `io.containerd.grpc.v1.cri`, from version 2 on.
    GrpcV1Cri,
    /// `io.containerd.cri.v1.runtime`, from version 3 on.
    CriV1Runtime,
}

/// Which file handlers are declared in, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Absolute path of the file to edit or to create.
    pub path: String,
    /// The table under `plugins` that the daemon reads runtimes from.
    pub plugin: PluginId,
    /// The file's `version`, or the one that it needs where it has none; `None` where it must not get one.
    pub version: Option<i64>,
    /// Whether the file is Farrier's own in a folder that the root imports. The folder may be absent.
    pub drop_in: bool,
    /// Whether containerd's default runtime would vanish beside the first handler: [`edit`] then needs its declaration.
    pub spell_out_runc: bool,
    /// Handlers that other loaded files declare.
    pub elsewhere: BTreeSet<String>,
}

/// Why a configuration can't be read, must not be edited, or changed more than it should.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No release can be read from the text.
    #[error("{found:?} names no containerd release; expected a version such as 1.7.24")]
    Release {
        /// What was read, shortened.
        found: String,
    },
    /// The file isn't TOML that both containerd and Farrier can read.
    #[error("{path} can't be parsed: {reason}; correct the file")]
    Syntax {
        /// The file.
        path: String,
        /// Line, column and what the parser says; no text of the file, which may hold passwords.
        reason: String,
    },
    /// The file is longer than [`TEXT_LIMIT`].
    #[error(
        "{path} is longer than {TEXT_LIMIT} bytes, which no containerd configuration is; shorten the file"
    )]
    Long {
        /// The file.
        path: String,
    },
    /// What containerd prints is longer than [`DUMP_LIMIT`].
    #[error(
        "containerd prints more than {DUMP_LIMIT} bytes of its configuration; shorten the files that it loads"
    )]
    LongDump,
    /// A byte order mark, which containerd 2 refuses.
    #[error(
        "{path} begins with a byte order mark, which this containerd refuses; save the file without it"
    )]
    ByteOrderMark {
        /// The file.
        path: String,
    },
    /// Something other than a table, a string or a number stands where containerd wants that.
    #[error("{key} in {path} is not {expected}; correct the file")]
    Shape {
        /// The file.
        path: String,
        /// The key, with dots.
        key: String,
        /// What it should be, with an article.
        expected: &'static str,
    },
    /// A key whose letters differ in case from the one that containerd documents; releases differ in whether they see it.
    #[error(
        "{key} in {path} is spelled in other letter case than containerd documents; write it in lower case"
    )]
    LetterCase {
        /// The file.
        path: String,
        /// The key as it stands.
        key: String,
    },
    /// The daemon does not load this `version`.
    #[error(
        "containerd {containerd} does not load version = {found} of {path}; correct the file or upgrade containerd"
    )]
    Schema {
        /// The file.
        path: String,
        /// Its `version`.
        found: i64,
        /// The daemon's release.
        containerd: Version,
    },
    /// The daemon ignores the runtimes of a file without `version = 2`.
    #[error(
        "containerd {containerd} ignores the CRI settings of {path}, whose schema is version 1; migrate the file to version 2 or 3"
    )]
    Dead {
        /// The file.
        path: String,
        /// The daemon's release.
        containerd: Version,
    },
    /// An imported file of another version than the root: part of the configuration is silently lost.
    #[error(
        "{path} is of version {found} but imported by a file of version {root}, which loses settings on containerd {containerd}; give both one version"
    )]
    Mixed {
        /// The imported file.
        path: String,
        /// Its `version`.
        found: i64,
        /// The root's `version`.
        root: i64,
        /// The daemon's release.
        containerd: Version,
    },
    /// An imported file is absent.
    #[error("{path} is imported but absent; create it or remove it from imports")]
    ImportAbsent {
        /// The imported file.
        path: String,
    },
    /// The CRI plugin is switched off.
    #[error("{path} disables containerd's CRI plugin; remove it from disabled_plugins")]
    Disabled {
        /// The file.
        path: String,
    },
    /// A name or key that must not be written.
    #[error(
        "{found:?} can't be the name of a handler or an option, because it is empty, reserved, or not printable; choose another"
    )]
    Name {
        /// The name.
        found: String,
    },
    /// A wanted handler appears twice in one request.
    #[error("handler {handler} is wanted twice; name each handler once")]
    Twice {
        /// The handler.
        handler: String,
    },
    /// Somebody else declares a handler of the name.
    #[error(
        "handler {handler} is declared in {path} and is not Farrier's; remove it there or use another name"
    )]
    Foreign {
        /// The handler.
        handler: String,
        /// The file to be edited.
        path: String,
    },
    /// The default runtime would vanish and nobody says what it was.
    #[error(
        "the first handler in {path} would hide containerd's default runtime, and no former runc is known; declare runc in the file"
    )]
    NoRunc {
        /// The file.
        path: String,
    },
    /// The file is written in a way that can't be edited safely.
    #[error(
        "{path} can't be edited safely: {reason}; declare the runtimes as [tables] of their own"
    )]
    Unfit {
        /// The file.
        path: String,
        /// What is in the way.
        reason: &'static str,
    },
    /// The candidate changes more than it should.
    #[error(
        "the candidate changes {key}, which is not Farrier's; keep the CRI's settings in one file and one version"
    )]
    Changed {
        /// The key in the dump, with dots.
        key: String,
    },
    /// The daemon would not see a handler.
    #[error(
        "containerd would not see handler {handler} as it is declared; look for a second CRI section in the loaded files"
    )]
    Unseen {
        /// The handler.
        handler: String,
    },
    /// A setting on which containerd, or its CRI, does not come up.
    #[error(
        "containerd would not start its CRI: {key} is not {expected}; correct the configuration"
    )]
    Unstartable {
        /// The key in the dump, with dots.
        key: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The default runtime is not among the runtimes: the CRI would not start.
    #[error(
        "default_runtime_name {name:?} is no runtime of the configuration; declare it or change the default"
    )]
    NoDefault {
        /// The default's name.
        name: String,
    },
}
