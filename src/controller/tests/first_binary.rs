//! The binary that the first node gets from a location without a digest, and nodes that get another one.

use super::*;
use crate::api::{FirstBinary, ShimStatus};
use crate::controller::decide::desired::Cluster;
use crate::handoff::Sha256Digest;
use crate::names::APPLIED_ANNOTATION;

/// The binary in the reports of the scenes.
fn reported() -> Sha256Digest {
    Sha256Digest::from_bytes([0xaa; 32])
}

fn first(sha256: Sha256Digest) -> FirstBinary {
    FirstBinary {
        os: "linux".to_owned(),
        arch: "amd64".to_owned(),
        location: "https://example.org/a.tar.gz".to_owned(),
        binary: Some(String::new()),
        sha256: sha256.to_string(),
    }
}

/// From now on, the status of the Shim has this binary of the first node.
fn record(scene: &mut Scene, first: FirstBinary) {
    let status = ShimStatus {
        first_binaries: Some(vec![first]),
        ..ShimStatus::default()
    };
    scene.shims[0].status = Some(status);
}

#[test]
fn the_first_report_decides_which_binary_a_location_without_a_digest_has() {
    let asked = scene().annotated().stepped();
    let (mut after, plan) = asked.answers(Outcome::Applied, true, None).step();
    let expected = [("spin".to_owned(), first(reported()))];
    assert_eq!(plan.first_binaries, expected);
    record(&mut after, first(reported()));
    let status = after.status(0).status.unwrap();
    assert_eq!(status.first_binaries, Some(vec![first(reported())]));
    assert!(after.decide().is_empty());
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), Some("true"));
}

#[test]
fn the_request_of_a_later_node_names_the_first_binary_without_another_digest() {
    let mut later = scene().annotated();
    let JobStep::Create { digest, .. } = later.decide().job else {
        panic!("no Job")
    };
    record(&mut later, first(reported()));
    let JobStep::Create {
        request,
        digest: with_first,
    } = later.decide().job
    else {
        panic!("no Job")
    };
    assert_eq!(request.shims[0].first_binary_sha256, Some(reported()));
    assert_eq!((with_first, request.digest()), (digest, digest));
    // A node that has the Shim already needs no Job.
    let mut served = Scene::provisioned();
    record(&mut served, first(reported()));
    assert!(served.decide().is_empty());
}

#[test]
fn the_first_binary_counts_for_nodes_that_spell_their_architecture_in_another_way() {
    let mut scene = scene().annotated();
    record(&mut scene, first(reported()));
    scene.node.os = "Linux".to_owned();
    scene.node.arch = "x86_64".to_owned();
    let JobStep::Create { request, .. } = scene.decide().job else {
        panic!("no Job")
    };
    assert_eq!(request.shims[0].first_binary_sha256, Some(reported()));
}

#[test]
fn a_node_that_got_another_binary_at_the_same_time_fails_with_both_digests() {
    let another = Sha256Digest::of(b"another");
    let mut asked = scene().annotated().stepped();
    record(&mut asked, first(another));
    let (after, plan) = asked.answers(Outcome::Applied, true, None).step();
    let note = plan.event.unwrap().note;
    for digest in [another, reported()] {
        assert!(note.contains(&digest.to_string()), "{note}");
    }
    assert_eq!(plan.first_binaries, []);
    assert_eq!(after.label("farrier.dev/spin"), Some("failed"));
    assert_eq!(after.label("handler.farrier.dev/spin-v2"), None);
    assert_eq!(after.label("kwasm.sh/kwasm-provisioned"), None);
    let degraded = after.status(0).status.unwrap().conditions.remove(2);
    assert!(degraded.message.contains(&another.to_string()));
    assert!(after.decide().is_empty());
    // Somebody specifies which binary is the right one.
    let mut pinned = after;
    let platform = json!({"os": "linux", "arch": "amd64", "location": first(another).location,
        "binarySha256": another.to_string()});
    pinned.spec().fetch_strategy =
        serde_json::from_value(json!({"platforms": [platform]})).unwrap();
    let JobStep::Create { request, .. } = pinned.decide().job else {
        panic!("no Job")
    };
    assert_eq!(request.shims[0].binary_sha256, Some(another));
    assert_eq!(request.shims[0].first_binary_sha256, None);
}

/// An attacker changes the annotation of a node: the node got the former binary from the present location.
#[test]
fn a_binary_that_a_failed_shim_keeps_is_no_first_binary() {
    let mut scene = Scene::provisioned();
    scene.upgrade();
    let request = |scene: &Scene| {
        let JobStep::Create { request, .. } = scene.decide().job else {
            panic!("no Job")
        };
        request.shims[0].clone()
    };
    let annotation = scene.node.annotations.get_mut(APPLIED_ANNOTATION).unwrap();
    let mut forged: serde_json::Value = serde_json::from_str(annotation).unwrap();
    forged["bootId"] = "another".into();
    *annotation = forged.to_string();
    let fingerprint = request(&scene).fingerprint();
    forged["shims"]["spin"]["fulfilled"] = fingerprint.into();
    let annotations = &mut scene.node.annotations;
    annotations.insert(APPLIED_ANNOTATION.to_owned(), forged.to_string());
    assert_eq!(request(&scene).present, Some(reported()));
    let answered = scene
        .stepped()
        .answers(Outcome::Partial, true, Some("not from this artifact"));
    let (after, plan) = answered.step();
    assert_eq!(plan.first_binaries, []);
    assert_eq!(request(&after.later(30)).present, None);
}

