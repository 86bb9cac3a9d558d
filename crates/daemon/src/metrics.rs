//! What every service's metrics need.
//!
//! In: metrics as they are made. Out: the same, registered; and Prometheus' text. What must hold: a name that is wrong or
//! used twice shows at start, not at the first scrape.

use prometheus::core::Collector;
use prometheus::{Encoder, Registry, TextEncoder};

/// Registers a metric that was just made. Panics when its name is not valid or taken.
pub fn keep<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> C {
    let metric = metric.expect("the names are valid");
    registry
        .register(Box::new(metric.clone()))
        .expect("each name is registered once");
    metric
}

/// All metrics of a registry in Prometheus' text format.
pub fn text(registry: &Registry) -> Vec<u8> {
    let mut text = Vec::new();
    TextEncoder::new()
        .encode(&registry.gather(), &mut text)
        .expect("a Vec takes every write");
    text
}
