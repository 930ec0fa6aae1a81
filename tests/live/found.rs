//! Handlers that others declare beside Farrier: k3s, which looks for shims at each start, and other files.

use std::fs;

use farrier::handoff::{Outcome, ProvisionReport};
use rstest::rstest;

use crate::containerd::programs;
use crate::distributions::{BASE_2, BASE_3, K3S, K3S_DIRECTORY, k3s};
use crate::node::Node;

const INSTALL: [&str; 2] = ["install", "--shim=spin=file:///srv/a"];
const REMOVE: [&str; 2] = ["uninstall", "--all"];
const PROGRAM: &str = "/usr/local/bin/containerd-shim-spin-v2";
/// What doctor and `install` say of a handler that k3s has found.
const FOUND: &str =
    "k3s declares handler spin itself, because it finds /usr/local/bin/containerd-shim-spin-v2";

/// A started k3s.
fn started(release: usize, base: &str) -> Node {
    let node = k3s(release, K3S, base);
    node.write("/run/openrc/started/k3s", b"", 0o644);
    node.start_service("k3s");
    node
}

/// Starts k3s again, whether or not its containerd then serves.
fn restart(node: &Node) {
    let status = node
        .enter("/sbin/rc-service")
        .args(["k3s", "restart"])
        .status();
    assert!(status.unwrap().success());
}

fn find_shim(node: &Node) {
    node.write(PROGRAM, b"#!/bin/sh\n", 0o755);
}

/// The exit status and the words of doctor.
fn doctor(node: &Node, arguments: &[&str]) -> (i32, String) {
    let output = node.farrier(&[&["doctor"], arguments].concat());
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().unwrap(), words)
}

fn assert_applied((status, report): (i32, ProvisionReport), restarts: u32) {
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
    assert_eq!(report.restarts, restarts, "{report:?}");
}

#[rstest]
#[case::of_1_6(0, BASE_2)]
#[case::of_1_7(1, BASE_2)]
#[case::of_2_1(2, BASE_3)]
#[case::of_2_4(3, BASE_3)]
fn a_declaration_gives_way_to_a_shim_that_k3s_finds_later(
    #[case] release: usize,
    #[case] base: &str,
    #[values(false, true)] is_restarted: bool,
) {
    let node = started(release, base);
    let before = node.tree();
    assert_applied(node.change(&INSTALL), 1);
    node.assert_healthy();
    find_shim(&node);
    if is_restarted {
        node.start_service("k3s");
        let (status, words) = doctor(&node, &[]);
        assert!(status == 1 && words.contains(FOUND), "{words}");
        let process = node.process();
        let (status, report) = node.change_from_a_pod(&INSTALL);
        assert_eq!((status, report.restarts), (3, 0), "{report:?}");
        assert!(
            report.reason.as_ref().unwrap().contains(FOUND),
            "{report:?}"
        );
        assert_eq!(node.process(), process);
    } else {
        let (status, words) = doctor(&node, &[]);
        let said = "from its next start on: Farrier's declaration then gives way";
        assert!(status == 1 && words.contains(said), "{words}");
        let (status, report) = node.change(&INSTALL);
        assert_eq!(
            (status, report.result),
            (0, Outcome::Unchanged),
            "{report:?}"
        );
        assert!(
            report.notes.iter().any(|note| note.contains(said)),
            "{report:?}"
        );
        // A change of another shim starts k3s anew.
        let (status, report) = node.change(&["install", "--keep-others", "--shim=b=file:///srv/b"]);
        assert_eq!((status, report.restarts), (0, 1), "{report:?}");
        let (_, words) = doctor(&node, &[]);
        assert!(words.contains(FOUND), "{words}");
    }
    assert_applied(node.change(&REMOVE), 1);
    fs::remove_file(node.path(PROGRAM)).unwrap();
    node.start_service("k3s");
    assert_eq!(node.tree(), before);
    node.assert_healthy();
}

