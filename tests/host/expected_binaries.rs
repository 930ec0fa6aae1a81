//! Binaries that a request expects on the host are not fetched. A missing binary fails only its own Shim.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::support::{Host, program, shim};
use farrier::handoff::{FetchResult, Outcome, Sha256Digest, ShimRequest};
use farrier::installer::artifact::fetch::{FetchOptions, fetch};
use farrier::names::sha256_hex;
use flate2::Compression;
use flate2::write::GzEncoder;
use rstest::rstest;
use tempfile::TempDir;

const LINK: &str = "/opt/farrier/bin/containerd-shim-a";

fn stored(seed: u8) -> String {
    format!("/opt/farrier/store/{}", sha256_hex(&program(seed)))
}

/// A Shim on a server that can't be reached, without a known digest.
fn remote(name: &str) -> ShimRequest {
    ShimRequest {
        location: "http://127.0.0.1:9/a.tar.gz".to_owned(),
        ..shim(name)
    }
}

/// The same, expected on the host.
fn expected(name: &str, seed: u8) -> ShimRequest {
    ShimRequest {
        present: Some(Sha256Digest::of(&program(seed))),
        ..remote(name)
    }
}

/// A hand-off directory with the binary of a Shim.
fn fetched(name: &str, seed: u8) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let bytes = program(seed);
    std::fs::write(directory.path().join(format!("{name}.bin")), &bytes).unwrap();
    leave(
        directory.path(),
        name,
        Some(Sha256Digest::of(&bytes)),
        false,
    );
    directory
}

fn leave(directory: &Path, name: &str, binary_sha256: Option<Sha256Digest>, present: bool) {
    let result = FetchResult {
        shim: name.to_owned(),
        binary_sha256,
        reason: None,
        remedy: None,
        present,
        for_another_cpu: false,
    };
    let text = serde_json::to_string(&result).unwrap();
    std::fs::write(directory.join(format!("{name}.json")), text).unwrap();
}

/// The results of `fetch` for these shims.
async fn skipped(shims: &[ShimRequest]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let results = fetch(shims, directory.path(), FetchOptions::default())
        .await
        .unwrap();
    assert!(results.iter().all(|result| result.present), "{results:?}");
    directory
}

/// A host that carries the Shim `a` of [`remote`] with the first binary.
async fn carrying() -> Host {
    let host = Host::stocked();
    let report = host.provision(&[remote("a")], fetched("a", 1).path()).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    host
}

#[tokio::test]
async fn an_expected_binary_that_is_on_the_host_is_kept_without_a_download() {
    let host = carrying().await;
    let before = host.tree(true);
    let shims = [expected("a", 1)];
    let report = host.provision(&shims, skipped(&shims).await.path()).await;
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
    assert_eq!(report.handlers[0].sha256, shims[0].present);
    assert_eq!(report.handlers[0].path.as_deref(), Some(LINK));
    assert_eq!(host.tree(true), before);
}

#[tokio::test]
async fn a_binary_with_the_expected_digest_is_not_replaced_from_the_hand_off_directory() {
    let host = carrying().await;
    let before = host.tree(true);
    let report = host
        .provision(&[expected("a", 1)], fetched("a", 7).path())
        .await;
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
    assert_eq!(host.tree(true), before);
}

/// An attacker changes the annotation of a node, so that the controller expects the present binary for the next version.
#[rstest]
#[case::another_location(|shim: &mut ShimRequest| shim.location = "http://127.0.0.1:9/b.tar.gz".to_owned())]
#[case::a_digest(|shim: &mut ShimRequest| shim.sha256 = Some(Sha256Digest::of(&program(7))))]
#[case::both(|shim: &mut ShimRequest| {
    shim.location = "http://127.0.0.1:9/b.tar.gz".to_owned();
    shim.sha256 = Some(Sha256Digest::of(&program(7)));
})]
#[case::another_file_of_the_archive(|shim: &mut ShimRequest| shim.binary = Some("b".to_owned()))]
#[tokio::test]
async fn a_binary_of_another_artifact_is_not_the_expected_one(
    #[case] change: fn(&mut ShimRequest),
) {
    let host = carrying().await;
    let before = host.tree(true);
    let mut wanted = expected("a", 1);
    change(&mut wanted);
    let shims = [wanted];
    let report = host.provision(&shims, skipped(&shims).await.path()).await;
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    assert_eq!(
        report.reason.as_deref(),
        Some(
            "shim a: binary /opt/farrier/bin/containerd-shim-a is missing or modified on the host, or not from this artifact"
        )
    );
    assert_eq!(host.tree(true), before);
    // The controller expects no binary after that, so the artifact is fetched.
    let [mut wanted] = shims;
    wanted.present = None;
    let report = host.provision(&[wanted], fetched("a", 7).path()).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(std::fs::read(host.path(LINK)).unwrap(), program(7));
}

