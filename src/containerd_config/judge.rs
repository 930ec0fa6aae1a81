//! Reads what `containerd config dump` prints, and judges a candidate by the dumps before and after: values, never text.
//!
//! A dump holds registry passwords: errors name keys and never values.

use std::collections::{BTreeMap, BTreeSet};

use super::document::{Document, Tree};
use super::runtimes::RUNC;
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
        let handlers = document.handlers(plugin)?;
        let [plugins, key, containerd, _] = plugin.runtimes();
        let name = leaf(&tree, &[plugins, key, containerd, "default_runtime_name"]);
        if !handlers.is_empty() || name.is_some() {
            return Ok((name.unwrap_or_default(), handlers));
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

fn leaf(tree: &Tree, path: &[&str]) -> Option<String> {
    match (tree, path.split_first()) {
        (Tree::Table(table), Some((first, rest))) => leaf(table.get(*first)?, rest),
        (Tree::Leaf(text), None) => text.strip_prefix("string ").map(str::to_owned),
        (Tree::Table(_) | Tree::Array(_) | Tree::Leaf(_), _) => None,
    }
}

fn at<'a>(tree: &'a mut Tree, path: &[&str]) -> Option<&'a mut BTreeMap<String, Tree>> {
    let Tree::Table(table) = tree else {
        return None;
    };
    match path.split_first() {
        Some((first, rest)) => at(table.get_mut(*first)?, rest),
        None => Some(table),
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

/// The first key, with dots, whose values differ.
fn difference(before: &Tree, after: &Tree) -> Option<String> {
    let (Tree::Table(one), Tree::Table(other)) = (before, after) else {
        return (before != after).then(String::new);
    };
    let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    keys.into_iter().find_map(|key| {
        let below = match (one.get(key), other.get(key)) {
            (Some(one), Some(other)) => difference(one, other)?,
            _ => String::new(),
        };
        Some(if below.is_empty() {
            key.clone()
        } else {
            format!("{key}.{below}")
        })
    })
}
