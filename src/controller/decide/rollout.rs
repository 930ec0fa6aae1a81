//! Which nodes may change a Shim that is rolled out a few nodes at a time. Pure.
//!
//! Nodes are counted over all Shims together: two rollouts at the same time must not restart containerd on twice as many nodes.

use std::collections::BTreeMap;

use super::desired::Cluster;
use super::types::Tally;
use crate::api::{MaxUpdate, ShimSpec};
use crate::controller::cluster::node_view::NodeView;

/// The state of the other nodes, as far as a rollout depends on it.
#[derive(Debug)]
pub struct Others<'a> {
    /// Number of other nodes that are changing.
    pub changing: usize,
    /// This node is changing.
    pub is_changing: bool,
    /// The progress of each Shim on all nodes.
    pub tallies: &'a BTreeMap<String, Tally>,
}

/// The Shims that have to wait on `node`, each with the reason.
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

/// All Shims with a limited rollout on `node`, as if the limit were reached.
#[must_use]
pub fn all_blocked_by_rollout(node: &NodeView, cluster: &Cluster) -> BTreeMap<String, String> {
    let rolling = cluster.shims.iter().filter(|shim| {
        let spec = shim.spec.as_ref();
        spec.is_ok_and(|spec| most_at_a_time(node, spec).is_some())
    });
    rolling
        .map(|shim| (shim.name.clone(), "waiting for its turn".to_owned()))
        .collect()
}

/// How many nodes may change together with `node`; `None` without a limit. A restart of k3s or RKE2 also restarts the API server and etcd,
/// so control-plane nodes change one at a time with every strategy.
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
        return Some(format!(
            "the rollout is halted because node {other} failed: {reason}"
        ));
    }
    if node.control_plane && tally.has_workers_left() {
        return Some("control-plane nodes wait for all other nodes".to_owned());
    }
    let most = most.of(tally.nodes() + tally.removing.len());
    let changing = others.changing;
    (changing >= most && !others.is_changing).then(|| {
        if node.control_plane {
            format!(
                "control-plane nodes change one at a time, and {changing} other nodes are changing"
            )
        } else {
            format!(
                "{changing} other nodes are changing, and rolloutStrategy allows {most} at a time"
            )
        }
    })
}
