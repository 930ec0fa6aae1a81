//! Changes of a node: another host, a reboot, another runtime, cordons, taints, and the handlers that the kubelet lists.

use super::*;
use crate::handoff::Sha256Digest;
use crate::names;

#[test]
fn a_handler_that_the_kubelet_does_not_list_gets_no_label() {
    let mut scene = scene()
        .annotated()
        .stepped()
        .answers(Outcome::Applied, true, None);
    scene.node.runtime_handlers = Some(["runc".to_owned()].into());
    let mut after = scene.stepped();
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
    assert_eq!(after.label("farrier.dev/spin"), Some("pending"));
    assert!(after.decide().is_empty());
    after.node.runtime_handlers = Some(["runc".to_owned(), "spin-v2".to_owned()].into());
    let after = after.stepped();
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
    assert!(after.decide().is_empty());
}

#[test]
fn a_handler_that_the_kubelet_does_not_list_is_tried_again_after_a_wait() {
    let mut scene = scene()
        .annotated()
        .stepped()
        .answers(Outcome::Applied, true, None);
    scene.node.runtime_handlers = Some(["runc".to_owned()].into());
    let after = scene.stepped().later(119);
    assert_eq!(after.decide().job, JobStep::None);
    assert!(matches!(
        after.later(2).decide().job,
        JobStep::Create { .. }
    ));
}

#[test]
fn a_recreated_node_of_the_same_name_is_provisioned_again() {
    let mut scene = Scene::provisioned();
    scene.node.uid = "another".to_owned();
    let (after, plan) = scene.step();
    assert!(matches!(plan.job, JobStep::Create { .. }));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
    assert_eq!(after.label("farrier.dev/spin"), Some("pending"));
}

#[test]
fn another_host_with_the_same_node_object_is_provisioned_again() {
    let mut scene = Scene::provisioned();
    scene.node.machine_id = "another".to_owned();
    let (after, plan) = scene.step();
    assert!(matches!(plan.job, JobStep::Create { .. }));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
}

#[test]
fn a_rebooted_node_is_verified_and_keeps_its_labels() {
    let mut scene = Scene::provisioned();
    scene.node.boot_id = "another".to_owned();
    let (after, plan) = scene.step();
    assert!(matches!(plan.job, JobStep::Create { .. }));
    assert!(plan.edit.unwrap().labels.is_empty());
    let after = after.answers(Outcome::Unchanged, true, None).stepped();
    assert!(after.decide().is_empty());
}

#[test]
fn a_node_with_a_name_too_long_for_a_label_gets_no_kwasm_label() {
    let mut scene = scene().annotated();
    scene.node.name = "n".repeat(64);
    let after = scene
        .stepped()
        .answers(Outcome::Applied, true, None)
        .stepped();
    assert_eq!(after.label("farrier.dev/spin"), Some("provisioned"));
    assert_eq!(after.label("kwasm.sh/kwasm-provisioned"), None);
}

#[test]
fn a_node_without_a_reported_platform_is_not_changed() {
    let mut new = scene().annotated();
    new.node.arch = String::new();
    assert_eq!(new.decide(), Plan::default());
    let mut known = Scene::provisioned();
    known.node.os = String::new();
    assert!(known.decide().is_empty());
}

#[test]
fn a_changed_runtime_is_verified_unless_an_older_release_recorded_none() {
    let mut scene = Scene::provisioned();
    scene.node.runtime = "containerd://2.2.0".to_owned();
    let plan = scene.decide();
    assert!(matches!(plan.job, JobStep::Create { .. }));
    assert!(plan.edit.unwrap().labels.is_empty());
    let mut applied = scene.node.applied().unwrap();
    applied.runtime = String::new();
    let text = serde_json::to_string(&applied).unwrap();
    let key = names::APPLIED_ANNOTATION.to_owned();
    scene.node.annotations.insert(key, text);
    assert!(scene.decide().is_empty());
}

#[test]
fn a_node_gets_no_job_while_it_is_not_ready() {
    let mut scene = scene().annotated();
    scene.node.ready = false;
    let mut waiting = scene.stepped();
    assert!(waiting.job.is_none());
    waiting.node.ready = true;
    assert!(matches!(waiting.decide().job, JobStep::Create { .. }));
    let mut leaving = Scene::provisioned().no_longer_annotated();
    leaving.node.ready = false;
    let leaving = leaving.stepped();
    assert!(leaving.job.is_none());
    assert_eq!(leaving.label("handler.farrier.dev/spin-v2"), None);
}

