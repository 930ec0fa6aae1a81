//! Writes this release's CustomResourceDefinition of the Shim to the cluster, replacing an older one. No Shim is read or written.

use std::borrow::Cow;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::Api;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, CustomResourceExt, ResourceExt};

use super::{code, message, post_params};
use crate::api::Shim;
use crate::controller::cluster;

/// The API server takes a second or two to serve a new definition, and tens of seconds after it has started.
const DEADLINE: Duration = Duration::from_mins(1);

/// Another writer of the definition, for example the API server itself writing the status, is done after a write or two.
const ATTEMPTS: u32 = 5;

/// Why the cluster does not serve the definition. [`Error::help`] says how to correct the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster can be reached.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// The API server rejected a request, or did not answer.
    #[error("failed to {act} CustomResourceDefinition {name}: {}", message(source))]
    Write {
        /// The verb.
        act: &'static str,
        /// The name.
        name: String,
        /// The error of the API server.
        #[source]
        source: kube::Error,
    },
    /// Another client keeps writing the definition.
    #[error(
        "failed to write CustomResourceDefinition {name}: another client changed it {ATTEMPTS} times meanwhile"
    )]
    Contested {
        /// The name.
        name: String,
    },
    /// The definition is written, and can't be watched.
    #[error("failed to watch CustomResourceDefinition {name}: {source}")]
    Watch {
        /// The name.
        name: String,
        /// The error of kube.
        #[source]
        source: kube::runtime::wait::Error,
    },
    /// The definition is written, and not served in time.
    #[error(
        "CustomResourceDefinition {name} was not established within {} s",
        DEADLINE.as_secs()
    )]
    Deadline {
        /// The name.
        name: String,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Cluster(error) => error.help(),
            Self::Write { .. } => Some(
                "check that the API server is reachable and that this account may create and replace CustomResourceDefinitions".into(),
            ),
            Self::Contested { .. } => Some("find the client in metadata.managedFields of the CustomResourceDefinition".into()),
            Self::Watch { .. } => None,
            Self::Deadline { .. } => Some("read status.conditions of the CustomResourceDefinition".into()),
        }
    }
}

/// Writes the definition if it is absent or differs, and waits until it is established.
///
/// # Errors
/// When no cluster can be reached, the API server rejects the write, or a minute has passed.
pub async fn install() -> Result<(), Error> {
    let client = cluster::client().await?;
    establish(&client).await
}

/// Writes the definition if there is none. Without the definition, no Shim can be read, and Helm can't uninstall a release with a Shim:
/// "resource mapping not found" (Helm 3.22, `Uninstall.deleteRelease`).
///
/// # Errors
/// When the API server rejects the write, or a minute has passed.
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
        "creating the CustomResourceDefinition of the Shim again, because the cluster does not serve it"
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
    tracing::info!(name, "CustomResourceDefinition established");
    Ok(())
}

/// Replaces the whole spec. A server-side apply would merge it with the other spec, whose additional fields would stay.
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
                // Name, labels and annotations stay, because another tool may recognise its definition by its labels.
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
