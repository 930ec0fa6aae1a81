//! Remembers which stored binaries, and which artifacts on the host, were hashed, so that a run that finds nothing to do reads none of
//! their bytes again. A file whose size, inode or times differ is hashed; whoever can forge those is root on the host and could forge
//! the record, too. No output of a program and no text of a configuration belongs here: both may hold passwords.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::handoff::{self, Sha256Digest};
use crate::installer::host::{self, HostRoot, text_digest};
use crate::installer::state::InstallPaths;

/// The record. A lost or damaged one costs a reading of the binaries.
pub(crate) const FILE: &str = "/var/lib/farrier/verified.json";
/// Some hundred bytes for each binary.
const LIMIT: u64 = 1 << 20;

/// How the verified files looked.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VerifyCache {
    /// Stored binaries, by SHA-256.
    #[serde(default)]
    stored: BTreeMap<Sha256Digest, FileIdentity>,
    /// Artifacts on the host, by the shim that was taken from them.
    #[serde(default)]
    artifacts: Artifacts,
    /// Binaries that stand where a predecessor put them, by path.
    #[serde(default, rename = "adopted")]
    legacy_binaries: LegacyBinaries,
}

/// Artifacts on the host, by the shim that was taken from them.
pub(crate) type Artifacts = BTreeMap<String, Artifact>;

/// Binaries that stand where a predecessor put them, by path.
pub(crate) type LegacyBinaries = BTreeMap<String, Verified>;

/// A file as it was when it was hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verified {
    #[serde(rename = "stamp")]
    identity: FileIdentity,
    sha256: Sha256Digest,
}

/// An artifact on the host and what was found in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Artifact {
    /// The artifact as it was before it was read.
    #[serde(flatten)]
    pub(crate) source: ArtifactSource,
    /// SHA-256 of all of it.
    pub(crate) digest: Sha256Digest,
    /// SHA-256 of the binary.
    pub(crate) sha256: Sha256Digest,
}

/// An artifact on the host, and the file in it that is the binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ArtifactSource {
    /// Absolute path on the host.
    path: String,
    #[serde(rename = "stamp")]
    identity: FileIdentity,
    /// The binary's file name in it, where one was asked for.
    binary: Option<String>,
}

impl ArtifactSource {
    /// An artifact that is about to be read: what changes it from now on shows. `None` where there is none.
    pub(crate) fn of(host: &HostRoot, path: &str, binary: Option<&str>) -> Option<Self> {
        Some(Self {
            path: path.to_owned(),
            identity: FileIdentity::of(host, path)?,
            binary: binary.map(str::to_owned),
        })
    }
}

/// What any write to a file changes (inode(7)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FileIdentity {
    size: u64,
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds of the last change of the bytes, and of the inode.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl VerifyCache {
    pub(crate) fn load(host: &HostRoot) -> Self {
        let text = host.read_text(FILE, LIMIT).ok().flatten();
        let cache = text.and_then(|text| serde_json::from_str(&text).ok());
        cache.unwrap_or_default()
    }

    /// Whether the stored file with this SHA-256 is as it was when it was hashed.
    pub(crate) fn is_unchanged(
        &self,
        host: &HostRoot,
        install_paths: &InstallPaths,
        sha256: Sha256Digest,
    ) -> bool {
        let known = self.stored.get(&sha256);
        known.is_some()
            && known == FileIdentity::of(host, &install_paths.store_path(sha256)).as_ref()
    }

    /// The binary at `path`, hashed unless it is as it was when that was done; `None` where there is none.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) fn verify(&self, host: &HostRoot, path: &str) -> host::Result<Option<Verified>> {
        let Some(identity) = FileIdentity::of(host, path) else {
            // What stands there and is no file is told apart by whoever reads it.
            return host.digest(path).map(|_| None);
        };
        let known = self.legacy_binaries.get(path);
        if let Some(known) = known.filter(|known| known.identity == identity) {
            return Ok(Some(known.clone()));
        }
        let digest = host.digest(path)?;
        Ok(digest.map(|sha256| Verified { identity, sha256 }))
    }

    /// What is known of the artifact of a shim.
    pub(crate) fn artifact(&self, shim: &str) -> Option<&Artifact> {
        self.artifacts.get(shim)
    }

    /// Rewrites a record that holds more than this release records, and removes one that can't be read: former releases kept the output
    /// of `containerd config dump` in it, with registry passwords. The caller holds the lock. Best effort: a failure is logged.
    pub(crate) fn clean(host: &HostRoot) {
        // A run of a former release that was killed may have left the same there.
        host.discard_new(FILE);
        let cleaned = match host.read_text(FILE, LIMIT) {
            Ok(None) => Ok(()),
            Ok(Some(text)) => match serde_json::from_str::<Self>(&text) {
                Ok(cache) => cache.write(host, Some(&text)),
                Err(_) => host.remove_file(FILE),
            },
            Err(_) => host.remove_file(FILE),
        };
        if let Err(error) = cleaned {
            warn!(%error, "failed to remove what a former release recorded, which may hold registry passwords");
        }
    }

    /// Puts on disk how the files with these SHA-256 look now, and what was found in `artifacts` and `legacy_binaries`, where any of that is new.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn record(
        host: &HostRoot,
        install_paths: &InstallPaths,
        verified: &BTreeSet<Sha256Digest>,
        artifacts: Artifacts,
        legacy_binaries: LegacyBinaries,
    ) -> host::Result<()> {
        let identity = |sha256: &Sha256Digest| {
            let identity = FileIdentity::of(host, &install_paths.store_path(sha256))?;
            Some((*sha256, identity))
        };
        let now = Self {
            stored: verified.iter().filter_map(identity).collect(),
            artifacts,
            legacy_binaries,
        };
        let before = host.read_text(FILE, LIMIT).ok().flatten();
        if before.is_none() {
            // What can't be read as a record gives way to one.
            host.remove_file(FILE)?;
        }
        now.write(host, before.as_deref())
    }

    /// Puts the record on disk in the place of `before`, unless they are the same.
    fn write(&self, host: &HostRoot, before: Option<&str>) -> host::Result<()> {
        let text = handoff::to_json(self);
        if before == Some(text.as_str()) {
            return Ok(());
        }
        let before = text_digest(before);
        host.replace(FILE, text.as_bytes(), before, 0o600)
    }
}

impl Verified {
    pub(crate) fn sha256(&self) -> Sha256Digest {
        self.sha256
    }
}

impl FileIdentity {
    /// How the file at `path` looks; `None` where there is none.
    pub(crate) fn of(host: &HostRoot, path: &str) -> Option<Self> {
        let metadata = host.open_file(path).ok()??.metadata().ok()?;
        Some(Self {
            size: metadata.size(),
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}
