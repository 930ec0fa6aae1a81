//! What is to be said of a change beside what becomes of each handler. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::config_edit::hands_options_over;
use super::goal::{Scope, Want};
use super::handlers::Desired;
use super::takeover::is_predecessor;
use crate::installer::inspect::Facts;
use crate::installer::state::{OwnedHandler, owner_word};

/// What an operator should know of a change that leaves nothing undone: sentences.
pub(crate) fn notes(
    facts: &Facts,
    want: &Want,
    desired: &Desired,
    next: &BTreeMap<String, OwnedHandler>,
) -> Vec<String> {
    let with_options = next.iter().filter(|(_, owned)| !owned.options.is_empty());
    let without = with_options.filter(|_| !hands_options_over(facts));
    let without = without.map(|(name, _)| {
        format!(
            "the options of handler {name} are left out, because containerd 1.6 hands them to no shim but runc's; they are written at the first run on 1.7 or later"
        )
    });
    let adopted = next.iter().filter_map(|(name, owned)| {
        let before = desired.before.get(name).map(|owned| owned.owner);
        let from = before.filter(|from| is_predecessor(*from) && !is_predecessor(owned.owner))?;
        let (from, to) = (owner_word(from), owner_word(owned.owner));
        Some(format!(
            "handler {name} is taken over from {from}: it belongs to {to} from now on, and leaves with it"
        ))
    });
    let reserved = desired
        .leaving
        .iter()
        .filter(|name| next.contains_key(*name));
    let reserved = reserved.map(|name| {
        format!(
            "handler {name} stays declared without a binary, so that containerd is not restarted; it goes with the next change that restarts it"
        )
    });
    without
        .chain(adopted)
        .chain(reserved)
        .chain(unknown(want, &desired.before))
        .collect()
}

/// What is said of shims that are to leave and that nobody knows.
pub(crate) fn unknown(
    want: &Want,
    before: &BTreeMap<String, OwnedHandler>,
) -> impl Iterator<Item = String> {
    let named = match &want.scope {
        Scope::Shims(shims) => shims.clone(),
        Scope::Owner | Scope::Nothing | Scope::Everything => BTreeSet::new(),
    };
    let is_known = |shim: &String| before.values().any(|owned| owned.shim == *shim);
    named
        .into_iter()
        .filter(move |shim| !is_known(shim))
        .map(|shim| {
            format!("no shim {shim} is installed here; `farrier doctor` lists those that are")
        })
}
