//! What every decision may look at: the stores that watches fill, and what is kept beside them. No decision, no write.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, ResourceExt};
use tokio::sync::Notify;

use super::desired::Cluster;
use super::fleet::Fleet;
use super::objects::{JobObject, NodeObject};
use super::observed::{NodeView, ShimObject, ShimView};
use super::plan::{self, Hold, Observed, Plan};
use super::pods::PodsOfJobs;
use super::progress::JobView;
use super::refusals::Refusals;
use super::routes::{Concern, Queues};
use super::status::{self, ShimPlan};
use super::watch::Watches;
use super::written::Written;
use super::{Error, Settings, rollout};
use crate::metrics::Metrics;
use crate::names;

/// Between two decisions on one Shim: its status counts nodes, and thousands of them change in a minute.
const BETWEEN_STATUSES: Duration = Duration::from_secs(1);

/// `kubectl apply` of several Shims takes a fraction of a second, and so does our finalizer on each.
const SETTLING: Duration = Duration::from_millis(500);

/// What every decision may look at.
pub struct Context {
    pub client: Client,
    pub settings: Settings,
    pub metrics: Metrics,
    pub queues: Queues,
    pub refusals: Refusals,
    pub written: Written,
    pub nodes: Store<NodeObject>,
    pub shims: Store<ShimObject>,
    pub pods: PodsOfJobs,
    /// Every watch has listed.
    pub ready: AtomicBool,
    acts: AtomicBool,
    /// Tells whoever waits for the whole to be done that something changed.
    pub changed: Notify,
    jobs: Store<JobObject>,
    runtime_classes: Store<RuntimeClass>,
    leaving: bool,
    cluster: RwLock<Arc<Cluster>>,
    fleet: Mutex<Fleet>,
    /// When each Shim was decided on last, by name.
    decided: Mutex<HashMap<String, Instant>>,
    /// When a Shim came or changed last.
    shims_changed: Mutex<Option<Instant>>,
}

impl Context {
    /// Over the stores of `watches`. With `leaving`, every Shim counts as one that is being deleted.
    #[must_use]
    pub fn new(
        client: Client,
        settings: Settings,
        watches: &Watches,
        queues: Queues,
        leaving: bool,
    ) -> Self {
        Self {
            client,
            settings,
            metrics: Metrics::new(),
            queues,
            refusals: Refusals::default(),
            written: Written::default(),
            nodes: watches.nodes.store(),
            shims: watches.shims.store(),
            pods: PodsOfJobs::new(watches.pods.store()),
            ready: AtomicBool::new(false),
            acts: AtomicBool::new(false),
            changed: Notify::new(),
            jobs: watches.jobs.store(),
            runtime_classes: watches.runtime_classes.store(),
            leaving,
            cluster: RwLock::default(),
            fleet: Mutex::default(),
            decided: Mutex::default(),
            shims_changed: Mutex::default(),
        }
    }

    /// Waits until every watch has listed.
    ///
    /// # Errors
    /// When one has ended.
    pub async fn listed(&self) -> Result<(), Error> {
        let ready = async {
            self.nodes.wait_until_ready().await?;
            self.shims.wait_until_ready().await?;
            self.jobs.wait_until_ready().await?;
            self.pods.wait_until_ready().await?;
            self.runtime_classes.wait_until_ready().await
        };
        ready.await.map_err(|_| Error::Ended { part: "watch" })
    }

