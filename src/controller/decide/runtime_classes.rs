//! The RuntimeClasses of one Shim: the differences between the desired and the present ones. Pure. What the Shim does to a RuntimeClass of
//! others is decided in `adopted_classes`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::api::node::v1::{Overhead, RuntimeClass, Scheduling};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

use super::adopted_classes::{adopts_before, owner, selector};
use super::desired::precedence;
use super::types::{RuntimeClassPlan, RuntimeClassStep};
use crate::api::{self, Shim, ShimSpec};
use crate::controller::cluster::shim_view::ShimView;
use crate::handoff::{Problem, printable};
use crate::names;

/// What to do about a Shim's RuntimeClasses. `shims` are all Shims. `serves` says whether any node serves the Shim: before that, the
/// RuntimeClasses of others may lead pods to nodes that others have set up.
#[must_use]
pub fn decide(
    shim: &ShimView,
    shims: &[ShimView],
    there: &[&RuntimeClass],
    serves: bool,
) -> RuntimeClassPlan {
    // A Shim that can't be read keeps its RuntimeClasses, unless it is being deleted.
    let Ok(spec) = &shim.spec else {
        return if shim.deleting {
            withdrawn(shim, &[], there)
        } else {
            RuntimeClassPlan::default()
        };
    };
    let handlers = spec.handlers().unwrap_or_default();
    let find = |name: &str| there.iter().copied().find(|other| other.name_any() == name);
    if shim.deleting {
        let names = class_names(spec).filter(|name| {
            let is_others = |class: &RuntimeClass| !is_managed(class, shim);
            let is_taken = find(name).is_some_and(is_others);
            !is_taken && rival(shim, shims, name, find(name)).is_none()
        });
        return withdrawn(shim, &names.cloned().collect::<Vec<_>>(), there);
    }
    let mut plan = RuntimeClassPlan::default();
    let mut own = Vec::new();
    for class in wanted(shim, spec) {
        let name = class.name_any();
        match rival(shim, shims, &name, find(&name)) {
            Some(other) => plan.conflicts.push(belongs_to(&name, &other.name)),
            None => own.push(class),
        }
    }
    for class in there.iter().filter(|class| is_managed(class, shim)) {
        let is_wanted = own
            .iter()
            .any(|own| own.name_any() == class.name_any() && own.handler == class.handler);
        if !is_wanted && class.metadata.deletion_timestamp.is_none() {
            plan.steps.push(deletion(class));
        }
    }
    for class in own {
        plan.place(shim, shims, class, find, &handlers);
    }
    plan.is_held_back = spec.paused && !plan.steps.is_empty();
    for class in there.iter().filter(|class| owner(class).is_none()) {
        let adopts = handlers.contains(&class.handler)
            && spec.runtime_class.scheduling == api::Scheduling::Provisioned
            && !shims.iter().any(|other| adopts_before(other, shim, class));
        plan.adopt(shim, class, adopts, serves);
    }
    if spec.paused {
        // Names that are taken are still reported.
        plan.steps.clear();
        plan.returns = false;
    }
    plan
}

/// The plan of a Shim that is being deleted, with the names of its RuntimeClasses that go with it.
fn withdrawn(shim: &ShimView, names: &[String], there: &[&RuntimeClass]) -> RuntimeClassPlan {
    let mut plan = RuntimeClassPlan {
        withdrawn: names.to_vec(),
        ..RuntimeClassPlan::default()
    };
    for class in there {
        if is_managed(class, shim) && class.metadata.deletion_timestamp.is_none() {
            plan.steps.push(deletion(class));
        }
        plan.adopt(shim, class, false, false);
    }
    plan
}

fn deletion(class: &RuntimeClass) -> RuntimeClassStep {
    RuntimeClassStep::Delete {
        name: class.name_any(),
        uid: class.uid().unwrap_or_default(),
    }
}

