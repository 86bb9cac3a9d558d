//! Every number the processor shows.
//!
//! In: what the workers did, per batch. Out: the Prometheus text of `/metrics`.
//! Invariant: one label, the table, and only of tables that have a consumer.

use daemon::metrics;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// The numbers; clones are the same.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Writes with an outcome, repeats included.
    pub done_total: IntCounterVec,
    /// Writes that ended as failed.
    pub failed_total: IntCounterVec,
    /// Messages moved to the dead letters.
    pub dead_letters_total: IntCounterVec,
    /// Times a batch had to wait for PostgreSQL.
    pub waits_total: IntCounterVec,
    /// Time from a batch in hand to its commit.
    pub apply_seconds: HistogramVec,
    /// Creates that wait for their parent, and writes to the same rows behind them.
    pub set_aside: IntGaugeVec,
    /// 1 where this processor has the table's lock.
    pub active: IntGaugeVec,
    /// 1 while the maintenance session stands.
    pub postgres_up: IntGauge,
    /// Outcomes deleted for their age.
    pub pruned: IntCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let counter = |name, help| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["table"]);
            metrics::keep(&registry, counter)
        };
        let gauge = |name, help| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &["table"]);
            metrics::keep(&registry, gauge)
        };
        let apply_seconds =
            HistogramOpts::new("processor_apply_seconds", "Time to apply one batch")
                .buckets(vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]);
        let apply_seconds = HistogramVec::new(apply_seconds, &["table"]);
        let postgres_up = IntGauge::new("processor_postgres_up", "PostgreSQL answers");
        let pruned = IntCounter::new(
            "processor_operations_pruned_total",
            "Outcomes deleted for their age",
        );
        Self {
            done_total: counter("processor_done_total", "Writes with an outcome"),
            failed_total: counter("processor_failed_total", "Writes that failed"),
            dead_letters_total: counter("processor_dead_letters_total", "Messages buried"),
            waits_total: counter("processor_waits_total", "Waits for PostgreSQL"),
            set_aside: gauge("processor_set_aside", "Writes that wait for another row"),
            active: gauge("processor_active", "This processor has the table's lock"),
            apply_seconds: metrics::keep(&registry, apply_seconds),
            postgres_up: metrics::keep(&registry, postgres_up),
            pruned: metrics::keep(&registry, pruned),
            registry,
        }
    }
}

impl Metrics {
    /// In Prometheus' text format.
    pub fn text(&self) -> Vec<u8> {
        metrics::text(&self.registry)
    }
}
