//! Finds, fetches and verifies the artifacts of a request, as input for the planner.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::failure::Error;
use crate::handoff::{Owner, Problem, ProvisionRequest, Sha256Digest, ShimRequest, path_on_host};
use crate::installer::artifact::error::{check_binary, check_digest};
use crate::installer::artifact::fetch::{self, FetchOptions};
use crate::installer::artifact::handoff_dir;
use crate::installer::artifact::unpack::{self, Hashing, Wanted};
use crate::installer::host::cpu::Cpu;
use crate::installer::host::owner::ProgramError;
use crate::installer::host::{HostRoot, Target};
use crate::installer::inspect::verify_cache::{Artifact, ArtifactSource, Artifacts, VerifyCache};
use crate::installer::inspect::{HostFacts, path_of, verified_digest};
use crate::installer::plan::preconditions::check_host;

/// The file that a binary is copied from.
#[derive(Debug)]
pub enum BinarySource {
    /// A binary in the hand-off directory.
    HandoffDir(PathBuf),
    /// An artifact on the host.
    Host {
        /// Absolute path on the host.
        path: String,
        /// The shim whose binary it holds.
        shim: String,
        /// The binary's file name in it.
        binary: Option<String>,
    },
}

/// The options for getting artifacts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ArtifactOptions<'a> {
    /// The hand-off directory; without one, Farrier fetches the artifacts itself.
    pub(crate) directory: Option<&'a Path>,
    /// The options of a download.
    pub(crate) fetch: FetchOptions<'a>,
}

/// The artifacts of a request.
#[derive(Default)]
pub(crate) struct Resolved {
    /// SHA-256 of each shim's binary, or the reason for its absence, by the shim's name.
    pub(crate) binaries: BTreeMap<String, Result<Sha256Digest, Problem>>,
    /// The file of each binary, by SHA-256.
    pub(crate) sources: BTreeMap<Sha256Digest, BinarySource>,
    /// The shims whose artifact is for another CPU.
    pub(crate) for_another_cpu: BTreeSet<String>,
    /// The artifacts on the host that were verified.
    pub(crate) artifacts: Artifacts,
    /// The directory of the artifacts fetched by this run; removed on drop.
    pub(crate) _downloads: Option<tempfile::TempDir>,
}

/// Finds the artifacts of `request` on the host of `facts`, fetches the others, and verifies all of them.
///
/// # Errors
/// When nothing can be fetched at all. A problem of one artifact is in [`Resolved::binaries`].
pub(crate) async fn resolve(
    host: &HostRoot,
    options: ArtifactOptions<'_>,
    request: &ProvisionRequest,
    facts: &HostFacts,
) -> Result<Resolved, Error> {
    let mut binaries = BTreeMap::new();
    let mut missing = Vec::new();
    // The binary of a shim that is to be kept is the one in the state file.
    for shim in request.shims.iter().filter(|shim| !shim.keep) {
        match present(facts, shim) {
            Some(sha256) => {
                binaries.insert(shim.name.clone(), Ok(sha256));
            }
            None => missing.push(shim.clone()),
        }
    }
    let mut downloads = None;
    let mut directory = options.directory.map(Path::to_owned);
    let remote = |shim: &ShimRequest| path_on_host(&shim.location).is_none();
    // Nothing is downloaded for a host that the plan refuses, whatever the artifacts are.
    if directory.is_none() && missing.iter().any(remote) && check_host(facts).is_ok() {
        let made = tempfile::tempdir().map_err(|source| Error::Temporary { source })?;
        // The binaries that the request expects on the host are missing, so they are fetched.
        for shim in &mut missing {
            shim.present = None;
        }
        let options = FetchOptions {
            cpu: Some(facts.cpu),
            ..options.fetch
        };
        fetch::fetch(&missing, made.path(), options).await?;
        directory = Some(made.path().to_owned());
        downloads = Some(made);
    }
    let mut sources = BTreeMap::new();
    let mut for_another_cpu = BTreeSet::new();
    let target = facts.containerd.target();
    let known = VerifyCache::load(host, target);
    let mut artifacts = Artifacts::new();
    for shim in &missing {
        let found = match path_on_host(&shim.location) {
            // A binary that is expected on the host was not fetched into the hand-off directory, and its location may be unknown.
            _ if shim.present.is_some() => Err(not_present(facts, shim)),
            Some(path) => {
                let trusted = match request.owner {
                    Owner::Cluster => check_trusted(host, shim, &path, target),
                    // An operator names the file.
                    Owner::Local | Owner::Kwasm | Owner::Rcm => Ok(()),
                };
                let artifact =
                    trusted.and_then(|()| artifact(host, shim, &path, facts.cpu, &known));
                artifact.map(|artifact| {
                    let sha256 = artifact.sha256;
                    artifacts.insert(shim.name.clone(), artifact);
                    let source = BinarySource::Host {
                        path: path.into_owned(),
                        shim: shim.name.clone(),
                        binary: shim.binary.clone(),
                    };
                    (sha256, source)
                })
            }
            None => read_binary(shim, directory.as_deref(), facts.cpu),
        };
        let binary = match found {
            Ok((sha256, source)) => {
                sources.insert(sha256, source);
                Ok(sha256)
            }
            Err(error) => {
                if let Error::Artifact(error) = &error
                    && error.is_for_another_cpu()
                {
                    for_another_cpu.insert(shim.name.clone());
                }
                Err(Problem::new(&error, error.help()))
            }
        };
        binaries.insert(shim.name.clone(), binary);
    }
    Ok(Resolved {
        binaries,
        sources,
        for_another_cpu,
        artifacts,
        _downloads: downloads,
    })
}

