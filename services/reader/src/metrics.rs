//! Every number the reader shows.
//!
//! In: what the handlers and the invalidator did. Out: the Prometheus text of `/metrics`.
//! Invariant: labels come from short fixed lists, never from a request.

use daemon::metrics;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// The numbers.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Answers by status.
    pub requests_total: IntCounterVec,
    /// Reads by what the cache did: hit, miss, bypass, off.
    pub cache_total: IntCounterVec,
    /// Times a table's cached answers were invalidated.
    pub invalidations_total: IntCounter,
    /// Change events seen.
    pub changes_total: IntCounter,
    /// Cached answers of all tables thrown away, because changes may have been missed.
    pub flushes_total: IntCounter,
    /// 1 while Redis answers.
    pub redis_up: IntGauge,
    /// 1 while PostgreSQL answers.
    pub postgres_up: IntGauge,
    /// Requests that have or wait for a session with PostgreSQL.
    pub postgres_in_use: IntGauge,
    /// Clients of `/changes`.
    pub live_clients: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let vector = |name, help, label| {
            let counter = IntCounterVec::new(Opts::new(name, help), &[label]);
            metrics::keep(&registry, counter)
        };
        let counter = |name, help| metrics::keep(&registry, IntCounter::new(name, help));
        let gauge = |name, help| metrics::keep(&registry, IntGauge::new(name, help));
        Self {
            requests_total: vector("reader_requests_total", "Answers by status", "status"),
            cache_total: vector(
                "reader_cache_total",
                "Reads by what the cache did",
                "result",
            ),
            invalidations_total: counter("reader_invalidations_total", "Tables invalidated"),
            changes_total: counter("reader_changes_total", "Change events seen"),
            flushes_total: counter("reader_flushes_total", "Times everything was invalidated"),
            redis_up: gauge("reader_redis_up", "Redis answers"),
            postgres_up: gauge("reader_postgres_up", "PostgreSQL answers"),
            postgres_in_use: gauge("reader_postgres_in_use", "Requests at PostgreSQL"),
            live_clients: gauge("reader_live_clients", "Clients of /changes"),
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
