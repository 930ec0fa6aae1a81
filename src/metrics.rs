//! Metric families, with labels of bounded sets only: no node's, Shim's or Job's name ever becomes a label.
//!
//! Pure counting; who serves the text is `server`, who counts is the controller.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// What the controller counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Family<Vec<(&'static str, &'static str)>, Counter>,
    jobs: Family<Vec<(&'static str, &'static str)>, Counter>,
    restarts: Counter,
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
        let reconciles = Family::default();
        let jobs = Family::default();
        let restarts = Counter::default();
        registry.register(
            "build",
            "Release that runs",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register(
            "reconciles",
            "Decisions that were taken and applied",
            reconciles.clone(),
        );
        registry.register("jobs", "Jobs that ended, by outcome", jobs.clone());
        registry.register(
            "containerd_restarts",
            "Restarts of containerd that reports told of",
            restarts.clone(),
        );
        Self {
            registry,
            reconciles,
            jobs,
            restarts,
        }
    }

    /// One decision about an object of `kind` (`node` or `shim`) was applied, or failed to be.
    pub fn reconciled(&self, kind: &'static str, ok: bool) {
        let result = if ok { "ok" } else { "error" };
        self.reconciles
            .get_or_create(&vec![("kind", kind), ("result", result)])
            .inc();
    }

    /// A Job ended with `outcome`, a word of a bounded set, after `restarts` of containerd.
    pub fn job_ended(&self, outcome: &'static str, restarts: u32) {
        self.jobs.get_or_create(&vec![("outcome", outcome)]).inc();
        self.restarts.inc_by(u64::from(restarts));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_in_the_text() {
        let metrics = Metrics::new();
        metrics.reconciled("node", true);
        metrics.job_ended("applied", 1);
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
            text.contains("farrier_containerd_restarts_total 1"),
            "{text}"
        );
    }
}
