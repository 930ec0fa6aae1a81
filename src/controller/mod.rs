//! The room that talks to the API server: watches, decisions, writes, wired together. It never names the installer.
//!
//! Watches fill stores; a change names the nodes and Shims that it concerns; each of those is decided on from the stores alone
//! ([`plan`], [`status`]: pure) and only [`apply`] writes. What one node means for the others is kept in the [`fleet`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kube::{Client, ResourceExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::task::JoinHandle;

use crate::server;

mod apply;
mod context;
mod decide;
mod definition;
mod desired;
mod election;
mod events;
mod fleet;
mod job;
mod labels;
mod lease;
mod leave;
mod need;
mod objects;
mod observed;
mod outcome;
mod overview;
mod plan;
mod pods;
mod progress;
mod refusals;
mod request;
mod rollout;
mod routes;
mod runtime_class;
mod standing;
mod status;
mod text;
mod watch;
mod written;

pub use apply::definition::install as install_definition;
pub use leave::{LeaveOptions, Left, leave};
pub use overview::overview;

use context::Context;
use election::Election;
use routes::{Keys, Queues, Routes};
use watch::Watches;

/// What is under way when the controller is asked to end gets this long: a write takes milliseconds.
const GRACE: Duration = Duration::from_secs(10);

/// How the controller runs.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the operator"
)]
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
    /// Priority class of the Jobs' pods.
    pub job_priority_class: Option<String>,
    /// Variables by which a Job's `fetch` finds its proxies, as curl and most others read them.
    pub job_proxies: BTreeMap<&'static str, String>,
    /// Nodes declare the handlers of Shims that they don't carry, with a change that restarts their runtime anyway.
    pub reserve_handlers: bool,
    /// Name of the Lease, in the namespace, whose holder acts.
    pub lease_name: String,
    /// What this replica calls itself there.
    pub identity: String,
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
    /// Another replica acts.
    #[error("the Lease was lost; another replica acts, and this one starts anew to stand by")]
    LeaseLost,
    /// The definition was deleted or replaced.
    #[error(
        "the cluster doesn't serve Farrier's definition of the Shim any more; run `farrier crd --apply`"
    )]
    DefinitionLost,
    /// A write that nothing goes on without.
    #[error(transparent)]
    Apply(#[from] apply::Error),
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

/// A client for the cluster that the kubeconfig or the pod's ServiceAccount names.
async fn client() -> Result<Client, Error> {
    Client::try_default()
        .await
        .map_err(|source| Error::NoCluster { source })
}

/// Runs the controller until SIGTERM or SIGINT.
///
/// # Errors
/// When there is no cluster, the address can't be bound, the Lease is lost, or a part that must go on for ever ends.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let client = client().await?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|source| Error::Signal { source })?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|source| Error::Signal { source })?;
    let asked = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    };
    // On the heap: forty kilobytes of watches.
    Box::pin(operate(client, settings, false, async |_| asked.await)).await
}

/// Watches, holds the Lease and decides until `until` ends; then finishes what is under way and gives the Lease back. With `leaving`,
/// every Shim counts as one that is being deleted.
///
/// The server and the Lease are tasks of their own, so that neither waits for a decision or a recount.
///
/// # Errors
/// As [`run`], and what `until` ends with.
async fn operate<T>(
    client: Client,
    settings: Settings,
    leaving: bool,
    until: impl AsyncFnOnce(&Context) -> Result<T, Error>,
) -> Result<T, Error> {
    let election = Election::new(
        client.clone(),
        &settings.namespace,
        &settings.lease_name,
        &settings.identity,
    );
    let watches = Watches::new(&client, &settings.namespace);
    let (queues, keys) = Queues::new();
    let context = Arc::new(Context::new(client, settings, &watches, queues, leaving));
    let (stop, stopped) = channel(false);
    let (held, acquired) = oneshot::channel();
    let (release, released) = oneshot::channel();
    let mut server = tokio::spawn(serve(Arc::clone(&context)));
    let mut leader = tokio::spawn(lead(Arc::clone(&context), election, held, released));
    let ended = {
        let work = work(Arc::clone(&context), keys, stopped, acquired);
        let (mut work, until) = (std::pin::pin!(work), until(&context));
        tokio::select! {
            ended = follow(&context, watches) => Err(ended),
            ended = &mut server => Err(ended.unwrap_or(Error::Ended { part: "server" })),
            ended = &mut leader => Err(ended.unwrap_or(Error::Ended { part: "Lease" })),
            ended = &mut work => Err(ended),
            ended = until => {
                finish(&stop, work, &mut leader).await;
                ended
            }
        }
    };
    // Whoever does not listen any more has ended.
    let _ = release.send(());
    server.abort();
    for task in [leader, server] {
        if !task.is_finished() {
            let _ = task.await;
        }
    }
    ended
}

