//! New, paused, conflicting, unreadable and deleted Shims, and the status of each.

use k8s_openapi::api::node::v1::RuntimeClass;

use super::*;
use crate::controller::decide::types::RuntimeClassStep;
use crate::controller::memory::aggregate::Fleet;
use crate::handoff::Problem;

#[test]
fn a_shim_without_its_finalizer_gets_no_new_nodes() {
    let mut scene = scene().annotated();
    scene.shims[0].has_finalizer = false;
    assert_eq!(scene.decide(), Plan::default());
}

#[test]
fn a_paused_shim_stays_on_its_nodes_whatever_its_spec() {
    let mut scene = Scene::provisioned();
    scene.spec().paused = true;
    scene.upgrade();
    assert!(scene.decide().is_empty());
    let mut gone = scene.no_longer_annotated();
    assert!(gone.decide().is_empty(), "its nodes keep it");
    gone.spec().paused = false;
    assert!(!gone.decide().is_empty());
}

#[test]
fn a_proof_is_requested_also_of_nodes_that_serve_the_shim() {
    let mut scene = Scene::provisioned();
    assert_eq!(scene.decide().job, JobStep::None);
    scene.spec().proof = Some(Proof::None);
    assert_eq!(scene.decide().job, JobStep::None);
    scene.spec().proof = Some(Proof::Sandbox);
    let JobStep::Create { request, .. } = scene.decide().job else {
        panic!("no Job")
    };
    assert_eq!(request.shims[0].proof, Proof::Sandbox);
}

#[test]
fn a_shim_without_artifact_for_the_platform_is_unsupported_without_a_job() {
    let mut scene = scene().annotated();
    scene.spec().fetch_strategy = serde_json::from_value(json!({"platforms": [
        {"os": "linux", "arch": "arm64", "location": "https://example.org/a"}]}))
    .unwrap();
    let (after, plan) = scene.step();
    assert_eq!(plan.job, JobStep::None);
    let event = plan.event.unwrap();
    assert_eq!((event.warning, &*event.reason), (false, "Unsupported"));
    assert!(event.note.contains("linux/amd64"), "{}", event.note);
    assert_eq!(after.label("farrier.dev/spin"), Some("unsupported"));
    assert!(after.decide().is_empty());
    // The node was never claimed, so no Job follows when the Shim is gone.
    let gone = Scene {
        node: after.node.clone(),
        ..self::scene()
    };
    let gone = gone.no_longer_annotated().stepped();
    assert!(gone.job.is_none() && gone.node.labels.is_empty());
    let ready = |fleet: &Fleet| {
        let conditions = after.status_of(0, fleet).status.unwrap().conditions;
        let ready = conditions.into_iter().find(|it| it.type_ == "Ready");
        ready.unwrap()
    };
    let mut fleet = Fleet::default();
    fleet.put("n1", after.summary());
    let alone = ready(&fleet);
    assert_eq!((&*alone.status, &*alone.reason), ("False", "Unsupported"));
    // If another node serves the Shim, the unsupported node is neither a failure nor counted.
    fleet.put("n2", Scene::provisioned().summary());
    let status = after.status_of(0, &fleet).status.unwrap();
    assert_eq!((status.nodes, status.nodes_failed), (1, 0));
    let both = ready(&fleet);
    assert_eq!(both.status, "True");
    assert!(both.message.contains("n1: no artifact for linux/amd64"));
}

