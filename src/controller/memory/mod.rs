//! The controller's state: the stores that the watches fill, the summaries of all nodes, and the writes in progress. Writes nothing to the
//! API server.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, ResourceExt};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Notify;

use super::cluster::ending_pods::{Class, PodStates};
use super::cluster::job_view::{JobProgress, JobView};
use super::cluster::node_view::NodeView;
use super::cluster::pods::PodsOfJobs;
use super::cluster::shim_view::{ShimObject, ShimView};
use super::cluster::slim::{JobObject, NodeObject};
use super::cluster::triggers::{Queues, Trigger};
use super::cluster::watch::Watches;
use super::decide::adopted_classes::adopter;
use super::decide::desired::Cluster;
use super::decide::shim_status::{self, ShimPlan};
use super::decide::types::{Hold, Observed, Plan};
use super::decide::{self, ending_pods, job_result, rollout};
use super::settings::Settings;
use crate::handoff::Problem;
use crate::metrics::Metrics;
use crate::names;

pub mod aggregate;
pub mod expectations;
pub mod node_summary;
pub mod rejected_writes;
pub mod without_pod;

use aggregate::{Carrier, Fleet};
use expectations::Expectations;
use node_summary::NodeSummary;
use rejected_writes::{RefusedEvictions, RejectedWrites, Rejection};
use without_pod::WithoutPod;

/// Time between two status updates of one Shim: thousands of nodes may change within a minute.
const BETWEEN_STATUSES: Duration = Duration::from_secs(1);

/// Time to wait for further Shims: `kubectl apply` of several Shims, and Farrier's finalizer on each, take a fraction of a second.
const SETTLING: Duration = Duration::from_millis(500);

/// The controller's state, shared by all of its parts.
pub struct Context {
    pub client: Client,
    pub settings: Settings,
    pub metrics: Metrics,
    pub queues: Queues,
    pub nodes: Store<NodeObject>,
    pub shims: Store<ShimObject>,
    pub pods: PodsOfJobs,
    /// Every watch has listed.
    pub ready: AtomicBool,
    acts: AtomicBool,
    /// Notifies an uninstall of any change.
    pub changed: Notify,
    jobs: Store<JobObject>,
    runtime_classes: Store<RuntimeClass>,
    uninstalling: bool,
    /// Notifies [`Context::recounts`].
    outdated: Notify,
    memory: Mutex<Memory>,
    /// Locked by itself: a recount reads the Jobs while it holds the memory.
    without_pod: Mutex<WithoutPod>,
}

/// The state of the controller beside the stores.
#[derive(Debug, Default)]
struct Memory {
    /// The Shims and settings of the last recount.
    cluster: Arc<Cluster>,
    fleet: Fleet,
    expectations: Expectations,
    rejected_writes: RejectedWrites,
    refused_evictions: RefusedEvictions,
    /// Jobs that others deleted before their end was recorded, by node.
    lost_jobs: HashMap<String, JobObject>,
    /// Time of the last status update of each Shim, by name.
    status_decided: HashMap<String, Instant>,
    /// Time of the last change of a Shim.
    shims_changed: Option<Instant>,
    recount: Recount,
}

/// When to summarise all nodes again: at once if the last recount is older than [`SETTLING`], otherwise after that time. The Shims of one
/// manifest, with Farrier's finalizers, then cost two or three recounts instead of one per Shim.
#[derive(Debug, Default)]
struct Recount {
    /// Time of the last recount.
    last: Option<Instant>,
    /// A recount is due.
    is_pending: bool,
}

impl Recount {
    /// Requests a recount. Returns whether it is due at once.
    fn is_due(&mut self, now: Instant) -> bool {
        self.is_pending = true;
        self.rest(now).is_zero()
    }

    /// Time until the requested recount.
    fn rest(&self, now: Instant) -> Duration {
        let last = self.last.filter(|_| self.is_pending);
        last.map_or(Duration::ZERO, |last| {
            SETTLING.saturating_sub(now.saturating_duration_since(last))
        })
    }

    /// A recount is done.
    fn done(&mut self, now: Instant) {
        self.last = Some(now);
        self.is_pending = false;
    }
}

