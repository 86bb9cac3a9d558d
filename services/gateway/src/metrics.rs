//! The gateway's metrics.
//!
//! In: one call per answered request, and a look at the intake when asked. Out: Prometheus text. What must hold: the
//! number of series does not depend on what clients send.

use std::time::Duration;

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
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
    backlog: IntGauge,
    drained: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new().expect("the names are distinct and well formed")
    }
}

impl Metrics {
    fn new() -> prometheus::Result<Self> {
        let metrics = Self {
            registry: Registry::new(),
            accepted: IntCounter::new(
                "gateway_accepted_total",
                "writes accepted, repeats included",
            )?,
            repeats: IntCounter::new("gateway_repeats_total", "writes accepted before")?,
            refused: IntCounterVec::new(
                Opts::new(
                    "gateway_refused_total",
                    "requests refused, by kind of problem",
                ),
                &["kind"],
            )?,
            seconds: Histogram::with_opts(
                HistogramOpts::new("gateway_accept_seconds", "time to accept a write")
                    .buckets(prometheus::exponential_buckets(0.0005, 2.0, 14)?),
            )?,
            in_flight: IntGauge::new("gateway_in_flight", "writes that wait for JetStream")?,
            breaker_open: IntGauge::new("gateway_breaker_open", "1 unless the breaker is closed")?,
            connected: IntGauge::new("gateway_nats_connected", "1 while NATS is connected")?,
            backlog: IntGauge::new(
                "gateway_backlog_messages",
                "messages in the queue of writes",
            )?,
            drained: Gauge::new("gateway_drained_per_second", "messages leaving the queue")?,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.accepted.clone()))?;
        registry.register(Box::new(metrics.repeats.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.breaker_open.clone()))?;
        registry.register(Box::new(metrics.connected.clone()))?;
        registry.register(Box::new(metrics.backlog.clone()))?;
        registry.register(Box::new(metrics.drained.clone()))?;
        Ok(metrics)
    }

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
    pub fn text(&self, intake: &Intake) -> String {
        let (messages, drained_per_s) = intake.backlog_size();
        self.in_flight.set(intake.in_flight() as i64);
        self.breaker_open
            .set((intake.breaker_name() != "closed").into());
        self.connected.set(intake.is_connected().into());
        self.backlog.set(messages as i64);
        self.drained.set(drained_per_s);
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("a Vec takes every write, and no family is empty");
        String::from_utf8(text).expect("our names and labels are ASCII")
    }
}