#[tokio::test]
async fn another_file_of_the_same_archive_is_installed() {
    let host = Host::stocked();
    let files = [("one", 1), ("other", 7)];
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, seed) in files {
        let bytes = program(seed);
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        archive
            .append_data(&mut header, name, bytes.as_slice())
            .unwrap();
    }
    let archive = archive.into_inner().unwrap().finish().unwrap();
    host.write("/srv/a", &archive);
    for (name, seed) in files {
        let pinned = ShimRequest {
            sha256: Some(Sha256Digest::of(&archive)),
            binary: Some(name.to_owned()),
            ..shim("a")
        };
        for outcome in [Outcome::Applied, Outcome::Unchanged] {
            let report = host.install(std::slice::from_ref(&pinned), &[]).await;
            assert_eq!(report.result, outcome, "{report:?}");
        }
        assert_eq!(std::fs::read(host.path(LINK)).unwrap(), program(seed));
    }
}

#[rstest]
#[case::missing(|host: &Host| std::fs::remove_file(host.path(&stored(1))).unwrap())]
#[case::changed(|host: &Host| host.write(&stored(1), &program(9)))]
#[case::with_another_target(|host: &Host| {
    std::fs::remove_file(host.path(&stored(1))).unwrap();
    symlink("/srv/b", host.path(&stored(1))).unwrap();
})]
#[case::whole_directory(|host: &Host| std::fs::remove_dir_all(host.path("/opt/farrier")).unwrap())]
#[tokio::test]
async fn a_missing_or_changed_binary_fails_its_shim_alone_and_is_fetched_by_the_next_attempt(
    #[case] damage: impl Fn(&Host),
    #[values(true, false)] result_is_there: bool,
) {
    let host = carrying().await;
    damage(&host);
    let shims = [expected("a", 1), shim("b")];
    let directory = if result_is_there {
        skipped(&shims).await
    } else {
        tempfile::tempdir().unwrap()
    };
    let report = host.provision(&shims, directory.path()).await;
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    assert_eq!(
        report.reason.as_deref(),
        Some(
            "shim a: binary /opt/farrier/bin/containerd-shim-a is missing or modified on the host, or not from this artifact"
        )
    );
    assert_eq!(
        report.remedy.as_deref(),
        Some("wait for the next attempt, which fetches the binary again")
    );
    let [a, b] = report.handlers.as_slice() else {
        panic!("{report:?}");
    };
    assert!(!a.served && a.sha256.is_none() && a.path.is_none() && a.reason.is_some());
    assert_eq!(b.sha256, Some(Sha256Digest::of(&program(2))));
    assert!(host.config().contains("containerd-shim-b"));
    let shims = [remote("a"), shim("b")];
    let report = host.provision(&shims, fetched("a", 1).path()).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(std::fs::read(host.path(LINK)).unwrap(), program(1));
}

#[tokio::test]
async fn a_missing_binary_of_the_only_requested_shim_changes_nothing() {
    let host = carrying().await;
    std::fs::remove_file(host.path(&stored(1))).unwrap();
    let before = host.tree(false);
    let shims = [expected("a", 1)];
    let report = host.provision(&shims, skipped(&shims).await.path()).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert_eq!(host.tree(false), before);
}

#[rstest]
#[case::missing(None)]
#[case::with_another_target(Some("../store/0"))]
#[tokio::test]
async fn a_lost_symlink_is_created_again_without_a_download(#[case] target: Option<&str>) {
    let host = carrying().await;
    std::fs::remove_file(host.path(LINK)).unwrap();
    if let Some(target) = target {
        symlink(target, host.path(LINK)).unwrap();
    }
    let shims = [expected("a", 1)];
    let report = host.provision(&shims, skipped(&shims).await.path()).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(std::fs::read(host.path(LINK)).unwrap(), program(1));
}

