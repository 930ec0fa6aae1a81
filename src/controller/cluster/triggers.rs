//! Which nodes and Shims a change in the cluster concerns. No decision, no write.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::node_view::NodeView;
use super::shim_view::{ShimObject, ShimView};
use super::slim::NodeObject;
use super::watch::Change;
use crate::names;

/// What a change of one node means for others.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Requeue {
    /// Shims of which something is to be said anew.
    pub shims: BTreeSet<String>,
    /// Nodes whose turn may have come.
    pub nodes: BTreeSet<String>,
}

/// Where the names of nodes and Shims go that are to be decided on. A replica that stands by lets nothing through: whoever begins to
/// act decides on everything anyway.
#[derive(Debug, Clone)]
pub struct Queues {
    nodes: UnboundedSender<ObjectRef<NodeObject>>,
    shims: UnboundedSender<ObjectRef<ShimObject>>,
    open: Arc<AtomicBool>,
}

/// The other ends.
#[derive(Debug)]
pub struct QueueReceivers {
    /// Nodes to decide on.
    pub nodes: UnboundedReceiver<ObjectRef<NodeObject>>,
    /// Shims to decide on.
    pub shims: UnboundedReceiver<ObjectRef<ShimObject>>,
}

impl Queues {
    /// Queues that are closed still.
    #[must_use]
    pub fn new() -> (Self, QueueReceivers) {
        let (nodes, node_receiver) = unbounded_channel();
        let (shims, shim_receiver) = unbounded_channel();
        let queues = Self {
            nodes,
            shims,
            open: Arc::default(),
        };
        let receivers = QueueReceivers {
            nodes: node_receiver,
            shims: shim_receiver,
        };
        (queues, receivers)
    }

    /// Lets names through from now on.
    pub fn open(&self) {
        self.open.store(true, Ordering::Relaxed);
    }

    /// A node is to be decided on.
    pub fn node(&self, name: &str) {
        if self.open.load(Ordering::Relaxed) {
            // The receivers live as long as the controller; a send that fails means that it ends.
            let _ = self.nodes.send(ObjectRef::new(name));
        }
    }

    /// A Shim is to be decided on.
    pub fn shim(&self, name: &str) {
        if self.open.load(Ordering::Relaxed) {
            let _ = self.shims.send(ObjectRef::new(name));
        }
    }

    /// What one node's change means for others.
    pub fn requeue(&self, requeue: &Requeue) {
        requeue.nodes.iter().for_each(|node| self.node(node));
        requeue.shims.iter().for_each(|shim| self.shim(shim));
    }
}

/// What a change concerns.
#[derive(Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Nothing that anybody decides on.
    Nothing,
    /// This node.
    Node(String),
    /// A node that is gone.
    NodeGone(String),
    /// This Shim alone: its status was written, or its metadata.
    Shim(String),
    /// Which Shims there are, or what they ask for, and with that every node.
    Shims,
    /// A Shim that is gone, and every node.
    ShimGone(String),
    /// Anything: a list came as a whole.
    Everything,
}

/// Tells what counts of a change from what does not.
#[derive(Debug, Default)]
pub struct Triggers {
    /// What was seen of each node, in brief.
    nodes: HashMap<String, u64>,
    shims: HashMap<String, ShimView>,
}

impl Triggers {
    /// A kubelet writes its node's status every few minutes; only what decisions look at counts.
    pub fn node(&mut self, change: &Change<'_, NodeObject>) -> Trigger {
        match change {
            Change::Gone(node) => {
                self.nodes.remove(&node.name_any());
                Trigger::NodeGone(node.name_any())
            }
            Change::Here(node) => {
                let view = NodeView::from(*node);
                let mut hasher = DefaultHasher::new();
                view.hash(&mut hasher);
                let brief = hasher.finish();
                if self.nodes.insert(view.name.clone(), brief) == Some(brief) {
                    Trigger::Nothing
                } else {
                    Trigger::Node(view.name)
                }
            }
            Change::Listed => {
                // What was seen before the watch was away says nothing of what comes next.
                self.nodes.clear();
                Trigger::Everything
            }
        }
    }

    /// Our own writes to a Shim's status trigger no node.
    pub fn shim(&mut self, change: &Change<'_, ShimObject>) -> Trigger {
        match change {
            Change::Gone(shim) => {
                self.shims.remove(&shim.name_any());
                Trigger::ShimGone(shim.name_any())
            }
            Change::Here(shim) => {
                let view = ShimView {
                    status: None,
                    ..ShimView::from(*shim)
                };
                if self.shims.get(&view.name) == Some(&view) {
                    Trigger::Shim(view.name)
                } else {
                    self.shims.insert(view.name.clone(), view);
                    Trigger::Shims
                }
            }
            Change::Listed => {
                self.shims.clear();
                Trigger::Everything
            }
        }
    }

    /// A Job or its pod concerns the node that it was made for.
    pub fn of_job<K: kube::Resource>(change: &Change<'_, K>) -> Trigger {
        match change {
            Change::Here(object) | Change::Gone(object) => {
                let node = object.annotations().get(names::NODE_NAME_ANNOTATION);
                node.map_or(Trigger::Nothing, |node| Trigger::Node(node.clone()))
            }
            Change::Listed => Trigger::Everything,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_before_a_new_list_is_no_reason_to_pass_a_change_over() {
        let node: NodeObject =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "n1"}})).unwrap();
        let mut routes = Triggers::default();
        let here = Trigger::Node("n1".to_owned());
        assert_eq!(routes.node(&Change::Here(&node)), here);
        assert_eq!(routes.node(&Change::Here(&node)), Trigger::Nothing);
        // The list had it otherwise, and now it is as it was before the watch was away.
        assert_eq!(routes.node(&Change::Listed), Trigger::Everything);
        assert_eq!(routes.node(&Change::Here(&node)), here);
    }
}
