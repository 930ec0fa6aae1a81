//! Changes that others made after containerd was started. A restart would put them into effect.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use farrier::handoff::Outcome;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rstest::rstest;

use crate::containerd::programs;
use crate::distributions::{BASE_2, BASE_3, K3S, MICROK8S_ARGS, WATCHER, k0s, k3s, microk8s, rke2};
use crate::node::{CONFIG, CONFIG_PATH, Node, Run, on_each, on_these, shim};

const INSTALL: [&str; 2] = ["install", "--shim=a=file:///srv/a"];
const BOTH: [&str; 3] = [
    "install",
    "--shim=a=file:///srv/a",
    "--shim=b=file:///srv/b",
];
const UNINSTALL: [&str; 2] = ["uninstall", "--all"];
const ACCEPT: &str = "--accept-pending-changes";
const CHANGED: &str = "was changed after containerd started";

/// Lines with which containerd does not serve. `config dump` accepts them.
const BREAKING: [(&str, &str); 5] = [
    (
        "snapshotter",
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"gone\"\n",
    ),
    (
        "address of gRPC",
        "[grpc]\ntcp_address = \"127.0.0.1:99999\"\n",
    ),
    ("debug socket", "[debug]\naddress = \"/proc/x/d.sock\"\n"),
    (
        "port of streams",
        "[plugins.\"io.containerd.grpc.v1.cri\"]\nstream_server_port = \"99999\"\n",
    ),
    (
        "snapshotter of a removed proxy plugin",
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"nydus\"\n",
    ),
];

/// The lines of [`BREAKING`] with which this release does not serve. containerd 2.4 serves with the address.
fn breaking(release: &Path) -> impl Iterator<Item = (&'static str, &'static str)> {
    let serves_with_address = release.to_string_lossy().contains("containerd-2.4");
    let breaking = BREAKING.into_iter();
    breaking.filter(move |(what, _)| !(serves_with_address && what.starts_with("address")))
}

/// Lines with which every release serves.
const HARMLESS: [(&str, &str); 2] = [
    ("score", "oom_score = -1\n"),
    (
        "image",
        "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"localhost/pause:2\"\n",
    ),
];

/// PID and start time of containerd.
fn process(node: &Node) -> (String, String) {
    let pid = node.process().trim().to_owned();
    let stat = fs::read_to_string(node.path(&format!("/proc/{pid}/stat"))).unwrap();
    let started = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19);
    (pid, started.unwrap().to_owned())
}

/// `config` with these lines: a key before the first table, or tables at the end.
fn with(config: &str, lines: &str) -> String {
    if lines.starts_with('[') {
        format!("{config}\n{lines}")
    } else {
        format!("{lines}{config}")
    }
}

/// Fails unless `arguments`, its dry run and `doctor` name `path` as changed, and nothing happens.
fn is_refused(node: &Node, arguments: &[&str], path: &str, what: &str) {
    let before = (node.tree(), process(node));
    for arguments in [arguments.to_vec(), [arguments, &["--dry-run"]].concat()] {
        let (status, report) = node.change(&arguments);
        assert_eq!(
            (status, report.result),
            (3, Outcome::Refused),
            "{what}: {report:?}"
        );
        let reason = report.reason.as_deref().unwrap_or_default();
        assert!(
            reason.contains(CHANGED) && reason.contains(path),
            "{what}: {reason}"
        );
        assert!(report.remedy.is_some(), "{what}: {report:?}");
        assert!(node.is_found(reason), "{what}: {reason}");
    }
    assert_eq!((node.tree(), process(node)), before, "{what}");
}

#[test]
fn an_edit_with_which_containerd_would_not_serve_is_never_put_into_effect() {
    on_each(|release| {
        let node = Node::new(release);
        for (what, lines) in breaking(release) {
            node.write(CONFIG_PATH, with(CONFIG, lines).as_bytes(), 0o644);
            is_refused(&node, &INSTALL, CONFIG_PATH, what);
            if what.contains("snapshotter") {
                assert!(node.is_found("neither containerd nor a proxy plugin provides it"));
            }
        }
        if release.to_string_lossy().contains("containerd-2") {
            node.write(CONFIG_PATH, b"version = 3\n", 0o644);
            node.start();
            let gone =
                "version = 3\n[plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter = \"gone\"\n";
            node.write(CONFIG_PATH, gone.as_bytes(), 0o644);
            is_refused(&node, &INSTALL, CONFIG_PATH, "snapshotter in version 3");
        }
        let nydus = "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"nydus\"\n";
        let provided = format!("{nydus}{PROXY_TABLE}");
        node.write(CONFIG_PATH, with(CONFIG, &provided).as_bytes(), 0o644);
        node.start();
        node.write(CONFIG_PATH, with(CONFIG, nydus).as_bytes(), 0o644);
        is_refused(&node, &INSTALL, CONFIG_PATH, "a removed proxy plugin");
        assert!(node.is_found("names the snapshotter nydus"));

        node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
        node.start();
        assert_eq!(node.change(&INSTALL).0, 0);
        let ours = node.config();
        for (what, lines) in breaking(release) {
            node.write(CONFIG_PATH, with(&ours, lines).as_bytes(), 0o644);
            is_refused(&node, &UNINSTALL, CONFIG_PATH, what);
            is_refused(&node, &BOTH, CONFIG_PATH, what);
        }
        // The bytes of Farrier, written again by others.
        node.write(CONFIG_PATH, ours.as_bytes(), 0o644);
        node.assert_healthy();
        let (status, report) = node.change(&UNINSTALL);
        assert_eq!((status, report.restarts), (0, 1), "{report:?}");
        assert_eq!(node.config(), CONFIG);
    });
}

