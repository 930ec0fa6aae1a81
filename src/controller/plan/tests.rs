//! The table of decisions, each row a sentence: what is seen, exactly what follows, and that nothing else does.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use rstest::rstest;
use serde_json::json;

mod rollout;
mod scene;

use scene::{Scene, scene, shim, start};

use super::*;
use crate::controller::need::backoff;
use crate::controller::objects::Taint;
use crate::controller::observed::{AppliedShim, ShimView};
use crate::controller::status::Finalizer;
use crate::handoff::{HandlerReport, OptionValue, Outcome, ProvisionReport};

#[test]
fn a_node_that_nobody_wants_anything_of_is_left_alone() {
    assert_eq!(scene().decide(), Plan::default());
    let mut other = scene();
    other
        .node
        .annotations
        .insert("kwasm.sh/kwasm-node".to_owned(), "TRUE".to_owned());
    assert_eq!(other.decide(), Plan::default());
}

#[test]
fn an_annotated_node_is_claimed_before_its_job_is_made() {
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
    let JobStep::Create(request) = plan.job else {
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
    assert!(matches!(plan.job, JobStep::Create(_)));
}

#[test]
fn a_shim_without_our_finalizer_touches_no_node() {
    let mut scene = scene().annotated();
    scene.shims[0].held = false;
    assert_eq!(scene.decide(), Plan::default());
}

#[test]
fn what_is_served_is_advertised_in_the_patch_that_keeps_the_report() {
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
fn a_kept_job_is_read_once() {
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
    assert!(matches!(gone.decide().job, JobStep::Create(_)));
}

#[test]
fn a_handler_that_the_kubelet_denies_is_not_advertised() {
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
fn a_handler_that_is_never_listed_is_tried_again_after_a_while() {
    let mut scene = scene()
        .annotated()
        .stepped()
        .answers(Outcome::Applied, true, None);
    scene.node.runtime_handlers = Some(["runc".to_owned()].into());
    let after = scene.stepped().later(119);
    assert_eq!(after.decide().job, JobStep::None);
    assert!(matches!(after.later(2).decide().job, JobStep::Create(_)));
}

#[test]
fn removal_withdraws_the_label_before_the_job_and_leaves_no_trace() {
    let (after, plan) = Scene::provisioned().no_longer_annotated().step();
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
    assert_eq!(after.label("kwasm.sh/kwasm-provisioned"), None);
    assert_eq!(after.label("farrier.dev/spin"), Some("removing"));
    assert_eq!(after.label("spin"), Some("uninstall"));
    let JobStep::Create(request) = plan.job else {
        panic!("no Job")
    };
    assert!(request.shims.is_empty());
    let after = after.answers(Outcome::Applied, true, None).stepped();
    assert!(after.job.is_none() && after.node.labels.is_empty());
    let after = after.stepped();
    assert!(after.node.annotations.is_empty() && after.decide() == Plan::default());
}

#[test]
fn a_job_that_goes_slowly_is_read_and_counted_once() {
    let answered = Scene::provisioned()
        .no_longer_annotated()
        .stepped()
        .answers(Outcome::Applied, true, None);
    let job = answered.job.clone();
    let (mut after, plan) = answered.step();
    assert!(plan.ended.is_some());
    // The watch has yet to bring that the Job is gone.
    after.job = job;
    let (mut after, plan) = after.step();
    assert_eq!((plan.ended, plan.event, plan.edit), (None, None, None));
    after.job = None;
    assert!(after.stepped().decide() == Plan::default());
}

#[test]
fn what_is_still_in_use_stays_removing_and_is_tried_again() {
    let scene = Scene::provisioned().no_longer_annotated().stepped();
    let mut report = ProvisionReport::new(Outcome::Partial);
    report.handlers.push(HandlerReport {
        shim: "spin".to_owned(),
        handler: "spin-v2".to_owned(),
        path: None,
        sha256: None,
        served: true,
        reason: Some("a pod runs on it".to_owned()),
    });
    let (after, plan) = scene.job(JobProgress::Answered(Box::new(report))).step();
    assert_eq!(after.label("farrier.dev/spin"), Some("removing"));
    assert!(plan.event.unwrap().note.contains("a pod runs on it"));
    assert_eq!(after.decide().job, JobStep::None);
    assert!(matches!(after.later(31).decide().job, JobStep::Create(_)));
}

#[rstest]
#[case::wrong_digest(Outcome::Partial)]
#[case::refused(Outcome::Refused)]
#[case::rolled_back(Outcome::RolledBack)]
#[case::broken(Outcome::Broken)]
fn a_failure_is_a_label_an_event_and_a_wait(#[case] result: Outcome) {
    let (after, plan) = scene()
        .annotated()
        .stepped()
        .answers(result, false, Some("wrong digest"))
        .step();
    assert_eq!(after.label("farrier.dev/spin"), Some("failed"));
    assert_eq!(after.label("spin"), Some("failed"));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
    let event = plan.event.unwrap();
    assert!(event.warning && event.note.contains("wrong digest"));
    assert_eq!(plan.look_again, Some(Duration::from_secs(30)));
    let early = after.later(29);
    assert!(early.decide().is_empty(), "no hot loop");
    assert!(matches!(early.later(1).decide().job, JobStep::Create(_)));
}

#[test]
fn waits_double_up_to_ten_minutes() {
    let waits: Vec<u64> = (1..=7)
        .map(|attempts| backoff(attempts).as_secs())
        .collect();
    assert_eq!(waits, [30, 60, 120, 240, 480, 600, 600]);
    assert_eq!(backoff(u32::MAX).as_secs(), 600);
}

#[test]
fn the_second_failure_waits_longer_than_the_first() {
    let first = scene()
        .annotated()
        .stepped()
        .answers(Outcome::Refused, false, Some("no"))
        .stepped();
    let second = first
        .later(30)
        .stepped()
        .answers(Outcome::Refused, false, Some("no"));
    assert_eq!(second.decide().look_again, Some(Duration::from_mins(1)));
}

#[rstest]
#[case(JobProgress::Stuck("ImagePullBackOff".to_owned()), 0)]
#[case(JobProgress::Silent("DeadlineExceeded".to_owned()), 0)]
#[case(JobProgress::NoPod, 60)]
fn a_job_that_says_nothing_is_a_failure_with_a_sentence(
    #[case] progress: JobProgress,
    #[case] age: i64,
) {
    let (after, plan) = scene()
        .annotated()
        .stepped()
        .job(progress)
        .later(age)
        .step();
    assert_eq!(after.label("farrier.dev/spin"), Some("failed"));
    assert!(plan.event.unwrap().warning);
    assert!(matches!(plan.job, JobStep::Delete(_)));
}

#[test]
fn a_young_job_without_a_pod_is_waited_for() {
    let plan = scene()
        .annotated()
        .stepped()
        .job(JobProgress::NoPod)
        .later(10)
        .decide();
    assert!(plan.is_empty());
    assert_eq!(plan.look_again, Some(Duration::from_secs(50)));
}

#[test]
fn a_failed_upgrade_keeps_the_old_version_advertised() {
    let mut scene = Scene::provisioned();
    scene
        .spec()
        .fetch_strategy
        .anon_http
        .as_mut()
        .unwrap()
        .location = "https://example.org/b".to_owned();
    let upgrading = scene.stepped();
    assert_eq!(upgrading.label("handler.farrier.dev/spin-v2"), Some("true"));
    assert_eq!(upgrading.label("farrier.dev/spin"), Some("pending"));
    let after = upgrading
        .answers(Outcome::Partial, true, Some("wrong digest"))
        .stepped();
    assert_eq!(after.label("farrier.dev/spin"), Some("failed"));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
    assert!(after.decide().is_empty());
}

#[test]
fn a_report_on_an_older_request_is_no_answer_for_todays() {
    let mut scene = scene().annotated().stepped();
    scene
        .spec()
        .fetch_strategy
        .anon_http
        .as_mut()
        .unwrap()
        .location = "https://example.org/b".to_owned();
    let after = scene.answers(Outcome::Applied, true, None).stepped();
    assert_eq!(after.label("farrier.dev/spin"), Some("pending"));
    assert!(matches!(after.decide().job, JobStep::Create(_)));
}

#[test]
fn a_node_made_anew_under_its_old_name_starts_over() {
    let mut scene = Scene::provisioned();
    scene.node.uid = "another".to_owned();
    let (after, plan) = scene.step();
    assert!(matches!(plan.job, JobStep::Create(_)));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
    assert_eq!(after.label("farrier.dev/spin"), Some("pending"));
}

#[test]
fn another_host_under_the_same_node_object_is_provisioned_anew() {
    let mut scene = Scene::provisioned();
    scene.node.machine_id = "another".to_owned();
    let (after, plan) = scene.step();
    assert!(matches!(plan.job, JobStep::Create(_)));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
}

#[test]
fn a_reboot_is_verified_without_withdrawing_anything() {
    let mut scene = Scene::provisioned();
    scene.node.boot_id = "another".to_owned();
    let (after, plan) = scene.step();
    assert!(matches!(plan.job, JobStep::Create(_)));
    assert!(plan.edit.unwrap().labels.is_empty());
    let after = after.answers(Outcome::Unchanged, true, None).stepped();
    assert!(after.decide().is_empty());
}

#[test]
fn a_paused_shim_keeps_what_is_there_whatever_its_spec_says() {
    let mut scene = Scene::provisioned();
    scene.spec().paused = true;
    scene
        .spec()
        .fetch_strategy
        .anon_http
        .as_mut()
        .unwrap()
        .location = "https://example.org/b".to_owned();
    assert!(scene.decide().is_empty());
}

#[test]
fn a_shim_without_artifact_for_the_platform_fails_without_a_job() {
    let mut scene = scene().annotated();
    scene.spec().fetch_strategy = serde_json::from_value(json!({"platforms": [
        {"os": "linux", "arch": "arm64", "location": "https://example.org/a"}]}))
    .unwrap();
    let (after, plan) = scene.step();
    assert_eq!(plan.job, JobStep::None);
    assert!(plan.event.unwrap().note.contains("linux/amd64"));
    assert_eq!(after.label("farrier.dev/spin"), Some("failed"));
    assert!(after.decide().is_empty());
}

#[test]
fn a_users_shim_beats_a_default_one_to_a_handler() {
    let mut scene = scene().annotated();
    scene.shims.push(shim("default-spin", "spin-v2"));
    scene.shims[0].created = start() + SignedDuration::from_secs(60);
    let (after, plan) = scene.step();
    let JobStep::Create(request) = plan.job else {
        panic!("no Job")
    };
    assert_eq!(
        request
            .shims
            .iter()
            .map(|shim| shim.name.as_str())
            .collect::<Vec<_>>(),
        ["spin"]
    );
    assert_eq!(after.label("farrier.dev/default-spin"), None);
    let loser = after.status(1);
    let degraded = loser
        .status
        .unwrap()
        .conditions
        .into_iter()
        .find(|condition| condition.type_ == "Degraded")
        .unwrap();
    assert_eq!(
        (degraded.status.as_str(), degraded.reason.as_str()),
        ("True", "Conflict")
    );
    assert!(degraded.message.contains("belongs to Shim spin"));
}

#[test]
fn a_bare_label_that_a_shim_selects_on_or_that_is_anothers_is_never_changed() {
    let mut scene = scene();
    scene.spec().annotation_selector = None;
    scene.spec().node_selector = Some(BTreeMap::from([("spin".to_owned(), "true".to_owned())]));
    scene
        .node
        .labels
        .insert("spin".to_owned(), "true".to_owned());
    assert_eq!(scene.stepped().label("spin"), Some("true"));
    let mut foreign = Scene::provisioned();
    foreign
        .node
        .labels
        .insert("spin".to_owned(), "mine".to_owned());
    assert_eq!(
        foreign.no_longer_annotated().stepped().label("spin"),
        Some("mine")
    );
}

#[test]
fn a_node_name_too_long_for_a_label_value_goes_without_kwasms() {
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
fn a_deleted_shim_is_let_go_once_no_node_carries_it() {
    let mut scene = Scene::provisioned();
    scene.shims[0].deleting = true;
    let finalizer = |scene: &Scene| scene.status(0).finalizer;
    assert_eq!(finalizer(&scene), Finalizer::Keep);
    let mut scene = scene.stepped();
    assert_eq!(finalizer(&scene), Finalizer::Keep);
    let mut forced = scene.shims.clone();
    forced[0].forced = true;
    let shims = std::mem::replace(&mut scene.shims, forced);
    assert_eq!(finalizer(&scene), Finalizer::Release);
    scene.shims = shims;
    let scene = scene.answers(Outcome::Applied, true, None).stepped();
    assert_eq!(finalizer(&scene), Finalizer::Release);
}

#[test]
fn a_status_is_written_once() {
    let mut scene = Scene::provisioned();
    let status = scene.status(0).status.unwrap();
    assert_eq!(
        (status.nodes, status.nodes_ready, status.nodes_failed),
        (1, 1, 0)
    );
    scene.shims[0].status = Some(status);
    assert_eq!(scene.later(60).status(0).status, None);
}

#[test]
fn an_annotation_that_cannot_be_read_is_no_knowledge() {
    let mut scene = Scene::provisioned();
    scene
        .node
        .annotations
        .insert("farrier.dev/applied".to_owned(), "{".to_owned());
    assert!(matches!(scene.decide().job, JobStep::Create(_)));
}

#[test]
fn what_a_rolled_back_removal_left_is_still_known() {
    let after = Scene::provisioned()
        .no_longer_annotated()
        .stepped()
        .answers(
            Outcome::RolledBack,
            true,
            Some("containerd did not come back"),
        )
        .stepped();
    assert!(
        after
            .node
            .applied()
            .unwrap()
            .shims
            .get("spin")
            .is_some_and(|shim: &AppliedShim| shim.request.is_some())
    );
    assert_eq!(after.label("farrier.dev/spin"), Some("removing"));
}

#[test]
fn a_renamed_handler_is_withdrawn_before_the_new_one_is_served() {
    let mut scene = Scene::provisioned();
    scene.spec().runtime_class.handler = "spin-v3".to_owned();
    let (after, plan) = scene.step();
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
    assert_eq!(after.label("handler.farrier.dev/spin-v3"), None);
    assert!(matches!(plan.job, JobStep::Create(_)));
    let after = after.answers(Outcome::Applied, true, None).stepped();
    assert_eq!(after.label("handler.farrier.dev/spin-v3"), Some("true"));
    assert!(after.stepped().decide().is_empty());
}

#[test]
fn a_shim_that_lost_our_finalizer_stays_where_it_is() {
    let mut scene = Scene::provisioned();
    scene.shims[0].held = false;
    assert!(scene.decide().is_empty());
    assert_eq!(scene.status(0).finalizer, Finalizer::Add);
}

#[test]
fn a_shim_that_cannot_be_read_stays_where_it_is_and_nowhere_else() {
    let unreadable = Err("unknown variant `riscv64`".to_owned());
    let mut there = Scene::provisioned();
    there.shims[0].spec = unreadable.clone();
    assert!(there.decide().is_empty());
    let status = there.status(0).status.unwrap();
    assert_eq!((status.nodes, status.nodes_ready), (1, 1));
    let degraded = &status.conditions[2];
    assert_eq!(
        (degraded.status.as_str(), degraded.reason.as_str()),
        ("True", "Unusable")
    );
    assert!(degraded.message.contains("riscv64"));
    assert_eq!(
        there.later(60).status(0).status.unwrap(),
        status,
        "no hot loop"
    );

    let mut elsewhere = scene().annotated();
    elsewhere.shims[0].spec = unreadable;
    assert_eq!(elsewhere.decide(), Plan::default());
    elsewhere.shims[0].deleting = true;
    assert_eq!(elsewhere.status(0).finalizer, Finalizer::Release);
}

#[test]
fn no_bare_label_is_touched_while_a_shim_that_may_select_on_it_cannot_be_read() {
    let mut scene = scene().annotated();
    let mut other = shim("other", "other");
    other.spec = Err("newer".to_owned());
    scene.shims.push(other);
    let after = scene.stepped();
    assert_eq!(after.label("farrier.dev/spin"), Some("pending"));
    assert_eq!(after.label("spin"), None);
}

#[test]
fn a_bare_label_without_ours_beside_it_is_anothers() {
    let mut scene = scene();
    scene.spec().paused = true;
    let mut scene = scene.annotated();
    scene
        .node
        .labels
        .insert("spin".to_owned(), "pending".to_owned());
    assert_eq!(scene.decide(), Plan::default());
}

#[test]
fn a_node_that_has_not_said_what_it_is_is_left_as_it_is() {
    let mut new = scene().annotated();
    new.node.arch = String::new();
    assert_eq!(new.decide(), Plan::default());
    let mut known = Scene::provisioned();
    known.node.os = String::new();
    assert!(known.decide().is_empty());
}

#[test]
fn a_job_that_the_api_server_does_not_take_is_told_once_and_tried_again() {
    let claimed = scene().annotated().stepped();
    let refused = Scene {
        job: None,
        refused: Some("exceeded quota"),
        ..claimed
    };
    let (mut after, plan) = refused.step();
    assert!(plan.event.unwrap().note.contains("exceeded quota"));
    assert_eq!(plan.job, JobStep::None);
    assert_eq!(after.label("farrier.dev/spin"), Some("failed"));
    after.refused = None;
    let status = after.status(0).status.unwrap();
    assert!(status.conditions[2].message.contains("n1: exceeded quota"));
    assert!(after.decide().is_empty());
    assert!(matches!(after.later(30).decide().job, JobStep::Create(_)));
}

#[test]
fn a_job_without_a_request_for_this_node_object_is_no_answer() {
    let mut scene = scene()
        .annotated()
        .stepped()
        .answers(Outcome::Applied, true, None);
    scene.job.as_mut().unwrap().request = None;
    let (after, plan) = scene.step();
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
    assert_eq!(after.label("farrier.dev/spin"), Some("failed"));
    assert!(matches!(plan.job, JobStep::Delete(_)));
}

#[test]
fn a_job_that_a_finalizer_holds_is_told_once() {
    let mut scene = Scene::provisioned().no_longer_annotated().stepped();
    scene.job.as_mut().unwrap().deleting = Some(start());
    let plan = scene.decide();
    assert!(plan.is_empty());
    assert_eq!(plan.look_again, Some(Duration::from_mins(1)));
    let (mut after, plan) = scene.later(60).step();
    assert!(plan.event.unwrap().note.contains("finalizers"));
    assert!(after.decide().is_empty());
    after.job = None;
    assert!(matches!(after.later(60).decide().job, JobStep::Create(_)));
}

#[test]
fn a_report_that_names_what_can_be_no_label_writes_none() {
    let scene = Scene::provisioned().no_longer_annotated().stepped();
    let mut report = ProvisionReport::new(Outcome::Partial);
    for (shim, handler) in [("../../etc", "a"), ("a", "b\nc"), (&*"x".repeat(64), "a")] {
        report.handlers.push(HandlerReport {
            shim: shim.to_owned(),
            handler: handler.to_owned(),
            path: None,
            sha256: Some("\u{1b}[31m".to_owned()),
            served: true,
            reason: None,
        });
    }
    let (after, _) = scene.job(JobProgress::Answered(Box::new(report))).step();
    assert!(after.node.labels.is_empty(), "{:?}", after.node.labels);
    assert!(after.node.applied().unwrap().shims.is_empty());
}

#[rstest]
#[case("{")]
#[case(r#"{"nodeUid":"another"}"#)]
#[case(r#"{"nodeUid":"node-uid","shims":{"a b":{}}}"#)]
#[case(r#"{"nodeUid":"node-uid","shims":{"spin":{"handlers":{"../x":true}}}}"#)]
#[case(r#"{"nodeUid":"node-uid","shims":{"spin":{"request":{"name":"../x","handlers":[],"location":""}}}}"#)]
#[case(r#"{"nodeUid":"node-uid","attempts":-1}"#)]
fn a_summary_that_nobody_of_ours_wrote_is_no_knowledge(#[case] text: &str) {
    let mut scene = Scene::provisioned();
    scene
        .node
        .annotations
        .insert("farrier.dev/applied".to_owned(), text.to_owned());
    let (after, plan) = scene.step();
    assert!(matches!(plan.job, JobStep::Create(_)));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
}

#[test]
fn an_attempt_in_a_far_future_is_not_waited_for() {
    let mut scene = scene()
        .annotated()
        .stepped()
        .answers(Outcome::Refused, false, Some("no"))
        .stepped();
    let mut applied = scene.node.applied().unwrap();
    applied.at = "9000-01-01T00:00:00Z".parse().unwrap();
    let text = serde_json::to_string(&applied).unwrap();
    scene
        .node
        .annotations
        .insert("farrier.dev/applied".to_owned(), text);
    assert!(matches!(scene.decide().job, JobStep::Create(_)));
}

#[test]
fn shims_that_are_too_much_for_one_node_fail_one_by_one() {
    let mut scene = scene().annotated();
    scene.shims = (0..200)
        .map(|n| {
            let mut shim = shim(&format!("spin-{n}"), &format!("spin-{n}"));
            let options = BTreeMap::from([("option".to_owned(), "x".repeat(1_000))]);
            shim.spec.as_mut().unwrap().containerd_runtime_options = Some(options);
            shim
        })
        .collect();
    let (after, plan) = scene.step();
    let JobStep::Create(request) = plan.job else {
        panic!("no Job")
    };
    assert!((30..100).contains(&request.shims.len()));
    assert!(request.to_json().len() < 128 * 1024);
    let failed = after
        .node
        .labels
        .iter()
        .filter(|(key, value)| key.starts_with("farrier.dev/") && value.as_str() == "failed");
    assert_eq!(failed.count(), 200 - request.shims.len());
    assert!(plan.event.unwrap().note.len() <= 1_000);
}

#[test]
fn what_people_read_holds_nothing_that_a_terminal_acts_on() {
    let text = cut("a\u{1b}[2Jb\nc\u{202e}d\u{85}e\u{2028}f", 100);
    assert_eq!(text, "a [2Jb c d e f");
    assert_eq!(cut(&"ü".repeat(1_000), 99).len(), 99);
}

#[test]
fn a_request_reserves_the_handlers_of_all_shims_with_their_options() {
    let mut scene = scene().annotated();
    let mut other = shim("wasmtime", "wasmtime");
    let spec = other.spec.as_mut().unwrap();
    spec.annotation_selector = Some(BTreeMap::from([("a".to_owned(), "b".to_owned())]));
    spec.handler_aliases = vec!["wasmtime-v1".to_owned()];
    let options = BTreeMap::from([("SystemdCgroup".to_owned(), "true".to_owned())]);
    spec.containerd_runtime_options = Some(options);
    scene.shims.push(other);
    let JobStep::Create(request) = scene.decide().job else {
        panic!("no Job")
    };
    assert_eq!(request.reserve, ["wasmtime", "wasmtime-v1"]);
    assert_eq!(
        request.reserve_options["wasmtime-v1"]["SystemdCgroup"],
        OptionValue::Boolean(true)
    );
}

#[test]
fn a_shim_that_a_node_does_not_carry_is_no_reason_to_ask_it_again() {
    let mut scene = Scene::provisioned();
    let mut other = shim("wasmtime", "wasmtime");
    let spec = other.spec.as_mut().unwrap();
    spec.annotation_selector = Some(BTreeMap::from([("a".to_owned(), "b".to_owned())]));
    scene.shims.push(other);
    assert!(scene.decide().is_empty());
}

#[test]
fn another_runtime_is_verified_and_what_an_older_release_wrote_down_is_believed() {
    let mut scene = Scene::provisioned();
    scene.node.runtime = "containerd://2.2.0".to_owned();
    let plan = scene.decide();
    assert!(matches!(plan.job, JobStep::Create(_)));
    assert!(plan.edit.unwrap().labels.is_empty());
    let mut applied = scene.node.applied().unwrap();
    applied.runtime = String::new();
    let text = serde_json::to_string(&applied).unwrap();
    let key = names::APPLIED_ANNOTATION.to_owned();
    scene.node.annotations.insert(key, text);
    assert!(scene.decide().is_empty());
}

#[test]
fn a_node_that_is_not_ready_is_asked_nothing_until_it_is() {
    let mut scene = scene().annotated();
    scene.node.ready = false;
    let mut waiting = scene.stepped();
    assert!(waiting.job.is_none());
    waiting.node.ready = true;
    assert!(matches!(waiting.decide().job, JobStep::Create(_)));
    let mut leaving = Scene::provisioned().no_longer_annotated();
    leaving.node.ready = false;
    let leaving = leaving.stepped();
    assert!(leaving.job.is_none());
    assert_eq!(leaving.label("handler.farrier.dev/spin-v2"), None);
}

#[test]
fn a_cordoned_node_gets_nothing_new_and_may_let_go() {
    let mut scene = scene().annotated();
    scene.node.cordoned = true;
    assert_eq!(scene.decide().job, JobStep::None);
    let mut leaving = Scene::provisioned().no_longer_annotated();
    leaving.node.cordoned = true;
    assert!(matches!(leaving.decide().job, JobStep::Create(_)));
}

fn taint(key: &str) -> Taint {
    Taint {
        key: key.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    }
}

#[test]
fn the_startup_taint_goes_once_all_is_served_and_takes_no_other_with_it() {
    let mut scene = scene().annotated();
    scene.node.taints = vec![taint("theirs"), taint("farrier.dev/not-ready")];
    let claimed = scene.stepped();
    assert_eq!(claimed.node.taints.len(), 2);
    let failed = claimed.answers(Outcome::Refused, false, Some("no"));
    let failed = failed.stepped();
    assert_eq!(failed.node.taints.len(), 2);
    let served = failed
        .later(30)
        .stepped()
        .answers(Outcome::Applied, true, None)
        .stepped();
    assert_eq!(served.node.taints, [taint("theirs")]);
    assert!(served.decide().is_empty());
}

#[test]
fn a_node_that_wants_nothing_loses_the_startup_taint_at_once() {
    let mut scene = scene();
    scene.node.taints = vec![taint("farrier.dev/not-ready")];
    assert_eq!(scene.stepped().node.taints, []);
    let mut unknown = scene::scene().annotated();
    unknown.node.taints = vec![taint("farrier.dev/not-ready")];
    unknown.node.os = String::new();
    assert_eq!(unknown.stepped().node.taints.len(), 1);
}

#[test]
fn the_finalizer_of_runtime_class_manager_holds_no_shim_for_ever() {
    let mut scene = scene();
    scene.shims[0].held = false;
    scene.shims[0].held_by_rcm = true;
    assert_eq!(scene.status(0).finalizer, Finalizer::Add);
    scene.shims[0].deleting = true;
    assert_eq!(scene.status(0).finalizer, Finalizer::Release);
    // Whoever sets it again beside us is not fought.
    scene.shims[0].deleting = false;
    scene.shims[0].held = true;
    assert_eq!(scene.status(0).finalizer, Finalizer::Keep);
}

#[test]
fn what_changes_in_a_status_is_told_once() {
    let mut scene = Scene::provisioned();
    let told = scene.status(0);
    let notes: Vec<&str> = told.events.iter().map(|news| &*news.reason).collect();
    assert_eq!(notes, ["Provisioned"]);
    scene.shims[0].status = told.status;
    assert_eq!(scene.status(0).events, []);
    let failed = Scene {
        shims: scene.shims.clone(),
        ..scene::scene()
    };
    let failed = failed
        .annotated()
        .stepped()
        .answers(Outcome::Refused, false, Some("no room"))
        .stepped();
    let told = failed.status(0).events;
    assert!(
        told[0].warning && told[0].note.contains("no room"),
        "{told:?}"
    );
}

#[test]
fn a_job_that_ended_says_what_it_cost() {
    let answered = scene()
        .annotated()
        .stepped()
        .later(7)
        .answers(Outcome::Applied, true, None);
    let ended = answered.decide().ended.unwrap();
    assert_eq!(ended.outcome, "applied");
    assert_eq!(ended.took, Duration::from_secs(7));
}

#[test]
fn while_jobs_wait_for_their_pods_no_more_are_made_and_nothing_is_written() {
    let mut crowded = scene().annotated();
    crowded.hold = Hold::Crowded;
    let plan = crowded.decide();
    assert!(plan.is_empty(), "{plan:?}");
    let standing = crowded.standing(&plan);
    assert!(standing.crowded && !standing.podless);
    crowded.hold = Hold::None;
    let plan = crowded.decide();
    assert!(crowded.standing(&plan).podless);
    let mut leaving = Scene::provisioned().no_longer_annotated();
    leaving.hold = Hold::Crowded;
    let leaving = leaving.stepped();
    assert!(leaving.job.is_none());
    assert_eq!(leaving.label("handler.farrier.dev/spin-v2"), None);
}

#[test]
fn shims_that_have_just_come_are_waited_for_together() {
    let mut scene = scene().annotated();
    scene.hold = Hold::Settling(Duration::from_millis(300));
    let plan = scene.decide();
    assert!(plan.is_empty());
    assert_eq!(plan.look_again, Some(Duration::from_millis(300)));
}
