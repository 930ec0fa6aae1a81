//! Restarts of containerd that would end pods: the policies Refuse, Drain and Allow.

use std::slice;

use super::*;
use crate::controller::cluster::ending_pods::PodStates;
use crate::controller::decide::node_labels::without_drain;
use crate::controller::memory::node_summary::Phase;
use crate::handoff::{EndingPods, Problem};

fn pod(name: &str, handler: &str) -> EndingPod {
    EndingPod {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        uid: format!("uid of {name}"),
        handler: handler.to_owned(),
    }
}

/// A node that serves `spin`, and has to restart containerd for the Shim `other`. The restart would end `pods`.
fn waiting(pods: &[EndingPod], on_restart: OnRestart) -> Scene {
    let mut scene = Scene::provisioned();
    scene.shims.push(shim("other", "other"));
    scene.on_restart = on_restart;
    scene.later(60).stepped().refused_for(pods)
}

/// A node that is being drained of `pods`.
fn draining(pods: &[EndingPod]) -> Scene {
    let mut scene = waiting(pods, OnRestart::Drain);
    scene.drain_timeout = Some(Duration::from_mins(5));
    let scene = scene.stepped().left(pods).stepped();
    assert_eq!(taints(&scene).len(), 1);
    scene
}

fn creates_job(plan: &Plan) -> bool {
    matches!(plan.job, JobStep::Create { .. })
}

/// Waits until a Job is created, ten minutes at most, and adds the seconds to `waits`.
fn until_job(mut scene: Scene, waits: &mut Vec<u32>) -> Scene {
    let mut waited = 0;
    while !creates_job(&scene.decide()) {
        scene = scene.later(1);
        waited += 1;
        assert!(waited <= 600, "{waits:?}");
    }
    waits.push(waited);
    scene
}

fn taints(scene: &Scene) -> Vec<(&str, &str)> {
    let taints = scene.node.taints.iter();
    taints
        .map(|it| (it.key.as_str(), it.effect.as_str()))
        .collect()
}

#[test]
fn a_node_waits_for_pods_as_no_failure_and_without_a_place_in_the_rollout() {
    let web = pod("web", "spin-v2");
    let (after, plan) = waiting(slice::from_ref(&web), OnRestart::Refuse).step();
    let event = plan.event.unwrap();
    assert!(!event.warning);
    assert_eq!(event.reason, "WaitingForPods");
    assert_eq!(
        event.note,
        "the restart of containerd would end 1 pod: default/web (handler spin-v2). Delete these pods, or set spec.onRestart of Shim spin to Drain or Allow"
    );
    assert_eq!(plan.ended.unwrap().outcome, "waiting");
    // What the node served before, it still serves.
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
    assert_eq!(after.label("farrier.dev/spin"), Some("provisioned"));
    assert_eq!(after.label("farrier.dev/other"), Some("pending"));
    assert!(taints(&after).is_empty());
    let summary = after.summary();
    assert!(!summary.changing && summary.waiting_for_pods);
    let status = after.status(1).status.unwrap();
    assert_eq!((status.nodes_failed, status.nodes_pending), (0, 1));
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .map(|it| it.reason.as_str())
        .collect();
    assert_eq!(
        conditions,
        ["WaitingForPods", "WaitingForPods", "AsExpected"]
    );
    let message = &status.conditions[0].message;
    assert!(
        message.contains("n1: the restart of containerd would end 1 pod: default/web"),
        "{message}"
    );
    let well = after.status(0).status.unwrap();
    assert_eq!(well.conditions[0].status, "True");
}

#[test]
fn a_node_asks_again_within_seconds_of_the_last_pod() {
    let (web, api) = (pod("web", "spin-v2"), pod("api", "spin-v2"));
    let after = waiting(&[web.clone(), api.clone()], OnRestart::Refuse).stepped();
    let there = after.later(3_600).left(&[api.clone(), web]);
    let plan = there.decide();
    assert_eq!(
        (creates_job(&plan), plan.look_again),
        (false, Some(Duration::from_secs(5)))
    );
    let one = there.left(&[api]);
    assert!(!creates_job(&one.decide()));
    assert!(creates_job(&one.left(&[]).decide()));
}

#[rstest]
fn pods_that_come_and_go_cost_a_job_every_ten_minutes_at_most(
    #[values(OnRestart::Refuse, OnRestart::Drain)] on_restart: OnRestart,
) {
    let web = pod("web", "spin-v2");
    let mut scene = waiting(slice::from_ref(&web), on_restart);
    scene.drain_timeout = Some(Duration::from_mins(5));
    let mut scene = scene.stepped().left(&[]);
    let mut waits = Vec::new();
    for _ in 0..12 {
        scene = until_job(scene, &mut waits);
        scene = scene.stepped().refused_for(slice::from_ref(&web)).stepped();
    }
    assert_eq!(waits, [0, 0, 0, 30, 60, 120, 240, 480, 600, 600, 600, 600]);
}

/// Why the Shim `other` waits.
fn text(scene: &Scene) -> String {
    match scene.summary().shims["other"].phase.clone() {
        Phase::WaitingForPods(text) => text,
        other => panic!("{other:?}"),
    }
}

#[rstest]
fn a_node_that_an_operator_drained_restarts_containerd(
    #[values(OnRestart::Refuse, OnRestart::Drain)] on_restart: OnRestart,
) {
    let web = [pod("web", "spin-v2")];
    let mut scene = waiting(&web, on_restart);
    scene.drain_timeout = Some(Duration::from_mins(5));
    let mut scene = scene.stepped().left(&web);
    scene.node.cordoned = true;
    let scene = scene.stepped();
    assert!(scene.job.is_none() && taints(&scene).is_empty());
    let mut over = scene.left(&[]);
    over.node.ready = false;
    let over = over.stepped();
    assert!(over.job.is_none());
    let why = text(&over);
    assert!(why.contains("are gone") && !why.contains("web"), "{why}");
    let mut ready = over;
    ready.node.ready = true;
    let ready = ready.stepped();
    assert!(ready.job.is_some());
    // Containerd still has the pod.
    let mut again = ready.refused_for(&web).stepped();
    for _ in 0..2 {
        again = again.stepped().refused_for(&web).stepped();
    }
    let again = again.stepped();
    let why = text(&again);
    assert!(
        why.contains("1 pod, which the API server does not know"),
        "{why}"
    );
}