/// A containerd with these directories would start without the pods of the node, and its rehearsal passes.
#[test]
fn other_directories_of_data_are_never_put_into_effect() {
    let programs = programs();
    on_these(&programs[1..3], |release| {
        let (node, config) = importing(release);
        let accepting = [INSTALL[0], INSTALL[1], ACCEPT];
        let lines = "root = \"/srv/data\"\n";
        node.write(CONFIG_PATH, with(&config, lines).as_bytes(), 0o644);
        is_refused(&node, &accepting, CONFIG_PATH, "root");
        assert!(node.is_found("lose all pods: root is now /srv/data"));
        node.write(CONFIG_PATH, config.as_bytes(), 0o644);
        let drop_in = "/etc/containerd/conf.d/20-b.toml";
        node.write(drop_in, b"version = 2\nstate = \"/run/other\"\n", 0o644);
        is_refused(&node, &INSTALL, drop_in, "state");
        fs::remove_file(node.path(drop_in)).unwrap();
        let (status, report) = node.change(&accepting);
        assert_eq!((status, report.restarts), (0, 1), "{report:?}");
    });
    // The directories of the command line stay as they are.
    let node = Node::stopped(&programs[2], &[]);
    node.write(
        "/sbin/kind",
        b"options='--root /srv/own --state /run/own'\n",
        0o755,
    );
    node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
    node.start();
    let lines = "root = \"/srv/data\"\nstate = \"/run/other\"\n";
    node.write(CONFIG_PATH, with(CONFIG, lines).as_bytes(), 0o644);
    let (status, report) = node.change(&INSTALL);
    assert_eq!((status, report.restarts), (0, 1), "{report:?}");
}

#[test]
fn a_harmless_edit_of_a_file_that_farrier_wrote_is_put_into_effect_only_if_it_is_accepted() {
    on_each(|release| {
        let node = Node::new(release);
        assert_eq!(node.change(&INSTALL).0, 0);
        for (what, lines) in HARMLESS {
            let edited = with(&node.config(), lines);
            node.write(CONFIG_PATH, edited.as_bytes(), 0o644);
            is_refused(&node, &UNINSTALL, CONFIG_PATH, what);
            is_refused(&node, &BOTH, CONFIG_PATH, what);
            // A binary is swapped without a restart.
            let (status, report) = node.change(&["install", "--shim=a=file:///srv/b"]);
            assert_eq!((status, report.restarts), (0, 0), "{what}: {report:?}");
            let (status, report) = node.change(&[&BOTH[..], &[ACCEPT]].concat());
            assert_eq!(
                (status, report.result),
                (0, Outcome::Applied),
                "{what}: {report:?}"
            );
            let is_noted = |note: &String| note.contains(CONFIG_PATH) && note.contains(CHANGED);
            assert!(report.notes.iter().any(is_noted), "{what}: {report:?}");
            assert!(report.handlers.iter().all(|handler| handler.served));
            assert!(
                node.config().contains(lines.lines().last().unwrap()),
                "{what}"
            );
            node.assert_healthy();
            let (status, report) = node.change(&UNINSTALL);
            assert_eq!(status, 0, "{what}: {report:?}");
            assert_eq!(node.change(&INSTALL).0, 0);
        }
    });
}

