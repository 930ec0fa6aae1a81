//! The output of `--dry-run` for host trees in temporary directories, offline.

use std::os::unix::fs::PermissionsExt;

#[cfg(target_arch = "x86_64")]
use super::support::printing;
use super::support::{Host, program, shim};
use farrier::handoff::{FileAction, Outcome, ProvisionReport, ShimRequest};
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
    assert!(preview.report.dry_run && !preview.report.changed);
    assert!(preview.report.to_json().contains(r#""dryRun":true"#));
    assert_eq!(host.tree(true), before);
    let done = host.install(&[shim("a")], &[]).await;
    assert!(!done.to_json().contains("dryRun"));
    let would_be = |report: &ProvisionReport| (report.result, report.handlers.clone());
    assert_eq!(would_be(&preview.report), would_be(&done));
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
    assert!(preview.report.dry_run);
    assert_eq!(preview.report.handlers[0].handler, "a");
}

/// Farrier enters the host's root to run containerd; only root may do so.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_dry_run_refuses_a_change_that_containerd_would_not_load() {
    let host = Host::stocked();
    // Whatever its files are, this containerd has no handler of Farrier.
    let dump = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\ndefault_runtime_name = 'runc'\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n";
    let containerd = "/usr/bin/containerd";
    host.write(containerd, &printing(dump));
    std::fs::set_permissions(host.path(containerd), PermissionsExt::from_mode(0o755)).unwrap();
    let before = host.tree(true);
    for more in [&["--dry-run"][..], &[]] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_farrier"))
            .args([
                "install",
                "--offline",
                "-o",
                "json",
                "--shim=a=file:///srv/a",
            ])
            .args(more)
            .arg("--host-root")
            .arg(host.root())
            .output()
            .unwrap();
        let report = ProvisionReport::from_json(&String::from_utf8_lossy(&output.stdout)).unwrap();
        let expected = "containerd would not load handler a as it is declared";
        assert_eq!(report.reason.as_deref(), Some(expected), "{report:?}");
        assert_eq!(output.status.code(), Some(3), "{report:?}");
        if !more.is_empty() {
            assert_eq!(host.tree(true), before);
        }
    }
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
