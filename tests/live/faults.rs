//! Faults of nodes: the change is refused or undone, and the report has the reason.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use farrier::handoff::{Outcome, ProvisionReport};
use nix::mount::MsFlags;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rstest::rstest;

use crate::containerd::programs;
use crate::elf::{executable, writing};
use crate::node::{CONFIG, CONFIG_PATH, Node, Run, on_each, shim};
use crate::pending::NETWORK;

const INSTALL: [&str; 2] = ["install", "--shim=a=file:///srv/a"];

/// Fails unless the change is undone after `faults`, with containerd serving as before.
fn assert_rolled_back(release: &Path, faults: &[&str], words: &str) {
    let node = Node::new(release);
    let before = node.tree();
    node.fail(faults);
    let (status, report) = node.change(&INSTALL);
    assert_eq!(
        (status, report.result),
        (4, Outcome::RolledBack),
        "{report:?}"
    );
    assert!(
        report.reason.as_ref().unwrap().contains(words),
        "{report:?}"
    );
    // One restart for the change, and one for the restored configuration.
    assert_eq!(report.restarts, 2, "{report:?}");
    assert!(report.cri_away_ms.is_some(), "{report:?}");
    assert_eq!(node.tree(), before);
    node.assert_healthy();
    let (status, report) = node.change(&INSTALL);
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
}

/// A containerd that refuses the new configuration, and records the symlinks of shims at that time.
const JUDGE: &str = r#"#!/bin/bash
case "$*" in
    *farrier-candidate*) ls /opt/farrier/bin >/run/linked; echo "no such plugin" >&2; exit 1;;
esac
exec /usr/local/bin/containerd.old "$@"
"#;

#[test]
fn no_symlink_is_created_before_containerd_accepts_the_configuration() {
    on_each(|release| {
        let node = Node::new(release);
        let program = node.path("/usr/local/bin/containerd");
        fs::rename(&program, node.path("/usr/local/bin/containerd.old")).unwrap();
        node.write("/usr/local/bin/containerd", JUDGE.as_bytes(), 0o755);
        let before = node.tree();
        // The program is another one than the running one.
        let install = [&INSTALL[..], &["--accept-pending-changes"]].concat();
        let (status, report) = node.change(&install);
        assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
        assert!(report.reason.unwrap().contains("no such plugin"));
        let linked = fs::read_to_string(node.path("/run/linked")).unwrap();
        assert_eq!(linked, "");
        assert_eq!(node.tree(), before);
    });
}

#[test]
fn a_containerd_that_was_never_restarted_is_left_running() {
    on_each(|release| {
        let node = Node::new(release);
        let before = (node.tree(), node.process());
        node.fail(&["ignored"]);
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.restarts), (4, 0), "{report:?}");
        assert_eq!(report.cri_away_ms, None);
        assert_eq!((node.tree(), node.process()), before);
        node.assert_healthy();
    });
}

#[test]
fn a_containerd_that_fails_to_start_is_rolled_back() {
    on_each(|release| assert_rolled_back(release, &["refuses"], "containerd failed to start"));
}

#[test]
fn a_containerd_that_starts_without_cri_is_rolled_back_at_once() {
    on_each(|release| assert_rolled_back(release, &["without-cri"], "CRI"));
}

#[test]
fn a_containerd_that_ends_after_its_start_is_rolled_back() {
    on_each(|release| assert_rolled_back(release, &["ends"], "ended after its restart"));
}

#[test]
fn a_containerd_that_never_answers_is_rolled_back() {
    // One release is enough: each case takes a minute and does not depend on the release.
    assert_rolled_back(&programs()[2], &["silent"], "did not serve within");
}

