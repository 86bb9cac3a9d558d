//! What the bridge is meant to reach on two cores shared with both servers.

use crate::report::{AGAINST_PIPELINE, AGAINST_RECVLOGICAL, Metric, OWN_CPU, PEAK_RSS, RATE};
use crate::{live, shapes, start};

pub struct Target {
    pub scenario: &'static str,
    pub who: &'static str,
    pub metric: Metric,
    pub bound: Bound,
}

#[derive(Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

use Bound::{AtLeast, AtMost};

pub const BRIDGE: &str = "bridge";

const fn target(scenario: &'static str, metric: Metric, bound: Bound) -> Target {
    Target {
        scenario,
        who: BRIDGE,
        metric,
        bound,
    }
}

/// Against pg_recvlogical with nats-server 2.14 and newer, whose fast batches are the larger part of the road.
const WITH_FAST_BATCHES: Target = target(shapes::DRAIN_1000, AGAINST_RECVLOGICAL, AtLeast(1.6));
/// The same with older ones.
const WITHOUT: Target = target(shapes::DRAIN_1000, AGAINST_RECVLOGICAL, AtLeast(1.2));

/// What is wanted with such a server.
pub fn all(has_fast_batches: bool) -> impl Iterator<Item = &'static Target> {
    let against_recvlogical = if has_fast_batches {
        &WITH_FAST_BATCHES
    } else {
        &WITHOUT
    };
    std::iter::once(against_recvlogical).chain(TARGETS)
}

const TARGETS: &[Target] = &[
    target(shapes::DRAIN_1000, RATE, AtLeast(200_000.0)),
    target(shapes::DRAIN_1000, AGAINST_PIPELINE, AtLeast(85.0)),
    target(shapes::DRAIN_1000, OWN_CPU, AtMost(1.0)),
    target(shapes::DRAIN_1000, PEAK_RSS, AtMost(16.0)),
    target(shapes::DRAIN_10, RATE, AtLeast(180_000.0)),
    target(shapes::DRAIN_10, AGAINST_PIPELINE, AtLeast(85.0)),
    target(shapes::DRAIN_10, OWN_CPU, AtMost(1.0)),
    target(shapes::DRAIN_COPY, AGAINST_PIPELINE, AtLeast(85.0)),
    target(shapes::LARGE, PEAK_RSS, AtMost(16.0)),
    target(live::LIVE_1000, live::P50, AtMost(0.3)),
    target(live::LIVE_1000, live::P99, AtMost(1.0)),
    target(live::LIVE_5000, live::P99, AtMost(5.0)),
    target(live::LIVE_20000, live::P99, AtMost(5.0)),
    target(start::START, start::FIRST_EVENT, AtMost(100.0)),
    target(start::START, start::IDLE_RSS, AtMost(8.0)),
    target(start::START, start::BINARY, AtMost(8.0)),
];

impl Target {
    pub fn is_met(&self, measured: f64) -> bool {
        match self.bound {
            AtLeast(bound) => measured >= bound,
            AtMost(bound) => measured <= bound,
        }
    }

    /// As a part of the target.
    pub fn missed_by(&self, measured: f64) -> f64 {
        let (AtLeast(bound) | AtMost(bound)) = self.bound;
        (measured - bound).abs() / bound
    }

    pub fn wanted(&self) -> String {
        match self.bound {
            AtLeast(bound) => format!(">= {bound}"),
            AtMost(bound) => format!("<= {bound}"),
        }
    }
}
