//! Finds handlers of KWasm and runtime-class-manager on a host, with their binaries, lock files and markers. Reads only; `plan::takeover`
//! decides on them.

use crate::installer::host::path::{file_name, parent_directory};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

use super::os::program_owner_problem;
use super::verify_cache::{Verified, VerifyCache};
use crate::containerd_config::{self, ConfigFiles, LegacyInstaller, SourceFile};
use crate::handoff::{OptionValue, Owner, Problem, Sha256Digest};
use crate::installer::host::{Error, HostRoot, Target};
use crate::installer::state::{InstallPaths, State, stored_digest};

/// The longest lock file to read, in bytes. A lock file has an entry for each shim, and a node has a few shims.
const LOCK_LIMIT: u64 = 1 << 20;
/// The directories where KWasm's installers create symlinks to their shims, for a containerd that finds shims in its PATH.
const SYMLINK_DIRECTORIES: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];

/// The handlers and files of KWasm and runtime-class-manager on a host.
#[derive(Debug, Default)]
pub struct Legacy {
    /// Legacy handlers that the configuration declares, by name.
    pub handlers: BTreeMap<String, LegacyHandler>,
    /// The binaries of legacy handlers and of handlers that were taken over, by path.
    pub binaries: BTreeMap<String, LegacyBinary>,
    /// Why another user than root could change the binary at such a path, or create one there, by path.
    pub untrusted: BTreeMap<String, Problem>,
    /// Symlinks in other directories to such a path, by that path.
    pub symlinks: BTreeMap<String, Vec<String>>,
    /// The directories of legacy installers, by path.
    pub legacy_dirs: BTreeMap<String, LegacyDir>,
}

/// A handler of a legacy installer.
#[derive(Debug, Clone)]
pub struct LegacyHandler {
    /// Its owner until a request takes it over.
    pub owner: Owner,
    /// The configuration file that declares it.
    pub file: String,
    /// Its declaration in the file.
    pub declared: containerd_config::LegacyHandler,
}

/// A binary at a legacy path.
#[derive(Debug, Clone)]
pub struct LegacyBinary {
    /// SHA-256 of its bytes.
    pub sha256: Sha256Digest,
    /// Whether the path is a symlink. An upgrade by Farrier replaces the binary by a symlink to the store.
    pub is_symlink: bool,
    /// The file when it was hashed; `None` for a symlink, whose target is verified in the store.
    pub(crate) verified: Option<Verified>,
}

/// A directory of a legacy installer.
#[derive(Debug, Clone)]
pub struct LegacyDir {
    /// The legacy installer that created it.
    pub owner: Owner,
    /// The path of its lock file, if it has one, and the text, if it is readable and valid.
    pub lock: Option<(String, Option<String>)>,
    /// The path of KWasm's marker, if it exists.
    pub marker: Option<String>,
}

/// Finds the legacy handlers that `config_files` or their `sources` declare, and the files of these handlers and of those that `state` has
/// taken over. A binary that is unchanged according to `verify_cache` is not hashed.
///
/// # Errors
/// When a binary or a directory can't be read.
pub(crate) fn find(
    host: &HostRoot,
    target: Target,
    config_files: &ConfigFiles,
    sources: &[SourceFile],
    state: &State,
    install_paths: &InstallPaths,
    verify_cache: &VerifyCache,
) -> Result<Legacy, super::error::Error> {
    let mut found = Legacy::default();
    let config_files = config_files.files();
    // The sources come first: a rendered file repeats the handlers of its template, and Farrier edits the template.
    for file in sources.iter().chain(config_files) {
        // An error in a file that Farrier edits is reported by the plan.
        let declared = file
            .text
            .as_deref()
            .and_then(|text| containerd_config::legacy_handlers(&file.path, text).ok());
        for (name, declared) in declared.into_iter().flatten() {
            let legacy_dir = legacy_dir(host, &declared.dir, declared.installer)?;
            let Some(legacy_dir) = legacy_dir
                .filter(|legacy_dir| declared.is_default_dir || names(legacy_dir, &declared.path))
            else {
                continue;
            };
            let legacy_handler = LegacyHandler {
                owner: legacy_dir.owner,
                file: file.path.clone(),
                declared,
            };
            found
                .legacy_dirs
                .insert(legacy_handler.declared.dir.clone(), legacy_dir);
            found.handlers.entry(name).or_insert(legacy_handler);
        }
    }
    let taken = || {
        let owned = state.handlers.values().chain(state.draining.values());
        owned.filter_map(|owned| owned.path.as_ref())
    };
    // A handler that was taken over may no longer be declared. Its legacy directory is removed with it all the same.
    for directory in taken().filter_map(|path| legacy_directory_of(path)) {
        let installer = if directory.ends_with("/kwasm") {
            LegacyInstaller::Kwasm
        } else {
            LegacyInstaller::Rcm
        };
        if !found.legacy_dirs.contains_key(directory)
            && let Some(legacy_dir) = legacy_dir(host, directory, installer)?
        {
            found.legacy_dirs.insert(directory.to_owned(), legacy_dir);
        }
    }
    let declared = found
        .handlers
        .values()
        .map(|handler| &handler.declared.path);
    let paths: BTreeSet<String> = taken().chain(declared).cloned().collect();
    for path in paths {
        found.symlinks.insert(path.clone(), symlinks(host, &path)?);
        if let Some(problem) = program_owner_problem(host, &path, target) {
            found.untrusted.insert(path.clone(), problem);
        }
        if let Some(legacy_binary) = legacy_binary(host, &path, install_paths, verify_cache)? {
            found.binaries.insert(path, legacy_binary);
        }
    }
    Ok(found)
}

