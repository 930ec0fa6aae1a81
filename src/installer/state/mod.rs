//! What Farrier owns on a host, as the state file says: handlers, their binaries and owners, the configuration file, folders.
//! Pure: text in, text out. Where things stand on every host is said here too.

pub mod validate;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::handoff::{self, API_VERSION, OptionValue, Owner, Sha256Digest};

/// The folder of all that Farrier remembers on a host.
pub const STATE_DIRECTORY: &str = "/var/lib/farrier";
/// What Farrier owns on this host.
pub const STATE_FILE: &str = "/var/lib/farrier/state.json";
/// The undo log of a change under way.
pub const JOURNAL_FILE: &str = "/var/lib/farrier/journal.json";
/// Where binaries stand, unless the distribution's row of the table has another place.
pub const INSTALL_DIRECTORY: &str = "/opt/farrier";

/// A state file names at most some hundred handlers; one that is larger was not written by us.
pub const STATE_LIMIT: u64 = 4 << 20;

/// The state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// The handlers that are declared to containerd because of us, by name.
    #[serde(default)]
    pub handlers: BTreeMap<String, OwnedHandler>,
    /// Handlers that are declared no more and whose binary stays: pods took them up while they left, and can't end without it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", rename = "late")]
    pub draining: BTreeMap<String, OwnedHandler>,
    /// The folder of the binaries: it stays what it was when the first one came.
    #[serde(default = "default_directory", rename = "folder")]
    pub directory: String,
    /// The configuration file that declares them.
    #[serde(default)]
    pub config: Option<OwnedConfig>,
    /// Folders that we made, outermost first.
    #[serde(default, rename = "folders")]
    pub directories: Vec<String>,
    /// SHA-256 of the last request of each owner that was carried out.
    #[serde(default, deserialize_with = "known_digests")]
    pub requests: BTreeMap<String, Sha256Digest>,
}

/// A handler of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnedHandler {
    /// The Shim that it belongs to, or belonged to when it is reserved.
    pub shim: String,
    /// Whose set it is in.
    pub owner: Owner,
    /// The path that containerd executes, where that is not the stable one: a handler that was taken over keeps its path until it
    /// changes.
    #[serde(default)]
    pub path: Option<String>,
    /// Its binary.
    #[serde(flatten)]
    pub binary: Binary,
    /// Options as they are declared.
    #[serde(default)]
    pub options: BTreeMap<String, OptionValue>,
}

/// The binary of a handler of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BinaryRecord", into = "BinaryRecord")]
pub enum Binary {
    /// None: the handler is declared for a Shim that this host does not carry.
    Reserved,
    /// It stands in the store, or where the former owner of the handler put it.
    Installed {
        /// SHA-256 of its bytes.
        sha256: Sha256Digest,
        /// Where the artifact came from; empty for a binary that was found on the host.
        location: String,
        /// SHA-256 that the artifact was asked for with.
        artifact_sha256: Option<Sha256Digest>,
    },
}

impl OwnedHandler {
    /// SHA-256 of its binary; `None` where the handler is reserved.
    #[must_use]
    pub fn sha256(&self) -> Option<Sha256Digest> {
        match self.binary {
            Binary::Reserved => None,
            Binary::Installed { sha256, .. } => Some(sha256),
        }
    }

    /// Whether it has no binary.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.binary == Binary::Reserved
    }
}

/// [`Binary`] as files have it: without `sha256` the handler is reserved.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BinaryRecord {
    #[serde(default)]
    sha256: Option<Sha256Digest>,
    #[serde(default)]
    location: String,
    #[serde(default, deserialize_with = "Sha256Digest::lenient")]
    artifact_sha256: Option<Sha256Digest>,
}

impl From<BinaryRecord> for Binary {
    fn from(record: BinaryRecord) -> Self {
        match record.sha256 {
            None => Self::Reserved,
            Some(sha256) => Self::Installed {
                sha256,
                location: record.location,
                artifact_sha256: record.artifact_sha256,
            },
        }
    }
}

