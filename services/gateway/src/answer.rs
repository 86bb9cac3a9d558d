//! What clients are told.
//!
//! In: what became of a request. Out: a response. What must hold: 202 means queued, 200 applied; a refusal says whether the
//! same request may come again.

use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use wire::command::{OperationStatus, Status};

use crate::Problem;
use crate::intake::{Accepted, Refused};
use crate::prefer;
use crate::write::Refusal;

/// 202: the write is in the queue.
pub fn pending(operation_id: &str, accepted: &Accepted, entity_id: Option<&str>) -> Response {
    let pending = Pending {
        status: Status::Pending,
        operation_id,
        accepted_at: &accepted.accepted_at,
        entity_id,
    };
    let body = serde_json::to_string(&pending).expect("plain text only");
    located(json_text(StatusCode::ACCEPTED, body), operation_id)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pending<'a> {
    status: Status,
    operation_id: &'a str,
    accepted_at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity_id: Option<&'a str>,
}

/// The outcome, to a client that waited for it: 200, or 422 when the write failed.
pub fn finished(outcome: OperationStatus, accepted: Accepted, wait: Duration) -> Response {
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

/// A JSON body.
pub fn json_response(status: StatusCode, body: &Value) -> Response {
    json_text(status, body.to_string())
}

fn json_text(status: StatusCode, body: String) -> Response {
    let content_type = HeaderValue::from_static("application/json");
    (status, [(CONTENT_TYPE, content_type)], body).into_response()
}

/// The write does not fit the table.
pub fn unfit(refusal: Refusal) -> Problem {
    let detail = refusal.to_string();
    match refusal {
        Refusal::NotAnObject(_) => Problem::bad_request("malformed-body", detail),
        Refusal::NotGranted { .. } => Problem::new(StatusCode::FORBIDDEN, "not-granted", detail),
        Refusal::NoKey(_) => Problem::not_found(detail),
        Refusal::Id(_) => Problem::bad_request("malformed-id", detail),
        Refusal::Columns(faults) => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-columns", detail)
                .with("errors", faults)
        }
    }
}

/// The write is not in the queue.
pub fn refused(refused: &Refused) -> Problem {
    let detail = refused.to_string();
    match *refused {
        Refused::KeyReused => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "key-reused", detail),
        Refused::TooLarge => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail),
        Refused::Busy { retry_after } => Problem::unavailable("busy", detail, retry_after),
        Refused::Full { retry_after } => Problem::unavailable("queue-full", detail, retry_after),
        Refused::BreakerOpen { retry_after } => {
            Problem::unavailable("breaker-open", detail, retry_after)
        }
        Refused::KeysUnread => Problem::unavailable("keys-unread", detail, Duration::from_secs(1)),
        Refused::Unavailable(_) => {
            Problem::unavailable("queue-unavailable", detail, Duration::from_secs(1))
        }
    }
}
