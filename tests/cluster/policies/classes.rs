//! RuntimeClasses: the controller's account may write only those of one Shim, as this Shim says. The account has more rights than the chart
//! gives it, so that only the policies refuse.

use std::collections::BTreeMap;
use std::slice::from_ref;
use std::time::{Duration, Instant};

use farrier::api::Shim;
use farrier::names;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::requests::Request::{Apply, Create, Delete, DeleteAll, Merge, Replace};
use super::requests::{
    LABELLED, Row, all_of, answer, both, check, give_rights, paused_shim, take_rights, with,
};
use crate::support::{Cluster, eventually, shim_for};

fn owner(shim: &Shim) -> Value {
    json!({
        "apiVersion": "runtime.spinkube.dev/v1alpha1", "kind": "Shim", "name": shim.name_any(), "uid": shim.uid().unwrap(),
        "controller": true,
    })
}

/// As an owner beside another one, of which only one may be the controller.
fn second(owner: &Value) -> Value {
    with(owner.clone(), &json!({"controller": null}))
}

fn class(name: &str, handler: &str, owners: &[Value]) -> Value {
    json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": handler,
        "metadata": {
            "name": name, "labels": {"test.farrier.dev/policies": "true"}, "ownerReferences": owners,
        },
    })
}

fn selector(handler: &str) -> Value {
    json!({"scheduling": {"nodeSelector": {format!("handler.farrier.dev/{handler}"): "true"}}})
}

async fn remove_classes(classes: &Api<DynamicObject>) {
    let list = ListParams::default().labels(LABELLED);
    let delete = DeleteParams::default();
    classes.delete_collection(&delete, &list).await.unwrap();
}

/// What `policies-a` says of its RuntimeClasses.
fn of_a() -> Value {
    json!({
        "overhead": {"podFixed": {"memory": "512Mi"}},
        "scheduling": {
            "nodeSelector": {"handler.farrier.dev/policies-a": "true"},
            "tolerations": [{"key": "wasm", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}],
        },
    })
}

/// The RuntimeClasses that are there, by two Shims and by others.
fn classes(a: &Value, b: &Value) -> Vec<Value> {
    let foreign = json!({
        "metadata": {"annotations": {"example.org/note": "a"}},
        "overhead": {"podFixed": {"cpu": "1"}},
        "scheduling": {"nodeSelector": {"pool": "a"}, "tolerations": [{"operator": "Exists"}]},
    });
    let mark = json!({"metadata": {"annotations": {names::ADOPTED_BY_ANNOTATION: "spin"}}});
    let other_group =
        json!({"apiVersion": "example.org/v1", "kind": "Shim", "name": "a", "uid": "a"});
    let other_kind = json!({"apiVersion": "runtime.spinkube.dev/v1alpha1", "kind": "Other", "name": "a", "uid": "a"});
    vec![
        with(class("policies-a", "policies-a", from_ref(a)), &of_a()),
        with(class("policies-gvisor", "runsc", &[]), &foreign),
        with(class("policies-spin", "spin", &[]), &foreign),
        class("policies-empty", "spin", &[]),
        with(
            with(
                with(class("policies-adopted", "spin", &[]), &foreign),
                &selector("spin"),
            ),
            &mark,
        ),
        with(class("policies-selecting", "spin", &[]), &selector("spin")),
        with(class("policies-marked", "spin", &[]), &mark),
        class("policies-runc", "runc", &[]),
        class("policies-runc-of-a", "runc", from_ref(a)),
        class("policies-two", "policies-a", &[a.clone(), second(b)]),
        class("policies-other-group", "spin", &[other_group]),
        class("policies-other-kind", "runsc", &[other_kind]),
    ]
}

