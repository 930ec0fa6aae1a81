//! The output of `--dry-run` for host trees in temporary directories, offline.

use super::support::{Host, program, shim};
use farrier::handoff::{FileAction, Outcome, ShimRequest};
use farrier::installer::{Mode, install, uninstall};
use farrier::names::sha256_hex;

#[tokio::test]
async fn a_dry_run_shows_the_change_and_writes_nothing() {
    let host = Host::stocked();
    let before = host.tree(true);
    let preview = install(&host.named(&[shim("a")], &[]), Mode::DryRun).await;
    assert!(
        preview.text.contains("+++ /etc/containerd/config.toml"),
        "{}",
        preview.text
    );
    let store = format!("/opt/farrier/store/{}", sha256_hex(&program(1)));
    let lines = [
        "create the directory /opt/farrier/store".to_owned(),
        format!("store the binary {store}"),
        "write /var/lib/farrier/state.json".to_owned(),
    ];
    for line in lines {
        assert!(
            preview.text.lines().any(|it| it == line),
            "{}",
            preview.text
        );
    }
    assert!(preview.report.files.iter().any(|file| file.path == store));
    assert!(!preview.report.changed);
    assert_eq!(host.tree(true), before);
}

#[tokio::test]
async fn a_dry_run_shows_a_refusal_or_a_partial_change() {
    let host = Host::stocked();
    let mut missing = shim("b");
    missing.location = "file:///srv/none".to_owned();
    let preview = install(&host.named(&[shim("a"), missing], &[]), Mode::DryRun).await;
    assert_eq!(preview.report.result, Outcome::Partial, "{preview:?}");
    host.write("/etc/containerd/config.toml", b"no = [toml");
    let preview = install(&host.named(&[shim("a")], &[]), Mode::DryRun).await;
    assert_eq!(preview.report.result, Outcome::Refused, "{preview:?}");
    let reason = preview.report.reason.unwrap();
    assert!(preview.text.contains(&reason), "{}", preview.text);
}

#[tokio::test]
async fn a_dry_run_shows_an_interrupted_change() {
    let host = Host::stocked();
    host.write("/var/lib/farrier/journal.json", b"{}");
    let preview = install(&host.named(&[shim("a")], &[]), Mode::DryRun).await;
    let notes = preview.report.notes.join("\n");
    assert!(notes.contains("was interrupted"), "{notes}");
    assert!(preview.text.contains("was interrupted"), "{}", preview.text);
}

#[tokio::test]
async fn a_dry_run_lists_exactly_the_files_that_are_removed() {
    let host = Host::stocked();
    host.install(&[shim("a"), shim("b")], &[]).await;
    for theirs in ["store/notes", "bin/containerd-shim-a.bak"] {
        host.write(&format!("/opt/farrier/{theirs}"), b"theirs");
    }
    let plan = async |shims: &[ShimRequest]| {
        let options = host.named(shims, &[]);
        install(&options, Mode::DryRun).await.text
    };
    assert!(
        plan(&[shim("a"), shim("b")])
            .await
            .contains("nothing to do")
    );
    let before = host.tree(false);
    let text = plan(&[shim("a")]).await;
    host.install(&[shim("a")], &[]).await;
    let after = host.tree(false);
    let mut gone: Vec<String> = before
        .keys()
        .filter(|path| !after.contains_key(*path))
        .map(|path| format!("remove /{}", path.display()))
        .collect();
    let mut named: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with("remove "))
        .map(str::to_owned)
        .collect();
    gone.sort();
    named.sort();
    assert_eq!(named, gone);
    assert_eq!(named.len(), 2);
}

#[tokio::test]
async fn a_dry_run_of_an_uninstall_shows_the_change_and_writes_nothing() {
    let host = Host::stocked();
    let config = host.config();
    host.install(&[shim("a")], &[]).await;
    let before = host.tree(true);
    let preview = uninstall(&host.leaving(None), Mode::DryRun).await;
    assert_eq!(preview.report.result, Outcome::Applied, "{preview:?}");
    assert!(!preview.report.changed);
    let file = &preview.report.files[0];
    assert_eq!(file.action, FileAction::Edited);
    let diff = file.diff.as_deref().unwrap();
    assert!(preview.text.contains(diff), "{}", preview.text);
    let gone: Vec<&str> = diff.lines().filter(|line| line.starts_with('-')).collect();
    assert!(gone.iter().any(|line| line.contains("containerd-shim-a")));
    assert_eq!(host.tree(true), before);
    let report = host.uninstall(None).await;
    assert_eq!(host.config(), config);
    let told = |path: &String| preview.report.files.iter().any(|file| file.path == *path);
    assert!(
        report
            .files
            .iter()
            .all(|file| told(&file.path) && file.diff.is_none())
    );
}
