//! The state file of a host, which records everything that Farrier owns there: handlers, their binaries and owners, the configuration file
//! and directories. Also the paths of Farrier's own files. Pure: files are read and written elsewhere.

pub mod validate;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::handoff::{
    self, API_VERSION, OptionValue, Owner, Proof, Sha256Digest, ShimRequest, release_in,
};

/// The directory of Farrier's records on a host.
pub const STATE_DIRECTORY: &str = "/var/lib/farrier";
/// The state file.
pub const STATE_FILE: &str = "/var/lib/farrier/state.json";
/// The journal: the undo log of a change in progress.
pub const JOURNAL_FILE: &str = "/var/lib/farrier/journal.json";
/// The directory of the binaries, unless the distribution's row of the table has another.
pub const INSTALL_DIRECTORY: &str = "/opt/farrier";

/// Size limit in bytes for a state file. Farrier writes far less: at most a few hundred handlers.
pub const STATE_LIMIT: u64 = 4 << 20;

/// The contents of the state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// The handlers that Farrier has declared to containerd, by name.
    #[serde(default)]
    pub handlers: BTreeMap<String, OwnedHandler>,
    /// Handlers that are no longer declared and whose binary remains, because pods started on them while they were removed. containerd
    /// needs the binary to end these pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", rename = "late")]
    pub draining: BTreeMap<String, OwnedHandler>,
    /// The directory of the binaries, which is chosen at the first install and then kept.
    #[serde(default = "default_directory", rename = "folder")]
    pub directory: String,
    /// The configuration file that declares the handlers.
    #[serde(default)]
    pub config: Option<OwnedConfig>,
    /// Directories that Farrier created, outermost first.
    #[serde(default, rename = "folders")]
    pub directories: Vec<String>,
    /// SHA-256 of each owner's last request that was applied.
    #[serde(default, deserialize_with = "known_digests")]
    pub requests: BTreeMap<String, Sha256Digest>,
}

/// A handler that Farrier manages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnedHandler {
    /// The Shim of the handler; for a reserved handler, its former Shim.
    pub shim: String,
    /// The owner whose set contains the handler.
    pub owner: Owner,
    /// The path that containerd executes, if it is not the stable path: a handler that was taken over keeps its path until the handler
    /// changes.
    #[serde(default)]
    pub path: Option<String>,
    /// The handler's binary.
    #[serde(flatten)]
    pub binary: Binary,
    /// The declared options.
    #[serde(default)]
    pub options: BTreeMap<String, OptionValue>,
    /// What was proven of the handler with this binary and these options.
    #[serde(default, skip_serializing_if = "Proof::is_default")]
    pub proof: Proof,
}

/// The binary of a managed handler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BinaryRecord", into = "BinaryRecord")]
pub enum Binary {
    /// No binary: the handler is declared for a Shim that is not installed on this host.
    Reserved,
    /// The binary is in the store, or at the path where the handler's former owner installed it.
    Installed {
        /// SHA-256 of the binary.
        sha256: Sha256Digest,
        /// The artifact's location; empty for a binary that was already on the host.
        location: String,
        /// SHA-256 of the artifact as requested.
        artifact_sha256: Option<Sha256Digest>,
        /// The binary's file name in the artifact, as [`ShimRequest::file_name`] has it; `None` for a binary that was already on the host,
        /// and in the state file of an earlier release.
        file: Option<String>,
    },
}

impl OwnedHandler {
    /// SHA-256 of the binary; `None` for a reserved handler.
    #[must_use]
    pub fn sha256(&self) -> Option<Sha256Digest> {
        match self.binary {
            Binary::Reserved => None,
            Binary::Installed { sha256, .. } => Some(sha256),
        }
    }

    /// The release of the binary, as the location of its artifact names it.
    #[must_use]
    pub fn release(&self) -> Option<String> {
        match &self.binary {
            Binary::Reserved => None,
            Binary::Installed { location, .. } => release_in(location),
        }
    }

    /// Whether the handler has no binary.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.binary == Binary::Reserved
    }

    /// Whether the binary came from exactly the artifact that `shim` requests: its location, its SHA-256 and its file.
    #[must_use]
    pub fn is_from_artifact(&self, shim: &ShimRequest) -> bool {
        match &self.binary {
            Binary::Reserved => false,
            Binary::Installed {
                sha256: _,
                location,
                artifact_sha256,
                file,
            } => {
                let has_file = |file: &String| *file == shim.file_name();
                *location == shim.location
                    && *artifact_sha256 == shim.sha256
                    && file.as_ref().is_none_or(has_file)
            }
        }
    }
}

