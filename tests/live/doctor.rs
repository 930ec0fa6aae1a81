//! The findings of `doctor` on nodes. Their remedies solve the problems.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use crate::containerd::programs;
use crate::elf::{VERSION, executable, writing};
use crate::node::{CONFIG, CONFIG_PATH, LIMIT, Node, on_each, on_these};
use crate::sandbox::{Cri, node, wait};

const INSTALL: [&str; 2] = [
    "install",
    "--shim=a=file:///srv/a,option.SystemdCgroup=true",
];

/// The text and the findings of `doctor`; the exit status must agree.
fn examine(node: &Node) -> (String, Vec<String>) {
    let text = node.farrier(&["doctor"]);
    let json = node.farrier(&["doctor", "-o", "json"]);
    let diagnosis: Value = serde_json::from_slice(&json.stdout).unwrap();
    let findings = diagnosis["findings"].as_array().unwrap();
    for output in [&text, &json] {
        let status = output.status.code().unwrap();
        assert_eq!((status == 0, status < 2), (findings.is_empty(), true));
    }
    assert_eq!(diagnosis["healthy"], findings.is_empty());
    let text = String::from_utf8(text.stdout).unwrap();
    let problems = findings.iter().map(|finding| {
        let problem = finding["problem"].as_str().unwrap().to_owned();
        let remedy = finding["remedy"].as_str().unwrap();
        assert!(text.contains(&problem) && text.contains(remedy), "{text}");
        problem
    });
    (text.clone(), problems.collect())
}

/// Fails unless there is exactly one finding, whose problem contains `words`.
fn assert_found(node: &Node, words: &str) {
    let (text, problems) = examine(node);
    assert!(
        problems.len() == 1 && problems[0].contains(words),
        "{words}: {text}"
    );
}

#[test]
fn each_problem_of_doctor_is_solved_by_its_remedy() {
    on_each(|release| {
        let node = Node::stopped(release, &[("/opt", "mode=755")]);
        node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
        node.start();
        let (text, problems) = examine(&node);
        assert!(
            problems.is_empty() && text.ends_with("no shims of Farrier\nhealthy\n"),
            "{text}"
        );
        assert_eq!(node.change(&INSTALL).0, 0);
        let (text, problems) = examine(&node);
        assert!(
            problems.is_empty() && text.contains("\n  a served"),
            "{text}"
        );

        // Options are left out on 1.6.
        let drifted = node
            .config()
            .replace("SystemdCgroup = true", "SystemdCgroup = false");
        if drifted != node.config() {
            node.write(CONFIG_PATH, drifted.as_bytes(), 0o644);
            let (text, problems) = examine(&node);
            let words = [
                "was changed after containerd started",
                "options that differ from the installed options: SystemdCgroup",
            ];
            assert_eq!(problems.len(), words.len(), "{text}");
            assert!(words.iter().all(|words| text.contains(words)), "{text}");
            let accepted = [&INSTALL[..], &["--accept-pending-changes"]].concat();
            assert_eq!(node.change(&accepted).0, 0);
            assert_eq!(examine(&node).1, [""; 0]);
        }

        let binary = fs::read_link(node.path("/opt/farrier/bin/containerd-shim-a")).unwrap();
        let binary = node.path("/opt/farrier/bin").join(binary);
        let bytes = fs::read(&binary).unwrap();
        fs::write(&binary, [bytes.as_slice(), b"!"].concat()).unwrap();
        let (text, problems) = examine(&node);
        assert!(
            problems
                .iter()
                .any(|it| it.contains("is not the binary that was installed")),
            "{text}"
        );
        assert_eq!(node.change(&INSTALL).0, 0);
        assert_eq!(examine(&node).1, [""; 0]);

        node.remount("/opt", true);
        assert_found(&node, "read-only");
        // The handler is still served, and a run with nothing to do is not refused.
        assert_eq!(node.change(&INSTALL).0, 0);
        node.remount("/opt", false);

        let well = node.config();
        node.write(CONFIG_PATH, format!("{well}\n[").as_bytes(), 0o644);
        let (text, problems) = examine(&node);
        assert!(
            problems
                .iter()
                .any(|it| it.contains("does not load its present configuration")),
            "{text}"
        );
        node.write(CONFIG_PATH, well.as_bytes(), 0o644);
        assert_eq!(node.change(&["uninstall", "--all"]).0, 0);
        assert_eq!(examine(&node).1, [""; 0]);
    });
}

