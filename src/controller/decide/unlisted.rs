//! Handlers that containerd serves and the kubelet does not list. Pure.

use super::event::{EventSpec, LONGEST_NOTE, LONGEST_REASON, shortened};
use super::job_due::all_listed;
use crate::controller::cluster::node_view::{Applied, NodeView, Unlisted};
use crate::handoff::{Problem, printable_up_to};

/// Counts the writes of a kubelet that does not list a served handler. Returns the Event if the handler counts as missing from now on.
pub fn count_unlisted(node: &NodeView, applied: &mut Applied) -> Option<EventSpec> {
    let before = applied.unlisted.take()?;
    if all_listed(node, applied) {
        return None;
    }
    if before.is_certain() || before.heartbeat == node.heartbeat {
        applied.unlisted = Some(before);
        return None;
    }
    let unlisted = Unlisted {
        heartbeat: node.heartbeat,
        writes: before.writes.saturating_add(1),
    };
    let is_certain = unlisted.is_certain();
    applied.unlisted = Some(unlisted);
    if !is_certain {
        return None;
    }
    let marked = mark_unlisted(applied, node);
    let note = printable_up_to(&marked.join("; "), LONGEST_NOTE);
    applied.reason.get_or_insert_with(|| note.clone());
    Some(EventSpec::failure(&note))
}

/// Marks Shims as failed that containerd serves and the kubelet does not list. Returns a sentence for each.
pub fn mark_unlisted(applied: &mut Applied, node: &NodeView) -> Vec<String> {
    let mut marked = Vec::new();
    for (name, shim) in &mut applied.shims {
        let served = shim.handlers.iter().filter(|(_, served)| **served);
        let unlisted: Vec<&str> = served
            .map(|(handler, _)| handler.as_str())
            .filter(|handler| !node.lists(handler))
            .collect();
        if !unlisted.is_empty() && shim.reason.is_none() {
            let unlisted = unlisted.join(", ");
            let reason = shortened(
                &Problem::with_help(
                    format!("containerd serves {unlisted} but the kubelet does not list it"),
                    "check that the kubelet uses this containerd",
                ),
                LONGEST_REASON,
            );
            marked.push(format!("shim {name}: {reason}"));
            shim.reason = Some(reason);
        }
    }
    marked
}
