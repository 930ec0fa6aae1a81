//! Which nodes and Shims a change in the cluster triggers, and the queues for them. No decision, no write.

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

/// The objects to reconcile because another node has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Requeue {
    /// Shims whose status may differ.
    pub shims: BTreeSet<String>,
    /// Nodes that the rollout may no longer block.
    pub nodes: BTreeSet<String>,
}

/// The queues of nodes and Shims to reconcile. They are closed while this replica stands by, because a replica that begins to act
/// reconciles everything.
#[derive(Debug, Clone)]
pub struct Queues {
    nodes: UnboundedSender<ObjectRef<NodeObject>>,
    shims: UnboundedSender<ObjectRef<ShimObject>>,
    open: Arc<AtomicBool>,
}

/// The receiving ends of the queues.
#[derive(Debug)]
pub struct QueueReceivers {
    /// Nodes to reconcile.
    pub nodes: UnboundedReceiver<ObjectRef<NodeObject>>,
    /// Shims to reconcile.
    pub shims: UnboundedReceiver<ObjectRef<ShimObject>>,
}

impl Queues {
    /// Closed queues.
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

    /// Opens the queues.
    pub fn open(&self) {
        self.open.store(true, Ordering::Relaxed);
    }

    /// Queues a node.
    pub fn node(&self, name: &str) {
        if self.open.load(Ordering::Relaxed) {
            // The send fails only while the controller ends.
            let _ = self.nodes.send(ObjectRef::new(name));
        }
    }

    /// Queues a Shim.
    pub fn shim(&self, name: &str) {
        if self.open.load(Ordering::Relaxed) {
            let _ = self.shims.send(ObjectRef::new(name));
        }
    }

    /// Queues the objects of `requeue`.
    pub fn requeue(&self, requeue: &Requeue) {
        requeue.nodes.iter().for_each(|node| self.node(node));
        requeue.shims.iter().for_each(|shim| self.shim(shim));
    }
}

/// The objects that a change triggers.
#[derive(Debug, PartialEq, Eq)]
pub enum Trigger {
    /// No object.
    Nothing,
    /// This node.
    Node(String),
    /// A node that is gone.
    NodeGone(String),
    /// This Shim alone: its status or its metadata has changed.
    Shim(String),
    /// Every node: a Shim is new or its spec has changed.
    Shims,
    /// A Shim that is gone, and every node.
    ShimGone(String),
    /// Every object: a watch has listed again.
    Everything,
}

/// Finds the objects that a change triggers.
#[derive(Debug, Default)]
pub struct Triggers {
    /// A hash of the last known state of each node.
    nodes: HashMap<String, u64>,
    shims: HashMap<String, ShimView>,
}

impl Triggers {
    /// A change of a node triggers it only if a decision can depend on the change: a kubelet writes the status every few minutes.
    pub fn node(&mut self, change: &Change<'_, NodeObject>) -> Trigger {
        match change {
            Change::Gone(node) => {
                self.nodes.remove(&node.name_any());
                Trigger::NodeGone(node.name_any())
            }
            Change::Here(node) => {
                let view = NodeView::from(*node).relevant();
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
                // The states before the list can't be compared with the changes after it.
                self.nodes.clear();
                Trigger::Everything
            }
        }
    }

    /// A change of a Shim's status triggers no node.
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

    /// A Job or its pod triggers the node of the Job.
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
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::listed(json!([{"name": "spin"}]), false)]
    #[case::missing(json!([{"name": "runc"}]), true)]
    #[case::none_is_listed(json!(null), false)]
    fn a_heartbeat_triggers_a_node_only_while_the_kubelet_does_not_list_a_handler(
        #[case] listed: serde_json::Value,
        #[case] triggers: bool,
    ) {
        let node = |second: u32| -> NodeObject {
            let ready = json!({
                "type": "Ready", "status": "True", "lastHeartbeatTime": format!("2026-01-01T00:00:{second:02}Z"),
            });
            let applied = r#"{"nodeUid":"u","shims":{"spin":{"handlers":{"spin":true}}}}"#;
            serde_json::from_value(json!({
                "metadata": {"name": "n1", "uid": "u", "annotations": {"farrier.dev/applied": applied}},
                "status": {"conditions": [ready], "runtimeHandlers": listed},
            }))
            .unwrap()
        };
        let mut routes = Triggers::default();
        let here = Trigger::Node("n1".to_owned());
        assert_eq!(routes.node(&Change::Here(&node(1))), here);
        let expected = if triggers { here } else { Trigger::Nothing };
        assert_eq!(routes.node(&Change::Here(&node(2))), expected);
    }

    #[test]
    fn a_change_after_a_new_list_triggers_even_if_it_equals_an_older_state() {
        let node: NodeObject =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "n1"}})).unwrap();
        let mut routes = Triggers::default();
        let here = Trigger::Node("n1".to_owned());
        assert_eq!(routes.node(&Change::Here(&node)), here);
        assert_eq!(routes.node(&Change::Here(&node)), Trigger::Nothing);
        // The list may have shown another state. The object now has the same state as before the interruption.
        assert_eq!(routes.node(&Change::Listed), Trigger::Everything);
        assert_eq!(routes.node(&Change::Here(&node)), here);
    }
}
