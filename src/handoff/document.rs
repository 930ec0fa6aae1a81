//! The common parts of all documents: version, JSON text and errors.

use std::borrow::Cow;

use serde::Serialize;

/// The version of all documents. Fields are added over time, and never renamed or removed.
pub const API_VERSION: &str = "farrier.dev/v1";

/// A document of Farrier as JSON on one line.
///
/// # Panics
/// When a type has no form in JSON, such as a map whose keys are not strings. An empty text instead could pass for an undo log that undoes
/// nothing.
#[must_use]
pub fn to_json(document: &impl Serialize) -> String {
    serde_json::to_string(document)
        .expect("every key is a string and every value has a form in JSON")
}

/// A document of Farrier as indented JSON, with a line feed at its end.
///
/// # Panics
/// As [`to_json`].
#[must_use]
pub fn to_indented_json(document: &impl Serialize) -> String {
    serde_json::to_string_pretty(document)
        .expect("every key is a string and every value has a form in JSON")
        + "\n"
}

/// The reason why a document can't be used.
///
/// [`Error::help`] says how to correct the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The document is not JSON, or has fields of other types.
    #[error("failed to read the document: {source}")]
    Json {
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// The document has another version than [`API_VERSION`].
    #[error("failed to read the document: its apiVersion is {found:?} and not {API_VERSION:?}")]
    Version {
        /// The document's version.
        found: String,
    },
    /// A name can't be part of a path.
    #[error("invalid name {found:?} of a shim, handler or binary")]
    Name {
        /// The name.
        found: String,
    },
    /// A Shim is to be kept and has more than its name, or is to be installed and lacks its handlers or its location.
    #[error("invalid request for shim {shim}: it is neither complete nor to be kept by its name")]
    Contents {
        /// The name of the Shim.
        shim: String,
    },
    /// A name is requested twice.
    #[error("{name:?} is requested twice")]
    Duplicate {
        /// The name.
        name: String,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::Json { .. } => {
                "correct the document, or run the same release of farrier in the cluster and on the node"
            }
            Self::Version { .. } | Self::Contents { .. } => {
                "run the same release of farrier in the cluster and on the node"
            }
            Self::Name { .. } => {
                "use letters, digits, '-', '_' and '.', and begin with another character than '.'"
            }
            Self::Duplicate { .. } => "name each shim and each handler once",
        }))
    }
}
