//! Watches on the API server and the stores that they fill. Reads only.

use std::fmt::Debug;
use std::hash::Hash;

use futures::StreamExt;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::Api;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

use super::shim_view::ShimObject;
use super::slim::{JobObject, NodeObject, PodObject};
use crate::names;

/// A change that a watch delivered. The store has the change already.
#[derive(Debug)]
pub enum Change<'a, K> {
    /// The object is new or has changed.
    Here(&'a K),
    /// The object is gone.
    Gone(&'a K),
    /// The store holds a new list: any object may have changed.
    Listed,
}

/// One watch and the store that it fills.
pub struct Watch<K: Resource<DynamicType = ()> + Clone + 'static> {
    api: Api<K>,
    config: watcher::Config,
    store: Store<K>,
    writer: reflector::store::Writer<K>,
}

/// All watches of the controller.
pub struct Watches {
    /// Every node.
    pub nodes: Watch<NodeObject>,
    /// Every Shim.
    pub shims: Watch<ShimObject>,
    /// Farrier's Jobs.
    pub jobs: Watch<JobObject>,
    /// The pods of Farrier's Jobs.
    pub pods: Watch<PodObject>,
    /// Every RuntimeClass, because another owner may have a RuntimeClass of the same name.
    pub runtime_classes: Watch<RuntimeClass>,
}

impl Watches {
    /// The watches, before they are followed.
    #[must_use]
    pub fn new(client: &Client, namespace: &str) -> Self {
        let managed = watcher::Config::default().labels(&format!(
            "{}={},{}={}",
            names::COMPONENT_LABEL,
            names::COMPONENT_INSTALLER,
            names::MANAGED_BY_LABEL,
            names::MANAGER
        ));
        Self {
            nodes: Watch::new(Api::all(client.clone()), watcher::Config::default()),
            shims: Watch::new(Api::all(client.clone()), watcher::Config::default()),
            jobs: Watch::new(Api::namespaced(client.clone(), namespace), managed.clone()),
            pods: Watch::new(Api::namespaced(client.clone(), namespace), managed),
            runtime_classes: Watch::new(Api::all(client.clone()), watcher::Config::default()),
        }
    }
}

impl<K> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone + Default,
{
    fn new(api: Api<K>, config: watcher::Config) -> Self {
        let (store, writer) = reflector::store();
        Self {
            api,
            config,
            store,
            writer,
        }
    }

    /// The store of the watch.
    #[must_use]
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// Follows the watch and passes each change to `on_change`, after the store has it.
    pub async fn follow(self, mut on_change: impl FnMut(Change<'_, K>)) {
        let kind = K::kind(&()).into_owned();
        let events = watcher(self.api, self.config)
            .default_backoff()
            .modify(|object| {
                object.meta_mut().managed_fields = None;
            });
        let mut events = std::pin::pin!(reflector::reflector(self.writer, events));
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object)) => on_change(Change::Here(&object)),
                Ok(watcher::Event::Delete(object)) => on_change(Change::Gone(&object)),
                Ok(watcher::Event::InitDone) => on_change(Change::Listed),
                // The store shows a new list only when the list is complete.
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                Err(error) => {
                    tracing::warn!(kind, %error, "watch interrupted, retrying");
                }
            }
        }
    }
}
