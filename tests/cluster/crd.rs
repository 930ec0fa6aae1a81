//! The Shim's definition in a real API server: its refusals and their messages, and the replacement of an older definition.

use farrier::api::Shim;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use serde_json::{Value, json};

use crate::support::{Cluster, eventually};

/// The definition of runtime-class-manager 0.2.0 where it differs from Farrier's: no status subresource, no field of Farrier.
pub fn older() -> Value {
    let text = || json!({"type": "string"});
    let map = || json!({"type": "object", "additionalProperties": {"type": "string"}});
    let object = |required: &[&str], properties: Value| json!({"type": "object", "required": required, "properties": properties});
    let platform = object(
        &["arch", "location", "os"],
        json!({"os": text(), "arch": text(), "location": text(), "sha256": text()}),
    );
    let spec = object(
        &["fetchStrategy", "rolloutStrategy", "runtimeClass"],
        json!({
            "nodeSelector": map(),
            "containerdRuntimeOptions": map(),
            "fetchStrategy": object(&[], json!({
                "type": text(),
                "anonHttp": object(&["location"], json!({"location": text()})),
                "platforms": {"type": "array", "items": platform},
            })),
            "runtimeClass": object(&["handler", "name"], json!({"name": text(), "handler": text()})),
            "rolloutStrategy": object(&["type"], json!({
                "type": {"type": "string", "enum": ["rolling", "recreate"]},
                "rolling": object(&["maxUpdate"], json!({"maxUpdate": {"type": "integer"}})),
            })),
        }),
    );
    let status = object(
        &["nodes", "nodesReady"],
        json!({"nodes": {"type": "integer"}, "nodesReady": {"type": "integer"}}),
    );
    json!([{
        "name": "v1alpha1", "served": true, "storage": true, "subresources": {},
        "additionalPrinterColumns": [{"name": "Nodes", "type": "integer", "jsonPath": ".status.nodes"}],
        "schema": {"openAPIV3Schema": object(&[], json!({
            "apiVersion": text(), "kind": text(), "metadata": {"type": "object"}, "spec": spec, "status": status,
        }))},
    }])
}

/// A Shim as written, valid or not.
fn object(name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "runtime.spinkube.dev/v1alpha1", "kind": "Shim", "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap()
}

fn spec() -> Value {
    json!({
        "nodeSelector": {"test.farrier.dev/nobody": "true"},
        "fetchStrategy": {"platforms": [{"os": "linux", "arch": "amd64", "location": "https://example.org/a.tar.gz"}]},
        "runtimeClass": {"name": "definition", "handler": "definition"},
        "rolloutStrategy": {"type": "recreate"},
    })
}

/// The API server's answer to a dry-run creation of a Shim.
async fn answer(cluster: &Cluster, name: &str, spec: &Value) -> Result<DynamicObject, String> {
    let kind = ApiResource::erase::<Shim>(&());
    let shims: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &kind);
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let made = shims.create(&dry, &object(name, spec)).await;
    made.map_err(|error| match error {
        kube::Error::Api(status) => status.message.clone(),
        other => panic!("{other}"),
    })
}

