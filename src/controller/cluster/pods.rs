//! An index of pods by Job: every decision needs it, and a cluster may have thousands of pods. No decision, no write.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::reflector::{ObjectRef, Store};

use super::slim::PodObject;
use super::watch::Change;

/// Pods by the UID of their Job.
#[derive(Debug)]
pub struct PodsOfJobs {
    store: Store<PodObject>,
    names: Mutex<HashMap<String, HashSet<ObjectRef<PodObject>>>>,
}

impl PodsOfJobs {
    /// An index over `store`.
    #[must_use]
    pub fn new(store: Store<PodObject>) -> Self {
        Self {
            store,
            names: Mutex::default(),
        }
    }

    /// Waits until the watch has listed.
    ///
    /// # Errors
    /// When the watch has ended.
    pub async fn wait_until_ready(&self) -> Result<(), WriterDropped> {
        self.store.wait_until_ready().await
    }

    /// Updates the index by a change.
    pub fn take_in(&self, change: &Change<'_, PodObject>) {
        let mut names = self.names();
        match change {
            Change::Here(pod) => add(&mut names, pod),
            Change::Gone(pod) => {
                let job = pod.controller_uid().unwrap_or_default();
                if let Entry::Occupied(mut pods) = names.entry(job.to_owned()) {
                    pods.get_mut().remove(&ObjectRef::from_obj(*pod));
                    if pods.get().is_empty() {
                        pods.remove();
                    }
                }
            }
            Change::Listed => {
                names.clear();
                for pod in self.store.state() {
                    add(&mut names, &pod);
                }
            }
        }
    }

    /// The pods of a Job.
    #[must_use]
    pub fn of(&self, job_uid: &str) -> Vec<Arc<PodObject>> {
        let names = self.names();
        let pods = names.get(job_uid).into_iter().flatten();
        pods.filter_map(|pod| self.store.get(pod)).collect()
    }

    // A panic while the lock is held leaves only complete entries.
    fn names(&self) -> MutexGuard<'_, HashMap<String, HashSet<ObjectRef<PodObject>>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(names: &mut HashMap<String, HashSet<ObjectRef<PodObject>>>, pod: &PodObject) {
    if let Some(job) = pod.controller_uid() {
        let pods = names.entry(job.to_owned()).or_default();
        pods.insert(ObjectRef::from_obj(pod));
    }
}
