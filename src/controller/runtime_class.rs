//! The RuntimeClasses of one Shim: which should be there, and what is to be done to get there. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::api::node::v1::{Overhead, RuntimeClass, Scheduling};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

use super::observed::ShimView;
use crate::api::{self, Shim};
use crate::names;

/// What to do about one RuntimeClass.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Make it, or make it say what it should.
    Apply(Box<RuntimeClass>),
    /// Delete the one with this name and UID: it is ours and not wanted, or its handler, which can't be changed, is another.
    Delete {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
}

/// What to do about a Shim's RuntimeClasses, and the sentences to tell about names that others have.
#[must_use]
pub fn decide(shim: &ShimView, there: &[&RuntimeClass]) -> (Vec<Step>, Vec<String>) {
    let wanted = if shim.deleting {
        Vec::new()
    } else {
        wanted(shim)
    };
    let mut steps = Vec::new();
    let mut foreign = Vec::new();
    for class in there.iter().filter(|class| is_ours(class, shim)) {
        let kept = wanted
            .iter()
            .any(|wanted| wanted.name_any() == class.name_any() && wanted.handler == class.handler);
        if !kept && class.metadata.deletion_timestamp.is_none() {
            steps.push(Step::Delete {
                name: class.name_any(),
                uid: class.uid().unwrap_or_default(),
            });
        }
    }
    for class in wanted {
        match there.iter().find(|other| other.name_any() == class.name_any()) {
            Some(other) if !is_ours(other, shim) => foreign.push(format!(
                "RuntimeClass {} exists and is not this Shim's; delete it, or choose another name in spec.runtimeClass",
                class.name_any()
            )),
            // Deleted above; its successor follows once it is gone.
            Some(other) if other.handler != class.handler => {}
            Some(other) if says(other, &class) => {}
            Some(_) | None => steps.push(Step::Apply(Box::new(class))),
        }
    }
    (steps, foreign)
}

/// Whether `class` belongs to this very Shim object.
fn is_ours(class: &RuntimeClass, shim: &ShimView) -> bool {
    class
        .owner_references()
        .iter()
        .any(|owner| owner.uid == shim.uid)
}

/// Whether `there` says all that `wanted` does.
fn says(there: &RuntimeClass, wanted: &RuntimeClass) -> bool {
    there.scheduling == wanted.scheduling
        && there.overhead == wanted.overhead
        && wanted
            .labels()
            .iter()
            .all(|(key, value)| there.labels().get(key) == Some(value))
}

fn wanted(shim: &ShimView) -> Vec<RuntimeClass> {
    let spec = &shim.spec.runtime_class;
    let node_selector = match spec.scheduling {
        api::Scheduling::Provisioned => {
            BTreeMap::from([(names::handler_label(&spec.handler), "true".to_owned())])
        }
        api::Scheduling::Selector => shim.spec.node_selector.clone().unwrap_or_default(),
    };
    let mut labels = spec.labels.clone();
    labels.insert(
        names::MANAGED_BY_LABEL.to_owned(),
        names::MANAGER.to_owned(),
    );
    let tolerations: Option<Vec<Toleration>> =
        (!spec.tolerations.is_empty()).then(|| spec.tolerations.clone());
    let overhead = (!spec.overhead.is_empty()).then(|| Overhead {
        pod_fixed: Some(
            spec.overhead
                .iter()
                .map(|(key, value)| (key.clone(), Quantity(value.clone())))
                .collect(),
        ),
    });
    let class = |name: &String| RuntimeClass {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels.clone()),
            owner_references: Some(vec![OwnerReference {
                api_version: Shim::api_version(&()).into_owned(),
                kind: Shim::kind(&()).into_owned(),
                name: shim.name.clone(),
                uid: shim.uid.clone(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        handler: spec.handler.clone(),
        overhead: overhead.clone(),
        scheduling: Some(Scheduling {
            node_selector: (!node_selector.is_empty()).then(|| node_selector.clone()),
            tolerations: tolerations.clone(),
        }),
    };
    let mut seen = std::collections::BTreeSet::new();
    std::iter::once(&spec.name)
        .chain(&spec.aliases)
        .filter(|name| !name.is_empty() && seen.insert(name.as_str()))
        .map(class)
        .collect()
}
