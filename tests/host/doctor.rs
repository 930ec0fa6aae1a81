//! The output of `farrier doctor` for host trees in temporary directories, offline.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::support::{CONFIG, Host, failing, program, shim};
use farrier::handoff::Outcome;
use farrier::names::sha256_hex;

/// The problems that `doctor` finds on a host without running processes.
async fn problems(host: &Host) -> Vec<String> {
    let diagnosis = farrier::installer::doctor(&host.host_options()).await;
    assert_eq!(diagnosis.healthy, diagnosis.findings.is_empty());
    let findings = diagnosis.findings.into_iter();
    findings.map(|finding| finding.problem).collect()
}

#[tokio::test]
async fn doctor_reports_no_problem_on_an_unchanged_image() {
    let host = Host::stocked();
    assert_eq!(problems(&host).await, [""; 0]);
    host.install(&[shim("a")], &[]).await;
    assert_eq!(problems(&host).await, [""; 0]);
}

#[tokio::test]
async fn doctor_reports_an_interrupted_change() {
    let host = Host::stocked();
    host.write(
        "/srv/config/real.toml",
        b"version = 2\nimports = ['/srv/parts/*.toml']\n",
    );
    let config = host.path("/etc/containerd/config.toml");
    std::fs::remove_file(&config).unwrap();
    symlink("/srv/config/real.toml", &config).unwrap();
    let theirs = "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.k]\nruntime_type = '/opt/kwasm/bin/containerd-shim-k'\n";
    host.write(
        "/srv/parts/k.toml",
        format!("version = 2\n{theirs}").as_bytes(),
    );
    host.write("/opt/kwasm/bin/containerd-shim-k", &program(3));
    host.install(&[shim("a")], &[]).await;
    let left = [
        "/etc/containerd/config.toml.farrier-candidate".to_owned(),
        "/etc/containerd/config.toml.1.farrier-import".to_owned(),
        "/srv/config/real.toml.farrier-new".to_owned(),
        "/srv/parts/farrier.toml.farrier-new".to_owned(),
        "/opt/kwasm/kwasm-lock.json.farrier-new".to_owned(),
        "/opt/kwasm/bin/containerd-shim-k.farrier-old".to_owned(),
        "/opt/farrier/bin/containerd-shim-a.farrier-new".to_owned(),
        "/var/lib/farrier/state.json.farrier-new".to_owned(),
        format!("/opt/farrier/store/{}", "0".repeat(64)),
    ];
    for path in &left {
        host.write(path, b"");
    }
    let problems = problems(&host).await;
    for path in &left {
        let named = |problem: &&String| problem.starts_with(&format!("{path} was left"));
        assert_eq!(problems.iter().filter(named).count(), 1, "{path}");
    }
}

#[tokio::test]
async fn a_changed_binary_is_reported_by_doctor_and_repaired_by_install() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    let stored = format!("/opt/farrier/store/{}", sha256_hex(&program(1)));
    host.write(&stored, b"something else");
    let path = "/opt/farrier/bin/containerd-shim-a";
    let expected = [format!("{path} is not the binary that was installed")];
    assert_eq!(problems(&host).await, expected);
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(std::fs::read(host.path(&stored)).unwrap(), program(1));
}

#[tokio::test]
async fn doctor_reports_an_unreadable_host() {
    let host = Host::stocked();
    host.write("/var/lib/farrier/state.json", b"{");
    let problems = problems(&host).await;
    let [problem] = problems.as_slice() else {
        panic!("{problems:?}");
    };
    assert!(problem.contains("/var/lib/farrier/state.json"), "{problem}");
    let nowhere = host.path("/nowhere");
    let diagnosis = farrier::installer::doctor(&farrier::installer::HostOptions {
        root: nowhere.clone(),
        config: None,
        target: farrier::installer::Target::Image,
        allow_pod_restarts: false,
        on_restart: None,
        accept_pending_changes: false,
    })
    .await;
    assert!(!diagnosis.healthy);
    let problem = &diagnosis.findings[0].problem;
    assert!(problem.contains(nowhere.to_str().unwrap()), "{problem}");
}

/// Farrier enters the host's root to run containerd; only root may do so.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_password_in_an_error_of_containerd_is_in_no_output() {
    let host = Host::stocked();
    let auth = "[plugins.'io.containerd.grpc.v1.cri'.registry.configs.'r.example'.auth]\npassword = 123456\n";
    host.write(
        "/etc/containerd/config.toml",
        format!("{CONFIG}\n{auth}").as_bytes(),
    );
    // The message of containerd 1.x's parser.
    let containerd = failing("containerd: (9, 1): Can't convert 123456(int64) to string");
    host.write("/usr/bin/containerd", &containerd);
    std::fs::set_permissions(
        host.path("/usr/bin/containerd"),
        PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_farrier"))
        .args(["doctor", "--offline", "-o", "json", "--host-root"])
        .arg(host.root())
        .output()
        .unwrap();
    let diagnosis = String::from_utf8_lossy(&output.stdout);
    assert!(
        diagnosis.contains("Can't convert …(int64) to string"),
        "{output:?}"
    );
    assert!(!diagnosis.contains("123456"), "{diagnosis}");
}
