//! Nodes that KWasm or runtime-class-manager provisioned: their handlers are taken over by name, and removed with all files of the legacy
//! installer.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::legacy::{kwasm_table, rcm_lock, rcm_table};
use super::support::{CONFIG, Host, program, shim};
use farrier::handoff::{OptionValue, Outcome, Sha256Digest, ShimRequest};
use farrier::installer::report::doctor::Finding;
use farrier::installer::{self, Mode};
use farrier::names::sha256_hex;
use rstest::rstest;

/// KWasm's handlers and the version in their shims' file names.
const KWASM: [(&str, &str); 7] = [
    ("lunatic", "v1"),
    ("slight", "v1"),
    ("spin", "v2"),
    ("wws", "v1"),
    ("wasmedge", "v1"),
    ("wasmer", "v1"),
    ("wasmtime", "v1"),
];

fn kwasm_path(handler: &str, version: &str) -> String {
    format!("/opt/kwasm/bin/containerd-shim-{handler}-{version}")
}

fn append(host: &Host, text: &str) {
    let config = host.config() + text;
    host.write("/etc/containerd/config.toml", config.as_bytes());
}

/// The changes of KWasm's installer on a node.
fn add_kwasm(host: &Host) {
    let mut stanzas = String::new();
    for (seed, (handler, version)) in (1..).zip(KWASM) {
        let path = kwasm_path(handler, version);
        host.write(&path, &program(seed));
        stanzas += &kwasm_table(handler, &path);
    }
    host.write("/opt/kwasm/active", b"");
    append(host, &format!("\n{stanzas}\n"));
}

/// The changes of runtime-class-manager's installer on a node, one shim after the other.
fn add_rcm(host: &Host, home: &str, shims: &[(&str, bool)]) {
    let mut binaries = Vec::new();
    for (seed, (handler, option)) in (101..).zip(shims) {
        let path = format!("{home}/bin/containerd-shim-{handler}");
        let bytes = program(seed);
        host.write(&path, &bytes);
        let plugin = "io.containerd.grpc.v1.cri";
        append(host, &rcm_table(plugin, handler, &path, *option));
        binaries.push((*handler, sha256_hex(&bytes), path));
    }
    let lock = rcm_lock(&binaries);
    host.write(&format!("{home}/rcm-lock.json"), lock.as_bytes());
}

fn host(config: &str) -> Host {
    let host = Host::new(Some(config));
    for directory in ["/var/lib", "/opt"] {
        std::fs::create_dir_all(host.path(directory)).unwrap();
    }
    for seed in [3, 77] {
        host.write(&format!("/srv/{seed}"), &program(seed));
    }
    host.write("/srv/101", &program(101));
    host
}

/// The Shim of a handler whose artifact is `/srv/SEED`.
fn wanted(handler: &str, seed: u8) -> ShimRequest {
    ShimRequest {
        location: format!("file:///srv/{seed}"),
        ..shim(handler)
    }
}

fn digest(host: &Host, path: &str) -> Sha256Digest {
    let path = host.path(path);
    let target = std::fs::read_link(&path).ok();
    let path = target.map_or(path, |target| host.path(target.to_str().unwrap()));
    Sha256Digest::of(&std::fs::read(path).unwrap())
}

const UNTERMINATED: &str = CONFIG;
const TERMINATED: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n";
const BLANK_AT_THE_END: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\n";

#[rstest]
#[case(UNTERMINATED)]
#[case(TERMINATED)]
#[case(BLANK_AT_THE_END)]
#[tokio::test]
async fn an_uninstall_removes_handlers_of_kwasm_and_rcm_to_the_last_byte(#[case] config: &str) {
    for order in 0..4 {
        let host = host(config);
        let plain = host.tree(false);
        if order % 2 == 0 {
            add_kwasm(&host);
        }
        if order < 3 {
            add_rcm(&host, "/opt/rcm", &[("spin-v2", true), ("wws-v1", false)]);
        } else {
            add_rcm(&host, "/opt/rcm", &[("wws-v1", false), ("spin-v2", true)]);
        }
        if order == 1 {
            add_kwasm(&host);
        }
        let report = host.uninstall(None).await;
        assert_eq!(report.result, Outcome::Applied, "{report:?}");
        assert_eq!(host.config(), config, "order {order}");
        assert_eq!(host.tree(false), plain, "order {order}");
        assert_eq!(host.uninstall(None).await.result, Outcome::Unchanged);
    }
}

