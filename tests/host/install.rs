//! Whole installs and removals on host trees in temporary directories, offline.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use super::support::{CONFIG, Host, for_another_cpu, printing, program, runnable, shim};
use crate::elf::VERSION;
use farrier::handoff::{OptionValue, Outcome, ProvisionReport, Sha256Digest};
use farrier::installer::host::HostRoot;
use farrier::installer::transaction::journal::{FinalState, Journal, Undo};
use farrier::installer::{self, Mode};
use farrier::names::sha256_hex;
use rstest::rstest;

#[rstest]
#[case::with_a_configuration(Some(CONFIG))]
#[case::absent_configuration(None)]
#[case::empty_configuration(Some(""))]
#[tokio::test]
async fn removing_the_last_handler_restores_the_host(#[case] config: Option<&str>) {
    let host = Host::new(config);
    host.write("/srv/a", &program(1));
    host.write("/srv/b", &program(2));
    let before = host.tree(false);
    let mut first = shim("a");
    first.handlers.push("a-alias".to_owned());
    first
        .options
        .insert("SystemdCgroup".to_owned(), OptionValue::Boolean(true));
    let report = host.install(&[first, shim("b")], &["later"]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert!(
        host.config()
            .contains("/opt/farrier/bin/containerd-shim-a-alias")
    );
    assert!(
        host.config()
            .contains("/opt/farrier/bin/containerd-shim-later")
    );
    let binary = std::fs::read(host.path("/opt/farrier/bin/containerd-shim-b")).unwrap();
    assert_eq!(binary, program(2));
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(host.tree(false), before);
}

#[tokio::test]
async fn a_second_run_writes_nothing() {
    let host = Host::stocked();
    host.install(&[shim("a"), shim("b")], &["later"]).await;
    let before = host.tree(true);
    let report = host.install(&[shim("a"), shim("b")], &["later"]).await;
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
    assert!(!report.changed);
    assert_eq!(host.tree(true), before);
}

#[tokio::test]
async fn a_verified_binary_is_hashed_again_only_after_its_file_changed() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    let stored = host.path(&format!("/opt/farrier/store/{}", sha256_hex(&program(1))));
    // Same size, same inode: only the times differ.
    std::fs::write(&stored, program(7)).unwrap();
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(std::fs::read(&stored).unwrap(), program(1));
    // A lost cache is written again, and the next run writes nothing.
    let record = host.path(RECORD);
    std::fs::remove_file(&record).unwrap();
    assert_eq!(
        host.install(&[shim("a")], &[]).await.result,
        Outcome::Unchanged
    );
    assert!(record.exists());
}

/// The path of the verification cache.
const RECORD: &str = "/var/lib/farrier/verified.json";

/// Adds to the cache the parts of `containerd config dump` that earlier releases kept there.
fn add_output_of_containerd(host: &Host) {
    let text = std::fs::read_to_string(host.path(RECORD)).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let stamp = record["artifacts"]["a"]["stamp"].clone();
    record["words"] = serde_json::json!([{
        "program": "/usr/bin/containerd",
        "stamp": stamp,
        "arguments": ["-c", "/etc/containerd/config.toml", "config", "dump"],
        "input": "0".repeat(64),
        "said": "password = \"hunter2\"",
    }]);
    std::fs::write(host.path(RECORD), record.to_string()).unwrap();
}

#[tokio::test]
async fn the_output_cache_of_a_former_release_is_removed_by_the_next_run() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    let record = std::fs::read_to_string(host.path(RECORD)).unwrap();
    add_output_of_containerd(&host);
    host.write(&format!("{RECORD}.farrier-new"), b"hunter2");
    let before = host.tree(true);
    installer::install(&host.named(&[shim("a")], &[]), Mode::DryRun).await;
    installer::doctor(&host.host_options()).await;
    assert_eq!(host.tree(true), before);
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
    assert_eq!(host.files_with("hunter2"), [""; 0].map(PathBuf::from));
    // The digests stay, so that nothing is hashed again.
    assert_eq!(std::fs::read_to_string(host.path(RECORD)).unwrap(), record);
}

