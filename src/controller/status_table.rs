//! `farrier status`: the progress of every Shim on every node. Reads only; pure functions make the table.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use kube::ResourceExt;
use serde::Serialize;

use super::cluster;
use super::cluster::node_view::{Binary, NodeView};
use super::cluster::shim_view::{ShimObject, ShimView};
use super::cluster::slim::NodeObject;
use super::decide::desired::{Cluster, Desired, Verdict};
use super::decide::ending_pods;
use super::decide::node_labels;
use super::error::Error;
use crate::api::MOST_BINARIES;
use crate::handoff::{self, Problem, Sha256Digest, printable_up_to};
use crate::names::{Progress, reasons};

/// Time limit for the answers of the API server. A slower API server is down or unreachable.
const DEADLINE: Duration = Duration::from_secs(30);

/// Longest reason in the table, in bytes.
const LONGEST_REASON: usize = 600;

/// Number of nodes that the line of a binary names.
const NODES_NAMED: usize = 5;

/// Longest message about a Shim, in bytes.
const LONGEST_MESSAGE: usize = 2_000;

#[derive(Debug, Serialize)]
struct StatusTable {
    nodes: Vec<NodeLine>,
    shims: Vec<ShimLine>,
    /// The Shims of the columns: those of the cluster, and those that a node is labelled with.
    #[serde(skip)]
    columns: BTreeSet<String>,
}

/// The state of a Shim, as the controller has written it.
#[derive(Debug, Serialize)]
struct ShimLine {
    name: String,
    state: Option<String>,
    message: Option<String>,
    /// The condition Degraded is true.
    #[serde(skip)]
    degraded: bool,
}

#[derive(Debug, Serialize)]
struct NodeLine {
    name: String,
    ready: bool,
    shims: BTreeMap<String, Cell>,
    /// Annotations and labels that nearly select Shims: one sentence each.
    #[serde(rename = "nearMisses", skip_serializing_if = "Vec::is_empty")]
    near_misses: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Cell {
    progress: &'static str,
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<Sha256Digest>,
    /// The binary that the host serves.
    #[serde(skip)]
    serves: Option<Binary>,
}

/// The output of `farrier status`.
#[derive(Debug)]
pub struct Status {
    /// The table, or JSON.
    pub text: String,
    /// Whether a Shim has failed on a node, or is degraded.
    pub has_failure: bool,
}

/// The nodes and the progress of their Shims, as a table or as JSON.
///
/// # Errors
/// When there is no cluster, or it does not answer in time.
pub async fn status_table(json: bool) -> Result<Status, Error> {
    let read = async {
        let client = cluster::client().await?;
        let nodes = cluster::list::<NodeObject>(&client).await?;
        let shims = cluster::list::<ShimObject>(&client).await?;
        Ok::<_, Error>((nodes, shims))
    };
    let (nodes, shims) =
        tokio::time::timeout(DEADLINE, read)
            .await
            .map_err(|_| Error::Deadline {
                seconds: DEADLINE.as_secs(),
            })??;
    let table = StatusTable::new(&nodes, &shims);
    Ok(Status {
        text: if json {
            handoff::to_indented_json(&table)
        } else {
            table.text()
        },
        has_failure: table.has_failure(),
    })
}

impl StatusTable {
    fn new(nodes: &[NodeObject], shims: &[ShimObject]) -> Self {
        let mut columns: BTreeSet<String> = shims.iter().map(ResourceExt::name_any).collect();
        // The controller's setting is unknown here. Only the reasons in the table depend on it.
        let cluster = Cluster::new(shims.iter().map(ShimView::from).collect(), true, false);
        let nodes = nodes.iter().map(|node| NodeLine::new(node, &cluster));
        let nodes: Vec<NodeLine> = nodes.collect();
        columns.extend(nodes.iter().flat_map(|node| node.shims.keys().cloned()));
        Self {
            nodes,
            shims: cluster.shims.iter().map(ShimLine::new).collect(),
            columns,
        }
    }