#[tokio::test]
async fn a_hand_off_result_cannot_claim_that_a_binary_is_present() {
    let host = carrying().await;
    let before = host.tree(true);
    let directory = fetched("a", 7);
    leave(
        directory.path(),
        "a",
        Some(Sha256Digest::of(&program(7))),
        true,
    );
    let report = host.provision(&[remote("a")], directory.path()).await;
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    assert!(report.reason.unwrap().contains("left no binary"));
    // The earlier binary stays.
    assert_eq!(
        report.handlers[0].sha256,
        Some(Sha256Digest::of(&program(1)))
    );
    assert_eq!(host.tree(true), before);
}

#[tokio::test]
async fn a_shim_is_not_served_by_the_binary_of_another_shim() {
    let host = Host::stocked();
    let shims = [remote("a"), shim("b")];
    host.provision(&shims, fetched("a", 1).path()).await;
    let before = host.tree(true);
    // The binary of b, which is in the store.
    let shims = [expected("a", 2), shim("b")];
    let report = host.provision(&shims, skipped(&shims).await.path()).await;
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    assert!(report.handlers[0].reason.is_some());
    assert_eq!(
        report.handlers[0].sha256,
        Some(Sha256Digest::of(&program(1)))
    );
    assert_eq!(host.tree(true), before);
}

/// The state file may be lost, or removed by an administrator.
#[tokio::test]
async fn a_pinned_binary_that_the_state_file_does_not_record_is_installed_again() {
    let host = carrying().await;
    let state = host.path("/var/lib/farrier/state.json");
    std::fs::remove_file(&state).unwrap();
    let pinned = ShimRequest {
        binary_sha256: Some(Sha256Digest::of(&program(1))),
        ..remote("a")
    };
    let report = host.provision(&[pinned], fetched("a", 1).path()).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(report.handlers[0].reason, None);
    assert!(state.exists());
}

#[tokio::test]
async fn an_expected_binary_is_never_taken_from_elsewhere_than_the_host() {
    let host = Host::stocked();
    let before = host.tree(false);
    // The artifact on the host and the binary in the hand-off directory do not replace the expected binary.
    for location in [shim("a").location, remote("a").location] {
        let shims = [ShimRequest {
            location,
            present: Some(Sha256Digest::from_bytes([0; 32])),
            binary_sha256: Some(Sha256Digest::of(&program(1))),
            ..shim("a")
        }];
        let results = fetch(
            &shims,
            tempfile::tempdir().unwrap().path(),
            FetchOptions::default(),
        )
        .await;
        assert!(results.unwrap().iter().all(|result| result.present));
        let report = host.provision(&shims, fetched("a", 1).path()).await;
        assert_eq!(report.result, Outcome::Refused, "{report:?}");
        assert!(report.reason.unwrap().contains("is missing or modified"));
        assert_eq!(host.tree(false), before);
    }
}

#[tokio::test]
async fn another_binary_than_the_first_nodes_is_refused_with_both_digests() {
    let (host, artifacts) = (Host::stocked(), tempfile::tempdir().unwrap());
    let before = host.tree(false);
    let (found, first) = (Sha256Digest::of(&program(1)), Sha256Digest::of(&program(2)));
    let shims = [ShimRequest {
        first_binary_sha256: Some(first),
        ..shim("a")
    }];
    let report = host.provision(&shims, artifacts.path()).await;
    let reason = report.handlers[0].reason.as_deref().unwrap();
    for digest in [found, first] {
        assert!(reason.contains(&digest.to_string()), "{reason}");
    }
    assert!(!report.handlers[0].served);
    assert_eq!(host.tree(false), before);
    // A binary from the hand-off directory is checked alike.
    let directory = fetched("b", 1);
    let shims = [ShimRequest {
        first_binary_sha256: Some(first),
        ..remote("b")
    }];
    let report = host.provision(&shims, directory.path()).await;
    let reason = report.handlers[0].reason.as_deref().unwrap();
    assert!(reason.contains("another node got"), "{reason}");
    assert_eq!(host.tree(false), before);
}

#[tokio::test]
async fn the_first_nodes_binary_is_installed_and_not_fetched_again() {
    let host = Host::stocked();
    let shims = [ShimRequest {
        first_binary_sha256: Some(Sha256Digest::of(&program(1))),
        ..remote("a")
    }];
    let directory = fetched("a", 1);
    let report = host.provision(&shims, directory.path()).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let again = [ShimRequest {
        present: Some(Sha256Digest::of(&program(1))),
        ..shims[0].clone()
    }];
    let empty = tempfile::tempdir().unwrap();
    let report = host.provision(&again, empty.path()).await;
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
}
