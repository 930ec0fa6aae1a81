//! Whether the cluster serves a Shim that has all of our fields. An older definition, runtime-class-manager's for example, prunes what
//! it doesn't know: a Shim whose annotationSelector was pruned would match every node.

use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, CustomResourceExt};

use crate::api::Shim;

/// A field that no definition but ours has, and that selects nodes.
const OWN_FIELD: &str = "annotationSelector";

/// Waits until the definition that is served is ours, or of a release that knows as much.
pub async fn wait_until_crd_current(client: &Client) {
    wait(client, true).await;
}

/// Waits until the definition that is served is so no more.
pub async fn wait_until_crd_replaced(client: &Client) {
    wait(client, false).await;
}

/// An API server that does not answer is asked again: what it served before counts until it says otherwise.
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
                    "the cluster doesn't serve Farrier's definition of the Shim: nothing is done until it does; run `farrier crd --apply`"
                );
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "the CustomResourceDefinition of the Shim can't be watched; trying again");
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
    fn ours_is_current_once_it_is_served() {
        assert!(is_current(&established()));
        assert!(!is_current(&Shim::crd()));
    }

    #[test]
    fn one_without_the_field_or_without_a_status_of_its_own_is_not() {
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
