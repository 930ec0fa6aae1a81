//! Runs the watches, the Lease, the HTTP server and the queues together.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kube::Client;
use tokio::sync::oneshot;
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::task::JoinHandle;

use super::cluster::slim::{JobObject, PodObject};
use super::cluster::triggers::{QueueReceivers, Queues, Triggers};
use super::cluster::watch::{Change, Watches};
use super::error::Error;
use super::leader::Election;
use super::memory::Context;
use super::settings::Settings;
use super::{crd_watch, reconcile};
use crate::server::{self, Answers};

/// Time for writes in progress when the controller is asked to end; a write takes milliseconds.
const GRACE: Duration = Duration::from_secs(10);

/// Watches, holds the Lease and reconciles until `until` ends. Then finishes the writes in progress and releases the Lease. With
/// `uninstalling`, every Shim counts as being deleted.
///
/// The server and the Lease are tasks of their own, so that neither waits for a decision or a recount.
///
/// # Errors
/// When a part ends unexpectedly, when the Lease is lost, and the errors of `until`.
pub async fn operate<T>(
    client: Client,
    settings: Settings,
    uninstalling: bool,
    until: impl AsyncFnOnce(&Context) -> Result<T, Error>,
) -> Result<T, Error> {
    let election = Election::new(
        client.clone(),
        &settings.namespace,
        &settings.lease_name,
        &settings.identity,
    );
    let watches = Watches::new(&client, &settings.namespace);
    let (queues, receivers) = Queues::new();
    let context = Arc::new(Context::new(
        client,
        settings,
        &watches,
        queues,
        uninstalling,
    ));
    let (stop, stopped) = channel(false);
    let (held, acquired) = oneshot::channel();
    let (release, released) = oneshot::channel();
    let mut server = tokio::spawn(serve(Arc::clone(&context)));
    let mut leader = tokio::spawn(lead(Arc::clone(&context), election, held, released));
    let ended = {
        let work = work(Arc::clone(&context), receivers, stopped, acquired);
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
    // The send fails only if the task has ended.
    let _ = release.send(());
    server.abort();
    for task in [leader, server] {
        if !task.is_finished() {
            let _ = task.await;
        }
    }
    ended
}

/// Waits for the writes in progress, while the Lease is held.
async fn finish(
    stop: &Sender<bool>,
    work: impl Future<Output = Error>,
    leader: &mut JoinHandle<Error>,
) {
    // The send fails only if no queue is running.
    let _ = stop.send(true);
    let finished = async {
        tokio::select! {
            _ = work => {}
            _ = leader => {}
        }
    };
    if tokio::time::timeout(GRACE, finished).await.is_err() {
        tracing::warn!("stopped while writes were in progress, which the next replica repeats");
    }
}

/// Acquires the Lease once every watch has listed, sends on `held`, and renews the Lease until the Lease is lost or `released` ends.
/// Returns the reason for the end.
async fn lead(
    context: Arc<Context>,
    mut election: Election,
    held: oneshot::Sender<()>,
    released: oneshot::Receiver<()>,
) -> Error {
    let leads = async {
        crd_watch::wait_until_crd_current(&context.client).await;
        if context.listed().await.is_err() {
            return Error::Ended { part: "watch" };
        }
        context.ready.store(true, Ordering::Relaxed);
        let since = election.acquire().await;
        // The send fails only if the Lease is about to be released.
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

/// Waits until the Lease is held, then reconciles. Returns the reason for the end.
async fn work(
    context: Arc<Context>,
    receivers: QueueReceivers,
    stopped: Receiver<bool>,
    acquired: oneshot::Receiver<()>,
) -> Error {
    let mut stops = stopped.clone();
    let acquired = tokio::select! {
        acquired = acquired => acquired,
        // The sender lives as long as this future.
        _ = stops.wait_for(|stops| *stops) => return Error::Ended { part: "wait" },
    };
    if acquired.is_err() {
        // The task that holds the Lease returns the reason.
        return std::future::pending().await;
    }
    tracing::info!("reconciling: every watch has listed, and this replica holds the Lease");
    context.begin();
    let nodes = reconcile::nodes(Arc::clone(&context), receivers.nodes, stopped.clone());
    let shims = reconcile::shims(Arc::clone(&context), receivers.shims, stopped);
    tokio::select! {
        // Both finish their writes before they stop.
        ((), ()) = async { tokio::join!(nodes, shims) } => Error::Ended { part: "queue" },
        () = crd_watch::wait_until_crd_replaced(&context.client) => Error::CrdReplaced,
    }
}

/// Serves the metrics and the probes. Returns the reason for the end.
async fn serve(context: Arc<Context>) -> Error {
    let answers = |metrics: bool| {
        let (asked, counted) = (Arc::clone(&context), Arc::clone(&context));
        Answers {
            ready: Box::new(move || asked.ready.load(Ordering::Relaxed)),
            metrics: metrics.then(|| Box::new(move || counted.metrics.text()) as _),
        }
    };
    let all = server::serve(context.settings.listen, answers(true));
    let probes = async {
        match context.settings.probe_listen {
            Some(address) => server::serve(address, answers(false)).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = all => ended,
        ended = probes => ended,
    };
    match ended {
        Ok(()) => Error::Ended { part: "server" },
        Err(error) => error.into(),
    }
}

/// Follows every watch, and triggers the objects that each change concerns. Returns which watch ended.
async fn follow(context: &Context, watches: Watches) -> Error {
    let (mut node_triggers, mut shim_triggers) = (Triggers::default(), Triggers::default());
    let pods = |change: Change<'_, PodObject>| {
        context.pods.take_in(&change);
        context.trigger(Triggers::of_job(&change));
    };
    let jobs = |change: Change<'_, JobObject>| {
        if let Change::Gone(job) = &change {
            context.job_is_gone(job);
        }
        context.trigger(Triggers::of_job(&change));
    };
    tokio::select! {
        () = context.recounts() => Error::Ended { part: "recount" },
        () = watches.nodes.follow(|change| context.trigger(node_triggers.node(&change))) => Error::Ended { part: "watch on Nodes" },
        () = watches.shims.follow(|change| context.trigger(shim_triggers.shim(&change))) => Error::Ended { part: "watch on Shims" },
        () = watches.jobs.follow(jobs) => Error::Ended { part: "watch on Jobs" },
        () = watches.pods.follow(pods) => Error::Ended { part: "watch on Pods" },
        () = watches.runtime_classes.follow(|_| context.class_is_changed()) => Error::Ended { part: "watch on RuntimeClasses" },
    }
}