impl From<Binary> for BinaryRecord {
    fn from(binary: Binary) -> Self {
        let (sha256, location, artifact_sha256) = match binary {
            Binary::Reserved => (None, String::new(), None),
            Binary::Installed {
                sha256,
                location,
                artifact_sha256,
            } => (Some(sha256), location, artifact_sha256),
        };
        Self {
            sha256,
            location,
            artifact_sha256,
        }
    }
}

/// The state file once a change is done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StateAfter {
    /// It has this content.
    Write(Box<State>),
    /// It is removed: nothing is ours any more.
    Remove,
    /// It stays as it is.
    #[default]
    Keep,
}

/// The configuration file that holds our handlers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnedConfig {
    /// Absolute path on the host.
    pub path: String,
    /// SHA-256 of what we wrote.
    #[serde(
        deserialize_with = "Sha256Digest::lenient",
        serialize_with = "Sha256Digest::or_empty"
    )]
    pub sha256: Option<Sha256Digest>,
    /// The root configuration that containerd was given then; a run to which nobody and nothing names one goes by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            handlers: BTreeMap::new(),
            draining: BTreeMap::new(),
            directory: default_directory(),
            config: None,
            directories: Vec::new(),
            requests: BTreeMap::new(),
        }
    }
}

/// Why a state file or journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not of this shape.
    #[error("{path} on the host can't be read: {source}")]
    Json {
        /// Path on the host.
        path: &'static str,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// A newer Farrier wrote it.
    #[error("{path} on the host has apiVersion {found:?}, this release reads only {API_VERSION:?}")]
    Version {
        /// Path on the host.
        path: &'static str,
        /// What it says.
        found: String,
    },
    /// It names what was never ours.
    #[error("{path} on the host names {found:?}, where nothing of Farrier stands")]
    UnexpectedPath {
        /// Path on the host.
        path: &'static str,
        /// What it names.
        found: String,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Json { .. } => {
                Cow::Borrowed("restore it from a backup, or remove it and what it names by hand")
            }
            Self::Version { .. } => Cow::Borrowed("use the release that wrote it"),
            Self::UnexpectedPath { .. } => Cow::Borrowed(
                "restore it from a backup, or remove it and what is Farrier's by hand",
            ),
        })
    }
}

impl State {
    /// The file's text.
    #[must_use]
    pub fn to_json(&self) -> String {
        handoff::to_indented_json(self)
    }

    /// Whether nothing on the host is ours.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.handlers.is_empty() && self.draining.is_empty()
    }
}

/// The requests of a state file. A text that is not a digest is the digest of no request.
fn known_digests<'de, D: Deserializer<'de>>(
    field: D,
) -> Result<BTreeMap<String, Sha256Digest>, D::Error> {
    let requests = BTreeMap::<String, String>::deserialize(field)?.into_iter();
    Ok(requests
        .filter_map(|(owner, digest)| Some((owner, digest.parse().ok()?)))
        .collect())
}

/// Where binaries stood before the table had more than one place.
pub(crate) fn default_directory() -> String {
    INSTALL_DIRECTORY.to_owned()
}

/// Where binaries stand on a host: under the SHA-256 of their bytes in the store, and behind stable paths that link there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallPaths {
    /// The folder of both, absolute on the host.
    pub directory: String,
}

impl InstallPaths {
    /// Binaries under the SHA-256 of their bytes.
    #[must_use]
    pub fn store(&self) -> String {
        format!("{}/store", self.directory)
    }

    /// The paths that containerd executes: links into the store, which a change of the binary alone swaps.
    #[must_use]
    pub fn bin(&self) -> String {
        format!("{}/bin", self.directory)
    }

    /// The stable path of `handler`.
    #[must_use]
    pub fn binary_path(&self, handler: &str) -> String {
        format!("{}/bin/containerd-shim-{handler}", self.directory)
    }

    /// The handler that the file name of a stable path is for.
    #[must_use]
    pub fn handler_of(name: &str) -> Option<&str> {
        name.strip_prefix("containerd-shim-")
    }