#[allow(clippy::too_many_lines, reason = "a table: a row for each request")]
fn requests_for_classes(a: &Value, b: &Value) -> Vec<Row> {
    let alias = |more: Value| {
        with(
            with(class("policies-alias", "policies-a", from_ref(a)), &of_a()),
            &more,
        )
    };
    let of_b = json!({"scheduling": {"nodeSelector": {"test.farrier.dev/policies-b": "true"}}});
    let owners = |owners: &[Value]| json!({"metadata": {"ownerReferences": owners}});
    let mark =
        |value: &str| json!({"metadata": {"annotations": {names::ADOPTED_BY_ANNOTATION: value}}});
    let adopt = |more: Value| both(both(mark("spin"), &selector("spin")), &more);
    let give_back = json!({
        "metadata": {"annotations": {names::ADOPTED_BY_ANNOTATION: null}},
        "scheduling": {"nodeSelector": {"handler.farrier.dev/spin": null}},
    });
    let tolerations =
        json!({"scheduling": {"tolerations": [{"key": "all", "operator": "Exists"}]}});
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let many: Vec<Value> = (0..10_000)
        .map(|at| json!({"key": format!("a{at}"), "operator": "Exists"}))
        .collect();
    let (one, unowned, only) = (
        "only RuntimeClasses that exactly one Shim owns",
        "Farrier may only add or remove",
        "neither the owners nor",
    );
    let (runc, unlisted) = (
        "no RuntimeClass with the handler runc",
        "admissionPolicies.adoptableHandlers does not list",
    );
    vec![
        // What the controller does.
        ("create as the Shim says", Create(alias(json!({}))), ""),
        (
            "create for scheduling: Selector",
            Create(with(class("policies-b", "policies-b", from_ref(b)), &of_b)),
            "",
        ),
        (
            "replace as the Shim says",
            Replace("policies-a", label.clone()),
            "",
        ),
        ("delete", Delete("policies-a"), ""),
        ("adopt", Replace("policies-spin", adopt(json!({}))), ""),
        (
            "adopt a class without scheduling",
            Replace("policies-empty", adopt(json!({}))),
            "",
        ),
        (
            "adopt a class of an object that is no Shim of ours",
            Replace("policies-other-group", adopt(json!({}))),
            "",
        ),
        (
            "give back",
            Replace("policies-adopted", give_back.clone()),
            "",
        ),
        // Creation.
        (
            "create without an owner",
            Create(class("policies-new", "spin", &[])),
            one,
        ),
        (
            "create with two Shims",
            Create(with(alias(json!({})), &owners(&[a.clone(), second(b)]))),
            one,
        ),
        (
            "create for a Shim of another group",
            Create(with(
                alias(json!({})),
                &owners(&[with(a.clone(), &json!({"apiVersion": "example.org/v1"}))]),
            )),
            one,
        ),
        (
            "create for a group that begins alike",
            Create(with(
                alias(json!({})),
                &owners(&[with(
                    a.clone(),
                    &json!({"apiVersion": "runtime.spinkube.dev.example.org/v1"}),
                )]),
            )),
            one,
        ),
        (
            "create for a version that is not served",
            Create(with(
                alias(json!({})),
                &owners(&[with(
                    a.clone(),
                    &json!({"apiVersion": "runtime.spinkube.dev/v99", "uid": "u"}),
                )]),
            )),
            one,
        ),
        (
            "create for another kind of the group",
            Create(with(
                alias(json!({})),
                &owners(&[with(a.clone(), &json!({"kind": "Shims"}))]),
            )),
            one,
        ),
        (
            "create for the Shim and another",
            Create(with(
                alias(json!({})),
                &owners(&[
                    a.clone(),
                    with(
                        a.clone(),
                        &json!({"kind": "Other", "uid": "u", "controller": null}),
                    ),
                ]),
            )),
            only,
        ),
        (
            "create with a finalizer",
            Create(alias(
                json!({"metadata": {"finalizers": ["example.org/held"]}}),
            )),
            only,
        ),
        (
            "create with the handler runc",
            Create(alias(json!({"handler": "runc"}))),
            runc,
        ),
        (
            "create with the handler RUNC",
            Create(alias(json!({"handler": "RUNC"}))),
            "Invalid value",
        ),
        (
            "create with another handler than the Shim's",
            Create(alias(json!({"handler": "runsc"}))),
            "has no RuntimeClass policies-alias with the handler runsc",
        ),
        (
            "create under another name than the Shim's",
            Create(alias(json!({"metadata": {"name": "policies-new"}}))),
            "has no RuntimeClass policies-new",
        ),
        (
            "create with other tolerations",
            Create(alias(tolerations.clone())),
            "the tolerations of Shim",
        ),
        (
            "create with a longer toleration",
            Create(alias(
                json!({"scheduling": {"tolerations": [{"key": "wasm", "operator": "Exists", "effect": "NoExecute"}]}}),
            )),
            "the tolerations of Shim",
        ),
        (
            "create without the tolerations",
            Create(alias(json!({"scheduling": {"tolerations": null}}))),
            "the tolerations of Shim",
        ),
        (
            "create with more in the node selector",
            Create(alias(
                json!({"scheduling": {"nodeSelector": {"pool": "a"}}}),
            )),
            "the node selector of Shim",
        ),
        (
            "create without the node selector",
            Create(alias(json!({"scheduling": {"nodeSelector": null}}))),
            "the node selector of Shim",
        ),
        (
            "create with the handler's selector for scheduling: Selector",
            Create(with(
                class("policies-b", "policies-b", from_ref(b)),
                &selector("policies-b"),
            )),
            "the node selector of Shim",
        ),
        (
            "create with another overhead",
            Create(alias(
                json!({"overhead": {"podFixed": {"memory": "513Mi"}}}),
            )),
            "the overhead of Shim",
        ),
        (
            "create with more overhead",
            Create(alias(json!({"overhead": {"podFixed": {"cpu": "1"}}}))),
            "the overhead of Shim",
        ),
        (
            "create without overhead",
            Create(alias(json!({"overhead": null}))),
            "the overhead of Shim",
        ),
        (
            "create with very many tolerations",
            Create(alias(json!({"scheduling": {"tolerations": many}}))),
            "at most 64 tolerations",
        ),
        (
            "apply a new one",
            Apply("policies-new", class("policies-new", "spin", &[])),
            one,
        ),
        (
            "apply a new one as the Shim says",
            Apply("policies-alias", alias(json!({}))),
            "",
        ),
        // Changes of a class of a Shim.
        (
            "take the owner away",
            Replace("policies-a", owners(&[])),
            only,
        ),
        (
            "give to another Shim",
            Replace("policies-a", owners(from_ref(b))),
            only,
        ),
        (
            "add an owner",
            Replace(
                "policies-a",
                owners(&[a.clone(), with(b.clone(), &json!({"controller": null}))]),
            ),
            only,
        ),
        (
            "add a finalizer",
            Replace(
                "policies-a",
                json!({"metadata": {"finalizers": ["example.org/held"]}}),
            ),
            only,
        ),
        (
            "change tolerations",
            Replace("policies-a", tolerations.clone()),
            "the tolerations of Shim",
        ),
        (
            "patch tolerations",
            Merge("policies-a", tolerations.clone()),
            "the tolerations of Shim",
        ),
        (
            "apply tolerations",
            Apply(
                "policies-a",
                with(
                    json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "policies-a"}),
                    &tolerations,
                ),
            ),
            "the tolerations of Shim",
        ),
        (
            "change the node selector",
            Replace(
                "policies-a",
                json!({"scheduling": {"nodeSelector": {"pool": "a"}}}),
            ),
            "the node selector of Shim",
        ),
        (
            "change the overhead",
            Replace(
                "policies-a",
                json!({"overhead": {"podFixed": {"memory": "1Mi"}}}),
            ),
            "the overhead of Shim",
        ),
        (
            "change the handler to runc",
            Replace("policies-a", json!({"handler": "runc"})),
            "immutable",
        ),
        (
            "change the class of two Shims",
            Replace("policies-two", label.clone()),
            one,
        ),
        (
            "change a class with the handler runc of a Shim",
            Replace("policies-runc-of-a", label.clone()),
            runc,
        ),
        // Changes of a class of others.
        (
            "take over",
            Replace("policies-gvisor", owners(from_ref(a))),
            only,
        ),
        (
            "take over an adoptable one",
            Replace("policies-spin", adopt(owners(from_ref(a)))),
            only,
        ),
        (
            "adopt with a handler that is not listed",
            Replace("policies-gvisor", both(mark("spin"), &selector("runsc"))),
            unlisted,
        ),
        (
            "adopt with the selector of another handler",
            Replace("policies-gvisor", adopt(json!({}))),
            unlisted,
        ),
        (
            "adopt one with the handler runc",
            Replace("policies-runc", both(mark("spin"), &selector("runc"))),
            runc,
        ),
        (
            "tolerations on gVisor's",
            Replace("policies-gvisor", tolerations.clone()),
            unlisted,
        ),
        (
            "tolerations on gVisor's by apply",
            Apply(
                "policies-gvisor",
                with(class("policies-gvisor", "runsc", &[]), &tolerations),
            ),
            unlisted,
        ),
        (
            "a class of another kind of object",
            Replace("policies-other-kind", label.clone()),
            unlisted,
        ),
        (
            "adopt without the annotation",
            Replace("policies-spin", selector("spin")),
            unowned,
        ),
        (
            "adopt without the node selector",
            Replace("policies-spin", mark("spin")),
            unowned,
        ),
        (
            "adopt with an empty annotation",
            Replace("policies-spin", adopt(mark(""))),
            unowned,
        ),
        (
            "adopt with an annotation that names no Shim",
            Replace("policies-spin", adopt(mark("A shim"))),
            unowned,
        ),
        (
            "adopt with another value",
            Replace(
                "policies-spin",
                adopt(
                    json!({"scheduling": {"nodeSelector": {"handler.farrier.dev/spin": "false"}}}),
                ),
            ),
            unowned,
        ),
        (
            "adopt with another handler's selector",
            Replace("policies-spin", both(mark("spin"), &selector("spin-v2"))),
            unowned,
        ),
        (
            "adopt with two selectors",
            Replace("policies-spin", adopt(selector("spin-v2"))),
            unowned,
        ),
        (
            "adopt and remove a selector",
            Replace(
                "policies-spin",
                adopt(json!({"scheduling": {"nodeSelector": {"pool": null}}})),
            ),
            unowned,
        ),
        (
            "adopt and change a selector",
            Replace(
                "policies-spin",
                adopt(json!({"scheduling": {"nodeSelector": {"pool": "b"}}})),
            ),
            unowned,
        ),
        (
            "adopt and change tolerations",
            Replace("policies-spin", adopt(tolerations.clone())),
            unowned,
        ),
        (
            "adopt and remove tolerations",
            Replace(
                "policies-spin",
                adopt(json!({"scheduling": {"tolerations": null}})),
            ),
            unowned,
        ),
        (
            "adopt and change the overhead",
            Replace(
                "policies-spin",
                adopt(json!({"overhead": {"podFixed": {"cpu": "2"}}})),
            ),
            unowned,
        ),
        (
            "adopt and remove the overhead",
            Replace("policies-spin", adopt(json!({"overhead": null}))),
            unowned,
        ),
        (
            "adopt and add a label",
            Replace("policies-spin", adopt(label.clone())),
            unowned,
        ),
        (
            "adopt and remove the labels",
            Replace(
                "policies-spin",
                adopt(json!({"metadata": {"labels": null}})),
            ),
            unowned,
        ),
        (
            "adopt and change an annotation",
            Replace(
                "policies-spin",
                adopt(json!({"metadata": {"annotations": {"example.org/note": "b"}}})),
            ),
            unowned,
        ),
        (
            "adopt and remove an annotation",
            Replace(
                "policies-spin",
                adopt(json!({"metadata": {"annotations": {"example.org/note": null}}})),
            ),
            unowned,
        ),
        (
            "adopt and add a finalizer",
            Replace(
                "policies-spin",
                adopt(json!({"metadata": {"finalizers": ["example.org/held"]}})),
            ),
            only,
        ),
        (
            "adopt what selects by the handler",
            Replace("policies-selecting", mark("spin")),
            unowned,
        ),
        (
            "adopt what has the annotation",
            Replace("policies-marked", selector("spin")),
            unowned,
        ),
        (
            "give back what was not adopted",
            Replace("policies-selecting", give_back.clone()),
            unowned,
        ),
        (
            "give back what has only the annotation",
            Replace("policies-marked", give_back.clone()),
            unowned,
        ),
        (
            "give back the selector alone",
            Replace(
                "policies-adopted",
                json!({"scheduling": {"nodeSelector": {"handler.farrier.dev/spin": null}}}),
            ),
            unowned,
        ),
        (
            "give back the annotation alone",
            Replace(
                "policies-adopted",
                json!({"metadata": {"annotations": {names::ADOPTED_BY_ANNOTATION: null}}}),
            ),
            unowned,
        ),
        (
            "give back and more",
            Replace(
                "policies-adopted",
                both(
                    give_back,
                    &json!({"scheduling": {"nodeSelector": {"pool": null}}}),
                ),
            ),
            unowned,
        ),
        (
            "adopt again for another Shim",
            Replace("policies-adopted", mark("other")),
            unowned,
        ),
        // Deletion.
        ("delete gVisor's", Delete("policies-gvisor"), one),
        ("delete an adopted one", Delete("policies-adopted"), one),
        ("delete that of two Shims", Delete("policies-two"), one),
        (
            "delete that of another group's Shim",
            Delete("policies-other-group"),
            one,
        ),
        (
            "delete one with the handler runc",
            Delete("policies-runc-of-a"),
            runc,
        ),
        ("delete all", DeleteAll, "denied request"),
    ]
}

