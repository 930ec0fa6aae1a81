//! What a host should carry, as the decision takes it: the set, its owner, and what became of each shim's artifact. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::handoff::{OptionValue, Owner, Problem, Sha256Digest, ShimRequest};

/// What a host should carry.
#[derive(Debug)]
pub struct Goal {
    /// Whose set it is.
    pub owner: Owner,
    /// The set.
    pub shims: Vec<ShimRequest>,
    /// Handlers to declare without a binary.
    pub reserve: Vec<String>,
    /// Options of such handlers.
    pub reserve_options: BTreeMap<String, BTreeMap<String, OptionValue>>,
    /// What else of ours on the host is not wanted any more.
    pub scope: Scope,
    /// SHA-256 of each shim's binary, or why there is none, by the shim's name.
    pub binaries: BTreeMap<String, Result<Sha256Digest, Problem>>,
    /// SHA-256 of the request, where there is one.
    pub digest: Option<Sha256Digest>,
    /// containerd is restarted even where that ends every pod on the node.
    pub allow_pod_restarts: bool,
}

impl Goal {
    /// Gives up the binaries that turned out to be unusable, by SHA-256, each with a sentence; says whether there were any.
    pub fn drop_binaries(&mut self, unusable: &BTreeMap<Sha256Digest, Problem>) -> bool {
        let mut dropped = false;
        for binary in self.binaries.values_mut() {
            let why = binary.as_ref().ok().and_then(|sha256| unusable.get(sha256));
            if let Some(why) = why {
                *binary = Err(why.clone());
                dropped = true;
            }
        }
        dropped
    }
}

/// Which handlers leave that a request does not name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The rest of the owner's set.
    Owner,
    /// None.
    Nothing,
    /// Those of the owner, and of predecessors, that belong to the shims named.
    Shims(BTreeSet<String>),
    /// All of ours, whoever asked for them.
    Everything,
}
