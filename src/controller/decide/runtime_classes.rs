//! The RuntimeClasses of one Shim: the differences between the desired and the present ones. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::api::node::v1::{Overhead, RuntimeClass, Scheduling};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

use crate::api::{self, Shim, ShimSpec};
use crate::controller::cluster::shim_view::ShimView;
use crate::handoff::Problem;
use crate::names;

/// What to do about one RuntimeClass.
#[derive(Debug, Clone, PartialEq)]
pub enum RuntimeClassStep {
    /// Create it: there is none of this name.
    Create(Box<RuntimeClass>),
    /// Replace the present one, named by UID and version. Spec and labels belong to Farrier; annotations, finalizers and owners are kept.
    Replace(Box<RuntimeClass>),
    /// Delete the RuntimeClass with this name and UID, because it is no longer desired or its handler differs. A handler is immutable.
    Delete {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
}

/// What to do about a Shim's RuntimeClasses, and the problem of each name that is taken.
#[must_use]
pub fn decide(shim: &ShimView, there: &[&RuntimeClass]) -> (Vec<RuntimeClassStep>, Vec<Problem>) {
    let wanted = match (&shim.spec, shim.deleting) {
        (_, true) => Vec::new(),
        (Ok(spec), false) => wanted(shim, spec),
        // A Shim that can't be read keeps its RuntimeClasses.
        (Err(_), false) => return (Vec::new(), Vec::new()),
    };
    let mut steps = Vec::new();
    let mut foreign = Vec::new();
    for class in there.iter().filter(|class| is_managed(class, shim)) {
        let is_wanted = wanted
            .iter()
            .any(|wanted| wanted.name_any() == class.name_any() && wanted.handler == class.handler);
        if !is_wanted && class.metadata.deletion_timestamp.is_none() {
            steps.push(RuntimeClassStep::Delete {
                name: class.name_any(),
                uid: class.uid().unwrap_or_default(),
            });
        }
    }
    for class in wanted {
        match there
            .iter()
            .find(|other| other.name_any() == class.name_any())
        {
            Some(other) if !is_managed(other, shim) => foreign.push(Problem::with_help(
                format!(
                    "RuntimeClass {} exists and has another owner",
                    class.name_any()
                ),
                "delete the RuntimeClass, or choose another name in spec.runtimeClass",
            )),
            // The old RuntimeClass is deleted above. The new one is created after the old one is gone.
            Some(other) if other.handler != class.handler => {}
            Some(other) if is_equal(other, &class) => {}
            Some(other) => steps.push(RuntimeClassStep::Replace(Box::new(in_place_of(
                other, class,
            )))),
            None => steps.push(RuntimeClassStep::Create(Box::new(class))),
        }
    }
    let paused = matches!(&shim.spec, Ok(spec) if spec.paused);
    if paused && !shim.deleting {
        // Names that are taken are still reported.
        steps.clear();
    }
    (steps, foreign)
}

/// `class` with the metadata of the present one.
fn in_place_of(there: &RuntimeClass, class: RuntimeClass) -> RuntimeClass {
    RuntimeClass {
        metadata: ObjectMeta {
            labels: class.metadata.labels,
            // The API server maintains this.
            managed_fields: None,
            ..there.metadata.clone()
        },
        ..class
    }
}

/// Whether this Shim object owns `class`.
fn is_managed(class: &RuntimeClass, shim: &ShimView) -> bool {
    class
        .owner_references()
        .iter()
        .any(|owner| owner.uid == shim.uid)
}

/// Whether `there` equals `wanted` in all fields that Farrier sets.
fn is_equal(there: &RuntimeClass, wanted: &RuntimeClass) -> bool {
    placement(there) == placement(wanted)
        && amounts(there) == amounts(wanted)
        && there.labels() == wanted.labels()
}

/// Node selector and tolerations; empty and absent are the same.
fn placement(class: &RuntimeClass) -> (BTreeMap<String, String>, Vec<Toleration>) {
    let scheduling = class.scheduling.clone().unwrap_or_default();
    (
        scheduling.node_selector.unwrap_or_default(),
        scheduling.tolerations.unwrap_or_default(),
    )
}

/// The overhead as numbers, because the API server writes `1024Mi` as `1Gi`. Invalid quantities stay text.
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
    const SUFFIXES: [(&str, f64); 11] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    // Division rounds as the parser does: `700m` equals `0.7`.
    const FRACTIONS: [(&str, f64); 3] = [("n", 1e9), ("u", 1e6), ("m", 1e3)];
    let cut = |table: &[(&str, f64)]| {
        let mut parts = table
            .iter()
            .map(|(suffix, by)| Some((quantity.strip_suffix(suffix)?, *by)));
        parts.find_map(|part| part)
    };
    let number = |digits: &str| {
        digits
            .parse::<f64>()
            .ok()
            .filter(|number| number.is_finite())
    };
    match (cut(&SUFFIXES), cut(&FRACTIONS)) {
        (Some((digits, by)), _) => Some(number(digits)? * by),
        (None, Some((digits, by))) => Some(number(digits)? / by),
        (None, None) => number(quantity),
    }
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

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn shim(more: &Value) -> ShimView {
        let mut class = json!({"name": "spin", "handler": "spin-v2"});
        for (key, value) in more.as_object().unwrap() {
            class[key] = value.clone();
        }
        let object = serde_json::from_value(json!({
            "metadata": {"name": "spin", "uid": "uid"},
            "spec": {"fetchStrategy": {}, "rolloutStrategy": {"type": "recreate"}, "runtimeClass": class, "nodeSelector": {"a": "b"}},
        }))
        .unwrap();
        ShimView::from(&kube::core::DeserializeGuard(Ok(object)))
    }

