//! The table of decisions: for each situation, the exact plan that follows.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use rstest::rstest;
use serde_json::json;

mod annotation;
mod failures;
mod first_binary;
mod nodes;
mod pods;
mod rollout;
mod scene;
mod shims;
mod unsupported;

use scene::{Scene, scene, shim, start};

use super::cluster::job_view::{JobProgress, JobView};
use super::cluster::node_view::AppliedShim;
use super::cluster::shim_view::ShimView;
use super::cluster::slim::Taint;
use super::decide::job_due::backoff;
use super::decide::shim_status::Finalizer;
use super::decide::types::{Hold, JobStep, Plan};
use super::settings::Settings;
use crate::handoff::{
    EndingPod, HandlerReport, OnRestart, OptionValue, Outcome, Proof, ProvisionReport,
};

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
        on_restart: OnRestart::Refuse,
        drain_timeout: None,
        accept_pending_changes: false,
        job_host_pid: false,
        job_allow_link_local: false,
        job_priority_class: None,
        job_labels: BTreeMap::new(),
        job_annotations: BTreeMap::new(),
        job_resources: None,
        job_proxies: BTreeMap::new(),
        startup_taints: vec![crate::names::STARTUP_TAINT.to_owned()],
        reserve_handlers: true,
        log_filter: "info".to_owned(),
        log_format: "text".to_owned(),
        lease_name: "farrier".to_owned(),
        identity: "a".to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        probe_listen: None,
    }
}

#[test]
fn the_rules_of_a_decision_are_told() {
    assert_eq!(scene().explain(), "no Shim; no Job is due");
    let mut asked = scene().annotated();
    assert_eq!(asked.explain(), "spin is wanted; a Job is due, hold None");
    asked.node.ready = false;
    let rules = "spin is wanted; a Job is due once the node is ready and not cordoned";
    assert_eq!(asked.explain(), rules);
    let failed = scene()
        .annotated()
        .stepped()
        .answers(Outcome::Refused, false, Some("no"));
    assert_eq!(
        failed.stepped().explain(),
        "spin is wanted; the next Job is due in 30 s"
    );
    let leaving = Scene::provisioned().no_longer_annotated().stepped();
    assert_eq!(leaving.explain(), "spin leaves; the Job runs");
}

#[test]
fn a_node_that_no_shim_selects_is_not_changed() {
    assert_eq!(scene().decide(), Plan::default());
    let mut other = scene();
    other
        .node
        .annotations
        .insert("kwasm.sh/kwasm-node".to_owned(), "TRUE".to_owned());
    assert_eq!(other.decide(), Plan::default());
}

#[test]
fn an_annotated_node_is_claimed_before_its_job_is_created() {
    let (after, plan) = scene().annotated().step();
    let edit = plan.edit.unwrap();
    assert_eq!(
        edit.labels,
        BTreeMap::from([
            ("farrier.dev/spin".to_owned(), Some("pending".to_owned())),
            ("spin".to_owned(), Some("pending".to_owned())),
        ])
    );
    assert_eq!(
        edit.annotations.keys().collect::<Vec<_>>(),
        ["farrier.dev/applied"]
    );
    let JobStep::Create { request, .. } = plan.job else {
        panic!("no Job")
    };
    assert_eq!(request.shims[0].handlers, ["spin-v2"]);
    assert_eq!(plan.event, None);
    assert!(after.decide().is_empty());
}

#[test]
fn auto_provision_needs_no_annotation() {
    let plan = Scene {
        auto_provision: true,
        ..scene()
    }
    .decide();
    assert!(matches!(plan.job, JobStep::Create { .. }));
}

#[test]
fn handler_labels_are_written_in_the_patch_that_records_the_report() {
    let (after, plan) = scene()
        .annotated()
        .stepped()
        .answers(Outcome::Applied, true, None)
        .step();
    let edit = plan.edit.unwrap();
    assert_eq!(
        edit.labels,
        BTreeMap::from([
            (
                "farrier.dev/spin".to_owned(),
                Some("provisioned".to_owned())
            ),
            ("spin".to_owned(), Some("provisioned".to_owned())),
            (
                "handler.farrier.dev/spin-v2".to_owned(),
                Some("true".to_owned())
            ),
            (
                "kwasm.sh/kwasm-provisioned".to_owned(),
                Some("n1".to_owned())
            ),
        ])
    );
    assert_eq!(edit.annotations.len(), 1);
    assert!(matches!(plan.job, JobStep::Delete(_)));
    assert!(!plan.event.unwrap().warning);
    assert!(after.decide().is_empty());
}