/// A change is noted by the install, its dry run and `doctor`, and is no finding of `doctor`.
fn goes_on_with_a_note(node: &Node, path: &str, what: &str) {
    node.assert_healthy();
    let doctor = node.farrier(&["doctor"]).stdout;
    let doctor = String::from_utf8_lossy(&doctor);
    let mut notes = doctor.lines().filter(|line| line.contains(CHANGED));
    assert!(notes.any(|note| note.contains(path)), "{what}: {doctor}");
    let dry_run = [&INSTALL[..], &["--dry-run"]].concat();
    for arguments in [&dry_run[..], &INSTALL] {
        let (status, report) = node.change(arguments);
        assert_eq!((status, report.restarts), (0, 1), "{what}: {report:?}");
        let is_noted = |note: &String| note.contains(path) && note.contains(CHANGED);
        assert!(report.notes.iter().any(is_noted), "{what}: {report:?}");
    }
    node.assert_healthy();
    assert_eq!(node.change(&UNINSTALL).0, 0, "{what}");
}

/// A running containerd that has loaded a drop-in, and the text of its root file.
fn importing(release: &Path) -> (Node, String) {
    let node = Node::stopped(release, &[]);
    let config = with(CONFIG, IMPORTING);
    node.write(CONFIG_PATH, config.as_bytes(), 0o644);
    node.write(DROP_IN, b"version = 2\n", 0o644);
    node.start();
    (node, config)
}

#[test]
fn a_change_that_containerd_starts_with_and_that_farrier_never_wrote_is_noted() {
    on_each(|release| {
        let (node, config) = importing(release);
        for (what, lines) in HARMLESS {
            node.write(CONFIG_PATH, with(&config, lines).as_bytes(), 0o644);
            goes_on_with_a_note(&node, CONFIG_PATH, what);
        }
        // Neither the bytes nor their time change.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(node.path(CONFIG_PATH), mode).unwrap();
        goes_on_with_a_note(&node, CONFIG_PATH, "a mode");
        fs::remove_file(node.path(DROP_IN)).unwrap();
        goes_on_with_a_note(&node, "/etc/containerd/conf.d", "a removed drop-in");
        let other = "/etc/containerd.new";
        fs::create_dir(node.path(other)).unwrap();
        fs::rename(node.path(CONFIG_PATH), node.path(other).join("config.toml")).unwrap();
        node.write(CONFIG_PATH, config.as_bytes(), 0o644);
        node.start();
        fs::rename(
            node.path("/etc/containerd"),
            node.path("/etc/containerd.old"),
        )
        .unwrap();
        fs::rename(node.path(other), node.path("/etc/containerd")).unwrap();
        goes_on_with_a_note(&node, CONFIG_PATH, "a directory in place of another");

        let score = with(&with(&config, HARMLESS[0].1), PROXY_TABLE);
        node.write(CONFIG_PATH, with(&config, PROXY_TABLE).as_bytes(), 0o644);
        node.start();
        node.write(CONFIG_PATH, score.as_bytes(), 0o644);
        is_refused(&node, &INSTALL, CONFIG_PATH, "beside a proxy plugin");
        let (status, report) = node.change(&[&INSTALL[..], &[ACCEPT]].concat());
        assert_eq!((status, report.restarts), (0, 1), "{report:?}");
        assert_eq!(node.change(&UNINSTALL).0, 0);
        assert_eq!(node.config(), score);
    });
}

/// A specification of a runtime, with which the CRI starts.
const SPECIFICATION: &str = "{\"ociVersion\": \"1.0.2\"}";

#[test]
fn a_changed_file_that_the_configuration_names_is_rehearsed() {
    on_each(|release| {
        let node = Node::stopped(release, &[]);
        let path = "/srv/specification.json";
        let runtime = format!(
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.own]\nruntime_type = \"io.containerd.runc.v2\"\nbase_runtime_spec = \"{path}\"\n"
        );
        node.write(path, SPECIFICATION.as_bytes(), 0o644);
        node.write(CONFIG_PATH, with(CONFIG, &runtime).as_bytes(), 0o644);
        node.start();
        node.write(path, b"{\"process\": 5}", 0o644);
        is_refused(&node, &INSTALL, path, "a type that the CRI refuses");
        let accepted = [&INSTALL[..], &[ACCEPT]].concat();
        is_refused(
            &node,
            &accepted,
            path,
            "a type that the CRI refuses, accepted",
        );
        node.write(path, SPECIFICATION.as_bytes(), 0o644);
        goes_on_with_a_note(&node, path, "a specification");
    });
}

/// The kernel makes a file system read-only after an error of its disk.
#[test]
fn a_containerd_whose_data_is_read_only_by_now_is_not_restarted() {
    let node = Node::new(&programs()[3]);
    let data = "/var/lib/containerd";
    let mut mount = node.enter("mount");
    mount.args(["-t", "tmpfs", "-o", "ro", "none", data]);
    assert!(mount.status().unwrap().success());
    let before = process(&node);
    let (status, report) = node.change(&INSTALL);
    assert_eq!((status, report.restarts), (3, 0), "{report:?}");
    let reason = report.reason.unwrap();
    assert!(
        reason.contains(data) && reason.contains("read-only"),
        "{reason}"
    );
    assert!(node.is_found(&reason), "{reason}");
    assert_eq!(process(&node), before);
    assert!(node.enter("umount").arg(data).status().unwrap().success());
    assert_eq!(node.change(&INSTALL).0, 0);
}

