//! How many replicas of the controller there are.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::{Scale, ScaleSpec};
use kube::Client;
use kube::api::{Api, Patch};

use super::{Error, patch_params, unless};

/// Ends the pods of a Deployment.
///
/// # Errors
/// When the API server refuses. One that is gone has none.
pub async fn scale_to_nothing(
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
    unless(answer, &[404]).map_err(|source| Error::Write {
        act: "scale",
        object: format!("Deployment {deployment}"),
        source,
    })
}