#[tokio::test]
async fn the_output_cache_of_a_former_release_is_removed_by_a_refused_run() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    add_output_of_containerd(&host);
    host.write("/var/lib/farrier/state.json", b"{");
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert_eq!(host.files_with("hunter2"), [""; 0].map(PathBuf::from));
}

#[rstest]
#[case::cut_off(b"{\"words\":[{\"said\":\"hunter2")]
#[case::not_text(b"hunter2\xff")]
#[tokio::test]
async fn an_unreadable_output_cache_of_a_former_release_is_removed(#[case] text: &[u8]) {
    let host = Host::stocked();
    host.write(RECORD, text);
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
    assert!(!host.path(RECORD).exists());
}

/// Farrier enters the host's root to run containerd; only root may do so.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_output_of_containerd_config_dump_is_never_written_to_the_host() {
    let host = Host::stocked();
    let install = || {
        std::process::Command::new(env!("CARGO_BIN_EXE_farrier"))
            .args(["install", "--offline", "-o", "json", "--host-root"])
            .arg(host.root())
            .arg("--shim=a=file:///srv/a")
            .output()
            .unwrap()
    };
    host.write("/srv/a", &printing(VERSION));
    let output = install();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let cri = "plugins.'io.containerd.grpc.v1.cri'";
    let handlers = [
        ("runc", "io.containerd.runc.v2"),
        ("kata", "io.containerd.kata.v2"),
        ("a", "/opt/farrier/bin/containerd-shim-a"),
    ];
    let mut dump = format!(
        "version = 2\n[{cri}.registry.configs.'r.example'.auth]\npassword = 'hunter2'\n[{cri}.containerd]\ndefault_runtime_name = 'runc'\n"
    );
    dump.extend(handlers.map(|(handler, runtime_type)| {
        format!("[{cri}.containerd.runtimes.{handler}]\nruntime_type = '{runtime_type}'\n")
    }));
    let containerd = "/usr/bin/containerd";
    host.write(containerd, &printing(&dump));
    std::fs::set_permissions(host.path(containerd), PermissionsExt::from_mode(0o755)).unwrap();
    let output = install();
    let report = ProvisionReport::from_json(&String::from_utf8_lossy(&output.stdout)).unwrap();
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
    assert_eq!(host.files_with("hunter2"), [host.path(containerd)]);
}

#[tokio::test]
async fn a_replaced_file_artifact_is_read_again() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    // Same size, same inode: only the times differ.
    host.write("/srv/a", &program(7));
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let sha256 = Sha256Digest::of(&program(7));
    assert_eq!(report.handlers[0].sha256, Some(sha256));
}

/// The exit status of the real program, on which scripts rely.
#[rstest]
#[case::applied(&["install", "--shim=a=file:///srv/a"], 0)]
#[case::partial(&["install", "--shim=a=file:///srv/a", "--shim=b=file:///srv/none"], 1)]
#[case::usage_error(&["install"], 2)]
#[case::refused(&["install", "--shim=a=file:///srv/none"], 3)]
#[case::unchanged(&["uninstall", "--all"], 0)]
fn each_outcome_has_its_exit_status(#[case] arguments: &[&str], #[case] status: i32) {
    let host = Host::stocked();
    let ended = std::process::Command::new(env!("CARGO_BIN_EXE_farrier"))
        .args(arguments)
        .args(["--offline", "--host-root"])
        .arg(host.root())
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(status), "{ended:?}");
}

