//! Decides who a request speaks for.
//!
//! In: the `Authorization` header. Out: a principal with its claims, or a refusal. What must hold: without a key there is
//! no stranger to serve, because the service then listens on loopback only (see `flags::Tokens`).
//!
//! What a principal may do is PostgreSQL's to say: the claims are set in the transaction that reads or writes.

use std::time::SystemTime;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

use crate::jwt::{Claims, Verifier};
use crate::problem::{Problem, Service};

/// Who may come in.
#[derive(Debug)]
pub enum Access {
    /// Everybody on this machine.
    Local,
    /// Who has a good token.
    Token(Verifier),
}

impl Access {
    /// The claims of the request's token; None where nobody is asked.
    pub fn claims<S: Service>(
        &self,
        headers: &HeaderMap,
        now: SystemTime,
    ) -> Result<Option<Claims>, Problem<S>> {
        let verifier = match self {
            Self::Local => return Ok(None),
            Self::Token(verifier) => verifier,
        };
        let token = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim_start())
            .ok_or_else(|| Problem::unauthorized("send Authorization: Bearer <token>"))?;
        let claims = verifier.verify(token, now);
        claims
            .map(Some)
            .map_err(|error| Problem::unauthorized(error.to_string()))
    }
}
