//! `farrier uninstall-cluster`: prepares a cluster for the removal of Farrier. Removes all shims from all nodes as if every Shim were being
//! deleted, then removes the finalizers from the Shims, and reports the nodes that could not be cleaned.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kube::{Client, ResourceExt};
use tokio::time::Instant;

use super::apply;
use super::apply::{deployment, lease};
use super::cluster;
use super::cluster::node_view::NodeView;
use super::cluster::shim_view::{ShimObject, ShimView};
use super::cluster::slim::NodeObject;
use super::decide::node_labels;
use super::decide::shim_status::Finalizer;
use super::decide::types::Plan;
use super::error::Error;
use super::leader::{self, Election};
use super::memory::Context;
use super::memory::aggregate::Carrier;
use super::operate::operate;
use super::settings::Settings;
use crate::metrics::Metrics;
use crate::names;

/// Options of an uninstall.
#[derive(Debug, Clone)]
pub struct UninstallOptions {
    /// The controller's Deployment in the namespace, which is scaled to zero replicas first.
    pub deployment: Option<String>,
    /// How long to wait for the nodes.
    pub deadline: Duration,
    /// Leave the nodes as they are and remove the finalizers only.
    pub keep_hosts: bool,
}

/// The result of an uninstall.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UninstallSummary {
    /// The nodes were left as they are.
    pub nodes_kept: bool,
    /// Nodes that still carry a Shim, each with its Shims.
    pub nodes: BTreeMap<String, Carrier>,
}

impl fmt::Display for UninstallSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes_kept {
            return writeln!(
                f,
                "removed the finalizers from the Shims. The nodes keep their shims. To remove the shims from a node, run `farrier uninstall --all` on the node"
            );
        }
        if self.nodes.is_empty() {
            return writeln!(
                f,
                "removed the finalizers from the Shims. No node carries a shim any more"
            );
        }
        for (node, Carrier { shims, reason }) in &self.nodes {
            if shims.is_empty() {
                let annotation = names::APPLIED_ANNOTATION;
                writeln!(
                    f,
                    "node {node} still has labels or the annotation of Farrier. Run `farrier uninstall --all` on the node, then `kubectl annotate node {node} {annotation}-`"
                )?;
                continue;
            }
            let shims = shims.join(", ");
            let reason = reason
                .as_ref()
                .map_or(String::new(), |it| format!(": {it}"));
            writeln!(
                f,
                "node {node} still carries {shims}{reason}. End the pods that hold the removal, and run `farrier uninstall --all` on the node"
            )?;
        }
        Ok(())
    }
}

/// Removes all shims from all nodes and the finalizers from the Shims.
///
/// # Errors
/// When the cluster can't be read or written.
pub async fn uninstall(
    settings: Settings,
    options: UninstallOptions,
) -> Result<UninstallSummary, Error> {
    let client = cluster::client().await?;
    // A drain that begins now ends before the deadline.
    let drain_timeout = settings.drain_timeout;
    let settings = Settings {
        drain_timeout: drain_timeout.map(|limit| limit.min(options.deadline / 2)),
        ..settings
    };
    let Settings {
        namespace,
        lease_name,
        identity,
        ..
    } = settings.clone();
    if let Some(deployment) = &options.deployment {
        deployment::scale_to_zero(&client, &namespace, deployment).await?;
    }
    apply::crd::restore(&client).await?;
    let cleaned = if options.keep_hosts {
        // A controller that is still running would set the finalizers again. Once this process holds the Lease, that controller has ended.
        let mut election = Election::new(client.clone(), &namespace, &lease_name, &identity);
        let _ = tokio::time::timeout(options.deadline, election.acquire()).await;
        Ok(UninstallSummary {
            nodes_kept: true,
            ..UninstallSummary::default()
        })
    } else {
        clean(&client, &settings, options.deadline).await
    };
    // Also after a failure: no controller is left that would undo a drain.
    let undrained = end_drains(&client, &settings, options.keep_hosts).await;
    let summary = cleaned?;
    undrained?;
    // The Shims may stay in the cluster, and no controller would remove their finalizers any more.
    for shim in cluster::list::<ShimObject>(&client).await? {
        let view = ShimView::from(&shim);
        if view.has_finalizer || view.has_rcm_finalizer {
            tracing::info!(shim = shim.name_any(), "removing the finalizers");
            apply::finalizer(&client, &shim, &Finalizer::Release).await?;
        }
    }
    if let Err(error) = end_lease(&client, &namespace, &lease_name, &identity).await {
        // The uninstall itself is done, and no replica uses the Lease any more.
        tracing::warn!(%error, help = "delete the Lease by hand", "failed to delete the Lease");
    }
    Ok(summary)
}

/// Removes all shims from all nodes until `deadline`. Returns the nodes that still carry a shim.
async fn clean(
    client: &Client,
    settings: &Settings,
    deadline: Duration,
) -> Result<UninstallSummary, Error> {
    let end = Instant::now() + deadline;
    loop {
        let cleans = async |context: &Context| Ok(cleaned(context, end).await);
        // On the heap: the watches take 40 KB.
        let operating = Box::pin(operate(client.clone(), settings.clone(), true, cleans));
        match operating.await {
            // A CustomResourceDefinition that is being deleted disappears with its last Shim, while nodes may still carry shims.
            Err(Error::CrdReplaced) if Instant::now() < end => {
                apply::crd::restore(client).await?;
            }
            ended => return ended,
        }
    }
}