#[tokio::test]
async fn a_take_over_with_the_same_binary_changes_no_byte_of_the_configuration() {
    let host = host(TERMINATED);
    add_kwasm(&host);
    let before = host.config();
    let report = host.install(&[wanted("spin", 3)], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let path = kwasm_path("spin", "v2");
    assert_eq!(report.handlers[0].path.as_deref(), Some(path.as_str()));
    assert_eq!(
        report.notes,
        ["handler spin is taken over from kwasm: its owner is now local, which also removes it"]
    );
    assert_eq!(host.config(), before);
    assert!(host.path(&path).symlink_metadata().unwrap().is_file());
    let store = host.path("/opt/farrier/store");
    assert_eq!(std::fs::read_dir(store).unwrap().count(), 0);
    let tree = host.tree(true);
    let again = host.install(&[wanted("spin", 3)], &[]).await;
    assert_eq!(again.result, Outcome::Unchanged, "{again:?}");
    assert_eq!(host.tree(true), tree);
}

#[tokio::test]
async fn a_legacy_binary_is_hashed_again_only_after_its_file_changed() {
    let host = host(TERMINATED);
    add_kwasm(&host);
    host.install(&[wanted("spin", 3)], &[]).await;
    let path = kwasm_path("spin", "v2");
    let record = host.path("/var/lib/farrier/verified.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let mut verified: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sha256 = &mut verified["adopted"][&path]["sha256"];
    assert_eq!(*sha256, sha256_hex(&program(3)));
    *sha256 = "0".repeat(64).into();
    std::fs::write(&record, verified.to_string()).unwrap();
    // A run relies on the cache for the binary, doctor hashes the binary.
    let findings = async || installer::doctor(&host.host_options()).await.findings;
    let drifted = |finding: &Finding| finding.problem.contains(&path);
    assert!(!findings().await.iter().any(drifted));
    let report = host.install(&[wanted("spin", 3)], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert!(host.path(&path).is_symlink());
    // First the same bytes, and then other bytes of the same size.
    std::fs::remove_file(host.path(&path)).unwrap();
    for (seed, is_well) in [(3, true), (9, false)] {
        host.write(&path, &program(seed));
        assert_eq!(!findings().await.iter().any(drifted), is_well);
    }
    host.install(&[wanted("spin", 3)], &[]).await;
    assert_eq!(digest(&host, &path), Sha256Digest::of(&program(3)));
}

/// The request for the taken-over handlers, with the digests of their binaries, which are expected on the host.
fn expected(handler: &str, seed: u8) -> ShimRequest {
    ShimRequest {
        binary_sha256: Some(Sha256Digest::of(&program(seed))),
        location: "http://127.0.0.1:9/a.tar.gz".to_owned(),
        present: Some(Sha256Digest::of(&program(seed))),
        ..shim(handler)
    }
}

#[tokio::test]
async fn a_legacy_binary_with_the_expected_digest_is_not_fetched() {
    let host = host(TERMINATED);
    add_kwasm(&host);
    let directory = tempfile::tempdir().unwrap();
    let path = kwasm_path("spin", "v2");
    for outcome in [Outcome::Applied, Outcome::Unchanged] {
        let report = host
            .provision(&[expected("spin", 3)], directory.path())
            .await;
        assert_eq!(report.result, outcome, "{report:?}");
        assert_eq!(report.handlers[0].path.as_deref(), Some(path.as_str()));
        assert_eq!(
            report.handlers[0].sha256,
            Some(Sha256Digest::of(&program(3)))
        );
    }
}

/// A legacy installer records no artifact.
#[tokio::test]
async fn a_legacy_binary_is_not_what_an_artifact_without_the_digest_of_its_binary_contains() {
    let host = host(TERMINATED);
    add_kwasm(&host);
    let before = host.tree(true);
    let directory = tempfile::tempdir().unwrap();
    let wanted = ShimRequest {
        binary_sha256: None,
        ..expected("spin", 3)
    };
    let report = host.provision(&[wanted], directory.path()).await;
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    assert!(report.reason.unwrap().contains("not from this artifact"));
    assert_eq!(host.tree(true), before);
}

#[rstest]
#[case::missing(|_: &Host, _: &str| {})]
#[case::changed(|host: &Host, path: &str| host.write(path, &program(9)))]
#[case::symlink(|host: &Host, path: &str| symlink("/srv/3", host.path(path)).unwrap())]
#[tokio::test]
async fn a_legacy_binary_with_another_digest_fails_only_its_shim(
    #[case] damage: impl Fn(&Host, &str),
) {
    let host = host(TERMINATED);
    add_kwasm(&host);
    let directory = tempfile::tempdir().unwrap();
    host.provision(&[expected("spin", 3)], directory.path())
        .await;
    let path = kwasm_path("spin", "v2");
    std::fs::remove_file(host.path(&path)).unwrap();
    damage(&host, &path);
    let shims = [expected("spin", 3), wanted("other", 77)];
    let report = host.provision(&shims, directory.path()).await;
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    let sentence = format!(
        "shim spin: binary {path} is missing or modified on the host, or not from this artifact"
    );
    assert_eq!(report.reason, Some(sentence));
    let other = &report.handlers[0];
    assert_eq!(other.sha256, Some(Sha256Digest::of(&program(77))));
}

/// The findings of `doctor` on a path that another user can change.
async fn untrusted(host: &Host) -> Vec<Finding> {
    let mut findings = installer::doctor(&host.host_options()).await.findings;
    findings.retain(|finding| finding.problem.starts_with("failed to use /"));
    findings
}

#[rstest]
#[case::the_shim("/opt/kwasm/bin/containerd-shim-spin-v2")]
#[case::its_directory("/opt/kwasm/bin")]
#[case::the_directory_above("/opt/kwasm")]
#[tokio::test]
async fn a_legacy_handler_whose_program_another_user_can_change_is_refused(
    #[case] path: &str,
    #[values(false, true)] is_given_away: bool,
    #[values(false, true)] is_taken_over: bool,
) {
    let host = host(TERMINATED);
    add_kwasm(&host);
    if is_taken_over {
        let report = host.install(&[wanted("spin", 3)], &[]).await;
        assert_eq!(report.result, Outcome::Applied, "{report:?}");
    }
    assert_eq!(untrusted(&host).await, []);
    let here = host.path(path);
    let help = if is_given_away {
        if std::os::unix::fs::lchown(&here, Some(1000), Some(1000)).is_err() {
            return;
        }
        format!("run `chown root:root {path}` on the host")
    } else {
        std::fs::set_permissions(&here, std::fs::Permissions::from_mode(0o777)).unwrap();
        format!("run `chmod go-w {path}` on the host")
    };
    // The second has another binary than the first.
    let shims = [wanted("spin", 3), wanted("spin", 77)];
    for shim in &shims[usize::from(is_taken_over)..] {
        let options = host.named(std::slice::from_ref(shim), &[]);
        let before = host.tree(false);
        for mode in [Mode::DryRun, Mode::Change] {
            let report = installer::install(&options, mode).await.report;
            assert_eq!(report.result, Outcome::Refused, "{report:?}");
            assert_eq!(report.remedy.as_deref(), Some(&*help), "{report:?}");
        }
        assert_eq!(host.tree(false), before);
    }
    let findings = untrusted(&host).await;
    let [finding] = findings.as_slice() else {
        panic!("{findings:?}");
    };
    assert_eq!(finding.remedy, help);
    // Nothing is left at the path after the removal.
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(untrusted(&host).await, []);
}

#[tokio::test]
async fn a_new_binary_of_a_legacy_handler_keeps_the_path() {
    let host = host(UNTERMINATED);
    let plain = host.tree(false);
    add_kwasm(&host);
    let before = host.config();
    let path = kwasm_path("spin", "v2");
    for seed in [77, 3] {
        let report = host.install(&[wanted("spin", seed)], &[]).await;
        assert_eq!(report.result, Outcome::Applied, "{report:?}");
        assert_eq!(host.config(), before);
        assert_eq!(digest(&host, &path), Sha256Digest::of(&program(seed)));
        let again = host.install(&[wanted("spin", seed)], &[]).await;
        assert_eq!(again.result, Outcome::Unchanged, "{again:?}");
    }
    assert!(!host.path(&format!("{path}.farrier-old")).exists());
    host.uninstall(None).await;
    assert_eq!(host.tree(false), plain);
}

#[tokio::test]
async fn removing_one_legacy_handler_leaves_the_others_unchanged() {
    let host = host(TERMINATED);
    add_rcm(&host, "/opt/rcm", &[("spin-v2", true), ("wws-v1", false)]);
    let theirs = host.config();
    host.install(&[wanted("spin-v2", 77)], &[]).await;
    // The handler has other options, so it is declared again.
    assert!(host.config().contains("# farrier:"));
    assert!(host.config().contains("# RCM runtime config for wws-v1"));
    assert!(!host.config().contains("# RCM runtime config for spin-v2"));
    let report = host.install(&[], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let rest = theirs.find("\n# RCM runtime config for wws-v1").unwrap();
    assert_eq!(host.config(), format!("{TERMINATED}{}", &theirs[rest..]));
    assert!(!host.path("/opt/rcm/bin/containerd-shim-spin-v2").exists());
    assert!(host.path("/opt/rcm/bin/containerd-shim-wws-v1").exists());
    let lock = std::fs::read_to_string(host.path("/opt/rcm/rcm-lock.json")).unwrap();
    let digest = sha256_hex(&program(102));
    assert_eq!(
        lock,
        format!(
            "{{\n \"shims\": {{\n  \"wws-v1\": {{\n   \"sha256\": \"{digest}\",\n   \"path\": \"/opt/rcm/bin/containerd-shim-wws-v1\"\n  }}\n }}\n}}"
        )
    );
    assert!(!host.path("/var/lib/farrier").exists());
}

#[tokio::test]
async fn a_take_over_with_the_same_options_changes_no_byte_of_the_configuration() {
    let host = host(TERMINATED);
    add_rcm(&host, "/opt/rcm", &[("spin-v2", true)]);
    let before = host.config();
    let mut shim = wanted("spin-v2", 101);
    let option = ("SystemdCgroup".to_owned(), OptionValue::Boolean(true));
    shim.options = BTreeMap::from([option]);
    let report = host.install(&[shim], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(host.config(), before);
}

#[tokio::test]
async fn a_legacy_table_under_the_wrong_plugin_is_declared_under_the_right_one() {
    let config = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n";
    let host = host(config);
    let plain = host.tree(false);
    add_kwasm(&host);
    let report = host.install(&[wanted("spin", 3)], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let now = host.config();
    assert!(!now.contains("io.containerd.grpc.v1.cri\".containerd.runtimes.spin]"));
    assert!(now.contains("\"io.containerd.cri.v1.runtime\".containerd.runtimes.spin]"));
    assert!(now.contains("io.containerd.grpc.v1.cri\".containerd.runtimes.wws]"));
    let again = host.install(&[wanted("spin", 3)], &[]).await;
    assert_eq!(again.result, Outcome::Unchanged, "{again:?}");
    host.uninstall(None).await;
    assert_eq!(host.config(), config);
    assert_eq!(host.tree(false), plain);
}

#[rstest]
#[case::bad_json("{")]
#[case::odd_digits(r#"{"shims":{"a":{"sha256":"2","path":"/opt/rcm/bin/containerd-shim-a"}}}"#)]
#[case::paths_outside_of_rcm(r#"{"shims":{"a":{"sha256":"22","path":"/etc/os-release"},"b":{"sha256":"22","path":"/opt/rcm/bin/../../../etc/os-release"}}}"#)]
#[tokio::test]
async fn a_forged_lock_file_removes_nothing(#[case] lock: &str) {
    let host = host(TERMINATED);
    add_rcm(&host, "/opt/rcm", &[("spin-v2", false)]);
    host.write("/opt/rcm/rcm-lock.json", lock.as_bytes());
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(host.config(), TERMINATED);
    assert!(host.path("/etc/os-release").exists());
    assert!(host.path("/opt/rcm/rcm-lock.json").exists());
    assert!(!host.path("/opt/rcm/bin").exists());
}

#[rstest]
#[case::foreign_directory("/usr/local/lib")]
#[case::directory_of_the_system("/usr")]
#[tokio::test]
async fn a_directory_without_a_lock_file_of_rcm_is_left_alone(#[case] home: &str) {
    let host = host(TERMINATED);
    add_rcm(&host, home, &[("spin-v2", false)]);
    std::fs::remove_file(host.path(&format!("{home}/rcm-lock.json"))).unwrap();
    let before = host.tree(false);
    assert_eq!(host.uninstall(None).await.result, Outcome::Unchanged);
    assert_eq!(host.tree(false), before);
    let report = host.install(&[wanted("spin-v2", 77)], &[]).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
}

#[tokio::test]
async fn a_custom_directory_of_rcm_is_recognised_by_its_lock_file() {
    let host = host(TERMINATED);
    let plain = host.tree(false);
    std::fs::create_dir_all(host.path("/srv")).unwrap();
    add_rcm(&host, "/srv/shims", &[("spin-v2", true)]);
    host.uninstall(None).await;
    assert_eq!(host.tree(false), plain);
}

#[tokio::test]
async fn a_legacy_directory_that_is_a_symlink_is_left_alone() {
    let host = host(TERMINATED);
    add_rcm(&host, "/opt/rcm", &[("spin-v2", false)]);
    std::fs::rename(host.path("/opt/rcm/bin"), host.path("/usr-bin")).unwrap();
    symlink("/usr-bin", host.path("/opt/rcm/bin")).unwrap();
    let before = host.tree(false);
    assert_eq!(host.uninstall(None).await.result, Outcome::Unchanged);
    assert_eq!(host.tree(false), before);
}

#[tokio::test]
async fn lines_of_administrators_among_legacy_handlers_are_kept() {
    let host = host(TERMINATED);
    add_rcm(&host, "/opt/rcm", &[("spin-v2", false)]);
    append(&host, "# mine\n[debug]\nlevel = \"info\"\n");
    add_kwasm(&host);
    append(&host, "[metrics]\naddress = \"\"\n");
    host.uninstall(None).await;
    assert_eq!(
        host.config(),
        format!("{TERMINATED}# mine\n[debug]\nlevel = \"info\"\n[metrics]\naddress = \"\"\n")
    );
}

#[rstest]
#[case::template_with_a_base("{{ template \"base\" . }}")]
#[case::template_with_a_base_and_more(
    "{{ template \"base\" . }}\n{{ with .X }}\n[metrics]\naddress = {{ . }}\n{{ end }}\n"
)]
#[case::copy_of_a_rendered_file(TERMINATED)]
#[tokio::test]
async fn legacy_handlers_in_a_template_of_k3s_are_taken_over_and_removed(#[case] template: &str) {
    let directory = "/var/lib/rancher/k3s/agent/etc/containerd";
    let (rendered, source) = (
        format!("{directory}/config.toml"),
        format!("{directory}/config.toml.tmpl"),
    );
    let host = host("");
    std::fs::create_dir_all(host.path("/var/lib/rancher/k3s/agent/etc")).unwrap();
    std::fs::rename(host.path("/etc/containerd"), host.path(directory)).unwrap();
    host.write(&source, template.as_bytes());
    let plain = host.tree(false);
    // The legacy installer appends to the rendered file, which it takes for containerd's configuration.
    host.write("/etc/containerd/config.toml", b"");
    add_rcm(&host, "/opt/rcm", &[("spin-v2", true), ("wws-v1", false)]);
    let stanzas = host.config();
    std::fs::remove_dir_all(host.path("/etc/containerd")).unwrap();
    let theirs = format!("{template}{stanzas}");
    host.write(&source, theirs.as_bytes());
    host.write(&rendered, format!("{TERMINATED}{stanzas}").as_bytes());
    let text = || std::fs::read_to_string(host.path(&source)).unwrap();

    let mut spin = wanted("spin-v2", 77);
    let option = ("SystemdCgroup".to_owned(), OptionValue::Boolean(true));
    spin.options = BTreeMap::from([option]);
    let report = host.install(&[spin, wanted("wws-v1", 3)], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(text(), theirs);
    assert!(
        host.path("/opt/rcm/bin/containerd-shim-spin-v2")
            .is_symlink()
    );
    let report = host.uninstall(None).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(text(), template);
    // k3s renders the file at its next start.
    host.write(&rendered, b"");
    assert_eq!(host.tree(false), plain);
}

#[tokio::test]
async fn doctor_reports_legacy_handlers() {
    let host = host(TERMINATED);
    add_kwasm(&host);
    let diagnosis = installer::doctor(&host.host_options()).await;
    let finding = diagnosis
        .findings
        .iter()
        .find(|finding| finding.problem.contains("KWasm"));
    assert!(
        finding.unwrap().problem.contains("lunatic, slight, spin"),
        "{diagnosis:?}"
    );
}