/// Whether a second containerd is prepared while Farrier runs: its root has a copy of every file in `/etc`.
fn rehearses(node: &Node, arguments: &[&str]) -> bool {
    node.write("/etc/marker", b"", 0o644);
    let opened = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    let marker = node.path("/etc/marker");
    opened.add_watch(&marker, AddWatchFlags::IN_OPEN).unwrap();
    assert_eq!(node.change(arguments).0, 0, "{arguments:?}");
    opened.read_events().is_ok()
}

#[test]
fn a_change_without_a_restart_is_not_rehearsed_even_if_others_changed_a_file() {
    let (node, _) = importing(&programs()[0]);
    assert_eq!(node.change(&INSTALL).0, 0);
    node.write(DROP_IN, b"version = 2\noom_score = -1\n", 0o644);
    assert!(!rehearses(&node, &INSTALL), "nothing changes");
    let reserves = [&INSTALL[..], &["--reserve", "b"]].concat();
    let dry_run = [&reserves[..], &["--dry-run"]].concat();
    assert!(rehearses(&node, &dry_run), "a restart is due");
    node.write("/srv/a", &shim(7, Run::Ends), 0o755);
    assert!(!rehearses(&node, &INSTALL), "a new binary");
    assert!(rehearses(&node, &UNINSTALL), "a restart is due");
}

#[test]
fn an_edit_that_conflicts_with_the_node_is_never_put_into_effect() {
    on_these(&[programs()[1].clone(), programs()[3].clone()], |release| {
        let node = Node::new(release);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        node.write("/run/own/file", b"", 0o644);
        let streams =
            format!("stream_server_address = \"127.0.0.1\"\nstream_server_port = \"{port}\"");
        let edits = [
            (
                "a port in use",
                format!("[metrics]\naddress = \"127.0.0.1:{port}\"\n"),
            ),
            (
                "the port of streams in use",
                format!("[plugins.\"io.containerd.grpc.v1.cri\"]\n{streams}\n"),
            ),
            (
                "an address that the node lacks",
                "[metrics]\naddress = \"192.0.2.77:1338\"\n".to_owned(),
            ),
            (
                "a stream address that the node lacks",
                "[plugins.\"io.containerd.grpc.v1.cri\"]\nstream_server_address = \"192.0.2.77\"\n"
                    .to_owned(),
            ),
            (
                "a file above",
                "[debug]\naddress = \"/run/own/file/d.sock\"\n".to_owned(),
            ),
            (
                "a directory",
                "[debug]\naddress = \"/run/own\"\n".to_owned(),
            ),
        ];
        for (what, lines) in edits {
            node.write(CONFIG_PATH, with(CONFIG, &lines).as_bytes(), 0o644);
            is_refused(
                &node,
                &[&INSTALL[..], &[ACCEPT]].concat(),
                CONFIG_PATH,
                what,
            );
        }
        drop(listener);
        let free = with(
            CONFIG,
            &format!("[metrics]\naddress = \"127.0.0.1:{port}\"\n"),
        );
        node.write(CONFIG_PATH, free.as_bytes(), 0o644);
        goes_on_with_a_note(&node, CONFIG_PATH, "a free port");
        // Now it is containerd's own port.
        assert_eq!(node.change(&INSTALL).0, 0);
        assert_eq!(node.change(&UNINSTALL).0, 0);
    });
}

/// A restart would fail, and no file that containerd reads was changed.
#[test]
fn a_containerd_that_does_not_start_in_a_rehearsal_is_not_restarted_although_no_file_is_changed() {
    on_these(&[programs()[1].clone(), programs()[2].clone()], |release| {
        let node = Node::stopped(release, &[]);
        let lines = "[debug]\naddress = \"/run/own/d.sock\"\n";
        node.write(CONFIG_PATH, with(CONFIG, lines).as_bytes(), 0o644);
        node.start();
        node.assert_healthy();
        fs::remove_dir_all(node.path("/run/own")).unwrap();
        node.write("/run/own", b"", 0o644);
        let before = (node.tree(), process(&node));
        for arguments in [&INSTALL[..], &[INSTALL[0], INSTALL[1], "--dry-run"]] {
            let (status, report) = node.change(arguments);
            assert_eq!((status, report.restarts), (3, 0), "{report:?}");
            let reason = report.reason.unwrap();
            assert!(reason.contains("/run/own is no directory"), "{reason}");
            assert!(report.remedy.unwrap().contains(ACCEPT));
            assert!(node.is_found(&reason), "{reason}");
        }
        assert_eq!((node.tree(), process(&node)), before);
        fs::remove_file(node.path("/run/own")).unwrap();
        node.assert_healthy();
        assert_eq!(node.change(&INSTALL).0, 0);
    });
}

