//! Plans the take-over of legacy handlers, and the removal of the files of KWasm and runtime-class-manager. Pure.
//!
//! A handler that is taken over keeps its path for as long as it is declared: an upgrade replaces the binary at the path without a restart
//! of containerd, and running pods find their shim at the path.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize as _;

use super::types::{HandlerSet, LegacyCleanup, LockChange};
use crate::containerd_config::PluginId;
use crate::handoff::{Owner, Problem, Proof, Sha256Digest};
use crate::installer::inspect::HostFacts;
use crate::installer::inspect::legacy::LegacyHandler;
use crate::installer::inspect::legacy::{LockFile, legacy_directory_of, lock_entries};
use crate::installer::state::{Binary, OwnedHandler};

/// The lock file without the entries of these binaries, in the format of runtime-class-manager: indented by one space. `None` where no entry
/// is left.
fn without_entries(text: &str, gone: &BTreeSet<&String>) -> Option<String> {
    let mut shims = lock_entries(text)?;
    shims.retain(|_, entry| !gone.contains(&entry.path));
    if shims.is_empty() {
        return None;
    }
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    LockFile { shims }.serialize(&mut serializer).ok()?;
    let end = if text.ends_with('\n') { "\n" } else { "" };
    Some(String::from_utf8(bytes).ok()? + end)
}

/// The unmanaged legacy handlers that `file` declares, as the state file would record them after a take-over.
#[must_use]
pub(crate) fn takeover_candidates(facts: &HostFacts, file: &str) -> BTreeMap<String, OwnedHandler> {
    let legacy = facts.legacy.handlers.iter();
    let candidates = legacy.filter(|(name, legacy_handler)| {
        legacy_handler.file == file && !facts.state.handlers.contains_key(*name)
    });
    candidates
        .map(|(name, legacy_handler)| {
            let binary = facts.legacy.binaries.get(&legacy_handler.declared.path);
            let owned = OwnedHandler {
                shim: name.clone(),
                owner: legacy_handler.owner,
                path: Some(legacy_handler.declared.path.clone()),
                options: legacy_handler.options(),
                proof: Proof::None,
                binary: match binary {
                    Some(binary) => Binary::Installed {
                        sha256: binary.sha256,
                        location: String::new(),
                        artifact_sha256: None,
                        file: None,
                    },
                    None => Binary::Reserved,
                },
            };
            (name.clone(), owned)
        })
        .collect()
}

/// Whether the lines of the legacy installer declare a handler exactly as `owned` requires. Such lines stay unchanged.
#[must_use]
pub fn is_declared_as_required(
    legacy_handler: Option<&LegacyHandler>,
    owned: &OwnedHandler,
    plugin: PluginId,
) -> bool {
    legacy_handler.is_some_and(|legacy_handler| {
        let declared = &legacy_handler.declared;
        !declared.marked
            && declared.plugins.contains(&plugin)
            && owned.path.as_ref() == Some(&declared.path)
            && owned.options == legacy_handler.options()
    })
}

impl LegacyCleanup {
    /// Adds the changes in `legacy_dir` that follow from the removal of the binaries `gone`. Their entries leave the lock file. The marker
    /// and the directory itself are removed unless another handler is `declared` in the directory.
    fn add_directory(
        &mut self,
        facts: &HostFacts,
        legacy_dir: &str,
        gone: &BTreeSet<&String>,
        declared: bool,
    ) {
        let known = facts.legacy.legacy_dirs.get(legacy_dir);
        if let Some((path, Some(text))) = known.and_then(|legacy_dir| legacy_dir.lock.as_ref()) {
            let after = without_entries(text, gone);
            if after.as_ref() != Some(text) {
                self.locks.push(LockChange {
                    path: path.clone(),
                    before: Sha256Digest::of(text.as_bytes()),
                    after,
                });
            }
        }
        if !declared {
            let marker = known.and_then(|legacy_dir| legacy_dir.marker.clone());
            self.files.extend(marker);
            self.directories
                .extend([legacy_dir.to_owned(), format!("{legacy_dir}/bin")]);
        }
    }
}