impl Memory {
    /// How long to wait for more Shims before a Job is created. The Shims of one manifest arrive one after the other. Without the wait,
    /// each Shim would cost a Job.
    fn settling(&self, now: Instant) -> Option<Duration> {
        let rest = self.shims_changed.map_or(Duration::ZERO, |changed| {
            SETTLING.saturating_sub(now.saturating_duration_since(changed))
        });
        let rest = rest.max(self.uncounted(now));
        (!rest.is_zero()).then_some(rest)
    }

    /// Time until the requested recount; zero without a request.
    fn uncounted(&self, now: Instant) -> Duration {
        if self.recount.is_pending {
            self.recount.rest(now).max(Duration::from_millis(1))
        } else {
            Duration::ZERO
        }
    }
}

impl Context {
    /// State over the stores of `watches`. With `uninstalling`, every Shim counts as being deleted.
    #[must_use]
    pub fn new(
        client: Client,
        settings: Settings,
        watches: &Watches,
        queues: Queues,
        uninstalling: bool,
    ) -> Self {
        Self {
            client,
            settings,
            metrics: Metrics::new(),
            queues,
            nodes: watches.nodes.store(),
            shims: watches.shims.store(),
            pods: PodsOfJobs::new(watches.pods.store()),
            ready: AtomicBool::new(false),
            acts: AtomicBool::new(false),
            changed: Notify::new(),
            jobs: watches.jobs.store(),
            runtime_classes: watches.runtime_classes.store(),
            uninstalling,
            outdated: Notify::new(),
            memory: Mutex::default(),
            without_pod: Mutex::default(),
        }
    }

    /// Waits until every watch has listed.
    ///
    /// # Errors
    /// When a watch has ended.
    pub async fn listed(&self) -> Result<(), WriterDropped> {
        self.nodes.wait_until_ready().await?;
        self.shims.wait_until_ready().await?;
        self.jobs.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.runtime_classes.wait_until_ready().await
    }

    /// Queues the objects that a change triggers.
    pub fn trigger(&self, trigger: Trigger) {
        // The first decisions may be made before this replica is known to act, and no later trigger names the Shim again.
        match &trigger {
            Trigger::ShimGone(shim) => {
                let mut memory = self.memory();
                self.metrics.remove_shim(shim);
                memory.status_decided.remove(shim);
            }
            Trigger::Everything => self.forget_absent_shims(),
            Trigger::Nothing
            | Trigger::Node(_)
            | Trigger::NodeGone(_)
            | Trigger::Shim(_)
            | Trigger::Shims => {}
        }
        if !self.decides() {
            // A replica that begins to act reconciles everything.
            return;
        }
        match trigger {
            Trigger::Nothing => return,
            Trigger::Node(node) => self.queues.node(&node),
            Trigger::NodeGone(node) => {
                let mut memory = self.memory();
                memory.expectations.node_is_gone(&node);
                memory.lost_jobs.remove(&node);
                let requeue = memory.fleet.remove(&node);
                drop(memory);
                self.queues.requeue(&requeue);
            }
            Trigger::Shim(shim) => self.queues.shim(&shim),
            Trigger::ShimGone(_) => self.request_recount(),
            Trigger::Everything => {
                self.memory().expectations.listed();
                let jobs = self.jobs.state();
                let uids: HashSet<String> = jobs.iter().filter_map(|job| job.uid()).collect();
                self.without_pod().listed(|uid| uids.contains(uid));
                self.request_recount();
            }
            Trigger::Shims => {
                self.memory().shims_changed = Some(Instant::now());
                self.request_recount();
            }
        }
        self.changed.notify_waiters();
    }

    /// A Job is gone. If others deleted it before its end was recorded, the next decision on its node reports that.
    pub fn job_is_gone(&self, job: &JobObject) {
        let uid = job.uid().unwrap_or_default();
        self.without_pod().job_is_gone(&uid);
        let mut memory = self.memory();
        let is_own = memory.expectations.job_is_gone(&uid);
        let node = job.annotations().get(names::NODE_NAME_ANNOTATION);
        if let Some(node) = node.filter(|_| !is_own && self.decides()) {
            // The Job of a deleted node is deleted with the node.
            let is_unrecorded = |there: Arc<NodeObject>| {
                let applied = NodeView::from(there.as_ref()).applied();
                applied.is_none_or(|applied| applied.job != uid)
            };
            let there = self.nodes.get(&ObjectRef::new(node));
            if there.is_some_and(is_unrecorded) {
                memory.lost_jobs.insert(node.clone(), job.clone());
            }
        }
    }

