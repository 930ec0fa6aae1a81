//! What is proven of a Shim on a node, beside that its handlers are served.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is proven of the handlers of a Shim before they are advertised, beside that containerd serves them.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum Proof {
    /// Nothing more.
    #[default]
    None,
    /// A pod sandbox of each handler was run and removed.
    Sandbox,
}

impl Proof {
    /// Whether this is the default, which no document contains.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
