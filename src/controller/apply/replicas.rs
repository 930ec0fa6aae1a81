//! Writes that concern the controller's own replicas: the Lease that one of them holds, and how many there are.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::{Scale, ScaleSpec};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams, Patch, Preconditions};
use kube::{Client, ResourceExt};

use super::{Error, code, patch_params, post_params, unless};
use crate::controller::lease;

/// The Lease of this name, if there is one.
///
/// # Errors
/// When the API server refuses to show it.
pub async fn lease_there(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<Lease>, Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    leases.get_opt(name).await.map_err(|source| Error::Write {
        act: "read",
        object: format!("Lease {name}"),
        source,
    })
}

/// Writes the Lease, where it is still the one that was decided on; whether it is ours now.
///
/// # Errors
/// When the API server refuses.
pub async fn lease(client: &Client, namespace: &str, step: lease::Step) -> Result<bool, Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let (name, answer) = match step {
        lease::Step::Wait => return Ok(false),
        lease::Step::Create(lease) => (
            lease.name_any(),
            leases.create(&post_params(), &lease).await,
        ),
        lease::Step::Replace(lease) => {
            let name = lease.name_any();
            let answer = leases.replace(&name, &post_params(), &lease).await;
            (name, answer)
        }
    };
    match answer {
        Ok(_) => Ok(true),
        // Another was faster.
        Err(error) if code(&error) == Some(409) => Ok(false),
        Err(source) => Err(Error::Write {
            act: "write",
            object: format!("Lease {name}"),
            source,
        }),
    }
}

/// Deletes the Lease, where it is still as it was seen.
///
/// # Errors
/// When the API server refuses, also because somebody has taken it since. One that is gone is deleted.
pub async fn delete_lease(client: &Client, namespace: &str, seen: &Lease) -> Result<(), Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let name = seen.name_any();
    let parameters = DeleteParams::default().preconditions(Preconditions {
        uid: seen.uid(),
        resource_version: seen.resource_version(),
    });
    unless(leases.delete(&name, &parameters).await, &[404]).map_err(|source| Error::Write {
        act: "delete",
        object: format!("Lease {name}"),
        source,
    })
}

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
