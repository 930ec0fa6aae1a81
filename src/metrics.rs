//! Metric families. A label has a bounded set of values, or is the name of a Shim, of which a cluster has few. The name of a node or a Job
//! is never a label.
//!
//! The controller calls this module, and `server` serves the text.

use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

type Labels = Vec<(&'static str, &'static str)>;

/// States of a node with regard to a Shim, in the order of [`Metrics::nodes`].
pub const NODE_STATES: [&str; 5] = ["ready", "pending", "failed", "unsupported", "removing"];

/// The metrics of the controller.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Family<Labels, Counter>,
    jobs: Family<Labels, Counter>,
    restarts: Family<Labels, Counter>,
    provisioning: Histogram,
    nodes: Family<Vec<(&'static str, String)>, Gauge>,
    leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Every family, at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("farrier");
        let metrics = Self {
            reconciles: Family::default(),
            jobs: Family::default(),
            restarts: Family::default(),
            // From one second, the shortest Job, to some 35 minutes, above the default deadline of a Job of 30 minutes.
            provisioning: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            nodes: Family::default(),
            leader: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register(
            "build",
            "The release that runs",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register(
            "reconciles",
            "Reconciliations, by kind of object and result",
            metrics.reconciles.clone(),
        );
        registry.register("jobs", "Jobs that ended, by outcome", metrics.jobs.clone());
        registry.register(
            "containerd_restarts",
            "Restarts of containerd (done), and changes of a host without a restart (avoided)",
            metrics.restarts.clone(),
        );
        registry.register_with_unit(
            "provisioning_duration",
            "Time from the claim of a node to its report",
            Unit::Seconds,
            metrics.provisioning.clone(),
        );
        registry.register("nodes", "Nodes by Shim and state", metrics.nodes.clone());
        registry.register(
            "leader",
            "1 on the replica that acts, and 0 on others",
            metrics.leader.clone(),
        );
        Self {
            registry,
            ..metrics
        }
    }

    /// Counts one reconciliation of an object of `kind` (`node` or `shim`).
    pub fn reconciled(&self, kind: &'static str, ok: bool) {
        let result = if ok { "ok" } else { "error" };
        self.reconciles
            .get_or_create(&vec![("kind", kind), ("result", result)])
            .inc();
    }

    /// Counts a Job that ended with `outcome`, one of a bounded set, after `restarts` of containerd. `spared` means that the Job changed
    /// the host without a restart. `took` is the time from the claim to the report.
    pub fn job_ended(&self, outcome: &'static str, restarts: u32, spared: bool, took: Duration) {
        self.jobs.get_or_create(&vec![("outcome", outcome)]).inc();
        let restarted = |result| self.restarts.get_or_create_owned(&vec![("result", result)]);
        restarted("done").inc_by(u64::from(restarts));
        restarted("avoided").inc_by(u64::from(spared));
        self.provisioning.observe(took.as_secs_f64());
    }

    /// Sets the number of nodes in each of [`NODE_STATES`] for `shim`.
    pub fn nodes(&self, shim: &str, counts: [usize; NODE_STATES.len()]) {
        for (state, count) in NODE_STATES.into_iter().zip(counts) {
            let gauge = self.nodes.get_or_create_owned(&of_shim(shim, state));
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Removes the metrics of a deleted Shim.
    pub fn remove_shim(&self, shim: &str) {
        for state in NODE_STATES {
            self.nodes.remove(&of_shim(shim, state));
        }
    }

    /// Sets whether this replica acts.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// The families in OpenMetrics' text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn of_shim(shim: &str, state: &'static str) -> Vec<(&'static str, String)> {
    vec![("shim", shim.to_owned()), ("state", state.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_values_are_in_the_metrics_text() {
        let metrics = Metrics::new();
        metrics.reconciled("node", true);
        metrics.job_ended("applied", 1, false, Duration::from_secs(3));
        metrics.nodes("spin", [3, 0, 0, 0, 0]);
        metrics.nodes("gone", [1, 0, 0, 0, 0]);
        metrics.remove_shim("gone");
        let text = metrics.text();
        assert!(
            text.contains(r#"farrier_reconciles_total{kind="node",result="ok"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"farrier_jobs_total{outcome="applied"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"farrier_containerd_restarts_total{result="done"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"farrier_provisioning_duration_seconds_bucket{le="4.0"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"farrier_nodes{shim="spin",state="ready"} 3"#)
                && !text.contains("gone"),
            "{text}"
        );
    }
}
