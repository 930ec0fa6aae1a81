//! Nodes that can't carry shims, and Shims that a node can't carry: no Job, no failure, no halt.

use super::*;
use crate::controller::cluster::node_view::NodeView;
use crate::controller::memory::node_summary::Phase;
use crate::names::reasons;

fn with_label(node: &mut NodeView, key: &str, value: &str) {
    node.labels.insert(key.to_owned(), value.to_owned());
}

fn without_report(node: &mut NodeView) {
    (node.os, node.arch, node.runtime) = (String::new(), String::new(), String::new());
}

#[rstest]
#[case::windows(|node: &mut NodeView| node.os = "windows".to_owned(), "this node runs windows")]
#[case::windows_by_its_label_alone(
    |node: &mut NodeView| {
        without_report(node);
        with_label(node, "kubernetes.io/os", "windows");
    },
    "this node runs windows"
)]
#[case::docker(|node: &mut NodeView| node.runtime = "docker://28.0.1".to_owned(), "runtime docker://28.0.1 instead of containerd")]
#[case::crio(|node: &mut NodeView| node.runtime = "cri-o://1.33.0".to_owned(), "runtime cri-o://1.33.0 instead of containerd")]
#[case::a_name_that_begins_like_containerd(|node: &mut NodeView| node.runtime = "containerd-x://1".to_owned(), "instead of containerd")]
#[case::no_runtime(|node: &mut NodeView| node.runtime = String::new(), "reports no container runtime")]
#[case::ready_without_any_report(without_report, "reports no container runtime")]
#[case::virtual_kubelet(|node: &mut NodeView| with_label(node, "type", "virtual-kubelet"), "this node is virtual")]
#[case::fargate(|node: &mut NodeView| with_label(node, "eks.amazonaws.com/compute-type", "fargate"), "this node is virtual")]
#[case::a_taint_of_virtual_kubelet(
    |node: &mut NodeView| node.taints.push(Taint {
        key: "virtual-kubelet.io/provider".to_owned(),
        value: Some("azure".to_owned()),
        effect: "NoSchedule".to_owned(),
        time_added: None,
    }),
    "this node is virtual"
)]
fn a_node_that_can_carry_no_shim_is_unsupported_and_gets_no_job(
    #[case] change: fn(&mut NodeView),
    #[case] reason: &str,
) {
    let mut scene = scene().annotated();
    change(&mut scene.node);
    scene.node.taints.push(Taint {
        key: "farrier.dev/not-ready".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    });
    let summary = scene.summary();
    let Phase::Unsupported(said) = &summary.shims["spin"].phase else {
        panic!("{summary:?}");
    };
    assert!(said.contains(reason), "{said}");
    assert!(!summary.changing && !summary.shims["spin"].carried);
    let (after, plan) = scene.step();
    assert_eq!(plan.job, JobStep::None);
    let event = plan.event.unwrap();
    assert_eq!(
        (event.warning, &*event.reason),
        (false, reasons::UNSUPPORTED)
    );
    assert_eq!(event.note, *said);
    assert_eq!(after.label("farrier.dev/spin"), Some("unsupported"));
    // The label of runtime-class-manager has no such value.
    assert_eq!(after.label("spin"), Some("failed"));
    let taints = &after.node.taints;
    assert!(
        !taints
            .iter()
            .any(|taint| taint.key == "farrier.dev/not-ready")
    );
    let later = after.later(48 * 3_600);
    assert!(later.decide().is_empty());
    let gone = later.no_longer_annotated().stepped();
    assert_eq!(
        (gone.label("farrier.dev/spin"), gone.label("spin")),
        (None, None)
    );
    assert!(gone.job.is_none() && gone.decide().is_empty());
}

