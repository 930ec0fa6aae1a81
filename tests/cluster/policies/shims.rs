//! Shims, their definition, and the account of the hook. The accounts have more rights than the chart gives them, so that only the policies
//! refuse.

use farrier::api::Shim;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::requests::Request::{Apply, Create, Delete, Merge, Replace, Status};
use super::requests::{
    Row, all_of, answer, both, check, give_rights, merge, paused_shim, take_rights, with,
};
use crate::support::{Cluster, eventually, shim_for};

/// Requests for the Shim `name`, `new` for a new one, and `location` as a change of the program.
#[allow(clippy::too_many_lines, reason = "a table: a row for each request")]
fn requests_for_a_shim(name: &'static str, location: &Value, new: Value) -> Vec<Row> {
    let metadata = |key: &str, value: Value| json!({"metadata": {key: value}});
    let (one, finalizer) = (
        "except its finalizers and the status",
        "no finalizer of a Shim except",
    );
    let apply = |more: &Value| {
        let shim = json!({"apiVersion": "runtime.spinkube.dev/v1alpha1", "kind": "Shim"});
        with(shim, more)
    };
    let own = ["example.org/held", "farrier.dev/finalizer"];
    let finalizers = |names: &[&str]| metadata("finalizers", json!(names));
    vec![
        ("replace RCM's finalizer", Merge(name, finalizers(&own)), ""),
        (
            "remove the own finalizers",
            Merge(name, finalizers(&own[..1])),
            "",
        ),
        (
            "write the status",
            Status(name, json!({"status": {"nodes": 3}})),
            "",
        ),
        (
            "write the status and the spec",
            Status(name, both(json!({"status": {"nodes": 3}}), location)),
            "",
        ),
        ("change the location", Merge(name, location.clone()), one),
        ("replace the location", Replace(name, location.clone()), one),
        ("apply a location", Apply(name, apply(location)), one),
        (
            "resume",
            Merge(name, json!({"spec": {"paused": false}})),
            one,
        ),
        (
            "remove the node selector",
            Merge(name, json!({"spec": {"nodeSelector": null}})),
            one,
        ),
        (
            "add options",
            Merge(
                name,
                json!({"spec": {"containerdRuntimeOptions": {"BinaryName": "/tmp/evil"}}}),
            ),
            one,
        ),
        (
            "change a label",
            Merge(name, metadata("labels", json!({"team": "b"}))),
            one,
        ),
        (
            "remove the labels",
            Merge(name, metadata("labels", Value::Null)),
            one,
        ),
        (
            "force the deletion",
            Merge(
                name,
                metadata("annotations", json!({"farrier.dev/force-delete": "true"})),
            ),
            one,
        ),
        (
            "remove an annotation",
            Merge(
                name,
                metadata("annotations", json!({"example.org/note": null})),
            ),
            one,
        ),
        (
            "add an owner",
            Merge(
                name,
                metadata(
                    "ownerReferences",
                    json!([{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "a"}]),
                ),
            ),
            one,
        ),
        (
            "remove a foreign finalizer",
            Merge(name, finalizers(&["rcm.spinkube.dev/finalizer"])),
            finalizer,
        ),
        (
            "remove all finalizers",
            Merge(name, metadata("finalizers", Value::Null)),
            finalizer,
        ),
        (
            "add a foreign finalizer",
            Merge(name, finalizers(&["example.org/held", "example.org/other"])),
            finalizer,
        ),
        (
            "finalizer and spec",
            Merge(name, both(finalizers(&own), location)),
            one,
        ),
        ("create", Create(new.clone()), "creates and deletes no Shim"),
        (
            "apply a new one",
            Apply("policies-new", new),
            "creates and deletes no Shim",
        ),
        ("delete", Delete(name), "creates and deletes no Shim"),
    ]
}

