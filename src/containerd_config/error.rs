//! Why a configuration can't be read, must not be edited, or would not be loaded as intended.

use super::schema::{InvalidVersion, Version};
use super::types::{DUMP_LIMIT, TEXT_LIMIT};

/// Why a configuration can't be read, must not be edited, or changed more than it should.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A text has no release of containerd.
    #[error(transparent)]
    Version(#[from] InvalidVersion),
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
    SchemaIgnored {
        /// The file.
        path: String,
        /// The daemon's release.
        containerd: Version,
    },
    /// An imported file of another version than the root: part of the configuration is silently lost.
    #[error(
        "{path} is of version {found} but imported by a file of version {root}, which loses settings on containerd {containerd}; give both one version"
    )]
    MixedVersions {
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
    Duplicate {
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
    NotEditable {
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
    HandlerNotVisible {
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
