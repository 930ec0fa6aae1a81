//! Requests in the name of an account, as dry runs, and the objects that they need. Helpers, no tests.

use farrier::api::Shim;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Client;
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Resource,
};
use kube::core::ApiResource;
use serde_json::{Value, json};

use crate::support::{Cluster, shim_for};

/// Prefix of the names of all objects of these tests.
pub const NAME: &str = "policies";

/// Selects the RuntimeClasses of these tests.
pub const LABELLED: &str = "test.farrier.dev/policies=true";

/// A request, and the object that it sends.
pub enum Request {
    Create(Value),
    /// Replaces the object by itself with a merge patch applied, as the controller replaces RuntimeClasses.
    Replace(&'static str, Value),
    /// A merge patch.
    Merge(&'static str, Value),
    /// A merge patch of the status.
    Status(&'static str, Value),
    /// A server-side apply.
    Apply(&'static str, Value),
    Delete(&'static str),
    DeleteAll,
}

use Request::{Apply, Create, Delete, DeleteAll, Merge, Replace, Status};

/// The name of a request, the request, and a part of the message with which it is refused; empty if it is allowed.
pub type Row = (&'static str, Request, &'static str);

/// `document` changed by the merge patch `patch` (RFC 7386).
pub fn merge(document: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *document = patch.clone();
        return;
    };
    if !document.is_object() {
        *document = json!({});
    }
    let document = document.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            document.remove(key);
        } else {
            merge(document.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// One merge patch that does what both do.
pub fn both(mut patch: Value, more: &Value) -> Value {
    match (&mut patch, more) {
        (Value::Object(patch), Value::Object(more)) => {
            for (key, value) in more {
                let there = patch.remove(key).unwrap_or(Value::Null);
                patch.insert(key.clone(), both(there, value));
            }
        }
        _ => return more.clone(),
    }
    patch
}

/// Sends the request as a dry run. Returns the message of a refusal.
pub async fn answer(api: &Api<DynamicObject>, request: &Request) -> Result<(), String> {
    let post = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let patch = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let delete = DeleteParams {
        dry_run: true,
        ..DeleteParams::default()
    };
    let object = |value: &Value| serde_json::from_value::<DynamicObject>(value.clone()).unwrap();
    let answer = match request {
        Create(value) => api.create(&post, &object(value)).await.map(drop),
        Replace(name, change) => {
            let mut value = serde_json::to_value(api.get(name).await.unwrap()).unwrap();
            merge(&mut value, change);
            api.replace(name, &post, &object(&value)).await.map(drop)
        }
        Merge(name, value) => api
            .patch(name, &patch, &Patch::Merge(value))
            .await
            .map(drop),
        Status(name, value) => api
            .patch_status(name, &patch, &Patch::Merge(value))
            .await
            .map(drop),
        Apply(name, value) => {
            let apply = PatchParams {
                field_manager: Some("test".to_owned()),
                force: true,
                ..patch
            };
            api.patch(name, &apply, &Patch::Apply(value))
                .await
                .map(drop)
        }
        Delete(name) => api.delete(name, &delete).await.map(drop),
        DeleteAll => {
            let list = ListParams::default().labels(LABELLED);
            api.delete_collection(&delete, &list).await.map(drop)
        }
    };
    match answer {
        Ok(()) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(other) => panic!("{other}"),
    }
}

/// The refusal of the policy that compares a RuntimeClass with its Shim.
const COMPARES_WITH_SHIM: &str =
    "ValidatingAdmissionPolicy 'farrier-runtimeclasses-of-shims' with binding";

/// What the other policy says to requests that both refuse.
const OF_THE_OTHER: [&str; 4] = [
    "only RuntimeClasses that exactly one Shim owns",
    "no RuntimeClass with the handler runc",
    "at most 64 tolerations",
    "neither the owners nor",
];

/// Sends every request, and compares the answers.
pub async fn check(api: &Api<DynamicObject>, rows: Vec<Row>) {
    let mut wrong = Vec::new();
    for (what, request, said) in rows {
        match (answer(api, &request).await, said) {
            (Ok(()), "") => {}
            (Err(message), said) if !said.is_empty() && message.contains(said) => {}
            // Two policies refuse the request, and the API server names either one first.
            (Err(message), said)
                if OF_THE_OTHER.contains(&said) && message.contains(COMPARES_WITH_SHIM) => {}
            (answer, _) => wrong.push(format!("{what}: {answer:?} instead of {said:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

pub fn all_of<K: Resource<DynamicType = ()>>(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::erase::<K>(&()))
}

/// Gives the controller's account every right on the objects of these tests, until [`take_rights`].
pub async fn give_rights(cluster: &Cluster) {
    let role: ClusterRole = serde_json::from_value(json!({
        "metadata": {"name": NAME},
        "rules": [{
            "apiGroups": ["node.k8s.io", "runtime.spinkube.dev", "apiextensions.k8s.io"],
            "resources": ["runtimeclasses", "shims", "shims/status", "customresourcedefinitions"],
            "verbs": ["*"],
        }],
    }))
    .unwrap();
    let account =
        |name: &str| json!({"kind": "ServiceAccount", "name": name, "namespace": "farrier"});
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": NAME},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME},
        "subjects": [account("farrier"), account("farrier-crd")],
    }))
    .unwrap();
    take_rights(cluster).await;
    let post = PostParams::default();
    let roles: Api<ClusterRole> = Api::all(cluster.client.clone());
    roles.create(&post, &role).await.unwrap();
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.client.clone());
    bindings.create(&post, &binding).await.unwrap();
}

pub async fn take_rights(cluster: &Cluster) {
    let delete = DeleteParams::default();
    let roles: Api<ClusterRole> = Api::all(cluster.client.clone());
    let _ = roles.delete(NAME, &delete).await;
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.client.clone());
    let _ = bindings.delete(NAME, &delete).await;
}

/// Creates a Shim that no node carries, with `more` in its spec. The controller writes nothing for a paused Shim.
pub async fn paused_shim(cluster: &Cluster, name: &str, more: &Value) -> Shim {
    let mut shim = serde_json::to_value(shim_for(name, &cluster.artifacts.shim)).unwrap();
    merge(&mut shim, &json!({"spec": {"paused": true}}));
    merge(&mut shim, more);
    let shim = serde_json::from_value(shim).unwrap();
    let shims = cluster.shims();
    shims.create(&PostParams::default(), &shim).await.unwrap()
}

/// `class` with the merge patch `more`.
pub fn with(mut class: Value, more: &Value) -> Value {
    merge(&mut class, more);
    class
}