#[tokio::test]
async fn an_uninstall_notes_reserved_and_unknown_shims() {
    let host = Host::stocked();
    host.install(&[shim("a"), shim("b")], &[]).await;
    let report = host.uninstall(Some(&["b", "c"])).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let [reserved, unknown] = report.notes.as_slice() else {
        panic!("{report:?}");
    };
    assert!(reserved.contains("handler b stays declared"), "{reserved}");
    assert!(unknown.contains("no shim c is installed"), "{unknown}");
    host.install(&[shim("a")], &[]).await;
    let before = host.tree(true);
    let result = installer::uninstall(&host.leaving(Some(&["c"])), Mode::Change).await;
    assert_eq!(result.report.result, Outcome::Unchanged, "{result:?}");
    assert!(result.text.starts_with("nothing to do"), "{}", result.text);
    assert_eq!(host.tree(true), before);
}

#[tokio::test]
async fn an_upgrade_of_a_binary_does_not_change_the_configuration() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    let config = host.config();
    host.write("/srv/a", &program(9));
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(host.config(), config);
    let binary = std::fs::read(host.path("/opt/farrier/bin/containerd-shim-a")).unwrap();
    assert_eq!(binary, program(9));
    let stored = std::fs::read_dir(host.path("/opt/farrier/store")).unwrap();
    assert_eq!(stored.count(), 1);
}

#[tokio::test]
async fn a_reserved_handler_is_installed_and_removed_without_a_change_of_the_configuration() {
    let host = Host::stocked();
    host.install(&[shim("a")], &["b"]).await;
    let config = host.config();
    for shims in [&[shim("a"), shim("b")][..], &[shim("a")]] {
        let report = host.install(shims, &["b"]).await;
        assert_eq!(report.result, Outcome::Applied, "{report:?}");
        assert_eq!(host.config(), config);
        let there = host.path("/opt/farrier/bin/containerd-shim-b").exists();
        assert_eq!(there, shims.len() == 2);
    }
}

#[tokio::test]
async fn a_foreign_handler_is_refused_for_its_shim_alone() {
    let host = Host::stocked();
    host.write("/srv/kata", &program(3));
    let report = host.install(&[shim("a"), shim("kata")], &[]).await;
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    assert!(report.reason.unwrap().contains("handler kata is declared"));
    assert!(host.config().starts_with(CONFIG));
    assert!(!host.path("/opt/farrier/bin/containerd-shim-kata").exists());
    assert!(host.path("/opt/farrier/bin/containerd-shim-a").exists());
}

/// Farrier enters the host's root to test a program; only root may do so.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_shim_that_does_not_run_is_refused_and_keeps_its_old_version() {
    let host = Host::stocked();
    let install = |names: &[&str]| -> ProvisionReport {
        let shims = names
            .iter()
            .map(|name| format!("--shim={name}=file:///srv/{name}"));
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_farrier"))
            .args(["install", "--offline", "-o", "json", "--host-root"])
            .arg(host.root())
            .args(shims)
            .output()
            .unwrap();
        ProvisionReport::from_json(&String::from_utf8_lossy(&output.stdout)).unwrap()
    };
    host.write("/srv/a", &printing(VERSION));
    host.write("/srv/broken", &runnable(3));
    let before = host.tree(false);
    let report = install(&["broken"]);
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert_eq!(host.tree(false), before);
    let report = install(&["a", "broken"]);
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    assert!(
        report
            .reason
            .unwrap()
            .contains("shim broken: the binary does not run on the host")
    );
    assert!(host.path("/opt/farrier/bin/containerd-shim-a").exists());
    assert!(!host.config().contains("broken"));
    host.write("/srv/a", &runnable(3));
    let report = install(&["a"]);
    assert_eq!(
        report.handlers[0].sha256,
        Some(Sha256Digest::of(&printing(VERSION)))
    );
    assert!(report.handlers[0].reason.is_some());
}