    /// The RuntimeClasses that a plan for `shim` creates, as the API server returns them.
    fn made(shim: &ShimView) -> Vec<RuntimeClass> {
        let (steps, foreign) = decide(shim, &[]);
        assert!(foreign.is_empty());
        steps
            .into_iter()
            .map(|step| match step {
                RuntimeClassStep::Create(mut class) => {
                    class.metadata.uid = Some(format!("uid-of-{}", class.name_any()));
                    *class
                }
                RuntimeClassStep::Replace(_) | RuntimeClassStep::Delete { .. } => {
                    panic!("nothing is there")
                }
            })
            .collect()
    }

    fn decided(shim: &ShimView, there: &[RuntimeClass]) -> (Vec<RuntimeClassStep>, Vec<Problem>) {
        decide(shim, &there.iter().collect::<Vec<_>>())
    }

    #[test]
    fn a_runtime_class_selects_nodes_that_serve_the_handler_and_is_owned_by_its_shim() {
        let class = &made(&shim(&json!({})))[0];
        assert_eq!(
            serde_json::to_value(class).unwrap(),
            json!({
                "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "spin-v2",
                "metadata": {
                    "name": "spin", "uid": "uid-of-spin", "labels": {"app.kubernetes.io/managed-by": "farrier"},
                    "ownerReferences": [{
                        "apiVersion": "runtime.spinkube.dev/v1alpha1", "kind": "Shim", "name": "spin", "uid": "uid", "controller": true,
                    }],
                },
                "scheduling": {"nodeSelector": {"handler.farrier.dev/spin-v2": "true"}},
            })
        );
    }

    #[test]
    fn an_unchanged_runtime_class_is_not_written() {
        let shim = shim(
            &json!({"aliases": ["other", "spin"], "overhead": {"memory": "1024Mi", "cpu": "0.5"}}),
        );
        let mut there = made(&shim);
        assert_eq!(there.len(), 2);
        // As the API server writes it.
        for class in &mut there {
            let overhead = json!({"podFixed": {"memory": "1Gi", "cpu": "500m"}});
            class.overhead = serde_json::from_value(overhead).unwrap();
        }
        assert_eq!(decided(&shim, &there), (vec![], vec![]));
    }

    #[rstest]
    #[case(json!({"overhead": {"memory": "1Gi"}}))]
    #[case(json!({"scheduling": "Selector"}))]
    #[case(json!({"labels": {"a": "b"}}))]
    #[case(json!({"tolerations": [{"operator": "Exists"}]}))]
    fn a_changed_shim_replaces_its_runtime_class_in_place(#[case] more: Value) {
        let (bare, full) = (shim(&json!({})), shim(&more));
        for (before, after) in [(&bare, &full), (&full, &bare)] {
            let mut there = made(before);
            let untouched = json!({"resourceVersion": "7", "annotations": {"theirs": "too"}, "finalizers": ["theirs"]});
            let mut metadata = serde_json::to_value(&there[0].metadata).unwrap();
            for (key, value) in untouched.as_object().unwrap() {
                metadata[key] = value.clone();
            }
            there[0].metadata = serde_json::from_value(metadata).unwrap();
            let mut expected = made(after).remove(0);
            expected.metadata = ObjectMeta {
                labels: expected.metadata.labels,
                ..there[0].metadata.clone()
            };
            let steps = vec![RuntimeClassStep::Replace(Box::new(expected))];
            assert_eq!(decided(after, &there), (steps, vec![]));
        }
    }

