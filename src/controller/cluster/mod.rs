//! The controller's view of the cluster: watches, and objects of the API server reduced to what decisions need. Reads only.

use std::borrow::Cow;
use std::fmt::Debug;

use kube::api::{Api, ListParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

pub mod job_view;
pub mod node_view;
pub mod pods;
pub mod shim_view;
pub mod slim;
pub mod triggers;
pub mod watch;

/// Why the cluster can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a kubeconfig nor a ServiceAccount names a cluster.
    #[error("failed to connect to a cluster: {source}")]
    NoCluster {
        /// The error of kube.
        #[source]
        source: kube::Error,
    },
    /// The API server rejected a request, or did not answer.
    #[error("failed to list {what}: {source}")]
    List {
        /// The kind of objects.
        what: String,
        /// The error of kube.
        #[source]
        source: kube::Error,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::NoCluster { .. } => {
                Some("set KUBECONFIG, or run in a pod with a ServiceAccount".into())
            }
            Self::List { .. } => None,
        }
    }
}

/// A client for the cluster that the kubeconfig or the pod's ServiceAccount names.
///
/// # Errors
/// When neither names one.
pub async fn client() -> Result<Client, Error> {
    Client::try_default()
        .await
        .map_err(|source| Error::NoCluster { source })
}

/// All objects of a kind.
///
/// # Errors
/// When the API server rejects the request, or does not answer.
pub async fn list<K>(client: &Client) -> Result<Vec<K>, Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let objects: Api<K> = Api::all(client.clone());
    let listed = objects.list(&ListParams::default()).await;
    let listed = listed.map_err(|source| Error::List {
        what: K::plural(&()).into_owned(),
        source,
    })?;
    Ok(listed.items)
}
