//! What a change does if the restart of containerd would end pods.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a change does if the restart of containerd would end pods. The order is from strict to permissive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OnRestart {
    /// The change is refused while such pods run.
    #[default]
    Refuse,
    /// containerd is restarted.
    Allow,
}

impl OnRestart {
    /// Whether this is the default, which no document contains.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The policy of each handler.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestartPolicy {
    /// For handlers that `handlers` does not name.
    pub default: OnRestart,
    /// By name of the handler.
    pub handlers: BTreeMap<String, OnRestart>,
}

impl RestartPolicy {
    /// The policy for the pods of `handler`.
    #[must_use]
    pub fn of(&self, handler: &str) -> OnRestart {
        self.handlers.get(handler).copied().unwrap_or(self.default)
    }

    /// A policy that allows every restart.
    #[must_use]
    pub fn allow_all() -> Self {
        Self {
            default: OnRestart::Allow,
            handlers: BTreeMap::new(),
        }
    }

    /// Whether no handler has another policy than [`OnRestart::Allow`].
    #[must_use]
    pub fn allows_all(&self) -> bool {
        let mut policies = self.handlers.values().chain([&self.default]);
        policies.all(|policy| *policy == OnRestart::Allow)
    }
}