#[test]
fn a_removed_root_file_is_noted_and_one_that_farrier_wrote_is_not_put_into_effect() {
    on_each(|release| {
        let node = Node::stopped(release, &[]);
        // Only without --config, containerd starts without a file.
        node.write("/sbin/kind", b"config=", 0o644);
        node.write(CONFIG_PATH, b"version = 2\n", 0o644);
        node.start();
        fs::remove_file(node.path(CONFIG_PATH)).unwrap();
        goes_on_with_a_note(&node, CONFIG_PATH, "a removed root file");
        assert_eq!(node.change(&INSTALL).0, 0);
        fs::remove_file(node.path(CONFIG_PATH)).unwrap();
        is_refused(&node, &INSTALL, CONFIG_PATH, "Farrier's root file");
        let (status, report) = node.change(&[&INSTALL[..], &[ACCEPT]].concat());
        assert_eq!((status, report.restarts), (0, 1), "{report:?}");
        node.assert_healthy();
    });
}

#[test]
fn a_removed_drop_in_of_farrier_is_not_put_into_effect() {
    on_each(|release| {
        let (node, _) = importing(release);
        let (status, report) = node.change(&INSTALL);
        assert_eq!(status, 0, "{report:?}");
        let file = &report.files[0].path;
        let directory = "/etc/containerd/conf.d";
        if !file.starts_with(directory) {
            // Only releases that merge tables of several files get a drop-in.
            assert!(!release.to_string_lossy().contains("containerd-2.4"));
            return;
        }
        fs::remove_file(node.path(file)).unwrap();
        is_refused(&node, &BOTH, directory, "Farrier's drop-in");
        let (status, report) = node.change(&[&BOTH[..], &[ACCEPT]].concat());
        assert_eq!((status, report.restarts), (0, 1), "{report:?}");
        node.assert_healthy();
    });
}

#[test]
fn an_edited_runtime_of_others_is_served_after_it_is_accepted() {
    on_each(|release| {
        let node = Node::new(release);
        let edited = CONFIG.replace("runtimes.kata]", "runtimes.new]");
        for faults in [&["without-cri"][..], &[]] {
            node.write(CONFIG_PATH, edited.as_bytes(), 0o644);
            is_refused(&node, &INSTALL, CONFIG_PATH, "another runtime");
            node.fail(faults);
            let (status, report) = node.change(&[&INSTALL[..], &[ACCEPT]].concat());
            if faults.is_empty() {
                assert_eq!((status, report.restarts), (0, 1), "{report:?}");
                node.assert_healthy();
            } else {
                // The edit is in effect, and stays in the file.
                assert_eq!((status, report.restarts), (4, 2), "{report:?}");
                let reason = report.reason.as_deref().unwrap();
                let named = format!("changed into effect: {CONFIG_PATH} {CHANGED}");
                assert!(reason.contains(&named), "{reason}");
                assert_eq!(node.config(), edited);
                node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
                node.start();
            }
        }
    });
}

const IMPORTING: &str = "imports = [\"/etc/containerd/conf.d/*.toml\"]\n";
const DROP_IN: &str = "/etc/containerd/conf.d/10-a.toml";
const PROXY_TABLE: &str =
    "[proxy_plugins.nydus]\ntype = \"snapshot\"\naddress = \"/run/nydus.sock\"\n";

#[test]
fn a_drop_in_with_which_containerd_would_not_serve_is_never_put_into_effect() {
    on_each(|release| {
        let (node, _) = importing(release);
        fs::remove_file(node.path(DROP_IN)).unwrap();
        fs::write(
            node.path(DROP_IN).with_file_name("20-bad.toml"),
            with("version = 2\n", BREAKING[2].1),
        )
        .unwrap();
        is_refused(
            &node,
            &INSTALL,
            "/etc/containerd/conf.d/20-bad.toml",
            "a new drop-in",
        );
    });
}

/// A containerd that prints its configuration and does not start.
const BROKEN_PROGRAM: &[u8] = b"#!/bin/sh\ncase \"$*\" in *dump|*default|--version) exec /usr/local/bin/containerd.old \"$@\";; esac\nexit 1\n";

