//! Failed attempts, Jobs without a readable report, and invalid text in reports and annotations.

use super::*;
use crate::controller::decide::job_result::refused_pod;
use crate::controller::memory::node_summary::Phase;
use crate::handoff::{Problem, TakenOver};

#[test]
fn the_removal_of_a_shim_in_use_is_tried_again() {
    let scene = Scene::provisioned().no_longer_annotated().stepped();
    let mut report = ProvisionReport::new(Outcome::Partial);
    report.handlers.push(HandlerReport {
        shim: "spin".to_owned(),
        handler: "spin-v2".to_owned(),
        path: None,
        sha256: None,
        served: true,
        reason: Some("a pod runs on it".to_owned()),
        remedy: None,
        waits_for_pods: false,
    });
    let (after, plan) = scene.job(JobProgress::Answered(Box::new(report))).step();
    assert_eq!(after.label("farrier.dev/spin"), Some("removing"));
    assert!(plan.event.unwrap().note.contains("a pod runs on it"));
    assert_eq!(after.decide().job, JobStep::None);
    assert!(matches!(
        after.later(31).decide().job,
        JobStep::Create { .. }
    ));
}

#[rstest]
#[case::wrong_digest(Outcome::Partial)]
#[case::rejected(Outcome::Refused)]
#[case::rolled_back(Outcome::RolledBack)]
#[case::broken(Outcome::Broken)]
fn a_failed_attempt_sets_the_label_publishes_an_event_and_waits(#[case] result: Outcome) {
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
    assert!(early.decide().is_empty(), "the wait has not passed");
    assert!(matches!(
        early.later(1).decide().job,
        JobStep::Create { .. }
    ));
}

#[test]
fn an_interrupted_attempt_is_no_failure_and_is_repeated_at_once() {
    let interrupted = |scene: Scene| scene.interrupted().step();
    let (mut after, plan) = interrupted(scene().annotated().stepped());
    for _ in 0..3 {
        assert_eq!(after.label("farrier.dev/spin"), Some("pending"));
        let event = after.status(0).status.unwrap();
        assert_eq!(event.nodes_failed, 0);
        assert!(matches!(after.decide().job, JobStep::Create { .. }));
        after = interrupted(after.stepped()).0;
    }
    let event = plan.event.unwrap();
    assert_eq!((event.warning, &*event.reason), (false, "Interrupted"));
    assert_eq!(plan.ended.unwrap().outcome, "interrupted");
    // The fourth interrupted attempt in a row is followed by a pause.
    assert_eq!(after.label("farrier.dev/spin"), Some("pending"));
    assert!(after.decide().is_empty());
    assert_eq!(after.decide().look_again, Some(Duration::from_secs(30)));
    let after = after.later(30).stepped();
    let after = after.answers(Outcome::Applied, true, None).stepped();
    assert_eq!(after.label("farrier.dev/spin"), Some("provisioned"));
    assert_eq!(after.node.applied().unwrap().interruptions, 0);
}

#[rstest]
#[case::once(1, Duration::ZERO)]
#[case::as_often_as_is_repeated_at_once(3, Duration::ZERO)]
#[case::once_more(4, Duration::from_secs(30))]
#[case::for_hours(20, Duration::from_secs(30))]
fn interrupted_attempts_in_a_row_are_no_failures(
    #[case] interruptions: u32,
    #[case] pause: Duration,
    #[values(0, 2)] failures: u32,
) {
    let fails = |scene: Scene| scene.answers(Outcome::Refused, false, Some("no")).stepped();
    let mut after = scene().annotated();
    for _ in 0..failures {
        after = fails(after.later(600).stepped());
    }
    for _ in 0..interruptions {
        after = after.later(600).stepped().interrupted().stepped();
    }
    let applied = after.node.applied().unwrap();
    assert_eq!(
        (applied.interruptions, applied.attempts),
        (interruptions, failures)
    );
    let next = after.decide();
    let begins = matches!(next.job, JobStep::Create { .. });
    assert_eq!(begins, pause.is_zero());
    if !begins {
        assert_eq!(next.look_again, Some(pause));
    }
    let failed = fails(after.later(600).stepped());
    let wait = failed.decide().look_again.unwrap();
    assert_eq!(wait, backoff(failures + 1));
}