    /// The path that containerd executes for a handler of ours.
    #[must_use]
    pub fn declared_path(&self, handler: &str, owned: &OwnedHandler) -> String {
        let path = owned.path.clone();
        path.unwrap_or_else(|| self.binary_path(handler))
    }

    /// The file of the store with this name: the SHA-256 of its bytes.
    #[must_use]
    pub fn store_path(&self, name: impl fmt::Display) -> String {
        format!("{}/store/{name}", self.directory)
    }
}

/// What the link at [`InstallPaths::binary_path`] holds: relative, so that it is right under any host root.
#[must_use]
pub fn symlink_target(sha256: Sha256Digest) -> String {
    format!("../store/{sha256}")
}

/// The SHA-256 that a link made by [`symlink_target`] names.
#[must_use]
pub fn target_digest(target: &str) -> Option<Sha256Digest> {
    stored_digest(target.strip_prefix("../store/")?)
}

/// The SHA-256 in the name of a file of the store. Names are compared in lower case: [`InstallPaths::store_path`] leads to no other file.
#[must_use]
pub fn stored_digest(name: &str) -> Option<Sha256Digest> {
    let digest: Sha256Digest = name.parse().ok()?;
    (digest.to_string() == name).then_some(digest)
}

/// The word of an owner in [`State::requests`] and in what people read.
#[must_use]
pub fn owner_word(owner: Owner) -> &'static str {
    match owner {
        Owner::Cluster => "cluster",
        Owner::Local => "local",
        Owner::Kwasm => "kwasm",
        Owner::Rcm => "rcm",
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::reserved(
        Binary::Reserved,
        r#""sha256":null,"location":"","artifactSha256":null"#
    )]
    #[case::installed(
        Binary::Installed {
            sha256: Sha256Digest::from_bytes([0xaa; 32]),
            location: "2".to_owned(),
            artifact_sha256: Some(Sha256Digest::from_bytes([0xbb; 32])),
        },
        &format!(
            r#""sha256":"{}","location":"2","artifactSha256":"{}""#,
            "a".repeat(64),
            "b".repeat(64),
        )
    )]
    fn a_handler_in_a_state_file_has_its_binary_beside_the_other_fields(
        #[case] binary: Binary,
        #[case] fields: &str,
    ) {
        let text = format!(
            r#"{{"shim":"a","owner":"local","path":null,{fields},"options":{{"b":true}}}}"#
        );
        let handler: OwnedHandler = serde_json::from_str(&text).unwrap();
        assert_eq!(handler.binary, binary);
        assert_eq!(serde_json::to_string(&handler).unwrap(), text);
    }

    #[test]
    fn a_handler_of_an_early_release_has_only_its_shim_and_its_owner() {
        let digest = Sha256Digest::of(b"a");
        let text = format!(r#"{{"shim":"a","owner":"local","sha256":"{digest}"}}"#);
        let handler: OwnedHandler = serde_json::from_str(&text).unwrap();
        assert_eq!(handler.sha256(), Some(digest));
    }

    #[test]
    fn a_file_of_the_store_is_named_in_lower_case() {
        let digest = Sha256Digest::of(b"a");
        assert_eq!(target_digest(&symlink_target(digest)), Some(digest));
        let name = digest.to_string().to_uppercase();
        assert_eq!(stored_digest(&name), None);
        assert_eq!(target_digest(&format!("../store/{name}")), None);
    }

    #[test]
    fn an_absent_state_file_is_empty_and_an_invalid_one_is_an_error() {
        assert!(State::from_json(None).unwrap().is_empty());
        assert!(State::from_json(Some("")).is_err());
        let newer = State::default().to_json().replace("/v1", "/v2");
        assert!(matches!(
            State::from_json(Some(&newer)),
            Err(Error::Version { .. })
        ));
        assert_eq!(
            State::from_json(Some(&State::default().to_json())).unwrap(),
            State::default()
        );
    }
}