/// The form of a [`Binary`] in the state file and the journal: without `sha256`, the handler is reserved.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BinaryRecord {
    #[serde(default)]
    sha256: Option<Sha256Digest>,
    #[serde(default)]
    location: String,
    #[serde(default, deserialize_with = "Sha256Digest::lenient")]
    artifact_sha256: Option<Sha256Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

impl From<BinaryRecord> for Binary {
    fn from(record: BinaryRecord) -> Self {
        match record.sha256 {
            None => Self::Reserved,
            Some(sha256) => Self::Installed {
                sha256,
                location: record.location,
                artifact_sha256: record.artifact_sha256,
                file: record.file,
            },
        }
    }
}

impl From<Binary> for BinaryRecord {
    fn from(binary: Binary) -> Self {
        match binary {
            Binary::Reserved => Self {
                sha256: None,
                location: String::new(),
                artifact_sha256: None,
                file: None,
            },
            Binary::Installed {
                sha256,
                location,
                artifact_sha256,
                file,
            } => Self {
                sha256: Some(sha256),
                location,
                artifact_sha256,
                file,
            },
        }
    }
}

/// The change of the state file at the end of a change of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StateAfter {
    /// The file is written with this content.
    Write(Box<State>),
    /// The file is removed: Farrier owns nothing on the host any more.
    Remove,
    /// The file stays as it is.
    #[default]
    Keep,
}

/// The configuration file that declares the managed handlers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnedConfig {
    /// Absolute path on the host.
    pub path: String,
    /// SHA-256 of the contents that Farrier wrote.
    #[serde(
        deserialize_with = "Sha256Digest::lenient",
        serialize_with = "Sha256Digest::or_empty"
    )]
    pub sha256: Option<Sha256Digest>,
    /// The root configuration of containerd at that time. A run uses it if neither an option nor a running containerd names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Whether Farrier declared `runc` in the file, for containerd 1.x; `None` in the state file of an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runc: Option<bool>,
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

/// Why a state file or journal is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not valid JSON, or lacks a field.
    #[error("failed to parse {path} on the host: {source}")]
    Json {
        /// Path on the host.
        path: &'static str,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// A newer release of Farrier wrote the file.
    #[error(
        "{path} on the host has apiVersion {found:?}, but this release reads only {API_VERSION:?}"
    )]
    Version {
        /// Path on the host.
        path: &'static str,
        /// Its API version.
        found: String,
    },
    /// The file contains a path, name or digest that Farrier never writes.
    #[error("{path} on the host contains {found:?}, which Farrier never writes")]
    UnexpectedPath {
        /// Path on the host.
        path: &'static str,
        /// The value.
        found: String,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Version { .. } => Cow::Borrowed("use the release of Farrier that wrote the file"),
            Self::Json { .. } | Self::UnexpectedPath { .. } => Cow::Borrowed(
                "restore the file from a backup, or remove the file and all of Farrier's other files",
            ),
        })
    }
}

impl State {
    /// The state file's text.
    #[must_use]
    pub fn to_json(&self) -> String {
        handoff::to_indented_json(self)
    }

    /// The installed handlers that `owner` keeps when it requests to keep the Shim of `request`: those that it requests for no other Shim.
    pub fn kept_handlers<'a>(
        &'a self,
        owner: Owner,
        request: &'a ShimRequest,
        requested: &'a [ShimRequest],
    ) -> impl Iterator<Item = (&'a String, &'a OwnedHandler)> {
        self.handlers.iter().filter(move |(name, owned)| {
            let mut others = requested.iter();
            owned.shim == request.name
                && owned.owner == owner
                && !owned.is_reserved()
                && !others.any(|other| other.handlers.contains(name))
        })
    }

    /// Whether Farrier owns no handler on the host.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.handlers.is_empty() && self.draining.is_empty()
    }
}

