//! The verification cache: records the identities of files whose digests were verified, so that an unchanged file is not hashed again. A file
//! with another size, inode or time is hashed; only root can forge these, and root could forge the cache, too. A cache that another user can
//! write is ignored. Output of programs and text of configurations stay out of the cache, because both may contain passwords.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::handoff::{self, Sha256Digest};
use crate::installer::host::{self, HostRoot, Target};
use crate::installer::state::InstallPaths;

/// The file of the cache. Without it, the next run hashes all binaries.
pub(crate) const FILE: &str = "/var/lib/farrier/verified.json";
/// The longest file to read, in bytes. An entry has some hundred bytes.
const LIMIT: u64 = 1 << 20;

/// The files whose digests were verified, as they were at that time.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VerifyCache {
    /// Stored binaries, by SHA-256.
    #[serde(default)]
    stored: BTreeMap<Sha256Digest, FileIdentity>,
    /// Artifacts on the host, by the name of their shim.
    #[serde(default)]
    artifacts: Artifacts,
    /// Binaries at legacy paths, by path.
    #[serde(default, rename = "adopted")]
    legacy_binaries: LegacyBinaries,
}

/// Artifacts on the host, by the name of their shim.
pub(crate) type Artifacts = BTreeMap<String, Artifact>;

/// Binaries at legacy paths, by path.
pub(crate) type LegacyBinaries = BTreeMap<String, Verified>;

/// A file as it was when it was hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verified {
    #[serde(rename = "stamp")]
    identity: FileIdentity,
    sha256: Sha256Digest,
}

/// An artifact on the host, with the digests of the artifact and of its binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Artifact {
    /// The artifact as it was before it was read.
    #[serde(flatten)]
    pub(crate) source: ArtifactSource,
    /// SHA-256 of the artifact.
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
    /// The file name of the binary in the artifact, where the request names one.
    binary: Option<String>,
}

impl ArtifactSource {
    /// The artifact before it is read, so that a later change of the file is noticed; `None` where the file is absent.
    pub(crate) fn of(host: &HostRoot, path: &str, binary: Option<&str>) -> Option<Self> {
        Some(Self {
            path: path.to_owned(),
            identity: FileIdentity::of(host, path)?,
            binary: binary.map(str::to_owned),
        })
    }
}

/// The identity of a file: every write changes at least one of these fields (inode(7)).
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
    pub(crate) fn load(host: &HostRoot, target: Target) -> Self {
        let text = read(host, target);
        let cache = text.and_then(|text| serde_json::from_str(&text).ok());
        cache.unwrap_or_default()
    }

    /// Whether the stored file with this SHA-256 is unchanged since it was hashed.
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

    /// The binary at `path`, hashed unless it is unchanged; `None` where it is absent.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) fn verify(&self, host: &HostRoot, path: &str) -> host::Result<Option<Verified>> {
        let Some(identity) = FileIdentity::of(host, path) else {
            // `digest` returns the error for a directory or special file, and `None` for an absent file.
            return host.digest(path).map(|_| None);
        };
        let known = self.legacy_binaries.get(path);
        if let Some(known) = known.filter(|known| known.identity == identity) {
            return Ok(Some(known.clone()));
        }
        let digest = host.digest(path)?;
        Ok(digest.map(|sha256| Verified { identity, sha256 }))
    }

    /// The recorded artifact of a shim.
    pub(crate) fn artifact(&self, shim: &str) -> Option<&Artifact> {
        self.artifacts.get(shim)
    }

    /// Rewrites a cache that contains more than this release records, and removes a cache that can't be read. Earlier releases stored the
    /// output of `containerd config dump` in the cache, with registry passwords. Removes a cache that another user can write, too. The caller
    /// holds the lock. A failure is only logged.
    pub(crate) fn clean(host: &HostRoot, target: Target) {
        // A killed run of an earlier release may have left a half-written cache with the same passwords.
        host.discard_new(FILE);
        let text = read(host, target);
        let cache: Option<Self> = text
            .as_deref()
            .and_then(|text| serde_json::from_str(text).ok());
        let cleaned = match cache {
            Some(cache) => cache.write(host, text.as_deref()),
            None if host.seems_to_exist(FILE) => host.remove_file(FILE),
            None => Ok(()),
        };
        if let Err(error) = cleaned {
            warn!(%error, "failed to clean the verification cache: it may still contain registry passwords that an earlier release stored");
        }
    }

    /// Writes the present identities of the stored files `verified`, with `artifacts` and `legacy_binaries`, if the cache differs from these.
    ///
    /// # Errors
    /// When the cache can't be written.
    pub(crate) fn record(
        host: &HostRoot,
        target: Target,
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
        now.write(host, read(host, target).as_deref())
    }

    /// Replaces the file with text `before` by this cache, unless both are the same.
    fn write(&self, host: &HostRoot, before: Option<&str>) -> host::Result<()> {
        let text = handoff::to_json(self);
        if before == Some(text.as_str()) {
            return Ok(());
        }
        host.write_own(FILE, text.as_bytes(), 0o600)
    }
}

/// The text of the cache; `None` if there is none, if it can't be read, or if another user than root can write it.
fn read(host: &HostRoot, target: Target) -> Option<String> {
    let is_own = host.is_file_of_root(FILE, target).ok()?;
    is_own.then(|| host.read_text(FILE, LIMIT).ok()?).flatten()
}

impl Verified {
    pub(crate) fn sha256(&self) -> Sha256Digest {
        self.sha256
    }
}

impl FileIdentity {
    /// The identity of the file at `path`; `None` where it is absent.
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
