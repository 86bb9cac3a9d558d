//! HTTP in and out.
//!
//! In: requests. Out: answers. What must hold: a write is answered 202 only when it is in the queue, and everything else
//! with a problem that says whether to repeat it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_nats::Client;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use daemon::http::READ_TIMEOUT;
use daemon::jwt::Claims;
use daemon::shutdown::Shutdown;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wire::command::{OperationStatus, Status, WriteCommand};
use wire::names;
use wire::schema::Schema;

use crate::access::Access;
use crate::idempotency::{fingerprint, operation_id};
use crate::intake::{Accepted, Intake, Refused};
use crate::metrics::Metrics;
use crate::openapi;
use crate::outcome::{Outcomes, Waiter};
use crate::prefer;
use crate::problem::Problem;
use crate::rate_limit::RateLimit;
use crate::schemas::Schemas;
use crate::trace::traceparent;
use crate::write::{self, Extent, Refusal, Write};

/// Largest request body.
pub const BODY_BYTES_MAX: usize = 256 << 10;

/// What the handlers share.
#[derive(Debug)]
pub struct Gateway {
    /// Who may come in.
    pub access: Access,
    /// How often; None is no limit.
    pub rate_limit: Option<Mutex<RateLimit>>,
    /// The tables.
    pub schemas: Schemas,
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
        .route("/health", get(health).fallback(write))
        .route("/metrics", get(metrics).fallback(write))
        .route("/openapi.json", get(openapi).fallback(write))
        .fallback(write)
        .with_state(gateway)
}

async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    let intake = &gateway.intake;
    let (backlog, drained_per_s) = intake.backlog_size();
    let tables = gateway.schemas.tables().map(|tables| tables.len());
    let is_ok = intake.is_connected() && intake.breaker_name() != "open" && tables.is_some();
    let body = json!({
        "status": if is_ok { "ok" } else { "degraded" },
        "nats": if intake.is_connected() { "connected" } else { "disconnected" },
        "inFlight": intake.in_flight(),
        "breaker": intake.breaker_name(),
        "backlog": backlog,
        "drainedPerSecond": drained_per_s.round(),
        "tables": tables,
    });
    let status = if is_ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json_response(status, &body)
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
    let tables = gateway.schemas.tables().unwrap_or_default();
    let needs_token = matches!(gateway.access, Access::Token(_));
    json_response(StatusCode::OK, &openapi::document(&tables, needs_token))
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

/// What a request's method and path name.
struct Target<'a> {
    schema: String,
    table: String,
    action: Action<'a>,
}

