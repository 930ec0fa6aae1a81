//! The room that talks to the API server: watches, decisions, writes, wired together. It never names the installer.
//!
//! Watches fill stores; a change names the nodes and Shims that it concerns; each of those is decided on from the stores alone
//! ([`plan`], [`status`]: pure) and only [`apply`] writes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::runtime::controller::{self, Action, applier};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, ResourceExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::metrics::Metrics;
use crate::{names, server};

mod apply;
mod desired;
mod events;
mod job;
mod labels;
mod observed;
mod outcome;
mod overview;
mod plan;
mod progress;
mod refusals;
mod routes;
mod runtime_class;
mod status;
mod watch;

pub use apply::definition::install as install_definition;
pub use overview::overview;

use observed::{NodeView, ShimObject, ShimView};
use progress::JobView;
use refusals::Refusals;
use routes::Routes;

/// Writes to different objects that may be under way at a time: enough for a thousand nodes, little to an API server.
const CONCURRENT_WRITES: u16 = 8;

/// A write that lost to another writer is decided anew once the watch has brought what the other wrote.
const AFTER_CONFLICT: Duration = Duration::from_secs(1);

/// A write that was refused is tried again after this: the API server's own troubles pass in seconds.
const AFTER_REFUSAL: Duration = Duration::from_secs(10);

/// How the controller runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of the controller and of its Jobs.
    pub namespace: String,
    /// Image of the Jobs.
    pub image: String,
    /// Pull policy of that image: `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// Names of the Secrets with which that image is pulled.
    pub image_pull_secrets: Vec<String>,
    /// ServiceAccount of the Jobs' pods.
    pub job_service_account: String,
    /// ConfigMap whose key `ca.crt` holds more certificate authorities.
    pub ca_config_map: Option<String>,
    /// Seconds that a finished Job is kept; without it, or at zero, a Job goes once its report is read.
    pub job_ttl: Option<i32>,
    /// Seconds that one Job may take.
    pub job_deadline: i64,
    /// Provision every node, annotated or not.
    pub auto_provision: bool,
    /// Restart containerd even on nodes where that ends every pod.
    pub allow_pod_restarts: bool,
    /// Give the Jobs the process numbers of their nodes.
    pub job_host_pid: bool,
    /// Address of /livez, /readyz and /metrics.
    pub listen: SocketAddr,
}

