//! Builds a cluster of one node for the tests of the decisions, and carries decisions out on it. No tests.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::node::v1::RuntimeClass;
use serde_json::json;

use crate::api::ShimSpec;
use crate::controller::cluster::ending_pods::PodStates;
use crate::controller::cluster::job_view::{JobProgress, JobView};
use crate::controller::cluster::node_view::NodeView;
use crate::controller::cluster::shim_view::ShimView;
use crate::controller::decide::desired::Cluster;
use crate::controller::decide::types::{Hold, JobStep, Observed, Plan};
use crate::controller::decide::{decide, ending_pods, explain, shim_status, undecided};
use crate::controller::memory::aggregate::Fleet;
use crate::controller::memory::node_summary::NodeSummary;
use crate::handoff::{
    EndingPod, EndingPods, HandlerReport, OnRestart, Outcome, Problem, ProvisionReport,
    Sha256Digest,
};

/// A cluster of one node.
#[expect(
    clippy::struct_excessive_bools,
    reason = "a scene is set up switch by switch"
)]
pub(super) struct Scene {
    pub(super) node: NodeView,
    pub(super) shims: Vec<ShimView>,
    pub(super) classes: Vec<RuntimeClass>,
    pub(super) blocked: BTreeMap<String, String>,
    pub(super) job: Option<JobView>,
    pub(super) now: Timestamp,
    pub(super) rejected: Option<Problem>,
    pub(super) is_outage: bool,
    pub(super) refused_eviction: Option<String>,
    pub(super) hold: Hold,
    pub(super) auto_provision: bool,
    pub(super) uninstalling: bool,
    pub(super) keep_jobs: bool,
    pub(super) pods: Option<PodStates>,
    pub(super) on_restart: OnRestart,
    pub(super) drain_timeout: Option<Duration>,
    /// The handlers of each Shim that the host serves, as its state file has them.
    pub(super) host: BTreeMap<String, Vec<String>>,
}

pub(super) fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

pub(super) fn shim(name: &str, handler: &str) -> ShimView {
    ShimView {
        name: name.to_owned(),
        uid: format!("uid-of-{name}"),
        created: start(),
        generation: Some(1),
        deleting: false,
        has_finalizer: true,
        has_rcm_finalizer: false,
        forced: false,
        spec: Ok(serde_json::from_value(json!({
            "annotationSelector": {"kwasm.sh/kwasm-node": "true"},
            "fetchStrategy": {"anonHttp": {"location": "https://example.org/a.tar.gz"}},
            "runtimeClass": {"name": name, "handler": handler},
            "rolloutStrategy": {"type": "recreate"},
        }))
        .unwrap()),
        status: None,
    }
}

