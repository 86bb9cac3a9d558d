//! Errors as clients read them (RFC 9457, `application/problem+json`).
//!
//! In: what went wrong. Out: a response. What must hold: every answer outside 2xx has this form, says what to do, and
//! says nothing about our insides.

use std::marker::PhantomData;
use std::time::Duration;

use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

/// Who answers.
pub trait Service {
    /// What the `type` of its problems begins with, such as `urn:gateway`.
    const URN: &'static str;
}

/// One error of a service.
#[derive(Debug)]
pub struct Problem<S> {
    status: StatusCode,
    kind: &'static str,
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    extensions: Map<String, Value>,
    service: PhantomData<fn() -> S>,
}

impl<S: Service> Problem<S> {
    /// `kind` names the error for programs: `type` is `{URN}:{kind}`.
    pub fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            detail: detail.into(),
            headers: Vec::new(),
            extensions: Map::new(),
            service: PhantomData,
        }
    }

    /// 400.
    pub fn bad_request(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, kind, detail)
    }

    /// 404.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// 405 with the methods that are allowed.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let detail = format!("the method must be one of {allow}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail)
            .header(ALLOW, HeaderValue::from_static(allow))
    }

    /// 401 with the scheme that is wanted.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
            .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// 503: nothing was decided, the same request may be repeated after so long.
    pub fn unavailable(
        kind: &'static str,
        detail: impl Into<String>,
        retry_after: Duration,
    ) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, kind, detail).retry_after(retry_after)
    }

    /// Adds `Retry-After`, in whole seconds, at least one.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Self {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.header(RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }

    /// Adds a member to the body.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Serialize) -> Self {
        let value = serde_json::to_value(value).expect("extensions are plain data");
        self.extensions.insert(name.to_owned(), value);
        self
    }

    /// The status it will be answered with.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The last part of its `type`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl<S: Service> IntoResponse for Problem<S> {
    fn into_response(self) -> Response {
        let mut body = self.extensions;
        body.insert(
            "type".to_owned(),
            format!("{}:{}", S::URN, self.kind).into(),
        );
        body.insert("title".to_owned(), self.status.canonical_reason().into());
        body.insert("status".to_owned(), self.status.as_u16().into());
        body.insert("detail".to_owned(), self.detail.into());
        let mut response = Response::new(Value::Object(body).to_string().into());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.extend(self.headers);
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    struct Shop;

    impl Service for Shop {
        const URN: &'static str = "urn:shop";
    }

    #[tokio::test]
    async fn a_problem_names_its_type_status_and_headers() {
        let retry_after = Duration::from_millis(1200);
        let problem =
            Problem::<Shop>::unavailable("busy", "try later", retry_after).with("inFlight", 500);

        let response = problem.into_response();

        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["type"], "urn:shop:busy");
        assert_eq!(body["inFlight"], 500);
    }
}