/// A template without the actions by which Farrier's tables give way, as others may have copied it.
fn without_actions(node: &Node, template: &str) {
    let path = format!("{K3S_DIRECTORY}/{template}");
    let text = fs::read_to_string(node.path(&path)).unwrap();
    let lines = text.lines().filter(|line| {
        !line.starts_with("{{ if not (index .ExtraRuntimes") && *line != "{{ end }}"
    });
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    assert!(text.contains("containerd-shim-spin"), "{text}");
    node.write(&path, text.as_bytes(), 0o644);
}

#[rstest]
#[case::of_1_6(0, BASE_2, "config.toml.tmpl")]
#[case::of_1_7(1, BASE_2, "config.toml.tmpl")]
#[case::of_2_1(2, BASE_3, "config-v3.toml.tmpl")]
#[case::of_2_4(3, BASE_3, "config-v3.toml.tmpl")]
fn a_k3s_that_does_not_start_is_repaired(
    #[case] release: usize,
    #[case] base: &str,
    #[case] template: &str,
    #[values("install", "uninstall", "uninstall offline")] way: &str,
) {
    let node = started(release, base);
    let before = node.tree();
    assert_applied(node.change(&INSTALL), 1);
    without_actions(&node, template);
    find_shim(&node);
    restart(&node);
    let (status, words) = doctor(&node, &[]);
    assert!(
        status == 1 && words.contains("declares handler spin twice"),
        "{words}"
    );
    assert!(!words.contains("no containerd runs"), "{words}");
    match way {
        "install" => {
            let (status, report) = node.change(&INSTALL);
            assert_eq!(
                (status, report.result),
                (1, Outcome::Partial),
                "{report:?}\n{}",
                node.log()
            );
            assert_eq!(report.restarts, 1, "{report:?}");
            assert!(
                report.reason.as_ref().unwrap().contains("finds /usr"),
                "{report:?}"
            );
            assert_applied(node.change(&REMOVE), 1);
        }
        "uninstall" => assert_applied(node.change(&REMOVE), 1),
        _ => {
            let (status, words) = doctor(&node, &["--offline"]);
            assert!(status == 1 && words.contains("spin twice"), "{words}");
            assert_applied(node.change(&[&REMOVE[..], &["--offline"]].concat()), 0);
            node.start_service("k3s");
        }
    }
    fs::remove_file(node.path(PROGRAM)).unwrap();
    node.start_service("k3s");
    assert_eq!(node.tree(), before);
    node.assert_healthy();
}

#[rstest]
#[case::of_1_7(1, BASE_2, "config.toml.tmpl", "grpc.v1.cri")]
#[case::of_2_1(2, BASE_3, "config-v3.toml.tmpl", "cri.v1.runtime")]
fn handlers_leave_a_k3s_that_others_broke_without_a_restart(
    #[case] release: usize,
    #[case] base: &str,
    #[case] template: &str,
    #[case] plugin: &str,
    #[values(false, true)] is_action: bool,
) {
    let node = started(release, base);
    let before = node.tree();
    assert_applied(node.change(&INSTALL), 1);
    let path = format!("{K3S_DIRECTORY}/{template}");
    let ours = fs::read_to_string(node.path(&path)).unwrap();
    let table = format!(
        "[plugins.'io.containerd.{plugin}'.containerd.runtimes.kata]\nruntime_type = 'kata'\n"
    );
    let mine = if is_action {
        "{{ if .X }}\n".to_owned()
    } else {
        table.repeat(2)
    };
    node.write(&path, format!("{ours}{mine}").as_bytes(), 0o644);
    restart(&node);
    let cause = if is_action {
        "template.tmpl is no Go template".replace("template.tmpl", template)
    } else {
        "config.toml is no TOML".to_owned()
    };
    let (status, words) = doctor(&node, &[]);
    assert!(status == 1 && words.contains(&cause), "{words}");
    let dry_run = [&REMOVE[..], &["--dry-run"]].concat();
    for arguments in [&dry_run[..], &REMOVE] {
        let output = node.farrier(arguments);
        let words = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{words}");
        let note = words.find("k3s.service does not run, and is not restarted");
        assert!(note.is_some() && words.contains(&cause), "{words}");
    }
    assert!(!node.path("/opt/farrier").exists());
    assert!(!node.path("/var/lib/farrier").exists());
    // The lines of others are left, below the base.
    let left = fs::read_to_string(node.path(&path)).unwrap();
    let created = &ours[..ours.find("# farrier: managed").unwrap()];
    assert_eq!(left, format!("{created}{mine}"));
    fs::remove_file(node.path(&path)).unwrap();
    node.start_service("k3s");
    node.assert_healthy();
    assert_eq!(node.tree(), before);
}