/// As `/bin/true` packed as a shim would.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_program_that_is_no_shim_is_refused_and_one_that_may_be_a_shim_is_noted() {
    let host = Host::stocked();
    let install = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_farrier"))
            .args(["install", "--offline", "-o", "json", "--host-root"])
            .arg(host.root())
            .args(arguments)
            .output()
            .unwrap();
        let report = ProvisionReport::from_json(&String::from_utf8_lossy(&output.stdout));
        (output.status.code().unwrap(), report.unwrap())
    };
    let is_noted = |report: &ProvisionReport| {
        let mut notes = report.notes.iter();
        notes.any(|note| note.contains("the binary of shim a answers `-v` unlike known shims"))
    };
    host.write("/srv/a", &runnable(0));
    let before = host.tree(false);
    let (status, report) = install(&["--shim=a=file:///srv/a"]);
    assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
    assert_eq!(
        report.reason.as_deref(),
        Some("shim a: the binary is no shim of containerd: it prints nothing for `-info` and `-v`")
    );
    assert!(report.remedy.unwrap().contains("check that the location"));
    assert_eq!(host.tree(false), before);
    host.write("/srv/a", &printing("usage: a COMMAND"));
    let (status, report) = install(&["--shim=a=file:///srv/a"]);
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
    assert!(is_noted(&report), "{report:?}");
    host.write("/srv/a", &printing(VERSION));
    let (status, report) = install(&["--shim=a=file:///srv/a"]);
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
    assert!(!is_noted(&report), "{report:?}");
}

#[rstest]
#[case::alone(&["other"], Outcome::Refused)]
#[case::beside_another(&["other", "b"], Outcome::Partial)]
#[tokio::test]
async fn an_artifact_for_another_cpu_is_reported_as_unsupported(
    #[case] names: &[&str],
    #[case] expected: Outcome,
) {
    let host = Host::stocked();
    host.write("/srv/other", &for_another_cpu());
    let shims: Vec<_> = names.iter().map(|name| shim(name)).collect();
    let report = host.install(&shims, &[]).await;
    assert_eq!(report.result, expected, "{report:?}");
    assert_eq!(
        report.unsupported_shims,
        BTreeSet::from(["other".to_owned()])
    );
    assert!(!report.unsupported);
    let reason = report.reason.unwrap();
    assert!(reason.starts_with("shim other: "), "{reason}");
    assert!(reason.contains("and the host has the CPU"), "{reason}");
    // Another file is no proof.
    host.write("/srv/other", b"<html>");
    let report = host.install(&shims, &[]).await;
    assert_eq!(report.unsupported_shims, BTreeSet::new());
    assert!(report.reason.unwrap().starts_with("shim other: "));
}

#[tokio::test]
async fn a_failed_upgrade_keeps_the_old_version() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    let before = host.tree(false);
    let mut upgrade = shim("a");
    upgrade.sha256 = Some(Sha256Digest::from_bytes([0; 32]));
    let report = host.install(&[upgrade, shim("b")], &[]).await;
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    let old = Sha256Digest::of(&program(1));
    assert_eq!(report.handlers[0].sha256, Some(old));
    assert!(report.reason.unwrap().contains("has SHA-256"));
    let link = host.path("/opt/farrier/bin/containerd-shim-a");
    assert_eq!(std::fs::read(link).unwrap(), program(1));
    host.install(&[shim("a")], &[]).await;
    host.uninstall(Some(&["b"])).await;
    let after = host.tree(false);
    assert!(before.keys().all(|path| after.contains_key(path)));
}

#[rstest]
#[case::absent("absent", "artifact /srv/absent is missing on the host")]
#[case::nothing_in_it("empty", "is empty")]
#[case::no_program("page", "the artifact is neither a .tar.gz archive nor")]
#[tokio::test]
async fn an_unavailable_shim_changes_nothing(#[case] name: &str, #[case] reason: &str) {
    let host = Host::stocked();
    host.write("/srv/page", b"<html>");
    let before = host.tree(true);
    let report = host.install(&[shim(name)], &["later"]).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert!(report.reason.unwrap().contains(reason));
    assert_eq!(host.tree(true), before);
}