/// A node without annotation, and the Shim `spin` that annotated nodes get.
pub(super) fn scene() -> Scene {
    Scene {
        node: NodeView {
            name: "n1".to_owned(),
            uid: "node-uid".to_owned(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            os: "linux".to_owned(),
            arch: "amd64".to_owned(),
            machine_id: "machine".to_owned(),
            boot_id: "boot".to_owned(),
            runtime: "containerd://2.1.9".to_owned(),
            runtime_handlers: None,
            ready: true,
            heartbeat: None,
            cordoned: false,
            control_plane: false,
            taints: Vec::new(),
            deleting: false,
        },
        blocked: BTreeMap::new(),
        shims: vec![shim("spin", "spin-v2")],
        classes: Vec::new(),
        job: None,
        now: start(),
        rejected: None,
        is_outage: false,
        refused_eviction: None,
        hold: Hold::None,
        auto_provision: false,
        uninstalling: false,
        keep_jobs: false,
        pods: None,
        on_restart: OnRestart::default(),
        drain_timeout: None,
        host: BTreeMap::new(),
    }
}

impl Scene {
    pub(super) fn annotated(mut self) -> Self {
        self.node
            .annotations
            .insert("kwasm.sh/kwasm-node".to_owned(), "true".to_owned());
        self
    }

    pub(super) fn no_longer_annotated(mut self) -> Self {
        self.node.annotations.remove("kwasm.sh/kwasm-node");
        self
    }

    pub(super) fn later(mut self, seconds: i64) -> Self {
        self.now += SignedDuration::from_secs(seconds);
        if let Some(job) = self
            .job
            .as_mut()
            .filter(|job| job.progress == JobProgress::NoPod)
        {
            job.without_pod_for += Duration::from_secs(seconds.unsigned_abs());
        }
        self
    }

    fn cluster(&self) -> Cluster {
        Cluster {
            uninstalling: self.uninstalling,
            startup_taints: vec![
                "farrier.dev/not-ready".to_owned(),
                "startup-taint.cluster-autoscaler.kubernetes.io/farrier".to_owned(),
            ],
            ..Cluster::new(self.shims.clone(), self.auto_provision, true)
                .with_restart_policy(self.on_restart, self.drain_timeout)
        }
    }

    fn look<T>(&self, look: impl FnOnce(&Observed<'_>) -> T) -> T {
        let cluster = self.cluster();
        look(&Observed {
            node: &self.node,
            cluster: &cluster,
            blocked_by_rollout: &self.blocked,
            job: self.job.as_ref(),
            rejected: self.rejected.as_ref(),
            is_outage: self.is_outage,
            refused_eviction: self.refused_eviction.as_deref(),
            hold: self.hold,
            pods: self.pods.as_ref(),
            look_every: ending_pods::look_every(0),
            now: self.now,
            keep_jobs: self.keep_jobs,
        })
    }

    pub(super) fn decide(&self) -> Plan {
        self.look(decide)
            .map(|decision| decision.plan)
            .unwrap_or_default()
    }

    /// The rules of the decision.
    pub(super) fn explain(&self) -> String {
        self.look(|seen| explain(seen, &decide(seen).unwrap()))
    }

    /// The summary of the node after the decision on it.
    pub(super) fn summary(&self) -> NodeSummary {
        self.look(|seen| NodeSummary::of(seen, decide(seen).as_ref()))
    }

    /// The summary of the node before the decision on it.
    pub(super) fn summary_before(&self) -> NodeSummary {
        self.look(|seen| NodeSummary::of(seen, undecided(seen).as_ref()))
    }

    /// Decides, and writes the plan as the API server would.
    pub(super) fn step(mut self) -> (Self, Plan) {
        let plan = self.decide();
        let edit = plan.edit.clone().unwrap_or_default();
        if let Some(taints) = edit.taints {
            self.node.taints = taints;
        }
        for (edits, there) in [
            (edit.labels, &mut self.node.labels),
            (edit.annotations, &mut self.node.annotations),
        ] {
            for (key, value) in edits {
                match value {
                    Some(value) => there.insert(key, value),
                    None => there.remove(&key),
                };
            }
        }
        match &plan.job {
            JobStep::None => {}
            JobStep::Create { request, digest } => {
                assert!(self.job.is_none(), "the node has a Job already");
                self.job = Some(JobView {
                    uid: format!("job-{}-{digest}", self.now),
                    request: Some((**request).clone().without_hints()),
                    digest: Some(*digest),
                    without_pod_for: Duration::ZERO,
                    suspended: false,
                    deleting: None,
                    progress: JobProgress::Running,
                    hindrance: None,
                });
            }
            JobStep::Delete(uid) => {
                assert_eq!(self.job.as_ref().map(|job| &job.uid), Some(uid));
                self.job = None;
            }
        }
        (self, plan)
    }

    pub(super) fn stepped(self) -> Self {
        self.step().0
    }

    pub(super) fn job(mut self, progress: JobProgress) -> Self {
        self.job.as_mut().unwrap().progress = progress;
        self
    }

    /// The Job's installer reports. Every requested handler is served or not, as `served` says.
    pub(super) fn answers(mut self, result: Outcome, served: bool, reason: Option<&str>) -> Self {
        let request = self.job.as_ref().unwrap().request.clone().unwrap();
        let mut report = ProvisionReport::new(result);
        report.reason = reason.map(str::to_owned);
        let before = self.host.clone();
        if served && reason.is_none() {
            self.host.clear();
        }
        for shim in &request.shims {
            let handlers = match before.get(&shim.name) {
                Some(kept) if shim.keep => kept,
                None if shim.keep => {
                    report.result = Outcome::Refused;
                    report.handlers.push(HandlerReport {
                        shim: shim.name.clone(),
                        handler: String::new(),
                        path: None,
                        sha256: None,
                        served: false,
                        reason: Some(format!("{} is not installed on this host", shim.name)),
                        remedy: None,
                        waits_for_pods: false,
                    });
                    continue;
                }
                Some(_) | None => &shim.handlers,
            };
            if served && reason.is_none() {
                self.host.insert(shim.name.clone(), handlers.clone());
            }
            for handler in handlers {
                report.handlers.push(HandlerReport {
                    shim: shim.name.clone(),
                    handler: handler.clone(),
                    path: None,
                    sha256: Some(Sha256Digest::from_bytes([0xaa; 32])),
                    served,
                    reason: reason.map(str::to_owned),
                    remedy: None,
                    waits_for_pods: false,
                });
            }
        }
        self.job(JobProgress::Answered(Box::new(report)))
    }

    /// A second later, the Job's installer refuses the change because its restart would end `pods`.
    pub(super) fn refused_for(self, pods: &[EndingPod]) -> Self {
        let mut report = ProvisionReport::new(Outcome::Refused);
        report.ending_pods = EndingPods::of(pods);
        report.reason = Some("a restart of containerd ends pods".to_owned());
        self.later(1).job(JobProgress::Answered(Box::new(report)))
    }

    /// A second later, the Job's installer has carried out what needs no restart. `shim` waits, because its restart would end `pods`.
    pub(super) fn waits_in_part(self, shim: &str, pods: &[EndingPod]) -> Self {
        let mut scene = self.later(1).answers(Outcome::Partial, true, None);
        let report = scene.report();
        report.ending_pods = EndingPods::of(pods);
        report.reason = Some(format!("shim {shim}: a restart of containerd ends pods"));
        for entry in report.handlers.iter_mut().filter(|it| it.shim == shim) {
            (entry.served, entry.sha256) = (false, None);
            entry.reason = Some("a restart of containerd ends pods".to_owned());
            entry.waits_for_pods = true;
        }
        scene
    }

    /// The report of the Job.
    pub(super) fn report(&mut self) -> &mut ProvisionReport {
        let job = self.job.as_mut().unwrap();
        let JobProgress::Answered(report) = &mut job.progress else {
            panic!("no answer")
        };
        report
    }

    /// The report says that the restart has ended `pods`.
    pub(super) fn after_ending(mut self, pods: &[EndingPod]) -> Self {
        let report = self.report();
        report.restarts = 1;
        report.ending_pods = EndingPods::of(pods);
        self
    }

    /// The API server says that these pods have not ended.
    pub(super) fn left(mut self, pods: &[EndingPod]) -> Self {
        self.pods = Some(PodStates {
            left: pods.to_vec(),
            evictable: pods.to_vec(),
            ..PodStates::default()
        });
        self
    }

    /// A second later, a signal ends the Job's installer before it changes the host.
    pub(super) fn interrupted(self) -> Self {
        let mut report = ProvisionReport::new(Outcome::RolledBack);
        report.interrupted = true;
        self.later(1).job(JobProgress::Answered(Box::new(report)))
    }

    /// The report is from this boot of the host.
    pub(super) fn in_boot(mut self, boot_id: &str) -> Self {
        let job = self.job.as_mut().unwrap();
        let JobProgress::Answered(report) = &mut job.progress else {
            panic!("no answer")
        };
        report.boot_id = boot_id.to_owned();
        self
    }

    pub(super) fn provisioned() -> Self {
        scene()
            .annotated()
            .stepped()
            .answers(Outcome::Applied, true, None)
            .stepped()
    }

    pub(super) fn spec(&mut self) -> &mut ShimSpec {
        self.shims[0].spec.as_mut().unwrap()
    }

    /// From now on, the Shim has another location.
    pub(super) fn upgrade(&mut self) {
        let strategy = &mut self.spec().fetch_strategy;
        strategy.anon_http.as_mut().unwrap().location = "https://example.org/b".to_owned();
    }

    pub(super) fn status(&self, shim: usize) -> shim_status::ShimPlan {
        let mut fleet = Fleet::default();
        fleet.put(&self.node.name, self.summary_before());
        self.status_of(shim, &fleet)
    }

    pub(super) fn status_of(&self, shim: usize, fleet: &Fleet) -> shim_status::ShimPlan {
        let shim = &self.shims[shim];
        let cluster = self.cluster();
        let first_binaries = cluster.first_binaries.get(&shim.name);
        shim_status::decide(&shim_status::ObservedShim {
            shim,
            shims: &self.shims,
            first_binaries: first_binaries.map_or(&[], Vec::as_slice),
            tally: fleet.tally(&shim.name),
            classes: &self.classes.iter().collect::<Vec<_>>(),
            rejected: self.rejected.as_ref(),
            now: self.now,
        })
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.node.labels.get(key).map(String::as_str)
    }
}