#[tokio::test]
async fn an_invalid_shim_is_refused_with_a_readable_message() {
    let cluster = Cluster::connect().await;
    cluster.farrier(&["crd", "--apply"]);
    let digest = "64 hexadecimal digits, as sha256sum prints them";
    for (pointer, value, said) in [
        (
            "/fetchStrategy/platforms/0/sha256",
            json!("sha256:abc"),
            digest,
        ),
        (
            "/fetchStrategy/platforms/0/binarySha256",
            json!("abc"),
            digest,
        ),
        (
            "/fetchStrategy/binary",
            json!("bin/shim"),
            "without a directory",
        ),
        (
            "/fetchStrategy/platforms",
            json!([]),
            "platforms must not be empty",
        ),
        (
            "/fetchStrategy/platforms/0/location",
            json!("oci://example.org/a:1"),
            "location must be https://",
        ),
        (
            "/fetchStrategy/platforms/0/location",
            json!("file://host/a"),
            "location must be https://",
        ),
        (
            "/runtimeClass/handler",
            json!("runc"),
            "reserved for containerd",
        ),
        (
            "/handlerAliases",
            json!(["runc"]),
            "reserved for containerd",
        ),
        ("/handlerAliases", json!(["a/b"]), "becomes a node label"),
        (
            "/runtimeClass/aliases",
            json!(["Spin"]),
            "lower-case letters",
        ),
        (
            "/runtimeClass/overhead",
            json!({"memory": "much"}),
            "memory: 16Mi",
        ),
        (
            "/runtimeClass/scheduling",
            json!("Everywhere"),
            "supported values: \"Provisioned\", \"Selector\"",
        ),
        (
            "/rolloutStrategy/rolling",
            json!({"maxUpdate": "0%"}),
            "a percentage from 1% to 100%",
        ),
        (
            "/rolloutStrategy/rolling",
            json!({"maxUpdate": "all of them"}),
            "a percentage from 1% to 100%",
        ),
    ] {
        let mut spec = spec();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[key] = value;
        let refusal = answer(&cluster, "mistaken", &spec).await.unwrap_err();
        assert!(refusal.contains(said), "{pointer}: {refusal}");
    }
    let refusal = answer(&cluster, &"a".repeat(64), &spec()).await;
    assert!(refusal.unwrap_err().contains("at most 63 characters"));
}

#[tokio::test]
async fn options_beyond_the_bounds_are_refused_by_the_definition() {
    let cluster = Cluster::connect().await;
    cluster.farrier(&["crd", "--apply"]);
    let options = |count: usize, name: usize, value: usize| -> Value {
        let options = (0..count).map(|at| (format!("{at:0name$}"), json!("é".repeat(value))));
        options.collect::<serde_json::Map<_, _>>().into()
    };
    for (options, said) in [
        (options(64, 128, 1_024), None),
        (options(65, 3, 1), Some("must have at most 64 items")),
        (options(1, 129, 1), Some("at most 128 characters")),
        (
            options(1, 3, 1_025),
            Some("may not be more than 1024 bytes"),
        ),
    ] {
        let mut spec = spec();
        spec["containerdRuntimeOptions"] = options;
        let answer = answer(&cluster, "options", &spec).await;
        match (answer, said) {
            (Ok(_), None) => {}
            (Err(refusal), Some(said)) => assert!(refusal.contains(said), "{refusal}"),
            (answer, said) => panic!("{answer:?} instead of {said:?}"),
        }
    }
}

#[tokio::test]
async fn a_shim_of_runtime_class_manager_is_accepted() {
    let cluster = Cluster::connect().await;
    cluster.farrier(&["crd", "--apply"]);
    for (pointer, value) in [
        ("/fetchStrategy", json!({})),
        (
            "/fetchStrategy",
            json!({"type": "anonymousHttp", "anonHttp": {"location": "example.org/a"}}),
        ),
        (
            "/fetchStrategy",
            json!({"platforms": [], "anonHttp": {"location": "https://example.org/a"}}),
        ),
        (
            "/fetchStrategy/platforms/0/location",
            json!("file:///srv/a.tar.gz"),
        ),
        (
            "/fetchStrategy/platforms/0/location",
            json!("HTTPS://example.org/a.tar.gz"),
        ),
        (
            "/fetchStrategy/platforms/0/sha256",
            json!("a923f08d91c110d2cda29fbc380273e6d0a97aa0bab455c55f613c8d5a8bfbe4"),
        ),
        ("/runtimeClass/name", json!("")),
        (
            "/containerdRuntimeOptions",
            json!({"SystemdCgroup": "true"}),
        ),
        ("/rolloutStrategy", json!({"type": "rolling"})),
        (
            "/rolloutStrategy",
            json!({"type": "rolling", "rolling": {"maxUpdate": 5}}),
        ),
        (
            "/rolloutStrategy",
            json!({"type": "recreate", "rolling": {"maxUpdate": 0}}),
        ),
        // Fields that only Farrier has.
        (
            "/rolloutStrategy",
            json!({"type": "rolling", "rolling": {"maxUpdate": "25%"}}),
        ),
        (
            "/rolloutStrategy",
            json!({"type": "rolling", "rolling": {}}),
        ),
    ] {
        let mut spec = spec();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[key] = value;
        let made = answer(&cluster, "taken", &spec).await;
        let made = made.unwrap_or_else(|refusal| panic!("{pointer}: {refusal}"));
        let read: Shim = serde_json::from_value(serde_json::to_value(made).unwrap()).unwrap();
        assert!(!read.spec.paused);
    }
    let mut spec = spec();
    spec.as_object_mut().unwrap().remove("rolloutStrategy");
    let made = answer(&cluster, "taken", &spec).await.unwrap();
    assert_eq!(
        made.data["spec"]["rolloutStrategy"],
        json!({"type": "recreate"})
    );
    assert_eq!(
        made.data["spec"]["runtimeClass"]["scheduling"],
        "Provisioned"
    );
}