enum Action<'a> {
    Create,
    Update(&'a str, Extent),
    Delete(&'a str),
}

impl Gateway {
    async fn write(&self, request: Request) -> Result<(Counted, Response), Problem> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let target = Target::new(&head.method, path)?;
        let claims = self.access.claims(&head.headers, SystemTime::now())?;
        let principal = claims.as_ref().map(|claims| claims.subject.as_str());
        self.limit(principal)?;
        let key = head
            .headers
            .get("idempotency-key")
            .map(HeaderValue::as_bytes);
        let operation_id = operation_id(key, principal)
            .map_err(|error| bad_request("idempotency-key", error.to_string()))?
            .to_string();
        let schema = self.schema(&target)?;
        let body = read(&head.headers, body).await?;
        let write = target.write(&schema, &body)?;

        let wait = prefer::wait(&head.headers);
        let waiter = match wait {
            Some(_) => self.outcomes.waiter(&operation_id).await,
            None => None,
        };
        let body_sha256 = fingerprint(head.method.as_str(), path, principal, &body);
        let command = command(operation_id.clone(), &target, write, claims, body_sha256);
        let entity_id = command.entity_id.clone();
        let trace = head
            .headers
            .get("traceparent")
            .and_then(|value| value.to_str().ok());
        let accepted = self
            .intake
            .accept(command, &traceparent(trace))
            .await
            .map_err(|refused| problem(&refused))?;
        let counted = Counted {
            at: Instant::now(),
            is_repeat: accepted.is_repeat,
        };

        if let (Some(wait), Some(waiter)) = (wait, waiter)
            && let Some(outcome) = self.outcome(waiter, &accepted, wait).await
        {
            return Ok((counted, finished(outcome, accepted, wait)));
        }
        Ok((counted, pending(&operation_id, &accepted, entity_id)))
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
        if self.schemas.tables().is_none() {
            let detail = "the tables are not known yet: the bridge publishes them to NATS";
            return Err(Problem::unavailable(
                "no-schemas",
                detail,
                Duration::from_secs(1),
            ));
        }
        self.schemas
            .table(&target.schema, &target.table)
            .ok_or_else(|| Problem::not_found("there is no such table"))
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

impl<'a> Target<'a> {
    fn new(method: &Method, path: &'a str) -> Result<Self, Problem> {
        let nothing = || Problem::not_found("paths are /{table} and /{table}/{id}");
        let path = path.strip_prefix('/').ok_or_else(nothing)?;
        let (table, id) = match path.split_once('/') {
            Some((table, id)) => (table, Some(id)),
            None => (path, None),
        };
        let (schema, table) = names::parse_table_path(table).ok_or_else(nothing)?;
        let action = match (method.as_str(), id) {
            (_, Some(id)) if id.is_empty() || id.contains('/') => return Err(nothing()),
            ("POST", None) => Action::Create,
            ("PATCH", Some(id)) => Action::Update(id, Extent::Named),
            ("PUT", Some(id)) => Action::Update(id, Extent::Whole),
            ("DELETE", Some(id)) => Action::Delete(id),
            (_, None) => return Err(Problem::method_not_allowed("POST")),
            (_, Some(_)) => return Err(Problem::method_not_allowed("PATCH, PUT, DELETE")),
        };
        Ok(Self {
            schema,
            table,
            action,
        })
    }

    fn write(&self, schema: &Schema, body: &[u8]) -> Result<Write, Problem> {
        let checked = match self.action {
            Action::Create => write::create(schema, body),
            Action::Update(id, extent) => write::update(schema, id, body, extent),
            Action::Delete(id) => write::delete(schema, id),
        };
        checked.map_err(|refusal| {
            let detail = refusal.to_string();
            match refusal {
                Refusal::NotAnObject(_) => bad_request("malformed-body", detail),
                Refusal::NotGranted { .. } => {
                    Problem::new(StatusCode::FORBIDDEN, "not-granted", detail)
                }
                Refusal::NoKey(_) => Problem::not_found(detail),
                Refusal::Id(_) => bad_request("malformed-id", detail),
                Refusal::Columns(faults) => {
                    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-columns", detail)
                        .with("errors", faults)
                }
            }
        })
    }
}

fn command(
    operation_id: String,
    target: &Target<'_>,
    write: Write,
    claims: Option<Claims>,
    body_sha256: String,
) -> WriteCommand {
    let (principal, claims) = match claims {
        Some(claims) => (Some(claims.subject), Some(claims.all)),
        None => (None, None),
    };
    let now = OffsetDateTime::now_utc();
    WriteCommand {
        operation_id,
        table: target.table.clone(),
        op: write.op,
        entity_id: write.entity_id,
        data: write.data,
        principal,
        claims,
        accepted_at: now
            .format(&Rfc3339)
            .expect("the present has a four-digit year"),
        body_sha256,
        schema: target.schema.clone(),
    }
}

/// The whole body, if it is JSON and not too large.
async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let body = Limited::new(body, BODY_BYTES_MAX).collect();
    let body = match tokio::time::timeout(READ_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes");
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                detail,
            ));
        }
        Ok(Err(_)) => {
            return Err(bad_request(
                "malformed-body",
                "the body ended early".to_owned(),
            ));
        }
        Err(_) => {
            let detail = "the body did not arrive in time";
            return Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "body-timeout",
                detail,
            ));
        }
    };
    let is_json = match headers.get(CONTENT_TYPE).map(HeaderValue::to_str) {
        None => true,
        Some(Err(_)) => false,
        Some(Ok(text)) => {
            let media_type = text
                .split(';')
                .next()
                .unwrap_or("")
                .trim()
                .to_ascii_lowercase();
            media_type == "application/json" || media_type.ends_with("+json")
        }
    };
    if !is_json && !body.is_empty() {
        let detail = "the body must be application/json";
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "media-type",
            detail,
        ));
    }
    Ok(body)
}

fn pending(operation_id: &str, accepted: &Accepted, entity_id: Option<String>) -> Response {
    let mut body = json!({
        "status": "pending",
        "operationId": operation_id,
        "acceptedAt": accepted.accepted_at,
    });
    if let Some(entity_id) = entity_id {
        body["entityId"] = entity_id.into();
    }
    located(json_response(StatusCode::ACCEPTED, &body), operation_id)
}

fn finished(outcome: OperationStatus, accepted: Accepted, wait: Duration) -> Response {
    let outcome = OperationStatus {
        accepted_at: Some(accepted.accepted_at),
        ..outcome
    };
    let operation_id = outcome.operation_id.clone();
    let response = match outcome.status {
        Status::Failed => {
            let detail = outcome
                .error
                .as_ref()
                .map_or("the write failed", |error| &error.message);
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "write-failed", detail)
                .with("operation", &outcome)
                .into_response()
        }
        Status::Completed | Status::Pending => {
            let body = serde_json::to_value(&outcome).expect("a status is plain data");
            json_response(StatusCode::OK, &body)
        }
    };
    let mut response = located(response, &operation_id);
    let applied = HeaderValue::try_from(format!("wait={}", wait.as_secs()));
    response
        .headers_mut()
        .extend(applied.ok().map(|value| (prefer::APPLIED, value)));
    response
}

fn located(mut response: Response, operation_id: &str) -> Response {
    let location = HeaderValue::try_from(format!("/status/{operation_id}"));
    response
        .headers_mut()
        .insert(LOCATION, location.expect("a UUID is visible ASCII"));
    response
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    let content_type = HeaderValue::from_static("application/json");
    (status, [(CONTENT_TYPE, content_type)], body.to_string()).into_response()
}

fn bad_request(kind: &'static str, detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, kind, detail)
}

fn problem(refused: &Refused) -> Problem {
    let detail = refused.to_string();
    match *refused {
        Refused::KeyReused => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "key-reused", detail),
        Refused::TooLarge => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail),
        Refused::Busy { retry_after } => Problem::unavailable("busy", detail, retry_after),
        Refused::Full { retry_after } => Problem::unavailable("queue-full", detail, retry_after),
        Refused::BreakerOpen { retry_after } => {
            Problem::unavailable("breaker-open", detail, retry_after)
        }
        Refused::Unavailable(_) => {
            Problem::unavailable("queue-unavailable", detail, Duration::from_secs(1))
        }
    }
}