#[test]
fn a_replaced_program_is_noted_and_one_with_which_containerd_would_not_serve_is_never_started() {
    on_each(|release| {
        let node = Node::new(release);
        let program = "/usr/local/bin/containerd";
        let new = "/usr/local/bin/containerd.new";
        node.copy(&node.path(program), new);
        fs::rename(node.path(new), node.path(program)).unwrap();
        goes_on_with_a_note(&node, program, "an upgraded program");
        fs::rename(
            node.path(program),
            node.path("/usr/local/bin/containerd.old"),
        )
        .unwrap();
        node.write(program, BROKEN_PROGRAM, 0o755);
        is_refused(&node, &INSTALL, program, "a broken program");
    });
}

/// Without systemd, the command line alone tells what a restart starts.
#[test]
fn a_symlink_that_leads_to_another_program_is_noted_or_refused() {
    let node = Node::stopped(&programs()[2], &[]);
    let program = "/usr/local/bin/containerd";
    let (old, new, broken) = (
        "/opt/c1/containerd",
        "/opt/c2/containerd",
        "/opt/c3/containerd",
    );
    for path in [old, new] {
        node.copy(&node.path(program), path);
    }
    node.write(broken, b"#!/bin/sh\nexit 1\n", 0o755);
    let point_to = |target: &str| {
        fs::remove_file(node.path(program)).unwrap();
        symlink(target, node.path(program)).unwrap();
    };
    point_to(old);
    node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
    node.start();
    assert_eq!(node.change(&INSTALL).0, 0);
    assert_eq!(node.change(&UNINSTALL).0, 0);
    point_to(new);
    goes_on_with_a_note(&node, program, "another release");
    point_to(broken);
    is_refused(&node, &INSTALL, program, "a program that does not start");
    point_to("/opt/gone");
    is_refused(&node, &INSTALL, program, "no program");
}

/// A rehearsal leaves the directory of the plugins empty.
#[test]
fn an_nri_plugin_of_others_is_not_started_and_a_file_that_is_none_refuses_a_restart() {
    let directory = "/opt/nri/plugins";
    let node = Node::new(&programs()[2]);
    let before = process(&node);
    node.write(&format!("{directory}/myplugin"), &shim(1, Run::Ends), 0o755);
    let accepting = [&INSTALL[..], &[ACCEPT]].concat();
    for arguments in [&INSTALL[..], &accepting] {
        let (status, report) = node.change(arguments);
        assert_eq!((status, report.restarts), (3, 0), "{report:?}");
        let reason = report.reason.unwrap();
        assert!(reason.contains("/opt/nri/plugins/myplugin is"), "{reason}");
        assert!(report.remedy.unwrap().starts_with("rename the file"));
        assert!(node.is_found(&reason), "{reason}");
    }
    fs::remove_file(node.path(&format!("{directory}/myplugin"))).unwrap();
    let plugin = format!("{directory}/10-plugin");
    node.write(&plugin, &shim(1, Run::Ends), 0o755);
    is_refused(&node, &INSTALL, &plugin, "a plugin");
    assert_eq!(process(&node), before);
    // containerd 1.7 starts none by default.
    let node = Node::new(&programs()[1]);
    node.write(&format!("{directory}/myplugin"), &shim(1, Run::Ends), 0o755);
    assert_eq!(node.change(&INSTALL).0, 0);
}

/// The CNI configuration of a loopback network.
pub const NETWORK: &[u8] =
    b"{\"cniVersion\":\"0.4.0\",\"name\":\"x\",\"plugins\":[{\"type\":\"loopback\"}]}";

#[test]
fn another_directory_of_the_cni_is_put_into_effect_only_if_it_is_accepted() {
    let programs = programs();
    on_these(&[programs[1].clone(), programs[2].clone()], |release| {
        let node = Node::stopped(release, &[]);
        for directory in ["net.d", "other"] {
            node.write(&format!("/etc/cni/{directory}/10.conflist"), NETWORK, 0o644);
        }
        node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
        node.start();
        node.assert_healthy();
        let cni = "[plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = \"/etc/cni/other\"\n";
        node.write(CONFIG_PATH, with(CONFIG, cni).as_bytes(), 0o644);
        is_refused(&node, &INSTALL, CONFIG_PATH, "the CNI");
        assert!(node.is_found("conf_dir is now /etc/cni/other"));
        let (status, report) = node.change(&[&INSTALL[..], &[ACCEPT]].concat());
        assert_eq!((status, report.restarts), (0, 1), "{report:?}");
        node.assert_healthy();
    });
}

#[test]
fn another_socket_of_the_cri_is_never_put_into_effect() {
    on_each(|release| {
        let node = Node::new(release);
        assert_eq!(node.change(&INSTALL).0, 0);
        let lines = "[grpc]\naddress = \"/run/other.sock\"\n";
        let ours = node.config();
        node.write(CONFIG_PATH, with(&ours, lines).as_bytes(), 0o644);
        for arguments in [&UNINSTALL[..], &[UNINSTALL[0], UNINSTALL[1], ACCEPT]] {
            is_refused(&node, arguments, CONFIG_PATH, "a socket");
        }
        assert!(node.is_found("address is now /run/other.sock, and the running containerd uses /run/containerd/containerd.sock"));
        assert!(!node.is_found("does not serve"));
        node.write(CONFIG_PATH, ours.as_bytes(), 0o644);
        assert_eq!(node.change(&UNINSTALL).0, 0);
    });
}

