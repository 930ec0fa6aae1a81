//! Whether the cluster serves Farrier's CustomResourceDefinition of the Shim. With an older one, for example that of runtime-class-manager,
//! the API server drops the fields that the older one lacks. A Shim without its annotationSelector would select every node.

use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, CustomResourceExt};

use crate::api::Shim;

/// A field that selects nodes and that only Farrier's definition has.
const OWN_FIELD: &str = "annotationSelector";

/// Waits until the cluster serves this definition, or the definition of a release with the same fields.
pub async fn wait_until_crd_current(client: &Client) {
    wait(client, true).await;
}

/// Waits until the cluster no longer serves such a definition.
pub async fn wait_until_crd_replaced(client: &Client) {
    wait(client, false).await;
}

/// Errors of the API server are retried: the last known definition counts until then.
async fn wait(client: &Client, for_current: bool) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let seen = watcher::watch_object(definitions, Shim::crd_name()).default_backoff();
    let mut seen = std::pin::pin!(seen);
    let mut warned = false;
    while let Some(seen) = seen.next().await {
        match seen {
            Ok(definition) if definition.as_ref().is_some_and(is_current) == for_current => return,
            Ok(_) if for_current && !warned => {
                warned = true;
                tracing::warn!(
                    help = "run `farrier crd --apply`",
                    "waiting for Farrier's CustomResourceDefinition of the Shim"
                );
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "failed to watch the CustomResourceDefinition of the Shim, retrying");
            }
        }
    }
}

fn is_current(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition
        .status
        .iter()
        .flat_map(|status| &status.conditions)
        .flatten();
    let mut established = conditions.filter(|condition| condition.type_ == "Established");
    let is_served = established.any(|condition| condition.status == "True");
    let mut versions = definition.spec.versions.iter();
    is_served
        && versions.any(|version| {
            let schema = version
                .schema
                .as_ref()
                .and_then(|schema| schema.open_api_v3_schema.as_ref());
            let properties = schema.and_then(|schema| schema.properties.as_ref());
            let spec =
                properties.and_then(|properties| properties.get("spec")?.properties.as_ref());
            let has_status = version
                .subresources
                .as_ref()
                .is_some_and(|it| it.status.is_some());
            version.served && has_status && spec.is_some_and(|spec| spec.contains_key(OWN_FIELD))
        })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceDefinitionCondition, CustomResourceDefinitionStatus,
    };

    use super::*;

    fn established() -> CustomResourceDefinition {
        let mut definition = Shim::crd();
        let condition = CustomResourceDefinitionCondition {
            type_: "Established".to_owned(),
            status: "True".to_owned(),
            ..CustomResourceDefinitionCondition::default()
        };
        definition.status = Some(CustomResourceDefinitionStatus {
            conditions: Some(vec![condition]),
            ..CustomResourceDefinitionStatus::default()
        });
        definition
    }

    #[test]
    fn the_crd_of_this_release_is_current_once_it_is_established() {
        assert!(is_current(&established()));
        assert!(!is_current(&Shim::crd()));
    }

    #[test]
    fn a_crd_without_a_field_or_status_is_not_current() {
        let mut older = established();
        older.spec.versions[0].subresources = None;
        assert!(!is_current(&older));
        let mut pruning = established();
        let schema = pruning.spec.versions[0].schema.as_mut().unwrap();
        let properties = schema
            .open_api_v3_schema
            .as_mut()
            .unwrap()
            .properties
            .as_mut()
            .unwrap();
        let spec = properties.get_mut("spec").unwrap();
        spec.properties.as_mut().unwrap().remove(OWN_FIELD);
        assert!(!is_current(&pruning));
    }
}
