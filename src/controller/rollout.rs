//! Whose turn it is: which nodes may change a Shim that is rolled out a few nodes at a time. Pure.
//!
//! Nodes are counted over all Shims together: two rollouts at a time are no reason to have twice as many nodes restart their runtime.

use std::collections::BTreeMap;

use super::desired::Cluster;
use super::fleet::Fleet;
use super::observed::NodeView;
use crate::api::{MaxUpdate, ShimSpec};

/// The Shims that `node` is not to change yet, each with what it waits for.
#[must_use]
pub fn held(fleet: &Fleet, node: &NodeView, cluster: &Cluster) -> BTreeMap<String, String> {
    let readable = cluster
        .shims
        .iter()
        .filter_map(|shim| Some((&shim.name, shim.spec.as_ref().ok()?)));
    readable
        .filter_map(|(shim, spec)| Some((shim.clone(), waits_for(fleet, node, shim, spec)?)))
        .collect()
}

/// Every Shim that `node` has to wait its turn for, as one for which it has not come.
#[must_use]
pub fn all_held(node: &NodeView, cluster: &Cluster) -> BTreeMap<String, String> {
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

fn waits_for(fleet: &Fleet, node: &NodeView, shim: &str, spec: &ShimSpec) -> Option<String> {
    let most = most_at_a_time(node, spec)?;
    let tally = fleet.tally(shim);
    if let Some((other, reason)) = tally.halted_by(&node.name) {
        return Some(format!("the rollout is halted by node {other}: {reason}"));
    }
    if node.control_plane && tally.has_workers_left() {
        return Some("control-plane nodes come last".to_owned());
    }
    let most = most.of(tally.nodes() + tally.removing.len());
    let others = fleet.changing_beside(&node.name);
    (others >= most && !fleet.is_changing(&node.name)).then(|| {
        if node.control_plane {
            format!("control-plane nodes change one at a time, and {others} other nodes are being changed")
        } else {
            format!("{others} other nodes are being changed, and rolloutStrategy allows {most} at a time")
        }
    })
}