#[test]
fn a_containerd_whose_program_was_removed_is_refused_with_that_reason() {
    let node = Node::new(&programs()[1]);
    fs::remove_file(node.path("/usr/local/bin/containerd")).unwrap();
    let (status, report) = node.change(&INSTALL);
    assert_eq!((status, report.restarts), (3, 0), "{report:?}");
    let reason = report.reason.unwrap();
    let (begin, end) = (
        "the containerd of this host can't be restarted: process ",
        " runs /usr/local/bin/containerd which was removed, so a restart could not start it",
    );
    assert!(
        reason.starts_with(begin) && reason.ends_with(end),
        "{reason}"
    );
    assert!(node.is_found(&reason), "{reason}");
}

#[rstest]
#[case::service_script("/etc/init.d/containerd")]
#[case::service_settings("/etc/conf.d/containerd")]
fn a_changed_service_refuses_a_restart_until_it_is_accepted(#[case] path: &str) {
    let node = Node::new(&programs()[1]);
    node.write(path, b"#!/sbin/openrc-run\n", 0o755);
    is_refused(&node, &INSTALL, path, "a service");
    let (status, report) = node.change(&[&INSTALL[..], &[ACCEPT]].concat());
    assert_eq!((status, report.restarts), (0, 1), "{report:?}");
    // containerd runs with it now.
    let (status, report) = node.change(&UNINSTALL);
    assert_eq!((status, report.restarts), (0, 1), "{report:?}");
}

#[rstest]
#[case::configuration("/etc/rancher/k3s/config.yaml")]
#[case::drop_in("/etc/rancher/k3s/config.yaml.d/a.yaml")]
#[case::registries("/etc/rancher/k3s/registries.yaml")]
#[case::settings_of_the_service("/etc/rancher/k3s/k3s.env")]
fn a_changed_configuration_of_k3s_refuses_a_restart_until_it_is_accepted(#[case] path: &str) {
    let node = k3s(1, K3S, BASE_2);
    node.write("/run/openrc/started/k3s", b"", 0o644);
    node.start_service("k3s");
    // k3s has rendered the file, and renders it again at its next start.
    let rendered = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
    node.write(rendered, BASE_2.as_bytes(), 0o644);
    node.write(path, b"debug: true\n", 0o644);
    is_refused(&node, &INSTALL, path, "k3s");
    let (status, report) = node.change(&[&INSTALL[..], &[ACCEPT]].concat());
    assert_eq!((status, report.restarts), (0, 1), "{report:?}");
}

/// Farrier reads the flags in the unit file, whether or not systemd runs.
#[rstest]
#[case::configuration(
    "ExecStart=/usr/local/bin/k3s server --config /srv/k3s.yaml",
    "/srv/k3s.yaml"
)]
#[case::configuration_after_an_equals_sign(
    "ExecStart=/usr/local/bin/k3s server --config=/srv/k3s.yaml",
    "/srv/k3s.yaml"
)]
#[case::short_flag("ExecStart=/usr/local/bin/k3s agent -c /srv/k3s.yaml", "/srv/k3s.yaml")]
#[case::drop_in(
    "ExecStart=/usr/local/bin/k3s server --config=/srv/k3s.yaml",
    "/srv/k3s.yaml.d/a.yaml"
)]
#[case::registries(
    "ExecStart=/usr/local/bin/k3s server --private-registry /srv/registries.yaml",
    "/srv/registries.yaml"
)]
#[case::variable(
    "Environment=K3S_CONFIG_FILE=/srv/k3s.yaml\nExecStart=/usr/local/bin/k3s server",
    "/srv/k3s.yaml"
)]
fn a_changed_file_that_the_flags_of_k3s_name_refuses_a_restart_until_it_is_accepted(
    #[case] service: &str,
    #[case] path: &str,
) {
    let node = k3s(1, K3S, BASE_2);
    let unit = format!("[Service]\n{service}\n");
    node.write("/etc/systemd/system/k3s.service", unit.as_bytes(), 0o644);
    node.write("/run/openrc/started/k3s", b"", 0o644);
    node.start_service("k3s");
    // Nothing names this file.
    node.write("/srv/other.yaml", b"debug: true\n", 0o644);
    node.assert_healthy();
    node.write(path, b"debug: true\n", 0o644);
    is_refused(&node, &INSTALL, path, "k3s");
    let (status, report) = node.change(&[&INSTALL[..], &[ACCEPT]].concat());
    assert_eq!((status, report.restarts), (0, 1), "{report:?}");
}