/// Another program may remove the configuration of the CNI during the restart, and the CRI serves without it.
#[test]
fn a_change_after_which_the_network_is_gone_is_rolled_back() {
    let node = Node::stopped(&programs()[1], &[]);
    let network = "/etc/cni/net.d/10.conflist";
    node.write(network, NETWORK, 0o644);
    node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
    node.start();
    let (asked, answered) = (node.path("/run/asked"), node.path("/run/answered"));
    for pipe in [&asked, &answered] {
        mkfifo(pipe, Mode::S_IRWXU).unwrap();
    }
    node.fail(&["asks"]);
    // A part of the remaining time is spent on waiting for the network.
    let deadline = ["--deadline=45", "-o", "json"];
    let mut command = node.command(&[&INSTALL[..], &deadline].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    File::open(asked).unwrap().read_exact(&mut [0]).unwrap();
    fs::remove_file(node.path(network)).unwrap();
    fs::write(answered, "\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let report = ProvisionReport::from_json(&String::from_utf8_lossy(&output.stdout)).unwrap();
    assert_eq!(output.status.code(), Some(4), "{report:?}");
    assert_eq!(report.restarts, 2, "{report:?}");
    let reason = report.reason.unwrap();
    assert!(
        reason.contains("the network of pods was not ready"),
        "{reason}"
    );
    assert_eq!(node.config(), CONFIG);
    // Without a network before the change, none is waited for.
    assert_eq!(node.change(&INSTALL).0, 0);
}

#[test]
fn a_containerd_that_does_not_start_after_the_rollback_is_reported_as_broken() {
    on_each(|release| {
        let node = Node::new(release);
        let before = node.tree();
        node.fail(&["refuses", "refuses"]);
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (5, Outcome::Broken), "{report:?}");
        // Neither the change nor the rollback left a containerd that serves as before.
        assert_eq!(report.restarts, 2, "{report:?}");
        assert!(report.remedy.is_some());
        assert_eq!(node.config(), CONFIG);
        // The host is as before once an administrator has repaired containerd.
        node.start();
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
        assert_eq!(node.change(&["uninstall", "--all"]).0, 0);
        assert_eq!(node.tree(), before);
    });
}

/// From 2.2.7 on, containerd runs every shim at its start and waits without a limit, so the node would not serve again.
#[test]
fn a_shim_that_hangs_is_refused_and_the_other_is_installed() {
    on_each(|release| {
        let node = Node::new(release);
        node.write("/srv/a", &shim(1, Run::Hangs), 0o644);
        let (status, report) = node.change(&[
            "install",
            "--shim=a=file:///srv/a",
            "--shim=b=file:///srv/b",
        ]);
        assert_eq!((status, report.result), (1, Outcome::Partial), "{report:?}");
        assert!(!node.config().contains("containerd-shim-a"));
        node.assert_healthy();
    });
}

/// Such as `/bin/true`. Its pods would fail on a node that is Ready.
#[test]
fn a_program_that_is_no_shim_is_refused_and_leaves_nothing() {
    on_each(|release| {
        let node = Node::new(release);
        let (before, process) = (node.tree(), node.process());
        node.write("/srv/a", &executable(&writing(1, "", 0), 1), 0o644);
        let with_it = node.tree();
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
        let reason = report.reason.unwrap();
        assert!(
            reason.starts_with("shim a: the binary is no shim of containerd"),
            "{reason}"
        );
        assert_eq!((node.tree(), node.process()), (with_it, process));
        node.write("/srv/a", &shim(1, Run::Ends), 0o644);
        assert_eq!(node.tree(), before);
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
        assert!(!report.notes.iter().any(|note| note.contains("unlike")));
    });
}

#[test]
fn a_configuration_that_containerd_refuses_is_left_alone() {
    on_each(|release| {
        let node = Node::new(release);
        let process = node.process();
        let broken =
            format!("{CONFIG}\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = 7\n");
        node.write(CONFIG_PATH, broken.as_bytes(), 0o644);
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
        assert_eq!((node.config(), node.process()), (broken, process));
    });
}

#[test]
fn a_pending_change_of_others_is_refused() {
    on_each(|release| {
        let node = Node::new(release);
        let kata = "\"io.containerd.kata.v2\" # theirs";
        let edits = [
            (CONFIG.replace(kata, "\"io.containerd.other.v2\""), "kata"),
            (CONFIG.replace("runtimes.kata]", "runtimes.new]"), "kata"),
            (
                format!("{CONFIG}\noptions.ConfigPath = \"/etc/kata.toml\"\n"),
                "kata",
            ),
            (
                format!(
                    "{CONFIG}\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"kata\"\n"
                ),
                "default runtime",
            ),
        ];
        for (edited, what) in edits {
            let process = node.process();
            node.write(CONFIG_PATH, edited.as_bytes(), 0o644);
            let (status, report) = node.change(&INSTALL);
            assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
            let reason = report.reason.unwrap();
            assert!(
                reason.contains(what) && reason.contains("after containerd started"),
                "{reason}"
            );
            assert_eq!((node.config(), node.process()), (edited, process));
            let output = node.farrier(&["doctor"]);
            assert_eq!(output.status.code(), Some(1));
            let words = String::from_utf8_lossy(&output.stdout);
            assert!(words.contains("after containerd started"), "{words}");
            // An edit that is already in effect refuses no change.
            node.start();
            let (status, report) = node.change(&INSTALL);
            assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
            assert_eq!(node.change(&["uninstall", "--all"]).0, 0);
            node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
            node.start();
        }
    });
}

#[test]
fn a_file_that_the_next_start_of_containerd_needs_is_checked_before_the_change() {
    on_each(|release| {
        let node = Node::stopped(release, &[]);
        let config = CONFIG.replace(" # theirs", "\nbase_runtime_spec = \"/etc/spec.json\"\n");
        let spec = br#"{"ociVersion": "1.1.0", "process": {"cwd": "/", "user": {}}, "root": {"path": "rootfs"}}"#;
        node.write(CONFIG_PATH, config.as_bytes(), 0o644);
        node.write("/etc/spec.json", spec, 0o644);
        node.start();
        let process = node.process();
        fs::remove_file(node.path("/etc/spec.json")).unwrap();
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
        assert!(report.reason.unwrap().contains("/etc/spec.json"));
        assert_eq!((node.config(), node.process()), (config, process));
        node.write("/etc/spec.json", spec, 0o644);
        assert_eq!(node.change(&INSTALL).0, 0);
        node.assert_healthy();
    });
}

#[test]
fn a_shim_that_does_not_run_is_refused_and_the_other_is_installed() {
    on_each(|release| {
        let node = Node::new(release);
        let mut foreign = shim(1, Run::Ends);
        foreign[18..20].copy_from_slice(&183u16.to_le_bytes());
        node.write("/srv/a", &foreign, 0o644);
        let (status, report) = node.change(&[
            "install",
            "--shim=a=file:///srv/a",
            "--shim=b=file:///srv/b",
        ]);
        assert_eq!((status, report.result), (1, Outcome::Partial), "{report:?}");
        assert!(node.config().contains("/b"));
        node.assert_healthy();
    });
}

/// A tmpfs of four pages: a directory and a small file fit, not more.
const SMALL: &str = "size=16k,mode=755";

#[test]
fn a_full_disk_rolls_the_change_back() {
    for path in ["/opt", "/var/lib/farrier", "/etc/containerd"] {
        on_each(|release| {
            let node = Node::stopped(release, &[(path, SMALL)]);
            node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
            node.start();
            node.write(
                "/srv/a",
                &[shim(1, Run::Ends), vec![0; 1 << 16]].concat(),
                0o644,
            );
            // The file takes all free space.
            let filler = node.path(path).join("filler");
            let _ = fs::write(&filler, vec![0; 1 << 16]);
            let before = node.tree();
            let (status, report) = node.change(&INSTALL);
            assert!(matches!(status, 3 | 4), "{path}: {report:?}");
            assert!(report.reason.unwrap().contains("space"), "{path}");
            assert_eq!(node.tree(), before, "{path}");
            node.assert_healthy();
            fs::remove_file(filler).unwrap();
            node.write("/srv/a", &shim(1, Run::Ends), 0o644);
            let (status, report) = node.change(&INSTALL);
            assert_eq!(
                (status, report.result),
                (0, Outcome::Applied),
                "{path}: {report:?}"
            );
        });
    }
}

#[test]
fn an_unwritable_directory_refuses_the_change() {
    for path in ["/opt", "/etc/containerd", "/var/lib/farrier"] {
        on_each(|release| {
            let node = Node::stopped(release, &[(path, "mode=755")]);
            node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
            node.start();
            let before = node.tree();
            node.remount(path, true);
            let (status, report) = node.change(&INSTALL);
            assert_eq!(status, 3, "{path}: {report:?}");
            assert!(
                report.reason.unwrap().to_lowercase().contains("read-only"),
                "{path}"
            );
            assert_eq!(node.tree(), before, "{path}");
            node.remount(path, false);
            assert_eq!(node.change(&INSTALL).0, 0, "{path}");
        });
    }
}

#[rstest]
#[case::noexec_store("/opt", MsFlags::MS_NOEXEC, "noexec")]
#[case::read_only_store("/opt", MsFlags::MS_RDONLY, "read-only")]
#[case::read_only_configuration("/etc/containerd", MsFlags::MS_RDONLY, "read-only")]
fn a_read_only_or_noexec_mount_is_reported_before_any_write(
    #[case] path: &str,
    #[case] flags: MsFlags,
    #[case] words: &str,
) {
    let node = Node::new(&programs()[1]);
    node.restrict(path, flags);
    let before = node.tree();
    let (status, report) = node.change(&INSTALL);
    assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
    assert!(report.reason.clone().unwrap().contains(words), "{report:?}");
    assert_eq!(node.tree(), before);
}

#[rstest]
#[case::first_choice("/opt", "/var/lib/google/farrier")]
#[case::second_choice("/var/lib/google", "/var/lib/toolbox/farrier")]
fn binaries_are_stored_in_the_first_executable_directory(
    #[case] restricted: &str,
    #[case] expected: &str,
) {
    let node = Node::new(&programs()[1]);
    node.write("/etc/os-release", b"ID=cos\n", 0o644);
    node.restrict(restricted, MsFlags::MS_NOEXEC);
    let before = node.tree();
    let (status, report) = node.change(&INSTALL);
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
    let path = report.handlers[0].path.clone().unwrap();
    assert!(path.starts_with(expected), "{path}");
    assert_eq!(node.change(&["uninstall", "--all"]).0, 0);
    assert_eq!(node.tree(), before);
}

#[test]
fn a_configuration_behind_symlinks_and_mounts_is_edited_in_place() {
    on_each(|release| {
        let node = Node::stopped(
            release,
            &[("/srv/config", "mode=755"), ("/srv/data", "mode=755")],
        );
        node.write("/srv/a", &shim(1, Run::Ends), 0o644);
        fs::remove_dir(node.path("/etc/containerd")).unwrap();
        symlink("/srv/config/containerd", node.path("/etc/containerd")).unwrap();
        fs::create_dir(node.path("/srv/config/containerd")).unwrap();
        fs::remove_dir(node.path("/opt")).unwrap();
        // Both targets resolve inside the root: the one is absolute, the other has too many `..`.
        symlink("../../../srv/data", node.path("/opt")).unwrap();
        let file = node.path("/srv/config/containerd/config.toml");
        symlink("../real.toml", file).unwrap();
        node.write("/srv/config/real.toml", CONFIG.as_bytes(), 0o640);
        node.start();
        let before = node.tree();
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
        node.assert_healthy();
        assert!(node.path("/srv/data/farrier/bin").is_dir());
        assert!(node.path("/srv/config/containerd/config.toml").is_symlink());
        assert_eq!(node.change(&["uninstall", "--all"]).0, 0);
        assert_eq!(node.tree(), before);
    });
}

#[test]
fn an_installer_changes_nothing_while_another_runs() {
    let node = Node::new(&programs()[1]);
    let before = node.tree();
    let directory = node.path("/run/farrier");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, PermissionsExt::from_mode(0o700)).unwrap();
    node.write("/run/farrier/lock", b"", 0o600);
    let other = File::open(node.path("/run/farrier/lock")).unwrap();
    other.lock().unwrap();
    let mut child = node
        .command(&INSTALL)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut words = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = words.next().unwrap().unwrap();
    assert!(first.contains("waiting for another farrier"), "{first}");
    assert_eq!(node.tree(), before);
    drop(other);
    // Read to the end: a write to a closed pipe fails.
    let rest: Vec<String> = words.map_while(Result::ok).collect();
    assert!(child.wait().unwrap().success(), "{rest:?}");
    node.assert_healthy();
}

