//! HTTP in and out.
//!
//! In: requests. Out: answers. What must hold: a write is answered 202 only when it is in the queue, and everything else
//! with a problem that says whether to repeat it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_nats::Client;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use daemon::access::Access;
use daemon::bucket::Bucket;
use daemon::jwt::Claims;
use daemon::shutdown::Shutdown;
use serde_json::json;
use time::OffsetDateTime;
use wire::command::{OperationStatus, WriteCommand};
use wire::names::{HEADER_TRACEPARENT, schema_key};
use wire::schema::Schema;

use crate::Problem;
use crate::answer;
use crate::idempotency::{fingerprint, operation_id};
use crate::intake::{Accepted, Intake, timestamp};
use crate::keys::Record;
use crate::metrics::Metrics;
use crate::openapi;
use crate::outcome::{Outcomes, Waiter};
use crate::prefer;
use crate::rate_limit::RateLimit;
use crate::request::{self, HEALTH, METRICS, OPENAPI, Target};
use crate::trace::traceparent;
use crate::write::Write;

/// What the handlers share.
#[derive(Debug)]
pub struct Gateway {
    /// Who may come in.
    pub access: Access,
    /// How often; None is no limit.
    pub rate_limit: Option<Mutex<RateLimit>>,
    /// The tables.
    pub schemas: Bucket<Schema>,
    /// Where writes go.
    pub intake: Intake,
    /// Who waits for an outcome.
    pub outcomes: Outcomes,
    /// To ask for outcomes.
    pub client: Client,
    /// Counters.
    pub metrics: Metrics,
    /// Waiting requests are answered when it begins.
    pub shutdown: Shutdown,
}

/// The gateway's routes. Every other path is a table.
pub fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route(HEALTH, get(health).fallback(write))
        .route(METRICS, get(metrics).fallback(write))
        .route(OPENAPI, get(openapi).fallback(write))
        .fallback(write)
        .with_state(gateway)
}

async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    let intake = &gateway.intake;
    let queue = &intake.queue;
    let (backlog, drained_per_s) = queue.backlog_size();
    let keys = intake.keys.is_whole().then(|| intake.keys.count());
    let tables = gateway.schemas.values().map(|tables| tables.len());
    let is_ok = queue.is_connected()
        && queue.is_there()
        && keys.is_some()
        && intake.breaker_name() != "open"
        && tables.is_some();
    let body = json!({
        "status": if is_ok { "ok" } else { "degraded" },
        "nats": if queue.is_connected() { "connected" } else { "disconnected" },
        "queue": if queue.is_there() { "ready" } else { "missing" },
        "inFlight": intake.in_flight(),
        "breaker": intake.breaker_name(),
        "keys": keys,
        "backlog": backlog,
        "drainedPerSecond": drained_per_s.round(),
        "tables": tables,
    });
    let status = if is_ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    answer::json_response(status, &body)
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    (
        [(CONTENT_TYPE, content_type)],
        gateway.metrics.text(&gateway.intake),
    )
        .into_response()
}

async fn openapi(State(gateway): State<Arc<Gateway>>) -> Response {
    let tables = gateway.schemas.values().unwrap_or_default();
    let needs_token = matches!(gateway.access, Access::Token(_));
    answer::json_response(StatusCode::OK, &openapi::document(&tables, needs_token))
}

async fn write(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let started = Instant::now();
    match gateway.write(request).await {
        Ok((accepted, response)) => {
            // Without the time that the client asked to wait.
            gateway
                .metrics
                .accepted(accepted.at - started, accepted.is_repeat);
            response
        }
        Err(problem) => {
            gateway.metrics.refused(problem.kind());
            problem.into_response()
        }
    }
}

/// When a write was accepted, for the metrics.
struct Counted {
    at: Instant,
    is_repeat: bool,
}

