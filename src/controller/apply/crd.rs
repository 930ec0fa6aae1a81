//! Makes the cluster serve this release's definition of the Shim, over an older one if there is one. No Shim is read or written.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::Api;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, CustomResourceExt, ResourceExt};

use super::{because, code, post_params};
use crate::api::Shim;
use crate::controller::cluster;

/// The API server takes a second or two to serve a new definition; one that has just started takes tens of them.
const DEADLINE: Duration = Duration::from_mins(1);

/// Somebody else who writes the definition, as the API server itself does to its status, is done after a write or two.
const ATTEMPTS: u32 = 5;

/// Why the cluster does not serve the definition.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no cluster to talk to.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// The API server rejected, or did not answer.
    #[error(
        "failed to {act} the CustomResourceDefinition {name}: {}; see that the API server can be reached, and that this account may create and replace it",
        because(source)
    )]
    Write {
        /// What was tried.
        act: &'static str,
        /// Its name.
        name: String,
        /// What the API server says.
        #[source]
        source: kube::Error,
    },
    /// Somebody else writes it all the time.
    #[error(
        "the CustomResourceDefinition {name} was changed by somebody else {ATTEMPTS} times while it was written; see its managedFields for who it is"
    )]
    Contested {
        /// Its name.
        name: String,
    },
    /// The definition is written; whether it is served can't be seen.
    #[error("failed to watch the CustomResourceDefinition {name}: {source}")]
    Watch {
        /// Its name.
        name: String,
        /// What kube says.
        #[source]
        source: kube::runtime::wait::Error,
    },
    /// The definition is written and not served.
    #[error(
        "the CustomResourceDefinition {name} was not established within {} s; its conditions say why",
        DEADLINE.as_secs()
    )]
    Deadline {
        /// Its name.
        name: String,
    },
}

/// Writes the definition where it isn't there or is another, and ends once it is established.
///
/// # Errors
/// When there is no cluster, the API server refuses, or a minute has passed.
pub async fn install() -> Result<(), Error> {
    let client = cluster::client().await?;
    establish(&client).await
}

/// Writes the definition where there is none at all. Without it nobody can be told of a Shim, and helm can't take a release away that
/// holds one: "resource mapping not found" (Helm 3.22, `Uninstall.deleteRelease`).
///
/// # Errors
/// When the API server refuses, or a minute has passed.
pub async fn restore(client: &Client) -> Result<(), Error> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = Shim::crd_name();
    let there = definitions.get_opt(name).await;
    let there = there.map_err(|source| Error::Write {
        act: "read",
        name: name.to_owned(),
        source,
    })?;
    if there.is_some() {
        return Ok(());
    }
    tracing::warn!(
        name,
        "the cluster doesn't serve Shims any more; their definition is put back, so that the nodes and the release can be ended"
    );
    establish(client).await
}

async fn establish(client: &Client) -> Result<(), Error> {
    let definition = Shim::crd();
    let name = definition.name_any();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let work = async {
        write(&definitions, &name, &definition).await?;
        await_condition(definitions, &name, conditions::is_crd_established())
            .await
            .map(|_| ())
            .map_err(|source| Error::Watch {
                name: name.clone(),
                source,
            })
    };
    let done = tokio::time::timeout(DEADLINE, work).await;
    done.map_err(|_| Error::Deadline { name: name.clone() })??;
    tracing::info!(name, "established");
    Ok(())
}

/// Replaces the whole spec. A server-side apply would merge it into the other's: what only that one names stays, so that a field
/// which was an integer could never be more.
async fn write(
    definitions: &Api<CustomResourceDefinition>,
    name: &str,
    definition: &CustomResourceDefinition,
) -> Result<(), Error> {
    let failed = |act| {
        move |source| Error::Write {
            act,
            name: name.to_owned(),
            source,
        }
    };
    for _ in 0..ATTEMPTS {
        let there = definitions.get_opt(name).await.map_err(failed("read"))?;
        let (act, answer) = match there {
            None => (
                "create",
                definitions.create(&post_params(), definition).await,
            ),
            Some(mut there) => {
                // Its name, labels and annotations stay: they may publish_event another tool that it is its own.
                there.spec = definition.spec.clone();
                (
                    "replace",
                    definitions.replace(name, &post_params(), &there).await,
                )
            }
        };
        match answer {
            Ok(_) => return Ok(()),
            Err(source) if matches!(code(&source), Some(404 | 409)) => {}
            Err(source) => return Err(failed(act)(source)),
        }
    }
    Err(Error::Contested {
        name: name.to_owned(),
    })
}