/// The policies in the request of the node, beside that of the chart, which refuses to end pods.
fn policies(scene: &Scene) -> Vec<(String, OnRestart)> {
    let JobStep::Create { request, .. } = scene.decide().job else {
        panic!("no Job")
    };
    assert_eq!(request.on_restart, OnRestart::Refuse);
    request.on_restart_by_handler.into_iter().collect()
}

/// No label of the node is that of the Shim.
fn selects_no_node(shim: &mut ShimView) {
    let spec = shim.spec.as_mut().unwrap();
    spec.annotation_selector = None;
    spec.node_selector = Some([("pool".to_owned(), "none".to_owned())].into());
}

#[rstest]
#[case::that_selects_the_node(|_: &mut ShimView| {}, true)]
#[case::that_selects_no_node(selects_no_node, false)]
#[case::that_is_deleted(|shim: &mut ShimView| shim.deleting = true, false)]
#[case::without_a_finalizer(|shim: &mut ShimView| shim.has_finalizer = false, false)]
#[case::that_lost_the_handler(|shim: &mut ShimView| {
    shim.spec = super::shim("other", "spin-v2").spec;
    shim.spec.as_mut().unwrap().on_restart = Some(OnRestart::Allow);
    shim.created += SignedDuration::from_secs(1);
}, false)]
fn a_shim_has_a_policy_only_for_the_handlers_that_it_has_on_the_node(
    #[case] change: impl Fn(&mut ShimView),
    #[case] expected: bool,
) {
    let mut scene = scene().annotated();
    let mut other = shim("other", "kata");
    other.spec.as_mut().unwrap().on_restart = Some(OnRestart::Allow);
    change(&mut other);
    scene.shims.push(other);
    let expected: Vec<_> = expected
        .then(|| ("kata".to_owned(), OnRestart::Allow))
        .into_iter()
        .collect();
    assert_eq!(policies(&scene), expected);
}

#[rstest]
#[case::deleted(|shim: &mut ShimView| shim.deleting = true)]
#[case::that_no_longer_selects_the_node(selects_no_node)]
fn a_shim_that_leaves_the_node_keeps_its_policy_until_it_has_left(
    #[case] change: impl Fn(&mut ShimView),
) {
    let mut scene = Scene::provisioned();
    scene.shims.push(shim("other", "other"));
    scene.spec().on_restart = Some(OnRestart::Drain);
    change(&mut scene.shims[0]);
    let expected = ("spin-v2".to_owned(), OnRestart::Drain);
    assert_eq!(policies(&scene.later(60)), [expected]);
}

#[test]
fn a_shim_of_other_nodes_has_no_pod_evicted() {
    let web = pod("web", "kata");
    let mut other = shim("elsewhere", "kata");
    selects_no_node(&mut other);
    other.spec.as_mut().unwrap().on_restart = Some(OnRestart::Drain);
    let mut scene = waiting(slice::from_ref(&web), OnRestart::Refuse);
    scene.drain_timeout = Some(Duration::from_mins(5));
    scene.shims.push(other);
    let (scene, first) = scene.step();
    assert_eq!(
        text(&scene),
        "the restart of containerd would end 1 pod: default/web (handler kata). Delete these pods, or set onRestart in the chart to Drain or Allow"
    );
    let (scene, second) = scene.later(1).left(slice::from_ref(&web)).step();
    let third = scene.later(1).left(&[web]).decide();
    assert!(
        [first, second, third]
            .iter()
            .all(|plan| plan.evict.is_empty())
    );
}

#[test]
fn the_policies_of_many_handlers_leave_room_in_the_job() {
    let mut scene = scene().annotated();
    for number in 0..150 {
        let mut other = shim(&format!("other-{number}"), &format!("a-{number}"));
        let aliases = (0..16).map(|alias| format!("{}-{number}-{alias}", "a".repeat(50)));
        let spec = other.spec.as_mut().unwrap();
        spec.handler_aliases = aliases.collect();
        spec.on_restart = Some(OnRestart::Drain);
        scene.shims.push(other);
    }
    let size = |scene: &Scene| {
        let JobStep::Create { request, .. } = scene.decide().job else {
            panic!("no Job")
        };
        serde_json::to_string(&request).unwrap().len()
    };
    assert!(size(&scene) < 256 * 1024, "{}", size(&scene));
    scene.shims.iter_mut().skip(1).for_each(selects_no_node);
    assert_eq!(policies(&scene), []);
    assert!(size(&scene) < 80 * 1024, "{}", size(&scene));
}

#[test]
fn a_changed_policy_counts_at_once() {
    let mut after = waiting(&[pod("web", "spin-v2")], OnRestart::Refuse).stepped();
    after.spec().on_restart = Some(OnRestart::Allow);
    let JobStep::Create { request, .. } = after.decide().job else {
        panic!("no Job")
    };
    assert_eq!(request.on_restart, OnRestart::Refuse);
    let of_spin = [("spin-v2".to_owned(), OnRestart::Allow)];
    assert_eq!(request.on_restart_by_handler, of_spin.into());
}