#[rstest]
#[case::of_a_runtime_that_does_not_answer(|node: &mut NodeView| node.runtime = "containerd://Unknown".to_owned(), true)]
#[case::that_has_reported_nothing_yet(
    |node: &mut NodeView| {
        without_report(node);
        node.ready = false;
    },
    false
)]
fn a_node_of_containerd_is_supported_and_a_new_node_is_waited_for(
    #[case] change: fn(&mut NodeView),
    #[case] has_job: bool,
) {
    let mut scene = scene().annotated();
    change(&mut scene.node);
    let plan = scene.decide();
    assert_eq!(matches!(plan.job, JobStep::Create { .. }), has_job);
    assert_eq!(plan.edit.is_some(), has_job);
    assert_eq!(plan.event, None);
    let phase = &scene.summary().shims["spin"].phase;
    assert_eq!(*phase == Phase::WaitingForNode("not ready"), !has_job);
}

#[test]
fn a_node_that_changes_its_runtime_is_decided_anew() {
    let mut docker = Scene::provisioned();
    docker.node.runtime = "docker://28.0.1".to_owned();
    let (mut docker, plan) = docker.step();
    assert_eq!(plan.job, JobStep::None);
    assert_eq!(docker.label("farrier.dev/spin"), Some("unsupported"));
    for label in ["handler.farrier.dev/spin-v2", "kwasm.sh/kwasm-provisioned"] {
        assert_eq!(docker.label(label), None);
    }
    assert!(docker.decide().is_empty());
    // No Job can remove the Shim there, so it does not wait for the node.
    docker.shims[0].deleting = true;
    assert_eq!(docker.status(0).finalizer, Finalizer::Release);
    let gone = docker.stepped();
    assert!(gone.node.labels.is_empty() && gone.node.annotations.len() == 1);
    assert!(gone.job.is_none() && gone.decide().is_empty());

    let mut back = Scene::provisioned();
    back.node.runtime = "docker://28.0.1".to_owned();
    let mut back = back.stepped();
    back.node.runtime = "containerd://2.2.0".to_owned();
    let back = back.stepped();
    assert!(back.job.is_some());
    let back = back.answers(Outcome::Unchanged, true, None).stepped();
    assert_eq!(back.label("farrier.dev/spin"), Some("provisioned"));
    assert_eq!(back.label("handler.farrier.dev/spin-v2"), Some("true"));
}

impl Scene {
    /// The installer reports that the artifact of the Shim is for another CPU.
    fn answers_for_another_cpu(self) -> Self {
        let reason = "the binary is for the CPU aarch64, and the host has the CPU x86_64";
        let mut scene = self.answers(Outcome::Refused, false, Some(reason));
        scene.report().unsupported_shims.insert("spin".to_owned());
        scene
    }
}

#[test]
fn an_artifact_for_another_cpu_is_unsupported_until_the_shim_or_the_host_changes() {
    let mut asked = scene().annotated().stepped();
    asked.node.taints.push(Taint {
        key: "farrier.dev/not-ready".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    });
    let (after, plan) = asked.answers_for_another_cpu().step();
    assert_eq!(after.node.taints, [], "no pod waits for the Shim");
    let event = plan.event.unwrap();
    assert_eq!(
        (event.warning, &*event.reason),
        (false, reasons::UNSUPPORTED)
    );
    assert!(
        event.note.contains("and the host has the CPU"),
        "{}",
        event.note
    );
    assert_eq!(after.label("farrier.dev/spin"), Some("unsupported"));
    let summary = after.summary();
    assert!(
        matches!(&summary.shims["spin"].phase, Phase::Unsupported(why) if why.contains("and the host has the CPU"))
    );
    assert!(!summary.changing);
    // Another attempt gives the same result.
    let after = after.later(3_600);
    assert!(after.job.is_none() && after.decide().is_empty());
    let is_asked = |change: fn(&mut Scene)| {
        let mut scene = scene()
            .annotated()
            .stepped()
            .answers_for_another_cpu()
            .stepped();
        change(&mut scene);
        matches!(scene.decide().job, JobStep::Create { .. })
    };
    assert!(is_asked(Scene::upgrade));
    assert!(is_asked(|scene| scene.node.boot_id = "another".to_owned()));
    assert!(is_asked(
        |scene| scene.node.runtime = "containerd://2.2.0".to_owned()
    ));
    assert!(is_asked(|scene| scene.now += SignedDuration::from_hours(30)));
    assert!(!is_asked(|_| {}));
    // The host has nothing of the Shim, which the removal finds out.
    let gone = after.no_longer_annotated().stepped();
    let gone = gone
        .answers(Outcome::Unchanged, true, None)
        .stepped()
        .stepped();
    assert!(gone.node.labels.is_empty() && gone.node.annotations.is_empty());
}

