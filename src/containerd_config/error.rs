//! Why a configuration can't be read, must not be edited, or would not be loaded as intended.

use std::borrow::Cow;

use super::schema::{InvalidVersion, Version};
use super::types::{DUMP_LIMIT, TEXT_LIMIT};

/// The reason why a configuration can't be read, must not be edited, or would not be loaded as intended.
///
/// The message names the file and the cause, and never a value of the file, which may be a password. [`Error::help`] says how to correct
/// the cause.
///
/// ```
/// use farrier::containerd_config::imports;
///
/// let error = imports("imports = 1").unwrap_err();
/// assert_eq!(error.to_string(), "imports in the file is not an array of strings");
/// assert_eq!(error.help().as_deref(), Some("correct the key"));
/// ```
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A text has no release of containerd.
    #[error(transparent)]
    Version(#[from] InvalidVersion),
    /// The file is not TOML, or no TOML that containerd and Farrier read alike.
    #[error("failed to parse {path}: {reason}")]
    Syntax {
        /// The file.
        path: String,
        /// Line, column and the parser's message, without text of the file.
        reason: String,
    },
    /// The file is longer than [`TEXT_LIMIT`].
    #[error("failed to read {path}: the file is longer than {TEXT_LIMIT} bytes")]
    Long {
        /// The file.
        path: String,
    },
    /// The output of `containerd config dump` is longer than [`DUMP_LIMIT`].
    #[error(
        "failed to read the configuration that containerd prints: it is longer than {DUMP_LIMIT} bytes"
    )]
    LongDump,
    /// The file begins with a byte order mark, which containerd 2 refuses.
    #[error("failed to read {path}: containerd 2 refuses the byte order mark at its start")]
    ByteOrderMark {
        /// The file.
        path: String,
    },
    /// A key has a value of a type that containerd refuses there.
    #[error("{key} in {path} is not {expected}")]
    Shape {
        /// The file.
        path: String,
        /// The key, with dots.
        key: String,
        /// The type that containerd expects, with an article.
        expected: &'static str,
    },
    /// A key differs in letter case from the key that containerd documents. Some releases read such a key, others ignore it.
    #[error("{key} in {path} differs in letter case from the key that containerd documents")]
    LetterCase {
        /// The file.
        path: String,
        /// The key in the file.
        key: String,
    },
    /// The release of containerd does not load the file's `version`.
    #[error("containerd {containerd} does not load version = {found} of {path}")]
    Schema {
        /// The file.
        path: String,
        /// Its `version`.
        found: i64,
        /// The release.
        containerd: Version,
    },
    /// The release of containerd ignores the CRI settings of a file without `version = 2`.
    #[error("containerd {containerd} ignores the CRI settings of {path}: its schema is version 1")]
    SchemaIgnored {
        /// The file.
        path: String,
        /// The release.
        containerd: Version,
    },
    /// An imported file has another `version` than the root. containerd drops a part of the configuration without a message.
    #[error(
        "containerd {containerd} loses settings: {path} has version {found} and is imported by a file of version {root}"
    )]
    MixedVersions {
        /// The imported file.
        path: String,
        /// Its `version`.
        found: i64,
        /// The root's `version`.
        root: i64,
        /// The release.
        containerd: Version,
    },
    /// An imported file does not exist.
    #[error("{path} is imported and does not exist")]
    ImportAbsent {
        /// The imported file.
        path: String,
    },
    /// The CRI plugin is disabled.
    #[error("{path} disables containerd's CRI plugin")]
    Disabled {
        /// The file.
        path: String,
    },
    /// The name of a handler or the key of an option must not be written.
    #[error(
        "invalid name {found:?} of a handler or an option: it is empty, reserved or not printable"
    )]
    Name {
        /// The name.
        found: String,
    },
    /// A handler is requested twice.
    #[error("handler {handler} is requested twice")]
    Duplicate {
        /// The handler.
        handler: String,
    },
    /// A handler of the name is declared and is not managed by Farrier.
    #[error("handler {handler} is declared in {path} and not managed by Farrier")]
    Foreign {
        /// The handler.
        handler: String,
        /// The file to edit.
        path: String,
    },
    /// The first handler would hide the default runtime, whose declaration is unknown.
    #[error(
        "failed to add a handler to {path}: it would hide containerd's default runtime, and no earlier declaration of runc is known"
    )]
    NoRunc {
        /// The file.
        path: String,
    },
    /// The file has a notation that can't be edited safely.
    #[error("failed to edit {path}: {reason}")]
    NotEditable {
        /// The file.
        path: String,
        /// The obstacle.
        reason: &'static str,
    },
    /// A template action among the lines of a handler has an effect on other lines, too.
    #[error("failed to remove handler {handler} from {path}: a template action is among its lines")]
    ActionInHandler {
        /// The template.
        path: String,
        /// The handler.
        handler: String,
    },
    /// A distribution reads a file with another `version` only.
    #[error("{path} has {found}, and the distribution reads version = {expected} alone")]
    SnippetVersion {
        /// The file.
        path: String,
        /// Its `version`, such as `version = 2` or `no version`.
        found: String,
        /// The `version` that the distribution reads.
        expected: i64,
    },
    /// The new configuration changes a setting that Farrier does not manage.
    #[error("the new configuration changes {key}, which Farrier does not manage")]
    Changed {
        /// The key in the dump, with dots.
        key: String,
    },
    /// containerd would not load a handler as it is declared.
    #[error("containerd would not load handler {handler} as it is declared")]
    HandlerNotVisible {
        /// The handler.
        handler: String,
    },
    /// With this setting containerd, or its CRI plugin, does not start.
    #[error("containerd would not start its CRI plugin: {key} is not {expected}")]
    Unstartable {
        /// The key in the dump, with dots.
        key: String,
        /// A value with which containerd starts.
        expected: &'static str,
    },
    /// The default runtime is not declared. The CRI plugin would not start.
    #[error(
        "containerd would not start its CRI plugin: default_runtime_name {name:?} is not a declared runtime"
    )]
    NoDefault {
        /// The default runtime's name.
        name: String,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        let help = match self {
            Self::ActionInHandler { path, handler } => {
                return Some(Cow::Owned(format!(
                    "remove the action from the lines of handler {handler} in {path}"
                )));
            }
            Self::SnippetVersion { .. } => "migrate the file to that version, or remove it",
            Self::Version(_) => return None,
            Self::Syntax { .. } => "correct the file",
            Self::Long { .. } => "shorten the file",
            Self::LongDump => "shorten the files that containerd loads",
            Self::ByteOrderMark { .. } => "save the file without a byte order mark",
            Self::Shape { .. } => "correct the key",
            Self::LetterCase { .. } => "write the key in lower case",
            Self::Schema { .. } => "correct the file or upgrade containerd",
            Self::SchemaIgnored { .. } => "migrate the file to version 2 or 3",
            Self::MixedVersions { .. } => "give both files one version",
            Self::ImportAbsent { .. } => "create the file or remove it from imports",
            Self::Disabled { .. } => "remove the plugin from disabled_plugins",
            Self::Name { .. } => "choose another name",
            Self::Duplicate { .. } => "name each handler once",
            Self::Foreign { .. } => "remove the handler from the file or choose another name",
            Self::NoRunc { .. } => "declare runc in the file",
            Self::NotEditable { .. } => "declare each runtime under a [table] of its own",
            Self::Changed { .. } => "keep the CRI's settings in one file and one version",
            Self::HandlerNotVisible { .. } => {
                "look for a second CRI section in the files that containerd loads"
            }
            Self::Unstartable { .. } => "correct the setting",
            Self::NoDefault { .. } => "declare the runtime or change default_runtime_name",
        };
        Some(Cow::Borrowed(help))
    }
}
