//! What becomes of the handlers that KWasm and runtime-class-manager left: recorded as theirs, taken over by name, and taken away with
//! all that came with them. Pure.
//!
//! A handler that is taken over keeps its path for as long as it is declared: another binary is put behind the path, which restarts
//! nothing, and pods that run from it find their shim there.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::handlers::Desired;
use crate::containerd_config::PluginId;
use crate::handoff::{Owner, sha256_hex};
use crate::installer::inspect::Facts;
use crate::installer::inspect::legacy::Inherited;
use crate::installer::inspect::legacy::{LockFile, home_of, lock_entries};
use crate::installer::state::OwnedHandler;

/// What goes of a predecessor once a change stands. Doing it twice does no harm.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leftovers {
    /// Binaries, links to them, and markers.
    pub files: Vec<String>,
    /// Lock files that lose entries.
    pub locks: Vec<LockChange>,
    /// Folders, where they are empty, outermost first.
    pub folders: Vec<String>,
}

impl Leftovers {
    /// Whether nothing goes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.locks.is_empty()
    }
}

/// A lock file that loses entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LockChange {
    /// Absolute path on the host.
    pub path: String,
    /// SHA-256 of its text now.
    pub before: String,
    /// Its text afterwards; `None` where no entry is left.
    pub after: Option<String>,
}

/// The lock file without the entries of these binaries, as its writer spells it: indented by one space.
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

/// Whether the handlers of this owner are a predecessor's that nobody has taken over.
#[must_use]
pub fn is_predecessor(owner: Owner) -> bool {
    match owner {
        Owner::Cluster | Owner::Local => false,
        Owner::Kwasm | Owner::Rcm => true,
    }
}

/// What is ours by the state file, and beside it what predecessors declare today, each as its owner's.
#[must_use]
pub fn recorded(facts: &Facts, file: &str) -> BTreeMap<String, OwnedHandler> {
    let mut handlers = facts.state.handlers.clone();
    handlers.retain(|_, owned| !is_predecessor(owned.owner));
    for (name, inherited) in &facts.inheritance.handlers {
        if inherited.file == file && !handlers.contains_key(name) {
            let standing = facts.inheritance.binaries.get(&inherited.declared.path);
            let owned = OwnedHandler {
                shim: name.clone(),
                owner: inherited.owner,
                path: Some(inherited.declared.path.clone()),
                sha256: standing.map(|standing| standing.sha256.clone()),
                location: String::new(),
                artifact_sha256: None,
                options: inherited.options(),
            };
            handlers.insert(name.clone(), owned);
        }
    }
    handlers
}

/// Whether a handler that was taken over is declared by its predecessor's own lines just as it should be: they stay.
#[must_use]
pub fn is_in_place(inherited: Option<&Inherited>, owned: &OwnedHandler, plugin: PluginId) -> bool {
    inherited.is_some_and(|inherited| {
        let declared = &inherited.declared;
        !declared.marked
            && declared.plugins.contains(&plugin)
            && owned.path.as_ref() == Some(&declared.path)
            && owned.options == inherited.options()
    })
}

impl Leftovers {
    /// Adds what of a predecessor's `home` goes with the binaries that are `gone`; all of it, unless another handler is `declared` there.
    fn leave(&mut self, facts: &Facts, home: &str, gone: &BTreeSet<&String>, declared: bool) {
        let known = facts.inheritance.homes.get(home);
        if let Some((path, Some(text))) = known.and_then(|home| home.lock.as_ref()) {
            let after = without_entries(text, gone);
            if after.as_ref() != Some(text) {
                self.locks.push(LockChange {
                    path: path.clone(),
                    before: sha256_hex(text.as_bytes()),
                    after,
                });
            }
        }
        if !declared {
            let marker = known.and_then(|home| home.marker.clone());
            self.files.extend(marker);
            self.folders
                .extend([home.to_owned(), format!("{home}/bin")]);
        }
    }
}

/// What goes with the handlers that `desired` had before and `next` has no more, or without a binary; `untouched` names handlers that
/// are declared and nobody's concern.
#[must_use]
pub(crate) fn leftovers(
    facts: &Facts,
    desired: &Desired,
    next: &BTreeMap<String, OwnedHandler>,
    untouched: &BTreeSet<String>,
) -> Leftovers {
    let before = &desired.before;
    let stays = |name: &String| {
        untouched.contains(name)
            || desired.late.contains_key(name)
            || next
                .get(name)
                .is_some_and(|owned| owned.sha256.is_some() || is_predecessor(owned.owner))
    };
    let path = |name: &String| before.get(name).and_then(|owned| owned.path.as_ref());
    let staying: BTreeSet<&String> = before
        .keys()
        .filter(|name| stays(name))
        .filter_map(path)
        .collect();
    let leaving: Vec<&String> = before.keys().filter(|name| !stays(name)).collect();
    let gone: BTreeSet<&String> = leaving
        .iter()
        .filter_map(|name| path(name))
        .filter(|path| !staying.contains(path))
        .collect();
    let standing = |path: &&&String| facts.inheritance.binaries.contains_key(path.as_str());
    let mut leftovers = Leftovers {
        files: gone
            .iter()
            .filter(standing)
            .map(|path| (*path).clone())
            .collect(),
        ..Leftovers::default()
    };
    let links = gone
        .iter()
        .filter_map(|path| facts.inheritance.links.get(*path))
        .flatten();
    leftovers.files.extend(links.cloned());
    let declared: BTreeSet<&str> = before
        .keys()
        .filter(|name| {
            next.contains_key(*name)
                || desired.late.contains_key(*name)
                || untouched.contains(*name)
        })
        .filter_map(path)
        .filter_map(|path| home_of(path))
        .collect();
    let homes: BTreeSet<&str> = gone.iter().filter_map(|path| home_of(path)).collect();
    for home in homes {
        leftovers.leave(facts, home, &gone, declared.contains(home));
    }
    leftovers
}

/// What predecessors left and nobody has taken over, each with what can be done about it.
#[must_use]
pub fn complaints(facts: &Facts) -> Vec<(String, &'static str)> {
    let mut complaints = Vec::new();
    let claimed = |name: &String| {
        let owned = facts.state.handlers.get(name);
        owned.is_some_and(|owned| !is_predecessor(owned.owner))
    };
    for (owner, word) in [
        (Owner::Kwasm, "KWasm"),
        (Owner::Rcm, "runtime-class-manager"),
    ] {
        let handlers = facts.inheritance.handlers.iter();
        let names: Vec<&str> = handlers
            .filter(|(name, inherited)| inherited.owner == owner && !claimed(name))
            .map(|(name, _)| name.as_str())
            .collect();
        if !names.is_empty() {
            let names = names.join(", ");
            complaints.push((
                format!("handlers that {word} installed are nobody's by now: {names}"),
                "take them over with shims of these handler names, or remove them with `farrier uninstall --shim NAME` or `--all`",
            ));
        }
    }
    let files = facts.loaded.files();
    for file in files {
        let text = file.text.as_deref().unwrap_or_default();
        // What releases of KWasm before 0.3.0 declared: runc's shim with another program, which is no shim that could be taken over.
        if text.contains("\"/opt/kwasm/bin/crun\"") {
            complaints.push((
                format!(
                    "{} runs crun as an old release of KWasm installed it",
                    file.path
                ),
                "remove that handler from the file by hand once nothing uses it",
            ));
        }
    }
    for home in facts.inheritance.homes.values() {
        if let Some((path, None)) = &home.lock {
            complaints.push((
                format!("{path} can't be read and is left alone"),
                "remove it once nothing that it names is in use",
            ));
        }
    }
    complaints
}
