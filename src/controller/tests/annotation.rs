//! The annotation `farrier.dev/applied` as an attacker writes it, as the previous release wrote it, and what it holds after a whole cycle.

use serde_json::Value;

use super::*;
use crate::handoff::ShimRequest;
use crate::names;

/// Why a node keeps a Shim as it is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kept {
    Paused,
    Waiting,
    Unreadable,
    WithoutArtifact,
    WithoutPlatform,
}

/// The node serves `spin-v2` of the Shim `spin`, and keeps it.
fn keeping(kept: Kept) -> Scene {
    let mut scene = Scene::provisioned();
    match kept {
        Kept::Paused => scene.spec().paused = true,
        Kept::Waiting => {
            scene.upgrade();
            let why = "another node changes".to_owned();
            scene.blocked.insert("spin".to_owned(), why);
        }
        Kept::Unreadable => scene.shims[0].spec = Err("newer".to_owned()),
        Kept::WithoutArtifact => scene.spec().fetch_strategy.anon_http = None,
        Kept::WithoutPlatform => scene.node.arch = String::new(),
    }
    scene
}

fn annotation(scene: &Scene) -> Value {
    serde_json::from_str(&scene.node.annotations[names::APPLIED_ANNOTATION]).unwrap()
}

fn annotate(scene: &mut Scene, annotation: &Value) {
    let key = names::APPLIED_ANNOTATION.to_owned();
    scene.node.annotations.insert(key, annotation.to_string());
}

/// Writes `part` over the entry of the Shim `spin`, and claims that another request was answered, so that a Job is due.
fn forge(scene: &mut Scene, part: &Value) {
    let mut forged = annotation(scene);
    for (key, value) in part.as_object().unwrap() {
        forged["shims"]["spin"][key] = value.clone();
    }
    forged["digest"] = "0".repeat(64).into();
    forged["bootId"] = "another".into();
    annotate(scene, &forged);
}

fn request(part: &Value) -> Value {
    let mut request =
        json!({"name": "spin", "handlers": ["spin-v2"], "location": "https://evil.example/a"});
    for (key, value) in part.as_object().unwrap() {
        request[key] = value.clone();
    }
    json!({"request": request})
}

const FORGED: [&str; 5] = ["evil", "BinaryName", "/tmp", "ghost", "e0e0e0"];

#[rstest]
#[case::options(request(&json!({"options": {"BinaryName": "/tmp/evil", "ConfigPath": "/tmp/x"}})))]
#[case::many_options(request(&json!({"options": {"BinaryName": "/tmp/evil".repeat(11_000)}})))]
#[case::location(request(&json!({"location": "file:///tmp/evil"})))]
#[case::binary(request(&json!({"binary": "evil", "binarySha256": "e0".repeat(32)})))]
#[case::another_handler({
    let mut part = request(&json!({"handlers": ["evil-h"]}));
    part["handlers"] = json!({"evil-h": true});
    part
})]
#[case::one_more_handler(json!({"handlers": {"spin-v2": true, "evil-h": true}}))]
#[case::only_another_handler(json!({"handlers": {"evil-h": true}}))]
#[case::another_shim(request(&json!({"name": "ghost"})))]
#[case::no_request(json!({"request": "/tmp/evil"}))]
#[case::another_binary(json!({"sha256": "e0".repeat(32)}))]
#[case::no_fingerprint(json!({"fulfilled": "/tmp/evil"}))]
#[case::another_fingerprint(json!({"fulfilled": "e0e0e0e0e0e0e0e0"}))]
fn a_forged_annotation_reaches_no_host_and_no_label(
    #[case] part: Value,
    #[values(
        Kept::Paused,
        Kept::Waiting,
        Kept::Unreadable,
        Kept::WithoutArtifact,
        Kept::WithoutPlatform
    )]
    kept: Kept,
) {
    let mut scene = keeping(kept);
    if part.get("request").is_some() {
        let mut before = annotation(&scene);
        let entry = before["shims"]["spin"].as_object_mut().unwrap();
        entry.remove("fulfilled");
        annotate(&mut scene, &before);
    }
    forge(&mut scene, &part);
    let (asked, plan) = scene.step();
    let JobStep::Create { request, .. } = plan.job else {
        panic!("no Job")
    };
    assert_eq!(request.shims, [ShimRequest::kept("spin")]);
    let text = request.to_json();
    for forged in FORGED {
        assert!(!text.contains(forged), "{text}");
        let mut labels = asked.node.labels.keys();
        assert!(!labels.any(|label| label.contains(forged)));
    }
    // The report of the host replaces what was forged.
    let after = asked.answers(Outcome::Unchanged, true, None).stepped();
    let progress = match kept {
        Kept::WithoutArtifact => "failed",
        Kept::Paused | Kept::Waiting | Kept::Unreadable | Kept::WithoutPlatform => "provisioned",
    };
    assert_eq!(after.label("farrier.dev/spin"), Some(progress));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
    let handlers = annotation(&after)["shims"]["spin"]["handlers"].clone();
    assert_eq!(handlers, json!({"spin-v2": true}));
    assert_eq!(after.stepped().decide().job, JobStep::None);
}