/// Attempts to remove the taints of all drains. A kubelet, for example, may change a node between the list and the patch, or the node is
/// deleted; the next attempt lists the nodes again.
const ATTEMPTS: u32 = 5;

/// Ends the drains of all nodes, which may keep their Shims.
async fn end_drains(client: &Client, settings: &Settings, keep_hosts: bool) -> Result<(), Error> {
    let mut ended = Ok(());
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_secs(attempt.into())).await;
        }
        ended = Ok(());
        for node in cluster::list::<NodeObject>(client).await? {
            let edit = node_labels::without_drain(&NodeView::from(&node), keep_hosts);
            if edit.is_some() {
                tracing::info!(node = node.name_any(), "ending the drain");
                let plan = Plan {
                    edit,
                    ..Plan::default()
                };
                // A node that can't be written delays no other.
                let (object, metrics) = (node.name_any(), Metrics::new());
                // On the heap: every caller would contain this large future.
                let write = Box::pin(apply::node(client, settings, &node, &plan, &metrics));
                let written = apply::in_time(format!("node {object}"), write).await;
                ended = ended.and(written.map(drop));
            }
        }
        if ended.is_ok() {
            break;
        }
    }
    ended?;
    Ok(())
}

/// Deletes the Lease, unless another replica holds it: that replica still acts.
async fn end_lease(
    client: &Client,
    namespace: &str,
    name: &str,
    identity: &str,
) -> Result<(), apply::Error> {
    match lease::get(client, namespace, name).await? {
        Some(there) if leader::is_anothers(&there, identity) => {
            tracing::warn!(lease = name, "keeping the Lease: another replica holds it");
            Ok(())
        }
        Some(there) => lease::delete(client, namespace, &there).await,
        None => Ok(()),
    }
}

/// Waits until no node carries a shim, or until `end`. Returns the nodes that still carry a shim.
async fn cleaned(context: &Context, end: Instant) -> UninstallSummary {
    let clean = async {
        loop {
            let changed = context.changed.notified();
            if context.decides() && context.is_clean() {
                return;
            }
            changed.await;
        }
    };
    // After the deadline, the remaining nodes are reported.
    let _ = tokio::time::timeout_at(end, clean).await;
    UninstallSummary {
        nodes: context.carriers(),
        ..UninstallSummary::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::controller::tests::settings;

    #[tokio::test]
    async fn a_node_that_changes_or_goes_does_not_end_the_undoing_of_drains() {
        let patched = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&patched);
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            let mut patched = record.lock().unwrap();
            let is_drained = |name: &str| {
                let before = patched.iter().filter(|it| *it == name).count();
                before < if name == "conflict" { 2 } else { 1 }
            };
            let node = |name: &&str| {
                let taint = json!({"key": names::RESTARTING_TAINT, "effect": "NoSchedule"});
                let metadata = json!({"name": name, "uid": name, "resourceVersion": "7"});
                json!({"metadata": metadata, "spec": {"taints": [taint]}})
            };
            let name = request
                .uri()
                .path()
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned();
            let (code, body) = if request.method() == "PATCH" {
                patched.push(name.clone());
                let is_first = patched.iter().filter(|it| **it == name).count() == 1;
                let code = match name.as_str() {
                    "conflict" if is_first => 409,
                    "gone" => 404,
                    _ => 200,
                };
                let failure = json!({"kind": "Status", "status": "Failure", "code": code, "message": "no", "reason": "no"});
                let done = json!({"metadata": {"name": name, "resourceVersion": "8"}});
                (code, if code == 200 { done } else { failure })
            } else {
                let nodes = ["conflict", "gone", "well"];
                let nodes = nodes.iter().filter(|name| is_drained(name));
                (
                    200,
                    json!({"metadata": {}, "items": nodes.map(node).collect::<Vec<_>>()}),
                )
            };
            let answer = hyper::Response::builder().status(code);
            std::future::ready(answer.body(Body::from(body.to_string().into_bytes())))
        });
        let client = Client::new(service, "farrier");
        end_drains(&client, &settings(), false).await.unwrap();
        let patched = patched.lock().unwrap();
        assert_eq!(*patched, ["conflict", "gone", "well", "conflict"]);
    }

    #[test]
    fn remaining_nodes_are_listed_with_instructions() {
        let nodes = [("n1", vec!["spin", "wws"]), ("n2", vec![])].map(|(node, shims)| {
            let shims = shims.into_iter().map(str::to_owned).collect();
            (
                node.to_owned(),
                Carrier {
                    shims,
                    reason: None,
                },
            )
        });
        let summary = UninstallSummary {
            nodes: nodes.into(),
            ..UninstallSummary::default()
        };
        let text = summary.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("node n1 still carries spin, wws. End the pods"));
        assert!(lines[1].starts_with("node n2 still has labels or the annotation of Farrier. Run"));
        assert!(lines[1].contains("kubectl annotate node n2 farrier.dev/applied-"));
        assert!(
            UninstallSummary::default()
                .to_string()
                .contains("No node carries a shim")
        );
        let summary = UninstallSummary {
            nodes_kept: true,
            ..UninstallSummary::default()
        };
        let text = summary.to_string();
        assert!(text.contains("nodes keep their shims"), "{text}");
        assert!(!text.contains("No node carries a shim"), "{text}");
    }
}
