//! The findings of `doctor` on nodes. Their remedies solve the problems.

use std::fs;

use serde_json::Value;

use crate::node::{CONFIG, CONFIG_PATH, Node, on_each};

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