    /// The Job of the node that others deleted before its end was recorded. A report that was read before counts.
    fn lost_job(&self, node: &NodeView) -> Option<JobView> {
        let lost = self.memory().lost_jobs.get(&node.name).cloned()?;
        let pods = self.pods.of(&lost.uid().unwrap_or_default());
        let pods: Vec<_> = pods.iter().map(AsRef::as_ref).collect();
        let mut job = JobView::new(&lost, &pods, node);
        job.deleting = None;
        if !matches!(job.progress, JobProgress::Answered(_)) {
            job.progress = JobProgress::Silent(job_result::deleted_job());
        }
        let is_recorded = node.applied().is_some_and(|applied| applied.job == job.uid);
        (job.request.is_some() && !is_recorded).then_some(job)
    }

    /// Forgets Shims that were deleted while the watch was interrupted.
    fn forget_absent_shims(&self) {
        self.memory().status_decided.retain(|shim, _| {
            let is_there = self.shims.get(&ObjectRef::new(shim)).is_some();
            if !is_there {
                self.metrics.remove_shim(shim);
            }
            is_there
        });
    }

    /// Requests a recount of all nodes and queues everything after it.
    fn request_recount(&self) {
        let is_due = self.memory().recount.is_due(Instant::now());
        if is_due {
            self.recount();
        } else {
            self.outdated.notify_one();
        }
    }

    /// Carries out the requested recounts when they are due.
    pub async fn recounts(&self) {
        loop {
            self.outdated.notified().await;
            let rest = self.memory().recount.rest(Instant::now());
            tokio::time::sleep(rest).await;
            if self.memory().recount.is_pending {
                self.recount();
                self.changed.notify_waiters();
            }
        }
    }

    /// Queues every Shim.
    pub fn queue_every_shim(&self) {
        for shim in self.shims.state() {
            self.queues.shim(&shim.name_any());
        }
    }

    /// A RuntimeClass has changed.
    pub fn class_is_changed(&self) {
        self.queue_every_shim();
        self.changed.notify_waiters();
    }

    /// Reads the Shims, summarises all nodes again and queues everything. Until a node is reconciled, a change that has not begun counts as
    /// waiting for the rollout.
    fn recount(&self) {
        // With thousands of nodes and tens of Shims, a recount takes a second or more.
        beside_other_tasks(|| {
            let shims = self.shims.state();
            let shims = shims.iter().map(|shim| self.view(shim)).collect();
            let settings = &self.settings;
            let cluster = Cluster::new(shims, settings.auto_provision, settings.reserve_handlers);
            // Where a restart may end every pod, it may end some.
            let cluster = if settings.allow_pod_restarts {
                cluster.with_all_restarts()
            } else {
                cluster.with_restart_policy(settings.on_restart, settings.drain_timeout)
            };
            let mut memory = self.memory();
            let cluster = Arc::new(Cluster {
                uninstalling: self.uninstalling,
                startup_taints: settings.startup_taints.clone(),
                ..cluster.with_first_binaries_of(&memory.cluster)
            });
            let mut fleet = Fleet::default();
            for node in self.nodes.state() {
                let view = NodeView::from(node.as_ref());
                let blocked = rollout::all_blocked_by_rollout(&view, &cluster);
                let job = self.job(&view);
                let seen = self.seen(&view, &cluster, &blocked, job.as_ref());
                let summary = NodeSummary::of(&seen, decide::undecided(&seen).as_ref());
                fleet.put(&view.name, summary);
            }
            memory.expectations.count(&mut fleet);
            memory.fleet = fleet;
            memory.cluster = cluster;
            memory.recount.done(Instant::now());
        });
        for node in self.nodes.state() {
            self.queues.node(&node.name_any());
        }
        self.queue_every_shim();
    }

    /// Each RuntimeClass, by name.
    #[must_use]
    pub fn classes(&self) -> HashMap<String, Class> {
        let classes = self.runtime_classes.state();
        let classes = classes.iter();
        classes
            .map(|class| (class.name_any(), Class::of(class)))
            .collect()
    }