#[test]
fn a_forged_handler_alone_does_not_make_a_kept_shim_provisioned() {
    let mut scene = keeping(Kept::Paused);
    let mut forged = annotation(&scene);
    forged["shims"]["spin"]["handlers"] = json!({"evil-h": true});
    annotate(&mut scene, &forged);
    let (after, plan) = scene.step();
    assert_eq!(after.label("farrier.dev/spin"), Some("pending"));
    assert_eq!(after.label("handler.farrier.dev/evil-h"), None);
    assert!(matches!(plan.job, JobStep::Create { .. }));
}

#[rstest]
#[case::fulfilled(json!({"fulfilled": "0".repeat(16), "handlers": {"ghost": true}}))]
#[case::failed(json!({"handlers": {"ghost": false}, "reason": "no"}))]
#[case::of_the_previous_release(
    json!({"request": {"name": "ghost", "handlers": ["ghost"], "location": "https://evil.example/a"}})
)]
fn an_entry_for_a_shim_that_nobody_has_writes_no_label_and_lets_a_job_look(#[case] entry: Value) {
    let mut scene = Scene::provisioned();
    let mut forged = annotation(&scene);
    forged["shims"]["ghost"] = entry;
    annotate(&mut scene, &forged);
    let summary = scene.summary_before();
    assert_eq!(summary.shims.keys().collect::<Vec<_>>(), ["spin"]);
    let (asked, plan) = scene.step();
    let JobStep::Create { request, .. } = plan.job else {
        panic!("no Job")
    };
    let names: Vec<&str> = request.shims.iter().map(|shim| &*shim.name).collect();
    assert_eq!(names, ["spin"]);
    let after = asked.answers(Outcome::Unchanged, true, None).stepped();
    for key in ["farrier.dev/ghost", "ghost", "handler.farrier.dev/ghost"] {
        assert_eq!(after.label(key), None);
    }
    assert!(after.stepped().decide().is_empty());
}

#[rstest]
#[case::of_another_node(|forged: &mut Value| forged["nodeUid"] = "another".into())]
#[case::invalid_handler(|forged: &mut Value| forged["shims"]["spin"]["handlers"] = json!({"a/b": true}))]
#[case::invalid_shim(|forged: &mut Value| forged["shims"]["../a"] = json!({}))]
#[case::no_object(|forged: &mut Value| *forged = json!("a".repeat(100_000)))]
fn a_shim_is_kept_if_its_annotation_can_not_be_used(
    #[case] forge: fn(&mut Value),
    #[values(Kept::Paused, Kept::Waiting, Kept::Unreadable)] kept: Kept,
) {
    let mut scene = keeping(kept);
    let mut forged = annotation(&scene);
    forge(&mut forged);
    annotate(&mut scene, &forged);
    let (asked, plan) = scene.step();
    let JobStep::Create { request, .. } = plan.job else {
        panic!("no Job")
    };
    assert_eq!(request.shims, [ShimRequest::kept("spin")]);
    assert_eq!(asked.decide().job, JobStep::None);
    let after = asked.answers(Outcome::Unchanged, true, None).stepped();
    assert_eq!(after.label("farrier.dev/spin"), Some("provisioned"));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
    assert_eq!(after.decide().job, JobStep::None);
}