/// The legacy files to remove: those of handlers in `set` that `next` lacks or has without a binary. `unmanaged` names legacy handlers that
/// stay declared.
#[must_use]
pub(crate) fn legacy_cleanup(
    facts: &HostFacts,
    set: &HandlerSet,
    next: &BTreeMap<String, OwnedHandler>,
    unmanaged: &BTreeSet<String>,
) -> LegacyCleanup {
    let is_legacy = |name: &String| set.legacy.contains_key(name) || unmanaged.contains(name);
    let stays = |name: &String| {
        is_legacy(name)
            || set.draining.contains_key(name)
            || next.get(name).is_some_and(|owned| !owned.is_reserved())
    };
    let all = || set.before.keys().chain(set.legacy.keys());
    let path = |name: &String| set.current(name).and_then(|owned| owned.path.as_ref());
    let staying: BTreeSet<&String> = all().filter(|name| stays(name)).filter_map(path).collect();
    let leaving: Vec<&String> = all().filter(|name| !stays(name)).collect();
    let gone: BTreeSet<&String> = leaving
        .iter()
        .filter_map(|name| path(name))
        .filter(|path| !staying.contains(path))
        .collect();
    let is_present = |path: &&&String| facts.legacy.binaries.contains_key(path.as_str());
    let mut legacy_cleanup = LegacyCleanup {
        files: gone
            .iter()
            .filter(is_present)
            .map(|path| (*path).clone())
            .collect(),
        ..LegacyCleanup::default()
    };
    let symlinks = gone
        .iter()
        .filter_map(|path| facts.legacy.symlinks.get(*path))
        .flatten();
    legacy_cleanup.files.extend(symlinks.cloned());
    let declared: BTreeSet<&str> = all()
        .filter(|name| {
            is_legacy(name) || set.draining.contains_key(*name) || next.contains_key(*name)
        })
        .filter_map(path)
        .filter_map(|path| legacy_directory_of(path))
        .collect();
    let legacy_dirs: BTreeSet<&str> = gone
        .iter()
        .filter_map(|path| legacy_directory_of(path))
        .collect();
    for legacy_dir in legacy_dirs {
        legacy_cleanup.add_directory(facts, legacy_dir, &gone, declared.contains(legacy_dir));
    }
    legacy_cleanup
}

/// Problems with legacy handlers and files that were not taken over, each with its help.
#[must_use]
pub fn legacy_problems(facts: &HostFacts) -> Vec<Problem> {
    let mut problems = Vec::new();
    let is_taken_over = |name: &String| facts.state.handlers.contains_key(name);
    for (owner, product) in [
        (Owner::Kwasm, "KWasm"),
        (Owner::Rcm, "runtime-class-manager"),
    ] {
        let handlers = facts.legacy.handlers.iter();
        let names: Vec<&str> = handlers
            .filter(|(name, legacy_handler)| legacy_handler.owner == owner && !is_taken_over(name))
            .map(|(name, _)| name.as_str())
            .collect();
        if !names.is_empty() {
            let names = names.join(", ");
            problems.push(Problem::with_help(
                format!("handlers of {product} were not taken over: {names}"),
                "install shims with these handler names, or remove the handlers with `farrier uninstall --shim NAME` or `farrier uninstall --all`",
            ));
        }
    }
    let files = facts.config_files.files();
    for file in files {
        let text = file.text.as_deref().unwrap_or_default();
        // KWasm before 0.3.0 declared runc's shim with crun as its program. Such a handler has no shim that could be taken over.
        if text.contains("\"/opt/kwasm/bin/crun\"") {
            problems.push(Problem::with_help(
                format!(
                    "{} declares a handler that runs crun of an old KWasm release",
                    file.path
                ),
                "remove the handler from the file by hand after its last pod has ended",
            ));
        }
    }
    for legacy_dir in facts.legacy.legacy_dirs.values() {
        if let Some((path, None)) = &legacy_dir.lock {
            problems.push(Problem::with_help(
                format!("failed to read the lock file {path}, so Farrier leaves it unchanged"),
                "remove the file after the last pod of its shims has ended",
            ));
        }
    }
    problems
}