#[test]
fn a_cordoned_node_gets_no_new_shim_but_shims_are_removed_from_it() {
    let mut scene = scene().annotated();
    scene.node.cordoned = true;
    assert_eq!(scene.decide().job, JobStep::None);
    let mut leaving = Scene::provisioned().no_longer_annotated();
    leaving.node.cordoned = true;
    assert!(matches!(leaving.decide().job, JobStep::Create { .. }));
}

fn taint(key: &str) -> Taint {
    Taint {
        key: key.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    }
}

#[test]
fn only_startup_taints_are_removed_and_only_once_everything_is_served() {
    let mut scene = scene().annotated();
    scene.node.taints = vec![
        taint("theirs"),
        taint("farrier.dev/not-ready"),
        taint("startup-taint.cluster-autoscaler.kubernetes.io/farrier"),
        taint("startup-taint.cluster-autoscaler.kubernetes.io/other"),
    ];
    let claimed = scene.stepped();
    assert_eq!(claimed.node.taints.len(), 4);
    let failed = claimed.answers(Outcome::Refused, false, Some("no"));
    let failed = failed.stepped();
    assert_eq!(failed.node.taints.len(), 4);
    let served = failed
        .later(30)
        .stepped()
        .answers(Outcome::Applied, true, None)
        .stepped();
    let others = [
        taint("theirs"),
        taint("startup-taint.cluster-autoscaler.kubernetes.io/other"),
    ];
    assert_eq!(served.node.taints, others);
    assert!(served.decide().is_empty());
}

#[test]
fn a_node_that_no_shim_selects_loses_the_startup_taint_at_once() {
    let mut scene = scene();
    scene.node.taints = vec![taint("farrier.dev/not-ready")];
    assert_eq!(scene.stepped().node.taints, []);
    let mut unknown = scene::scene().annotated();
    unknown.node.taints = vec![taint("farrier.dev/not-ready")];
    unknown.node.os = String::new();
    assert_eq!(unknown.stepped().node.taints.len(), 1);
}

#[test]
fn a_host_without_events_is_checked_again_within_thirty_hours() {
    let settled = Scene::provisioned().later(18 * 3_600 - 1);
    let plan = settled.decide();
    assert!(plan.is_empty());
    let rest = plan.look_again.unwrap();
    assert!(rest <= Duration::from_hours(12), "{rest:?}");
    let (asked, plan) = settled.later(12 * 3_600 + 1).step();
    assert!(matches!(plan.job, JobStep::Create { .. }));
    assert!(plan.edit.unwrap().labels.is_empty());
    let (after, plan) = asked.answers(Outcome::Unchanged, true, None).step();
    assert_eq!(
        plan.event, None,
        "a regular check without a change publishes no Event"
    );
    assert!(after.decide().is_empty());
    let none = scene().later(48 * 3_600).decide();
    assert_eq!(none, Plan::default(), "a node without shims is not checked");
}

#[test]
fn a_report_from_before_a_reboot_is_verified() {
    let asked = scene().annotated().stepped();
    let request = asked.job.as_ref().unwrap().request.clone().unwrap();
    let mut answered = asked.answers(Outcome::Applied, true, None).in_boot("boot");
    answered.node.boot_id = "another".to_owned();
    let read = answered.stepped().later(30);
    let (again, plan) = read.step();
    let JobStep::Create { request: asked, .. } = plan.job else {
        panic!("no Job")
    };
    assert_eq!(asked.digest(), request.digest());
    // If host and kubelet always report different boot IDs, the Jobs still end.
    let again = again
        .answers(Outcome::Unchanged, true, None)
        .in_boot("boot");
    assert_eq!(again.stepped().later(3_600).decide().job, JobStep::None);
}

/// The kubelet writes the status of its node once more.
fn heartbeat(mut scene: Scene, second: i64) -> Scene {
    scene.node.heartbeat = Some(start() + SignedDuration::from_secs(second));
    scene
}

/// A report says that `spin-v2` is served, and the kubelet does not list it. The Job may be the second one after a failure.
fn not_listed(second: bool) -> Scene {
    let mut scene = heartbeat(scene().annotated(), 0).stepped();
    if second {
        let failed = scene.answers(Outcome::RolledBack, false, Some("interrupted"));
        scene = failed.stepped().later(30).stepped();
    }
    scene = scene.answers(Outcome::Applied, true, None);
    scene.node.runtime_handlers = Some(["runc".to_owned()].into());
    scene.report().restarts = 1;
    scene.stepped()
}