    /// Decides on one node and updates the summary of all nodes; `None` if the watch has not yet delivered Farrier's last write to
    /// the node.
    #[must_use]
    pub fn decide_node(
        &self,
        node: &NodeObject,
        view: &NodeView,
        pods: Option<&PodStates>,
        refused_pod: Option<Problem>,
    ) -> Option<Plan> {
        let job = self.job(view).or_else(|| self.lost_job(view));
        let job = job.map(|job| JobView {
            hindrance: refused_pod,
            ..job
        });
        // The lock keeps two nodes from taking the same place in a rollout.
        let mut memory = self.memory();
        if memory.expectations.is_stale(node) {
            return None;
        }
        let cluster = Arc::clone(&memory.cluster);
        let rejected = memory.rejected_writes.of(&view.uid);
        let is_outage = rejected.as_ref().is_some_and(|rejected| rejected.is_outage);
        let rejected = rejected.as_ref().map(|rejected| &rejected.problem);
        let refused_eviction = memory.refused_evictions.of(&view.uid);
        let blocked = rollout::blocked_by_rollout(&memory.fleet.others(&view.name), view, &cluster);
        let hold = match memory.settling(Instant::now()) {
            Some(rest) => Hold::Settling(rest),
            None if memory.fleet.has_no_pod_slot_for(&view.name) => Hold::NoPodSlot,
            None => Hold::None,
        };
        let seen = Observed {
            rejected,
            is_outage,
            refused_eviction: refused_eviction.as_deref(),
            hold,
            pods,
            look_every: ending_pods::look_every(memory.fleet.waiting_for_pods()),
            ..self.seen(view, &cluster, &blocked, job.as_ref())
        };
        let decision = decide::decide(&seen);
        if tracing::enabled!(tracing::Level::DEBUG)
            && let Some(decision) = &decision
        {
            tracing::debug!(rules = decide::explain(&seen, decision), "decided");
        }
        let summary = NodeSummary::of(&seen, decision.as_ref());
        let mut plan = decision.map(|decision| decision.plan).unwrap_or_default();
        memory.expectations.begin(&view.name, &mut plan, &summary);
        let mut requeue = memory.fleet.put(&view.name, summary);
        for (shim, first) in std::mem::take(&mut plan.first_binaries) {
            let mut cluster = Cluster::clone(&memory.cluster);
            if cluster.add_first_binary(&shim, first) {
                memory.cluster = Arc::new(cluster);
                requeue.shims.insert(shim);
            }
        }
        drop(memory);
        self.queues.requeue(&requeue);
        self.changed.notify_waiters();
        Some(plan)
    }

    /// The UID of the node's Job, if it should have a pod by now and has none.
    #[must_use]
    pub fn job_without_pod(&self, view: &NodeView) -> Option<String> {
        let job = self.job(view)?;
        job_result::lacks_pod(&job).then_some(job.uid)
    }

    /// Whether a policy lets the controller evict pods.
    pub fn may_drain(&self) -> bool {
        self.memory().cluster.may_drain()
    }

    /// Records that a plan was written to this version of the node, the version that the patch returned, and why an eviction was refused.
    pub fn node_is_written(
        &self,
        node: &NodeObject,
        plan: &Plan,
        version: Option<&str>,
        refused_eviction: Option<&str>,
    ) {
        let mut memory = self.memory();
        memory.expectations.done(node, plan, version);
        if plan.ended.is_some() {
            memory.lost_jobs.remove(&node.name_any());
        }
        let uid = node.uid().unwrap_or_default();
        let refusal = refused_eviction.map(str::to_owned);
        memory.refused_evictions.after(uid, refusal);
    }

