//! Writes the number of the controller's replicas.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::{Scale, ScaleSpec};
use kube::Client;
use kube::api::{Api, Patch};

use super::{Error, patch_params, success_on};

/// Scales a Deployment to zero replicas.
///
/// # Errors
/// When the API server rejects the request. A Deployment that is gone counts as scaled.
pub async fn scale_to_zero(
    client: &Client,
    namespace: &str,
    deployment: &str,
) -> Result<(), Error> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let scale = Scale {
        spec: Some(ScaleSpec { replicas: Some(0) }),
        ..Scale::default()
    };
    let patch = Patch::Merge(scale);
    let answer = deployments
        .patch_scale(deployment, &patch_params(), &patch)
        .await;
    success_on(answer, &[404]).map_err(|source| Error::Write {
        act: "scale",
        object: format!("Deployment {deployment}"),
        source,
    })
}
