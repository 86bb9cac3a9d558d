//! The numbers the bridge shows, by name.
//!
//! In: increments, at most one per batch. Out: the Prometheus text of `/metrics`.
//! Invariant: the names of the contract keep their spelling; this file is the only one that knows them.

use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntGauge, Registry, TextEncoder,
};

macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ident = $metric:literal),* $(,)?) => {
        /// Handles to every metric; a clone shares them.
        #[derive(Clone)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $doc])+ pub $name: $kind),*
        }

        impl Metrics {
            pub fn new() -> Self {
                let registry = Registry::new();
                $(let $name = $kind::make($metric, concat!($($doc),+).trim());
                  register(&registry, &$name);)*
                Self { registry, $($name),* }
            }
        }

        /// Name and meaning of every metric, for the table in the README.
        pub const NAMES: &[(&str, &str)] = &[$(($metric, concat!($($doc),+))),*];
    };
}

metrics! {
    /// Seconds since the bridge started.
    uptime_seconds: IntGauge = "bridge_uptime_seconds",
    /// Messages received from PostgreSQL, keepalives included.
    wal_messages_received: IntCounter = "bridge_wal_messages_received_total",
    /// Events proven to be stored in the stream.
    cdc_events_published: IntCounter = "bridge_cdc_events_published_total",
    /// LSN up to which everything is acked by JetStream, as a number.
    last_ack_lsn: IntGauge = "bridge_last_ack_lsn",
    /// LSN confirmed to PostgreSQL, as a number; behind the acked one by what --durability holds.
    confirmed_lsn: IntGauge = "bridge_confirmed_lsn",
    /// 1 while replication streams.
    connected: IntGauge = "bridge_connected",
    /// Reconnects to PostgreSQL.
    reconnects: IntCounter = "bridge_reconnects_total",
    /// Reconnects to NATS.
    nats_reconnects: IntCounter = "bridge_nats_reconnects_total",
    /// 1 while connected to NATS for publishing.
    nats_connected: IntGauge = "bridge_nats_connected",
    /// Microseconds the last acked group of messages was under way.
    last_processing_time_us: IntGauge = "bridge_last_processing_time_us",
    /// 1 while PostgreSQL shows the slot in use.
    slot_active: IntGauge = "bridge_slot_active",
    /// Bytes of WAL written behind the confirmed LSN of the slot.
    wal_lag_bytes: IntGauge = "bridge_wal_lag_bytes",
    /// Bytes of WAL the slot keeps PostgreSQL from removing.
    wal_retained_bytes: IntGauge = "bridge_wal_retained_bytes",
    /// WAL end PostgreSQL sent last, as a number.
    received_lsn: IntGauge = "bridge_received_lsn",
    /// Transactions received.
    transactions: IntCounter = "bridge_transactions_total",
    /// Events between the decoder and their ack.
    ring_events: IntGauge = "bridge_ring_events",
    /// Bytes of those events.
    ring_bytes: IntGauge = "bridge_ring_bytes",
    /// Other bridges that publish the same tables into the stream; anything but 0 is a mistake.
    overlapping_bridges: IntGauge = "bridge_overlapping_bridges",
    /// Events whose body went to the object store, because no message can hold it.
    oversize_events: IntCounter = "bridge_oversize_events_total",
    /// Snapshots being made.
    snapshots_running: IntGauge = "bridge_snapshots_running",
    /// Snapshots waiting for a worker.
    snapshots_waiting: IntGauge = "bridge_snapshots_waiting",
    /// Snapshots that ended in meta.
    snapshots_made: IntCounter = "bridge_snapshots_made_total",
    /// Snapshots that ended in an error.
    snapshots_failed: IntCounter = "bridge_snapshots_failed_total",
    /// Rows published in snapshots.
    snapshot_rows: IntCounter = "bridge_snapshot_rows_total",
    /// Seconds the source waited because the ring was full.
    full_wait_seconds: Histogram = "bridge_full_wait_seconds",
    /// Seconds from the first message of a group to its ack.
    ack_wait_seconds: Histogram = "bridge_ack_wait_seconds",
}

impl Metrics {
    /// The exposition format of Prometheus, version 0.0.4.
    pub fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        // Only a metric family without metrics fails, and there is none.
        encoded.expect("every family has a metric");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes a metric; fails only for a name that Prometheus does not allow.
trait Make: Sized {
    fn make(name: &str, help: &str) -> Self;
}

impl Make for IntCounter {
    fn make(name: &str, help: &str) -> Self {
        Self::new(name, help).expect("the name is one Prometheus allows")
    }
}

impl Make for IntGauge {
    fn make(name: &str, help: &str) -> Self {
        Self::new(name, help).expect("the name is one Prometheus allows")
    }
}

impl Make for Histogram {
    fn make(name: &str, help: &str) -> Self {
        // 100 us to 10 s.
        let buckets = vec![
            0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0,
        ];
        Self::with_opts(HistogramOpts::new(name, help).buckets(buckets))
            .expect("the name is one Prometheus allows")
    }
}

fn register(registry: &Registry, metric: &(impl Collector + Clone + 'static)) {
    registry
        .register(Box::new(metric.clone()))
        .expect("each name is registered once");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_names_of_the_contract() {
        let metrics = Metrics::new();
        metrics.cdc_events_published.inc_by(288);

        let text = String::from_utf8(metrics.text()).unwrap();

        assert!(
            text.contains("\nbridge_cdc_events_published_total 288\n"),
            "{text}"
        );
        for (name, _) in NAMES {
            assert!(text.contains(name), "{name}");
        }
    }
}
