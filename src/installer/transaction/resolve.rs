//! Turns a request into what a plan is decided on: which artifacts there are, where, and which had to be fetched.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::failure::Error;
use crate::handoff::{Problem, ProvisionRequest, Sha256Digest, ShimRequest};
use crate::installer::artifact::error::check_digest;
use crate::installer::artifact::fetch;
use crate::installer::artifact::handoff_dir;
use crate::installer::artifact::unpack::{self, Hashing};
use crate::installer::host::HostRoot;
use crate::installer::inspect::verify_cache::{Artifact, ArtifactSource, Artifacts, VerifyCache};
use crate::installer::inspect::{HostFacts, path_of, verified, verified_digest};
use crate::installer::state::Binary;

/// Where the bytes of a binary come from.
#[derive(Debug)]
pub enum Source {
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

/// Where artifacts come from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ArtifactOptions<'a> {
    /// The hand-off directory; without it, artifacts are fetched now.
    pub(crate) directory: Option<&'a Path>,
    /// More certificate authorities than Mozilla's, as PEM.
    pub(crate) ca_file: Option<&'a Path>,
}

/// The artifacts of a request.
#[derive(Default)]
pub(crate) struct Resolved {
    /// SHA-256 of each shim's binary, or why there is none, by the shim's name.
    pub(crate) binaries: BTreeMap<String, Result<Sha256Digest, Problem>>,
    /// Where binaries are, by SHA-256.
    pub(crate) sources: BTreeMap<Sha256Digest, Source>,
    /// The artifacts on the host that were looked into.
    pub(crate) artifacts: Artifacts,
    /// Holds what was fetched now.
    pub(crate) _downloads: Option<tempfile::TempDir>,
}

/// Looks for the artifacts of `request` on the host that `facts` describe, fetches the others, and verifies all of them.
///
/// # Errors
/// When nothing can be fetched at all. What is wrong with one artifact is its shim's reason.
pub(crate) async fn resolve(
    host: &HostRoot,
    options: ArtifactOptions<'_>,
    request: &ProvisionRequest,
    facts: &HostFacts,
) -> Result<Resolved, Error> {
    let mut binaries = BTreeMap::new();
    let mut missing = Vec::new();
    for shim in &request.shims {
        match present(facts, shim) {
            Some(sha256) => {
                binaries.insert(shim.name.clone(), Ok(sha256));
            }
            None => missing.push(shim.clone()),
        }
    }
    let mut downloads = None;
    let mut directory = options.directory.map(Path::to_owned);
    let remote = |shim: &ShimRequest| fetch::path_on_host(&shim.location).is_none();
    // A host that is refused anyway is not worth a download.
    if directory.is_none() && facts.distro.refusal.is_none() && missing.iter().any(remote) {
        let made = tempfile::tempdir().map_err(|source| Error::Temporary { source })?;
        // What was expected here was looked for by now.
        for shim in &mut missing {
            shim.present = None;
        }
        fetch::fetch(&missing, made.path(), options.ca_file).await?;
        directory = Some(made.path().to_owned());
        downloads = Some(made);
    }
    let mut sources = BTreeMap::new();
    let (known, mut artifacts) = (VerifyCache::load(host), Artifacts::new());
    for shim in &missing {
        let found = match fetch::path_on_host(&shim.location) {
            // What is expected here is looked for nowhere else: whoever expects it may not know where it came from.
            _ if shim.present.is_some() => Err(not_present(facts, shim)),
            Some(path) => artifact(host, shim, path, &known).map(|artifact| {
                let sha256 = artifact.sha256;
                artifacts.insert(shim.name.clone(), artifact);
                let source = Source::Host {
                    path: path.to_owned(),
                    shim: shim.name.clone(),
                    binary: shim.binary.clone(),
                };
                (sha256, source)
            }),
            None => read_binary(shim, directory.as_deref()),
        };
        let binary = match found {
            Ok((sha256, source)) => {
                sources.insert(sha256, source);
                Ok(sha256)
            }
            Err(error) => Err(Problem::new(&error, error.help())),
        };
        binaries.insert(shim.name.clone(), binary);
    }
    Ok(Resolved {
        binaries,
        sources,
        artifacts,
        _downloads: downloads,
    })
}