/// Reads the requests of a state file, and skips a text that is not a digest, as no request has it.
fn known_digests<'de, D: Deserializer<'de>>(
    field: D,
) -> Result<BTreeMap<String, Sha256Digest>, D::Error> {
    let requests = BTreeMap::<String, String>::deserialize(field)?.into_iter();
    Ok(requests
        .filter_map(|(owner, digest)| Some((owner, digest.parse().ok()?)))
        .collect())
}

/// The directory of the binaries in state files of releases that had only this one.
pub(crate) fn default_directory() -> String {
    INSTALL_DIRECTORY.to_owned()
}

/// The paths of the binaries on a host: in the store, each binary is named by its SHA-256; the stable paths are symlinks into the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallPaths {
    /// The directory of store and stable paths, absolute on the host.
    pub directory: String,
}

impl InstallPaths {
    /// The store: the directory of the binaries, each named by its SHA-256.
    #[must_use]
    pub fn store(&self) -> String {
        format!("{}/store", self.directory)
    }

    /// The directory of the stable paths, which containerd executes. Only the symlink is swapped when a binary changes.
    #[must_use]
    pub fn bin(&self) -> String {
        format!("{}/bin", self.directory)
    }

    /// The stable path of `handler`.
    #[must_use]
    pub fn binary_path(&self, handler: &str) -> String {
        format!("{}/bin/containerd-shim-{handler}", self.directory)
    }

    /// The handler of a stable path, by its file name.
    #[must_use]
    pub fn handler_of(name: &str) -> Option<&str> {
        name.strip_prefix("containerd-shim-")
    }

    /// The path that containerd executes for a managed handler.
    #[must_use]
    pub fn declared_path(&self, handler: &str, owned: &OwnedHandler) -> String {
        let path = owned.path.clone();
        path.unwrap_or_else(|| self.binary_path(handler))
    }

    /// The path of the binary in the store with this name, its SHA-256.
    #[must_use]
    pub fn store_path(&self, name: impl fmt::Display) -> String {
        format!("{}/store/{name}", self.directory)
    }
}

/// The target of the symlink at [`InstallPaths::binary_path`]. It is relative, so that it is valid under any host root.
#[must_use]
pub fn symlink_target(sha256: Sha256Digest) -> String {
    format!("../store/{sha256}")
}

/// The SHA-256 in a symlink's target, as made by [`symlink_target`].
#[must_use]
pub fn target_digest(target: &str) -> Option<Sha256Digest> {
    stored_digest(target.strip_prefix("../store/")?)
}

/// The SHA-256 in the name of a file of the store. Only lower-case names count, as [`InstallPaths::store_path`] returns no other name.
#[must_use]
pub fn stored_digest(name: &str) -> Option<Sha256Digest> {
    let digest: Sha256Digest = name.parse().ok()?;
    (digest.to_string() == name).then_some(digest)
}

/// The name of an owner in [`State::requests`] and in messages.
#[must_use]
pub fn owner_name(owner: Owner) -> &'static str {
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
            file: Some("3".to_owned()),
        },
        &format!(
            r#""sha256":"{}","location":"2","artifactSha256":"{}","file":"3""#,
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
    fn a_state_file_with_digests_in_upper_case_is_read_as_one_in_lower_case() {
        let lower = Sha256Digest::of(b"a").to_string();
        let text = |sha256: &str| {
            format!(
                r#"{{"apiVersion":"farrier.dev/v1","late":{{"b":{{"shim":"b","owner":"cluster","sha256":"{sha256}"}}}},
                "handlers":{{"a":{{"shim":"a","owner":"local","sha256":"{sha256}","artifactSha256":"{sha256}"}},
                "r":{{"shim":"r","owner":"cluster","sha256":null,"location":"","artifactSha256":null}},
                "k":{{"shim":"k","owner":"kwasm","path":"/opt/kwasm/bin/containerd-shim-k","sha256":"{sha256}"}}}},
                "config":{{"path":"/c","sha256":"{sha256}"}},"requests":{{"cluster":"{sha256}","local":""}}}}"#
            )
        };
        let read = |text: &str| State::from_json(Some(text)).unwrap();
        let state = read(&text(&lower));
        assert_eq!(state, read(&text(&lower.to_uppercase())));
        assert_eq!(state, read(&state.to_json()));
        assert!(state.handlers["r"].is_reserved() && !state.handlers.contains_key("k"));
        assert_eq!(state.draining["b"].sha256(), lower.parse().ok());
        assert_eq!(state.requests.len(), 1);
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
