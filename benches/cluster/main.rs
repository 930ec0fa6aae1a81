//! What the controller costs over many nodes, beside as many bare Jobs: `cargo xtask bench cluster` brings up a control plane in which
//! kwok plays the kubelets and says in the environment where it is. One number of nodes per run. Not a test: no test is timed.

#![allow(
    clippy::unwrap_used,
    reason = "a measurement that can't go on has nothing to say"
)]

mod controller;
mod figures;
mod fleet;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use farrier::api::Shim;
use farrier::names;
use futures::StreamExt as _;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, PartialObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::Value;

use controller::{Controller, Spent};
use fleet::{SHIMS, first_job, shim};

/// Namespace of the controller and of all Jobs, the bare ones included.
const NAMESPACE: &str = "farrier";

/// How often a condition is looked at, where looking costs the API server nothing.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How often the API server is asked.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// How long one stage may take: the Job controller of Kubernetes, with its default limits, finishes about four Jobs a second.
fn patience(nodes: usize) -> Duration {
    Duration::from_mins(1) + Duration::from_millis(400) * u32::try_from(nodes).unwrap()
}

/// Where things are, as the environment says.
struct Setup {
    client: Client,
    nodes: usize,
    kubeconfig: PathBuf,
    binary: PathBuf,
    audit_log: PathBuf,
    directory: PathBuf,
}

#[tokio::main]
async fn main() {
    let read = |name: &str| {
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set: use `cargo xtask bench cluster`"))
    };
    let state = PathBuf::from(read("FARRIER_CLUSTER"));
    let cluster: Value = serde_json::from_str(&fs::read_to_string(&state).unwrap()).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = PathBuf::from(cluster["kubeconfig"].as_str().unwrap());
    let setup = Setup {
        client: client(&kubeconfig).await,
        nodes: read("FARRIER_NODES").parse().unwrap(),
        kubeconfig,
        binary: read("FARRIER_BINARY").into(),
        audit_log: read("FARRIER_AUDIT_LOG").into(),
        directory: PathBuf::from(cluster["logs"].as_str().unwrap()),
    };
    let figures = measure(&setup).await;
    fs::write(read("FARRIER_FIGURES"), figures.to_string()).unwrap();
}

async fn client(kubeconfig: &Path) -> Client {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options)
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

async fn measure(setup: &Setup) -> Value {
    say(&format!("{} nodes join", setup.nodes));
    setup.join_nodes().await;
    let controller = setup.start_controller().await;
    say("three Shims for every node");
    let (provisioning, job) = provision(setup, &controller).await;
    let removal = if provisioning.done {
        say("the Shims go");
        Some(remove(setup, &controller).await)
    } else {
        None
    };
    let peak = controller.peak();
    drop(controller);
    say("as many bare Jobs");
    let bare = setup.bare_jobs(job).await;
    figures::tables(setup.nodes, &provisioning, removal.as_ref(), peak, bare)
}

/// How one change went over all nodes.
struct Change {
    /// Whether it reached every node in time.
    done: bool,
    /// The nodes that it reached.
    reached: usize,
    /// How long it took to the last Job's end.
    wall: Duration,
    /// What the controller spent, to the last word in the status of the Shims.
    spent: Spent,
}

/// From the first Shim to the last node that serves all of them. The second value is one of the Jobs.
async fn provision(setup: &Setup, controller: &Controller) -> (Change, Job) {
    let shims: Api<Shim> = Api::all(setup.client.clone());
    let jobs: Api<Job> = Api::namespaced(setup.client.clone(), NAMESPACE);
    let everywhere = SHIMS
        .map(|shim| format!("{}=provisioned", names::shim_label(shim)))
        .join(",");
    let provisioned = follow::<Node>(
        Api::all(setup.client.clone()),
        watcher::Config::default().labels(&everywhere),
    );
    let reached = || provisioned.lock().unwrap().len();
    let began = controller.mark(setup);
    for name in SHIMS {
        let made = shims.create(&PostParams::default(), &shim(name)).await;
        made.unwrap();
    }
    let job = first_job(&jobs).await;
    let served = until(setup.nodes, LOOK_EVERY, async || reached() == setup.nodes).await;
    let done = served && until(setup.nodes, ASK_EVERY, async || is_empty(&jobs).await).await;
    let wall = began.at.elapsed();
    let reached = reached();
    let restart_triggered_by_write = done
        && until(setup.nodes, ASK_EVERY, async || {
            is_reported(&shims, setup.nodes).await
        })
        .await;
    say(&format!(
        "{reached} nodes after {wall:.1?}, {} after {:.1?}",
        if restart_triggered_by_write {
            "all told in status"
        } else {
            "not all done"
        },
        began.at.elapsed()
    ));
    let spent = controller.since(&began, setup);
    let change = Change {
        done,
        reached,
        wall,
        spent,
    };
    (change, job)
}

/// From the deletion of the Shims until they and all Jobs are gone.
async fn remove(setup: &Setup, controller: &Controller) -> Change {
    let shims: Api<Shim> = Api::all(setup.client.clone());
    let jobs: Api<Job> = Api::namespaced(setup.client.clone(), NAMESPACE);
    let began = controller.mark(setup);
    for name in SHIMS {
        shims.delete(name, &DeleteParams::default()).await.unwrap();
    }
    let done = until(setup.nodes, ASK_EVERY, async || is_empty(&shims).await).await
        && until(setup.nodes, ASK_EVERY, async || is_empty(&jobs).await).await;
    Change {
        done,
        reached: if done { setup.nodes } else { 0 },
        wall: began.at.elapsed(),
        spent: controller.since(&began, setup),
    }
}

fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "  {what}");
}

/// Waits until `reached` says so; false when the patience for that many nodes ends first.
async fn until(nodes: usize, every: Duration, mut reached: impl AsyncFnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience(nodes);
    while !reached().await {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(every).await;
    }
    true
}

/// The names of the objects that `config` selects, kept up to date by a watch.
fn follow<K>(
    api: Api<PartialObjectMeta<K>>,
    config: watcher::Config,
) -> Arc<Mutex<BTreeSet<String>>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
{
    let names = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&names);
    tokio::spawn(async move {
        let events = watcher(api, config).default_backoff();
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                    seen.lock().unwrap().insert(object.name_any());
                }
                Ok(watcher::Event::Delete(object)) => {
                    seen.lock().unwrap().remove(&object.name_any());
                }
                Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
                Err(error) => say(&format!("a watch is interrupted: {error}")),
            }
        }
    });
    names
}

async fn is_empty<K>(api: &Api<K>) -> bool
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    let one = ListParams::default().limit(1);
    api.list_metadata(&one).await.unwrap().items.is_empty()
}

async fn is_reported(shims: &Api<Shim>, nodes: usize) -> bool {
    let listed = shims.list(&ListParams::default()).await.unwrap();
    listed.iter().all(|shim| {
        let ready = shim.status.as_ref().map(|status| status.nodes_ready);
        ready.and_then(|ready| usize::try_from(ready).ok()) == Some(nodes)
    })
}
