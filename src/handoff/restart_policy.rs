//! What a change does if the restart of containerd would end pods.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a change does if the restart of containerd would end pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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

    /// Whether no handler has another policy than [`OnRestart::Allow`].
    #[must_use]
    pub fn allows_all(&self) -> bool {
        let mut policies = self.handlers.values().chain([&self.default]);
        policies.all(|policy| *policy == OnRestart::Allow)
    }
}

/// The same policy for every handler.
impl From<OnRestart> for RestartPolicy {
    fn from(default: OnRestart) -> Self {
        Self {
            default,
            handlers: BTreeMap::new(),
        }
    }
}
