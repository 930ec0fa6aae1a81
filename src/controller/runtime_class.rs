//! The RuntimeClasses of one Shim: which should be there, and what is to be done to get there. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::api::node::v1::{Overhead, RuntimeClass, Scheduling};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

use super::observed::ShimView;
use crate::api::{self, Shim, ShimSpec};
use crate::names;

/// What to do about one RuntimeClass.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Make it: nothing of this name is there.
    Create(Box<RuntimeClass>),
    /// Make it say what it should; it names the UID of the one that is there.
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
    let wanted = match (&shim.spec, shim.deleting) {
        (_, true) => Vec::new(),
        (Ok(spec), false) => wanted(shim, spec),
        // What can't be read keeps what it has.
        (Err(_), false) => return (Vec::new(), Vec::new()),
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
    for mut class in wanted {
        match there.iter().find(|other| other.name_any() == class.name_any()) {
            Some(other) if !is_ours(other, shim) => foreign.push(format!(
                "RuntimeClass {} exists and is not this Shim's; delete it, or choose another name in spec.runtimeClass",
                class.name_any()
            )),
            // Deleted above; its successor follows once it is gone.
            Some(other) if other.handler != class.handler => {}
            Some(other) if says(other, &class) => {}
            Some(other) => {
                class.metadata.uid = other.uid();
                steps.push(Step::Apply(Box::new(class)));
            }
            None => steps.push(Step::Create(Box::new(class))),
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
        && amounts(there) == amounts(wanted)
        && wanted
            .labels()
            .iter()
            .all(|(key, value)| there.labels().get(key) == Some(value))
}

/// The overhead as numbers: the API server writes `1024Mi` as `1Gi`. What is no number stays text.
fn amounts(class: &RuntimeClass) -> BTreeMap<String, Result<f64, String>> {
    let overhead = class
        .overhead
        .iter()
        .flat_map(|overhead| &overhead.pod_fixed);
    overhead
        .flatten()
        .map(|(resource, quantity)| {
            (
                resource.clone(),
                amount(&quantity.0).ok_or_else(|| quantity.0.clone()),
            )
        })
        .collect()
}

/// The value of a quantity (Kubernetes API reference, `Quantity`): a number with a suffix of powers of 1,000 or 1,024.
fn amount(quantity: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 14] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    let (digits, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((quantity.strip_suffix(suffix)?, *factor)))
        .unwrap_or((quantity, 1.0));
    let number: f64 = digits.parse().ok()?;
    number.is_finite().then_some(number * factor)
}

fn wanted(shim: &ShimView, shim_spec: &ShimSpec) -> Vec<RuntimeClass> {
    let spec = &shim_spec.runtime_class;
    let node_selector = match spec.scheduling {
        api::Scheduling::Provisioned => {
            BTreeMap::from([(names::handler_label(&spec.handler), "true".to_owned())])
        }
        api::Scheduling::Selector => shim_spec.node_selector.clone().unwrap_or_default(),
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
