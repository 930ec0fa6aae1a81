//! The only writer to the API server. Every write either names the version it was decided on, or can be made twice without harm.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::Settings;
use super::events;
use super::plan::{JobStep, NodeEvent, Plan};
use super::runtime_class::Step;
use super::status::{Finalizer, ShimPlan};
use crate::api::Shim;
use crate::handoff::ProvisionRequest;
use crate::names::{self, reasons};

/// Why a plan was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or did not answer.
    #[error("failed to {act} {object}: {}", because(source))]
    Write {
        /// What was tried.
        act: &'static str,
        /// On what.
        object: String,
        /// What the API server says.
        #[source]
        source: kube::Error,
    },
    /// The Job's definition is none.
    #[error("the definition of the Job for node {node} does not read as a Job: {source}")]
    Definition {
        /// The node.
        node: String,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// Somebody else wrote in between: deciding anew on what is there now is all that it takes.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Write { source, .. } => code(source) == Some(409),
            Self::Definition { .. } => false,
        }
    }
}

/// The sentence of the API server, without kube's framing.
fn because(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Turns an answer that says that all is so already into success.
fn unless<T>(answer: Result<T, kube::Error>, codes: &[u16]) -> Result<(), kube::Error> {
    match answer {
        Ok(_) => Ok(()),
        Err(error) if code(&error).is_some_and(|code| codes.contains(&code)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(names::MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// Carries out the plan for `node`: labels and annotation first, then what people read, then the Job.
///
/// # Errors
/// When the API server refuses a write. What was written before stays; the next decision goes on from there.
pub async fn node(
    client: &Client,
    settings: &Settings,
    node: &Node,
    plan: &Plan,
) -> Result<(), Error> {
    let (name, uid) = (node.name_any(), node.uid().unwrap_or_default());
    if let Some(edit) = &plan.edit {
        let patch = json!({"metadata": {
            "resourceVersion": node.resource_version(),
            "uid": uid,
            "labels": edit.labels,
            "annotations": edit.annotations,
        }});
        let nodes: Api<Node> = Api::all(client.clone());
        nodes
            .patch_metadata(&name, &patch_params(), &Patch::Merge(patch))
            .await
            .map_err(|source| Error::Write {
                act: "label",
                object: format!("node {name}"),
                source,
            })?;
    }
    if let Some(event) = &plan.event {
        tell(client, &name, &uid, event).await;
    }
    match &plan.job {
        JobStep::None => Ok(()),
        JobStep::Create(request) => create_job(client, settings, &name, &uid, request).await,
        JobStep::Delete(job_uid) => delete_job(client, settings, &uid, job_uid).await,
    }
}

async fn create_job(
    client: &Client,
    settings: &Settings,
    node: &str,
    uid: &str,
    request: &ProvisionRequest,
) -> Result<(), Error> {
    let job =
        super::job::build(settings, node, uid, request).map_err(|source| Error::Definition {
            node: node.to_owned(),
            source,
        })?;
    let jobs: Api<Job> = Api::namespaced(client.clone(), &settings.namespace);
    let answer = jobs
        .create(
            &PostParams {
                field_manager: Some(names::MANAGER.to_owned()),
                ..PostParams::default()
            },
            &job,
        )
        .await;
    if let Err(source) = unless(answer, &[409]) {
        let error = Error::Write {
            act: "create",
            object: format!("Job {}", job.name_any()),
            source,
        };
        let event = NodeEvent {
            warning: true,
            reason: reasons::PROVISION_FAILED,
            note: super::plan::cut(&error.to_string(), 1_000),
        };
        tell(client, node, uid, &event).await;
        return Err(error);
    }
    Ok(())
}

async fn delete_job(
    client: &Client,
    settings: &Settings,
    node_uid: &str,
    job_uid: &str,
) -> Result<(), Error> {
    let name = names::job_name(node_uid);
    let jobs: Api<Job> = Api::namespaced(client.clone(), &settings.namespace);
    let parameters = DeleteParams::background().preconditions(Preconditions {
        uid: Some(job_uid.to_owned()),
        resource_version: None,
    });
    // Gone, or another one by now.
    unless(jobs.delete(&name, &parameters).await, &[404, 409]).map_err(|source| Error::Write {
        act: "delete",
        object: format!("Job {name}"),
        source,
    })
}

/// Publishes an Event. One that can't be told is logged: it must not hold up the work that it tells of.
async fn tell(client: &Client, node: &str, uid: &str, event: &NodeEvent) {
    let events: Api<Event> = Api::namespaced(client.clone(), events::NAMESPACE);
    let object = events::build(node, uid, event, jiff::Timestamp::now());
    if let Err(error) = unless(events.create(&PostParams::default(), &object).await, &[409]) {
        tracing::warn!(
            error = because(&error),
            note = event.note,
            "event not published"
        );
    }
}

/// Carries out the plan for `shim`.
///
/// # Errors
/// When the API server refuses a write. What was written before stays; the next decision goes on from there.
pub async fn shim(client: &Client, shim: &Shim, plan: ShimPlan) -> Result<(), Error> {
    let name = shim.name_any();
    let shims: Api<Shim> = Api::all(client.clone());
    for step in plan.runtime_classes {
        runtime_class(client, step).await?;
    }
    if let Some(status) = plan.status {
        let patch = Patch::Merge(json!({"status": status}));
        unless(
            shims.patch_status(&name, &patch_params(), &patch).await,
            &[404],
        )
        .map_err(|source| Error::Write {
            act: "write the status of",
            object: format!("Shim {name}"),
            source,
        })?;
    }
    let mut finalizers: Vec<String> = shim.finalizers().to_vec();
    finalizers.retain(|finalizer| finalizer != names::SHIM_FINALIZER);
    match plan.finalizer {
        Finalizer::Keep => return Ok(()),
        Finalizer::Add => finalizers.push(names::SHIM_FINALIZER.to_owned()),
        Finalizer::Release => {}
    }
    let metadata = json!({"finalizers": finalizers, "uid": shim.uid(), "resourceVersion": shim.resource_version()});
    unless(
        shims
            .patch_metadata(
                &name,
                &patch_params(),
                &Patch::Merge(json!({"metadata": metadata})),
            )
            .await,
        &[404],
    )
    .map_err(|source| Error::Write {
        act: "set the finalizer of",
        object: format!("Shim {name}"),
        source,
    })
}

async fn runtime_class(client: &Client, step: Step) -> Result<(), Error> {
    let classes: Api<RuntimeClass> = Api::all(client.clone());
    match step {
        Step::Apply(class) => {
            let name = class.name_any();
            let parameters = PatchParams::apply(names::MANAGER).force();
            unless(
                classes
                    .patch(&name, &parameters, &Patch::Apply(&class))
                    .await,
                &[],
            )
            .map_err(|source| Error::Write {
                act: "apply",
                object: format!("RuntimeClass {name}"),
                source,
            })
        }
        Step::Delete { name, uid } => {
            let parameters = DeleteParams::default().preconditions(Preconditions {
                uid: Some(uid),
                resource_version: None,
            });
            unless(classes.delete(&name, &parameters).await, &[404, 409]).map_err(|source| {
                Error::Write {
                    act: "delete",
                    object: format!("RuntimeClass {name}"),
                    source,
                }
            })
        }
    }
}