/// Why the controller ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no cluster to talk to.
    #[error(
        "no cluster to talk to: {source}; set KUBECONFIG, or run in a pod with a ServiceAccount"
    )]
    NoCluster {
        /// What kube says.
        #[source]
        source: kube::Error,
    },
    /// The API server does not answer a question.
    #[error("failed to list {what}: {source}")]
    List {
        /// What was asked for.
        what: &'static str,
        /// What kube says.
        #[source]
        source: kube::Error,
    },
    /// The API server took too long.
    #[error(
        "the API server did not answer within {seconds} s; check the address in the kubeconfig"
    )]
    Deadline {
        /// How long was waited.
        seconds: u64,
    },
    /// A part of the controller that must go on for ever has ended.
    #[error("the {part} ended; the controller is started anew by Kubernetes")]
    Ended {
        /// Which one.
        part: &'static str,
    },
    /// Signals can't be received.
    #[error("failed to listen for SIGTERM: {source}")]
    Signal {
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
    /// The probes can't be served.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// The cluster does not serve the Shim's definition.
    #[error(transparent)]
    Definition(#[from] apply::definition::Error),
}

/// What every decision may look at.
struct Context {
    client: Client,
    settings: Settings,
    metrics: Metrics,
    nodes: Store<Node>,
    shims: Store<ShimObject>,
    refusals: Refusals,
    jobs: Store<Job>,
    pods: Store<Pod>,
    runtime_classes: Store<RuntimeClass>,
}

impl Context {
    fn shim_views(&self) -> Vec<ShimView> {
        self.shims
            .state()
            .iter()
            .map(|shim| ShimView::from(shim.as_ref()))
            .collect()
    }

    async fn listed(&self) -> Result<(), Error> {
        let ready = async {
            self.nodes.wait_until_ready().await?;
            self.shims.wait_until_ready().await?;
            self.jobs.wait_until_ready().await?;
            self.pods.wait_until_ready().await?;
            self.runtime_classes.wait_until_ready().await
        };
        ready.await.map_err(|_| Error::Ended { part: "watch" })
    }
}

/// A client for the cluster that the kubeconfig or the pod's ServiceAccount names.
async fn client() -> Result<Client, Error> {
    Client::try_default()
        .await
        .map_err(|source| Error::NoCluster { source })
}

/// Runs the controller until SIGTERM or SIGINT.
///
/// # Errors
/// When there is no cluster, the address can't be bound, or a part that must go on for ever ends.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let client = client().await?;
    let (node_keys, node_queue) = unbounded_channel();
    let (shim_keys, shim_queue) = unbounded_channel();
    let watches = watch::Watches::new(&client, &settings.namespace);
    let context = Arc::new(Context {
        client,
        metrics: Metrics::new(),
        nodes: watches.nodes.store(),
        shims: watches.shims.store(),
        refusals: Refusals::default(),
        jobs: watches.jobs.store(),
        pods: watches.pods.store(),
        runtime_classes: watches.runtime_classes.store(),
        settings,
    });
    let ready = Arc::new(AtomicBool::new(false));
    let (is_ready, counted) = (Arc::clone(&ready), Arc::clone(&context));
    let serve = server::serve(
        context.settings.listen,
        move || is_ready.load(Ordering::Relaxed),
        move || counted.metrics.text(),
    );
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|source| Error::Signal { source })?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|source| Error::Signal { source })?;
    let mut routes = Routes::new(
        node_keys,
        shim_keys,
        context.nodes.clone(),
        context.shims.clone(),
    );
    let mut other_routes = routes.clone();
    let mut job_routes = routes.clone();
    let (mut pod_routes, class_routes) = (routes.clone(), routes.clone());
    let work = async {
        context.listed().await?;
        ready.store(true, Ordering::Relaxed);
        tracing::info!("every watch has listed; deciding");
        tokio::join!(
            decide_nodes(Arc::clone(&context), node_queue),
            decide_shims(Arc::clone(&context), shim_queue)
        );
        Ok::<(), Error>(())
    };
    tokio::select! {
        () = watches.nodes.follow(move |change| routes.node(&change)) => Err(Error::Ended { part: "watch on Nodes" }),
        () = watches.shims.follow(move |change| other_routes.shim(&change)) => Err(Error::Ended { part: "watch on Shims" }),
        () = watches.jobs.follow(move |change| job_routes.of_job(&change)) => Err(Error::Ended { part: "watch on Jobs" }),
        () = watches.pods.follow(move |change| pod_routes.of_job(&change)) => Err(Error::Ended { part: "watch on Pods" }),
        () = watches.runtime_classes.follow(move |_| class_routes.every_shim()) => Err(Error::Ended { part: "watch on RuntimeClasses" }),
        ended = serve => ended.map_err(Error::from).and(Err(Error::Ended { part: "server" })),
        ended = work => ended.and(Err(Error::Ended { part: "queue" })),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

fn queue<K: kube::Resource>(
    mut keys: UnboundedReceiver<ObjectRef<K>>,
) -> impl Stream<Item = Result<ObjectRef<K>, Infallible>> {
    futures::stream::poll_fn(move |context| keys.poll_recv(context)).map(Ok)
}

async fn decide_nodes(context: Arc<Context>, keys: UnboundedReceiver<ObjectRef<Node>>) {
    let store = context.nodes.clone();
    let config = controller::Config::default().concurrency(CONCURRENT_WRITES);
    let decide = |node, context| Box::pin(decide_node(node, context));
    applier(decide, after_error, context, store, queue(keys), config)
        .for_each(log)
        .await;
}

async fn decide_shims(context: Arc<Context>, keys: UnboundedReceiver<ObjectRef<ShimObject>>) {
    let store = context.shims.clone();
    let config = controller::Config::default().concurrency(CONCURRENT_WRITES);
    let decide = |shim, context| Box::pin(decide_shim(shim, context));
    applier(decide, after_error, context, store, queue(keys), config)
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

async fn decide_node(node: Arc<Node>, context: Arc<Context>) -> Result<Action, apply::Error> {
    let view = NodeView::from(node.as_ref());
    let key = ObjectRef::new(&names::job_name(&view.uid)).within(&context.settings.namespace);
    let job = context.jobs.get(&key).map(|job| {
        let uid = job.uid().unwrap_or_default();
        let pods = context
            .pods
            .state_filter(|pod| pod.owner_references().iter().any(|owner| owner.uid == uid));
        JobView::new(
            &job,
            &pods.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
            &view.uid,
        )
    });
    let refused = context.refusals.of(&view.uid);
    let plan = plan::decide(&plan::Observed {
        node: &view,
        shims: &context.shim_views(),
        job: job.as_ref(),
        refused: refused.as_ref().map(|refused| refused.sentence.as_str()),
        now: Timestamp::now(),
        auto_provision: context.settings.auto_provision,
        keep_jobs: context.settings.job_ttl.is_some_and(|ttl| ttl > 0),
    });
    if !plan.is_empty() {
        let labels = plan.edit.as_ref().map(ToString::to_string);
        let note = plan.event.as_ref().map(|event| event.note.as_str());
        tracing::info!(node = view.name, job = %plan.job, labels, note, "decided");
    }
    let answer = apply::node(
        &context.client,
        &context.settings,
        &node,
        &plan,
        &context.metrics,
    )
    .await;
    context.metrics.reconciled("node", answer.is_ok());
    Ok(match context.refusals.after(&view.uid, None, answer)? {
        Some(wait) => Action::requeue(wait),
        None => plan
            .look_again
            .map_or_else(Action::await_change, Action::requeue),
    })
}

async fn decide_shim(shim: Arc<ShimObject>, context: Arc<Context>) -> Result<Action, apply::Error> {
    let view = ShimView::from(shim.as_ref());
    let nodes: Vec<NodeView> = context
        .nodes
        .state()
        .iter()
        .map(|node| NodeView::from(node.as_ref()))
        .collect();
    let classes = context.runtime_classes.state();
    let classes: Vec<&RuntimeClass> = classes.iter().map(AsRef::as_ref).collect();
    let refused = context.refusals.of(&view.uid);
    let mut plan = status::decide(
        &view,
        &context.shim_views(),
        &nodes,
        &classes,
        refused.as_ref().map(|refused| refused.sentence.as_str()),
        context.settings.auto_provision,
        Timestamp::now(),
    );
    let rest = refused.and_then(|refused| refused.rest(view.generation, Instant::now()));
    if rest.is_some() && !view.deleting {
        plan.runtime_classes.clear();
    }
    let answer = apply::shim(&context.client, &shim, plan).await;
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