#[tokio::test]
async fn the_controller_may_write_runtime_classes_only_as_their_one_shim_says() {
    let cluster = Cluster::with_farrier().await;
    give_rights(&cluster).await;
    let (name_a, name_b) = ("policies-a", "policies-b");
    let of_spec = json!({"spec": {"runtimeClass": {
        "aliases": ["policies-alias"], "overhead": {"memory": "0.5Gi"},
        "tolerations": [{"key": "wasm", "operator": "Exists", "value": "", "effect": "NoExecute", "tolerationSeconds": 60}],
    }}});
    let a = paused_shim(&cluster, name_a, &of_spec).await;
    let selector = json!({"spec": {"runtimeClass": {"scheduling": "Selector"}}});
    let b = paused_shim(&cluster, name_b, &selector).await;
    let by_admin = all_of::<RuntimeClass>(&cluster.client);
    // A failed test may have left them.
    remove_classes(&by_admin).await;
    let classes = classes(&owner(&a), &owner(&b));
    for class in &classes {
        let class = serde_json::from_value(class.clone()).unwrap();
        by_admin
            .create(&PostParams::default(), &class)
            .await
            .unwrap();
    }

    let controller = all_of::<RuntimeClass>(&cluster.as_account("farrier").await);
    let unlike = json!({"handler": "policies-a", "overhead": {"podFixed": {"memory": "1Mi"}}});
    eventually(
        "the rights and the policies are in force",
        async || match answer(&controller, &Replace("policies-a", unlike.clone())).await {
            Err(message) if message.contains("overhead of Shim") => Ok(()),
            other => Err(other),
        },
    )
    .await;
    check(&controller, requests_for_classes(&owner(&a), &owner(&b))).await;
    // Other accounts are not restricted.
    let free = Delete("policies-gvisor");
    assert_eq!(answer(&by_admin, &free).await, Ok(()));

    remove_classes(&by_admin).await;
    for name in [name_a, name_b] {
        cluster.delete_shim(name).await;
    }
    take_rights(&cluster).await;
}

