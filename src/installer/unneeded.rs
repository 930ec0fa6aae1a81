//! What stands in our two folders and is needed by nothing. Pure: a plan shows it, and whoever clears up after a change asks again, by
//! what stands and runs then.

use std::collections::{BTreeMap, BTreeSet};

use super::state::{Places, State};

/// Paths of links and stored files that nothing of `state` needs, the links first. `links` are ours among the stable paths with the
/// binary that each leads to, by file name, `stored` the files that are ours in the store, and `is_used` says whether pods run on a handler.
pub(super) fn unneeded(
    places: &Places,
    state: Option<&State>,
    links: &BTreeMap<String, String>,
    stored: &BTreeSet<String>,
    is_used: impl Fn(&str) -> bool,
) -> Vec<String> {
    let carried = || {
        state
            .iter()
            .flat_map(|state| state.handlers.iter().chain(&state.late))
    };
    let linked: BTreeSet<&str> = carried()
        .filter(|(_, owned)| owned.sha256.is_some() && owned.path.is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    let mut needed: BTreeSet<&String> = carried()
        .filter_map(|(_, owned)| owned.sha256.as_ref())
        .collect();
    let mut paths = Vec::new();
    for (name, sha256) in links {
        match Places::handler_of(name) {
            Some(handler) if linked.contains(handler) => {}
            // A pod that came while its handler left keeps the binary: without it, its sandbox could never be ended.
            Some(handler) if is_used(handler) => {
                needed.insert(sha256);
            }
            Some(_) | None => paths.push(format!("{}/{name}", places.bin())),
        }
    }
    let stored = stored.iter().filter(|name| !needed.contains(name));
    paths.extend(stored.map(|name| places.store_path(name)));
    paths
}