#[test]
fn another_desired_set_ends_the_wait() {
    let mut after = waiting(&[pod("web", "spin-v2")], OnRestart::Refuse).stepped();
    after.shims.pop();
    let after = after.stepped();
    assert_eq!(after.label("farrier.dev/other"), None);
    assert!(!after.summary().waiting_for_pods);
    assert!(
        after.decide()
            == Plan {
                look_again: after.decide().look_again,
                ..Plan::default()
            }
    );
}

#[test]
fn a_drain_taints_the_node_before_it_evicts_exactly_the_pods_of_the_report() {
    let (web, api) = (pod("web", "spin-v2"), pod("api", "spin-v2"));
    let pods = [web.clone(), api.clone()];
    let mut scene = waiting(&pods, OnRestart::Drain);
    scene.drain_timeout = Some(Duration::from_mins(5));
    let scene = scene.stepped().left(&pods);
    let (scene, plan) = scene.step();
    assert!(plan.evict.is_empty(), "the taint comes first");
    assert_eq!(taints(&scene), [("farrier.dev/restarting", "NoSchedule")]);
    assert_eq!(scene.label("handler.farrier.dev/spin-v2"), None);
    assert_eq!(scene.label("farrier.dev/spin"), Some("provisioned"));
    assert!(
        plan.event
            .unwrap()
            .note
            .contains("2 pods must end before the restart")
    );
    assert!(
        scene.summary().changing,
        "a drain has a place in the rollout"
    );
    assert_eq!(scene.decide().evict, pods);
    let scene = scene.later(5).left(slice::from_ref(&api));
    assert_eq!(scene.decide().evict, [api]);
    let (scene, plan) = scene.later(5).left(&[]).step();
    assert!(creates_job(&plan) && plan.evict.is_empty());
    assert_eq!(taints(&scene).len(), 1, "until the restart is over");
    let scene = scene.answers(Outcome::Applied, true, None).stepped();
    assert!(taints(&scene).is_empty());
    assert_eq!(scene.label("handler.farrier.dev/spin-v2"), Some("true"));
    assert_eq!(scene.label("farrier.dev/other"), Some("provisioned"));
}

#[test]
fn a_drain_that_takes_too_long_is_undone_and_tried_again_later() {
    let web = [pod("web", "spin-v2")];
    let mut scene = waiting(&web, OnRestart::Drain);
    scene.drain_timeout = Some(Duration::from_mins(5));
    let scene = scene.stepped().left(&web).stepped().later(299);
    assert_eq!(scene.decide().evict, web);
    let why = text(&scene);
    assert!(why.contains("is being evicted: default/web"), "{why}");
    let message = &scene.status(1).status.unwrap().conditions[0].message;
    assert!(message.contains("is being evicted"), "{message}");
    let mut scene = scene.later(1);
    scene.refused_eviction = Some("default/web: no disruption is allowed".to_owned());
    let (scene, plan) = scene.step();
    let event = plan.event.unwrap();
    assert!(
        event.warning
            && event.note.contains("PodDisruptionBudgets")
            && event
                .note
                .contains("(default/web: no disruption is allowed)"),
        "{event:?}"
    );
    assert!(taints(&scene).is_empty() && plan.evict.is_empty());
    assert_eq!(scene.label("handler.farrier.dev/spin-v2"), Some("true"));
    assert!(!scene.summary().changing && scene.summary().waiting_for_pods);
    let scene = scene.later(599).stepped();
    assert!(taints(&scene).is_empty());
    assert_eq!(taints(&scene.later(1).stepped()).len(), 1);
}

#[test]
fn drains_that_end_nothing_become_rare() {
    let web = [pod("web", "spin-v2")];
    let mut scene = draining(&web);
    let mut rests = Vec::new();
    for _ in 0..7 {
        scene = scene.later(300).stepped();
        let mut minutes = 0;
        while taints(&scene).is_empty() {
            scene = scene.later(60).stepped();
            minutes += 1;
        }
        rests.push(minutes);
    }
    assert_eq!(rests, [10, 20, 40, 80, 160, 240, 240]);
    // Its controller has replaced the pod meanwhile.
    let scene = scene.left(&[]).stepped();
    let other = scene.refused_for(&[pod("other", "spin-v2")]).stepped();
    let applied = other.node.applied().unwrap();
    assert_eq!(applied.waiting_for_pods.unwrap().undone, 7);
    let rests = other.later(300).stepped().left(&[pod("other", "spin-v2")]);
    assert!(taints(&rests.later(239 * 60).stepped()).is_empty());
}

#[test]
fn no_drain_begins_for_a_static_pod() {
    let pods = [pod("web", "spin-v2"), pod("static", "spin-v2")];
    let mut scene = waiting(&pods, OnRestart::Drain);
    scene.drain_timeout = Some(Duration::from_mins(5));
    let mut scene = scene.stepped().left(&pods);
    scene.pods.as_mut().unwrap().static_pods = pods[1..].to_vec();
    let (scene, plan) = scene.step();
    assert!(taints(&scene).is_empty() && plan.evict.is_empty());
    let note = plan.event.unwrap().note;
    assert!(
        note.ends_with(
            "or set spec.onRestart of Shim spin to Allow: default/static (handler spin-v2)"
        ),
        "{note}"
    );
    assert!(
        note.contains("Remove the manifests of these static pods"),
        "{note}"
    );
    assert_eq!(scene.decide().event, None, "once");
    assert!(text(&scene).contains("static pods"));
    let mut scene = scene.left(&pods[..1]).stepped();
    assert_eq!(taints(&scene).len(), 1);
    // A report of the next ten pods may name a static pod, too.
    scene.pods.as_mut().unwrap().static_pods = pods[1..].to_vec();
    let (scene, plan) = scene.step();
    assert!(taints(&scene).is_empty() && plan.evict.is_empty());
    assert!(plan.event.unwrap().note.contains("static pods"));
}