impl RuntimeClassPlan {
    /// What to do about one RuntimeClass that the Shim should have.
    fn place<'a>(
        &mut self,
        shim: &ShimView,
        shims: &[ShimView],
        class: RuntimeClass,
        find: impl Fn(&str) -> Option<&'a RuntimeClass>,
        handlers: &[String],
    ) {
        let name = class.name_any();
        match find(&name) {
            None => self.steps.push(RuntimeClassStep::Create(Box::new(class))),
            Some(other) if !is_managed(other, shim) => match owner(other) {
                Some(owner) => {
                    // The name in the reference may be anybody's text.
                    let known = shims.iter().find(|shim| shim.uid == owner.uid);
                    let known = known.map_or_else(|| printable(&owner.name), |it| it.name.clone());
                    self.conflicts.push(belongs_to(&name, &known));
                }
                None if handlers.contains(&other.handler) => self.replaceable.push(name),
                None => self.conflicts.push(Problem::with_help(
                    format!(
                        "RuntimeClass {name} belongs to others, and its handler {} is none of the Shim's",
                        other.handler
                    ),
                    "delete the RuntimeClass, or choose another name in spec.runtimeClass",
                )),
            },
            // The old RuntimeClass is deleted already. The new one is created after the old one is gone.
            Some(other) if other.handler != class.handler => {}
            Some(other) if is_equal(other, &class) => {}
            Some(other) => {
                let class = in_place_of(other, class);
                self.steps.push(RuntimeClassStep::Replace(Box::new(class)));
            }
        }
    }
}

/// The problem of a name that another Shim has.
fn belongs_to(class: &str, shim: &str) -> Problem {
    Problem::with_help(
        format!("RuntimeClass {class} belongs to Shim {shim}"),
        "choose another name in spec.runtimeClass of one of the two Shims, or delete one of them",
    )
}

/// The Shim that has the RuntimeClass `name` instead of `shim`: the same order decides as for handlers, so that the RuntimeClass belongs to
/// the Shim that has the handler.
fn rival<'a>(
    shim: &ShimView,
    shims: &'a [ShimView],
    name: &str,
    present: Option<&RuntimeClass>,
) -> Option<&'a ShimView> {
    let claims = |other: &ShimView| {
        // A paused Shim creates none, and keeps what it has.
        let holds = present.is_some_and(|class| is_managed(class, other));
        let spec = other
            .spec
            .as_ref()
            .ok()
            .filter(|spec| !spec.paused || holds);
        !other.deleting && spec.is_some_and(|spec| class_names(spec).any(|it| it == name))
    };
    let others = shims.iter().filter(|other| other.uid != shim.uid);
    let first = others
        .filter(|other| claims(other))
        .min_by_key(|it| precedence(it))?;
    (precedence(first) < precedence(shim) || !claims(shim)).then_some(first)
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
    let scheduling = class.scheduling.as_ref();
    let tolerations = scheduling.and_then(|scheduling| scheduling.tolerations.clone());
    (selector(class), tolerations.unwrap_or_default())
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
    class_names(shim_spec).map(class).collect()
}

