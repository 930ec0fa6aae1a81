//! The adoption of RuntimeClasses of others. A RuntimeClass that no Shim owns stays its owner's. If its handler is one of a Shim's, the Shim
//! adopts it: Farrier adds the node selector of the handler, so that pods of this class are scheduled only to nodes that serve the handler.
//! Pure. The RuntimeClasses that a Shim has of its own are not the subject of this file.

use std::collections::BTreeMap;

use k8s_openapi::api::node::v1::{RuntimeClass, Scheduling};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use super::desired::precedence;
use super::types::{RuntimeClassPlan, RuntimeClassStep};
use crate::api::{self, Shim, ShimSpec};
use crate::controller::cluster::shim_view::ShimView;
use crate::names;

/// Annotation of the objects that k3s creates from its own manifests, and its value for the manifest `runtimes.yaml` (k3s,
/// `pkg/deploy/controller.go`, and rancher/wrangler, `pkg/apply/desiredset_apply.go`).
const K3S_MANIFEST: (&str, &str) = ("objectset.rio.cattle.io/owner-name", "runtimes");

impl RuntimeClassPlan {
    /// What to do about a RuntimeClass that no Shim owns: `adopts` says whether the Shim should adopt it.
    pub(super) fn adopt(
        &mut self,
        shim: &ShimView,
        class: &RuntimeClass,
        adopts: bool,
        serves: bool,
    ) {
        let has_own = adopter(class) == Some(&shim.name);
        let key = names::handler_label(&class.handler);
        let is_marked = class
            .annotations()
            .contains_key(names::ADOPTED_BY_ANNOTATION);
        let is_selecting = selector(class).contains_key(&key);
        let change = match (adopts, is_selecting) {
            (false, _) if has_own => {
                self.returns = true;
                with_selector(class, &key, None)
            }
            (true, true) if has_own => {
                self.adopted.push(class.name_any());
                self.from_k3s |= is_from_k3s(class);
                return;
            }
            // Another Shim has adopted it. This one adopts it with the next decision.
            (true, true) if adopter(class).is_some() && serves => with_selector(class, &key, None),
            // It is not adopted, or has the selector of its owner, or one that the owner has changed.
            (false, _) | (true, true) => return,
            (true, false) => {
                self.unrestricted.push(class.name_any());
                self.from_k3s |= is_from_k3s(class);
                if is_marked || !serves {
                    // Its owner has removed the selector, which is not added again.
                    return;
                }
                with_selector(class, &key, Some(&shim.name))
            }
        };
        self.steps.push(RuntimeClassStep::Replace(Box::new(change)));
    }
}

/// The RuntimeClass of others with the node selector and the annotation of its adopter, or without both.
pub(super) fn with_selector(
    class: &RuntimeClass,
    key: &str,
    adopter: Option<&String>,
) -> RuntimeClass {
    let mut class = class.clone();
    // The API server maintains this.
    class.metadata.managed_fields = None;
    let annotations = class.metadata.annotations.get_or_insert_default();
    let scheduling = class.scheduling.get_or_insert_default();
    let selector = scheduling.node_selector.get_or_insert_default();
    if let Some(adopter) = adopter {
        annotations.insert(names::ADOPTED_BY_ANNOTATION.to_owned(), adopter.clone());
        selector.insert(key.to_owned(), "true".to_owned());
    } else {
        annotations.remove(names::ADOPTED_BY_ANNOTATION);
        selector.remove(key);
        if selector.is_empty() {
            scheduling.node_selector = None;
        }
        if *scheduling == Scheduling::default() {
            class.scheduling = None;
        }
    }
    class
}

/// The node selector; empty and absent are the same.
pub(super) fn selector(class: &RuntimeClass) -> BTreeMap<String, String> {
    let scheduling = class.scheduling.as_ref();
    let selector = scheduling.and_then(|scheduling| scheduling.node_selector.clone());
    selector.unwrap_or_default()
}

/// The Shim that has adopted the RuntimeClass of others: Farrier has added the node selector together with the annotation.
#[must_use]
pub fn adopter(class: &RuntimeClass) -> Option<&String> {
    let adopter = class.annotations().get(names::ADOPTED_BY_ANNOTATION)?;
    let key = names::handler_label(&class.handler);
    let is_adopted = selector(class).get(&key).is_some_and(|it| it == "true");
    (is_adopted && owner(class).is_none()).then_some(adopter)
}

fn is_from_k3s(class: &RuntimeClass) -> bool {
    let (key, value) = K3S_MANIFEST;
    class.annotations().get(key).is_some_and(|it| it == value)
}

/// The Shim that owns `class`, as the reference names it.
#[must_use]
pub fn owner(class: &RuntimeClass) -> Option<&OwnerReference> {
    class
        .owner_references()
        .iter()
        .find(|owner| owner.kind == Shim::kind(&()) && owner.api_version == Shim::api_version(&()))
}

/// Whether `other` adopts `class` before `shim` does: it has adopted the class, or a node serves it.
#[must_use]
pub fn adopts_before(other: &ShimView, shim: &ShimView, class: &RuntimeClass) -> bool {
    let spec = other.spec.as_ref().ok().filter(|spec| !spec.paused);
    let adopts = |spec: &ShimSpec| {
        spec.runtime_class.scheduling == api::Scheduling::Provisioned
            && spec.handlers().is_ok_and(|it| it.contains(&class.handler))
    };
    let status = other.status.as_ref();
    let serves = status.is_some_and(|status| status.nodes_ready > 0);
    other.uid != shim.uid
        && !other.deleting
        && spec.is_some_and(adopts)
        && (serves || adopter(class) == Some(&other.name))
        && precedence(other) < precedence(shim)
}
