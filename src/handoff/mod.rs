//! All that crosses from the cluster to a node and back: what a node should carry, and what came of it. Versioned JSON.
//!
//! Pure. The controller writes a [`ProvisionRequest`] into its Job and reads a [`ProvisionReport`] from the Job's pod; the
//! installer does the reverse; `fetch` leaves a [`FetchResult`] per Shim between them. None of them sees the other's types.

mod report;
mod request;

use serde::{Deserialize, Serialize};

/// How digests are written in the documents here.
pub use crate::names::{hex, sha256_hex};

/// The one version of the documents here. Fields are added over time, never renamed or removed.
pub const API_VERSION: &str = "farrier.dev/v1";

pub use report::{
    FileAction, FileReport, HandlerReport, Outcome, ProvisionReport, TERMINATION_MESSAGE_LIMIT,
    elide,
};
pub use request::{OptionValue, Owner, ProvisionRequest, ShimRequest, is_sha256};

/// What `farrier fetch` leaves for one Shim in the hand-off folder, as `<shim>.json`; the binary is `<shim>.bin` beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchResult {
    /// Name of the Shim.
    pub shim: String,
    /// SHA-256 of the binary in `<shim>.bin`; absent where nothing was fetched.
    pub binary_sha256: Option<String>,
    /// Why it failed: one sentence.
    pub reason: Option<String>,
    /// Nothing was fetched: the request says that the binary is on the node. Nobody takes that for the binary's being there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub present: bool,
}

/// Why a document can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no JSON, or not of this shape.
    #[error(
        "the document is not a request or report that this release reads: {source}; use one release of farrier throughout"
    )]
    Json {
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// It is of another version.
    #[error(
        "the document has apiVersion {found:?}, this release reads only {API_VERSION:?}; use one release throughout"
    )]
    Version {
        /// What it says.
        found: String,
    },
    /// A name can't be part of a path.
    #[error(
        "{found:?} can't name a shim, handler or binary; use letters, digits, '-', '_' and '.', and no dot first"
    )]
    Name {
        /// The name.
        found: String,
    },
    /// A digest is none.
    #[error("shim {shim} names {found:?} as SHA-256; write 64 hexadecimal digits")]
    Digest {
        /// The Shim.
        shim: String,
        /// What it says.
        found: String,
    },
    /// A name stands twice.
    #[error("{name:?} is asked for twice; name each shim and each handler once")]
    Twice {
        /// The name.
        name: String,
    },
}
