//! The only writer to the API server. Every write either names the version that it is based on, or may be repeated without harm.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{self as meta, DeleteOptions};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ObjectMeta, PartialObjectMeta, PartialObjectMetaExt as _};
use kube::{Client, ResourceExt};
use serde::Serialize;

use super::cluster::shim_view::ShimObject;
use super::cluster::slim::{NodeObject, Taint};
use super::decide::event::{self, EventSpec, Subject};
use super::decide::job_spec;
use super::decide::shim_status::{Finalizer, ShimPlan};
use super::decide::types::{JobStep, NodeEdit, Plan, RuntimeClassStep};
use super::settings::Settings;
use crate::api::{Shim, ShimStatus};
use crate::handoff::{EndingPod, Problem};
use crate::metrics::Metrics;
use crate::names;

pub mod crd;
pub mod deployment;
pub mod lease;

/// Why a plan was not carried out. [`Error::help`] says how to correct the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server rejected a request, or did not answer.
    #[error("failed to {act} {object}: {}", message(source))]
    Write {
        /// The verb.
        act: &'static str,
        /// The object.
        object: String,
        /// The error of the API server.
        #[source]
        source: kube::Error,
    },
    /// The API server did not create an object: a quota, an admission policy or an invalid value.
    #[error("failed to create {object}: {}", message(source))]
    Create {
        /// The object.
        object: String,
        /// The error of the API server.
        #[source]
        source: kube::Error,
    },
    /// The API server did not answer within [`DEADLINE`].
    #[error("failed to write {object}: the API server did not answer within {} s", DEADLINE.as_secs())]
    Deadline {
        /// The object.
        object: String,
    },
    /// A Job that does not belong to Farrier has the name of the node's Job.
    #[error(
        "failed to create Job {name}: a Job of this name exists and does not belong to Farrier"
    )]
    Taken {
        /// The name.
        name: String,
    },
    /// The API server accepted a patch and changed nothing.
    #[error(
        "failed to record the state of node {node}: the API server accepted the patch and changed nothing"
    )]
    Reverted {
        /// The node.
        node: String,
    },
}

impl Error {
    /// Another client changed the object in the meantime, so a new decision is needed.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Write { source, .. } | Self::Create { source, .. } => {
                code(source) == Some(409) && !is_denial(source)
            }
            Self::Deadline { .. } | Self::Taken { .. } | Self::Reverted { .. } => false,
        }
    }

    /// The problem for operators if the API server read and rejected the object, so that an immediate retry is of no use.
    #[must_use]
    pub fn rejection(&self) -> Option<Problem> {
        let rejected = match self {
            Self::Create { source, .. } | Self::Write { source, .. } => {
                matches!(code(source), Some(400 | 403 | 422))
                    || is_denial(source)
                    || is_webhook_failure(source)
            }
            Self::Taken { .. } | Self::Reverted { .. } => true,
            Self::Deadline { .. } => false,
        };
        rejected.then(|| Problem::new(self, self.help()))
    }

    /// An admission webhook did not answer, and the API server refuses the write as long as it does not.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Write { source, .. } | Self::Create { source, .. } => is_webhook_failure(source),
            Self::Deadline { .. } | Self::Taken { .. } | Self::Reverted { .. } => false,
        }
    }

    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Write { .. } | Self::Create { .. } if self.is_outage() => Some(
                "repair the admission webhook, or exempt nodes and Farrier's namespace from it"
                    .into(),
            ),
            Self::Create { .. } => Some("check the quotas and the admission policies".into()),
            Self::Taken { .. } => Some("delete that Job".into()),
            Self::Reverted { .. } => Some(
                "look for a mutating admission webhook that reverts annotations of nodes".into(),
            ),
            Self::Write { .. } | Self::Deadline { .. } => None,
        }
    }
}

/// The message of the API server, without kube's framing.
fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Whether the API server could not ask an admission webhook (*failed calling webhook*; `failurePolicy: Fail`).
fn is_webhook_failure(error: &kube::Error) -> bool {
    code(error) == Some(500) && message(error).contains("failed calling webhook")
}