/// A shim that serves containers with a child, as those of runwasi do, and that prints its version if it has fewer than three arguments.
fn forking_shim() -> Vec<u8> {
    let code = [
        // pop rax; cmp al, 4; jl to the last line
        &[0x58, 0x3c, 4, 0x7c, 16][..],
        // mov eax, 57 (fork); syscall; mov eax, 34 (pause); syscall; jmp to the pause
        &[0xb8, 57, 0, 0, 0, 0x0f, 0x05],
        &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7],
        &writing(1, VERSION, 0),
    ];
    executable(&code.concat(), 7)
}

/// The processes on the node whose program is in Farrier's store, by PID.
fn shims(node: &Node) -> BTreeSet<u32> {
    let processes = fs::read_dir(node.path("/proc")).unwrap().flatten();
    let processes = processes.filter_map(|entry| {
        let program = fs::read_link(entry.path().join("exe")).ok()?;
        let is_shim = program.starts_with("/opt/farrier/store");
        is_shim.then(|| entry.file_name().to_str()?.parse().ok())?
    });
    processes.collect()
}

#[test]
fn a_shim_that_outlived_its_pod_is_found_counted_as_use_and_ended_on_demand() {
    // containerd 1.6 has no service of sandboxes, and all later releases have.
    let programs = programs();
    on_these(&[programs[0].clone(), programs[2].clone()], |release| {
        let node = node(release);
        let before = node.tree();
        node.write("/srv/outlives", &forking_shim(), 0o644);
        let install = [
            "install",
            "--shim=x=file:///srv/runc",
            "--shim=w=file:///srv/outlives",
        ];
        assert_eq!(node.change(&install).0, 0);
        let pod = wait(async { Cri::connect(&node).await.start_pod("x").await });
        let of_pod = shims(&node);
        assert!(!of_pod.is_empty());
        // The shims of runwasi only log SIGTERM.
        node.leave(
            "trap '' TERM; exec /opt/farrier/bin/containerd-shim-w -namespace k8s.io -id gone -address /run/containerd/containerd.sock",
        );
        let since = Instant::now();
        // The new shim is found when it is some seconds old.
        while node.farrier(&["doctor"]).status.success() {
            assert!(since.elapsed() < LIMIT * 3, "{}", examine(&node).0);
        }
        let (text, problems) = examine(&node);
        let new: Vec<u32> = shims(&node).difference(&of_pod).copied().collect();
        let [shim, _] = new.as_slice() else {
            panic!("{new:?}");
        };
        let words = format!(
            "1 shim process without a pod still runs a binary of Farrier: PID {shim} since 20"
        );
        assert!(
            problems.len() == 1 && problems[0].starts_with(&words),
            "{text}"
        );
        assert!(text.contains("`farrier doctor --end-orphans`"), "{text}");

        let (status, report) = node.change(&["uninstall", "--shim=w"]);
        assert_eq!((status, report.restarts), (1, 0), "{report:?}");
        let reason = report.handlers[0].reason.as_deref().unwrap();
        assert_eq!(
            reason,
            format!(
                "1 shim process without a pod still runs the binary of the handler: PID {shim}"
            )
        );

        let output = node.farrier(&["doctor", "--end-orphans", "-o", "json"]);
        let diagnosis: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{diagnosis}");
        assert_eq!(diagnosis["ended"], json!([shim]));
        assert_eq!(shims(&node), of_pod);
        assert_eq!(node.change(&["uninstall", "--shim=w"]).0, 0);
        wait(async { Cri::connect(&node).await.end_pod(&pod).await });
        assert_eq!(node.change(&["uninstall", "--all"]).0, 0);
        fs::remove_file(node.path("/srv/outlives")).unwrap();
        assert_eq!(node.tree(), before);
    });
}
