//! Writes of the Lease that one of the controller's replicas holds.

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams, Preconditions};
use kube::{Client, ResourceExt};

use super::{Error, code, post_params, success_on};

/// What to do about the Lease.
#[derive(Debug, PartialEq)]
pub enum LeaseStep {
    /// Another replica holds it.
    Wait,
    /// Create it: there is none.
    Create(Box<Lease>),
    /// Replace it if it is unchanged.
    Replace(Box<Lease>),
}

/// The Lease of this name, if there is one.
///
/// # Errors
/// When the API server rejects the request.
pub async fn get(client: &Client, namespace: &str, name: &str) -> Result<Option<Lease>, Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    leases.get_opt(name).await.map_err(|source| Error::Write {
        act: "read",
        object: format!("Lease {name}"),
        source,
    })
}

/// Writes the Lease if it is unchanged. Returns whether this replica holds it.
///
/// # Errors
/// When the API server rejects the request.
pub async fn write(client: &Client, namespace: &str, step: LeaseStep) -> Result<bool, Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let (name, answer) = match step {
        LeaseStep::Wait => return Ok(false),
        LeaseStep::Create(lease) => (
            lease.name_any(),
            leases.create(&post_params(), &lease).await,
        ),
        LeaseStep::Replace(lease) => {
            let name = lease.name_any();
            let answer = leases.replace(&name, &post_params(), &lease).await;
            (name, answer)
        }
    };
    match answer {
        Ok(_) => Ok(true),
        // Another replica was faster.
        Err(error) if code(&error) == Some(409) => Ok(false),
        Err(source) => Err(Error::Write {
            act: "write",
            object: format!("Lease {name}"),
            source,
        }),
    }
}

/// Deletes the Lease if it is unchanged.
///
/// # Errors
/// When the API server rejects the request, also because the Lease has changed. A Lease that is gone counts as deleted.
pub async fn delete(client: &Client, namespace: &str, seen: &Lease) -> Result<(), Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let name = seen.name_any();
    let parameters = DeleteParams::default().preconditions(Preconditions {
        uid: seen.uid(),
        resource_version: seen.resource_version(),
    });
    success_on(leases.delete(&name, &parameters).await, &[404]).map_err(|source| Error::Write {
        act: "delete",
        object: format!("Lease {name}"),
        source,
    })
}