    /// Passes on what a change concerns.
    pub fn concerns(&self, concern: Concern) {
        if !self.decides() {
            // Whoever begins to act counts everything anyway.
            return;
        }
        match concern {
            Concern::Nothing => return,
            Concern::Node(node) => self.queues.node(&node),
            Concern::NodeGone(node) => {
                self.written.node_is_gone(&node);
                let ripple = self.fleet().remove(&node);
                self.queues.ripple(&ripple);
            }
            Concern::Shim(shim) => self.queues.shim(&shim),
            Concern::ShimGone(shim) => {
                self.metrics.forget(&shim);
                self.decided().remove(&shim);
                self.recount();
                self.decide_all();
            }
            Concern::Everything => {
                self.written.listed();
                self.forget_absent_shims();
                self.recount();
                self.decide_all();
            }
            Concern::Shims => {
                *self.shims_changed() = Some(Instant::now());
                self.recount();
                self.decide_all();
            }
        }
        self.changed.notify_waiters();
    }

    /// Shims that went while the watch was away.
    fn forget_absent_shims(&self) {
        self.decided().retain(|shim, _| {
            let is_there = self.shims.get(&ObjectRef::new(shim)).is_some();
            if !is_there {
                self.metrics.forget(shim);
            }
            is_there
        });
    }

    /// Everything is to be decided on.
    pub fn decide_all(&self) {
        for node in self.nodes.state() {
            self.queues.node(&node.name_any());
        }
        self.every_shim();
    }

    /// What concerns every Shim.
    pub fn every_shim(&self) {
        for shim in self.shims.state() {
            self.queues.shim(&shim.name_any());
        }
    }