#[rstest]
#[case::of_1_7(1, BASE_2, "config.toml.tmpl")]
#[case::of_2_1(2, BASE_3, "config-v3.toml.tmpl")]
fn a_template_that_farrier_created_keeps_its_base_below_lines_of_others(
    #[case] release: usize,
    #[case] base: &str,
    #[case] template: &str,
    #[values("snapshotter = \"overlayfs\"", "# mine", "snapshotter = \"{{ .X }}\"")] mine: &str,
) {
    let node = started(release, base);
    assert_applied(node.change(&INSTALL), 1);
    let path = format!("{K3S_DIRECTORY}/{template}");
    let ours = fs::read_to_string(node.path(&path)).unwrap();
    let last = "{{ end }}\n";
    let changed = ours.replace(last, &format!("{mine}\n{last}"));
    assert_ne!(changed, ours);
    node.write(&path, changed.as_bytes(), 0o644);
    node.start_service("k3s");
    assert_applied(node.change(&REMOVE), 1);
    let left = fs::read_to_string(node.path(&path)).unwrap();
    let mut lines = left.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some("{{ template \"base\" . }}"), "{left}");
    assert_eq!(lines.next(), None, "{left}");
    let mine = mine.replace("{{", "{ {");
    assert!(left.contains(&format!("\n# {mine}\n")), "{left}");
    // The distribution renders the comments, too.
    node.start_service("k3s");
    node.assert_healthy();
    let rendered = fs::read_to_string(node.path(&format!("{K3S_DIRECTORY}/config.toml")));
    assert!(rendered.unwrap().contains("runtimes.runc]"));
}

/// The base of a k3s whose rendered file imports a directory.
fn importing() -> String {
    BASE_3.replacen(
        '\n',
        &format!("\nimports = ['{K3S_DIRECTORY}/config-v3.toml.d/*.toml']\n"),
        1,
    )
}

/// On 1.x, containerd does not merge the tables of several files, so Farrier edits the template there in any case.
#[rstest]
#[case::of_2_1(2)]
#[case::of_2_4(3)]
fn a_drop_in_has_precedence_over_a_shim_that_k3s_finds_later(#[case] release: usize) {
    let node = started(release, &importing());
    let before = node.tree();
    assert_applied(node.change(&INSTALL), 1);
    find_shim(&node);
    node.start_service("k3s");
    node.assert_healthy();
    let (status, report) = node.change(&INSTALL);
    assert_eq!(
        (status, report.result),
        (0, Outcome::Unchanged),
        "{report:?}"
    );
    let said = "Farrier's declaration then has precedence";
    assert!(
        report.notes.iter().any(|note| note.contains(said)),
        "{report:?}"
    );
    assert_applied(node.change(&REMOVE), 1);
    node.assert_healthy();
    fs::remove_file(node.path(PROGRAM)).unwrap();
    node.start_service("k3s");
    assert_eq!(node.tree(), before);
}

