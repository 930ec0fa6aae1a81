//! Reconciles nodes and Shims: takes each queued name, decides on the object and carries out the plan. Several objects at a time, and each
//! object once at a time.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt};
use kube::runtime::controller::{self, Action, applier};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch::Receiver;
use tracing::Instrument as _;

use super::apply;
use super::cluster::ending_pods;
use super::cluster::job_events;
use super::cluster::node_view::NodeView;
use super::cluster::shim_view::ShimObject;
use super::cluster::slim::NodeObject;
use super::decide::job_result;
use super::memory::Context;
use super::memory::rejected_writes::Rejection;
use crate::names::reasons;

/// Objects that are written at a time. kube's client has no limit on requests per second, unlike client-go (5, bursts of 10). With some 5
/// ms per request, this limit allows about a thousand requests per second. The API server delays further requests (Kubernetes, *API
/// Priority and Fairness*).
const CONCURRENT_WRITES: u16 = 8;

/// Wait after a conflict: meanwhile the watch delivers the other write.
const AFTER_CONFLICT: Duration = Duration::from_secs(1);

/// Wait after another error: failures of the API server itself usually end within seconds.
const AFTER_REFUSAL: Duration = Duration::from_secs(10);

/// Wait before labels that a webhook reverted are written again. An operator who corrected the webhook sees the labels within this time,
/// and thousands of nodes cost a few patches a second.
const AFTER_REVERT: Duration = Duration::from_mins(10);

fn queue<K: Resource<DynamicType = ()>>(
    mut keys: UnboundedReceiver<ObjectRef<K>>,
    mut stopped: Receiver<bool>,
) -> impl Stream<Item = Result<ObjectRef<K>, Infallible>> {
    let keys = futures::stream::poll_fn(move |context| keys.poll_recv(context)).map(Ok);
    let stops = async move {
        // The sender is dropped only when the controller ends.
        let _ = stopped.wait_for(|stops| *stops).await;
    };
    keys.take_until(Box::pin(stops))
}

/// Reconciles nodes until `stopped`.
pub async fn nodes(
    context: Arc<Context>,
    keys: UnboundedReceiver<ObjectRef<NodeObject>>,
    stopped: Receiver<bool>,
) {
    let store = context.nodes.clone();
    let config = controller::Config::default().concurrency(CONCURRENT_WRITES);
    let decide = |node: Arc<NodeObject>, context| {
        let span = tracing::info_span!("reconcile", node = node.name_any());
        Box::pin(reconcile_node(node, context).instrument(span))
    };
    let keys = queue(keys, stopped);
    applier(decide, after_error, context, store, keys, config)
        .for_each(log)
        .await;
}

/// Reconciles Shims until `stopped`.
pub async fn shims(
    context: Arc<Context>,
    keys: UnboundedReceiver<ObjectRef<ShimObject>>,
    stopped: Receiver<bool>,
) {
    let store = context.shims.clone();
    let config = controller::Config::default().concurrency(CONCURRENT_WRITES);
    let decide = |shim: Arc<ShimObject>, context| {
        let span = tracing::info_span!("reconcile", shim = shim.name_any());
        Box::pin(reconcile_shim(shim, context).instrument(span))
    };
    let keys = queue(keys, stopped);
    applier(decide, after_error, context, store, keys, config)
        .for_each(log)
        .await;
}

/// How long to wait after an error.
fn after_error<K>(_: Arc<K>, error: &apply::Error, _: Arc<Context>) -> Action {
    Action::requeue(if error.is_conflict() {
        AFTER_CONFLICT
    } else {
        AFTER_REFUSAL
    })
}

#[allow(clippy::unused_async, reason = "for_each wants a future")]
async fn log<T>(result: Result<T, controller::Error<apply::Error, Infallible>>) {
    match result {
        // The object was deleted while its name was queued.
        Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
        Err(controller::Error::ReconcilerFailed(error, object)) if error.is_conflict() => {
            tracing::debug!(%error, %object, "the object was changed meanwhile, retrying");
        }
        Err(error) => {
            let (object, error, help) = failure(&error);
            tracing::warn!(
                object,
                error,
                help = help.as_deref(),
                "reconcile failed, retrying"
            );
        }
    }
}

/// The object, the error and its help, without the framing of kube's runtime.
fn failure<T: std::error::Error>(
    error: &controller::Error<apply::Error, T>,
) -> (Option<String>, String, Option<Cow<'static, str>>) {
    match error {
        controller::Error::ReconcilerFailed(error, object) => {
            (Some(object.name.clone()), error.to_string(), error.help())
        }
        other => (None, other.to_string(), None),
    }
}

/// When to reconcile again after a write. A rejection is recorded, so that the next decision can report it.
fn remember_rejection(
    context: &Context,
    uid: &str,
    generation: Option<i64>,
    targets: BTreeSet<String>,
    answer: Result<(), apply::Error>,
) -> Result<Option<Duration>, apply::Error> {
    let rejection = match answer {
        Ok(()) => None,
        Err(error) => match error.rejection() {
            Some(problem) => {
                tracing::warn!(%error, help = problem.help, "the API server rejected a write");
                let is_outage = error.is_outage();
                Some(Rejection {
                    problem,
                    is_outage,
                    targets,
                })
            }
            None => return Err(error),
        },
    };
    Ok(context.rejected(uid, generation, rejection))
}

