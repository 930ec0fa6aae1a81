//! Which nodes and Shims a change in the cluster concerns. No decision, no write.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::sync::mpsc::UnboundedSender;

use super::observed::{NodeView, ShimObject, ShimView};
use super::watch::Change;
use crate::names;

/// Which nodes and Shims a change concerns.
#[derive(Clone)]
pub struct Routes {
    nodes: UnboundedSender<ObjectRef<Node>>,
    shims: UnboundedSender<ObjectRef<ShimObject>>,
    all_nodes: Store<Node>,
    all_shims: Store<ShimObject>,
    seen_nodes: HashMap<String, NodeView>,
    seen_shims: HashMap<String, ShimView>,
}

impl Routes {
    /// Routes into two queues, with the stores for what concerns everything.
    #[must_use]
    pub fn new(
        nodes: UnboundedSender<ObjectRef<Node>>,
        shims: UnboundedSender<ObjectRef<ShimObject>>,
        all_nodes: Store<Node>,
        all_shims: Store<ShimObject>,
    ) -> Self {
        Self {
            nodes,
            shims,
            all_nodes,
            all_shims,
            seen_nodes: HashMap::new(),
            seen_shims: HashMap::new(),
        }
    }

    /// A kubelet writes its node's status every few minutes; only what decisions look at counts.
    pub fn node(&mut self, change: &Change<'_, Node>) {
        match change {
            Change::Gone(node) => {
                self.seen_nodes.remove(&node.name_any());
                self.every_shim();
            }
            Change::Here(node) => {
                let view = NodeView::from(*node);
                if self.seen_nodes.get(&view.name) != Some(&view) {
                    self.seen_nodes.insert(view.name.clone(), view);
                    self.send_node(&node.name_any());
                    self.every_shim();
                }
            }
            Change::Listed => self.every_node(),
        }
    }

    /// Our own writes to a Shim's status concern no node.
    pub fn shim(&mut self, change: &Change<'_, ShimObject>) {
        match change {
            Change::Gone(shim) => {
                self.seen_shims.remove(&shim.name_any());
                self.every_node();
            }
            Change::Here(shim) => {
                let view = ShimView {
                    status: None,
                    ..ShimView::from(*shim)
                };
                if self.seen_shims.get(&view.name) == Some(&view) {
                    let _ = self.shims.send(ObjectRef::from_obj(*shim));
                } else {
                    self.seen_shims.insert(view.name.clone(), view);
                    self.every_node();
                }
            }
            Change::Listed => self.every_node(),
        }
    }

    /// A Job or its pod concerns the node that it was made for.
    pub fn of_job<K: kube::Resource>(&mut self, change: &Change<'_, K>) {
        match change {
            Change::Here(object) | Change::Gone(object) => {
                if let Some(node) = object.annotations().get(names::NODE_NAME_ANNOTATION) {
                    self.send_node(node);
                }
            }
            Change::Listed => self.every_node(),
        }
    }

    // The receivers live as long as the controller; a send that fails means that it ends.
    fn send_node(&self, name: &str) {
        let _ = self.nodes.send(ObjectRef::new(name));
    }

    fn every_node(&self) {
        for node in self.all_nodes.state() {
            self.send_node(&node.name_any());
        }
        self.every_shim();
    }

    /// What concerns every Shim.
    pub fn every_shim(&self) {
        for shim in self.all_shims.state() {
            let _ = self.shims.send(ObjectRef::from_obj(shim.as_ref()));
        }
    }
}