#[rstest]
#[case::in_the_template(BASE_3.to_owned())]
#[case::in_a_drop_in(importing())]
fn a_handler_that_k3s_will_find_is_refused_with_the_program(
    #[case] base: String,
    #[values(false, true)] is_restarted: bool,
) {
    let node = started(2, &base);
    find_shim(&node);
    if is_restarted {
        node.start_service("k3s");
    }
    let (before, process) = (node.tree(), node.process());
    let (status, report) = node.change(&INSTALL);
    assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
    assert!(
        report.reason.as_ref().unwrap().contains(FOUND),
        "{report:?}"
    );
    assert!(
        report.remedy.as_ref().unwrap().contains("restart k3s"),
        "{report:?}"
    );
    assert_eq!((node.tree(), node.process()), (before, process));
}

/// k3s finds a shim only when Farrier restarts it: neither the change nor its proof is about that shim.
#[rstest]
#[case::in_the_template(BASE_3.to_owned())]
#[case::in_a_drop_in(importing())]
fn another_shim_that_k3s_finds_at_farrier_s_restart_is_no_fault(#[case] base: String) {
    let node = started(2, &base);
    node.write(
        "/opt/kwasm/bin/containerd-shim-wws-v1",
        b"#!/bin/sh\n",
        0o755,
    );
    assert_applied(node.change(&INSTALL), 1);
    node.assert_healthy();
    fs::remove_file(node.path("/opt/kwasm/bin/containerd-shim-wws-v1")).unwrap();
    assert_applied(node.change(&REMOVE), 1);
    node.assert_healthy();
}

const IMPORTING: &str = "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n";
const RUNC: &str = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n";
const THEIRS: &str = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.spin]\nruntime_type = \"io.containerd.theirs.v2\"\noptions.Theirs = true\n";

/// Of two files that declare a handler, the last one has precedence. Farrier writes to a file of its own on 2.x, and on 1.x to the last
/// file with a section of the CRI, because there this section replaces that of the files before.
#[rstest]
#[case::before_farrier_s("10-theirs.toml", true)]
#[case::after_farrier_s("zz-theirs.toml", false)]
fn a_handler_that_another_file_declares_too_can_be_uninstalled(
    #[case] name: &str,
    #[case] is_served: bool,
    #[values(0, 1, 2, 3)] release: usize,
    #[values(false, true)] has_section_in_root: bool,
) {
    // The section of the root is replaced by that of any imported file.
    let is_served = is_served && !(has_section_in_root && release < 2);
    let node = Node::stopped(&programs()[release], &[]);
    let (root, imported) = if has_section_in_root {
        (RUNC, "")
    } else {
        ("", RUNC)
    };
    node.write(
        "/etc/containerd/config.toml",
        format!("{IMPORTING}{root}").as_bytes(),
        0o644,
    );
    let directory = "/etc/containerd/conf.d";
    node.write(
        &format!("{directory}/20-own.toml"),
        format!("version = 2\n{imported}").as_bytes(),
        0o644,
    );
    node.start();
    let before = node.tree();
    assert_applied(node.change(&INSTALL), 1);
    let (theirs, text) = (
        format!("{directory}/{name}"),
        format!("version = 2\n{RUNC}{THEIRS}"),
    );
    node.write(&theirs, text.as_bytes(), 0o644);
    node.start();
    let process = node.process();
    let (status, report) = node.change(&INSTALL);
    let (healthy, words) = doctor(&node, &[]);
    if is_served {
        assert_eq!(
            (status, report.result),
            (0, Outcome::Unchanged),
            "{report:?}"
        );
        assert_eq!(healthy, 0, "{words}");
    } else {
        assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
        let reason = report.reason.unwrap();
        assert!(healthy == 1 && words.contains(&reason), "{reason}\n{words}");
    }
    assert_eq!(node.process(), process);
    assert_applied(node.change(&REMOVE), 1);
    node.assert_healthy();
    assert_eq!(fs::read_to_string(node.path(&theirs)).unwrap(), text);
    fs::remove_file(node.path(&theirs)).unwrap();
    assert_eq!(node.tree(), before);
}