#[test]
fn a_pod_that_needs_longer_than_the_drain_was_evicted_nevertheless() {
    let web = [pod("web", "spin-v2")];
    let mut scene = draining(&web).later(300);
    let states = scene.pods.as_mut().unwrap();
    states.ending = std::mem::take(&mut states.evictable);
    let (scene, plan) = scene.step();
    let note = plan.event.unwrap().note;
    assert!(
        note.contains("were evicted and have not ended within 300 s")
            && note.contains("terminationGracePeriodSeconds"),
        "{note}"
    );
    // The API server does not answer, and a Job asks containerd. The pod has still not ended.
    let mut silent = scene.later(600);
    silent.pods = None;
    let silent = silent.stepped();
    assert!(silent.job.is_some());
    let again = silent.refused_for(&web).stepped().left(&web);
    let waiting = again.node.applied().unwrap().waiting_for_pods.unwrap();
    assert_eq!(waiting.undone, 1);
}

#[test]
fn a_node_with_many_pods_is_drained_ten_by_ten() {
    let pods: Vec<_> = (10..60)
        .map(|number| pod(&format!("web-{number}"), "spin-v2"))
        .collect();
    let mut scene = draining(&pods);
    for gone in [10, 20, 30, 40] {
        scene = scene.later(200).left(&[]).stepped();
        assert!(scene.job.is_some(), "{gone}");
        let rest = &pods[gone..];
        scene = scene.refused_for(rest).stepped().left(rest).stepped();
        assert_eq!(taints(&scene).len(), 1, "{gone}");
        assert_eq!(scene.decide().evict, rest[..10]);
    }
    // The same number of pods is no progress.
    let others: Vec<_> = (60..70)
        .map(|number| pod(&format!("web-{number}"), "spin-v2"))
        .collect();
    let scene = scene.later(200).left(&[]).stepped();
    let scene = scene.refused_for(&others).stepped().left(&others);
    let scene = scene.later(100).stepped();
    assert!(taints(&scene).is_empty());
}

#[test]
fn a_drain_ends_with_its_cause() {
    let web = [pod("web", "spin-v2")];
    let draining = || draining(&web);
    let mut without_shim = draining();
    without_shim.shims.pop();
    let mut refuses = draining();
    refuses.spec().on_restart = Some(OnRestart::Refuse);
    let mut disabled = draining();
    disabled.drain_timeout = None;
    let mut forgotten = draining();
    forgotten.node.annotations.remove("farrier.dev/applied");
    let mut not_ready = draining();
    not_ready.node.ready = false;
    for scene in [without_shim, refuses, disabled, forgotten, not_ready] {
        let (after, plan) = scene.step();
        assert!(plan.evict.is_empty());
        assert!(taints(&after).is_empty(), "{plan:?}");
    }
    let failed = draining().left(&[]).stepped();
    let failed = failed
        .answers(Outcome::RolledBack, false, Some("no"))
        .stepped();
    assert!(taints(&failed).is_empty());
    let interrupted = draining().left(&[]).stepped().interrupted().stepped();
    assert!(taints(&interrupted).is_empty());
}

#[test]
fn a_waiting_node_asks_for_its_turn_only_when_its_pods_have_ended() {
    let web = pod("web", "spin-v2");
    for on_restart in [OnRestart::Refuse, OnRestart::Drain] {
        let mut scene = waiting(slice::from_ref(&web), on_restart);
        scene.drain_timeout = Some(Duration::from_mins(5));
        let mut scene = scene.stepped().left(slice::from_ref(&web));
        scene.blocked = BTreeMap::from([("other".to_owned(), "not its turn".to_owned())]);
        let (scene, plan) = scene.step();
        assert!(taints(&scene).is_empty() && !creates_job(&plan));
        assert_eq!(
            scene.label("farrier.dev/other"),
            Some("pending"),
            "no label changes"
        );
        let summary = scene.summary();
        assert!(summary.waiting_for_pods && !summary.changing);
        assert!(matches!(
            summary.shims["other"].phase,
            Phase::WaitingForPods(_)
        ));
        let mut scene = scene.left(&[]);
        let plan = scene.decide();
        assert_eq!(
            (creates_job(&plan), plan.look_again),
            (false, Some(Duration::from_secs(5)))
        );
        scene.blocked.clear();
        assert!(creates_job(&scene.decide()));
    }
}

#[test]
fn a_drain_has_its_place_in_the_rollout_from_its_first_decision() {
    let web = [pod("web", "spin-v2")];
    let mut scene = waiting(&web, OnRestart::Drain);
    scene.drain_timeout = Some(Duration::from_mins(5));
    let mut scene = scene.stepped().left(&web);
    assert!(scene.decide().drains && scene.summary().changing);
    // The drain of another desired set leaves no time behind that a later drain would begin with.
    scene = scene.stepped();
    let other = scene.shims.pop().unwrap();
    scene = scene.stepped();
    scene.shims.push(other);
    let (scene, plan) = scene.later(3_600).step();
    assert_eq!(taints(&scene).len(), 1, "{plan:?}");
    assert!(!plan.event.unwrap().warning);
}

#[test]
fn a_host_that_was_changed_by_others_waits_for_pods_too() {
    let web = [pod("web", "spin-v2")];
    let scene = Scene::provisioned().stepped().later(3_600 * 31).stepped();
    assert!(scene.job.is_some(), "the regular check");
    let scene = scene.refused_for(&web).stepped().left(&web).stepped();
    assert!(scene.summary().waiting_for_pods);
    assert_eq!(scene.decide().look_again, Some(Duration::from_secs(5)));
    assert!(creates_job(&scene.left(&[]).decide()));
}

