//! The contract for scripts: the exit status of each outcome, and the fields of `-o json`. Fields may be added, never removed or changed in
//! type.

use serde_json::{Value, json};

use crate::containerd::programs;
use crate::node::Node;

/// Fails unless `found` holds all of `expected`. A text in angle brackets matches any text.
fn assert_holds(expected: &Value, found: &Value, at: &str) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(fields)) => {
            for (key, value) in expected {
                let at = format!("{at}.{key}");
                let field = fields.get(key);
                assert_holds(value, field.unwrap_or_else(|| panic!("no {at}")), &at);
            }
        }
        // A report may list more files than expected, of other owners.
        (Value::Array(expected), Value::Array(items))
            if at.strip_suffix(".files").is_some() && !expected.is_empty() =>
        {
            let holds = |item: &Value, file: &Value| {
                let fields = file.as_object().into_iter().flatten();
                fields.fold(true, |holds, (key, value)| holds && item[key] == *value)
            };
            let mut absent = expected.iter();
            let absent = absent.find(|file| !items.iter().any(|item| holds(item, file)));
            assert_eq!(absent, None, "{at}: {items:?}");
            let is_file = |item: &Value| item["path"].is_string() && item["action"].is_string();
            assert!(items.iter().all(is_file), "{at}: {items:?}");
        }
        (Value::Array(expected), Value::Array(items)) => {
            assert_eq!(expected.len(), items.len(), "{at}: {items:?}");
            for (expected, item) in expected.iter().zip(items) {
                assert_holds(expected, item, at);
            }
        }
        (Value::String(expected), found) if expected.starts_with('<') => {
            let is = match expected.as_str() {
                "<number>" => found.is_u64(),
                "<sha256>" => found.as_str().is_some_and(|text| {
                    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
                }),
                "<text>" => found.as_str().is_some_and(|text| !text.is_empty()),
                "<texts>" => found
                    .as_array()
                    .is_some_and(|items| items.iter().all(Value::is_string)),
                "<findings>" => found.as_array().is_some_and(|items| {
                    !items.is_empty()
                        && items
                            .iter()
                            .all(|item| item["problem"].is_string() && item["remedy"].is_string())
                }),
                word => panic!("{word} stands for nothing"),
            };
            assert!(is, "{at} is {found}, and not {expected}");
        }
        (expected, found) => assert_eq!(expected, found, "{at}"),
    }
}

/// Runs the program; its standard output must be one document that holds `expected`, whatever it logs.
fn says(node: &Node, arguments: &[&str], status: i32, expected: &Value) {
    let output = node.farrier(&[arguments, &["-o", "json"]].concat());
    let printed = String::from_utf8(output.stdout).unwrap();
    let logged = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{printed}\n{logged}");
    assert_eq!(printed.lines().count(), 1, "{printed}");
    let found = serde_json::from_str(&printed).unwrap();
    assert_holds(expected, &found, &arguments.join(" "));
}

/// The fields of every report.
fn report(result: &str, changed: bool, restarts: u32, handlers: &Value, files: &Value) -> Value {
    json!({
        "apiVersion": "farrier.dev/v1", "result": result, "changed": changed, "restarts": restarts,
        "handlers": handlers, "files": files, "notes": "<texts>",
        "containerd": "2.1.9", "distro": "<text>",
        "machineId": "0123456789abcdef0123456789abcdef", "bootId": "<text>", "nodeUid": "",
    })
}

/// The fields of a report of success.
fn well(mut report: Value, away: &Value) -> Value {
    report["reason"] = Value::Null;
    report["remedy"] = Value::Null;
    report["criAwayMs"] = away.clone();
    report
}

/// The fields of a report of a failure.
fn unwell(mut report: Value) -> Value {
    report["reason"] = "<text>".into();
    report["remedy"] = "<text>".into();
    report
}

#[test]
fn each_outcome_has_its_exit_status_and_report_fields() {
    // One release of containerd is enough: the output does not depend on the release.
    let node = Node::new(&programs()[2]);
    let link = "/opt/farrier/bin/containerd-shim-a";
    let handler = |served: bool, reason: &Value| {
        json!({
            "shim": "a", "handler": "a", "path": link, "sha256": "<sha256>",
            "served": served, "reason": reason,
        })
    };
    let a = json!([handler(true, &Value::Null)]);
    let install = ["install", "--shim=a=file:///srv/a"];
    let installed = json!([
        {"path": "/etc/containerd/config.toml", "action": "edited"},
        {"path": link, "action": "created"},
    ]);
    let none = json!([]);

    let mut planned = well(report("applied", false, 1, &a, &installed), &Value::Null);
    planned["requestDigest"] = "<sha256>".into();
    planned["dryRun"] = true.into();
    says(&node, &["install", "--dry-run", install[1]], 0, &planned);

    let mut applied = well(
        report("applied", true, 1, &a, &installed),
        &"<number>".into(),
    );
    applied["requestDigest"] = "<sha256>".into();
    says(&node, &install, 0, &applied);
    let unchanged = well(report("unchanged", false, 0, &a, &none), &Value::Null);
    says(&node, &install, 0, &unchanged);

    let diagnosis = |healthy: bool, condition: &str, findings: Value| {
        json!({
            "healthy": healthy, "distro": "<text>", "containerd": "2.1.9", "findings": findings, "ended": [],
            "handlers": [{
                "handler": "a", "shim": "a", "owner": "local", "condition": condition,
                "path": link, "sha256": "<sha256>", "sandboxes": 0,
            }],
        })
    };
    says(&node, &["doctor"], 0, &diagnosis(true, "served", json!([])));

    let absent = json!({
        "shim": "b", "handler": "b", "path": null, "sha256": null, "served": false, "reason": "<text>",
    });
    let both = json!([a[0], absent]);
    let partial = unwell(report("partial", false, 0, &both, &none));
    says(
        &node,
        &[install[0], install[1], "--shim=b=file:///srv/none"],
        1,
        &partial,
    );

    let foreign = json!([{
        "shim": "kata", "handler": "kata", "path": null, "sha256": null, "served": false, "reason": "<text>",
    }]);
    let refused = unwell(report("refused", false, 0, &foreign, &none));
    says(
        &node,
        &[install[0], "--keep-others", "--shim=kata=file:///srv/b"],
        3,
        &refused,
    );
    assert_eq!(node.farrier(&["install"]).status.code(), Some(2));

    node.fail(&["without-cri"]);
    let undone = unwell(report("rolledBack", false, 2, &none, &none));
    says(&node, &["uninstall", "--all"], 4, &undone);
    node.fail(&["without-cri", "refuses"]);
    let broken = unwell(report("broken", true, 2, &none, &none));
    says(&node, &["uninstall", "--all"], 5, &broken);
    let down = diagnosis(false, "unknown", "<findings>".into());
    says(&node, &["doctor"], 1, &down);

    node.start();
    let removed = json!([
        {"path": "/etc/containerd/config.toml", "action": "edited"},
        {"path": link, "action": "removed"},
    ]);
    let gone = well(
        report("applied", true, 1, &none, &removed),
        &"<number>".into(),
    );
    says(&node, &["uninstall", "--all"], 0, &gone);
}