/// Checks that only root can change an artifact on this host, unless the request has a SHA-256. Otherwise a user of the node would choose a
/// program for root.
fn check_trusted(
    host: &HostRoot,
    shim: &ShimRequest,
    path: &str,
    target: Target,
) -> Result<(), Error> {
    if shim.sha256.is_some() || shim.binary_sha256.is_some() {
        return Ok(());
    }
    match host.check_only_root_writes(path, target) {
        // Reading the artifact reports these.
        Ok(()) | Err(ProgramError::Open { .. } | ProgramError::NoFile { .. }) => Ok(()),
        Err(source) => Err(Error::UntrustedArtifact {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A shim's artifact on this host, verified.
fn artifact(
    host: &HostRoot,
    shim: &ShimRequest,
    path: &str,
    cpu: Cpu,
    known: &VerifyCache,
) -> Result<Artifact, Error> {
    let absent = || Error::NoArtifact {
        path: path.to_owned(),
    };
    let binary = shim.binary.as_deref();
    let metadata = host.metadata(path)?.ok_or_else(absent)?;
    check_artifact(path, &metadata)?;
    let source = ArtifactSource::of(host, path, binary).ok_or_else(absent)?;
    let known = known.artifact(&shim.name);
    let artifact = if let Some(known) = known.filter(|known| known.source == source) {
        check_digest(path, known.digest, shim.sha256)?;
        known.clone()
    } else {
        let digest = host.digest(path)?.ok_or_else(absent)?;
        let mut opened = host.open_file(path)?.ok_or_else(absent)?;
        if shim.sha256.is_some_and(|expected| expected != digest) {
            // As for a download: the digest of a file that is no artifact is told to nobody.
            unpack::check_kind(&mut opened).map_err(fetch::Error::from)?;
        }
        let mut file = Hashing::new(opened);
        check_digest(path, digest, shim.sha256)?;
        let wanted = Wanted {
            shim: &shim.name,
            binary,
            cpu,
        };
        let sha256 =
            unpack::unpack(&mut file, wanted, &mut io::sink()).map_err(fetch::Error::from)?;
        // The file may have been written to in between, so the digest of the unpacked bytes is checked.
        let again = file.finish().map_err(fetch::Error::from)?;
        check_digest(path, again, Some(digest))?;
        Artifact {
            source,
            digest,
            sha256,
        }
    };
    check_binary("the binary", artifact.sha256, shim)?;
    Ok(artifact)
}

/// Checks that an artifact of this host is a file with a content.
fn check_artifact(path: &str, metadata: &Metadata) -> Result<(), Error> {
    let kind = metadata.file_type();
    let what = if kind.is_file() {
        if metadata.len() > 0 {
            return Ok(());
        }
        "empty"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(Error::NoArtifactFile {
        path: path.to_owned(),
        what,
    })
}

/// The digest and the file of a fetched binary, verified.
fn read_binary(
    shim: &ShimRequest,
    directory: Option<&Path>,
    cpu: Cpu,
) -> Result<(Sha256Digest, BinarySource), Error> {
    let directory = directory.ok_or(fetch::Error::Missing)?;
    let (path, sha256) = handoff_dir::read_binary(shim, directory, cpu)?;
    Ok((sha256, BinarySource::HandoffDir(path)))
}

/// The error for a binary that is expected on this host and not there as requested.
fn not_present(facts: &HostFacts, shim: &ShimRequest) -> Error {
    let expected = shim.expected_on_node();
    let is_there =
        |handler: &str| expected.is_some_and(|it| is_as_hinted(facts, shim, handler, it));
    let mut handlers = shim.handlers.iter();
    let lost = handlers.find(|handler| !is_there(handler));
    // Shims without handlers are refused earlier.
    let path = lost
        .or(shim.handlers.first())
        .map(|handler| path_of(facts, handler));
    Error::NotPresent {
        path: path.unwrap_or_default(),
    }
}

/// SHA-256 of the shim's binary on this host, if the request asks for the same binary.
fn present(facts: &HostFacts, shim: &ShimRequest) -> Option<Sha256Digest> {
    let expected = shim.expected_on_node().filter(|sha256| {
        let mut handlers = shim.handlers.iter();
        handlers.all(|handler| is_as_hinted(facts, shim, handler, *sha256))
    });
    expected.or_else(|| pinned(facts, shim))
}

/// Whether `handler` has the binary of a hint on the host, and the binary is what `shim` requests. The hint alone does not count, because it
/// comes from an annotation of the node: an attacker could name the binary of an earlier version there, and the state file would record that
/// binary for the new artifact.
fn is_as_hinted(
    facts: &HostFacts,
    shim: &ShimRequest,
    handler: &str,
    sha256: Sha256Digest,
) -> bool {
    let owned = facts.state.handlers.get(handler);
    let is_requested = shim.binary_sha256 == Some(sha256)
        || owned
            .is_some_and(|owned| owned.sha256() == Some(sha256) && owned.is_from_artifact(shim));
    is_requested && is_installed(facts, handler, sha256)
}

/// Whether `handler` has this binary on the host already, so that no copy is needed.
fn is_installed(facts: &HostFacts, handler: &str, sha256: Sha256Digest) -> bool {
    let path = path_of(facts, handler);
    let is_in_place = verified_digest(facts, &path) == Some(sha256);
    if facts.stores(sha256) {
        // The plan creates a missing symlink to a stored binary again.
        let owned = facts.state.handlers.get(handler);
        return is_in_place || owned.is_some_and(|owned| owned.sha256() == Some(sha256));
    }
    // A binary taken over from a legacy installer stays at its path, unless the path is a symlink.
    let taken_over = facts.legacy.binaries.get(&path);
    is_in_place && taken_over.is_some_and(|legacy_binary| !legacy_binary.is_symlink)
}

/// SHA-256 of the shim's binary on this host, if the request pins its digest, or the digest of its artifact, to the installed one.
fn pinned(facts: &HostFacts, shim: &ShimRequest) -> Option<Sha256Digest> {
    let mut found = None;
    for handler in &shim.handlers {
        let Some(owned) = facts.state.handlers.get(handler) else {
            // A binary of a legacy installer is identified by its digest alone. One in the store that the state file does not record is
            // stored anew.
            let digest = facts.legacy.binaries.get(&path_of(facts, handler))?.sha256;
            if shim.binary_sha256? != digest || !is_installed(facts, handler, digest) {
                return None;
            }
            found = Some(digest);
            continue;
        };
        let sha256 = owned.sha256()?;
        let pinned = match (shim.binary_sha256, shim.sha256) {
            (Some(digest), _) => digest == sha256,
            (None, Some(_)) => owned.is_from_artifact(shim),
            (None, None) => false,
        };
        if !pinned || !is_installed(facts, handler, sha256) {
            return None;
        }
        found = Some(sha256);
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn an_artifact_is_a_file_with_a_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("empty"), "").unwrap();
        std::fs::write(path("file"), "x").unwrap();
        nix::unistd::mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
        let _listener = UnixListener::bind(path("socket")).unwrap();
        for (path, expected) in [
            (path("file"), None),
            (path("empty"), Some("empty")),
            (path("fifo"), Some("a FIFO")),
            (path("socket"), Some("a socket")),
            (path("."), Some("a directory")),
            (PathBuf::from("/dev/zero"), Some("a device")),
        ] {
            let metadata = std::fs::metadata(&path).unwrap();
            let error = check_artifact("/srv/a", &metadata).err();
            let expected = expected.map(|what| format!("artifact /srv/a on the host is {what}"));
            assert_eq!(error.map(|error| error.to_string()), expected, "{path:?}");
        }
    }
}
