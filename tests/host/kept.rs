//! A Shim that a request names only to keep it stays as the state file of the host describes it.

use super::support::{Host, program, shim};
use farrier::handoff::{OptionValue, Outcome, ProvisionReport, Sha256Digest, ShimRequest};
use farrier::installer::artifact::fetch::{FetchOptions, fetch};
use tempfile::TempDir;

/// A host that serves `a` and its alias with an option, and `b`, for a cluster. The artifact of `a` is gone.
async fn host() -> (Host, TempDir) {
    let (host, artifacts) = (Host::stocked(), tempfile::tempdir().unwrap());
    let mut a = shim("a");
    a.handlers.push("a.alias".to_owned());
    let option = OptionValue::String("/srv/option".to_owned());
    a.options.insert("ConfigPath".to_owned(), option);
    // On the heap: the tests would move a large future.
    let report = Box::pin(host.provision(&[a, shim("b")], artifacts.path())).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    std::fs::remove_file(host.path("/srv/a")).unwrap();
    (host, artifacts)
}

fn handlers_in_state(host: &Host) -> serde_json::Value {
    let text = std::fs::read_to_string(host.path("/var/lib/farrier/state.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["handlers"].take()
}

/// The handlers in a report, each with its binary and its reason.
fn reported(report: &ProvisionReport) -> Vec<(&str, &str, Option<Sha256Digest>, Option<&str>)> {
    let entries = report.handlers.iter();
    entries
        .map(|it| (&*it.shim, &*it.handler, it.sha256, it.reason.as_deref()))
        .collect()
}

#[tokio::test]
async fn a_kept_shim_leaves_configuration_options_and_binary_untouched() {
    let (host, artifacts) = host().await;
    let (config, handlers) = (host.config(), handlers_in_state(&host));
    assert!(config.contains("/srv/option"));
    let request = [ShimRequest::kept("a"), shim("b")];
    let report = host.provision(&request, artifacts.path()).await;
    assert_eq!(report.reason, None, "{report:?}");
    let (a, b) = (
        Some(Sha256Digest::of(&program(1))),
        Some(Sha256Digest::of(&program(2))),
    );
    assert_eq!(
        reported(&report),
        [
            ("a", "a", a, None),
            ("a", "a.alias", a, None),
            ("b", "b", b, None)
        ]
    );
    assert_eq!(host.config(), config);
    assert_eq!(handlers_in_state(&host), handlers);
    let binary = std::fs::read(host.path("/opt/farrier/bin/containerd-shim-a")).unwrap();
    assert_eq!(binary, program(1));
    let before = host.tree(true);
    let report = host.provision(&request, artifacts.path()).await;
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
    assert_eq!(host.tree(true), before);
}

#[tokio::test]
async fn a_kept_shim_that_is_not_on_the_host_is_reported_and_not_made_up() {
    let (host, artifacts) = host().await;
    let (config, handlers) = (host.config(), handlers_in_state(&host));
    let request = [
        ShimRequest::kept("a"),
        shim("b"),
        ShimRequest::kept("ghost"),
    ];
    let report = host.provision(&request, artifacts.path()).await;
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    let ghost = report.handlers.iter().find(|it| it.shim == "ghost");
    let ghost = ghost.unwrap();
    assert_eq!((&*ghost.handler, ghost.served), ("", false));
    let reason = ghost.reason.as_deref().unwrap();
    assert!(reason.contains("nothing to keep"), "{reason}");
    assert_eq!(host.config(), config);
    assert_eq!(handlers_in_state(&host), handlers);
}

#[tokio::test]
async fn a_cluster_keeps_no_shim_of_the_command_line() {
    let (host, artifacts) = (Host::stocked(), tempfile::tempdir().unwrap());
    host.install(&[shim("a")], &[]).await;
    let (config, handlers) = (host.config(), handlers_in_state(&host));
    let report = host
        .provision(&[ShimRequest::kept("a")], artifacts.path())
        .await;
    let reason = report.reason.unwrap();
    assert!(reason.contains("belongs to cluster"), "{reason}");
    assert_eq!(host.config(), config);
    assert_eq!(handlers_in_state(&host), handlers);
}

#[tokio::test]
async fn a_handler_of_a_kept_shim_goes_to_the_shim_that_requests_it() {
    let (host, artifacts) = host().await;
    let mut b = shim("b");
    b.handlers.push("a.alias".to_owned());
    let request = [ShimRequest::kept("a"), b];
    let report = host.provision(&request, artifacts.path()).await;
    assert_eq!(report.reason, None, "{report:?}");
    let state = handlers_in_state(&host);
    assert_eq!(state["a"]["shim"], "a");
    assert_eq!(state["a.alias"]["shim"], "b");
    let binary = std::fs::read(host.path("/opt/farrier/bin/containerd-shim-a.alias")).unwrap();
    assert_eq!(binary, program(2));
}

#[tokio::test]
async fn a_kept_shim_whose_binary_is_lost_is_reported_and_stays_declared() {
    let (host, artifacts) = host().await;
    let config = host.config();
    let stored = format!("/opt/farrier/store/{}", Sha256Digest::of(&program(1)));
    std::fs::remove_file(host.path(&stored)).unwrap();
    let request = [ShimRequest::kept("a"), shim("b")];
    let report = host.provision(&request, artifacts.path()).await;
    let a = report.handlers.iter().find(|it| it.handler == "a").unwrap();
    assert!(!a.served && a.reason.is_some(), "{a:?}");
    assert_eq!(host.config(), config);
}

#[tokio::test]
async fn a_kept_shim_keeps_everything_in_a_run_that_is_refused() {
    let (host, artifacts) = host().await;
    host.write("/etc/containerd/config.toml", b"version = [");
    let before = host.tree(false);
    let request = [ShimRequest::kept("a"), shim("b")];
    let report = host.provision(&request, artifacts.path()).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    let named: Vec<&str> = report.handlers.iter().map(|it| &*it.handler).collect();
    assert_eq!(named, ["a", "a.alias", "b"]);
    assert_eq!(host.tree(false), before);
}

#[tokio::test]
async fn nothing_is_fetched_for_a_kept_shim() {
    let directory = tempfile::tempdir().unwrap();
    let results = fetch(
        &[ShimRequest::kept("a")],
        directory.path(),
        FetchOptions::default(),
    )
    .await;
    assert_eq!(results.unwrap(), []);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