#[rstest]
#[case::arguments(
    "containerd",
    "--address /var/snap/microk8s/common/run/containerd.sock --log-level info\n"
)]
#[case::environment("containerd-env", "SNAPSHOTTER=native\nOWN=1\n")]
#[case::template("containerd-template.toml", BASE_2)]
fn a_changed_file_of_microk8s_refuses_a_restart_until_it_is_accepted(
    #[case] name: &str,
    #[case] text: &str,
) {
    let node = microk8s(1);
    let path = format!("{MICROK8S_ARGS}/{name}");
    // A hook of MicroK8s does so after each start.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o660);
    fs::set_permissions(node.path(&path), mode).unwrap();
    node.assert_healthy();
    node.write(&path, text.as_bytes(), 0o660);
    is_refused(&node, &INSTALL, &path, "MicroK8s");
    let (status, report) = node.change(&[&INSTALL[..], &[ACCEPT]].concat());
    assert_eq!((status, report.restarts), (0, 1), "{report:?}");
    assert_eq!(report.distro.as_deref(), Some("microk8s"));
}

#[rstest]
#[case::configuration("/etc/rancher/rke2/config.yaml")]
#[case::drop_in("/etc/rancher/rke2/config.yaml.d/a.yaml")]
#[case::registries("/etc/rancher/rke2/registries.yaml")]
fn a_changed_configuration_of_rke2_refuses_a_restart_until_it_is_accepted(#[case] path: &str) {
    let node = rke2(1, BASE_2);
    node.write("/run/openrc/started/rke2-agent", b"", 0o644);
    node.start_service("rke2-agent");
    // That of another distribution.
    node.write("/etc/rancher/k3s/config.yaml", b"debug: true\n", 0o644);
    node.assert_healthy();
    node.write(path, b"debug: true\n", 0o644);
    is_refused(&node, &INSTALL, path, "RKE2");
    let (status, report) = node.change(&[&INSTALL[..], &[ACCEPT]].concat());
    assert_eq!((status, report.restarts), (0, 1), "{report:?}");
    assert_eq!(report.distro.as_deref(), Some("rke2"));
}

/// Without a record, only the directory tells of a removal, and k3s itself writes to it.
#[test]
fn a_removed_configuration_of_k3s_refuses_a_restart_after_a_run_that_recorded_it() {
    let node = k3s(1, K3S, BASE_2);
    let (path, kubelet) = (
        "/etc/rancher/k3s/config.yaml",
        "/var/lib/rancher/k3s/agent/etc/kubelet.conf.d",
    );
    node.write("/run/openrc/started/k3s", b"", 0o644);
    node.write(path, b"server: https://10.0.0.1:6443\n", 0o644);
    node.start_service("k3s");
    // k3s writes its own file at each start.
    node.write(&format!("{kubelet}/00-k3s-defaults.conf"), b"", 0o644);
    node.assert_healthy();
    assert_eq!(node.change(&INSTALL).0, 0);
    fs::remove_file(node.path(path)).unwrap();
    let removed = format!("{path} was removed after containerd started");
    let before = process(&node);
    for arguments in [&UNINSTALL[..], &[UNINSTALL[0], UNINSTALL[1], "--dry-run"]] {
        let (status, report) = node.change(arguments);
        assert_eq!((status, report.restarts), (3, 0), "{report:?}");
        let reason = report.reason.unwrap();
        assert!(reason.starts_with(&removed), "{reason}");
        assert!(node.is_found(&reason), "{reason}");
    }
    assert_eq!(process(&node), before);
    let (status, report) = node.change(&[&UNINSTALL[..], &[ACCEPT]].concat());
    assert_eq!((status, report.restarts), (0, 1), "{report:?}");
    node.assert_healthy();
    let own = format!("{kubelet}/50-own.conf");
    node.write(&own, b"maxPods: x\n", 0o644);
    is_refused(&node, &INSTALL, &own, "the kubelet's configuration");
}

#[test]
fn a_changed_configuration_of_k0s_refuses_a_restart_until_it_is_accepted() {
    let node = k0s(2, BASE_3, "v1.36.0+k0s.0");
    node.leave(WATCHER);
    let path = "/etc/k0s/k0s.yaml";
    node.write(path, b"spec: {}\n", 0o644);
    is_refused(&node, &INSTALL, path, "k0s");
    let (status, report) = node.change(&[&INSTALL[..], &[ACCEPT]].concat());
    assert_eq!((status, report.restarts), (0, 1), "{report:?}");
    assert_eq!(report.distro.as_deref(), Some("k0s"));
}