/// The names of a Shim's RuntimeClasses, without duplicates.
fn class_names(spec: &ShimSpec) -> impl Iterator<Item = &String> {
    let spec = &spec.runtime_class;
    let mut seen = BTreeSet::new();
    std::iter::once(&spec.name)
        .chain(&spec.aliases)
        .filter(move |name| !name.is_empty() && seen.insert(name.as_str()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::decide::adopted_classes::with_selector;

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
        let plan = decide(shim, &[], &[], true);
        assert!(plan.conflicts.is_empty());
        plan.steps
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
        let plan = beside(shim, &[], there);
        (plan.steps, plan.conflicts)
    }

    /// The plan for `shim` beside these other Shims.
    fn beside(shim: &ShimView, others: &[&ShimView], there: &[RuntimeClass]) -> RuntimeClassPlan {
        let shims: Vec<ShimView> = others.iter().chain([&shim]).copied().cloned().collect();
        decide(shim, &shims, &there.iter().collect::<Vec<_>>(), true)
    }

    /// A RuntimeClass of others.
    fn foreign(name: &str, handler: &str, more: &Value) -> RuntimeClass {
        let mut class = json!({"metadata": {"name": name, "uid": "u", "resourceVersion": "7"}, "handler": handler});
        for (key, value) in more.as_object().unwrap() {
            if let (Some(there), Some(more)) = (class[key].as_object_mut(), value.as_object()) {
                there.extend(more.clone());
            } else {
                class[key] = value.clone();
            }
        }
        serde_json::from_value(class).unwrap()
    }

    /// A user's Shim, which has precedence before `default-spin`.
    fn two() -> (ShimView, ShimView) {
        let mut default = shim(&json!({}));
        (default.name, default.uid) = ("default-spin".to_owned(), "uid-of-default".to_owned());
        (shim(&json!({})), default)
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
        assert!(beside(&paused, &[], &there).is_held_back);
        let others = foreign("spin", "runsc", &json!({}));
        assert_eq!(decided(&paused, &[others]).1.len(), 1);
        let adoptable = foreign("spin", "spin-v2", &json!({}));
        let plan = beside(&paused, &[], &[adoptable]);
        assert_eq!(
            (plan.steps, plan.unrestricted),
            (vec![], vec!["spin".to_owned()])
        );
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
    fn a_runtime_class_of_others_with_another_handler_is_reported_and_not_changed() {
        let there = foreign("spin", "runsc", &json!({}));
        let (steps, conflicts) = decided(&shim(&json!({})), &[there]);
        assert!(steps.is_empty());
        assert_eq!(
            conflicts[0].message,
            "RuntimeClass spin belongs to others, and its handler runsc is none of the Shim's"
        );
    }

    #[rstest]
    #[case::without_scheduling(json!({}), json!({"nodeSelector": {"handler.farrier.dev/spin-v2": "true"}}))]
    #[case::with_scheduling(
        json!({"scheduling": {"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]}}),
        json!({"nodeSelector": {"a": "b", "handler.farrier.dev/spin-v2": "true"}, "tolerations": [{"operator": "Exists"}]})
    )]
    fn a_runtime_class_of_others_with_the_handler_is_adopted_and_returned_unchanged(
        #[case] more: Value,
        #[case] scheduling: Value,
        #[values("spin", "mine")] name: &str,
    ) {
        let mut before = foreign(name, "spin-v2", &more);
        before.metadata.annotations = Some(BTreeMap::new());
        let mut shim = shim(&json!({}));
        let replaced = |plan: &RuntimeClassPlan| {
            let replaced = plan.steps.iter().filter_map(|step| match step {
                RuntimeClassStep::Replace(class) => Some((**class).clone()),
                RuntimeClassStep::Create(_) | RuntimeClassStep::Delete { .. } => None,
            });
            replaced.collect::<Vec<_>>()
        };
        let plan = beside(&shim, &[], std::slice::from_ref(&before));
        assert_eq!(
            (plan.conflicts.len(), &*plan.unrestricted),
            (0, &[name.to_owned()][..])
        );
        let adopted = replaced(&plan).remove(0);
        let mut expected = before.clone();
        expected.scheduling = serde_json::from_value(scheduling).unwrap();
        let mark = ("farrier.dev/adopted-by".to_owned(), "spin".to_owned());
        expected.metadata.annotations = Some([mark].into());
        assert_eq!(adopted, expected);

        let plan = beside(&shim, &[], std::slice::from_ref(&adopted));
        assert_eq!(
            (replaced(&plan), &*plan.adopted),
            (vec![], &[name.to_owned()][..])
        );
        // The other Shim has precedence, and adopts the RuntimeClass next.
        let (_, default) = two();
        let other = ShimView {
            name: "aaa".to_owned(),
            uid: "aaa".to_owned(),
            ..shim.clone()
        };
        assert_eq!(
            beside(&default, &[&shim], std::slice::from_ref(&adopted))
                .adopted
                .len(),
            0
        );
        let plan = beside(&other, &[&shim], std::slice::from_ref(&adopted));
        assert_eq!(replaced(&plan), [before.clone()]);
        shim.deleting = true;
        let plan = beside(&shim, &[], std::slice::from_ref(&adopted));
        assert!(plan.returns);
        assert_eq!(replaced(&plan), [before]);
    }

    #[rstest]
    #[case::selector_of_its_owner(json!({"scheduling": {"nodeSelector": {"handler.farrier.dev/spin-v2": "true"}}}), json!({}), 0)]
    #[case::selector_removed(json!({"metadata": {"annotations": {"farrier.dev/adopted-by": "spin"}}}), json!({}), 1)]
    #[case::another_handler(json!({"handler": "runsc"}), json!({}), 0)]
    #[case::scheduling_of_the_shim(json!({}), json!({"scheduling": "Selector"}), 0)]
    fn a_runtime_class_of_others_is_left_alone(
        #[case] class: Value,
        #[case] more: Value,
        #[case] unrestricted: usize,
    ) {
        let there = [foreign("mine", "spin-v2", &class)];
        let shim = shim(&more);
        for deleting in [false, true] {
            let shim = ShimView {
                deleting,
                ..shim.clone()
            };
            let plan = beside(&shim, &[], &there);
            let is_change = |step: &RuntimeClassStep| !matches!(step, RuntimeClassStep::Create(_));
            assert!(!plan.steps.iter().any(is_change), "{plan:?}");
            if !deleting {
                assert_eq!(plan.unrestricted.len(), unrestricted);
            }
        }
    }

    #[rstest]
    #[case::no_node_serves_the_older(0, 1)]
    #[case::a_node_serves_the_older(1, 0)]
    fn an_older_shim_of_the_handler_adopts_before_a_younger_one_once_a_node_serves_it(
        #[case] nodes_ready: i32,
        #[case] changes: usize,
    ) {
        let (mut older, mut younger) = two();
        let status = json!({"nodes": 1, "nodesReady": nodes_ready});
        older.status = Some(serde_json::from_value(status).unwrap());
        younger.spec.as_mut().unwrap().runtime_class.name = "younger".to_owned();
        let is_change = |step: &&RuntimeClassStep| matches!(step, RuntimeClassStep::Replace(_));
        let theirs = foreign("mine", "spin-v2", &json!({}));
        let plan = beside(&younger, &[&older], std::slice::from_ref(&theirs));
        assert_eq!(plan.steps.iter().filter(is_change).count(), changes);
        // While no node serves it, the older one leaves the class to the younger one.
        let adopted = with_selector(&theirs, "handler.farrier.dev/spin-v2", Some(&younger.name));
        let plan = decide(&older, &[younger], &[&adopted], nodes_ready > 0);
        assert_eq!(plan.steps.iter().filter(is_change).count(), 1 - changes);
    }

    #[test]
    fn no_runtime_class_is_adopted_before_a_node_serves_the_shim() {
        let there = foreign("spin", "spin-v2", &json!({}));
        let plan = decide(&shim(&json!({})), &[], &[&there], false);
        assert_eq!(
            (plan.steps, plan.replaceable),
            (vec![], vec!["spin".to_owned()])
        );
    }

    #[test]
    fn the_runtime_classes_of_k3s_are_recognised() {
        let more = json!({"metadata": {"annotations": {"objectset.rio.cattle.io/owner-name": "runtimes"}}});
        assert!(beside(&shim(&json!({})), &[], &[foreign("spin", "spin-v2", &more)]).from_k3s);
        assert!(
            !beside(
                &shim(&json!({})),
                &[],
                &[foreign("spin", "spin-v2", &json!({}))]
            )
            .from_k3s
        );
    }

    #[test]
    fn a_runtime_class_follows_the_shim_that_has_the_handler() {
        let (user, default) = two();
        let there = made(&default);
        let loser = beside(&default, &[&user], &there);
        let gone = RuntimeClassStep::Delete {
            name: "spin".to_owned(),
            uid: "uid-of-spin".to_owned(),
        };
        assert_eq!(loser.steps, [gone]);
        let said = &loser.conflicts[0];
        assert_eq!(said.message, "RuntimeClass spin belongs to Shim spin");
        assert!(
            !said
                .help
                .as_ref()
                .unwrap()
                .contains("delete the RuntimeClass")
        );
        // Until the other Shim has deleted it, it is named as that Shim's.
        let winner = beside(&user, &[&default], &there);
        assert_eq!(winner.steps, []);
        assert_eq!(
            winner.conflicts[0].message,
            "RuntimeClass spin belongs to Shim default-spin"
        );
        let plan = beside(&user, &[&default], &[]);
        assert!(matches!(&plan.steps[..], [RuntimeClassStep::Create(_)]));
        assert_eq!(beside(&default, &[&user], &made(&user)).steps, []);
    }

    #[rstest]
    #[case::deleted(true, false)]
    #[case::paused(false, true)]
    fn a_shim_that_creates_no_runtime_class_takes_none(
        #[case] deleting: bool,
        #[case] paused: bool,
    ) {
        let (mut user, default) = two();
        user.deleting = deleting;
        user.spec.as_mut().unwrap().paused = paused;
        assert_eq!(
            beside(&default, &[&user], &made(&default)),
            RuntimeClassPlan::default()
        );
        if paused {
            // It keeps what it has.
            let plan = beside(&default, &[&user], &made(&two().0));
            assert_eq!((plan.steps.len(), plan.conflicts.len()), (0, 1));
            let plan = beside(&user, &[&default], &made(&default));
            assert_eq!((plan.steps.len(), plan.conflicts.len()), (0, 1));
        }
    }

    #[test]
    fn a_shim_that_is_deleted_names_the_runtime_classes_that_go_with_it() {
        let mut leaving = shim(&json!({"aliases": ["theirs", "gone"]}));
        leaving.deleting = true;
        let mut there = made(&shim(&json!({})));
        there.push(foreign("theirs", "spin-v2", &json!({})));
        assert_eq!(beside(&leaving, &[], &there).withdrawn, ["spin", "gone"]);
        let (_, default) = two();
        let plan = beside(&leaving, &[&default], &there);
        assert_eq!(plan.withdrawn, ["gone"], "the other Shim creates it");
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
