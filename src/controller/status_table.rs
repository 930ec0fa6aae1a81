//! `farrier status`: the progress of every Shim on every node. Reads only; pure functions make the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use kube::ResourceExt;
use serde::Serialize;

use super::cluster;
use super::cluster::node_view::NodeView;
use super::cluster::shim_view::{ShimObject, ShimView};
use super::cluster::slim::NodeObject;
use super::decide::desired::{Cluster, Desired, Verdict};
use super::decide::ending_pods;
use super::decide::event::cut;
use super::error::Error;
use crate::handoff::{self, Problem};
use crate::names::Progress;

/// Time limit for the answers of the API server. A slower API server is down or unreachable.
const DEADLINE: Duration = Duration::from_secs(30);

/// Longest reason in the table, in bytes.
const LONGEST_REASON: usize = 600;

#[derive(Debug, Serialize)]
struct StatusTable {
    nodes: Vec<NodeLine>,
    #[serde(skip)]
    shims: BTreeSet<String>,
}

#[derive(Debug, Serialize)]
struct NodeLine {
    name: String,
    ready: bool,
    shims: BTreeMap<String, Cell>,
}

#[derive(Debug, Serialize)]
struct Cell {
    progress: &'static str,
    reason: Option<String>,
}

/// The nodes and the progress of their Shims, as a table or as JSON.
///
/// # Errors
/// When there is no cluster, or it does not answer in time.
pub async fn status_table(json: bool) -> Result<String, Error> {
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
    Ok(if json {
        handoff::to_indented_json(&table)
    } else {
        table.text()
    })
}

impl StatusTable {
    fn new(nodes: &[NodeObject], shims: &[ShimObject]) -> Self {
        let mut names: BTreeSet<String> = shims.iter().map(ResourceExt::name_any).collect();
        // The controller's setting is unknown here. Only the reasons in the table depend on it.
        let cluster = Cluster::new(shims.iter().map(ShimView::from).collect(), true, false);
        let nodes = nodes.iter().map(|node| NodeLine::new(node, &cluster));
        let nodes: Vec<NodeLine> = nodes.collect();
        names.extend(nodes.iter().flat_map(|node| node.shims.keys().cloned()));
        Self {
            nodes,
            shims: names,
        }
    }

    /// Columns of equal width, followed by a line per failure.
    fn text(&self) -> String {
        let head = ["NODE", "STATUS"]
            .map(str::to_owned)
            .into_iter()
            .chain(self.shims.iter().map(|shim| shim.to_uppercase()));
        let mut rows: Vec<Vec<String>> = vec![head.collect()];
        for node in &self.nodes {
            let status = if node.ready { "Ready" } else { "NotReady" };
            let cells = self.shims.iter().map(|shim| {
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
        let widths: Vec<usize> = (0..self.shims.len() + 2)
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
        text
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
            let own = applied.shims.get(shim).and_then(|shim| shim.reason.clone());
            let reason = match progress {
                Progress::Failed => {
                    let verdict = desired.verdicts.get(shim);
                    let fault = verdict.and_then(Verdict::fault).map(Problem::sentence);
                    fault.or(own).or_else(|| applied.reason.clone())
                }
                Progress::Removing => own.or_else(|| waiting.clone()),
                Progress::Pending => waiting.clone(),
                Progress::Provisioned => None,
            };
            let cell = Cell {
                progress: progress.label(),
                reason: reason.map(|reason| cut(&reason, LONGEST_REASON)),
            };
            (shim.to_owned(), cell)
        });
        Self {
            name: view.name.clone(),
            ready: view.ready,
            shims: shims.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_impossible_shim_shows_its_own_reason_and_not_that_of_the_node() {
        let node: NodeObject = serde_json::from_value(json!({
            "metadata": {"name": "n1", "uid": "u", "labels": {"farrier.dev/spin": "failed"}, "annotations": {
                "farrier.dev/applied": r#"{"nodeUid":"u","reason":"shim other: no route"}"#}},
            "status": {"nodeInfo": {"operatingSystem": "linux", "architecture": "amd64"}},
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

    #[test]
    fn a_node_that_waits_for_pods_names_them() {
        let waiting = r#"{"nodeUid":"u","waitingForPods":{"pods":[{"namespace":"default","name":"web","handler":"spin"}]}}"#;
        let labels = json!({"farrier.dev/other": "pending", "farrier.dev/spin": "provisioned"});
        let node: NodeObject = serde_json::from_value(json!({
            "metadata": {"name": "n1", "uid": "u", "labels": labels, "annotations": {"farrier.dev/applied": waiting}},
        }))
        .unwrap();
        let text = StatusTable::new(&[node], &[]).text();
        let said =
            "n1 other: the restart of containerd would end 1 pod: default/web (handler spin)\n";
        assert!(text.ends_with(said) && !text.contains("n1 spin:"), "{text}");
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
        let text = StatusTable::new(&[node, other], &[]).text();
        assert_eq!(
            text,
            "NODE           STATUS    SPIN\n\
             n1             Ready     failed\n\
             a-longer-name  NotReady  -\n\
             n1 spin: no route\n"
        );
    }
}