    fn has_failure(&self) -> bool {
        let mut cells = self.nodes.iter().flat_map(|node| node.shims.values());
        let mut shims = self.shims.iter();
        cells.any(|cell| cell.progress == Progress::Failed.label())
            || shims.any(|shim| shim.degraded)
    }

    /// Columns of equal width, followed by a line per failure, per annotation that nearly selects a Shim, per binary, and per Shim.
    fn text(&self) -> String {
        let head = ["NODE", "STATUS"]
            .map(str::to_owned)
            .into_iter()
            .chain(self.columns.iter().map(|shim| shim.to_uppercase()));
        let mut rows: Vec<Vec<String>> = vec![head.collect()];
        for node in &self.nodes {
            let status = if node.ready { "Ready" } else { "NotReady" };
            let cells = self.columns.iter().map(|shim| {
                node.shims
                    .get(shim)
                    .map_or("-", |cell| cell.progress)
                    .to_owned()
            });
            rows.push(
                [node.name.clone(), status.to_owned()]
                    .into_iter()
                    .chain(cells)
                    .collect(),
            );
        }
        let widths: Vec<usize> = (0..self.columns.len() + 2)
            .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in rows {
            let line: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            // Writing to a String can't fail.
            let _ = writeln!(text, "{}", line.join("  ").trim_end());
        }
        for node in &self.nodes {
            for (shim, cell) in &node.shims {
                if let Some(reason) = &cell.reason {
                    let _ = writeln!(text, "{} {shim}: {reason}", node.name);
                }
            }
        }
        for node in &self.nodes {
            for near_miss in &node.near_misses {
                let _ = writeln!(text, "{}: {near_miss}", node.name);
            }
        }
        for line in self.columns.iter().flat_map(|shim| self.binaries(shim)) {
            let _ = writeln!(text, "{line}");
        }
        for ShimLine {
            name,
            state,
            message,
            ..
        } in &self.shims
        {
            let state = state
                .as_deref()
                .unwrap_or("the controller has written no state yet");
            let message = message
                .as_ref()
                .map_or(String::new(), |it| format!(": {it}"));
            let _ = writeln!(text, "shim {name}: {state}{message}");
        }
        text
    }

