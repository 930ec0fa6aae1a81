//! What the suites of the configuration editor ask of handlers. Helpers, no tests.

use std::collections::BTreeSet;

use farrier::containerd_config::Handler;

/// The names of these handlers, as the editor takes those that are ours.
pub fn names(handlers: &[Handler]) -> BTreeSet<String> {
    handlers
        .iter()
        .map(|handler| handler.name.clone())
        .collect()
}