#[test]
fn a_drain_is_undone_if_its_job_can_not_be_created() {
    let web = [pod("web", "spin-v2")];
    let draining = || draining(&web);
    let mut cordoned = draining();
    cordoned.node.cordoned = true;
    assert!(taints(&cordoned.stepped()).is_empty());
    let mut not_ready = draining().left(&[]);
    not_ready.node.ready = false;
    assert!(taints(&not_ready.stepped()).is_empty());
    let mut rejected = draining();
    rejected.rejected = Some(Problem::new("a quota", None));
    let mut rejected = rejected.stepped();
    assert!(taints(&rejected).is_empty());
    rejected.rejected = None;
    let rejected = rejected.stepped();
    assert!(taints(&rejected).is_empty(), "not at once again");
    let rejected = rejected.left(&[]);
    assert_eq!(rejected.decide().look_again, Some(Duration::from_secs(30)));
    // The next report does not say that the pods were not evicted: Farrier did not try.
    let (_, plan) = rejected.later(30).stepped().refused_for(&web).step();
    let note = plan.event.unwrap().note;
    assert!(note.contains("Farrier evicts these pods"), "{note}");
}

#[test]
fn a_waiting_node_without_any_known_shim_keeps_its_annotation() {
    let mut scene = Scene::provisioned();
    scene.shims.clear();
    scene.node.annotations.remove("farrier.dev/applied");
    let scene = scene.stepped().refused_for(&[pod("web", "wws")]);
    let scene = scene.stepped().stepped().left(&[pod("web", "wws")]);
    assert!(scene.node.annotations.contains_key("farrier.dev/applied"));
    assert!(!creates_job(&scene.decide()));
}

#[test]
fn handlers_that_the_host_no_longer_serves_are_not_advertised_while_it_waits() {
    let mut scene = waiting(&[pod("web", "spin-v2")], OnRestart::Refuse);
    scene.report().handlers.push(HandlerReport {
        shim: "spin".to_owned(),
        handler: "spin-v2".to_owned(),
        path: None,
        sha256: None,
        served: false,
        reason: None,
        remedy: None,
        waits_for_pods: false,
    });
    assert_eq!(scene.stepped().label("handler.farrier.dev/spin-v2"), None);
}

#[test]
fn an_api_server_that_does_not_answer_delays_the_job_by_ten_minutes_at_most() {
    let scene = waiting(&[pod("web", "spin-v2")], OnRestart::Refuse).stepped();
    let scene = scene.later(599);
    assert!(!creates_job(&scene.decide()));
    assert!(creates_job(&scene.later(1).decide()));
}

#[test]
fn the_end_of_the_controller_ends_a_drain() {
    let web = [pod("web", "spin-v2")];
    let mut scene = waiting(&web, OnRestart::Drain);
    scene.drain_timeout = Some(Duration::from_mins(5));
    let scene = scene.stepped();
    assert_eq!(without_drain(&scene.node, true), None);
    let scene = scene.left(&web).stepped();
    let edit = without_drain(&scene.node, true).unwrap();
    assert_eq!(edit.taints.as_deref(), Some(&[][..]));
    let labels = [(
        "handler.farrier.dev/spin-v2".to_owned(),
        Some("true".to_owned()),
    )];
    assert_eq!(edit.labels, labels.into());
    // A node that could not be cleaned gets no new pods.
    let edit = without_drain(&scene.node, false).unwrap();
    assert_eq!(edit.taints.as_deref(), Some(&[][..]));
    assert_eq!(edit.labels, [].into());
}

#[test]
fn the_strictest_policy_of_the_ending_pods_counts() {
    let pods = [pod("web", "spin-v2"), pod("job", "wws")];
    let mut scene = waiting(&pods, OnRestart::Refuse);
    scene.drain_timeout = Some(Duration::from_mins(5));
    scene.spec().on_restart = Some(OnRestart::Drain);
    let scene = scene.stepped().left(&pods).stepped();
    assert!(
        taints(&scene).is_empty(),
        "wws has no Shim and follows the chart"
    );
    let mut scene = scene;
    scene.on_restart = OnRestart::Allow;
    assert_eq!(taints(&scene.stepped()).len(), 1);
}

#[test]
fn without_the_right_to_evict_a_drain_waits_and_says_so() {
    let (after, plan) = waiting(&[pod("web", "spin-v2")], OnRestart::Drain).step();
    let note = plan.event.unwrap().note;
    assert!(note.contains("Set drain.enabled in the chart"), "{note}");
    assert!(taints(&after.stepped()).is_empty());
}

#[test]
fn pods_that_do_not_come_back_after_a_restart_are_named_once() {
    let (web, api) = (pod("web", "spin-v2"), pod("api", "spin-v2"));
    let mut scene = restarted(&[web.clone(), api.clone()]);
    assert_eq!(scene.decide().look_again, Some(Duration::from_mins(2)));
    scene.pods = Some(PodStates {
        left: vec![web.clone(), api],
        stopped: vec![web],
        ..PodStates::default()
    });
    assert_eq!(scene.decide().event, None);
    let (scene, plan) = scene.later(120).step();
    let event = plan.event.unwrap();
    assert_eq!(
        (event.warning, event.reason.as_str()),
        (true, "PodsNotRunning")
    );
    assert!(
        event
            .note
            .contains("default/web (handler spin-v2). Delete these pods"),
        "{event:?}"
    );
    assert!(!event.note.contains("default/api"));
    assert_eq!(scene.later(60).decide().event, None);
}

/// A node whose last restart ended `pods`.
fn restarted(pods: &[EndingPod]) -> Scene {
    let mut scene = Scene::provisioned();
    scene.shims.push(shim("other", "other"));
    scene.on_restart = OnRestart::Allow;
    let scene = scene.stepped().answers(Outcome::Applied, true, None);
    scene.after_ending(pods).stepped().stepped()
}

