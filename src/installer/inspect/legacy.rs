//! Looks for what KWasm and runtime-class-manager left on a host: handlers, their binaries, lock and marker files. Reads only; what
//! becomes of it is decided in `plan::takeover`.

use crate::installer::host::path::parent_directory;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

use super::verify_cache::{Verified, VerifyCache};
use crate::containerd_config::{self, ConfigFiles, LegacyInstaller, SourceFile};
use crate::handoff::{OptionValue, Owner, Sha256Digest};
use crate::installer::host::{Error, HostRoot};
use crate::installer::state::{InstallPaths, State, stored_digest};

/// A lock file has a line for each shim, of which a node has a few.
const LOCK_LIMIT: u64 = 1 << 20;
/// The folders where installers of KWasm put links to their shims, for a containerd that looks for them by name.
const SYMLINK_DIRECTORIES: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];

/// What predecessors left.
#[derive(Debug, Default)]
pub struct Legacy {
    /// Their handlers that the configuration declares, by name.
    pub handlers: BTreeMap<String, LegacyHandler>,
    /// What stands at the paths of these handlers, and of those that were taken over.
    pub binaries: BTreeMap<String, LegacyBinary>,
    /// Links elsewhere to such a path.
    pub symlinks: BTreeMap<String, Vec<String>>,
    /// Their folders.
    pub legacy_dirs: BTreeMap<String, LegacyDir>,
}

/// A handler of a predecessor.
#[derive(Debug, Clone)]
pub struct LegacyHandler {
    /// Whose it is, unless a request takes it over.
    pub owner: Owner,
    /// The configuration file that declares it.
    pub file: String,
    /// What the file says.
    pub declared: containerd_config::LegacyHandler,
}

/// A binary at a path of a predecessor.
#[derive(Debug, Clone)]
pub struct LegacyBinary {
    /// SHA-256 of its bytes.
    pub sha256: Sha256Digest,
    /// Whether a link leads there: an upgrade has put one into our store.
    pub is_symlink: bool,
    /// How it was when it was hashed; `None` for a link, whose target is vouched for in our store.
    pub(crate) verified: Option<Verified>,
}

/// A folder of a predecessor.
#[derive(Debug, Clone)]
pub struct LegacyDir {
    /// Whose it is.
    pub owner: Owner,
    /// Its lock file, if it has one, and what that says, if it can be read.
    pub lock: Option<(String, Option<String>)>,
    /// The marker of KWasm, if it is there.
    pub marker: Option<String>,
}

/// What predecessors left in the files that are `config_files` or that those are made from (`sources`), and what stands at the paths that
/// `state` has taken over. What `verify_cache` vouches for is not hashed.
///
/// # Errors
/// When a binary can't be read.
pub(crate) fn find(
    host: &HostRoot,
    config_files: &ConfigFiles,
    sources: &[SourceFile],
    state: &State,
    install_paths: &InstallPaths,
    verify_cache: &VerifyCache,
) -> Result<Legacy, super::error::Error> {
    let mut found = Legacy::default();
    let config_files = config_files.files();
    // What stands in a template stands in what is made from it, too; it is the template that is edited.
    for file in sources.iter().chain(config_files) {
        // A file that can't be read is refused where it is to be edited.
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
    // What was taken over may not be declared any more, and still leaves with all that came with it.
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
        if let Some(legacy_binary) = legacy_binary(host, &path, install_paths, verify_cache)? {
            found.binaries.insert(path, legacy_binary);
        }
    }
    Ok(found)
}

/// Where a folder is a link, what stands in it may be anybody's.
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

/// Whether the lock file names the shim.
fn names(legacy_dir: &LegacyDir, path: &str) -> bool {
    let text = legacy_dir
        .lock
        .as_ref()
        .and_then(|(_, text)| text.as_deref());
    text.and_then(lock_entries)
        .is_some_and(|entries| entries.values().any(|entry| entry.path == path))
}

/// Whether a link stands at `path`, wherever it leads.
fn is_symlink(host: &HostRoot, path: &str) -> Result<bool, Error> {
    match host.symlink_target(path) {
        Ok(target) => Ok(target.is_some()),
        Err(Error::NotText { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

fn symlinks(host: &HostRoot, path: &str) -> Result<Vec<String>, Error> {
    let name = path.rsplit('/').next().unwrap_or_default();
    let mut symlinks = Vec::new();
    for directory in SYMLINK_DIRECTORIES {
        let symlink = format!("{directory}/{name}");
        match host.symlink_target(&symlink) {
            Ok(Some(target)) if target == path => symlinks.push(symlink),
            // A link to a path that is not UTF-8 leads elsewhere.
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
        // It is no binary, so none stands there.
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
    /// The options as a request names them.
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

/// The entries of a lock file, by the name of their handler; `None` where the text is not of this shape.
#[must_use]
pub fn lock_entries(text: &str) -> Option<BTreeMap<String, LockEntry>> {
    let file: LockFile = serde_json::from_str(text).ok()?;
    let is_digest = |entry: &LockEntry| {
        entry.sha256.len().is_multiple_of(2)
            && entry.sha256.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    file.shims.values().all(is_digest).then_some(file.shims)
}

/// The folder of a predecessor that a binary at `path` belongs to.
pub(crate) fn legacy_directory_of(path: &str) -> Option<&str> {
    parent_directory(path).strip_suffix("/bin")
}