#[test]
fn the_reason_comes_before_what_the_node_still_serves() {
    let reason = |change: fn(&mut Scene)| {
        let mut scene = Scene::provisioned();
        change(&mut scene);
        match &scene.stepped().summary().shims["spin"].phase {
            Phase::Unsupported(reason) | Phase::Failed { reason, .. } => reason.clone(),
            phase => panic!("{phase:?}"),
        }
    };
    let of_the_shim = reason(|scene| {
        let platform =
            json!([{"os": "linux", "arch": "arm64", "location": "https://example.org/a"}]);
        scene.spec().fetch_strategy.platforms = serde_json::from_value(platform).unwrap();
    });
    let (message, help) = of_the_shim.split_once("; still serves ").unwrap();
    assert!(message.contains("linux/amd64"), "{message}");
    assert!(help.starts_with("sha256 aaaaaaaaaaaa…. "), "{help}");
    // No pod can use what such a host has.
    let of_the_node = reason(|scene| scene.node.runtime = "docker://28.0.1".to_owned());
    assert!(of_the_node.starts_with("this node uses the container runtime docker"));
    assert!(!of_the_node.contains("still serves"), "{of_the_node}");
}

#[test]
fn a_wrong_artifact_fails_where_the_former_release_is_served() {
    let mut scene = Scene::provisioned();
    scene.upgrade();
    let mut scene = scene.stepped().answers_for_another_cpu();
    for entry in &mut scene.report().handlers {
        entry.served = true;
    }
    let after = scene.stepped();
    assert_eq!(after.label("farrier.dev/spin"), Some("failed"));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
    let summary = after.summary();
    assert!(matches!(
        summary.shims["spin"].phase,
        Phase::Failed { halts: true, .. }
    ));
}

#[test]
fn the_event_of_an_unsupported_shim_names_the_shims_that_are_served() {
    let mut two = scene().annotated();
    two.shims.push(shim("slight", "slight"));
    let mut scene = two.stepped().answers_for_another_cpu();
    let report = scene.report();
    report.result = Outcome::Partial;
    for entry in report.handlers.iter_mut().filter(|it| it.shim == "slight") {
        (entry.served, entry.reason) = (true, None);
    }
    let (after, plan) = scene.step();
    assert_eq!(after.label("farrier.dev/slight"), Some("provisioned"));
    let event = plan.event.unwrap();
    assert_eq!(event.reason, reasons::UNSUPPORTED);
    assert!(
        event.note.ends_with("; the host serves slight"),
        "{}",
        event.note
    );
}

#[test]
fn another_shim_that_failed_is_tried_again_beside_an_unsupported_one() {
    let mut two = scene().annotated();
    two.shims.push(shim("slight", "slight"));
    let mut scene = two.stepped().answers_for_another_cpu();
    scene.report().result = Outcome::Partial;
    let after = scene.stepped();
    assert_eq!(after.label("farrier.dev/spin"), Some("unsupported"));
    assert_eq!(after.label("farrier.dev/slight"), Some("failed"));
    assert!(matches!(
        after.later(31).decide().job,
        JobStep::Create { .. }
    ));
}