    /// Decides on one Shim. Until a rejected write is repeated, the plan has the other writes only. Also returns how long that is.
    ///
    /// # Errors
    /// If the status was updated recently, returns how long to wait until the next update.
    pub fn decide_shim(&self, view: &ShimView) -> Result<(ShimPlan, Option<Duration>), Duration> {
        let now = Instant::now();
        let classes = self.runtime_classes.state();
        let classes: Vec<&RuntimeClass> = classes.iter().map(AsRef::as_ref).collect();
        let mut memory = self.memory();
        let before = memory.status_decided.get(&view.name);
        let rest = before.map_or(Duration::ZERO, |before| {
            BETWEEN_STATUSES.saturating_sub(now.saturating_duration_since(*before))
        });
        // Before the recount, the status of a new Shim would say that the Shim selects no node. The finalizer must not wait for the
        // recount: otherwise some Shims of a manifest would get their finalizer after the first Jobs, and would cost more Jobs.
        let uncounted = memory.uncounted(now);
        if !uncounted.is_zero() && shim_status::needs_finalizer(view) {
            return Ok((ShimPlan::finalizer_only(), None));
        }
        let rest = rest.max(uncounted);
        if !rest.is_zero() {
            return Err(rest);
        }
        let rejected = memory.rejected_writes.of(&view.uid);
        let tally = memory.fleet.tally(&view.name);
        let first_binaries = memory.cluster.first_binaries.get(&view.name);
        let plan = shim_status::decide(&shim_status::ObservedShim {
            shim: view,
            shims: &memory.cluster.shims,
            tally,
            first_binaries: first_binaries.map_or(&[], Vec::as_slice),
            classes: &classes,
            rejected: rejected.as_ref().map(|rejected| &rejected.problem),
            now: Timestamp::now(),
        });
        let counts = [
            tally.ready,
            tally.underway(),
            tally.failures.len(),
            tally.unsupported.len(),
            tally.removing.len(),
        ];
        // The Shim may have gone since this decision was begun. Its trigger waits for the lock, or has removed the metrics already.
        if self.shims.get(&ObjectRef::new(&view.name)).is_some() {
            self.metrics.nodes(&view.name, counts);
            memory.status_decided.insert(view.name.clone(), now);
        }
        let waits = rejected.and_then(|it| Some((it.rest(view.generation, now)?, it.targets)));
        Ok(match waits {
            Some((rest, targets)) if !view.deleting => (plan.without(&targets), Some(rest)),
            waits => (plan, waits.map(|(rest, _)| rest)),
        })
    }

    /// Records a rejected write of an object, or with `None` that no write is rejected. Returns when to reconcile again, if the record
    /// changed.
    #[must_use]
    pub fn rejected(
        &self,
        uid: &str,
        generation: Option<i64>,
        rejection: Option<Rejection>,
    ) -> Option<Duration> {
        self.memory()
            .rejected_writes
            .after(uid, generation, rejection)
    }

    /// A Shim as decisions see it.
    #[must_use]
    pub fn view(&self, shim: &ShimObject) -> ShimView {
        let view = ShimView::from(shim);
        ShimView {
            deleting: view.deleting || self.uninstalling,
            ..view
        }
    }

    /// Whether this replica acts and has summarised the nodes.
    #[must_use]
    pub fn decides(&self) -> bool {
        self.acts.load(Ordering::Relaxed)
    }

    /// Begins to act: summarises all nodes and queues everything.
    pub fn begin(&self) {
        self.metrics.leads(true);
        self.queues.open();
        self.recount();
        self.acts.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Whether no node carries a Shim, no node has a label or the annotation of Farrier, and no RuntimeClass of others has its node selector.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let carries = self.memory().fleet.carries();
        !carries && self.carriers().is_empty() && !self.adopts()
    }

    /// Whether a RuntimeClass of others still has the node selector that a Shim has added and may remove.
    fn adopts(&self) -> bool {
        let classes = self.runtime_classes.state();
        let mut adopters = classes.iter().filter_map(|class| adopter(class));
        adopters.any(|name| {
            let shim = self.shims.get(&ObjectRef::new(name));
            let uid = shim.map(|shim| shim.uid().unwrap_or_default());
            uid.is_some_and(|uid| self.memory().rejected_writes.of(&uid).is_none())
        })
    }

    /// Nodes that still carry a Shim, each with its Shims. If there is no such node: nodes that still have a label or the annotation of
    /// Farrier.
    #[must_use]
    pub fn carriers(&self) -> BTreeMap<String, Carrier> {
        let carriers = self.memory().fleet.carriers();
        if !carriers.is_empty() {
            return carriers;
        }
        let nodes = self.nodes.state();
        marked(nodes.iter().map(|node| NodeView::from(node.as_ref())))
    }

