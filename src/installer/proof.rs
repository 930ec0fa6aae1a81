//! What a containerd must serve to count as proven. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::cri::Served;
use super::facts::Facts;
use super::plan::HostPlan;
use super::site::declarations;
use crate::containerd_config::Handler;

/// Whether the running containerd has loaded exactly what is declared as ours.
pub(super) fn is_served(served: &Served, declared: &[Handler], ours: &BTreeSet<String>) -> bool {
    let listed =
        |handler: &Handler| served.handlers.get(&handler.name) == Some(&handler.runtime_type);
    let gone = |name: &&String| declared.iter().all(|handler| handler.name != **name);
    declared.iter().all(listed)
        && ours
            .iter()
            .filter(gone)
            .all(|name| !served.handlers.contains_key(name))
}

/// The handlers that `plan` concerns as they were declared before it: ours, and those of predecessors that it takes over or away.
#[must_use]
pub fn declared_before(facts: &Facts, plan: &HostPlan) -> Vec<Handler> {
    let mut declared = declarations(facts, &facts.state.handlers);
    let served = facts.served.iter().flat_map(|served| &served.handlers);
    let theirs = served.filter(|(name, _)| {
        plan.ours.contains(*name) && facts.inheritance.handlers.contains_key(*name)
    });
    for (name, runtime_type) in theirs {
        if declared.iter().all(|handler| handler.name != *name) {
            declared.push(Handler {
                name: name.clone(),
                runtime_type: runtime_type.clone(),
                options: BTreeMap::new(),
            });
        }
    }
    declared
}

/// Whether containerd serves after a restart what it should: ours with our paths, the others and the default as before.
///
/// # Errors
/// Says in one sentence what differs.
pub fn prove(
    before: &Served,
    after: &Served,
    declared: &[Handler],
    ours: &BTreeSet<String>,
) -> Result<(), String> {
    let others = |served: &Served| {
        let (mut handlers, mut options) = (served.handlers.clone(), served.options.clone());
        handlers.retain(|name, _| !ours.contains(name));
        options.retain(|name, _| !ours.contains(name));
        (handlers, options)
    };
    if !after.ready {
        return Err("containerd's runtime is not ready".to_owned());
    }
    if before.default != after.default {
        return Err(format!(
            "the default runtime was {:?} and is {:?}",
            before.default, after.default
        ));
    }
    if others(before) != others(after) {
        return Err("runtimes that are not Farrier's changed".to_owned());
    }
    if !is_served(after, declared, ours) {
        return Err("containerd does not list the handlers as they are declared".to_owned());
    }
    Ok(())
}