#[test]
fn pods_of_a_restart_that_can_not_be_looked_at_are_forgotten() {
    let scene = restarted(&[pod("web", "spin-v2")]).later(120);
    let (scene, plan) = scene.step();
    assert_eq!(plan.look_again, Some(Duration::from_secs(5)));
    let scene = scene.later(480).stepped();
    assert_eq!(scene.node.applied().unwrap().ended_pods, None);
    let mut without_pods = restarted(&[pod("web", "spin-v2")]);
    let annotation = without_pods.node.annotations.get_mut("farrier.dev/applied");
    let annotation = annotation.unwrap();
    let mut applied: serde_json::Value = serde_json::from_str(annotation).unwrap();
    applied["endedPods"]["pods"] = json!([]);
    *annotation = applied.to_string();
    let after = without_pods.stepped();
    assert_eq!(after.node.applied().unwrap().ended_pods, None);
}

#[test]
fn a_second_restart_does_not_hide_the_pods_of_the_first() {
    let (web, api) = (pod("web", "spin-v2"), pod("api", "spin-v2"));
    let mut scene = restarted(slice::from_ref(&web)).later(60);
    scene.upgrade();
    let scene = scene.stepped().answers(Outcome::Applied, true, None);
    let scene = scene.after_ending(slice::from_ref(&api)).stepped();
    let ended = scene.node.applied().unwrap().ended_pods.unwrap();
    assert_eq!((ended.pods.pods, ended.at), (vec![api, web], scene.now));
}

#[test]
fn the_pods_of_a_removal_are_looked_at_before_the_annotation_goes() {
    let web = pod("web", "spin-v2");
    let removed = |uninstalling| {
        let mut scene = restarted(slice::from_ref(&web)).no_longer_annotated();
        scene.uninstalling = uninstalling;
        let scene = scene.stepped().answers(Outcome::Applied, true, None);
        scene.stepped().stepped()
    };
    assert!(removed(true).node.annotations.is_empty());
    let mut scene = removed(false).later(120);
    assert!(scene.node.annotations.contains_key("farrier.dev/applied"));
    scene.pods = Some(PodStates {
        stopped: vec![web.clone()],
        ..PodStates::default()
    });
    let (scene, plan) = scene.step();
    assert_eq!(plan.event.unwrap().reason, "PodsNotRunning");
    assert!(scene.node.annotations.is_empty() && scene.decide() == Plan::default());
}

#[test]
fn a_removal_that_waits_for_pods_names_them() {
    let mut scene = Scene::provisioned();
    scene.shims[0].deleting = true;
    let scene = scene.stepped().refused_for(&[pod("web", "wws")]).stepped();
    let status = scene.status(0).status.unwrap();
    let progressing = &status.conditions[1].message;
    assert!(
        progressing.contains("n1: the restart of containerd would end 1 pod: default/web"),
        "{progressing}"
    );
    let (scene, plan) = scene.left(&[]).step();
    assert!(creates_job(&plan));
    // The deadline of an uninstall may end while the Job runs.
    let Phase::Removing { reason, .. } = &scene.summary().shims["spin"].phase else {
        panic!("not removing")
    };
    assert!(
        reason.as_ref().unwrap().contains("default/web"),
        "{reason:?}"
    );
}

/// A node that is to lose `spin`, whose handlers these pods use.
fn held(scene: Scene, pods: &[EndingPod]) -> Scene {
    let mut report = ProvisionReport::new(Outcome::Partial);
    report.using_pods = EndingPods::of(pods);
    for handler in ["alias", "spin-v2"] {
        let pods = pods.iter().filter(|pod| pod.handler == handler);
        let number = pods.count();
        report.handlers.push(HandlerReport {
            shim: "spin".to_owned(),
            handler: handler.to_owned(),
            path: None,
            sha256: None,
            served: true,
            reason: Some(format!(
                "pods still use the handler ({number} on this node)"
            )),
            remedy: Some("delete the pods".to_owned()),
            waits_for_pods: false,
        });
    }
    scene
        .later(1)
        .job(JobProgress::Answered(Box::new(report)))
        .stepped()
}

#[test]
fn a_removal_names_the_pods_of_all_handlers_and_goes_on_within_seconds_of_the_last() {
    let pods = [pod("api", "alias"), pod("web", "spin-v2")];
    let leaving = || Scene::provisioned().no_longer_annotated().stepped();
    let scene = held(leaving(), &pods);
    let applied = scene.node.applied().unwrap();
    assert_eq!(
        applied.shims["spin"].reason.as_deref().unwrap(),
        "pods still use the handlers alias, spin-v2 (2 on this node: default/api (handler alias), default/web (handler spin-v2)). Delete the pods"
    );
    assert_eq!(scene.node.pods_to_look_at(false), (pods.to_vec(), false));
    // The next attempts of the back-off are far away.
    let mut scene = scene.left(&pods);
    for _ in 0..6 {
        scene = held(scene.later(600).stepped(), &pods);
    }
    let plan = scene.decide();
    assert_eq!(plan.look_again, Some(Duration::from_secs(5)));
    assert!(!creates_job(&plan) && scene.summary().waiting_for_pods);
    assert!(creates_job(&scene.left(&[]).decide()));
    // Pods that the API server does not know cost no series of Jobs.
    let mut scene = held(leaving(), &pods).left(&[]);
    let mut waits = Vec::new();
    for _ in 0..8 {
        scene = until_job(scene, &mut waits);
        scene = held(scene.stepped(), &pods);
    }
    assert_eq!(waits, [0, 0, 0, 30, 60, 120, 240, 480]);
    let gone = until_job(scene, &mut waits).stepped();
    let gone = gone.answers(Outcome::Applied, true, None).stepped();
    assert_eq!(gone.stepped().node.applied(), None);
}