#[test]
fn a_shim_of_a_user_takes_a_handler_from_a_default_shim() {
    let mut scene = scene().annotated();
    scene.shims.push(shim("default-spin", "spin-v2"));
    scene.shims[0].created = start() + SignedDuration::from_secs(60);
    let (after, plan) = scene.step();
    let JobStep::Create { request, .. } = plan.job else {
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
fn a_label_without_a_domain_is_not_changed_if_a_shim_selects_by_it_or_it_has_a_foreign_value() {
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
fn a_deleted_shim_loses_its_finalizer_once_no_node_carries_it() {
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
fn an_unchanged_status_is_not_written_again() {
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
fn the_label_of_a_renamed_handler_is_removed_before_the_new_handler_is_served() {
    let mut scene = Scene::provisioned();
    scene.spec().runtime_class.handler = "spin-v3".to_owned();
    let (after, plan) = scene.step();
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
    assert_eq!(after.label("handler.farrier.dev/spin-v3"), None);
    assert!(matches!(plan.job, JobStep::Create { .. }));
    let after = after.answers(Outcome::Applied, true, None).stepped();
    assert_eq!(after.label("handler.farrier.dev/spin-v3"), Some("true"));
    assert!(after.stepped().decide().is_empty());
}

#[test]
fn a_paused_shim_with_changed_runtime_classes_is_not_ready() {
    let mut paused = Scene::provisioned();
    paused.spec().paused = true;
    let status = paused.status(0).status.unwrap();
    assert_eq!(status.state.as_deref(), Some("Paused"));
    let ready = &status.conditions[0];
    assert_eq!((&*ready.status, &*ready.reason), ("False", "Paused"));
    assert!(
        ready
            .message
            .ends_with("spec.paused is true: its RuntimeClasses are not changed"),
        "{ready:?}"
    );
}

#[test]
fn a_rejected_finalizer_is_told_in_the_status() {
    let mut scene = Scene::provisioned();
    scene.shims[0].has_finalizer = false;
    assert_eq!(scene.status(0).status, None);
    scene.rejected = Some(Problem::new(
        "failed to set the finalizer of Shim spin: no",
        None,
    ));
    let plan = scene.status(0);
    assert_eq!(plan.finalizer, Finalizer::Add);
    assert_eq!(plan.events.len(), 1);
    let status = plan.status.unwrap();
    let ready = &status.conditions[0];
    assert!(
        ready.message.contains("set the finalizer of Shim spin: no"),
        "{ready:?}"
    );
    scene.shims[0].status = Some(status);
    assert_eq!(scene.status(0).status, None, "it is written once");
}

#[test]
fn a_shim_without_its_finalizer_stays_on_its_nodes() {
    let mut scene = Scene::provisioned();
    scene.shims[0].has_finalizer = false;
    assert!(scene.decide().is_empty());
    assert_eq!(scene.status(0).finalizer, Finalizer::Add);
}

#[test]
fn an_unreadable_shim_stays_on_its_nodes_and_gets_no_new_ones() {
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
        "an unchanged status is not written again"
    );

    let mut elsewhere = scene().annotated();
    elsewhere.shims[0].spec = unreadable;
    assert_eq!(elsewhere.decide(), Plan::default());
    elsewhere.shims[0].deleting = true;
    assert_eq!(elsewhere.status(0).finalizer, Finalizer::Release);
}

#[test]
fn no_label_without_a_domain_is_changed_while_an_unreadable_shim_may_select_by_it() {
    let mut scene = scene().annotated();
    let mut other = shim("other", "other");
    other.spec = Err("newer".to_owned());
    scene.shims.push(other);
    let after = scene.stepped();
    assert_eq!(after.label("farrier.dev/spin"), Some("pending"));
    assert_eq!(after.label("spin"), None);
}

#[test]
fn a_label_without_a_domain_is_foreign_without_farriers_own_label_beside_it() {
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
fn shims_beyond_the_size_limit_of_a_node_fail_each_by_itself() {
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
    let JobStep::Create { request, .. } = plan.job else {
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
fn a_request_reserves_the_handlers_of_all_shims_with_their_options() {
    let mut scene = scene().annotated();
    let mut other = shim("wasmtime", "wasmtime");
    let spec = other.spec.as_mut().unwrap();
    spec.annotation_selector = Some(BTreeMap::from([("a".to_owned(), "b".to_owned())]));
    spec.handler_aliases = vec!["wasmtime-v1".to_owned()];
    let options = BTreeMap::from([("SystemdCgroup".to_owned(), "true".to_owned())]);
    spec.containerd_runtime_options = Some(options);
    scene.shims.push(other);
    let JobStep::Create { request, .. } = scene.decide().job else {
        panic!("no Job")
    };
    assert_eq!(request.reserve, ["wasmtime", "wasmtime-v1"]);
    assert_eq!(
        request.reserve_options["wasmtime-v1"]["SystemdCgroup"],
        OptionValue::Boolean(true)
    );
}

#[test]
fn reserved_handlers_of_other_shims_cause_no_new_job() {
    let mut scene = Scene::provisioned();
    let mut other = shim("wasmtime", "wasmtime");
    let spec = other.spec.as_mut().unwrap();
    spec.annotation_selector = Some(BTreeMap::from([("a".to_owned(), "b".to_owned())]));
    scene.shims.push(other);
    assert!(scene.decide().is_empty());
}

#[test]
fn the_finalizer_of_runtime_class_manager_is_removed_from_a_deleted_shim() {
    let mut scene = scene();
    scene.shims[0].has_finalizer = false;
    scene.shims[0].has_rcm_finalizer = true;
    assert_eq!(scene.status(0).finalizer, Finalizer::Add);
    scene.shims[0].deleting = true;
    assert_eq!(scene.status(0).finalizer, Finalizer::Release);
    // If another controller sets the finalizer again, Farrier leaves it.
    scene.shims[0].deleting = false;
    scene.shims[0].has_finalizer = true;
    assert_eq!(scene.status(0).finalizer, Finalizer::Keep);
}

#[test]
fn a_changed_condition_publishes_one_event() {
    let mut scene = Scene::provisioned();
    let published = scene.status(0);
    let notes: Vec<&str> = published
        .events
        .iter()
        .map(|event| &*event.reason)
        .collect();
    assert_eq!(notes, ["Provisioned"]);
    scene.shims[0].status = published.status;
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
    let published = failed.status(0);
    assert!(
        published.events[0].warning && published.events[0].note.contains("no room"),
        "{published:?}"
    );
    // The failed node is not asked for any more, so no success follows.
    let mut unselected = failed;
    unselected.shims[0].status = published.status;
    unselected.node.annotations.clear();
    let published = unselected.stepped().status(0).events;
    let told: Vec<_> = published
        .iter()
        .map(|event| (event.warning, &*event.reason, &*event.note))
        .collect();
    assert_eq!(told, [(false, "AsExpected", "no node failed")]);
}

#[test]
fn a_shim_with_more_options_than_a_job_can_hold_is_not_reserved() {
    let mut scene = scene().annotated();
    let mut large = shim("large", "large");
    let spec = large.spec.as_mut().unwrap();
    spec.annotation_selector = Some([("nobody".to_owned(), "has it".to_owned())].into());
    let options = (0..5_000).map(|at| (format!("option-{at}"), "x".repeat(20)));
    spec.containerd_runtime_options = Some(options.collect());
    let mut small = shim("small", "small");
    small.spec.as_mut().unwrap().annotation_selector =
        Some([(String::new(), String::new())].into());
    scene.shims.extend([large, small]);
    let JobStep::Create { request, .. } = scene.decide().job else {
        panic!("no Job")
    };
    assert_eq!(request.reserve, ["small"]);
}

/// The state of the Shim, and status, reason and message of a condition; all empty without the condition.
fn told(scene: &Scene, kind: &str) -> (String, [String; 3]) {
    let mut fleet = Fleet::default();
    fleet.put(&scene.node.name, scene.summary());
    let status = scene.status_of(0, &fleet).status.unwrap();
    let mut conditions = status.conditions.into_iter();
    let found = conditions.find(|condition| condition.type_ == kind);
    let found = found.map(|it| [it.status, it.reason, it.message]);
    (status.state.unwrap(), found.unwrap_or_default())
}

/// The RuntimeClasses that the first Shim creates.
fn own_classes(scene: &Scene) -> Vec<RuntimeClass> {
    let steps = scene.status(0).runtime_classes.into_iter();
    let created = steps.filter_map(|step| match step {
        RuntimeClassStep::Create(class) => Some(*class),
        RuntimeClassStep::Replace(_) | RuntimeClassStep::Delete { .. } => None,
    });
    created.collect()
}

#[test]
fn a_paused_shim_is_ready_only_while_its_nodes_have_it_as_specified() {
    let mut scene = Scene::provisioned();
    scene.classes = own_classes(&scene);
    scene.spec().paused = true;
    let (state, ready) = told(&scene, "Ready");
    assert_eq!((&*state, &*ready[0]), ("Paused", "True"));
    let mut edited = scene;
    edited.upgrade();
    let (state, ready) = told(&edited, "Ready");
    assert_eq!(
        (&*state, &*ready[0], &*ready[1]),
        ("Paused", "False", "Paused")
    );
    let message = "0 of 1 nodes serve the Shim as specified; spec.paused is true";
    assert_eq!(ready[2], message);
    assert!(edited.decide().is_empty());
}

#[test]
fn a_node_that_a_paused_shim_no_longer_selects_does_not_make_it_ready() {
    let mut scene = Scene::provisioned().no_longer_annotated();
    scene.spec().paused = true;
    let (_, ready) = told(&scene, "Ready");
    assert_eq!((&*ready[0], &*ready[1]), ("False", "Paused"));
}

#[test]
fn a_paused_shim_says_which_nodes_do_not_have_it() {
    let mut scene = scene().annotated();
    scene.spec().paused = true;
    let (state, ready) = told(&scene, "Ready");
    assert_eq!(
        (&*state, &*ready[0], &*ready[1]),
        ("Paused", "False", "Paused")
    );
    assert!(ready[2].starts_with("0 of 1 nodes"), "{ready:?}");
}

#[rstest]
#[case::cordoned(true, true, "1 waits: n1 is cordoned")]
#[case::not_ready(false, false, "1 waits: n1 is not ready")]
#[case::both(false, true, "1 waits: n1 is not ready")]
fn a_node_that_no_job_may_change_is_named_with_its_state(
    #[case] ready: bool,
    #[case] cordoned: bool,
    #[case] said: &str,
) {
    let mut scene = scene().annotated();
    (scene.node.ready, scene.node.cordoned) = (ready, cordoned);
    let scene = scene.stepped();
    for kind in ["Ready", "Progressing"] {
        let (state, told) = told(&scene, kind);
        let message = format!("0 of 1 nodes serve the Shim as specified; {said}");
        assert_eq!(state, "WaitingForNodes");
        assert_eq!(told, ["False", "WaitingForNodes", &*message]);
    }
    // While its Job runs, the node is in progress.
    let mut running = super::scene().annotated().stepped();
    (running.node.ready, running.node.cordoned) = (ready, cordoned);
    let (_, progressing) = told(&running, "Progressing");
    assert_eq!(&*progressing[1], "Provisioning");
}

#[test]
fn a_removal_from_a_node_that_is_not_ready_says_so() {
    let mut leaving = Scene::provisioned().no_longer_annotated();
    leaving.node.ready = false;
    let (_, progressing) = told(&leaving.stepped(), "Progressing");
    let message = "the Shim is still on these nodes: n1: the node is not ready";
    assert_eq!(progressing, ["True", "Removing", message]);
}

#[test]
fn a_shim_that_selects_no_node_is_not_ready_and_names_its_selectors() {
    let mut scene = scene();
    scene.spec().node_selector = Some([("pool".to_owned(), "wasm".to_owned())].into());
    let (state, ready) = told(&scene, "Ready");
    assert_eq!((&*state, ready), ("NoNodes", <[String; 3]>::default()));
    let (_, progressing) = told(&scene, "Progressing");
    let message = "the Shim selects no node: no node has the label pool=wasm and the annotation kwasm.sh/kwasm-node=true";
    assert_eq!(progressing, ["False", "NoNodes", message]);
}

#[test]
fn a_provisioned_shim_has_the_state_ready() {
    let (state, ready) = told(&Scene::provisioned(), "Ready");
    assert_eq!((&*state, &*ready[1]), ("Ready", "Provisioned"));
}

fn class_of_others(more: &serde_json::Value) -> RuntimeClass {
    let mut class = json!({"metadata": {"name": "mine", "uid": "u"}, "handler": "spin-v2"});
    for (key, value) in more.as_object().unwrap() {
        class[key] = value.clone();
    }
    serde_json::from_value(class).unwrap()
}

#[test]
fn a_runtime_class_of_others_is_adopted_and_described_and_the_shim_is_ready() {
    let mut scene = Scene::provisioned();
    let annotations = json!({"objectset.rio.cattle.io/owner-name": "runtimes"});
    let metadata = json!({"name": "spin", "uid": "u", "annotations": annotations});
    scene.classes = vec![class_of_others(&json!({"metadata": metadata}))];
    let RuntimeClassStep::Replace(adopted) = scene.status(0).runtime_classes.remove(0) else {
        panic!("not adopted")
    };
    let (state, ready) = told(&scene, "Ready");
    assert_eq!((&*state, &*ready[0]), ("Ready", "True"));
    for part in [
        "RuntimeClass spin: it belongs to others and has no node selector of the handler, so its pods may be scheduled",
        "if it is deleted, running pods stay, and Farrier creates its own",
        "--disable=runtimes",
    ] {
        assert!(ready[2].contains(part), "{ready:?}");
    }
    scene.classes = vec![*adopted];
    let (_, ready) = told(&scene, "Ready");
    let part = "RuntimeClass spin: it belongs to others, so Farrier adds only the node selector";
    assert!(ready[0] == "True" && ready[2].contains(part), "{ready:?}");
    assert_eq!(scene.status(0).runtime_classes, []);
}

#[test]
fn a_refused_change_of_a_runtime_class_of_others_does_not_make_the_shim_unusable() {
    let mut scene = Scene::provisioned();
    scene.classes = vec![class_of_others(&json!({}))];
    let refusal = "failed to change RuntimeClass mine: adoptableHandlers does not list it";
    scene.rejected = Some(Problem::new(refusal, None));
    let (state, ready) = told(&scene, "Ready");
    assert_eq!((&*state, &*ready[0]), ("Ready", "True"));
    assert!(ready[2].contains(refusal), "{ready:?}");
    scene.rejected = Some(Problem::new("failed to create RuntimeClass spin: no", None));
    assert_eq!(told(&scene, "Ready").0, "Unusable");
}

#[test]
fn a_deleted_shim_keeps_its_finalizer_until_the_adopted_runtime_class_is_returned() {
    let mut scene = scene();
    let metadata =
        json!({"name": "mine", "uid": "u", "annotations": {"farrier.dev/adopted-by": "spin"}});
    let scheduling = json!({"nodeSelector": {"handler.farrier.dev/spin-v2": "true"}});
    let adopted = class_of_others(&json!({"metadata": metadata, "scheduling": scheduling}));
    scene.classes = vec![adopted];
    scene.shims[0].deleting = true;
    let plan = scene.status(0);
    assert_eq!(
        (plan.finalizer, plan.runtime_classes.len()),
        (Finalizer::Keep, 1)
    );
    let mut refused = Scene {
        classes: scene.classes.clone(),
        shims: scene.shims.clone(),
        ..super::scene()
    };
    refused.rejected = Some(Problem::new("failed to change RuntimeClass mine: no", None));
    assert_eq!(refused.status(0).finalizer, Finalizer::Release);
    scene.classes.clear();
    assert_eq!(scene.status(0).finalizer, Finalizer::Release);
}

#[test]
fn a_deleted_shim_says_that_new_pods_of_its_runtime_classes_are_refused() {
    let mut scene = Scene::provisioned();
    scene.shims[0].deleting = true;
    let (state, ready) = told(&scene, "Ready");
    assert_eq!((&*state, &*ready[0]), ("Removing", "False"));
    let part = "new pods with the runtimeClassName spin are refused";
    assert!(ready[2].contains(part), "{ready:?}");
}

#[test]
fn a_shim_whose_handlers_another_shim_has_on_all_nodes_does_not_claim_to_select_none() {
    let mut scene = Scene::provisioned();
    let mut younger = shim("younger", "spin-v2");
    younger.created = start() + SignedDuration::from_secs(60);
    scene.shims.insert(0, younger);
    let (state, _) = told(&scene, "Ready");
    let (_, progressing) = told(&scene, "Progressing");
    let message = "another Shim has the handlers of the only node that the Shim selects";
    assert_eq!((&*state, &*progressing[2]), ("Conflict", message));
}

#[test]
fn a_conflict_names_the_other_shim_in_the_condition_ready() {
    let mut scene = Scene::provisioned();
    let mut other = shim("another", "another");
    other.spec.as_mut().unwrap().runtime_class.name = "spin".to_owned();
    other.created = start() - SignedDuration::from_secs(60);
    scene.shims.push(other);
    let (state, ready) = told(&scene, "Ready");
    assert_eq!((&*state, &*ready[0]), ("Conflict", "False"));
    assert!(
        ready[2].contains("RuntimeClass spin belongs to Shim another"),
        "{ready:?}"
    );
}