/// A shim's artifact on this host, verified.
fn artifact(
    host: &HostRoot,
    shim: &ShimRequest,
    path: &str,
    known: &VerifyCache,
) -> Result<Artifact, Error> {
    let absent = || Error::NoArtifact {
        path: path.to_owned(),
    };
    let binary = shim.binary.as_deref();
    let source = ArtifactSource::of(host, path, binary).ok_or_else(absent)?;
    let known = known.artifact(&shim.name);
    let artifact = if let Some(known) = known.filter(|known| known.source == source) {
        check_digest(path, known.digest, shim.sha256)?;
        known.clone()
    } else {
        let digest = host.digest(path)?.ok_or_else(absent)?;
        let mut file = Hashing::new(host.open_file(path)?.ok_or_else(absent)?);
        check_digest(path, digest, shim.sha256)?;
        let sha256 = unpack::unpack(&mut file, &shim.name, binary, &mut io::sink())
            .map_err(fetch::Error::from)?;
        // What was unpacked are the bytes that were verified, whoever can write to the file.
        let again = file.finish().map_err(fetch::Error::from)?;
        check_digest(path, again, Some(digest))?;
        Artifact {
            source,
            digest,
            sha256,
        }
    };
    check_digest("the binary", artifact.sha256, shim.binary_sha256)?;
    Ok(artifact)
}

/// Where the binary of a shim is that was fetched, verified.
fn read_binary(
    shim: &ShimRequest,
    directory: Option<&Path>,
) -> Result<(Sha256Digest, Source), Error> {
    let directory = directory.ok_or(fetch::Error::Missing)?;
    let (path, sha256) = handoff_dir::read_binary(shim, directory)?;
    Ok((sha256, Source::HandoffDir(path)))
}

/// That a binary which is expected on this host does not stand there.
fn not_present(facts: &HostFacts, shim: &ShimRequest) -> Error {
    let expected = shim.expected_on_node();
    let is_there = |handler: &str| expected.is_some_and(|it| is_placed(facts, handler, it));
    let mut handlers = shim.handlers.iter();
    let lost = handlers.find(|handler| !is_there(handler));
    // A shim without handlers is refused before.
    let path = lost
        .or(shim.handlers.first())
        .map(|handler| path_of(facts, handler));
    Error::NotPresent {
        path: path.unwrap_or_default(),
    }
}

/// The binary that a shim has on this host already, if it is what is asked for again.
fn present(facts: &HostFacts, shim: &ShimRequest) -> Option<Sha256Digest> {
    let expected = shim.expected_on_node().filter(|sha256| {
        let mut handlers = shim.handlers.iter();
        handlers.all(|handler| is_placed(facts, handler, *sha256))
    });
    expected.or_else(|| pinned(facts, shim))
}

/// Whether this is the binary of `handler` and stands on this host, so that the handler can have it without another copy.
fn is_placed(facts: &HostFacts, handler: &str, sha256: Sha256Digest) -> bool {
    let path = path_of(facts, handler);
    let is_in_place = verified_digest(facts, &path) == Some(sha256);
    if facts.stored.contains(&sha256) {
        // The link to it is made again where it is lost.
        let owned = facts.state.handlers.get(handler);
        return is_in_place || owned.is_some_and(|owned| owned.sha256() == Some(sha256));
    }
    // What was taken over as it is stays where its predecessor put it, unless that is a link to who knows where.
    let taken_over = facts.legacy.binaries.get(&path);
    is_in_place && taken_over.is_some_and(|legacy_binary| !legacy_binary.is_symlink)
}

/// The same, if its digest was pinned.
fn pinned(facts: &HostFacts, shim: &ShimRequest) -> Option<Sha256Digest> {
    let mut found = None;
    for handler in &shim.handlers {
        let Some(owned) = facts.state.handlers.get(handler) else {
            // What a predecessor left is known by the bytes alone.
            let digest = verified(facts, handler)?;
            if shim.binary_sha256? != digest {
                return None;
            }
            found = Some(digest);
            continue;
        };
        let Binary::Installed {
            sha256,
            location,
            artifact_sha256,
        } = &owned.binary
        else {
            return None;
        };
        let pinned = match (shim.binary_sha256, shim.sha256) {
            (Some(wanted), _) => wanted == *sha256,
            (None, Some(_)) => *location == shim.location && *artifact_sha256 == shim.sha256,
            (None, None) => false,
        };
        if !pinned || verified(facts, handler) != Some(*sha256) {
            return None;
        }
        found = Some(*sha256);
    }
    found
}
