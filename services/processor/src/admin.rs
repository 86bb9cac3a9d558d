//! `/health` and `/metrics`.
//!
//! In: requests. Out: the state of the two connections, and every number.
//! Invariant: 200 means that writes can flow; 503 says what is missing.

use async_nats::connection::State;
use daemon::http::{Method, Request, Response, StatusCode};
use serde_json::json;

use crate::metrics::Metrics;

/// Answers one request.
pub fn answer(request: &Request, client: &async_nats::Client, metrics: &Metrics) -> Response {
    if request.method != Method::GET {
        return Response::method_not_allowed("GET, HEAD");
    }
    match request.path.as_str() {
        "/health" => health(client, metrics),
        "/metrics" => Response::text(metrics.text()),
        path => Response::not_found(path),
    }
}

fn health(client: &async_nats::Client, metrics: &Metrics) -> Response {
    let nats = client.connection_state() == State::Connected;
    let postgres = metrics.postgres_up.get() == 1;
    let is_well = nats && postgres;
    let (word, status) = if is_well {
        ("ok", StatusCode::OK)
    } else {
        ("degraded", StatusCode::SERVICE_UNAVAILABLE)
    };
    let body = json!({"status": word, "nats": nats, "postgres": postgres});
    Response::json(body.to_string()).with_status(status)
}
