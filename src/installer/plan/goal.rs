//! The goal of a decision: the desired set of a host, its owner, and the binaries of its shims. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::handoff::{
    OnRestart, OptionValue, Owner, Problem, RestartPolicy, Sha256Digest, ShimRequest,
};
use crate::installer::inspect::HostFacts;

/// The state that a decision should bring a host to.
#[derive(Debug, Clone)]
pub struct Goal {
    /// The owner of the desired set.
    pub owner: Owner,
    /// The desired set.
    pub shims: Vec<ShimRequest>,
    /// Handlers to declare without a binary.
    pub reserve: Vec<String>,
    /// The options of the handlers in `reserve`, by handler.
    pub reserve_options: BTreeMap<String, BTreeMap<String, OptionValue>>,
    /// Which other managed handlers leave the host.
    pub scope: Scope,
    /// Handlers of the cluster change their owner where the command line requests them.
    pub take_over: bool,
    /// SHA-256 of each shim's binary, or the reason that the binary is missing, by the name of the shim.
    pub binaries: BTreeMap<String, Result<Sha256Digest, Problem>>,
    /// The shims that stay as they are, because the restart that they need would end pods.
    pub waiting: BTreeSet<String>,
    /// SHA-256 of the request; `None` where the goal comes without a request.
    pub digest: Option<Sha256Digest>,
    /// containerd is restarted even where a restart ends every pod on the node.
    pub allow_pod_restarts: bool,
    /// Whether a restart may end pods whose shims report no process, by handler.
    pub restart_policy: RestartPolicy,
    /// containerd is restarted even where the restart puts changes of others into effect.
    pub accept_pending_changes: bool,
}

impl Goal {
    /// The policy of restarts. `allow_pod_restarts`, which allows to end all pods, allows to end some.
    #[must_use]
    pub fn effective_restart_policy(&self, facts: &HostFacts) -> RestartPolicy {
        if self.allow_pod_restarts {
            return OnRestart::Allow.into();
        }
        let policy = self.restart_policy.clone();
        policy.limited_to(|handler| facts.is_own(handler))
    }

    /// Whether a shim of the goal has this handler.
    #[must_use]
    pub fn has_handler(&self, handler: &str) -> bool {
        let mut handlers = self.shims.iter().flat_map(|shim| &shim.handlers);
        handlers.any(|name| name == handler)
    }

    /// Replaces the `unusable` binaries, by SHA-256, with their problems. Returns whether the goal had any of them.
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

/// Which of the handlers that a request does not name leave the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The other handlers of the owner.
    Owner,
    /// None.
    Nothing,
    /// The handlers of these shims, if they belong to the owner or are legacy handlers.
    Shims(BTreeSet<String>),
    /// All managed handlers of all owners, and all legacy handlers.
    Everything,
}
