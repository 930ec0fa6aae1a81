//! A configuration as plain values, to compare two of them whatever their notation.

use std::collections::{BTreeMap, BTreeSet};

use toml_edit::{Item, TableLike, Value as Toml};

/// Values without their notation: equal where a TOML reader sees no difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tree {
    /// A table of any notation.
    Table(BTreeMap<String, Tree>),
    /// An array, of tables too.
    Array(Vec<Tree>),
    /// Anything else, with its type.
    Leaf(String),
}

/// The values of a table.
pub(super) fn tree_of_table(table: &dyn TableLike) -> Tree {
    Tree::Table(
        table
            .iter()
            .map(|(key, item)| (key.to_owned(), tree_of_item(item)))
            .collect(),
    )
}

fn tree_of_item(item: &Item) -> Tree {
    match item {
        Item::None => Tree::Leaf(String::new()),
        Item::Value(value) => tree_of_value(value),
        Item::Table(table) => tree_of_table(table),
        Item::ArrayOfTables(tables) => {
            Tree::Array(tables.iter().map(|table| tree_of_table(table)).collect())
        }
    }
}

fn tree_of_value(value: &Toml) -> Tree {
    match value {
        Toml::String(text) => Tree::Leaf(format!("string {}", text.value())),
        Toml::Integer(number) => Tree::Leaf(format!("integer {}", number.value())),
        Toml::Float(number) => Tree::Leaf(format!("float {:?}", number.value())),
        Toml::Boolean(value) => Tree::Leaf(format!("boolean {}", value.value())),
        Toml::Datetime(time) => Tree::Leaf(format!("time {}", time.value())),
        Toml::Array(array) => Tree::Array(array.iter().map(tree_of_value).collect()),
        Toml::InlineTable(table) => tree_of_table(table),
    }
}

/// The string at `path`.
pub(super) fn leaf(tree: &Tree, path: &[&str]) -> Option<String> {
    value(tree, path)?
        .strip_prefix("string ")
        .map(str::to_owned)
}

/// The boolean at `path`.
pub(super) fn boolean(tree: &Tree, path: &[&str]) -> Option<bool> {
    value(tree, path)?.strip_prefix("boolean ")?.parse().ok()
}

fn value<'a>(tree: &'a Tree, path: &[&str]) -> Option<&'a str> {
    match (tree, path.split_first()) {
        (Tree::Table(table), Some((first, rest))) => value(table.get(*first)?, rest),
        (Tree::Leaf(text), None) => Some(text),
        (Tree::Table(_) | Tree::Array(_) | Tree::Leaf(_), _) => None,
    }
}

/// The table at `path`.
pub(super) fn at<'a>(tree: &'a mut Tree, path: &[&str]) -> Option<&'a mut BTreeMap<String, Tree>> {
    let Tree::Table(table) = tree else {
        return None;
    };
    match path.split_first() {
        Some((first, rest)) => at(table.get_mut(*first)?, rest),
        None => Some(table),
    }
}

/// Removes `names` from the table at `path`, and on the way back every table that is empty then.
pub(super) fn without(tree: &mut Tree, path: &[&str], names: &BTreeSet<String>) {
    let Tree::Table(table) = tree else { return };
    let Some((first, rest)) = path.split_first() else {
        table.retain(|name, _| !names.contains(name));
        return;
    };
    if let Some(next) = table.get_mut(*first) {
        without(next, rest, names);
        if matches!(next, Tree::Table(next) if next.is_empty()) {
            table.remove(*first);
        }
    }
}

/// The first key, with dots, whose values differ.
pub(super) fn difference(before: &Tree, after: &Tree) -> Option<String> {
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