#[rstest]
#[case::a_reserved_name(&["--shim=runc=file:///srv/b"], 2)]
#[case::no_runtime_class(&["--shim=b=file:///srv/b,handler=B"], 2)]
#[case::a_short_digest(&["--shim=b=file:///srv/b,sha256=abcd"], 2)]
#[case::a_name_twice(&["--shim=b=file:///srv/b", "--shim=b=file:///srv/b"], 2)]
#[case::a_handler_twice(&["--shim=b=file:///srv/b", "--shim=c=file:///srv/b,handler=b"], 2)]
#[case::ftp(&["--shim=b=ftp://example.org/b"], 2)]
#[case::an_unknown_scheme(&["--shim=b=file:///srv/b", "--shim=c=gopher://example.org/b"], 2)]
#[case::a_reserved_name_to_reserve(&["--shim=b=file:///srv/b", "--reserve=runc"], 2)]
#[case::a_relative_config(&["--shim=b=file:///srv/b", "--config=config.toml"], 2)]
#[case::no_request(&["--request=/nowhere"], 2)]
#[case::an_absent_file(&["--shim=b=file:///srv/absent", "--reserve=c"], 3)]
#[case::a_foreign_handler(&["--shim=kata=file:///srv/b"], 3)]
#[tokio::test]
async fn a_request_of_which_nothing_can_be_had_removes_nothing(
    #[case] words: &[&str],
    #[case] status: i32,
) {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    let before = host.tree(true);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_farrier"))
        .args(["install", "--offline", "--host-root"])
        .arg(host.root())
        .args(words)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    assert_eq!(host.tree(true), before);
}

#[rstest]
#[case::no_toml("[[[", "failed to parse")]
#[case::no_cri(
    "version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n",
    "disables"
)]
#[tokio::test]
async fn a_configuration_that_the_editor_refuses_is_left_alone(
    #[case] config: &str,
    #[case] reason: &str,
) {
    let host = Host::stocked();
    host.write("/etc/containerd/config.toml", config.as_bytes());
    let before = host.tree(true);
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert!(report.reason.unwrap().contains(reason));
    assert!(report.handlers[0].reason.is_some());
    assert_eq!(host.tree(true), before);
}

#[tokio::test]
async fn an_unsupported_distribution_is_refused() {
    let host = Host::stocked();
    host.write("/etc/os-release", b"ID=talos\n");
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Refused);
    assert!(report.reason.unwrap().contains("Talos"));
}

#[rstest]
#[case::talos("/etc/os-release", "ID=talos\n")]
#[case::broken_configuration("/etc/containerd/config.toml", "no = [toml")]
#[tokio::test]
async fn an_uninstall_on_a_host_without_farrier_changes_nothing(
    #[case] path: &str,
    #[case] text: &str,
) {
    let host = Host::stocked();
    host.write(path, text.as_bytes());
    let before = host.tree(true);
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
    let report = host.uninstall(Some(&["a"])).await;
    assert!(
        report.notes[0].contains("no shim a is installed"),
        "{report:?}"
    );
    assert_eq!(host.tree(true), before);
}

#[tokio::test]
async fn an_uninstall_is_refused_while_the_configuration_with_farriers_handlers_cannot_be_parsed() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    let config = format!("{}no = [toml", host.config());
    for directory in ["/opt/farrier", "/var/lib/farrier"] {
        std::fs::remove_dir_all(host.path(directory)).unwrap();
    }
    host.write("/etc/containerd/config.toml", config.as_bytes());
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
}

