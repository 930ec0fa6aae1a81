//! `farrier leave`: what a cluster needs before Farrier is uninstalled. Every node's set is emptied as if each Shim were being deleted,
//! then the Shims are let go of, whatever could not be cleaned; that is said.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kube::{Client, ResourceExt};
use tokio::time::Instant;

use super::apply;
use super::apply::{deployment, lease};
use super::cluster;
use super::cluster::shim_view::{ShimObject, ShimView};
use super::decide::shim_status::Finalizer;
use super::error::Error;
use super::leader::{self, Election};
use super::memory::Context;
use super::operate::operate;
use super::settings::Settings;
use crate::names;

/// How to leave.
#[derive(Debug, Clone)]
pub struct UninstallOptions {
    /// The controller's Deployment in the namespace, which is scaled to nothing first.
    pub deployment: Option<String>,
    /// How long hosts may take.
    pub deadline: Duration,
    /// Hosts keep what they have; only the Shims are let go of.
    pub keep_hosts: bool,
}

/// What could not be cleaned.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UninstallSummary {
    /// Hosts were to keep what they have.
    pub kept: bool,
    /// Nodes that still carry something, each with the Shims.
    pub nodes: BTreeMap<String, Vec<String>>,
}

impl fmt::Display for UninstallSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kept {
            return writeln!(
                f,
                "the Shims are let go of; nodes keep what they have, until somebody runs `farrier uninstall --all` there"
            );
        }
        if self.nodes.is_empty() {
            return writeln!(f, "the Shims are let go of, and nothing is left to clean");
        }
        for (node, shims) in &self.nodes {
            if shims.is_empty() {
                let annotation = names::APPLIED_ANNOTATION;
                writeln!(
                    f,
                    "node {node} still has marks of Farrier; run `farrier uninstall --all` there, then `kubectl annotate node {node} {annotation}-`"
                )?;
                continue;
            }
            let shims = shims.join(", ");
            writeln!(
                f,
                "node {node} still carries {shims}; end the pods that use it and run `farrier uninstall --all` there"
            )?;
        }
        Ok(())
    }
}

/// Takes Farrier's work out of the cluster.
///
/// # Errors
/// When the cluster can't be asked or written to.
pub async fn uninstall(
    settings: Settings,
    options: UninstallOptions,
) -> Result<UninstallSummary, Error> {
    let client = cluster::client().await?;
    let Settings {
        namespace,
        lease_name,
        identity,
        ..
    } = settings.clone();
    if let Some(deployment) = &options.deployment {
        deployment::scale_to_nothing(&client, &namespace, deployment).await?;
    }
    apply::crd::restore(&client).await?;
    let summary = if options.keep_hosts {
        // A controller that still ends would set again what is let go of below: who holds the Lease has it gone.
        let mut election = Election::new(client.clone(), &namespace, &lease_name, &identity);
        let _ = tokio::time::timeout(options.deadline, election.acquire()).await;
        UninstallSummary {
            kept: true,
            ..UninstallSummary::default()
        }
    } else {
        clean(&client, &settings, options.deadline).await?
    };
    // Shims may stay, as their definition does; nobody would let go of them any more.
    for shim in cluster::list::<ShimObject>(&client).await? {
        let view = ShimView::from(&shim);
        if view.has_finalizer || view.has_rcm_finalizer {
            tracing::info!(shim = shim.name_any(), "letting go");
            apply::finalizer(&client, &shim, &Finalizer::Release).await?;
        }
    }
    if let Err(error) = end_lease(&client, &namespace, &lease_name, &identity).await {
        // Nothing acts on it any more; what was asked for is done.
        tracing::warn!(%error, "the Lease stays; delete it");
    }
    Ok(summary)
}

/// Has every node let go of what it carries; who still carries something after `deadline`.
async fn clean(
    client: &Client,
    settings: &Settings,
    deadline: Duration,
) -> Result<UninstallSummary, Error> {
    let end = Instant::now() + deadline;
    loop {
        let cleans = async |context: &Context| Ok(cleaned(context, end).await);
        // On the heap: forty kilobytes of watches.
        let operating = Box::pin(operate(client.clone(), settings.clone(), true, cleans));
        match operating.await {
            // One that somebody deleted goes with the last Shim that is let go of; nodes may carry something still.
            Err(Error::CrdReplaced) if Instant::now() < end => {
                apply::crd::restore(client).await?;
            }
            ended => return ended,
        }
    }
}

/// Deletes the Lease, unless another replica holds it: that one acts still.
async fn end_lease(
    client: &Client,
    namespace: &str,
    name: &str,
    identity: &str,
) -> Result<(), apply::Error> {
    match lease::get(client, namespace, name).await? {
        Some(there) if leader::is_anothers(&there, identity) => {
            tracing::warn!(lease = name, "another replica acts; its Lease stays");
            Ok(())
        }
        Some(there) => lease::delete(client, namespace, &there).await,
        None => Ok(()),
    }
}

/// Waits until no node carries anything, or until `end`; who still does.
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
    // At the deadline, what is left is what is told.
    let _ = tokio::time::timeout_at(end, clean).await;
    UninstallSummary {
        nodes: context.carriers(),
        ..UninstallSummary::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_with_what_to_do_about_it() {
        let nodes = [("n1", vec!["spin", "wws"]), ("n2", vec![])].map(|(node, shims)| {
            let shims = shims.into_iter().map(str::to_owned).collect();
            (node.to_owned(), shims)
        });
        let summary = UninstallSummary {
            nodes: nodes.into(),
            ..UninstallSummary::default()
        };
        let text = summary.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("node n1 still carries spin, wws; end the pods"));
        assert!(lines[1].starts_with("node n2 still has marks of Farrier; run"));
        assert!(lines[1].contains("kubectl annotate node n2 farrier.dev/applied-"));
        assert!(
            UninstallSummary::default()
                .to_string()
                .contains("nothing is left")
        );
        let kept = UninstallSummary {
            kept: true,
            ..UninstallSummary::default()
        };
        let text = kept.to_string();
        assert!(text.contains("nodes keep what they have"), "{text}");
        assert!(!text.contains("nothing is left"), "{text}");
    }
}
