//! What a request asks for.
//!
//! In: method, path, headers, body. Out: a table and what to do with it, and the body's bytes. What must hold: no client
//! can make us keep more than [`BODY_BYTES_MAX`] or wait longer than the read timeout.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use bytes::Bytes;
use daemon::http::READ_TIMEOUT;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use wire::names;
use wire::schema::Schema;

use crate::Problem;
use crate::write::{self, Extent, Refusal, Write};

/// Largest request body.
pub const BODY_BYTES_MAX: usize = 256 << 10;

/// Readiness.
pub const HEALTH: &str = "/health";
/// Prometheus.
pub const METRICS: &str = "/metrics";
/// The API's description.
pub const OPENAPI: &str = "/openapi.json";
const FIXED_PATHS: [&str; 3] = [HEALTH, METRICS, OPENAPI];

/// What a request's method and path name.
#[derive(Debug)]
pub struct Target<'a> {
    /// The table's schema.
    pub schema: String,
    /// The table.
    pub table: String,
    path: &'a str,
    action: Action<'a>,
}

#[derive(Debug)]
enum Action<'a> {
    Create,
    Update(&'a str, Extent),
    Delete(&'a str),
}

impl<'a> Target<'a> {
    /// Reads `/{table}` and `/{table}/{id}`.
    pub fn new(method: &Method, uri_path: &'a str) -> Result<Self, Problem> {
        let nothing = || Problem::not_found("paths are /{table} and /{table}/{id}");
        let path = uri_path.strip_prefix('/').ok_or_else(nothing)?;
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
            (_, None) => return Err(Problem::method_not_allowed(allow(uri_path))),
            (_, Some(_)) => return Err(Problem::method_not_allowed("PATCH, PUT, DELETE")),
        };
        Ok(Self {
            schema,
            table,
            path: uri_path,
            action,
        })
    }

    /// The write that the body describes, if it fits the table.
    pub fn write(&self, schema: &Schema, body: &[u8]) -> Result<Write, Refusal> {
        match self.action {
            Action::Create => write::create(schema, body),
            Action::Update(id, extent) => write::update(schema, id, body, extent),
            Action::Delete(id) => write::delete(schema, id),
        }
    }

    /// There is no such table. A path of our own then has other methods.
    pub fn no_table(&self) -> Problem {
        if FIXED_PATHS.contains(&self.path) {
            Problem::method_not_allowed(allow(self.path))
        } else {
            Problem::not_found("there is no such table")
        }
    }
}

/// The methods of a path without an id.
fn allow(path: &str) -> &'static str {
    if FIXED_PATHS.contains(&path) {
        "GET, HEAD"
    } else {
        "POST"
    }
}

/// The whole body, if it is JSON and not too large.
pub async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
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
            return Err(Problem::bad_request(
                "malformed-body",
                "the body ended early",
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