/// Lets what is under way come to its end, while the Lease is held.
async fn finish(
    stop: &Sender<bool>,
    work: impl Future<Output = Error>,
    leader: &mut JoinHandle<Error>,
) {
    // Nobody listens where nothing is under way.
    let _ = stop.send(true);
    let finished = async {
        tokio::select! {
            _ = work => {}
            _ = leader => {}
        }
    };
    if tokio::time::timeout(GRACE, finished).await.is_err() {
        tracing::warn!("writes were under way still; the next replica decides them anew");
    }
}

/// Gets the Lease once this replica could decide, says so by `held`, and keeps it until it is lost or to be `released`; why that ended.
async fn lead(
    context: Arc<Context>,
    mut election: Election,
    held: oneshot::Sender<()>,
    released: oneshot::Receiver<()>,
) -> Error {
    let leads = async {
        definition::until_ours(&context.client).await;
        if let Err(error) = context.listed().await {
            return error;
        }
        context.ready.store(true, Ordering::Relaxed);
        let since = election.acquire().await;
        // Whoever does not listen any more is about to release the Lease.
        let _ = held.send(());
        election.hold(since).await;
        Error::LeaseLost
    };
    let ended = tokio::select! {
        ended = leads => ended,
        _ = released => Error::Ended { part: "Lease" },
    };
    election.release().await;
    ended
}

/// Waits for its turn, then decides for ever; why that ended.
async fn work(
    context: Arc<Context>,
    keys: Keys,
    stopped: Receiver<bool>,
    acquired: oneshot::Receiver<()>,
) -> Error {
    let mut stops = stopped.clone();
    let acquired = tokio::select! {
        acquired = acquired => acquired,
        // The sender lives as long as this.
        _ = stops.wait_for(|stops| *stops) => return Error::Ended { part: "wait" },
    };
    if acquired.is_err() {
        // The task that leads says why it ended.
        return std::future::pending().await;
    }
    tracing::info!("every watch has listed and the Lease is held; deciding");
    context.begin();
    let nodes = decide::nodes(Arc::clone(&context), keys.nodes, stopped.clone());
    let shims = decide::shims(Arc::clone(&context), keys.shims, stopped);
    tokio::select! {
        // Both end what they write first where they are to stop.
        ((), ()) = async { tokio::join!(nodes, shims) } => Error::Ended { part: "queue" },
        () = definition::until_another(&context.client) => Error::DefinitionLost,
    }
}

async fn serve(context: Arc<Context>) -> Error {
    let (asked, counted) = (Arc::clone(&context), Arc::clone(&context));
    let ended = server::serve(
        context.settings.listen,
        move || asked.ready.load(Ordering::Relaxed),
        move || counted.metrics.text(),
    );
    match ended.await {
        Ok(()) => Error::Ended { part: "server" },
        Err(error) => error.into(),
    }
}

/// Follows every watch for ever, and tells of what changes; which one ended.
async fn follow(context: &Context, watches: Watches) -> Error {
    let (mut of_nodes, mut of_shims) = (Routes::default(), Routes::default());
    let pods = |change: watch::Change<'_, objects::PodObject>| {
        context.pods.take_in(&change);
        context.concerns(Routes::of_job(&change));
    };
    let jobs = |change: watch::Change<'_, objects::JobObject>| {
        if let watch::Change::Gone(job) = &change {
            context.job_is_gone(&job.uid().unwrap_or_default());
        }
        context.concerns(Routes::of_job(&change));
    };
    tokio::select! {
        () = context.recounts() => Error::Ended { part: "recount" },
        () = watches.nodes.follow(|change| context.concerns(of_nodes.node(&change))) => Error::Ended { part: "watch on Nodes" },
        () = watches.shims.follow(|change| context.concerns(of_shims.shim(&change))) => Error::Ended { part: "watch on Shims" },
        () = watches.jobs.follow(jobs) => Error::Ended { part: "watch on Jobs" },
        () = watches.pods.follow(pods) => Error::Ended { part: "watch on Pods" },
        () = watches.runtime_classes.follow(|_| context.every_shim()) => Error::Ended { part: "watch on RuntimeClasses" },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings of a controller that several suites start from.
    pub fn settings() -> Settings {
        Settings {
            namespace: "farrier".to_owned(),
            image: "farrier:1".to_owned(),
            image_pull_policy: "Never".to_owned(),
            image_pull_secrets: vec!["pull".to_owned()],
            job_service_account: "farrier-installer".to_owned(),
            ca_config_map: Some("ca".to_owned()),
            job_ttl: None,
            job_deadline: 900,
            auto_provision: false,
            allow_pod_restarts: false,
            job_host_pid: false,
            job_priority_class: None,
            job_proxies: BTreeMap::new(),
            reserve_handlers: true,
            lease_name: "farrier".to_owned(),
            identity: "a".to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
        }
    }
}