/// The controller itself, under the policies: each change of a Shim reaches its RuntimeClasses at once. A refusal would delay it for half a
/// minute.
#[tokio::test]
async fn the_policies_delay_no_change_of_a_shim() {
    let cluster = Cluster::with_farrier().await;
    let name = "policies-follow";
    cluster
        .create_shim(&shim_for(name, &cluster.artifacts.shim))
        .await;
    let classes: Api<RuntimeClass> = Api::all(cluster.client.clone());
    let toleration = |key: &str| json!({"key": key, "operator": "Exists"});
    let steps = [
        json!({"aliases": ["policies-alias"]}),
        json!({"tolerations": [toleration("a")]}),
        json!({"tolerations": [toleration("a"), {"key": "b", "value": "c", "effect": "NoExecute", "tolerationSeconds": 5}]}),
        json!({"overhead": {"memory": "16Mi", "cpu": "0.25"}, "tolerations": []}),
        json!({"overhead": {"memory": "1e6"}, "labels": {"a": "b"}}),
        json!({"scheduling": "Selector", "overhead": {}, "labels": {}}),
        json!({"scheduling": "Provisioned", "aliases": []}),
    ];
    for step in steps {
        let patch = json!({"spec": {"runtimeClass": &step}});
        let shim = cluster
            .shims()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        let wanted = &shim.spec.runtime_class;
        let start = Instant::now();
        eventually(&format!("the RuntimeClasses follow {step}"), async || {
            let mut found = BTreeMap::new();
            for class in classes.list(&ListParams::default()).await.unwrap() {
                if class
                    .owner_references()
                    .iter()
                    .any(|owner| owner.name == name)
                {
                    found.insert(class.name_any(), class);
                }
            }
            let follows = found.len() == 1 + wanted.aliases.len()
                && found.values().all(|class| {
                    let scheduling = class.scheduling.clone().unwrap_or_default();
                    let selector = scheduling.node_selector.unwrap_or_default();
                    let by_handler = selector.contains_key(&names::handler_label(name));
                    let is_provisioned = wanted.scheduling == farrier::api::Scheduling::Provisioned;
                    let overhead = class.overhead.clone().unwrap_or_default().pod_fixed;
                    scheduling.tolerations.unwrap_or_default().len() == wanted.tolerations.len()
                        && overhead.unwrap_or_default().len() == wanted.overhead.len()
                        && class.labels().len() == 1 + wanted.labels.len()
                        && by_handler == is_provisioned
                });
            if follows { Ok(()) } else { Err(found) }
        })
        .await;
        let took = start.elapsed();
        assert!(took < Duration::from_secs(15), "{step}: {took:?}");
    }
    cluster.delete_shim(name).await;
}