impl Gateway {
    async fn write(&self, request: Request) -> Result<(Counted, Response), Problem> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let target = Target::new(&head.method, path)?;
        let claims = self.access.claims(&head.headers, SystemTime::now())?;
        let principal = claims.as_ref().map(|claims| claims.subject.as_str());
        self.limit(principal)?;
        let schema = self.schema(&target)?;
        let key = head
            .headers
            .get("idempotency-key")
            .map(HeaderValue::as_bytes);
        let operation_id = operation_id(key, principal)
            .map_err(|error| Problem::bad_request("idempotency-key", error.to_string()))?;
        let body = request::read(&head.headers, body).await?;
        let write = target.write(&schema, &body).map_err(answer::unfit)?;

        let wait = prefer::wait(&head.headers);
        let waiter = match wait {
            Some(_) => Box::pin(self.outcomes.waiter(&operation_id.to_string())).await,
            None => None,
        };
        let record = Record {
            operation_id,
            fingerprint: fingerprint(head.method.as_str(), path, principal, &body),
            accepted_at: now(),
        };
        let command = command(&record, &target, write, claims);
        let operation_id = command.operation_id.clone();
        let entity_id = command.entity_id.clone();
        let trace = head
            .headers
            .get(HEADER_TRACEPARENT)
            .and_then(|value| value.to_str().ok());
        let accepted = self
            .intake
            .accept(command, record, &traceparent(trace))
            .await
            .map_err(|refused| answer::refused(&refused))?;
        let counted = Counted {
            at: Instant::now(),
            is_repeat: accepted.is_repeat,
        };

        if let (Some(wait), Some(waiter)) = (wait, waiter)
            && let Some(outcome) = Box::pin(self.outcome(waiter, &accepted, wait)).await
        {
            return Ok((counted, answer::finished(outcome, accepted, wait)));
        }
        Ok((
            counted,
            answer::pending(&operation_id, &accepted, entity_id.as_deref()),
        ))
    }

    fn limit(&self, principal: Option<&str>) -> Result<(), Problem> {
        let Some(limit) = &self.rate_limit else {
            return Ok(());
        };
        let mut limit = limit.lock().unwrap_or_else(PoisonError::into_inner);
        limit
            .admit(principal.unwrap_or(""), Instant::now())
            .map_err(|retry_after| {
                let detail = "too many requests for this principal";
                Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate-limit", detail)
                    .retry_after(retry_after)
            })
    }

    fn schema(&self, target: &Target<'_>) -> Result<Arc<Schema>, Problem> {
        if self.schemas.values().is_none() {
            let detail = "the tables are not known yet: the bridge publishes them to NATS";
            return Err(Problem::unavailable(
                "no-schemas",
                detail,
                Duration::from_secs(1),
            ));
        }
        let table = self
            .schemas
            .value(&schema_key(&target.schema, &target.table));
        table.ok_or_else(|| target.no_table())
    }

    /// The outcome within `wait`; None at its end or when the gateway shuts down.
    async fn outcome(
        &self,
        waiter: Waiter,
        accepted: &Accepted,
        wait: Duration,
    ) -> Option<OperationStatus> {
        let deadline = tokio::time::Instant::now() + wait;
        tokio::select! {
            outcome = waiter.outcome(&self.client, accepted.is_repeat, deadline) => outcome,
            _ = self.shutdown.wait() => None,
        }
    }
}

/// In the resolution that the keys are remembered with.
fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    let whole_us = now.nanosecond() / 1000 * 1000;
    now.replace_nanosecond(whole_us)
        .expect("less than a second before")
}

fn command(
    record: &Record,
    target: &Target<'_>,
    write: Write,
    claims: Option<Claims>,
) -> WriteCommand {
    let (principal, claims) = match claims {
        Some(claims) => (Some(claims.subject), Some(claims.all)),
        None => (None, None),
    };
    WriteCommand {
        operation_id: record.operation_id.to_string(),
        table: target.table.clone(),
        op: write.op,
        entity_id: write.entity_id,
        data: write.data,
        principal,
        claims,
        accepted_at: timestamp(record.accepted_at),
        body_sha256: record.fingerprint.to_string(),
        schema: target.schema.clone(),
    }
}