    fn seen<'a>(
        &self,
        node: &'a NodeView,
        cluster: &'a Cluster,
        blocked_by_rollout: &'a BTreeMap<String, String>,
        job: Option<&'a JobView>,
    ) -> Observed<'a> {
        Observed {
            node,
            cluster,
            blocked_by_rollout,
            job,
            rejected: None,
            is_outage: false,
            refused_eviction: None,
            hold: Hold::None,
            pods: None,
            look_every: ending_pods::look_every(0),
            now: Timestamp::now(),
            keep_jobs: self.settings.job_ttl.is_some_and(|ttl| ttl > 0),
        }
    }

    fn job(&self, node: &NodeView) -> Option<JobView> {
        let key = ObjectRef::new(&names::job_name(&node.uid)).within(&self.settings.namespace);
        let job = self.jobs.get(&key)?;
        let pods = self.pods.of(&job.uid().unwrap_or_default());
        let pods: Vec<_> = pods.iter().map(AsRef::as_ref).collect();
        let job = JobView::new(&job, &pods, node);
        Some(self.without_pod().seen(job, Instant::now()))
    }

    fn without_pod(&self) -> MutexGuard<'_, WithoutPod> {
        self.without_pod
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    // A panic while the lock is held leaves only complete entries.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The nodes with a label or the annotation of Farrier. A node that is being deleted is not changed any more, and nothing waits for it.
fn marked(nodes: impl Iterator<Item = NodeView>) -> BTreeMap<String, Carrier> {
    let marked = nodes.filter(|view| {
        let has_label = view.labelled().next().is_some();
        !view.deleting && (has_label || view.annotations.contains_key(names::APPLIED_ANNOTATION))
    });
    let carrier = |view: NodeView| {
        let shims = view.labelled().map(|(shim, _)| shim.to_owned());
        let carrier = Carrier {
            shims: shims.collect(),
            reason: None,
        };
        (view.name, carrier)
    };
    marked.map(carrier).collect()
}