#[test]
fn a_long_reason_in_the_annotation_is_shortened_to_one_line() {
    let mut scene =
        scene()
            .annotated()
            .stepped()
            .answers(Outcome::Refused, false, Some("no containerd"));
    scene = scene.stepped();
    let mut forged = annotation(&scene);
    let long = "e\n\u{1b}[2J".repeat(20_000);
    forged["reason"] = long.clone().into();
    forged["shims"]["spin"]["reason"] = long.into();
    annotate(&mut scene, &forged);
    let status = scene.status(0).status.unwrap();
    let longest = status.conditions.iter().map(|it| it.message.len()).max();
    assert!(longest < Some(2_000), "{longest:?}");
    assert!(!format!("{:?}", status.conditions).contains("\\u{1b}"));
}

#[test]
fn a_shim_that_the_host_does_not_know_is_reported_and_leaves_the_request() {
    let mut scene = keeping(Kept::Paused);
    forge(&mut scene, &json!({}));
    let mut asked = scene.stepped();
    asked.host.clear();
    let (after, plan) = asked.answers(Outcome::Unchanged, true, None).step();
    let note = plan.event.unwrap().note;
    assert!(
        note.contains("spin is not installed on this host"),
        "{note}"
    );
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
    let (asked, plan) = after.step();
    let JobStep::Create { request, .. } = plan.job else {
        panic!("no Job")
    };
    assert_eq!(request.shims, []);
    let after = asked.answers(Outcome::Unchanged, true, None).stepped();
    assert_eq!(after.label("farrier.dev/spin"), None);
    assert_eq!(after.stepped().decide(), Plan::default());
}

/// The annotation as the previous release wrote it: with the whole request of each Shim.
fn of_the_previous_release(scene: &mut Scene) {
    let job = scene::scene().annotated().stepped().job.unwrap();
    let request = serde_json::to_value(&job.request.unwrap().shims[0]).unwrap();
    let mut annotation = annotation(scene);
    let entry = annotation["shims"]["spin"].as_object_mut().unwrap();
    entry.remove("fulfilled");
    entry.insert("request".to_owned(), request);
    annotate(scene, &annotation);
}

#[rstest]
fn an_annotation_of_the_previous_release_is_read_without_a_job(
    #[values(
        None,
        Some(Kept::Paused),
        Some(Kept::Waiting),
        Some(Kept::Unreadable),
        Some(Kept::WithoutArtifact)
    )]
    kept: Option<Kept>,
) {
    let mut scene = kept.map_or_else(Scene::provisioned, keeping);
    of_the_previous_release(&mut scene);
    let (after, plan) = scene.step();
    assert_eq!(plan.job, JobStep::None);
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
    // The request is gone with the first write.
    assert_eq!(annotation(&after)["shims"]["spin"].get("request"), None);
    assert!(after.decide().is_empty());
}

#[rstest]
fn pausing_waiting_and_unreadable_shims_need_no_job(
    #[values(Kept::Paused, Kept::Waiting, Kept::Unreadable, Kept::WithoutPlatform)] kept: Kept,
) {
    let scene = keeping(kept);
    assert!(scene.decide().is_empty());
    assert!(!scene.summary().changing);
}

#[test]
fn the_label_of_an_unreadable_shim_returns_with_the_report() {
    let mut scene = keeping(Kept::Unreadable);
    scene.node.labels.remove("handler.farrier.dev/spin-v2");
    let asked = scene.stepped();
    assert_eq!(asked.label("handler.farrier.dev/spin-v2"), None);
    let after = asked.answers(Outcome::Unchanged, true, None).stepped();
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
    assert!(after.decide().is_empty());
}

