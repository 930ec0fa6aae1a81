//! Reads what `containerd config dump` prints, and judges a candidate by the dumps before and after: values, never text.
//!
//! A dump holds registry passwords: errors name keys and never values.

use std::collections::{BTreeMap, BTreeSet};

use super::document::Document;
use super::runtimes::RUNC;
use super::tree::{Tree, at, difference, leaf};
use super::{DeclaredHandler, Error, Handler, PluginId};

/// What stands for the file's path in an error about a dump.
const DUMP: &str = "the dump of containerd's configuration";

/// The default runtime's name and all handlers that a dump shows.
///
/// # Errors
/// When the dump is no TOML or not shaped as a configuration.
pub fn runtimes_of_dump(dump: &str) -> Result<(String, BTreeMap<String, DeclaredHandler>), Error> {
    let document = Document::parse(DUMP, dump)?;
    let tree = document.tree();
    // A dump uses the newest id that its release knows, whatever the files use.
    for plugin in PluginId::ALL.into_iter().rev() {
        let mut handlers = document.handlers(plugin)?;
        let [plugins, key, containerd, _] = plugin.runtimes();
        let mut default = leaf(&tree, &[plugins, key, containerd, "default_runtime_name"]);
        // Tables of 1.x from before `runtimes`: the daemon makes them handlers of these names, which its dump doesn't show.
        for (table, name) in [
            ("default_runtime", "default"),
            ("untrusted_workload_runtime", "untrusted"),
        ] {
            let path = [plugins, key, containerd, table, "runtime_type"];
            if let Some(runtime_type) = leaf(&tree, &path).filter(|text| !text.is_empty()) {
                let handler = DeclaredHandler {
                    runtime_type,
                    ..DeclaredHandler::default()
                };
                handlers.entry(name.to_owned()).or_insert(handler);
                if name == "default" {
                    default = Some(name.to_owned());
                }
            }
        }
        if !handlers.is_empty() || default.is_some() {
            return Ok((default.unwrap_or_default(), handlers));
        }
    }
    Ok((String::new(), BTreeMap::new()))
}

/// Whether the candidate changes only what is ours.
///
/// `before` and `after` are dumps of the same daemon; `ours` names the handlers that may appear, change or go. `runc` may lose
/// or gain zero values, which is what spelling it out does on 1.x. `imports` isn't compared: it names the files.
///
/// # Errors
/// Names the first key that differs, or says that the default runtime would be missing.
pub fn judge(before: &str, after: &str, ours: &BTreeSet<String>) -> Result<(), Error> {
    let values = |dump: &str| -> Result<Tree, Error> {
        let mut tree = Document::parse(DUMP, dump)?.tree();
        if let Tree::Table(root) = &mut tree {
            root.remove("imports");
        }
        for plugin in PluginId::ALL {
            if let Some(runtimes) = at(&mut tree, &plugin.runtimes()) {
                runtimes.retain(|name, _| !ours.contains(name));
                if let Some(runc) = runtimes.get_mut(RUNC) {
                    settle(runc);
                }
            }
        }
        Ok(tree)
    };
    if let Some(key) = difference(&values(before)?, &values(after)?) {
        return Err(Error::Changed { key });
    }
    let (name, handlers) = runtimes_of_dump(after)?;
    if name.is_empty() || !handlers.contains_key(&name) {
        return Err(Error::NoDefault { name });
    }
    Ok(())
}

/// Whether the daemon sees every handler of `want` as it is declared.
///
/// # Errors
/// Names the first handler that the dump lacks or shows differently; or the dump can't be read.
pub fn holds(dump: &str, want: &[Handler]) -> Result<(), Error> {
    let (_, handlers) = runtimes_of_dump(dump)?;
    let seen = |handler: &&Handler| {
        handlers.get(&handler.name).is_some_and(|found| {
            found.runtime_type == handler.runtime_type && found.options == handler.options
        })
    };
    match want.iter().find(|handler| !seen(handler)) {
        Some(handler) => Err(Error::Unseen {
            handler: handler.name.clone(),
        }),
        None => Ok(()),
    }
}

/// Drops what containerd's default `runc` says and a spelled out one doesn't need to: zero values, and the one mode of sandboxes
/// that 1.7 has unless told otherwise.
fn settle(tree: &mut Tree) {
    if let Tree::Table(table) = tree {
        table.values_mut().for_each(settle);
        table.retain(|key, value| match value {
            Tree::Table(table) => !table.is_empty(),
            Tree::Array(array) => !array.is_empty(),
            Tree::Leaf(text) => {
                !matches!(text.as_str(), "string " | "integer 0" | "boolean false")
                    && (key != "sandbox_mode" || text != "string podsandbox")
            }
        });
    }
}
