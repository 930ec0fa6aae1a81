//! Whose turn it is: which nodes may change a Shim that is rolled out a few nodes at a time. Pure.
//!
//! Nodes are counted over all Shims together: two rollouts at a time are no reason to have twice as many nodes restart their runtime.

use std::collections::BTreeMap;

use super::desired::Cluster;
use super::types::Tally;
use crate::api::{MaxUpdate, ShimSpec};
use crate::controller::cluster::node_view::NodeView;

/// How far the other nodes are, as far as the turn of one depends on them.
#[derive(Debug)]
pub struct Others<'a> {
    /// Nodes beside this one whose hosts are being changed.
    pub changing: usize,
    /// This node's own host is being changed.
    pub is_changing: bool,
    /// How far each Shim is on all nodes.
    pub tallies: &'a BTreeMap<String, Tally>,
}

/// The Shims that `node` is not to change yet, each with what it waits for.
#[must_use]
pub fn blocked_by_rollout(
    others: &Others<'_>,
    node: &NodeView,
    cluster: &Cluster,
) -> BTreeMap<String, String> {
    let readable = cluster
        .shims
        .iter()
        .filter_map(|shim| Some((&shim.name, shim.spec.as_ref().ok()?)));
    readable
        .filter_map(|(shim, spec)| Some((shim.clone(), waits_for(others, node, shim, spec)?)))
        .collect()
}

/// Every Shim that `node` has to wait its turn for, as one for which it has not come.
#[must_use]
pub fn all_blocked_by_rollout(node: &NodeView, cluster: &Cluster) -> BTreeMap<String, String> {
    let rolling = cluster.shims.iter().filter(|shim| {
        let spec = shim.spec.as_ref();
        spec.is_ok_and(|spec| most_at_a_time(node, spec).is_some())
    });
    rolling
        .map(|shim| (shim.name.clone(), "its turn has not come".to_owned()))
        .collect()
}

/// How many nodes may change together with `node`; nothing where all may. A restart of k3s or RKE2 takes the API server and etcd along,
/// so that nodes of the control plane change one at a time, whatever the strategy.
fn most_at_a_time(node: &NodeView, spec: &ShimSpec) -> Option<MaxUpdate> {
    if node.control_plane {
        Some(MaxUpdate::Nodes(1))
    } else {
        spec.rollout_strategy.max_update()
    }
}

fn waits_for(others: &Others<'_>, node: &NodeView, shim: &str, spec: &ShimSpec) -> Option<String> {
    let most = most_at_a_time(node, spec)?;
    let none = Tally::default();
    let tally = others.tallies.get(shim).unwrap_or(&none);
    if let Some((other, reason)) = tally.halted_by(&node.name) {
        return Some(format!("the rollout is halted by node {other}: {reason}"));
    }
    if node.control_plane && tally.has_workers_left() {
        return Some("control-plane nodes come last".to_owned());
    }
    let most = most.of(tally.nodes() + tally.removing.len());
    let changing = others.changing;
    (changing >= most && !others.is_changing).then(|| {
        if node.control_plane {
            format!("control-plane nodes change one at a time, and {changing} other nodes are being changed")
        } else {
            format!("{changing} other nodes are being changed, and rolloutStrategy allows {most} at a time")
        }
    })
}
