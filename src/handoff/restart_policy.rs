//! What a change does if the restart of containerd would end pods.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a change does if the restart of containerd would end pods. Sorted from the strictest to the least strict policy.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum OnRestart {
    /// The change waits until these pods have ended.
    #[default]
    Refuse,
    /// Farrier evicts these pods, and the change waits until they have ended. The chart must allow that with drain.enabled.
    Drain,
    /// containerd is restarted, and these pods end.
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

    /// The strictest policy of these handlers: [`OnRestart::Allow`] without any.
    #[must_use]
    pub fn strictest<'a>(&self, handlers: impl IntoIterator<Item = &'a str>) -> OnRestart {
        let policies = handlers.into_iter().map(|handler| self.of(handler));
        policies.min().unwrap_or(OnRestart::Allow)
    }

    /// The policy where only handlers that `is_own` counts as Farrier's may be less strict than the default: of a handler that others
    /// declare, a Shim can't let pods end.
    #[must_use]
    pub fn limited_to(mut self, is_own: impl Fn(&str) -> bool) -> Self {
        for (handler, of_handler) in &mut self.handlers {
            if !is_own(handler) {
                *of_handler = self.default.min(*of_handler);
            }
        }
        self
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
