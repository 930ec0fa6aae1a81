//! What the functions here take and return: handlers, files, and the file that handlers are declared in.

use std::collections::{BTreeMap, BTreeSet};

use toml::Value;

use super::schema::PluginId;

/// The longest file that is read, in bytes. `containerd config dump` prints 20 KiB, and a file may come from an attacker.
pub const TEXT_LIMIT: usize = 1 << 20;

/// The longest output of `containerd config dump` that is read, in bytes: room for several files of [`TEXT_LIMIT`] and the defaults.
pub const DUMP_LIMIT: usize = 4 << 20;

/// The name of containerd's own default runtime. Farrier declares it only where it would vanish, and never under another binary.
pub(super) const RUNC: &str = "runc";

/// A handler to declare.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use farrier::containerd_config::{Handler, Value};
///
/// let handler = Handler {
///     name: "spin".to_owned(),
///     runtime_type: "/opt/farrier/bin/containerd-shim-spin-v2".to_owned(),
///     options: BTreeMap::from([("SystemdCgroup".to_owned(), Value::Boolean(true))]),
/// };
/// assert_ne!(handler, Handler::runc());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Handler {
    /// The key under `containerd.runtimes`, and `RuntimeClass.handler`.
    pub name: String,
    /// Name of the runtime, or the absolute path of the shim. containerd executes an absolute path from release 1.6 on, whatever `PATH` is.
    pub runtime_type: String,
    /// The keys and values of the table `options`. No table is written for an empty map.
    pub options: BTreeMap<String, Value>,
}

impl Handler {
    /// The default runtime as every containerd since 1.4 declares it.
    #[must_use]
    pub fn runc() -> Self {
        Self {
            name: RUNC.to_owned(),
            runtime_type: "io.containerd.runc.v2".to_owned(),
            options: BTreeMap::new(),
        }
    }
}

/// A handler as a file or a dump declares it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeclaredHandler {
    /// `runtime_type`; empty where the key is missing.
    pub runtime_type: String,
    /// The keys and values of the table `options`.
    pub options: BTreeMap<String, Value>,
    /// Path of the shim in place of the one that `runtime_type` names; usually empty.
    pub runtime_path: String,
    /// Whether the table has keys other than `runtime_type` and `options`.
    pub has_other_settings: bool,
    /// Whether Farrier's comment is above its table.
    pub marked: bool,
}

impl DeclaredHandler {
    /// The handler to declare so that containerd shows this declaration: without zero values, which a dump prints and a file may omit.
    ///
    /// ```
    /// use farrier::containerd_config::{Handler, runtimes_of_dump};
    ///
    /// let dump = r#"
    /// version = 2
    /// [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    /// runtime_type = "io.containerd.runc.v2"
    /// options = { BinaryName = "", SystemdCgroup = false }
    /// "#;
    /// let (_, declared) = runtimes_of_dump(dump)?;
    /// assert_eq!(declared["runc"].to_handler("runc"), Handler::runc());
    /// # Ok::<(), farrier::containerd_config::Error>(())
    /// ```
    #[must_use]
    pub fn to_handler(&self, name: &str) -> Handler {
        Handler {
            name: name.to_owned(),
            runtime_type: self.runtime_type.clone(),
            options: self
                .options
                .iter()
                .filter(|(_, value)| !is_zero(value))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        }
    }

    /// Whether this declares `handler` and nothing else.
    pub(super) fn declares(&self, handler: &Handler) -> bool {
        !self.has_other_settings
            && self.runtime_type == handler.runtime_type
            && self.options == handler.options
    }
}

/// Whether Go takes the value for an absent one.
pub(super) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Boolean(value) => !value,
        Value::Integer(value) => *value == 0,
        Value::Float(value) => *value == 0.0,
        Value::String(value) => value.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Table(table) => table.is_empty(),
        Value::Datetime(_) => false,
    }
}

/// A configuration file and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Absolute path on the host.
    pub path: String,
    /// Its text; `None` where the file is absent.
    pub text: Option<String>,
}

/// All files that a containerd loads.
///
/// ```
/// use farrier::containerd_config::{ConfigFiles, SourceFile};
///
/// let files = ConfigFiles {
///     root: SourceFile {
///         path: "/etc/containerd/config.toml".to_owned(),
///         text: Some("version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n".to_owned()),
///     },
///     imported: vec![SourceFile {
///         path: "/etc/containerd/conf.d/debug.toml".to_owned(),
///         text: Some("version = 2\n[debug]\nlevel = 'debug'\n".to_owned()),
///     }],
/// };
/// assert_eq!(files.files().count(), 2);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFiles {
    /// The file named by `containerd --config`, or the default file.
    pub root: SourceFile,
    /// The files that the root imports, directly or not, in the order in which containerd loads them, each once.
    pub imported: Vec<SourceFile>,
}

impl ConfigFiles {
    /// All files, the root first.
    pub fn files(&self) -> impl Iterator<Item = &SourceFile> {
        std::iter::once(&self.root).chain(&self.imported)
    }
}

/// The file and the table that handlers are declared in, as [`config_target`](super::config_target) chooses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigTarget {
    /// Absolute path of the file to edit or to create.
    pub path: String,
    /// The plugin whose table of runtimes containerd reads.
    pub plugin: PluginId,
    /// The file's `version`, or the version to write where the file has none; `None` where the file must stay without one.
    pub version: Option<i64>,
    /// Whether the file is Farrier's own, in a directory that the root imports. The directory may be absent.
    pub drop_in: bool,
    /// Whether the first handler in the file would hide containerd's default runtime. [`edit`](super::edit()) then needs the declaration of
    /// `runc`.
    pub must_declare_runc: bool,
    /// Whether others declared the file's `runc`, whatever comment is above it. [`config_target`](super::config_target) can't know that, and
    /// takes a `runc` exactly as Farrier writes it, below Farrier's comment, for Farrier's.
    pub runc_is_foreign: bool,
    /// Handlers that other loaded files declare.
    pub declared_in_other_files: BTreeSet<String>,
}