    #[test]
    fn a_foreign_label_on_a_runtime_class_is_removed() {
        let shim = shim(&json!({}));
        let mut there = made(&shim);
        let labels = there[0].metadata.labels.as_mut().unwrap();
        labels.insert("theirs".to_owned(), "too".to_owned());
        let (steps, _) = decided(&shim, &there);
        assert_eq!(
            steps,
            [RuntimeClassStep::Replace(Box::new(made(&shim).remove(0)))]
        );
    }

    #[test]
    fn absent_and_empty_scheduling_are_equal() {
        let mut shim = shim(&json!({"scheduling": "Selector"}));
        shim.spec.as_mut().unwrap().node_selector = None;
        let mut there = made(&shim);
        there[0].scheduling = None;
        assert_eq!(decided(&shim, &there), (vec![], vec![]));
    }

    #[test]
    fn a_paused_shim_keeps_its_runtime_classes_until_it_is_deleted() {
        let there = made(&shim(&json!({"overhead": {"memory": "1Gi"}})));
        let mut paused = shim(&json!({"aliases": ["missing"]}));
        paused.spec.as_mut().unwrap().paused = true;
        assert_eq!(decided(&paused, &there), (vec![], vec![]));
        let mut foreign = there.clone();
        foreign[0].metadata.owner_references = None;
        assert_eq!(decided(&paused, &foreign).1.len(), 1);
        paused.deleting = true;
        assert_eq!(decided(&paused, &there).0.len(), 1);
    }

    #[test]
    fn a_runtime_class_with_another_handler_is_deleted_before_it_is_created_again() {
        let there = made(&shim(&json!({})));
        let renamed = shim(&json!({"handler": "spin-v3"}));
        let gone = RuntimeClassStep::Delete {
            name: "spin".to_owned(),
            uid: "uid-of-spin".to_owned(),
        };
        assert_eq!(decided(&renamed, &there), (vec![gone], vec![]));
    }

    #[test]
    fn a_runtime_class_of_another_owner_is_reported_and_not_changed() {
        let mut there = made(&shim(&json!({})));
        there[0].metadata.owner_references = None;
        let (steps, foreign) = decided(&shim(&json!({})), &there);
        assert!(steps.is_empty());
        assert!(foreign[0].message.contains("RuntimeClass spin exists"));
    }

    #[test]
    fn the_runtime_classes_of_a_deleted_shim_are_deleted_and_those_of_an_unreadable_shim_are_kept()
    {
        let mut shim = shim(&json!({}));
        let there = made(&shim);
        shim.spec = Err("newer".to_owned());
        assert_eq!(decided(&shim, &there), (vec![], vec![]));
        shim.deleting = true;
        let (steps, _) = decided(&shim, &there);
        assert!(matches!(&steps[..], [RuntimeClassStep::Delete { name, .. }] if name == "spin"));
    }

    #[test]
    fn an_empty_name_creates_no_runtime_class() {
        assert!(made(&shim(&json!({"name": ""}))).is_empty());
    }

    #[rstest]
    #[case("1024Mi", "1Gi")]
    #[case("0.5", "500m")]
    #[case("1e3", "1k")]
    #[case("700m", "0.7")]
    fn equal_quantities_in_different_notations_compare_equal(
        #[case] one: &str,
        #[case] other: &str,
    ) {
        let (one, other) = (amount(one).unwrap(), amount(other).unwrap());
        assert!((one - other).abs() < f64::EPSILON, "{one} {other}");
    }

    #[test]
    fn an_invalid_quantity_has_no_amount() {
        for text in ["", "much", "Mi", "inf", "1 Gi"] {
            assert_eq!(amount(text), None, "{text:?}");
        }
    }
}