/// Whether admission has denied the request: *admission webhook "a" denied the request*, or *`ValidatingAdmissionPolicy` 'a' with binding 'b'
/// denied request*. A webhook chooses the code of its answer, also one that means something else elsewhere.
fn is_denial(error: &kube::Error) -> bool {
    let message = message(error);
    message.contains(" denied the request") || message.contains(" denied request")
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Treats errors with one of `codes` as success: they mean that nothing is left to do, except as the answer of a webhook that denies the
/// request.
fn success_on<T>(answer: Result<T, kube::Error>, codes: &[u16]) -> Result<(), kube::Error> {
    match answer {
        Ok(_) => Ok(()),
        Err(error)
            if code(&error).is_some_and(|code| codes.contains(&code)) && !is_denial(&error) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(names::MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn post_params() -> PostParams {
    PostParams {
        field_manager: Some(names::MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Time limit for the writes of one decision. A write takes milliseconds. If an admission webhook hangs, the API server answers after 34 s at
/// most (`requestTimeoutUpperBound` in k8s.io/apiserver), and this limit leaves room for that answer and for two Events. Without a limit, a
/// connection to an API server that died silently would block for minutes.
const DEADLINE: Duration = Duration::from_secs(45);

/// RuntimeClasses of a Shim that are written at a time, so that one that a webhook delays does not delay the others.
const CLASSES_AT_A_TIME: usize = 8;

/// Time limit for an Event, which must not delay the writes that count.
const EVENT_DEADLINE: Duration = Duration::from_secs(5);

/// Limits the time of a write to `object`.
///
/// # Errors
/// The errors of `write`, and [`Error::Deadline`].
pub async fn in_time<T>(
    object: impl Into<String>,
    write: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let answer = tokio::time::timeout(DEADLINE, write).await;
    answer.unwrap_or_else(|_| {
        Err(Error::Deadline {
            object: object.into(),
        })
    })
}

/// What the API server said to the writes for a node.
#[derive(Debug, Default)]
pub struct Written {
    /// The version of the node after the patch, if there was one.
    pub version: Option<String>,
    /// Why the last pod that could not be evicted was not, with its name.
    pub refused_eviction: Option<String>,
}

/// Carries out the plan for `node`: labels, annotation and taints first, then Events, evictions and the Job.
///
/// # Errors
/// When the API server rejects a write, or reverts the annotation: a Job that is not recorded must not be created. Earlier writes stay, and
/// the next decision continues from there.
pub async fn node(
    client: &Client,
    settings: &Settings,
    node: &NodeObject,
    plan: &Plan,
    metrics: &Metrics,
) -> Result<Written, Error> {
    let (name, uid) = (node.name_any(), node.uid().unwrap_or_default());
    let mut written = Written::default();
    if let Some(edit) = &plan.edit {
        let patch = Patch::Merge(NodePatch {
            metadata: NodePatchMetadata {
                resource_version: node.resource_version(),
                uid: &uid,
                labels: &edit.labels,
                annotations: &edit.annotations,
            },
            spec: edit
                .taints
                .as_deref()
                .map(|taints| NodePatchSpec { taints }),
        });
        let nodes: Api<NodeObject> = Api::all(client.clone());
        let answer = nodes.patch_metadata(&name, &patch_params(), &patch).await;
        let answer = answer.map_err(|source| Error::Write {
            act: "label",
            object: format!("node {name}"),
            source,
        });
        match answer.and_then(|patched| accepted(node, edit, &patched)) {
            Ok(patched) => written.version = Some(patched),
            Err(error) => {
                // The node itself can't be written.
                if let Some(problem) = error.rejection() {
                    let subject = Subject::of::<NodeObject>(name, uid);
                    let note = problem.sentence_up_to(event::LONGEST_NOTE);
                    publish_event(client, &subject, &EventSpec::failure(&note)).await;
                }
                return Err(error);
            }
        }
    }
    // The patch succeeded, so no other decision recorded the end of this Job.
    if let Some(ended) = &plan.ended {
        metrics.job_ended(ended.outcome, ended.restarts, ended.spared, ended.took);
    }
    if let Some(event) = &plan.event {
        let subject = Subject::of::<NodeObject>(name.clone(), uid.clone());
        publish_event(client, &subject, event).await;
    }
    for pod in &plan.evict {
        if let Err(error) = evict(client, pod).await {
            let error = message(&error);
            tracing::warn!(%pod, error, "failed to evict a pod, retrying");
            written.refused_eviction = Some(format!("{pod}: {error}"));
        }
    }
    match &plan.job {
        JobStep::None => {}
        JobStep::Create { request, digest } => {
            let job = job_spec::build(settings, &name, &uid, request, *digest);
            create_job(client, settings, &job).await?;
        }
        JobStep::Delete(job_uid) => delete_job(client, settings, &uid, job_uid).await?,
    }
    Ok(written)
}

/// A merge patch of a node. A label or annotation without a value is removed; k8s-openapi's metadata can't express that.
#[derive(Debug, Serialize)]
struct NodePatch<'a> {
    metadata: NodePatchMetadata<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<NodePatchSpec<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodePatchMetadata<'a> {
    resource_version: Option<String>,
    uid: &'a str,
    labels: &'a BTreeMap<String, Option<String>>,
    annotations: &'a BTreeMap<String, Option<String>>,
}

#[derive(Debug, Serialize)]
struct NodePatchSpec<'a> {
    taints: &'a [Taint],
}

/// The version that a patch of `node` returned. Every edit differs from the version that it was decided on, so an unchanged version
/// means that a mutating admission webhook reverted the edit.
fn accepted(
    node: &NodeObject,
    edit: &NodeEdit,
    patched: &PartialObjectMeta<NodeObject>,
) -> Result<String, Error> {
    let version = patched.resource_version();
    if version == node.resource_version() {
        let name = node.name_any();
        tracing::warn!(
            node = name,
            labels = %edit,
            help = "look for a mutating admission webhook that reverts changes of nodes",
            "the API server accepted the patch and changed nothing"
        );
        if !edit.annotations.is_empty() {
            return Err(Error::Reverted { node: name });
        }
    }
    Ok(version.unwrap_or_default())
}

/// Evicts a pod.
///
/// # Errors
/// When the API server refuses that, as a `PodDisruptionBudget` may for now. The next decision tries again.
async fn evict(client: &Client, pod: &EndingPod) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    // kube's own method sends no precondition: it misspells the field.
    let eviction = Eviction {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            ..ObjectMeta::default()
        },
        delete_options: Some(DeleteOptions {
            preconditions: Some(meta::Preconditions {
                uid: Some(pod.uid.clone()),
                resource_version: None,
            }),
            ..DeleteOptions::default()
        }),
    };
    let answer: Result<serde_json::Value, _> = pods
        .create_subresource("eviction", &pod.name, &post_params(), &eviction)
        .await;
    success_on(answer, &[404, 409])?;
    tracing::info!(%pod, "evicted a pod before the restart of containerd");
    Ok(())
}

async fn create_job(client: &Client, settings: &Settings, job: &Job) -> Result<(), Error> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), &settings.namespace);
    let answer = jobs.create(&post_params(), job).await;
    let name = job.name_any();
    match answer {
        Ok(_) => Ok(()),
        Err(error) if code(&error) == Some(409) && !is_denial(&error) => {
            let there = jobs.get_opt(&name).await.map_err(|source| Error::Write {
                act: "read",
                object: format!("Job {name}"),
                source,
            })?;
            // The Job belongs to an earlier attempt; the watch delivers it.
            match there {
                Some(there) if !is_managed(&there) => Err(Error::Taken { name }),
                // Another conflict than that of the names, for example of two writes of a quota.
                None if !is_taken(&error) => Err(Error::Create {
                    object: format!("Job {name}"),
                    source: error,
                }),
                Some(_) | None => Ok(()),
            }
        }
        Err(source) => Err(Error::Create {
            object: format!("Job {name}"),
            source,
        }),
    }
}