#[test]
fn a_waiting_node_keeps_the_label_of_a_handler_that_the_shim_no_longer_names() {
    let mut scene = Scene::provisioned();
    scene.spec().runtime_class.handler = "spin-v3".to_owned();
    let why = "another node changes".to_owned();
    scene.blocked.insert("spin".to_owned(), why);
    let after = scene.stepped();
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
    assert_eq!(after.label("handler.farrier.dev/spin-v3"), None);
    assert_eq!(after.label("farrier.dev/spin"), Some("provisioned"));
}

#[test]
fn nothing_of_a_location_or_an_option_is_in_the_node_after_a_whole_cycle() {
    let mut scene = scene().annotated();
    let secrets = ["PASSWORD1", "SIGNATURE1", "OPTION1", "good.example"];
    let spec = scene.spec();
    spec.fetch_strategy.anon_http.as_mut().unwrap().location =
        "https://user:PASSWORD1@good.example/x.tar.gz?sig=SIGNATURE1".to_owned();
    spec.containerd_runtime_options = Some([("Key".to_owned(), "OPTION1".to_owned())].into());
    let is_free = |scene: &Scene| {
        let node = format!("{:?} {:?}", scene.node.labels, scene.node.annotations);
        for secret in secrets {
            assert!(!node.contains(secret), "{node}");
        }
    };
    let asked = scene.stepped();
    is_free(&asked);
    let failed = asked.answers(Outcome::Refused, false, Some("no containerd"));
    let failed = failed.stepped();
    is_free(&failed);
    let mut served = failed
        .later(30)
        .stepped()
        .answers(Outcome::Applied, true, None)
        .stepped();
    is_free(&served);
    served.spec().containerd_runtime_options = None;
    let why = "another node changes".to_owned();
    served.blocked.insert("spin".to_owned(), why);
    let mut waiting = served.stepped();
    is_free(&waiting);
    waiting.spec().paused = true;
    let removed = waiting.stepped();
    is_free(&removed);
}

#[test]
fn a_shim_on_the_node_keeps_its_room_when_a_shim_with_large_options_comes() {
    let mut scene = scene().annotated();
    scene.shims = vec![shim("default-spin", "spin-v2")];
    let mut scene = scene
        .stepped()
        .answers(Outcome::Applied, true, None)
        .stepped();
    let large = |name: &str| {
        let mut large = shim(name, name);
        let options = (0..60).map(|at| (format!("option-{at}"), "x".repeat(1_000)));
        large.spec.as_mut().unwrap().containerd_runtime_options = Some(options.collect());
        large
    };
    // Shims of users come before default Shims.
    scene.shims.extend([large("a"), large("b"), large("c")]);
    let (asked, plan) = scene.step();
    let JobStep::Create { request, .. } = plan.job else {
        panic!("no Job")
    };
    let names: Vec<&str> = request.shims.iter().map(|shim| &*shim.name).collect();
    assert_eq!(names, ["a", "b", "default-spin"]);
    assert_eq!(asked.label("farrier.dev/default-spin"), Some("provisioned"));
    assert_eq!(asked.label("farrier.dev/c"), Some("failed"));
    let note = plan.event.unwrap().note;
    assert!(note.contains("too large for one Job"), "{note}");
    // A Shim on the node that grows too large is kept as it is.
    let mut served = asked.answers(Outcome::Applied, true, None).stepped();
    served.shims[0] = ShimView {
        spec: large("default-spin").spec,
        ..served.shims[0].clone()
    };
    let (after, plan) = served.step();
    assert_eq!(plan.job, JobStep::None);
    assert_eq!(after.label("farrier.dev/default-spin"), Some("failed"));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
    assert_eq!(after.label("farrier.dev/a"), Some("provisioned"));
}