#[test]
fn the_report_of_a_job_with_a_lifetime_is_read_once() {
    let before = Scene {
        keep_jobs: true,
        ..scene().annotated()
    };
    let (after, plan) = before
        .stepped()
        .answers(Outcome::Applied, true, None)
        .step();
    assert_eq!(plan.job, JobStep::None);
    assert!(after.decide().is_empty());
    let (gone, plan) = after.no_longer_annotated().step();
    assert!(
        matches!(plan.job, JobStep::Delete(_)),
        "it makes room for the next"
    );
    assert!(matches!(gone.decide().job, JobStep::Create { .. }));
}

#[test]
fn an_uninstall_waits_for_no_job_that_is_kept() {
    let mut before = Scene {
        keep_jobs: true,
        uninstalling: true,
        ..Scene::provisioned()
    };
    before.shims[0].deleting = true;
    let removed = before.stepped().answers(Outcome::Applied, true, None);
    let (recorded, plan) = removed.step();
    assert_eq!(plan.job, JobStep::None);
    let job = recorded.job.clone();
    let (mut after, plan) = recorded.step();
    assert!(matches!(plan.job, JobStep::Delete(_)), "{plan:?}");
    // A finalizer of others keeps the Job.
    after.job = job.map(|job| JobView {
        deleting: Some(after.now),
        ..job
    });
    let clean = after.stepped();
    assert_eq!(clean.node.applied(), None);
    assert!(clean.node.labels.is_empty(), "{:?}", clean.node.labels);
    assert!(clean.decide().is_empty());
}

#[test]
fn a_removal_removes_the_label_before_the_job_and_leaves_no_annotation() {
    let (after, plan) = Scene::provisioned().no_longer_annotated().step();
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
    assert_eq!(after.label("kwasm.sh/kwasm-provisioned"), None);
    assert_eq!(after.label("farrier.dev/spin"), Some("removing"));
    assert_eq!(after.label("spin"), Some("uninstall"));
    let JobStep::Create { request, .. } = plan.job else {
        panic!("no Job")
    };
    assert!(request.shims.is_empty());
    let after = after.answers(Outcome::Applied, true, None).stepped();
    assert!(after.job.is_none() && after.node.labels.is_empty());
    let after = after.stepped();
    assert!(after.node.annotations.is_empty() && after.decide() == Plan::default());
}

#[test]
fn a_deleted_job_is_reported_once_even_if_the_watch_lags() {
    let answered = Scene::provisioned()
        .no_longer_annotated()
        .stepped()
        .answers(Outcome::Applied, true, None);
    let job = answered.job.clone();
    let (mut after, plan) = answered.step();
    assert!(plan.ended.is_some());
    // The watch has not delivered the deletion of the Job yet.
    after.job = job;
    let (mut after, plan) = after.step();
    assert_eq!((plan.ended, plan.event, plan.edit), (None, None, None));
    after.job = None;
    assert!(after.stepped().decide() == Plan::default());
}

#[test]
fn no_job_is_created_while_too_many_jobs_have_no_pod() {
    let mut waiting_for_pod_slot = scene().annotated();
    waiting_for_pod_slot.hold = Hold::NoPodSlot;
    let plan = waiting_for_pod_slot.decide();
    assert!(plan.is_empty(), "{plan:?}");
    let summary = waiting_for_pod_slot.summary();
    assert!(summary.waiting_for_pod_slot && !summary.without_pod);
    waiting_for_pod_slot.hold = Hold::None;
    assert!(waiting_for_pod_slot.summary().without_pod);
    let mut leaving = Scene::provisioned().no_longer_annotated();
    leaving.hold = Hold::NoPodSlot;
    let leaving = leaving.stepped();
    assert!(leaving.job.is_none());
    assert_eq!(leaving.label("handler.farrier.dev/spin-v2"), None);
}

#[test]
fn no_job_is_created_while_more_shims_are_expected() {
    let mut scene = scene().annotated();
    scene.hold = Hold::Settling(Duration::from_millis(300));
    let plan = scene.decide();
    assert!(plan.is_empty());
    assert_eq!(plan.look_again, Some(Duration::from_millis(300)));
}