#[test]
fn two_concurrent_installers_both_succeed() {
    on_each(|release| {
        let node = Node::new(release);
        let start = |name: &str| {
            let shim = format!("--shim={name}=file:///srv/{name}");
            let mut command = node.command(&["install", "--keep-others", &shim, "-o", "json"]);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let (one, other) = (start("a"), start("b"));
        for child in [one, other] {
            let output = child.wait_with_output().unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
        node.assert_healthy();
        let both = [
            "install",
            "--shim=a=file:///srv/a",
            "--shim=b=file:///srv/b",
        ];
        let (_, report) = node.change(&both);
        assert_eq!(report.restarts, 0, "{report:?}");
    });
}

#[test]
fn a_rollback_keeps_lines_that_others_added_meanwhile() {
    on_each(|release| {
        let node = Node::new(release);
        // The next start fails, and meanwhile an administrator adds a line.
        node.fail(&["edited"]);
        let (status, report) = node.change(&INSTALL);
        assert_eq!(
            (status, report.result),
            (4, Outcome::RolledBack),
            "{report:?}"
        );
        let config = node.config();
        assert!(
            config.starts_with(CONFIG)
                && config.ends_with(
                    "
# of a person
"
                )
        );
        assert!(!config.contains("farrier"), "{config}");
        assert!(!node.path("/opt/farrier").exists());
        node.assert_healthy();
    });
}

/// Rewrites the configuration, as a unit does that generates its configuration at each start.
#[test]
fn a_change_of_a_configuration_that_each_start_rewrites_is_rolled_back() {
    on_each(|release| {
        let node = Node::stopped(release, &[]);
        node.write("/srv/base", CONFIG.as_bytes(), 0o644);
        node.write("/sbin/kind", b"render() { cp /srv/base $config; }\n", 0o644);
        node.start();
        let before = node.tree();
        let (status, report) = node.change(&INSTALL);
        assert_eq!(
            (status, report.result),
            (4, Outcome::RolledBack),
            "{report:?}"
        );
        assert_eq!(report.restarts, 2, "{report:?}");
        assert_eq!(node.tree(), before);
        node.assert_healthy();
    });
}