#[test]
fn a_shim_stays_on_its_node_until_the_pods_of_its_removed_handlers_have_ended() {
    let scene = Scene::provisioned().no_longer_annotated().stepped();
    let mut report = ProvisionReport::new(Outcome::Partial);
    report.using_pods = EndingPods::of(&[pod("web", "spin-v2")]);
    report.handlers.push(HandlerReport {
        shim: "spin".to_owned(),
        handler: "spin-v2".to_owned(),
        path: Some("/opt/farrier/bin/containerd-shim-spin".to_owned()),
        sha256: None,
        served: false,
        reason: Some("pods still use the handler (1 on this node: default/web)".to_owned()),
        remedy: None,
        waits_for_pods: false,
    });
    let (after, plan) = scene.job(JobProgress::Answered(Box::new(report))).step();
    let note = plan.event.unwrap().note;
    assert!(note.contains("1 on this node: default/web"), "{note}");
    assert_eq!(after.label("farrier.dev/spin"), Some("removing"));
    assert!(after.node.applied().unwrap().holding_pods.is_some());
}

/// The progress of the Shims `spin` and `other`, and the phase of `other`.
fn progress(scene: &Scene) -> ([Option<&str>; 2], Phase) {
    let labels = ["farrier.dev/spin", "farrier.dev/other"].map(|label| scene.label(label));
    let phase = scene.summary().shims["other"].phase.clone();
    (labels, phase)
}

/// A node that gets a new release of `spin`, while `other` waits for a pod of `spin`.
fn with_new_release(failing: bool) -> (Scene, Vec<EndingPod>) {
    let web = vec![pod("web", "spin-v2")];
    let mut scene = waiting(&web, OnRestart::Refuse).stepped().left(&web);
    scene.upgrade();
    let scene = scene.stepped();
    assert!(scene.job.is_some(), "a new release does not wait");
    let mut scene = scene.waits_in_part("other", &web);
    if failing {
        fail(&mut scene);
    }
    (scene, web)
}

/// The Job's installer did not get the new release of `spin`.
fn fail(scene: &mut Scene) {
    let mut entries = scene.report().handlers.iter_mut();
    let entry = entries.find(|entry| entry.shim == "spin").unwrap();
    entry.reason = Some("the server does not answer".to_owned());
}

#[test]
fn a_shim_that_needs_no_restart_does_not_wait_with_its_node() {
    let (scene, web) = with_new_release(false);
    let (after, plan) = scene.step();
    assert_eq!(plan.event.unwrap().reason, "WaitingForPods");
    assert_eq!(plan.ended.unwrap().outcome, "waiting");
    let (labels, phase) = progress(&after);
    assert_eq!(labels, [Some("provisioned"), Some("pending")]);
    assert!(matches!(phase, Phase::WaitingForPods(_)), "{phase:?}");
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
    let there = after.stepped().later(3_600).left(&web);
    assert!(!creates_job(&there.decide()));
    assert!(creates_job(&there.left(&[]).decide()));
}

#[test]
fn a_shim_that_fails_is_tried_again_while_another_one_waits_for_pods() {
    let (scene, web) = with_new_release(true);
    let (after, plan) = scene.step();
    let event = plan.event.unwrap();
    assert!(event.warning && event.note.contains("shim spin: the server does not answer"));
    assert!(!event.note.contains("other"), "{}", event.note);
    let (labels, phase) = progress(&after);
    assert_eq!(labels, [Some("failed"), Some("pending")]);
    assert!(matches!(phase, Phase::WaitingForPods(_)), "{phase:?}");
    let there = after.stepped().left(&web);
    let before = there.later(29);
    assert!(!creates_job(&before.decide()));
    // A failure halts the rollout of the Shim, and is tried again nevertheless.
    let mut due = before.later(1);
    due.blocked = BTreeMap::from([("spin".to_owned(), "another node failed".to_owned())]);
    assert!(creates_job(&due.decide()));
    due.blocked.clear();
    // The server of the Shim still does not answer.
    let mut again = due.stepped().waits_in_part("other", &web);
    fail(&mut again);
    let again = again.stepped().stepped();
    let (labels, phase) = progress(&again);
    assert_eq!(labels, [Some("failed"), Some("pending")]);
    assert!(matches!(phase, Phase::WaitingForPods(_)), "{phase:?}");
    // The failure does not delay the restart.
    let over = again.left(&[]);
    assert!(creates_job(&over.decide()));
    let (after, _) = over
        .left(&web)
        .later(60)
        .stepped()
        .waits_in_part("other", &web)
        .step();
    let (labels, _) = progress(&after);
    assert_eq!(labels, [Some("provisioned"), Some("pending")]);
}

#[test]
fn a_rejected_job_does_not_end_the_attempts_of_a_shim_that_failed() {
    let (scene, web) = with_new_release(true);
    let mut due = scene.stepped().stepped().left(&web).later(30).stepped();
    assert!(due.job.take().is_some());
    due.rejected = Some(Problem::new("a quota", None));
    let mut rejected = due.stepped();
    rejected.rejected = None;
    assert!(!creates_job(&rejected.decide()));
    assert!(creates_job(&rejected.later(60).decide()));
}

#[test]
fn a_shim_that_waits_in_the_place_of_another_one_is_not_forgotten_on_the_host() {
    let web = [pod("web", "spin-v2")];
    let mut scene = waiting(&web, OnRestart::Refuse).stepped().left(&web);
    scene.spec();
    scene.upgrade();
    let mut scene = scene.stepped().waits_in_part("other", &web);
    // The host serves the handler under another Shim, which is deleted.
    let entries = scene.report().handlers.iter_mut();
    for entry in entries.filter(|entry| entry.waits_for_pods) {
        entry.served = true;
    }
    let after = scene.stepped();
    let applied = after.node.applied().unwrap();
    let known = &applied.shims["other"];
    assert_eq!((known.handlers["other"], &known.fulfilled), (true, &None));
}

