//! The gateway's metrics.
//!
//! In: one call per answered request, and a look at the intake when asked. Out: Prometheus text. What must hold: the
//! number of series does not depend on what clients send.

use std::time::Duration;

use daemon::metrics;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use crate::intake::Intake;

/// Counters and gauges under one registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    accepted: IntCounter,
    repeats: IntCounter,
    refused: IntCounterVec,
    seconds: Histogram,
    in_flight: IntGauge,
    breaker_open: IntGauge,
    connected: IntGauge,
    keys: IntGauge,
    backlog: IntGauge,
    drained: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let counter = |name, help| metrics::keep(&registry, IntCounter::new(name, help));
        let gauge = |name, help| metrics::keep(&registry, IntGauge::new(name, help));
        let refused = Opts::new(
            "gateway_refused_total",
            "requests refused, by kind of problem",
        );
        let buckets = prometheus::exponential_buckets(0.0005, 2.0, 14);
        let seconds = HistogramOpts::new("gateway_accept_seconds", "time to accept a write")
            .buckets(buckets.expect("the width is positive"));
        let drained = Gauge::new("gateway_drained_per_second", "messages leaving the queue");
        Self {
            accepted: counter(
                "gateway_accepted_total",
                "writes accepted, repeats included",
            ),
            repeats: counter("gateway_repeats_total", "writes accepted before"),
            refused: metrics::keep(&registry, IntCounterVec::new(refused, &["kind"])),
            seconds: metrics::keep(&registry, Histogram::with_opts(seconds)),
            in_flight: gauge("gateway_in_flight", "writes that wait for JetStream"),
            breaker_open: gauge("gateway_breaker_open", "1 unless the breaker is closed"),
            connected: gauge("gateway_nats_connected", "1 while NATS is connected"),
            keys: gauge("gateway_keys", "idempotency keys remembered"),
            backlog: gauge(
                "gateway_backlog_messages",
                "messages in the queue of writes",
            ),
            drained: metrics::keep(&registry, drained),
            registry,
        }
    }
}

impl Metrics {
    /// A write is in the queue.
    pub fn accepted(&self, took: Duration, is_repeat: bool) {
        self.accepted.inc();
        self.repeats.inc_by(is_repeat.into());
        self.seconds.observe(took.as_secs_f64());
    }

    /// A request was refused; `kind` is one of ours.
    pub fn refused(&self, kind: &'static str) {
        self.refused.with_label_values(&[kind]).inc();
    }

    /// All metrics in Prometheus' text format.
    pub fn text(&self, intake: &Intake) -> Vec<u8> {
        let (messages, drained_per_s) = intake.queue.backlog_size();
        self.in_flight.set(intake.in_flight() as i64);
        self.breaker_open
            .set((intake.breaker_name() != "closed").into());
        self.connected.set(intake.queue.is_connected().into());
        self.keys.set(intake.keys.count() as i64);
        self.backlog.set(messages as i64);
        self.drained.set(drained_per_s);
        metrics::text(&self.registry)
    }
}
