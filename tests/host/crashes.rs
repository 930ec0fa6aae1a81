//! Kills the real program at each of its changes of a host, and checks that the next run converges.
//!
//! The program is traced (ptrace(2)) and killed before its n-th changing system call, for every n.

use std::process::Command;

use super::support::{Host, program, shim};
use super::trace::is_killed_at;
use farrier::handoff::Outcome;

pub fn host() -> Host {
    let host = Host::stocked();
    for directory in ["/var/lib", "/opt", "/run"] {
        std::fs::create_dir_all(host.path(directory)).unwrap();
    }
    host
}

pub fn arguments(shims: &[&str]) -> Vec<String> {
    let shims = shims
        .iter()
        .map(|name| format!("--shim={name}=file:///srv/{name}"));
    std::iter::once("install".to_owned()).chain(shims).collect()
}

/// Kills an installation of `a` and `b` at each of its writes. The next run has the result of an undisturbed run.
async fn is_carried_out(prepare: impl AsyncFn() -> Host) {
    let shims = [shim("a"), shim("b")];
    let whole = prepare().await;
    whole.install(&shims, &[]).await;
    at_every_change(prepare, &arguments(&["a", "b"]), async |host, nth| {
        let report = host.install(&shims, &[]).await;
        assert!(report.reason.is_none(), "{nth}: {report:?}");
        assert_eq!(host.tree(false), whole.tree(false), "{nth}");
    })
    .await;
}

/// Kills a removal of all shims at each of its writes. The next run restores the host as it was before the first installation.
async fn is_removed(prepare: impl AsyncFn() -> Host) {
    let arguments = ["uninstall", "--all"].map(str::to_owned);
    at_every_change(prepare, &arguments, async |host, nth| {
        let report = host.uninstall(None).await;
        assert!(report.reason.is_none(), "{nth}: {report:?}");
        assert_eq!(host.tree(false), self::host().tree(false), "{nth}");
        assert_eq!(host.uninstall(None).await.result, Outcome::Unchanged);
    })
    .await;
}

/// Kills `arguments` at each of its changes of a host that `prepare` made, and then calls `next`.
async fn at_every_change(
    prepare: impl AsyncFn() -> Host,
    arguments: &[String],
    next: impl AsyncFn(&Host, usize),
) {
    for nth in 1.. {
        let host = prepare().await;
        let mut command = Command::new(env!("CARGO_BIN_EXE_farrier"));
        command.args(arguments).arg("--host-root").arg(host.root());
        if !is_killed_at(command.arg("--offline"), nth) {
            assert!(nth > 20, "only {nth} changes were seen");
            return;
        }
        next(&host, nth).await;
    }
}

#[tokio::test]
async fn an_uninstall_after_a_killed_install_restores_the_host() {
    at_every_change(
        async || host(),
        &arguments(&["a", "b"]),
        async |host, nth| {
            let report = host.uninstall(None).await;
            assert!(report.reason.is_none(), "{nth}: {report:?}");
            assert_eq!(host.tree(false), self::host().tree(false), "{nth}");
        },
    )
    .await;
}

#[tokio::test]
async fn a_killed_install_is_finished_by_the_next_run() {
    is_carried_out(async || host()).await;
}

#[tokio::test]
async fn a_killed_upgrade_is_finished_by_the_next_run() {
    is_carried_out(async || {
        let host = host();
        host.install(&[shim("a")], &[]).await;
        host.write("/srv/a", &program(9));
        host
    })
    .await;
}

#[tokio::test]
async fn a_killed_removal_is_finished_by_the_next_run() {
    let prepare = async || {
        let host = host();
        host.install(&[shim("a"), shim("b")], &[]).await;
        host
    };
    is_removed(prepare).await;
}

/// A node of KWasm: handler `a` gets another binary, `b` is unchanged, and `c` is not requested.
fn kwasm_host() -> Host {
    let host = host();
    let mut config = host.config() + "\n";
    for (handler, seed) in [("a", 7), ("b", 2), ("c", 8)] {
        let path = format!("/opt/kwasm/bin/containerd-shim-{handler}-v1");
        host.write(&path, &program(seed));
        let table = format!(
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{handler}]\n    runtime_type = \"{path}\"\n"
        );
        config.push_str(&table);
    }
    host.write("/opt/kwasm/active", b"");
    host.write("/etc/containerd/config.toml", (config + "\n").as_bytes());
    host
}

#[tokio::test]
async fn a_killed_take_over_is_finished_by_the_next_run() {
    is_carried_out(async || kwasm_host()).await;
}

#[tokio::test]
async fn a_killed_removal_of_legacy_handlers_is_finished_by_the_next_run() {
    let prepare = async || {
        let host = kwasm_host();
        host.install(&[shim("a"), shim("b")], &[]).await;
        host
    };
    is_removed(prepare).await;
}