#[tokio::test]
async fn one_owner_does_not_change_the_handlers_of_another() {
    let host = Host::stocked();
    let handoff = tempfile::tempdir().unwrap();
    host.install(&[shim("a")], &[]).await;
    let report = host.provision(&[shim("b")], handoff.path()).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(report.node_uid, "uid");
    let report = host.uninstall(Some(&["b"])).await;
    assert!(report.reason.unwrap().contains("belongs to cluster"));
    let before = host.tree(true);
    let report = host.install(&[shim("b")], &[]).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    let reason = report.reason.unwrap();
    assert_eq!(reason, "handler b belongs to a Shim of the cluster: b");
    // Nothing is fetched for a command that is refused anyway.
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let mut remote = shim("b");
    remote.location = format!("http://{}/b", server.local_addr().unwrap());
    let report = host.install(&[remote], &[]).await;
    assert_eq!(report.reason, Some(reason));
    assert!(server.accept().is_err());
    assert_eq!(host.tree(true), before);
    let diagnosis = installer::doctor(&host.host_options()).await;
    let note = &diagnosis.notes[0];
    assert!(note.starts_with("this node belongs to a cluster"), "{note}");
    host.provision(&[], handoff.path()).await;
    assert!(host.path("/opt/farrier/bin/containerd-shim-a").exists());
    assert!(!host.path("/opt/farrier/bin/containerd-shim-b").exists());
}

#[tokio::test]
async fn binaries_in_the_hand_off_directory_are_verified_again() {
    let host = Host::stocked();
    let handoff = tempfile::tempdir().unwrap();
    let remote = |name: &str| {
        let mut shim = shim(name);
        shim.location = "https://example.org/a.tar.gz".to_owned();
        shim
    };
    let leave = |name: &str, digest: &str| {
        let result = format!(r#"{{"shim":"{name}","binarySha256":"{digest}","reason":null}}"#);
        std::fs::write(handoff.path().join(format!("{name}.json")), result).unwrap();
    };
    symlink("/bin/true", handoff.path().join("link.bin")).unwrap();
    leave("link", &"0".repeat(64));
    std::fs::write(handoff.path().join("other.bin"), program(4)).unwrap();
    leave("other", &"0".repeat(64));
    std::fs::write(handoff.path().join("good.bin"), program(5)).unwrap();
    leave("good", &sha256_hex(&program(5)));
    let shims = ["good", "link", "none", "other"].map(remote);
    let report = host.provision(&shims, handoff.path()).await;
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    let carried: Vec<bool> = report
        .handlers
        .iter()
        .map(|handler| handler.sha256.is_some())
        .collect();
    assert_eq!(carried, [true, false, false, false]);
}

/// The digest of a state file that was never written.
const NEVER_WRITTEN: Sha256Digest = Sha256Digest::from_bytes([0; 32]);

/// A run that is killed after it wrote the configuration and before it wrote the state file.
fn interrupt(host: &Host, before: &str) {
    let root = HostRoot::open(host.root()).unwrap();
    let config = "/etc/containerd/config.toml".to_owned();
    Journal {
        api_version: "farrier.dev/v1".to_owned(),
        undo: vec![
            Undo::Symlink {
                path: "/opt/farrier/bin/containerd-shim-a".to_owned(),
                target: None,
            },
            Undo::Config {
                path: config.clone(),
                before: Some(before.to_owned()),
                wrote: Some(Sha256Digest::of(host.config().as_bytes())),
            },
        ],
        declares: vec!["a".to_owned()],
        root: config,
        directory: "/opt/farrier".to_owned(),
        unit: "containerd.service".to_owned(),
        distro: "debian".to_owned(),
        process: None,
        undone: false,
        expected: None,
        socket: "/run/containerd/containerd.sock".to_owned(),
        restarting: true,
        state: FinalState::Digest(NEVER_WRITTEN),
        obsolete_directories: Vec::new(),
        legacy_cleanup: installer::plan::LegacyCleanup::default(),
        leaving: std::collections::BTreeMap::new(),
        prove: BTreeSet::new(),
    }
    .save(&root)
    .unwrap();
    std::fs::remove_file(host.path("/var/lib/farrier/state.json")).unwrap();
}

#[tokio::test]
async fn an_interrupted_change_is_undone_by_the_next_run() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    interrupt(&host, CONFIG);
    host.uninstall(None).await;
    assert_eq!(host.config(), CONFIG);
    assert!(!host.path("/opt/farrier").exists());
    assert!(!host.path("/var/lib/farrier").exists());
}