#[rstest]
#[case::another_location(|shim: &mut ShimView| {
    let strategy = &mut shim.spec.as_mut().unwrap().fetch_strategy;
    strategy.anon_http.as_mut().unwrap().location = "https://example.org/b".to_owned();
})]
#[case::another_binary(|shim: &mut ShimView| {
    shim.spec.as_mut().unwrap().fetch_strategy.binary = Some("b".to_owned());
})]
#[case::a_digest(|shim: &mut ShimView| {
    let platform = json!({"os": "linux", "arch": "amd64", "location": "https://example.org/a.tar.gz",
        "sha256": "b".repeat(64)});
    let strategy = json!({"platforms": [platform]});
    shim.spec.as_mut().unwrap().fetch_strategy = serde_json::from_value(strategy).unwrap();
})]
fn another_location_binary_or_digest_in_the_spec_forgets_the_first_binary(
    #[case] change: fn(&mut ShimView),
) {
    let mut scene = Scene::provisioned();
    record(&mut scene, first(reported()));
    change(&mut scene.shims[0]);
    let cluster = Cluster::new(scene.shims.clone(), false, true);
    assert!(cluster.first_binaries.is_empty());
    assert_eq!(scene.status(0).status.unwrap().first_binaries, Some(vec![]));
}

#[rstest]
#[case::of_the_same_binary(Some("b"), true)]
#[case::of_an_earlier_release(None, true)]
#[case::of_another_binary(Some("a"), false)]
#[case::of_no_name(Some(""), false)]
fn a_recorded_binary_counts_for_its_file_in_the_artifact(
    #[case] recorded: Option<&str>,
    #[case] expected: bool,
) {
    let mut scene = scene().annotated();
    scene.spec().fetch_strategy.binary = Some("b".to_owned());
    let recorded = FirstBinary {
        binary: recorded.map(str::to_owned),
        ..first(reported())
    };
    record(&mut scene, recorded);
    let JobStep::Create { request, .. } = scene.decide().job else {
        panic!("no Job")
    };
    let first = expected.then(reported);
    assert_eq!(request.shims[0].first_binary_sha256, first);
}

#[rstest]
#[case::another_architecture("arm64", true)]
#[case::another_architecture_of_uname("AArch64", true)]
#[case::the_same_again("amd64", false)]
#[case::in_another_case("AMD64", false)]
#[case::by_its_other_name("x86_64", false)]
#[case::an_unknown_one("amd-64", false)]
fn the_first_binary_of_each_platform_counts(#[case] arch: &str, #[case] expected: bool) {
    let mut scene = scene();
    record(&mut scene, first(reported()));
    let mut cluster = Cluster::new(scene.shims, false, true);
    let another = FirstBinary {
        arch: arch.to_owned(),
        ..first(Sha256Digest::of(b"another"))
    };
    assert_eq!(cluster.add_first_binary("spin", another), expected);
    assert_eq!(
        cluster.first_binaries["spin"].len(),
        1 + usize::from(expected)
    );
    let mut known = cluster.first_binaries["spin"].iter();
    assert!(known.all(|it| it.os == "linux" && matches!(&*it.arch, "amd64" | "arm64")));
}

#[test]
fn a_file_of_a_node_is_compared_with_that_of_no_other_node() {
    let mut scene = scene().annotated();
    let location = "file:///srv/a.tar.gz".to_owned();
    let strategy = &mut scene.spec().fetch_strategy;
    strategy.anon_http.as_mut().unwrap().location = location.clone();
    let recorded = FirstBinary {
        location,
        ..first(Sha256Digest::of(b"another"))
    };
    record(&mut scene, recorded);
    let (after, plan) = scene.stepped().answers(Outcome::Applied, true, None).step();
    assert_eq!(plan.first_binaries, []);
    assert_eq!(after.label("farrier.dev/spin"), Some("provisioned"));
}

#[test]
fn a_first_binary_that_no_status_has_yet_is_kept_while_the_shim_has_its_location() {
    let mut before = Cluster::new(scene().shims, false, true);
    assert!(before.add_first_binary("spin", first(reported())));
    let same = Cluster::new(scene().shims, false, true).with_first_binaries_of(&before);
    assert_eq!(same.first_binaries, before.first_binaries);
    let mut moved = scene();
    moved.upgrade();
    let moved = Cluster::new(moved.shims, false, true).with_first_binaries_of(&before);
    assert!(moved.first_binaries.is_empty());
    let gone = Cluster::new(Vec::new(), false, true).with_first_binaries_of(&before);
    assert!(gone.first_binaries.is_empty());
}

#[test]
fn the_binary_of_a_kept_shim_is_not_recorded_as_the_first() {
    let mut scene = Scene::provisioned();
    scene.spec().paused = true;
    scene.node.boot_id = "another".to_owned();
    let (_, plan) = scene
        .stepped()
        .answers(Outcome::Unchanged, true, None)
        .step();
    assert_eq!(plan.first_binaries, []);
}