/// The legacy directory at this path; `None` where it or its `bin` is a symlink, because its files may then belong to another program.
fn legacy_dir(
    host: &HostRoot,
    legacy_dir: &str,
    installer: LegacyInstaller,
) -> Result<Option<LegacyDir>, super::error::Error> {
    for directory in [legacy_dir, &format!("{legacy_dir}/bin")] {
        if is_symlink(host, directory)? {
            return Ok(None);
        }
    }
    let (owner, lock) = match installer {
        LegacyInstaller::Kwasm => (Owner::Kwasm, format!("{legacy_dir}/kwasm-lock.json")),
        LegacyInstaller::Rcm => (Owner::Rcm, format!("{legacy_dir}/rcm-lock.json")),
    };
    let lock = if host.exists(&lock)? {
        let text = host.read_text(&lock, LOCK_LIMIT).ok().flatten();
        let is_symlink = is_symlink(host, &lock)?;
        let text = text.filter(|text| !is_symlink && lock_entries(text).is_some());
        Some((lock, text))
    } else {
        None
    };
    let marker = format!("{legacy_dir}/active");
    let is_kwasm = installer == LegacyInstaller::Kwasm;
    let is_marked = is_kwasm && host.exists(&marker)?;
    Ok(Some(LegacyDir {
        owner,
        lock,
        marker: is_marked.then_some(marker),
    }))
}

/// Whether the lock file has an entry for the shim at `path`.
fn names(legacy_dir: &LegacyDir, path: &str) -> bool {
    let text = legacy_dir
        .lock
        .as_ref()
        .and_then(|(_, text)| text.as_deref());
    text.and_then(lock_entries)
        .is_some_and(|entries| entries.values().any(|entry| entry.path == path))
}

/// Whether `path` is a symlink, to any target.
fn is_symlink(host: &HostRoot, path: &str) -> Result<bool, Error> {
    match host.symlink_target(path) {
        Ok(target) => Ok(target.is_some()),
        Err(Error::NotText { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

fn symlinks(host: &HostRoot, path: &str) -> Result<Vec<String>, Error> {
    let name = file_name(path);
    let mut symlinks = Vec::new();
    for directory in SYMLINK_DIRECTORIES {
        let symlink = format!("{directory}/{name}");
        match host.symlink_target(&symlink) {
            Ok(Some(target)) if target == path => symlinks.push(symlink),
            // A target that is not UTF-8 is another path.
            Ok(_) | Err(Error::NotText { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(symlinks)
}

fn legacy_binary(
    host: &HostRoot,
    path: &str,
    install_paths: &InstallPaths,
    verify_cache: &VerifyCache,
) -> Result<Option<LegacyBinary>, super::error::Error> {
    let target = host.symlink_target(path)?;
    let stored = target.as_deref().and_then(|target| {
        let (directory, name) = target.rsplit_once('/')?;
        let is_unchanged =
            |sha256: &Sha256Digest| verify_cache.is_unchanged(host, install_paths, *sha256);
        stored_digest(name)
            .filter(|sha256| directory == install_paths.store() && is_unchanged(sha256))
    });
    if let Some(sha256) = stored {
        return Ok(Some(LegacyBinary {
            sha256,
            is_symlink: true,
            verified: None,
        }));
    }
    let verified = match verify_cache.verify(host, path) {
        Ok(verified) => verified,
        // Such a file is no binary.
        Err(Error::NoFile { .. } | Error::TooLarge { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    Ok(verified.map(|verified| LegacyBinary {
        sha256: verified.sha256(),
        is_symlink: target.is_some(),
        verified: target.is_none().then_some(verified),
    }))
}

impl LegacyHandler {
    /// Its options, as a request would contain them.
    #[must_use]
    pub fn options(&self) -> BTreeMap<String, OptionValue> {
        OptionValue::from_toml(&self.declared.options)
    }
}

/// An entry of a lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockEntry {
    /// SHA-256 of the binary.
    pub sha256: String,
    /// Absolute path of the binary on the host.
    pub path: String,
}

/// A lock file of runtime-class-manager.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LockFile {
    pub(crate) shims: BTreeMap<String, LockEntry>,
}

/// The entries of a lock file, by the name of their handler; `None` where the text has another format.
#[must_use]
pub fn lock_entries(text: &str) -> Option<BTreeMap<String, LockEntry>> {
    let file: LockFile = serde_json::from_str(text).ok()?;
    let is_digest = |entry: &LockEntry| {
        entry.sha256.len().is_multiple_of(2)
            && entry.sha256.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    file.shims.values().all(is_digest).then_some(file.shims)
}

/// The legacy directory that a binary at `path` belongs to.
pub(crate) fn legacy_directory_of(path: &str) -> Option<&str> {
    parent_directory(path).strip_suffix("/bin")
}