/// Whether the API server says that the name of an object is taken.
fn is_taken(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == "AlreadyExists")
}

/// Whether the watch on Farrier's Jobs delivers the Job.
fn is_managed(job: &Job) -> bool {
    let label = |key: &str| job.labels().get(key).map(String::as_str);
    label(names::COMPONENT_LABEL) == Some(names::COMPONENT_INSTALLER)
        && label(names::MANAGED_BY_LABEL) == Some(names::MANAGER)
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
    // The Job is gone, or another Job has its name.
    success_on(jobs.delete(&name, &parameters).await, &[404, 409]).map_err(|source| Error::Write {
        act: "delete",
        object: format!("Job {name}"),
        source,
    })
}

/// Publishes an Event. A failure is only logged, and delays no other write.
async fn publish_event(client: &Client, subject: &Subject, event: &EventSpec) {
    let events: Api<Event> = Api::namespaced(client.clone(), event::NAMESPACE);
    let now = jiff::Timestamp::now();
    let object = event::build(subject, event, now);
    let write = async {
        match events.create(&PostParams::default(), &object).await {
            Err(error) if is_taken(&error) => repeat_event(&events, &object, now).await,
            created => created.map(|_| ()),
        }
    };
    let error = match tokio::time::timeout(EVENT_DEADLINE, write).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => message(&error),
        Err(_) => "the API server does not answer".to_owned(),
    };
    tracing::warn!(error, note = event.note, "failed to publish an Event");
}

