//! Command lines with which a containerd may be started: the file that it loads is edited, or the refusal names the cause.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use farrier::handoff::Outcome;

use crate::node::{CONFIG, LIMIT, Node, on_each};

/// What `/sbin/kind` sets for a start, and the file that containerd then loads.
const COMMAND_LINES: [(&str, &str); 4] = [
    // containerd --config /srv/one.toml --config /srv/two.toml
    (
        "config=/srv/one.toml options='--config /srv/two.toml'",
        "/srv/two.toml",
    ),
    ("cd /srv; config=two.toml", "/srv/two.toml"),
    (
        "cd /srv; config=/gone.toml options='--root /var/lib/containerd --config=./two.toml -- --config /srv/one.toml'",
        "/srv/two.toml",
    ),
    // The last one counts, even if it is the first once more.
    (
        "config=/srv/two.toml options='-config=/srv/one.toml --config /srv/two.toml'",
        "/srv/two.toml",
    ),
];

#[test]
fn the_file_that_containerd_loads_is_edited_whatever_its_command_line() {
    on_each(|release| {
        let node = Node::stopped(release, &[]);
        for path in ["/srv/one.toml", "/srv/two.toml"] {
            node.write(path, CONFIG.as_bytes(), 0o644);
        }
        for (kind, loaded) in COMMAND_LINES {
            // containerd 2.4 ends with an argument behind the options, see `command_line.rs`.
            let kind = if release.to_string_lossy().contains("2.4") {
                kind.replace(" -- --config /srv/one.toml", " --")
            } else {
                kind.to_owned()
            };
            node.write("/sbin/kind", kind.as_bytes(), 0o644);
            node.start();
            let before = node.tree();
            let (status, report) = node.change(&["install", "--shim=a=file:///srv/a"]);
            assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
            assert_eq!(report.restarts, 1, "{kind}: {report:?}");
            let paths: Vec<&str> = report.files.iter().map(|file| file.path.as_str()).collect();
            assert!(paths.contains(&loaded), "{kind}: {report:?}");
            let is_unrehearsed = |note: &String| note.contains("was not rehearsed");
            assert!(
                !report.notes.iter().any(is_unrehearsed),
                "{kind}: {report:?}"
            );
            node.assert_healthy();
            let (status, report) = node.change(&["uninstall", "--all"]);
            assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
            assert_eq!(node.tree(), before);
        }
    });
}

#[test]
fn a_path_that_is_no_text_is_refused_by_its_name_with_the_process_left_running() {
    on_each(|release| {
        let node = Node::stopped(release, &[]);
        let path = Path::new(std::ffi::OsStr::from_bytes(b"srv/\xff.toml"));
        fs::write(node.path("/").join(path), CONFIG).unwrap();
        node.write("/sbin/kind", b"config=$'/srv/\\xff.toml'", 0o644);
        node.start_without_waiting("containerd");
        let since = Instant::now();
        let (status, report) = loop {
            let (status, report) = node.change(&["install", "--shim=a=file:///srv/a"]);
            let reason = report.reason.as_deref().unwrap_or_default();
            // The service manager's child is no containerd before it executes the program.
            if !reason.starts_with("no containerd runs") || since.elapsed() > LIMIT {
                break (status, report);
            }
        };
        assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
        let reason = report.reason.unwrap();
        assert!(
            reason.contains("--config of containerd is not UTF-8"),
            "{reason}"
        );
        let process = node.process();
        let doctor = node.farrier(&["doctor"]);
        let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(text.contains(&reason), "{text}");
        assert_eq!(node.process(), process);
    });
}

/// containerd itself refuses an empty path, so no process runs with one.
#[test]
fn a_containerd_with_an_empty_path_of_its_configuration_does_not_start() {
    on_each(|release| {
        let directory = tempfile::tempdir().unwrap();
        for option in [&["--config", ""][..], &["--config="], &["-c="]] {
            // A containerd that started all the same would leave its sockets there.
            let output = Command::new("unshare")
                .args(["--mount", "--net", "sh", "-c"])
                .args(["mount -t tmpfs none /run && exec \"$@\"", "sh"])
                .arg(release)
                .args(option)
                .args(["--root", "root", "--state", "state", "--address", "a.sock"])
                .current_dir(directory.path())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success(), "{text}");
            assert!(text.contains("no such file or directory"), "{text}");
        }
    });
}