#[test]
fn an_interrupted_attempt_does_not_change_the_back_off_of_earlier_failures() {
    let failed = scene()
        .annotated()
        .stepped()
        .answers(Outcome::Refused, false, Some("no"))
        .stepped();
    let interrupted = failed.later(30).stepped().interrupted().stepped();
    let failed = interrupted
        .stepped()
        .answers(Outcome::Refused, false, Some("no"));
    assert_eq!(failed.decide().look_again, Some(Duration::from_mins(1)));
}

#[test]
fn an_interrupted_verification_of_a_rebooted_node_is_repeated_at_once() {
    let mut rebooted = Scene::provisioned();
    rebooted.node.boot_id = "second".to_owned();
    let after = rebooted.later(1).stepped().interrupted().stepped();
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
    assert!(matches!(after.decide().job, JobStep::Create { .. }));
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
fn the_wait_after_the_second_failure_is_longer() {
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
#[case(JobProgress::Stuck(Problem::new("ImagePullBackOff", None)), 0)]
#[case(JobProgress::Silent(Problem::new("DeadlineExceeded", None)), 0)]
#[case(JobProgress::NoPod, 60)]
fn a_job_without_a_report_is_a_failure_with_a_reason(
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
fn a_job_without_a_pod_is_failed_for_the_reason_of_the_job_controller() {
    let refusal = "pods \"a\" is forbidden: exceeded quota: q, requested: limits.cpu=500m";
    let mut without_pod = scene().annotated().stepped().job(JobProgress::NoPod);
    without_pod.job.as_mut().unwrap().hindrance = Some(refused_pod(refusal));
    let (_, plan) = without_pod.later(60).step();
    let note = plan.event.unwrap().note;
    assert!(
        note.contains(refusal) && note.contains("job.resources"),
        "{note}"
    );
}

#[test]
fn a_job_without_a_pod_is_given_a_minute() {
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
fn a_clock_ahead_of_the_api_servers_does_not_end_the_minute() {
    let mut ahead = scene().annotated().stepped().job(JobProgress::NoPod);
    ahead.now += SignedDuration::from_hours(1);
    let plan = ahead.decide();
    assert!(plan.is_empty());
    assert_eq!(plan.look_again, Some(Duration::from_mins(1)));
}

#[test]
fn a_suspended_job_is_waited_for_and_told() {
    let mut queued = scene().annotated().stepped().job(JobProgress::NoPod);
    queued.job.as_mut().unwrap().suspended = true;
    let queued = queued.later(24 * 3_600);
    let plan = queued.decide();
    assert!(plan.is_empty() && plan.look_again.is_none(), "{plan:?}");
    let summary = queued.summary();
    assert!(summary.changing && !summary.without_pod);
    let status = queued.status(0).status.unwrap();
    let ready = &status.conditions[0];
    assert_eq!(ready.reason, "WaitingForNodes");
    assert!(ready.message.contains("its Job is suspended"), "{ready:?}");
    assert_eq!((status.nodes_pending, status.nodes_failed), (1, 0));
    let mut begun = queued;
    begun.job.as_mut().unwrap().suspended = false;
    assert!(begun.decide().event.is_some_and(|event| event.warning));
    let leaving = Scene::provisioned().no_longer_annotated().stepped();
    let mut leaving = leaving.job(JobProgress::NoPod);
    leaving.job.as_mut().unwrap().suspended = true;
    let progressing = leaving.status(0).status.unwrap().conditions.remove(0);
    assert!(
        progressing.message.contains("Job is suspended"),
        "{progressing:?}"
    );
}

#[test]
fn a_failed_upgrade_keeps_the_handler_label_of_the_old_version() {
    let mut scene = scene().annotated();
    let strategy = &mut scene.spec().fetch_strategy;
    strategy.anon_http.as_mut().unwrap().location = "https://example.org/v0.6.0/a".to_owned();
    let mut scene = scene
        .stepped()
        .answers(Outcome::Applied, true, None)
        .stepped();
    scene.upgrade();
    let upgrading = scene.stepped();
    assert_eq!(upgrading.label("handler.farrier.dev/spin-v2"), Some("true"));
    assert_eq!(upgrading.label("farrier.dev/spin"), Some("pending"));
    let (after, plan) = upgrading
        .answers(Outcome::Partial, true, Some("wrong digest"))
        .step();
    let note = plan.event.unwrap().note;
    let served = "; still served: spin 0.6.0 (sha256 aaaaaaaaaaaa…)";
    assert!(note.ends_with(served), "{note}");
    assert_eq!(after.label("farrier.dev/spin"), Some("failed"));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
    assert!(after.decide().is_empty());
    let degraded = &after.status(0).status.unwrap().conditions[2].message;
    let told = "n1: wrong digest; still serves 0.6.0 (sha256 aaaaaaaaaaaa…)";
    assert_eq!(degraded, told);
    // The columns of `kubectl get shims -o wide`.
    let served = &after.status(0).status.unwrap().binaries;
    let served: Vec<_> = served
        .iter()
        .map(|it| (it.release.as_deref(), &it.sha256[..4], it.nodes))
        .collect();
    assert_eq!(served, [(Some("0.6.0"), "aaaa", 1)]);
}

#[rstest]
#[case::adopted(false, None)]
#[case::replaced(true, None)]
#[case::beside_a_failure(true, Some("wrong digest"))]
fn a_handler_that_the_cluster_takes_over_from_the_command_line_is_told(
    #[case] replaced: bool,
    #[case] failure: Option<&str>,
) {
    let result = failure.map_or(Outcome::Applied, |_| Outcome::Partial);
    let mut scene = scene().annotated().stepped().answers(result, true, failure);
    scene.report().taken_over = vec![TakenOver {
        handler: "spin-v2".to_owned(),
        replaced,
        message: "handler spin-v2 belongs to Shim spin".to_owned(),
    }];
    let event = scene.step().1.event.unwrap();
    let (reason, note) = match failure {
        Some(_) => ("ProvisionFailed", "wrong digest"),
        None => ("TakenOver", "the host serves spin"),
    };
    assert_eq!((event.warning, &*event.reason), (replaced, reason));
    let expected = format!("{note}; handler spin-v2 belongs to Shim spin");
    assert_eq!(event.note, expected);
}

#[test]
fn a_shim_that_is_served_again_without_a_job_is_reported() {
    let mut scene = Scene::provisioned();
    let before = scene.spec().clone();
    scene.spec().fetch_strategy.anon_http = None;
    let (mut failed, plan) = scene.step();
    assert!(plan.event.unwrap().warning);
    assert_eq!(failed.label("farrier.dev/spin"), Some("failed"));
    *failed.spec() = before;
    let (after, plan) = failed.step();
    let event = plan.event.unwrap();
    assert_eq!((event.warning, &*event.reason), (false, "Provisioned"));
    assert_eq!(event.note, "the host serves spin");
    assert_eq!((plan.job, after.decide().event), (JobStep::None, None));
}

#[test]
fn a_report_on_an_older_request_does_not_answer_the_current_one() {
    let mut scene = scene().annotated().stepped();
    scene.upgrade();
    let after = scene.answers(Outcome::Applied, true, None).stepped();
    assert_eq!(after.label("farrier.dev/spin"), Some("pending"));
    assert!(matches!(after.decide().job, JobStep::Create { .. }));
}

#[test]
fn a_node_with_an_unreadable_annotation_gets_a_job() {
    let mut scene = Scene::provisioned();
    scene
        .node
        .annotations
        .insert("farrier.dev/applied".to_owned(), "{".to_owned());
    assert!(matches!(scene.decide().job, JobStep::Create { .. }));
}

#[test]
fn a_rolled_back_removal_keeps_the_known_state_of_the_shim() {
    let after = Scene::provisioned()
        .no_longer_annotated()
        .stepped()
        .answers(
            Outcome::RolledBack,
            true,
            Some("containerd did not start again"),
        )
        .stepped();
    assert!(
        after
            .node
            .applied()
            .unwrap()
            .shims
            .get("spin")
            .is_some_and(|shim: &AppliedShim| shim.fulfilled.is_some())
    );
    assert_eq!(after.label("farrier.dev/spin"), Some("removing"));
}

#[test]
fn a_job_that_the_api_server_rejects_is_reported_once_and_tried_again() {
    let claimed = scene().annotated().stepped();
    let rejected = Scene {
        job: None,
        rejected: Some(Problem::new("exceeded quota", None)),
        ..claimed
    };
    let (mut after, plan) = rejected.step();
    assert!(plan.event.unwrap().note.contains("exceeded quota"));
    assert_eq!(plan.job, JobStep::None);
    assert_eq!(after.label("farrier.dev/spin"), Some("failed"));
    after.rejected = None;
    let status = after.status(0).status.unwrap();
    assert!(status.conditions[2].message.contains("n1: exceeded quota"));
    assert!(after.decide().is_empty());
    assert!(matches!(
        after.later(30).decide().job,
        JobStep::Create { .. }
    ));
}

#[test]
fn a_job_is_tried_again_every_half_minute_while_a_webhook_does_not_answer() {
    let problem = Problem::new("failed calling webhook \"a\": no endpoints", None);
    let mut scene = scene().annotated();
    for _ in 0..6 {
        let (mut claimed, plan) = scene.step();
        assert!(matches!(plan.job, JobStep::Create { .. }));
        claimed.job = None;
        claimed.rejected = Some(problem.clone());
        claimed.is_outage = true;
        let (mut refused, plan) = claimed.step();
        assert!(plan.event.unwrap().note.contains("no endpoints"));
        assert_eq!(plan.look_again, Some(Duration::from_secs(30)));
        assert_eq!(refused.label("farrier.dev/spin"), Some("failed"));
        refused.rejected = None;
        refused.is_outage = false;
        scene = refused.later(30);
    }
}

#[test]
fn a_node_that_can_not_be_written_is_a_failure_of_its_shims() {
    let mut scene = scene().annotated();
    scene.rejected = Some(Problem::new("failed calling webhook \"a\"", None));
    let summary = scene.summary();
    let phase = &summary.shims["spin"].phase;
    assert!(
        matches!(phase, Phase::Failed { reason, .. } if reason.contains("webhook")),
        "{phase:?}"
    );
}

#[test]
fn the_report_of_a_job_without_a_request_for_this_node_object_is_ignored() {
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
fn a_job_that_a_finalizer_keeps_is_reported_once() {
    let mut scene = Scene::provisioned().no_longer_annotated().stepped();
    scene.job.as_mut().unwrap().deleting = Some(start());
    let plan = scene.decide();
    assert!(plan.is_empty());
    assert_eq!(plan.look_again, Some(Duration::from_mins(1)));
    let (mut after, plan) = scene.later(60).step();
    assert!(plan.event.unwrap().note.contains("finalizers"));
    assert!(after.decide().is_empty());
    after.job = None;
    assert!(matches!(
        after.later(60).decide().job,
        JobStep::Create { .. }
    ));
}

#[test]
fn invalid_label_names_in_a_report_write_no_label() {
    let scene = Scene::provisioned().no_longer_annotated().stepped();
    let mut report = ProvisionReport::new(Outcome::Partial);
    for (shim, handler) in [("../../etc", "a"), ("a", "b\nc"), (&*"x".repeat(64), "a")] {
        report.handlers.push(HandlerReport {
            shim: shim.to_owned(),
            handler: handler.to_owned(),
            path: None,
            sha256: None,
            served: true,
            reason: None,
            remedy: None,
            waits_for_pods: false,
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
#[case(r#"{"nodeUid":"node-uid","shims":{"spin":{"request":{"name":"spin","handlers":[],"location":"","sha256":"abc"}}}}"#)]
#[case(r#"{"nodeUid":"node-uid","attempts":-1}"#)]
fn an_invalid_annotation_of_the_node_is_ignored(#[case] text: &str) {
    let mut scene = Scene::provisioned();
    scene
        .node
        .annotations
        .insert("farrier.dev/applied".to_owned(), text.to_owned());
    let (after, plan) = scene.step();
    assert!(matches!(plan.job, JobStep::Create { .. }));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
}

#[test]
fn the_time_of_an_attempt_in_the_far_future_is_ignored() {
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
    assert!(matches!(scene.decide().job, JobStep::Create { .. }));
}

#[test]
fn the_end_of_a_job_counts_restarts_and_duration() {
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
fn a_job_whose_pod_still_runs_a_minute_after_its_deadline_is_a_failure() {
    let asked = scene().annotated().stepped();
    let overdue = JobProgress::Overdue {
        since: start(),
        problem: Problem::new("check that the node is up", None),
    };
    let over = asked.job(overdue).later(59);
    let plan = over.decide();
    assert!(plan.is_empty());
    assert_eq!(plan.look_again, Some(Duration::from_secs(1)));
    let (after, plan) = over.later(1).step();
    assert!(plan.event.unwrap().note.contains("the node is up"));
    assert_eq!(after.label("farrier.dev/spin"), Some("failed"));
}