#[tokio::test]
async fn the_controller_may_change_nothing_of_a_shim_but_its_finalizers_and_status() {
    let cluster = Cluster::with_farrier().await;
    give_rights(&cluster).await;
    let name = "policies-a";
    let held = json!({"metadata": {
        "finalizers": ["example.org/held", "rcm.spinkube.dev/finalizer"], "labels": {"team": "a"}, "annotations": {"example.org/note": "a"},
    }});
    paused_shim(&cluster, name, &held).await;
    let controller = all_of::<Shim>(&cluster.as_account("farrier").await);
    let location = json!({"spec": {"fetchStrategy": {"platforms": null, "anonHttp": {"location": "http://attacker.example/x"}}}});
    eventually(
        "the rights and the policies are in force",
        async || match answer(&controller, &Merge(name, location.clone())).await {
            Err(message) if message.contains("except its finalizers and the status") => Ok(()),
            other => Err(other),
        },
    )
    .await;
    let new = serde_json::to_value(shim_for("policies-new", &cluster.artifacts.shim)).unwrap();
    let rows = requests_for_a_shim(name, &location, new);
    check(&controller, rows).await;
    // The status can't carry a spec: the API server drops it.
    let smuggled = both(json!({"status": {"nodes": 3}}), &location);
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let patched = controller
        .patch_status(name, &dry, &Patch::Merge(smuggled))
        .await
        .unwrap();
    assert!(!patched.data.to_string().contains("attacker"));

    let shims = cluster.shims();
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    shims
        .patch(name, &PatchParams::default(), &free)
        .await
        .unwrap();
    cluster.delete_shim(name).await;
    take_rights(&cluster).await;
}

#[tokio::test]
async fn farrier_may_write_no_definition_but_that_of_the_shim_without_a_webhook() {
    let cluster = Cluster::with_farrier().await;
    give_rights(&cluster).await;
    let ours = Shim::crd_name();
    let mut other = serde_json::to_value(Shim::crd()).unwrap();
    merge(
        &mut other,
        &json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "policies.example.org"},
            "spec": {"group": "example.org", "names": {
                "kind": "Policy", "plural": "policies", "singular": "policy", "shortNames": null, "categories": null,
            }},
        }),
    );
    let webhook = json!({"spec": {"conversion": {"strategy": "Webhook", "webhook": {
        "conversionReviewVersions": ["v1"], "clientConfig": {"url": "https://attacker.example/convert"},
    }}}});
    for account in ["farrier", "farrier-crd"] {
        let definitions = all_of::<CustomResourceDefinition>(&cluster.as_account(account).await);
        let one = "no CustomResourceDefinition except shims.runtime.spinkube.dev";
        eventually(
            "the rights and the policies are in force",
            async || match answer(&definitions, &Create(other.clone())).await {
                Err(message) if message.contains(one) => Ok(()),
                other => Err(other),
            },
        )
        .await;
        let metadata = |key: &str, value: Value| json!({"metadata": {key: value}});
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "a"}]);
        let rows = vec![
            (
                "replace",
                Replace(
                    ours,
                    json!({"spec": {"names": {"categories": ["farrier", "all"]}}}),
                ),
                "",
            ),
            ("create another", Create(other.clone()), one),
            (
                "apply another",
                Apply("policies.example.org", other.clone()),
                one,
            ),
            (
                "convert by a webhook",
                Replace(ours, webhook.clone()),
                "no conversion webhook",
            ),
            (
                "patch a webhook",
                Merge(ours, webhook.clone()),
                "no conversion webhook",
            ),
            (
                "add a finalizer",
                Merge(ours, metadata("finalizers", json!(["example.org/held"]))),
                "neither the finalizers",
            ),
            (
                "add an owner",
                Merge(ours, metadata("ownerReferences", owner)),
                "neither the finalizers nor the owners",
            ),
            ("delete", Delete(ours), one),
        ];
        check(&definitions, rows).await;
    }
    let definitions = all_of::<CustomResourceDefinition>(&cluster.client);
    let free = Merge(ours, webhook);
    assert_eq!(answer(&definitions, &free).await, Ok(()));
    take_rights(&cluster).await;
}

#[tokio::test]
async fn a_failed_hook_leaves_no_account_that_may_create_definitions() {
    let cluster = Cluster::with_farrier().await;
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/farrier");
    // No node has this image, so the Job of the hook never ends.
    let upgrade = [
        "upgrade",
        "farrier",
        chart,
        "-n",
        "farrier",
        "--reuse-values",
    ];
    let fails = ["--set", "image.tag=none", "--timeout", "15s"];
    let said = cluster.helm_refusal(&[&upgrade[..], &fails].concat());
    assert!(said.contains("pre-upgrade"), "{said}");
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "farrier");
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.client.clone());
    let roles: Api<ClusterRole> = Api::all(cluster.client.clone());
    let name = "farrier-crd";
    eventually(
        "the account, its role and its binding are gone",
        async || {
            let account = accounts.get_opt(name).await.unwrap();
            let binding = bindings.get_opt(name).await.unwrap();
            let role = roles.get_opt(name).await.unwrap();
            match (account, binding, role) {
                (None, None, None) => Ok(()),
                left => Err(left),
            }
        },
    )
    .await;
    cluster.helm_install();
}