    /// A line for each binary of a Shim that nodes serve, that of most nodes first: thousands of nodes have few binaries. The nodes of the
    /// other ones are named.
    fn binaries(&self, shim: &str) -> Vec<String> {
        let mut nodes: BTreeMap<&Binary, Vec<&str>> = BTreeMap::new();
        for node in &self.nodes {
            let cell = node.shims.get(shim);
            if let Some(binary) = cell.and_then(|cell| cell.serves.as_ref()) {
                nodes.entry(binary).or_default().push(&node.name);
            }
        }
        let mut binaries: Vec<(&Binary, Vec<&str>)> = nodes.into_iter().collect();
        binaries.sort_by_key(|(_, nodes)| Reverse(nodes.len()));
        let more = binaries.len().saturating_sub(MOST_BINARIES);
        let shown = binaries.iter().take(MOST_BINARIES).enumerate();
        let mut lines: Vec<String> = shown
            .map(|(at, (binary, nodes))| {
                let number = match nodes.len() {
                    1 => "1 node".to_owned(),
                    number => format!("{number} nodes"),
                };
                let named = if at == 0 {
                    String::new()
                } else {
                    let named = nodes.iter().take(NODES_NAMED);
                    let rest = (nodes.len() > NODES_NAMED).then_some(&"…");
                    let named: Vec<&str> = named.chain(rest).copied().collect();
                    format!(": {}", named.join(", "))
                };
                format!("{shim} {binary} on {number}{named}")
            })
            .collect();
        if more > 0 {
            lines.push(format!(
                "{shim} has {more} more binaries: farrier status -o json"
            ));
        }
        lines
    }
}

impl NodeLine {
    fn new(node: &NodeObject, cluster: &Cluster) -> Self {
        let view = NodeView::from(node);
        let applied = view.applied().unwrap_or_default();
        let desired = Desired::new(&view, Some(&applied), cluster, &BTreeMap::new());
        // The chart's policy is unknown here, and the next step depends on it.
        let waiting = applied.waiting_for_pods.as_ref();
        let waiting = waiting.map(|it| ending_pods::problem(cluster, &desired, it).message);
        let shims = view.labelled().map(|(shim, progress)| {
            let known = applied.shims.get(shim);
            let own = known.and_then(|known| known.reason.clone());
            let serves = node_labels::served_binary(Some(&applied), shim, &desired);
            let reason = match progress {
                Progress::Failed | Progress::Unsupported => {
                    let verdict = desired.verdicts.get(shim);
                    let fault = verdict.and_then(Verdict::fault).map(Problem::sentence);
                    // The reason as the controller tells it, with what the host still serves.
                    let told = verdict.and_then(|verdict| {
                        node_labels::progress(&view, Some(&applied), shim, verdict, &desired)
                    });
                    let told = told.and_then(|(_, reason)| reason);
                    let before = own.or_else(|| applied.reason.clone());
                    // The reason of the last attempt lasts until the next one has ended.
                    let before = before.map(|reason| match &serves {
                        Some(binary) if !reason.contains("still serves") => {
                            format!("{reason}; still serves {binary}")
                        }
                        Some(_) | None => reason,
                    });
                    told.or(fault).or(before)
                }
                Progress::Removing => own
                    .or_else(|| waiting.clone())
                    .or_else(|| (!view.ready).then(|| unfit(&view)).flatten()),
                Progress::Pending => waiting.clone().or_else(|| unfit(&view)),
                Progress::Provisioned => None,
            };
            let cell = Cell {
                progress: progress.label(),
                reason: reason.map(|reason| printable_up_to(&reason, LONGEST_REASON)),
                release: known.and_then(|known| known.release.clone()),
                sha256: known.and_then(|known| known.sha256),
                serves,
            };
            (shim.to_owned(), cell)
        });
        Self {
            name: view.name.clone(),
            ready: view.ready,
            shims: shims.collect(),
            near_misses: near_misses(&view, cluster),
        }
    }
}

impl ShimLine {
    fn new(shim: &ShimView) -> Self {
        let status = shim.status.as_ref();
        let state = status.and_then(|status| status.state.clone());
        let conditions = status.map_or(&[][..], |status| &status.conditions);
        let is_named = |reason: &String| Some(reason) == state.as_ref();
        // Ready comes first. Without Ready, and for a halted rollout, Progressing has the state as its reason.
        let of_state = conditions.iter().find(|it| is_named(&it.reason));
        let condition = of_state.or_else(|| conditions.first());
        let message = condition.map(|it| printable_up_to(&it.message, LONGEST_MESSAGE));
        Self {
            name: shim.name.clone(),
            state: state.as_deref().map(handoff::printable),
            message,
            degraded: conditions
                .iter()
                .any(|it| it.type_ == reasons::DEGRADED && it.status == "True"),
        }
    }
}

/// Why no shim is installed on the node now. Its Job may be running nevertheless.
fn unfit(node: &NodeView) -> Option<String> {
    let state = match (node.ready, node.cordoned) {
        (false, _) => "not ready",
        (true, true) => "cordoned",
        (true, false) => return None,
    };
    Some(format!("the node is {state}"))
}

/// Annotations and labels of the node that nearly select Shims that the node does not have: another value, another spelling of the key, or a
/// label in the place of an annotation or the reverse. A label with the key must have nearly the value, too. The value `false` is taken for intended.
fn near_misses(node: &NodeView, cluster: &Cluster) -> Vec<String> {
    let alike = |key: &str| -> String {
        let letters = key.chars().filter(|letter| letter.is_alphanumeric());
        letters.flat_map(char::to_lowercase).collect()
    };
    let mut shims: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
    for shim in &cluster.shims {
        let spec = shim.spec.as_ref().ok().filter(|_| !shim.deleting);
        let annotations = spec.and_then(|spec| spec.annotation_selector.as_ref());
        let annotations = annotations
            .into_iter()
            .flatten()
            .map(|it| ("annotation", it));
        let labels = spec.and_then(|spec| spec.node_selector.as_ref());
        let labels = labels.into_iter().flatten().map(|it| ("label", it));
        let is_there = node.labelled().any(|(name, _)| name == shim.name);
        for (asked, (key, value)) in annotations.chain(labels).filter(|_| !is_there) {
            let own = if asked == "label" {
                &node.labels
            } else {
                &node.annotations
            };
            if own.get(key) == Some(value) {
                continue;
            }
            let annotations = node.annotations.iter().map(|it| ("annotation", it));
            let labels = node.labels.iter().map(|it| ("label", it));
            let mut near = annotations.chain(labels);
            let near = near.find(|(_, (other, found))| {
                // Labels such as that of a zone have another value on other nodes.
                let is_meant = asked == "annotation" || alike(found) == alike(value);
                alike(other) == alike(key) && is_meant && found.as_str() != "false"
            });
            if let Some((kind, (other, found))) = near {
                let found = format!("the {kind} {other}={found}");
                let asked = format!("{asked} {key}={value}");
                shims.entry((found, asked)).or_default().push(&shim.name);
            }
        }
    }
    let sentences = shims.into_iter().map(|((found, asked), shims)| {
        let shims = shims.join(", ");
        let sentence =
            format!("{found} does not select the node for Shim {shims}, which needs the {asked}");
        printable_up_to(&sentence, LONGEST_REASON)
    });
    sentences.collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_impossible_shim_shows_its_own_reason_and_not_that_of_the_node() {
        let node: NodeObject = serde_json::from_value(json!({
            "metadata": {"name": "n1", "uid": "u", "labels": {"farrier.dev/spin": "failed"}, "annotations": {
                "farrier.dev/applied": r#"{"nodeUid":"u","reason":"shim other: no route"}"#}},
            "status": {"nodeInfo": {"operatingSystem": "linux", "architecture": "amd64", "containerRuntimeVersion": "containerd://2.1.9"}},
        }))
        .unwrap();
        let shim: ShimObject = serde_json::from_value(json!({
            "metadata": {"name": "spin", "finalizers": ["farrier.dev/finalizer"]},
            "spec": {
                "fetchStrategy": {}, "rolloutStrategy": {"type": "recreate"},
                "runtimeClass": {"name": "spin", "handler": "spin"},
            },
        }))
        .unwrap();
        let text = StatusTable::new(&[node], &[shim]).text();
        assert!(text.contains("n1 spin: no artifact is specified"), "{text}");
    }

    fn spin(more: &serde_json::Value) -> ShimObject {
        let mut shim = json!({
            "metadata": {"name": "spin", "finalizers": ["farrier.dev/finalizer"]},
            "spec": {
                "fetchStrategy": {}, "rolloutStrategy": {"type": "recreate"},
                "runtimeClass": {"name": "spin", "handler": "spin"},
                "annotationSelector": {"kwasm.sh/kwasm-node": "true"},
            },
        });
        for (key, value) in more.as_object().unwrap() {
            shim[key] = value.clone();
        }
        serde_json::from_value(shim).unwrap()
    }

    #[rstest]
    #[case::case_of_the_key("labels", "Pool", "wasm", true)]
    #[case::case_of_the_value("labels", "pool", "Wasm", true)]
    #[case::another_value("labels", "pool", "web", false)]
    #[case::annotation("annotations", "pool", "wasm", true)]
    #[case::right("labels", "pool", "wasm", false)]
    fn a_label_that_nearly_selects_a_shim_is_named(
        #[case] field: &str,
        #[case] key: &str,
        #[case] value: &str,
        #[case] is_near: bool,
    ) {
        let mut shim = spin(&json!({}));
        shim.0.as_mut().unwrap().spec.annotation_selector = None;
        let selector = BTreeMap::from([("pool".to_owned(), "wasm".to_owned())]);
        shim.0.as_mut().unwrap().spec.node_selector = Some(selector);
        let node = json!({"metadata": {"name": "n1", field: {key: value}}});
        let node: NodeObject = serde_json::from_value(node).unwrap();
        let text = StatusTable::new(&[node], &[shim]).text();
        let near = text.contains(&format!("{key}={value} does not select"));
        assert_eq!(near, is_near, "{text}");
        assert_eq!(
            text.contains("which needs the label pool=wasm"),
            is_near,
            "{text}"
        );
    }

    #[rstest]
    #[case("True", true)]
    #[case("False", false)]
    fn a_degraded_shim_is_a_failure_without_a_failed_node(
        #[case] degraded: &str,
        #[case] fails: bool,
    ) {
        let condition = json!({
            "type": "Degraded", "status": degraded, "reason": "Conflict", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        let status = json!({"nodes": 0, "nodesReady": 0, "conditions": [condition]});
        let table = StatusTable::new(&[], &[spin(&json!({"status": status}))]);
        assert_eq!(table.has_failure(), fails);
    }

    #[rstest]
    #[case::value(
        "annotations",
        "kwasm.sh/kwasm-node",
        "yes",
        Some("the annotation kwasm.sh/kwasm-node=yes")
    )]
    #[case::case_of_the_value(
        "annotations",
        "kwasm.sh/kwasm-node",
        "True",
        Some("the annotation kwasm.sh/kwasm-node=True")
    )]
    #[case::key(
        "annotations",
        "kwasm.sh/kwasm_node",
        "true",
        Some("the annotation kwasm.sh/kwasm_node=true")
    )]
    #[case::label(
        "labels",
        "kwasm.sh/kwasm-node",
        "true",
        Some("the label kwasm.sh/kwasm-node=true")
    )]
    #[case::refusal("annotations", "kwasm.sh/kwasm-node", "false", None)]
    #[case::right("annotations", "kwasm.sh/kwasm-node", "true", None)]
    #[case::other("annotations", "kwasm.sh/other", "yes", None)]
    fn an_annotation_that_nearly_selects_a_shim_is_named(
        #[case] field: &str,
        #[case] key: &str,
        #[case] value: &str,
        #[case] expected: Option<&str>,
    ) {
        let node = json!({"metadata": {"name": "n1", field: {key: value}}});
        let node: NodeObject = serde_json::from_value(node).unwrap();
        let text = StatusTable::new(&[node], &[spin(&json!({}))]).text();
        let said = expected.map(|found| {
            format!(
                "n1: {found} does not select the node for Shim spin, which needs the annotation kwasm.sh/kwasm-node=true\n"
            )
        });
        assert_eq!(text.contains("does not select"), said.is_some(), "{text}");
        assert!(text.contains(&said.unwrap_or_default()), "{text}");
    }

    #[rstest]
    #[case::conflict("Conflict", "Ready", "Conflict")]
    #[case::halted("Halted", "Progressing", "Halted")]
    #[case::ready("Ready", "Ready", "Provisioned")]
    fn each_shim_has_a_line_with_its_state_and_the_message_of_it(
        #[case] state: &str,
        #[case] kind: &str,
        #[case] reason: &str,
    ) {
        let condition = |kind: &str, reason: &str, message: &str| {
            json!({
                "type": kind, "status": "False", "reason": reason, "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        };
        let mut conditions = [
            condition("Ready", "Provisioned", "other"),
            condition("Progressing", "Provisioning", "other"),
            condition("Degraded", reason, "last"),
        ];
        let at = usize::from(kind == "Progressing");
        conditions[at] = condition(kind, reason, "so it\u{1b} is");
        let status = json!({"status": {"state": state, "conditions": conditions}});
        let text = StatusTable::new(
            &[],
            &[spin(&status), spin(&json!({"metadata": {"name": "new"}}))],
        )
        .text();
        let line = text
            .lines()
            .find(|line| line.starts_with("shim spin"))
            .unwrap();
        assert!(
            line.starts_with(&format!("shim spin: {state}: so it")),
            "{line}"
        );
        assert!(!line.contains('\u{1b}'), "{line:?}");
        assert!(
            text.ends_with("shim new: the controller has written no state yet\n"),
            "{text}"
        );
    }

    #[test]
    fn a_cordoned_node_says_why_it_waits() {
        let node: NodeObject = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"farrier.dev/spin": "pending"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        let text = StatusTable::new(&[node], &[]).text();
        assert!(text.ends_with("n1 spin: the node is cordoned\n"), "{text}");
    }

    #[test]
    fn a_node_that_waits_for_pods_names_them() {
        let waiting = r#"{"nodeUid":"u","waitingForPods":{"pods":[{"namespace":"default","name":"web","handler":"spin"}]}}"#;
        let labels = json!({"farrier.dev/other": "pending", "farrier.dev/spin": "provisioned"});
        let node: NodeObject = serde_json::from_value(json!({
            "metadata": {"name": "n1", "uid": "u", "labels": labels, "annotations": {"farrier.dev/applied": waiting}},
        }))
        .unwrap();
        let table = StatusTable::new(&[node], &[]);
        assert!(!table.has_failure());
        let text = table.text();
        let said =
            "n1 other: the restart of containerd would end 1 pod: default/web (handler spin)\n";
        assert!(text.ends_with(said) && !text.contains("n1 spin:"), "{text}");
    }

    #[test]
    fn the_binaries_of_many_nodes_are_a_line_each() {
        let shim: ShimObject = serde_json::from_value(json!({
            "metadata": {"name": "spin", "finalizers": ["farrier.dev/finalizer"]},
            "spec": {
                "fetchStrategy": {"anonHttp": {"location": "https://example.org/v0.7.0/a"}},
                "rolloutStrategy": {"type": "recreate"},
                "runtimeClass": {"name": "spin", "handler": "spin"},
            },
        }))
        .unwrap();
        let node = |name: String, release: &str, label: &str| -> NodeObject {
            let digest = release.replace('.', "a").repeat(13)[..64].to_owned();
            let served = json!({
                "fulfilled": "0".repeat(16), "handlers": {"spin": true}, "sha256": digest, "release": release,
            });
            let applied = json!({"nodeUid": "u", "shims": {"spin": served}}).to_string();
            serde_json::from_value(json!({
                "metadata": {
                    "name": name, "uid": "u", "labels": {"farrier.dev/spin": label},
                    "annotations": {"farrier.dev/applied": applied},
                },
            }))
            .unwrap()
        };
        let mut nodes: Vec<NodeObject> = (0..5_000)
            .map(|number| node(format!("n{number}"), "0.7.0", "provisioned"))
            .collect();
        nodes.extend((0..6).map(|number| node(format!("old{number}"), "0.6.0", "failed")));
        let text = StatusTable::new(&nodes, &[shim]).text();
        let lines: Vec<&str> = text.lines().filter(|it| it.contains(" nodes")).collect();
        assert_eq!(
            lines,
            [
                "spin 0.7.0 (sha256 0a7a00a7a00a…) on 5000 nodes",
                "spin 0.6.0 (sha256 0a6a00a6a00a…) on 6 nodes: old0, old1, old2, old3, old4, …",
            ]
        );
    }

    #[test]
    fn the_table_shows_each_node_and_the_reason_of_a_failure() {
        let node: NodeObject = serde_json::from_value(json!({
            "metadata": {"name": "n1", "uid": "u", "labels": {"farrier.dev/spin": "failed"}, "annotations": {
                "farrier.dev/applied": r#"{"nodeUid":"u","reason":"no route"}"#}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        let other: NodeObject =
            serde_json::from_value(json!({"metadata": {"name": "a-longer-name"}})).unwrap();
        let table = StatusTable::new(&[node, other], &[]);
        assert!(table.has_failure());
        assert_eq!(
            table.text(),
            "NODE           STATUS    SPIN\n\
             n1             Ready     failed\n\
             a-longer-name  NotReady  -\n\
             n1 spin: no route\n"
        );
    }
}