#[rstest]
fn a_handler_that_the_kubelet_does_not_list_counts_from_its_second_write_after_the_report(
    #[values(false, true)] second: bool,
) {
    let reported = not_listed(second);
    assert_eq!(reported.label("farrier.dev/spin"), Some("pending"));
    assert_eq!(reported.status(0).status.unwrap().nodes_failed, 0);
    // However much time passes, and whatever else changes.
    let (reported, plan) = reported.later(90).step();
    assert_eq!(plan.event, None);
    let (first, plan) = heartbeat(reported, 10).step();
    assert_eq!(plan.event, None);
    assert_eq!(first.label("farrier.dev/spin"), Some("pending"));
    assert_eq!(first.stepped().decide().event, None, "the same write");
    let (listed, plan) = {
        let mut listed = heartbeat(not_listed(second), 10).stepped();
        listed.node.runtime_handlers = Some(["spin-v2".to_owned()].into());
        heartbeat(listed, 20).step()
    };
    assert_eq!(plan.event, None);
    assert_eq!(listed.label("farrier.dev/spin"), Some("provisioned"));
    assert_eq!(listed.node.applied().unwrap().unlisted, None);
}

#[test]
fn a_handler_that_the_kubelet_never_lists_is_a_failure_until_it_is_listed() {
    let (after, plan) = heartbeat(heartbeat(not_listed(false), 10).stepped(), 20).step();
    let event = plan.event.unwrap();
    assert!(
        event.warning && event.note.contains("does not list it"),
        "{event:?}"
    );
    assert_eq!(after.label("farrier.dev/spin"), Some("failed"));
    // A Job that finds the host as it was doesn't let the Shim look well, and further writes change nothing.
    let again = after.later(30).stepped();
    let again = again.answers(Outcome::Unchanged, true, None).stepped();
    assert_eq!(again.label("farrier.dev/spin"), Some("failed"));
    let mut later = heartbeat(again, 30);
    assert_eq!(later.decide().edit, None);
    later.node.runtime_handlers = Some(["spin-v2".to_owned()].into());
    let (listed, plan) = later.step();
    assert_eq!(listed.label("farrier.dev/spin"), Some("provisioned"));
    assert_eq!(plan.event.unwrap().reason, "Provisioned");
    // A restart of containerd begins the count anew.
    let mut restarted = listed.later(3_600).stepped();
    restarted = restarted.answers(Outcome::Applied, true, None);
    restarted.report().restarts = 1;
    restarted.node.runtime_handlers = Some(["runc".to_owned()].into());
    let restarted = restarted.stepped();
    assert_eq!(
        restarted.node.applied().unwrap().unlisted.unwrap().writes,
        0
    );
    assert_eq!(restarted.label("farrier.dev/spin"), Some("pending"));
}

const KWASM: &str = "kwasm.sh/kwasm-provisioned";

#[test]
fn an_upgrade_keeps_kwasms_label() {
    let mut scene = Scene::provisioned();
    scene.upgrade();
    let upgrading = scene.stepped();
    assert_eq!(upgrading.label("farrier.dev/spin"), Some("pending"));
    assert_eq!(upgrading.label(KWASM), Some("n1"));
    let rolled_back = upgrading.answers(Outcome::RolledBack, true, Some("no start"));
    assert_eq!(rolled_back.stepped().label(KWASM), Some("n1"));
}

#[test]
fn kwasms_label_stays_until_a_report_contradicts_it() {
    let mut moved = scene().annotated();
    moved.node.labels.insert(KWASM.to_owned(), "n1".to_owned());
    let claimed = moved.stepped();
    assert_eq!(claimed.label(KWASM), Some("n1"));
    let settled = claimed.stepped();
    assert_eq!(settled.label(KWASM), Some("n1"));
    let failed = settled.answers(Outcome::Refused, false, Some("no containerd"));
    assert_eq!(failed.stepped().label(KWASM), None);
    let mut other_host = Scene::provisioned();
    other_host.node.machine_id = "another".to_owned();
    assert_eq!(other_host.stepped().label(KWASM), None);
}

#[test]
fn a_binary_on_the_node_is_not_fetched_again_unless_it_is_lost() {
    let asks = |scene: &Scene| {
        let JobStep::Create { request, .. } = scene.decide().job else {
            panic!("no Job")
        };
        request.shims[0].present
    };
    assert_eq!(asks(&scene().annotated()), None);
    let mut rebooted = Scene::provisioned();
    rebooted.node.boot_id = "another".to_owned();
    assert_eq!(asks(&rebooted), Some(Sha256Digest::from_bytes([0xaa; 32])));
    let lost =
        rebooted
            .later(1)
            .stepped()
            .answers(Outcome::Refused, false, Some("its binary is gone"));
    assert_eq!(asks(&lost.stepped().later(30)), None);
    let mut another = Scene::provisioned();
    another.upgrade();
    assert_eq!(asks(&another), None);
}