/// Runs `work`, which may take a second or more, while other threads run the other tasks of the runtime. On a runtime with one thread, the
/// other tasks wait.
fn beside_other_tasks<T>(work: impl FnOnce() -> T) -> T {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use kube::client::Body;
    use kube::runtime::{reflector, watcher};
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::controller::decide::types::JobStep;
    use crate::controller::tests::settings;
    use crate::handoff::{Owner, ProvisionRequest};

    #[test]
    fn forty_changes_of_shims_within_a_second_cost_three_recounts() {
        let (mut recount, start) = (Recount::default(), Instant::now());
        let mut counts = 0;
        for change in 0..40 {
            let now = start + change * Duration::from_millis(25);
            let timer_is_over = recount.is_pending && recount.rest(now).is_zero();
            if timer_is_over || recount.is_due(now) {
                counts += 1;
                recount.done(now);
                recount.is_pending = timer_is_over;
            }
        }
        let end = start + Duration::from_secs(2);
        assert!(recount.is_pending && recount.rest(end).is_zero());
        assert_eq!(counts + 1, 3);
    }

    #[test]
    fn a_single_change_of_a_shim_causes_a_recount_at_once() {
        let (mut recount, start) = (Recount::default(), Instant::now());
        assert!(recount.is_due(start));
        recount.done(start);
        assert!(recount.rest(start).is_zero() && !recount.is_pending);
        assert!(recount.is_due(start + SETTLING));
    }

    /// State over empty stores; nothing is asked of the API server.
    fn context(uninstalling: bool) -> Context {
        let service = tower::service_fn(|_: hyper::Request<Body>| {
            std::future::ready(Err::<hyper::Response<Body>, _>("not asked"))
        });
        let client = Client::new(service, "farrier");
        let watches = Watches::new(&client, "farrier");
        let (queues, _receivers) = Queues::new();
        Context::new(client, settings(), &watches, queues, uninstalling)
    }

    #[test]
    fn a_node_that_is_being_deleted_holds_up_no_uninstall() {
        let node = |name: &str, more: serde_json::Value| {
            let mut node = serde_json::json!({"metadata": {"name": name, "labels": {"farrier.dev/spin": "removing"}}});
            node["metadata"]["deletionTimestamp"] = more;
            NodeView::from(&serde_json::from_value::<NodeObject>(node).unwrap())
        };
        let leaving = node("leaving", "2026-01-01T00:00:00Z".into());
        let nodes = [node("there", serde_json::Value::Null), leaving];
        let marked = marked(nodes.into_iter());
        assert_eq!(marked.into_keys().collect::<Vec<_>>(), ["there"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_right_after_a_recount_is_counted_soon() {
        let context = context(true);
        context.begin();
        assert!(context.is_clean() && context.carriers().is_empty());
        context.trigger(Trigger::Shims);
        assert!(context.memory().recount.is_pending);
        let counted = context.changed.notified();
        tokio::select! {
            () = context.recounts() => panic!("recounts go on"),
            () = counted => {}
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("no recount"),
        }
        assert!(!context.memory().recount.is_pending);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_new_shim_gets_its_finalizer_before_the_recount_and_its_status_after() {
        let context = context(false);
        context.begin();
        context.trigger(Trigger::Shims);
        let shim = |finalizers: &[&str]| -> ShimObject {
            let metadata = serde_json::json!({"name": "spin", "finalizers": finalizers});
            serde_json::from_value(serde_json::json!({"metadata": metadata})).unwrap()
        };
        let (plan, _) = context.decide_shim(&context.view(&shim(&[]))).unwrap();
        assert_eq!(plan, ShimPlan::finalizer_only());
        let held = context.view(&shim(&[names::SHIM_FINALIZER]));
        assert!(context.decide_shim(&held).is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_job_that_others_deleted_before_it_reported_is_told_once() {
        let (nodes, mut watch) = reflector::store();
        let mut context = context(false);
        context.nodes = nodes;
        context.begin();
        let job = |uid: &str| -> JobObject {
            let request = ProvisionRequest::new(Owner::Cluster, "u".to_owned(), vec![], vec![]);
            let template = json!({"metadata": {"annotations": {names::REQUEST_ANNOTATION: request.to_json()}}});
            let metadata = json!({
                "name": names::job_name("u"), "uid": uid, "annotations": {names::NODE_NAME_ANNOTATION: "n1"},
                "deletionTimestamp": "2026-01-01T00:00:00Z",
            });
            serde_json::from_value(json!({"metadata": metadata, "spec": {"template": template}}))
                .unwrap()
        };
        let node = json!({"metadata": {"name": "n1", "uid": "u", "resourceVersion": "7"}});
        let node: NodeObject = serde_json::from_value(node).unwrap();
        let view = NodeView::from(&node);
        let decide = || context.decide_node(&node, &view, None, None).unwrap();
        let own = Plan {
            job: JobStep::Delete("own".to_owned()),
            ..Plan::default()
        };
        context.node_is_written(&node, &own, None, None);
        context.job_is_gone(&job("own"));
        assert_eq!(decide().event, None, "Farrier deletes Jobs itself");
        context.job_is_gone(&job("of a node that is gone"));
        assert!(context.memory().lost_jobs.is_empty());
        watch.apply_watcher_event(&watcher::Event::Apply(node.clone()));
        context.job_is_gone(&job("lost"));
        let plan = decide();
        let note = &plan.event.as_ref().unwrap().note;
        assert!(note.contains("deleted before it reported"), "{note}");
        assert!(
            plan.look_again
                .is_some_and(|wait| wait >= Duration::from_secs(30))
        );
        context.node_is_written(&node, &plan, None, None);
        assert_eq!(decide().event, None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_decision_on_a_shim_that_is_gone_leaves_no_metrics() {
        let context = context(false);
        context.begin();
        let metadata = serde_json::json!({"name": "gone", "finalizers": [names::SHIM_FINALIZER]});
        let shim = serde_json::from_value(serde_json::json!({"metadata": metadata})).unwrap();
        context.decide_shim(&context.view(&shim)).unwrap();
        let text = context.metrics.text();
        assert!(!text.contains("gone"), "{text}");
    }

    #[rstest]
    #[case::deleted(Trigger::ShimGone("gone".to_owned()))]
    #[case::deleted_while_the_watch_was_interrupted(Trigger::Everything)]
    #[tokio::test(flavor = "multi_thread")]
    async fn no_metrics_of_a_deleted_shim_stay(
        #[case] trigger: Trigger,
        #[values(false, true)] acts: bool,
    ) {
        let context = context(false);
        if acts {
            context.begin();
        }
        // As a decision does while the Shim is there.
        context.metrics.nodes("gone", [1, 0, 0, 0, 0]);
        let mut memory = context.memory();
        memory
            .status_decided
            .insert("gone".to_owned(), Instant::now());
        drop(memory);
        assert!(context.metrics.text().contains(r#"shim="gone""#));
        context.trigger(trigger);
        let text = context.metrics.text();
        assert!(!text.contains("gone"), "{text}");
        assert!(context.memory().status_decided.is_empty());
    }

    #[test]
    fn a_recount_does_not_block_other_tasks() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let (renews, renewed) = channel();
        let counts = runtime.spawn(async move {
            tokio::spawn(async move { renews.send(()) });
            // As a recount of many nodes does: it holds its thread until the Lease is renewed.
            beside_other_tasks(|| renewed.recv_timeout(Duration::from_secs(10)))
        });
        runtime.block_on(counts).unwrap().unwrap();
    }
}