/// Counts an Event that exists already.
async fn repeat_event(
    events: &Api<Event>,
    object: &Event,
    now: jiff::Timestamp,
) -> Result<(), kube::Error> {
    let name = object.name_any();
    let Some(first) = events.get_opt(&name).await? else {
        // The lifetime of the first Event has ended meanwhile.
        let created = events.create(&PostParams::default(), object).await;
        return created.map(|_| ());
    };
    let patch = Patch::Merge(event::repetition(&first, now));
    success_on(events.patch(&name, &patch_params(), &patch).await, &[404])
}

/// Carries out the plan for `shim`. Returns the targets of the rejected writes, and an error when the API server rejects a write. Earlier
/// writes stay, and the next decision continues from there.
pub async fn shim(
    client: &Client,
    shim: &ShimObject,
    plan: ShimPlan,
) -> (BTreeSet<String>, Result<(), Error>) {
    // A rejected RuntimeClass delays neither the others nor the status that reports it.
    let steps = plan.runtime_classes.into_iter().map(|step| async {
        let target = step.target();
        let error = runtime_class(client, step).await.err()?;
        Some((error, target))
    });
    let steps = futures::stream::iter(steps).buffered(CLASSES_AT_A_TIME);
    let mut failed: Vec<(Error, String)> = steps.filter_map(std::future::ready).collect().await;
    if let Err(error) = status(client, shim, plan.status).await {
        failed.push((error, "the status".to_owned()));
    } else {
        for event in &plan.events {
            let subject = Subject::of::<Shim>(shim.name_any(), shim.uid().unwrap_or_default());
            publish_event(client, &subject, event).await;
        }
        let error = finalizer(client, shim, &plan.finalizer).await.err();
        failed.extend(error.map(|error| (error, Finalizer::TARGET.to_owned())));
    }
    // A rejection is told before a fault that passes.
    failed.sort_by_key(|(error, _)| error.rejection().is_none());
    let rejected = failed
        .iter()
        .filter(|(error, _)| error.rejection().is_some());
    let targets = rejected.map(|(_, target)| target.clone()).collect();
    let first = failed.into_iter().next();
    (targets, first.map_or(Ok(()), |(error, _)| Err(error)))
}

/// A merge patch of a Shim's status.
#[derive(Debug, Serialize)]
struct StatusPatch {
    metadata: ObjectMeta,
    status: ShimStatus,
}

async fn status(
    client: &Client,
    shim: &ShimObject,
    status: Option<ShimStatus>,
) -> Result<(), Error> {
    let name = shim.name_any();
    let shims: Api<ShimObject> = Api::all(client.clone());
    if let Some(status) = status {
        let metadata = ObjectMeta {
            uid: shim.uid(),
            ..ObjectMeta::default()
        };
        let patch = Patch::Merge(StatusPatch { metadata, status });
        success_on(
            shims.patch_status(&name, &patch_params(), &patch).await,
            &[404],
        )
        .map_err(|source| Error::Write {
            act: "write the status of",
            object: format!("Shim {name}"),
            source,
        })?;
    }
    Ok(())
}

