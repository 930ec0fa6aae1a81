//! Conversions of handlers for the suites of the configuration editor. Helpers, no tests.

use std::collections::BTreeSet;

use farrier::containerd_config::Handler;

/// The names of these handlers, in the form in which the editor takes Farrier's handlers.
pub fn names(handlers: &[Handler]) -> BTreeSet<String> {
    handlers
        .iter()
        .map(|handler| handler.name.clone())
        .collect()
}
