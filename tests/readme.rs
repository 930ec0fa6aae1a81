//! The tables of the README against the code: every name, metric and outcome that users meet is in the README, and every quoted reason
//! is in the code. The tests that SECURITY.md names exist.
#![allow(
    clippy::unwrap_used,
    reason = "clippy exempts test functions, not what they call"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use farrier::handoff::{Outcome, Owner, ProvisionRequest};
use farrier::metrics::{Metrics, NODE_STATES};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text of all Rust files below a directory.
fn code_below(directory: &Path) -> String {
    let mut code = String::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            code += &code_below(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            code += &fs::read_to_string(&path).unwrap();
        }
    }
    code
}

/// The values of the text constants in a Rust file.
fn constants(code: &str) -> Vec<&str> {
    let code = code
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("pub const"));
    let values = code.filter_map(|line| line.split_once(": &str = \"")?.1.strip_suffix("\";"));
    // Prefixes of names are there with a name behind them.
    values.map(|value| value.trim_end_matches('/')).collect()
}

#[test]
fn every_label_annotation_taint_finalizer_condition_and_reason_is_in_the_readme() {
    let (code, readme) = (read("src/names.rs"), read("README.md"));
    let constants = constants(&code);
    assert!(constants.contains(&"Halted"), "{constants:?}");
    for constant in constants {
        // Types of conditions stand without backquotes.
        let texts = [
            format!("`{constant}`"),
            format!("`{constant}/"),
            format!("| {constant} |"),
        ];
        let found = texts.iter().any(|text| readme.contains(text));
        assert!(found, "the README does not mention {constant}");
    }
}

#[test]
fn the_request_in_the_readme_can_be_read() {
    let readme = read("README.md");
    let start = readme.find("      {\n        \"apiVersion\"").unwrap();
    let (request, _) = readme[start..].split_once("\n\n").unwrap();
    let request = ProvisionRequest::from_json(request).unwrap();
    assert_eq!(request.owner, Owner::Local);
    assert_eq!(request.shims[0].handlers, ["spin-v2", "spin"]);
    assert_eq!(request.shims[0].options.len(), 1);
    assert_eq!(request.reserve, ["wasmtime"]);
}

#[test]
fn every_metric_is_in_the_readme_with_its_type() {
    let (metrics, readme) = (Metrics::new(), read("README.md"));
    // A family without values is not in the text.
    metrics.reconciled("node", true);
    metrics.job_ended("applied", 1, false, Duration::ZERO);
    metrics.nodes("spin", [0; NODE_STATES.len()]);
    let text = metrics.text();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let types: Vec<_> = types.filter_map(|line| line.split_once(' ')).collect();
    assert!(types.contains(&("farrier_nodes", "gauge")), "{text}");
    for (family, kind) in types {
        // OpenMetrics adds these suffixes to the names of the samples.
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let row = format!("| `{family}{suffix}` | {kind} |");
        assert!(readme.contains(&row), "the README has no row {row}");
    }
    for state in NODE_STATES {
        assert!(readme.contains(&format!("`{state}`")), "{state}");
    }
}

#[test]
fn every_outcome_is_in_the_readme_beside_its_exit_status() {
    let readme = read("README.md");
    for outcome in [
        Outcome::Applied,
        Outcome::Partial,
        Outcome::Unchanged,
        Outcome::Refused,
        Outcome::RolledBack,
        Outcome::Broken,
    ] {
        let status = format!("| {} |", outcome.exit_status());
        let word = serde_json::to_string(&outcome).unwrap().replace('"', "`");
        let is_row = |line: &&str| line.starts_with(&status) && line.contains(&word);
        assert!(readme.lines().any(|line| is_row(&line)), "{status} {word}");
    }
}

#[test]
fn every_reason_that_the_readme_quotes_is_a_text_of_the_code() {
    let readme = read("README.md");
    let code = code_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
        + &read("charts/farrier/templates/policies.yaml");
    let (_, table) = readme.split_once("| the reason contains |").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let first_cells = table.lines().filter_map(|row| row.split('|').nth(1));
    // In a cell, every second part is between backquotes. Single words are reasons of Kubernetes.
    let quotes = first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let quotes: Vec<&str> = quotes.filter(|quote| quote.contains(' ')).collect();
    assert!(quotes.contains(&"failed to fetch"), "{quotes:?}");
    for quote in quotes {
        assert!(code.contains(quote), "no message contains {quote:?}");
    }
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let text = read("SECURITY.md");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let code = code_below(&root.join("src")) + &code_below(&root.join("tests"));
    // Between backquotes, words joined by several underscores are names of tests.
    let is_test = |quote: &&str| {
        quote.matches('_').count() > 1
            && quote
                .chars()
                .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_')
    };
    let rows = text.lines().filter(|line| line.starts_with('|'));
    let quotes = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let tests: Vec<&str> = quotes.filter(is_test).collect();
    assert!(tests.len() > 30, "{tests:?}");
    for test in tests {
        let found = code.contains(&format!("fn {test}("));
        assert!(
            found,
            "SECURITY.md names the test {test}, which does not exist"
        );
    }
}