async fn reconcile_node(
    node: Arc<NodeObject>,
    context: Arc<Context>,
) -> Result<Action, apply::Error> {
    let view = NodeView::from(node.as_ref());
    let (pods, each) = view.pods_to_look_at(context.may_drain());
    let pods = if pods.is_empty() {
        None
    } else {
        let classes = context.classes();
        let look = ending_pods::look(&context.client, &view.name, &pods, each, &classes);
        // Without an answer, the decision waits for the pods, and does everything else.
        let looked = apply::in_time(format!("pods of node {}", view.name), look.map(Ok)).await;
        looked.ok().flatten()
    };
    let refused_pod = match context.job_without_pod(&view) {
        Some(job) => {
            let refused =
                job_events::refused_pod(&context.client, &context.settings.namespace, &job);
            let told = apply::in_time(format!("Job of node {}", view.name), refused.map(Ok)).await;
            told.ok().flatten().as_deref().map(job_result::refused_pod)
        }
        None => None,
    };
    let Some(plan) = context.decide_node(&node, &view, pods.as_ref(), refused_pod) else {
        // The watch is about to deliver the newer version.
        return Ok(Action::await_change());
    };
    if !plan.is_empty() {
        let labels = plan.edit.as_ref().map(ToString::to_string);
        let note = plan.event.as_ref().map(|event| event.note.as_str());
        match &plan.event {
            // One line for each failed node.
            Some(event) if event.reason == reasons::PROVISION_FAILED => {
                tracing::warn!(job = %plan.job, labels, note, "node failed");
            }
            Some(event) if event.warning => {
                tracing::warn!(job = %plan.job, labels, note, "reconciled node");
            }
            Some(_) | None => tracing::info!(job = %plan.job, labels, note, "reconciled node"),
        }
    }
    let (client, settings) = (&context.client, &context.settings);
    let write = apply::node(client, settings, &node, &plan, &context.metrics);
    let answer = apply::in_time(format!("node {}", view.name), write).await;
    context.metrics.reconciled("node", answer.is_ok());
    let mut look_again = plan.look_again;
    if let Ok(written) = &answer {
        let (version, refusal) = (
            written.version.as_deref(),
            written.refused_eviction.as_deref(),
        );
        context.node_is_written(&node, &plan, version, refusal);
        if written.version.is_some() && written.version == node.resource_version() {
            look_again = Some(look_again.map_or(AFTER_REVERT, |wait| wait.min(AFTER_REVERT)));
        }
    }
    let answer = answer.map(|_| ());
    let wait = remember_rejection(&context, &view.uid, None, BTreeSet::new(), answer)?;
    Ok(wait
        .or(look_again)
        .map_or_else(Action::await_change, Action::requeue))
}

async fn reconcile_shim(
    shim: Arc<ShimObject>,
    context: Arc<Context>,
) -> Result<Action, apply::Error> {
    let view = context.view(&shim);
    let (plan, rest) = match context.decide_shim(&view) {
        Ok(decided) => decided,
        Err(rest) => return Ok(Action::requeue(rest)),
    };
    let write = apply::shim(&context.client, &shim, plan);
    let answer = apply::in_time(format!("Shim {}", view.name), write.map(Ok)).await;
    let (targets, answer) = answer.unwrap_or_else(|error| (BTreeSet::new(), Err(error)));
    context.metrics.reconciled("shim", answer.is_ok());
    let wait = match (rest, answer) {
        (Some(rest), Ok(())) => Some(rest),
        (_, answer) => remember_rejection(&context, &view.uid, view.generation, targets, answer)?,
    };
    Ok(wait.map_or_else(Action::await_change, Action::requeue))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kube::Client;
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::controller::cluster::triggers::Queues;
    use crate::controller::cluster::watch::Watches;
    use crate::controller::tests::settings;

    /// An API server that accepts every patch of a node and changes nothing, and the number of patches that it got.
    fn reverting() -> (Client, Arc<AtomicUsize>) {
        let patches = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&patches);
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            counted.fetch_add(usize::from(request.method() == "PATCH"), Ordering::Relaxed);
            let node = json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": {"name": "n1", "uid": "u", "resourceVersion": "7"},
            });
            let answer = hyper::Response::new(Body::from(node.to_string().into_bytes()));
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        (Client::new(service, "default"), patches)
    }

    #[tokio::test]
    async fn a_node_whose_labels_a_webhook_reverts_is_reconciled_again() {
        let (client, patches) = reverting();
        let watches = Watches::new(&client, "farrier");
        let (queues, _keys) = Queues::new();
        let context = Arc::new(Context::new(client, settings(), &watches, queues, false));
        let node: NodeObject = serde_json::from_value(json!({"metadata": {
            "name": "n1", "uid": "u", "resourceVersion": "7",
            "labels": {"handler.farrier.dev/gone": "true"},
        }}))
        .unwrap();
        let node = Arc::new(node);
        for attempt in 1..=2 {
            let next = Box::pin(reconcile_node(Arc::clone(&node), Arc::clone(&context))).await;
            assert_eq!(patches.load(Ordering::Relaxed), attempt);
            assert_eq!(next.unwrap(), Action::requeue(AFTER_REVERT));
        }
    }
}
