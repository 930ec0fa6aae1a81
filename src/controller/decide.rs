//! The two queues: each node and each Shim that something changed about is decided on and its plan carried out, many at a time and each
//! one at a time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use kube::Resource;
use kube::runtime::controller::{self, Action, applier};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch::Receiver;

use super::apply;
use super::context::Context;
use super::objects::NodeObject;
use super::observed::{NodeView, ShimObject};

/// Writes to different objects that may be under way at a time. kube's client sets no limit of its own on requests per second, unlike
/// client-go's (5, bursts of 10); this is ours: a request takes some 5 ms, so that an API server sees some thousand a second at most,
/// and its own priority and fairness holds back what is too much (Kubernetes, *API Priority and Fairness*).
const CONCURRENT_WRITES: u16 = 8;

/// A write that lost to another writer is decided anew once the watch has brought what the other wrote.
const AFTER_CONFLICT: Duration = Duration::from_secs(1);

/// A write that was refused is tried again after this: the API server's own troubles pass in seconds.
const AFTER_REFUSAL: Duration = Duration::from_secs(10);

fn queue<K: Resource<DynamicType = ()>>(
    mut keys: UnboundedReceiver<ObjectRef<K>>,
    mut stopped: Receiver<bool>,
) -> impl Stream<Item = Result<ObjectRef<K>, Infallible>> {
    let keys = futures::stream::poll_fn(move |context| keys.poll_recv(context)).map(Ok);
    let stops = async move {
        // The sender lives as long as the controller; without it, all ends.
        let _ = stopped.wait_for(|stops| *stops).await;
    };
    keys.take_until(Box::pin(stops))
}

/// Decides on nodes until `stopped`.
pub async fn nodes(
    context: Arc<Context>,
    keys: UnboundedReceiver<ObjectRef<NodeObject>>,
    stopped: Receiver<bool>,
) {
    let store = context.nodes.clone();
    let config = controller::Config::default().concurrency(CONCURRENT_WRITES);
    let decide = |node, context| Box::pin(node_once(node, context));
    let keys = queue(keys, stopped);
    applier(decide, after_error, context, store, keys, config)
        .for_each(log)
        .await;
}

/// Decides on Shims until `stopped`.
pub async fn shims(
    context: Arc<Context>,
    keys: UnboundedReceiver<ObjectRef<ShimObject>>,
    stopped: Receiver<bool>,
) {
    let store = context.shims.clone();
    let config = controller::Config::default().concurrency(CONCURRENT_WRITES);
    let decide = |shim, context| Box::pin(shim_once(shim, context));
    let keys = queue(keys, stopped);
    applier(decide, after_error, context, store, keys, config)
        .for_each(log)
        .await;
}

/// When to try again what the API server refused.
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
        // An object that was deleted while its key was queued needs no decision.
        Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
        Err(controller::Error::ReconcilerFailed(error, object)) if error.is_conflict() => {
            tracing::debug!(%error, %object, "written by another meanwhile");
        }
        Err(error) => tracing::warn!(error = innermost(&error), "not applied"),
    }
}

fn innermost<T: std::error::Error>(error: &controller::Error<apply::Error, T>) -> String {
    match error {
        controller::Error::ReconcilerFailed(error, _) => error.to_string(),
        other => other.to_string(),
    }
}

async fn node_once(node: Arc<NodeObject>, context: Arc<Context>) -> Result<Action, apply::Error> {
    if context.written.is_stale(&node) {
        // The watch is about to bring the newer one.
        return Ok(Action::await_change());
    }
    let view = NodeView::from(node.as_ref());
    let plan = context.decide_node(&view);
    if !plan.is_empty() {
        let labels = plan.edit.as_ref().map(ToString::to_string);
        let note = plan.event.as_ref().map(|event| event.note.as_str());
        tracing::info!(node = view.name, job = %plan.job, labels, note, "decided");
    }
    let (client, settings) = (&context.client, &context.settings);
    let write = apply::node(client, settings, &node, &plan, &context.metrics);
    let answer = apply::in_time(format!("node {}", view.name), write).await;
    context.metrics.reconciled("node", answer.is_ok());
    if answer.is_ok() {
        context.written.done(&node, &plan);
    }
    Ok(match context.refusals.after(&view.uid, None, answer)? {
        Some(wait) => Action::requeue(wait),
        None => plan
            .look_again
            .map_or_else(Action::await_change, Action::requeue),
    })
}

async fn shim_once(shim: Arc<ShimObject>, context: Arc<Context>) -> Result<Action, apply::Error> {
    let view = context.view(&shim);
    let mut plan = match context.decide_shim(&view) {
        Ok(plan) => plan,
        Err(rest) => return Ok(Action::requeue(rest)),
    };
    let refused = context.refusals.of(&view.uid);
    let rest = refused.and_then(|refused| refused.rest(view.generation, Instant::now()));
    if rest.is_some() && !view.deleting {
        plan.runtime_classes.clear();
    }
    let write = apply::shim(&context.client, &shim, plan);
    let answer = apply::in_time(format!("Shim {}", view.name), write).await;
    context.metrics.reconciled("shim", answer.is_ok());
    let wait = match (rest, answer) {
        (Some(rest), Ok(())) => Some(rest),
        (_, answer) => {
            let generation = view.generation;
            context.refusals.after(&view.uid, generation, answer)?
        }
    };
    Ok(wait.map_or_else(Action::await_change, Action::requeue))
}