    /// Takes in which Shims there are, and counts all nodes anew: those that have not begun a change wait for their turn until they are
    /// decided on.
    pub fn recount(&self) {
        let shims = self.shims.state();
        let shims = shims.iter().map(|shim| self.view(shim)).collect();
        let settings = &self.settings;
        let cluster = Arc::new(Cluster::new(
            shims,
            settings.auto_provision,
            settings.reserve_handlers,
        ));
        *self.cluster.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&cluster);
        let mut fleet = Fleet::default();
        for node in self.nodes.state() {
            let view = NodeView::from(node.as_ref());
            let held = rollout::all_held(&view, &cluster);
            let job = self.job(&view);
            let seen = self.seen(&view, &cluster, &held, job.as_ref(), (None, Hold::None));
            fleet.put(&view.name, plan::standing(&seen));
        }
        self.written.count(&mut fleet);
        *self.fleet() = fleet;
    }

    /// Decides on one node, and keeps what that means for the others.
    #[must_use]
    pub fn decide_node(&self, view: &NodeView) -> Plan {
        let cluster = self.cluster();
        let job = self.job(view);
        let refused = self.refusals.of(&view.uid);
        let refused = refused.as_ref().map(|refused| refused.sentence.as_str());
        // Until the node's part is in the whole again, no other takes the same turn.
        let mut fleet = self.fleet();
        let held = rollout::held(&fleet, view, &cluster);
        let hold = match self.settling() {
            Some(rest) => Hold::Settling(rest),
            None if fleet.is_crowded_for(&view.name) => Hold::Crowded,
            None => Hold::None,
        };
        let seen = self.seen(view, &cluster, &held, job.as_ref(), (refused, hold));
        let (mut plan, standing) = plan::decide(&seen);
        self.written.begin(&view.name, &mut plan, &standing);
        let ripple = fleet.put(&view.name, standing);
        drop(fleet);
        self.queues.ripple(&ripple);
        self.changed.notify_waiters();
        plan
    }

    /// Decides on one Shim, or says how long its status is to rest.
    ///
    /// # Errors
    /// Gives that time.
    pub fn decide_shim(&self, view: &ShimView) -> Result<ShimPlan, Duration> {
        let now = Instant::now();
        let before = self.decided().get(&view.name).copied();
        let rest = before.map_or(Duration::ZERO, |before| {
            BETWEEN_STATUSES.saturating_sub(now.saturating_duration_since(before))
        });
        if !rest.is_zero() {
            return Err(rest);
        }
        let classes = self.runtime_classes.state();
        let classes: Vec<&RuntimeClass> = classes.iter().map(AsRef::as_ref).collect();
        let refused = self.refusals.of(&view.uid);
        let fleet = self.fleet();
        let tally = fleet.tally(&view.name);
        let plan = status::decide(&status::Seen {
            shim: view,
            tally,
            classes: &classes,
            refused: refused.as_ref().map(|refused| refused.sentence.as_str()),
            now: Timestamp::now(),
        });
        let underway = tally.pending + tally.waiting;
        let counts = [
            tally.ready,
            underway,
            tally.failures.len(),
            tally.unsupported.len(),
            tally.removing.len(),
        ];
        self.metrics.nodes(&view.name, counts);
        drop(fleet);
        self.decided().insert(view.name.clone(), now);
        Ok(plan)
    }

    /// A Shim as decisions see it.
    #[must_use]
    pub fn view(&self, shim: &ShimObject) -> ShimView {
        let view = ShimView::from(shim);
        ShimView {
            deleting: view.deleting || self.leaving,
            ..view
        }
    }

    /// Whether this replica acts, so that the fleet is counted.
    #[must_use]
    pub fn decides(&self) -> bool {
        self.acts.load(Ordering::Relaxed)
    }

    /// Begins to act: everything is counted and decided on.
    pub fn begin(&self) {
        self.metrics.leads(true);
        self.recount();
        self.acts.store(true, Ordering::Relaxed);
        self.queues.open();
        self.decide_all();
        self.changed.notify_waiters();
    }

    /// Whether no node carries anything or says so.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        !self.fleet().carries() && self.carriers().is_empty()
    }

    /// Nodes that still carry something, each with the Shims; where none does, those that say something of it still.
    #[must_use]
    pub fn carriers(&self) -> BTreeMap<String, Vec<String>> {
        let carriers = self.fleet().carriers();
        if !carriers.is_empty() {
            return carriers;
        }
        let nodes = self.nodes.state();
        let views = nodes.iter().map(|node| NodeView::from(node.as_ref()));
        let marked = views.filter(|view| {
            view.annotations.contains_key(names::APPLIED_ANNOTATION)
                || view.labelled().next().is_some()
        });
        marked
            .map(|view| {
                let shims = view.labelled().map(|(shim, _)| shim.to_owned());
                (view.name.clone(), shims.collect())
            })
            .collect()
    }

    fn seen<'a>(
        &self,
        node: &'a NodeView,
        cluster: &'a Cluster,
        held: &'a BTreeMap<String, String>,
        job: Option<&'a JobView>,
        (refused, hold): (Option<&'a str>, Hold),
    ) -> Observed<'a> {
        Observed {
            node,
            cluster,
            held,
            job,
            refused,
            hold,
            now: Timestamp::now(),
            keep_jobs: self.settings.job_ttl.is_some_and(|ttl| ttl > 0),
        }
    }

    fn job(&self, node: &NodeView) -> Option<JobView> {
        let key = ObjectRef::new(&names::job_name(&node.uid)).within(&self.settings.namespace);
        let job = self.jobs.get(&key)?;
        let pods = self.pods.of(&job.uid().unwrap_or_default());
        let pods: Vec<_> = pods.iter().map(AsRef::as_ref).collect();
        Some(JobView::new(&job, &pods, &node.uid))
    }

    // Whoever panicked while it held one of these locks left whole entries.
    fn cluster(&self) -> Arc<Cluster> {
        let cluster = self.cluster.read();
        Arc::clone(&cluster.unwrap_or_else(PoisonError::into_inner))
    }

    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long more Shims are waited for: those of one manifest come one after the other, and a Job each would be one too many.
    fn settling(&self) -> Option<Duration> {
        let changed = *self.shims_changed();
        let rest = SETTLING.saturating_sub(changed?.elapsed());
        (!rest.is_zero()).then_some(rest)
    }

    fn shims_changed(&self) -> MutexGuard<'_, Option<Instant>> {
        let changed = self.shims_changed.lock();
        changed.unwrap_or_else(PoisonError::into_inner)
    }

    fn decided(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