#[tokio::test]
async fn an_interrupted_change_is_undone_in_a_file_that_was_edited_afterwards() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    interrupt(&host, CONFIG);
    let edited = host.config().replace("# ours", "# edited since");
    host.write("/etc/containerd/config.toml", edited.as_bytes());
    host.uninstall(None).await;
    assert_eq!(host.config(), CONFIG.replace("# ours", "# edited since"));
    assert!(!host.path("/var/lib/farrier").exists());
}

#[tokio::test]
async fn a_removal_that_was_interrupted_before_its_cleanup_is_finished_by_the_next_run() {
    let host = Host::stocked();
    let before = host.tree(false);
    host.install(&[shim("a")], &[]).await;
    interrupt(&host, CONFIG);
    // Without undo steps and without a new state file, the change is complete, and only the cleanup remains.
    let journal = host.path("/var/lib/farrier/journal.json");
    let text = std::fs::read_to_string(&journal).unwrap();
    let text = text.replace(&format!("\"{NEVER_WRITTEN}\""), "null");
    let directories = r#""dropFolders":["/var/lib","/var/lib/farrier","/opt","/opt/farrier"]"#;
    std::fs::write(&journal, text.replace("\"dropFolders\":[]", directories)).unwrap();
    host.write("/etc/containerd/config.toml", CONFIG.as_bytes());
    host.uninstall(None).await;
    std::fs::remove_dir(host.path("/var")).unwrap();
    assert_eq!(host.tree(false), before);
}

#[tokio::test]
async fn a_configuration_path_that_is_not_absolute_is_refused() {
    let host = Host::stocked();
    let mut options = host.named(&[shim("a")], &[]);
    options.host.config = Some("config.toml".into());
    let report = installer::install(&options, Mode::Change).await.report;
    assert_eq!(report.result, Outcome::Refused);
    assert!(report.remedy.unwrap().contains("absolute"));
}

#[tokio::test]
async fn a_damaged_state_file_refuses_every_run() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    host.write("/var/lib/farrier/state.json", b"{");
    let before = host.tree(true);
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Refused);
    assert!(
        report
            .reason
            .unwrap()
            .contains("/var/lib/farrier/state.json")
    );
    assert_eq!(host.tree(true), before);
}

#[tokio::test]
async fn a_damaged_binary_blocks_no_other_shim() {
    let host = Host::stocked();
    host.install(&[shim("a"), shim("b")], &[]).await;
    let stored = format!("/opt/farrier/store/{}", sha256_hex(&program(1)));
    host.write(&stored, b"something else");
    let report = host.uninstall(Some(&["b"])).await;
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    let reason = report.reason.unwrap();
    assert_eq!(reason, "shim a: the binary is lost or damaged");
    assert!(!host.path("/opt/farrier/bin/containerd-shim-b").exists());
    let mut options = host.named(&[shim("b")], &[]);
    options.keep_others = true;
    let report = installer::install(&options, Mode::Change).await.report;
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    let report = host.install(&[shim("a"), shim("b")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(std::fs::read(host.path(&stored)).unwrap(), program(1));
}

#[tokio::test]
async fn a_repaired_binary_is_kept_when_the_change_is_rolled_back() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    let stored = format!("/opt/farrier/store/{}", sha256_hex(&program(1)));
    host.write(&stored, b"something else");
    // A symlink can't replace this directory.
    host.write("/opt/farrier/bin/containerd-shim-b/of-others", b"");
    let report = host.install(&[shim("a"), shim("b")], &[]).await;
    assert_eq!(report.result, Outcome::RolledBack, "{report:?}");
    assert_eq!(std::fs::read(host.path(&stored)).unwrap(), program(1));
    assert!(!host.config().contains("containerd-shim-b"));
}