#[tokio::test]
async fn the_crd_replaces_an_older_one_and_keeps_all_shims() {
    let cluster = Cluster::with_farrier().await;
    // With a definition without Farrier's fields, a Shim seems to select every node: no controller may act on that.
    cluster.scale(0).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let name = "shims.runtime.spinkube.dev";
    let patch = json!({
        "metadata": {"labels": {"test.farrier.dev/kept": "true"}},
        "spec": {"names": {"shortNames": null, "categories": null}, "versions": older()},
    });
    let patched = definitions
        .patch(name, &PatchParams::apply("helm"), &Patch::Merge(patch))
        .await
        .unwrap();
    assert!(
        patched.spec.versions[0]
            .additional_printer_columns
            .is_some()
    );
    let mut written = spec();
    written["rolloutStrategy"] = json!({"type": "rolling", "rolling": {"maxUpdate": 5}});
    let shim = object("survivor", &written);
    let kind = ApiResource::erase::<Shim>(&());
    let shims: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &kind);
    let before = eventually("the older definition is served", async || {
        shims.create(&PostParams::default(), &shim).await
    })
    .await;
    cluster.farrier(&["crd", "--apply"]);
    // A second time changes nothing. The API server writes the status meanwhile, so its version is not compared.
    let first = definitions.get(name).await.unwrap();
    cluster.farrier(&["crd", "--apply"]);
    let second = definitions.get(name).await.unwrap();
    assert_eq!(first.metadata.generation, second.metadata.generation);
    assert_eq!(first.labels(), second.labels());
    assert_eq!(second.labels()["test.farrier.dev/kept"], "true");
    eventually(
        "the definition is the new one for the Shim that was there",
        async || {
            let patch = json!({"status": {"nodesFailed": 1}});
            let answer = cluster
                .shims()
                .patch_status("survivor", &PatchParams::default(), &Patch::Merge(patch))
                .await;
            let after = answer.map_err(|error| error.to_string())?;
            let new = after
                .status
                .as_ref()
                .is_some_and(|status| status.nodes_failed == 1);
            if new && after.uid() == before.uid() {
                Ok(())
            } else {
                Err(format!("{after:?}"))
            }
        },
    )
    .await;
    let share = json!({"spec": {"rolloutStrategy": {"rolling": {"maxUpdate": "25%"}}}});
    let merge = Patch::Merge(share);
    let after = cluster
        .shims()
        .patch("survivor", &PatchParams::default(), &merge)
        .await
        .unwrap();
    assert_eq!(
        after.spec.node_selector.unwrap()["test.farrier.dev/nobody"],
        "true"
    );
    cluster.scale(1).await;
    cluster.delete_shim("survivor").await;
}