/// Sets or removes the finalizer of a Shim.
///
/// # Errors
/// When the API server rejects the write.
pub async fn finalizer(client: &Client, shim: &ShimObject, step: &Finalizer) -> Result<(), Error> {
    let name = shim.name_any();
    let shims: Api<ShimObject> = Api::all(client.clone());
    let mut finalizers: Vec<String> = shim.finalizers().to_vec();
    // The finalizer of runtime-class-manager is removed too. A running runtime-class-manager would remove it too early, and without
    // runtime-class-manager nothing else would.
    finalizers.retain(|finalizer| {
        finalizer != names::SHIM_FINALIZER && finalizer != names::RCM_FINALIZER
    });
    match step {
        Finalizer::Keep => return Ok(()),
        Finalizer::Add => finalizers.push(names::SHIM_FINALIZER.to_owned()),
        Finalizer::Release => {}
    }
    let metadata = ObjectMeta {
        finalizers: Some(finalizers),
        uid: shim.uid(),
        resource_version: shim.resource_version(),
        ..ObjectMeta::default()
    };
    let patch = Patch::Merge(metadata.into_request_partial::<Shim>());
    let answer = shims.patch_metadata(&name, &patch_params(), &patch).await;
    success_on(answer, &[404]).map_err(|source| Error::Write {
        act: "set the finalizer of",
        object: format!("Shim {name}"),
        source,
    })
}

fn not_created(class: &RuntimeClass, source: kube::Error) -> Error {
    Error::Create {
        object: format!("RuntimeClass {}", class.name_any()),
        source,
    }
}

