//! The HTTP routes of the bridge.
//!
//! In: requests on the loopback port. Out: health, status, metrics; a shutdown.
//! Invariant: no route can stop or slow the road, except `POST /shutdown`.

use std::sync::Arc;
use std::time::Instant;

use daemon::http::{Method, Request, Response, StatusCode};
use daemon::shutdown::{Reason, Shutdown};
use serde_json::json;
use wire::Lsn;

use crate::metrics::Metrics;
use crate::ring::Gauge;
use crate::shared::{Condition, Shared};

/// What the routes show.
#[derive(Clone)]
pub struct Admin {
    pub started: Instant,
    pub slot: String,
    /// What a power cut of the NATS host could take, in words.
    pub durability: String,
    pub shared: Arc<Shared>,
    pub metrics: Metrics,
    pub ring: Gauge,
    pub shutdown: Shutdown,
}

/// What `bridge` prints in its own help and the README lists.
pub const ROUTES: &[(&str, &str)] = &[
    ("GET /health", "the process answers"),
    (
        "GET /ready",
        "200 while both sides are connected and no other bridge publishes the same tables, else 503 with the reasons",
    ),
    ("GET /status", "how it stands, as JSON"),
    ("GET /metrics", "the same as numbers, for Prometheus"),
    (
        "POST /stream/accept",
        "go on with a stream that was purged or made anew",
    ),
    ("POST /shutdown", "drain and exit, as SIGTERM does"),
];

impl Admin {
    pub fn answer(&self, request: &Request) -> Response {
        match (request.path.as_str(), &request.method) {
            ("/health", &Method::GET) => Response::json(r#"{"status":"ok"}"#),
            ("/ready", &Method::GET) => self.ready(),
            ("/status", &Method::GET) => Response::json(self.status().to_string()),
            ("/metrics", &Method::GET) => {
                self.refresh();
                Response::text(self.metrics.text())
            }
            ("/stream/accept", &Method::POST) => {
                self.shared.accept_reset();
                Response::json(r#"{"status":"accepted"}"#).with_status(StatusCode::ACCEPTED)
            }
            ("/shutdown", &Method::POST) => {
                self.shutdown
                    .trigger(Reason::Request("POST /shutdown".to_owned()));
                Response::json(r#"{"status":"draining"}"#).with_status(StatusCode::ACCEPTED)
            }
            ("/health" | "/ready" | "/status" | "/metrics", _) => {
                Response::method_not_allowed("GET, HEAD")
            }
            ("/shutdown" | "/stream/accept", _) => Response::method_not_allowed("POST"),
            (path, _) => Response::not_found(path),
        }
    }

    /// Sets what is read rather than counted.
    pub fn refresh(&self) {
        self.metrics
            .uptime_seconds
            .set(self.started.elapsed().as_secs() as i64);
        self.metrics.ring_events.set(self.ring.events() as i64);
        self.metrics.ring_bytes.set(self.ring.bytes() as i64);
        self.metrics
            .overlapping_bridges
            .set(self.shared.overlaps().len() as i64);
    }

    fn ready(&self) -> Response {
        let sides = [
            ("postgres", self.shared.source()),
            ("nats", self.shared.publisher()),
        ];
        let mut reasons: Vec<_> = sides
            .iter()
            .filter(|(_, condition)| *condition != Condition::Well)
            .map(|(side, condition)| json!({ "side": side, "condition": describe(condition) }))
            .collect();
        let overlaps = self.shared.overlaps();
        reasons.extend(
            overlaps
                .iter()
                .map(|overlap| json!({ "side": "stream", "condition": overlap.to_string() })),
        );
        let status = if reasons.is_empty() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let body = json!({ "ready": reasons.is_empty(), "reasons": reasons });
        Response::json(body.to_string()).with_status(status)
    }

    fn status(&self) -> serde_json::Value {
        let metrics = &self.metrics;
        let lag_bytes = metrics.wal_lag_bytes.get();
        let publish = self.shared.publish_mode();
        let (source, publisher) = (self.shared.source(), self.shared.publisher());
        let status = match (&source, &publisher) {
            (Condition::Standby, _) => "standby",
            (Condition::Well, Condition::Well) => "connected",
            (Condition::Starting, _) | (_, Condition::Starting) => "starting",
            (Condition::Trouble { .. } | Condition::Well, _) => "disconnected",
        };
        json!({
            "status": if self.shutdown.is_triggered() { "draining" } else { status },
            "uptime_seconds": self.started.elapsed().as_secs(),
            "wal_messages_received": metrics.wal_messages_received.get(),
            "cdc_events_published": metrics.cdc_events_published.get(),
            "current_lsn": Lsn(metrics.last_ack_lsn.get() as u64).to_string().to_lowercase(),
            "is_connected": metrics.connected.get() == 1,
            "reconnect_count": metrics.reconnects.get(),
            "nats_reconnect_count": metrics.nats_reconnects.get(),
            "last_processing_time_us": metrics.last_processing_time_us.get(),
            "slot_active": metrics.slot_active.get() == 1,
            "wal_lag_bytes": lag_bytes,
            "wal_lag_mb": lag_bytes / (1 << 20),
            "slot": self.slot,
            "durability": self.durability,
            "epoch": self.shared.epoch(),
            "postgres": describe(&source),
            "nats": describe(&publisher),
            "publish_mode": publish.as_ref().map(|choice| choice.mode.name()),
            "publish_mode_reason": publish.as_ref().map(|choice| choice.reason.as_str()),
            "ring_events": self.ring.events(),
            "ring_bytes": self.ring.bytes(),
        })
    }
}

fn describe(condition: &Condition) -> String {
    match condition {
        Condition::Starting => "starting".to_owned(),
        Condition::Well => "connected".to_owned(),
        Condition::Standby => "standby".to_owned(),
        Condition::Trouble { why, .. } => format!("retrying: {why}"),
    }
}