#[test]
fn a_report_that_waits_without_pods_is_a_failure() {
    let (mut scene, _) = with_new_release(false);
    scene.report().ending_pods = EndingPods::default();
    let (after, plan) = scene.step();
    assert!(plan.event.unwrap().warning);
    assert_eq!(after.node.applied().unwrap().waiting_for_pods, None);
}

#[test]
fn pods_that_a_rollback_ended_are_looked_at_too() {
    let web = [pod("web", "spin-v2")];
    let rolled_back = |restarts| {
        let scene = waiting(&web, OnRestart::Allow);
        let mut scene = scene.answers(Outcome::RolledBack, false, Some("no"));
        scene.report().restarts = restarts;
        scene.report().ending_pods = EndingPods::of(&web);
        scene.stepped().node.applied().unwrap()
    };
    let applied = rolled_back(2);
    assert_eq!(applied.ended_pods.unwrap().pods.len(), 1);
    assert_eq!(applied.waiting_for_pods, None);
    let applied = rolled_back(0);
    assert_eq!(applied.ended_pods, None);
    assert!(applied.waiting_for_pods.is_some());
}

#[test]
fn a_run_that_recovers_with_a_restart_may_wait_for_pods_afterwards() {
    let web = [pod("web", "spin-v2")];
    let after = |result, refused_for_pods| {
        let mut scene = waiting(&web, OnRestart::Refuse);
        let report = scene.report();
        (report.result, report.restarts) = (result, 1);
        report.refused_for_pods = refused_for_pods;
        scene.stepped().node.applied().unwrap()
    };
    for result in [Outcome::Refused, Outcome::RolledBack] {
        let waits = after(result, true);
        assert_eq!((waits.reason, waits.ended_pods), (None, None));
        assert!(waits.waiting_for_pods.is_some());
        let failed = after(result, false);
        assert!(failed.reason.is_some() && failed.waiting_for_pods.is_none());
        assert_eq!(failed.ended_pods.unwrap().pods.pods, web);
    }
}

#[test]
fn a_drain_whose_pods_only_containerd_knows_is_undone() {
    let web = [pod("web", "spin-v2")];
    let mut scene = draining(&web).left(&[]);
    let (begun, mut jobs) = (scene.now, 0);
    while !taints(&scene).is_empty() {
        assert!(scene.now.duration_since(begun).as_secs() < 310, "{jobs}");
        let (after, plan) = scene.step();
        scene = after;
        if scene.job.is_some() {
            jobs += 1;
            scene = scene.refused_for(&web).stepped();
        } else {
            assert!(plan.look_again <= Some(Duration::from_secs(5)), "{plan:?}");
        }
        scene = scene.later(1);
    }
    assert_eq!(jobs, 6, "three at once, then after 30, 60 and 120 s");
    // The end of the drain comes before a Job that is due.
    let (scene, plan) = draining(&web).left(&[]).later(300).step();
    assert!(taints(&scene).is_empty() && !creates_job(&plan));
    assert!(creates_job(&scene.decide()));
}

#[rstest]
fn pods_that_only_containerd_knows_cost_a_job_every_ten_minutes_at_most_beside_a_failure(
    #[values(OnRestart::Refuse, OnRestart::Drain)] on_restart: OnRestart,
) {
    let (mut scene, web) = with_new_release(true);
    scene.on_restart = on_restart;
    scene.drain_timeout = Some(Duration::from_mins(5));
    let mut waits = Vec::new();
    for _ in 0..8 {
        scene = scene.stepped().left(&[]);
        scene = until_job(scene, &mut waits);
        scene = scene.stepped().waits_in_part("other", &web);
        fail(&mut scene);
    }
    assert_eq!(waits, [0, 0, 0, 30, 60, 120, 240, 480]);
}

/// The installer lets no Shim relax the policy for handlers that others declare.
#[test]
fn an_installer_that_refuses_in_spite_of_allow_is_asked_again_after_the_pods() {
    let web = [pod("web", "spin-v2")];
    let scene = waiting(&web, OnRestart::Allow).stepped().left(&web);
    assert!(creates_job(&scene.decide()), "the policy may have changed");
    let scene = scene.stepped().refused_for(&web).stepped().left(&web);
    let why = text(&scene);
    assert!(why.contains("set onRestart in the chart to Allow"), "{why}");
    let later = scene.later(3_600);
    assert!(!creates_job(&later.decide()));
    assert!(creates_job(&later.left(&[]).decide()));
}

#[test]
fn an_undone_drain_rests_while_a_shim_that_failed_is_tried_again() {
    let (mut scene, web) = with_new_release(true);
    scene.on_restart = OnRestart::Drain;
    scene.drain_timeout = Some(Duration::from_mins(5));
    let scene = scene.stepped().stepped().left(&web).stepped();
    assert_eq!(taints(&scene).len(), 1);
    let undone = scene.later(300).stepped();
    assert!(taints(&undone).is_empty());
    let mut again = undone.later(60).stepped();
    assert!(again.job.is_some(), "the Shim that failed is tried again");
    again = again.waits_in_part("other", &web);
    fail(&mut again);
    let again = again.stepped().stepped().left(&web).stepped();
    assert!(taints(&again).is_empty(), "the drain rests for ten minutes");
}

#[test]
fn a_retry_never_restarts_containerd_out_of_turn() {
    let (scene, web) = with_new_release(true);
    let mut scene = scene.stepped().stepped().left(&web).later(600);
    scene.blocked = BTreeMap::from([("other".to_owned(), "not its turn".to_owned())]);
    assert!(creates_job(&scene.decide()));
    let over = scene.left(&[]);
    assert!(!creates_job(&over.decide()));
}