async fn runtime_class(client: &Client, step: RuntimeClassStep) -> Result<(), Error> {
    let classes: Api<RuntimeClass> = Api::all(client.clone());
    match step {
        RuntimeClassStep::Create(class) => {
            let answer = classes.create(&post_params(), &class).await;
            answer
                .map(|_| ())
                .map_err(|source| not_created(&class, source))
        }
        RuntimeClassStep::Replace(class) => {
            let name = class.name_any();
            let answer = classes.replace(&name, &post_params(), &class).await;
            answer.map(|_| ()).map_err(|source| Error::Write {
                act: "change",
                object: format!("RuntimeClass {name}"),
                source,
            })
        }
        RuntimeClassStep::Delete { name, uid } => {
            let parameters = DeleteParams::default().preconditions(Preconditions {
                uid: Some(uid),
                resource_version: None,
            });
            success_on(classes.delete(&name, &parameters).await, &[404, 409]).map_err(|source| {
                Error::Write {
                    act: "delete",
                    object: format!("RuntimeClass {name}"),
                    source,
                }
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use kube::client::Body;
    use kube::core::{Status, response::StatusSummary};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::tests::settings;

    /// Requests as method and path, each with its document.
    type Requests = Arc<Mutex<Vec<(String, Value)>>>;

    /// An API server that answers every write with `answer`, and the requests that it got.
    fn recording(answer: Value) -> (Client, Requests) {
        let written = Requests::default();
        let records = Arc::clone(&written);
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            let (records, answer) = (Arc::clone(&records), answer.to_string());
            async move {
                let line = format!("{} {}", request.method(), request.uri().path());
                let body = request.into_body().collect_bytes().await?;
                let document = serde_json::from_slice(&body).unwrap();
                records.lock().unwrap().push((line, document));
                Ok::<_, kube::Error>(hyper::Response::new(Body::from(answer.into_bytes())))
            }
        });
        (Client::new(service, "farrier"), written)
    }

    #[tokio::test]
    async fn the_patch_of_a_node_names_its_version_and_removes_labels_by_null() {
        let patched = json!({"metadata": {"name": "n1", "uid": "u", "resourceVersion": "8"}});
        let (client, written) = recording(patched);
        let metadata = json!({"name": "n1", "uid": "u", "resourceVersion": "7"});
        let seen = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        let change = |key: &str, value: Option<&str>| {
            BTreeMap::from([(key.to_owned(), value.map(str::to_owned))])
        };
        let taint = json!({"key": "other", "effect": "NoSchedule"});
        let plan = Plan {
            edit: Some(NodeEdit {
                taints: Some(vec![serde_json::from_value(taint.clone()).unwrap()]),
                labels: change("gone", None),
                annotations: change("farrier.dev/applied", Some("{}")),
            }),
            ..Plan::default()
        };
        let (settings, metrics) = (settings(), Metrics::new());
        let answer = node(&client, &settings, &seen, &plan, &metrics).await;
        assert_eq!(answer.unwrap().version.as_deref(), Some("8"));
        let document = json!({
            "metadata": {
                "resourceVersion": "7", "uid": "u", "labels": {"gone": null}, "annotations": {"farrier.dev/applied": "{}"},
            },
            "spec": {"taints": [taint]},
        });
        let expected = [("PATCH /api/v1/nodes/n1".to_owned(), document)];
        assert_eq!(*written.lock().unwrap(), expected);
    }

    fn pod() -> EndingPod {
        EndingPod {
            namespace: "default".to_owned(),
            name: "web-0".to_owned(),
            uid: "u1".to_owned(),
            handler: "spin".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_refused_eviction_is_told_and_is_no_failure() {
        let service = tower::service_fn(|_: hyper::Request<Body>| {
            let answer = json!({"kind": "Status", "status": "Failure", "code": 429, "message": "no disruption", "reason": "TooManyRequests"});
            let answer = Body::from(answer.to_string().into_bytes());
            std::future::ready(hyper::Response::builder().status(429).body(answer))
        });
        let plan = Plan {
            evict: vec![pod()],
            ..Plan::default()
        };
        let (client, seen) = (Client::new(service, "farrier"), NodeObject::default());
        let answer = node(&client, &settings(), &seen, &plan, &Metrics::new()).await;
        assert_eq!(
            answer.unwrap().refused_eviction.as_deref(),
            Some("default/web-0 (handler spin): no disruption")
        );
    }

    #[tokio::test]
    async fn an_event_that_exists_is_counted_in_its_series() {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&requests);
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            let record = Arc::clone(&record);
            async move {
                let method = request.method().to_string();
                let body = request.into_body().collect_bytes().await?;
                let (code, answer) = match method.as_str() {
                    "POST" => (
                        409,
                        json!({"kind": "Status", "status": "Failure", "code": 409, "message": "exists", "reason": "AlreadyExists"}),
                    ),
                    _ => (
                        200,
                        json!({
                            "metadata": {"name": "e", "resourceVersion": "7"}, "eventTime": null,
                            "series": {"count": 4, "lastObservedTime": "2026-01-01T00:00:00.000000Z"},
                        }),
                    ),
                };
                let document: Value = serde_json::from_slice(&body).unwrap_or_default();
                record.lock().unwrap().push((method, document));
                let answer = Body::from(answer.to_string().into_bytes());
                let response = hyper::Response::builder().status(code).body(answer);
                Ok::<_, kube::Error>(response.unwrap())
            }
        });
        let client = Client::new(service, "farrier");
        let subject = Subject::of::<NodeObject>("n1".to_owned(), "u".to_owned());
        publish_event(&client, &subject, &EventSpec::failure("no route")).await;
        let requests = requests.lock().unwrap();
        let methods: Vec<&str> = requests.iter().map(|(method, _)| method.as_str()).collect();
        assert_eq!(methods, ["POST", "GET", "PATCH"]);
        let patch = &requests[2].1;
        assert_eq!(patch["series"]["count"], 5);
        assert_eq!(patch["metadata"], json!({"resourceVersion": "7"}));
        assert!(patch.get("note").is_none(), "{patch}");
    }

    #[tokio::test]
    async fn an_eviction_ends_the_pod_of_its_uid_alone() {
        let (client, written) = recording(json!({"kind": "Status", "status": "Success"}));
        evict(&client, &pod()).await.unwrap();
        let (line, document) = written.lock().unwrap().pop().unwrap();
        assert_eq!(line, "POST /api/v1/namespaces/default/pods/web-0/eviction");
        assert_eq!(
            document["deleteOptions"],
            json!({"preconditions": {"uid": "u1"}})
        );
        assert_eq!(document["metadata"]["name"], "web-0");
    }

    #[tokio::test]
    async fn the_finalizer_takes_the_place_of_runtime_class_managers() {
        let metadata = json!({
            "name": "spin", "uid": "u", "resourceVersion": "7", "finalizers": ["rcm.spinkube.dev/finalizer", "other"],
        });
        let (client, written) = recording(json!({"metadata": metadata.clone()}));
        let seen: ShimObject = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        for (step, expected) in [
            (Finalizer::Add, json!(["other", "farrier.dev/finalizer"])),
            (Finalizer::Release, json!(["other"])),
        ] {
            finalizer(&client, &seen, &step).await.unwrap();
            let (line, document) = written.lock().unwrap().pop().unwrap();
            assert_eq!(line, "PATCH /apis/runtime.spinkube.dev/v1alpha1/shims/spin");
            let metadata = json!({"finalizers": expected, "uid": "u", "resourceVersion": "7"});
            assert_eq!(document["metadata"], metadata);
        }
    }

    #[tokio::test]
    async fn the_targets_of_rejected_writes_are_told_and_the_rest_is_written() {
        let service = tower::service_fn(|request: hyper::Request<Body>| {
            let is_rejected = request.uri().path().ends_with("/mine");
            let refused = json!({"kind": "Status", "status": "Failure", "code": 403, "message": "no", "reason": "Forbidden"});
            let made = json!({"metadata": {"name": "spin"}, "handler": "spin"});
            let (code, answer) = if is_rejected {
                (403, refused)
            } else {
                (201, made)
            };
            let answer = Body::from(answer.to_string().into_bytes());
            std::future::ready(hyper::Response::builder().status(code).body(answer))
        });
        let class = |name: &str| -> Box<RuntimeClass> {
            let metadata = json!({"name": name, "uid": format!("uid-of-{name}")});
            serde_json::from_value(json!({"metadata": metadata, "handler": "spin"})).unwrap()
        };
        let steps = || {
            vec![
                RuntimeClassStep::Replace(class("mine")),
                RuntimeClassStep::Create(class("spin")),
            ]
        };
        let plan = ShimPlan {
            runtime_classes: steps(),
            ..ShimPlan::default()
        };
        let client = Client::new(service, "farrier");
        let seen: ShimObject = serde_json::from_value(json!({"metadata": {}})).unwrap();
        let (targets, answer) = shim(&client, &seen, plan).await;
        assert!(answer.unwrap_err().rejection().is_some());
        assert_eq!(targets, ["uid-of-mine".to_owned()].into());
        // The user deletes the RuntimeClass, and the Shim's own takes its place.
        let own = RuntimeClassStep::Create(class("mine"));
        let mut plan = ShimPlan {
            runtime_classes: steps(),
            ..ShimPlan::default()
        };
        plan.runtime_classes.push(own.clone());
        let rest = plan.without(&targets).runtime_classes;
        assert_eq!(rest, [RuntimeClassStep::Create(class("spin")), own]);
    }

    #[tokio::test]
    async fn an_uninstall_scales_the_deployment_to_zero() {
        let (client, written) = recording(json!({"metadata": {"name": "farrier"}}));
        let scaled = deployment::scale_to_zero(&client, "farrier", "farrier").await;
        scaled.unwrap();
        let (line, document) = written.lock().unwrap().pop().unwrap();
        let path = "/apis/apps/v1/namespaces/farrier/deployments/farrier/scale";
        assert_eq!(line, format!("PATCH {path}"));
        assert_eq!(document["spec"], json!({"replicas": 0}));
    }

    #[rstest]
    #[case::labels(false)]
    #[case::the_annotation(true)]
    fn a_patch_that_changed_nothing_is_an_error_only_if_it_had_to_record_something(
        #[case] records: bool,
    ) {
        let metadata = json!({"name": "n1", "resourceVersion": "7"});
        let node: NodeObject =
            serde_json::from_value(json!({"metadata": metadata.clone()})).unwrap();
        let patched = |version: &str| {
            let mut metadata = metadata.clone();
            metadata["resourceVersion"] = version.into();
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let change = BTreeMap::from([("key".to_owned(), None)]);
        let mut edit = NodeEdit::default();
        if records {
            edit.annotations = change;
        } else {
            edit.labels = change;
        }
        assert_eq!(accepted(&node, &edit, &patched("8")).unwrap(), "8");
        match accepted(&node, &edit, &patched("7")) {
            Ok(version) => assert!(!records && version == "7"),
            Err(error) => assert!(records && error.rejection().is_some() && !error.is_conflict()),
        }
    }

    #[rstest]
    #[case::webhook(
        "Internal error occurred: failed calling webhook \"a.example\": failed to call webhook: no endpoints",
        true
    )]
    #[case::etcd("etcdserver: request timed out", false)]
    fn a_webhook_that_does_not_answer_is_an_outage_and_other_faults_of_the_api_server_pass(
        #[case] message: &str,
        #[case] is_outage: bool,
    ) {
        let status = Status {
            status: Some(StatusSummary::Failure),
            code: 500,
            message: message.to_owned(),
            ..Status::default()
        };
        let error = Error::Create {
            object: "Job a".to_owned(),
            source: kube::Error::Api(Box::new(status)),
        };
        assert_eq!(error.is_outage(), is_outage);
        let told = error.rejection().map(|problem| problem.sentence());
        let told = told.map(|told| told.contains(message) && told.contains("webhook, or exempt"));
        assert_eq!(told, is_outage.then_some(true));
    }

    fn api_error(code: u16, reason: &str, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(Status {
            status: Some(StatusSummary::Failure),
            code,
            message: message.to_owned(),
            reason: reason.to_owned(),
            ..Status::default()
        }))
    }

    #[rstest]
    fn a_denial_of_a_webhook_is_a_rejection_whatever_its_code(
        #[values(404, 409, 413, 429, 500, 503)] code: u16,
        #[values(
            "admission webhook \"a.example\" denied the request: no",
            "ValidatingAdmissionPolicy 'a' with binding 'b' denied request: no"
        )]
        message: &str,
    ) {
        let answer = Err::<(), _>(api_error(code, "no", message));
        let source = success_on(answer, &[404, 409]).unwrap_err();
        let object = "node n1".to_owned();
        let act = "label";
        let error = Error::Write {
            act,
            object,
            source,
        };
        let told = error.rejection().unwrap().sentence();
        assert!(told.contains(message), "{told}");
        assert!(!error.is_conflict() && !error.is_outage());
    }

    #[rstest]
    #[case::denial("no", "admission webhook \"a\" denied the request: no", true)]
    #[case::quota("Conflict", "the object has been modified", true)]
    #[case::name("AlreadyExists", "jobs.batch \"a\" already exists", false)]
    #[tokio::test]
    async fn a_conflict_without_a_job_of_the_name_is_an_error(
        #[case] reason: &str,
        #[case] message: &str,
        #[case] fails: bool,
    ) {
        let refused = json!({"kind": "Status", "status": "Failure", "code": 409, "message": message, "reason": reason});
        let none = json!({"kind": "Status", "status": "Failure", "code": 404, "message": "none", "reason": "NotFound"});
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            let is_post = request.method() == "POST";
            let (code, answer) = if is_post {
                (409, &refused)
            } else {
                (404, &none)
            };
            let answer = Body::from(answer.to_string().into_bytes());
            std::future::ready(hyper::Response::builder().status(code).body(answer))
        });
        let client = Client::new(service, "farrier");
        let mut job = Job::default();
        job.metadata.name = Some("a".to_owned());
        let answer = create_job(&client, &settings(), &job).await;
        let told = answer.err().map(|error| error.to_string());
        assert_eq!(told.is_some(), fails);
        assert!(told.is_none_or(|told| told.contains(message)));
    }

    #[test]
    fn the_deadline_leaves_room_for_a_webhook_that_hangs_and_for_the_event_about_it() {
        assert!(DEADLINE > Duration::from_secs(34) + 2 * EVENT_DEADLINE);
    }

    #[rstest]
    #[case::admission(403, true)]
    #[case::too_large(422, true)]
    #[case::lost_to_another(409, false)]
    #[case::overloaded(429, false)]
    #[case::not_found(404, false)]
    fn only_errors_that_a_retry_cannot_cure_are_rejections(
        #[case] code: u16,
        #[case] rejected: bool,
    ) {
        let status = Status {
            status: Some(StatusSummary::Failure),
            code,
            message: "so it is".to_owned(),
            ..Status::default()
        };
        let error = Error::Write {
            act: "label",
            object: "node n1".to_owned(),
            source: kube::Error::Api(Box::new(status)),
        };
        assert_eq!(error.rejection().is_some(), rejected);
        assert_eq!(error.is_conflict(), code == 409);
    }
}
