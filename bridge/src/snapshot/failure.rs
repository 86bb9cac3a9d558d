//! Why there is no snapshot, in the contract's words.
//!
//! In: errors of PostgreSQL and NATS, refusals. Out: `wire::snapshot::Error`.
//! Invariant: every failure says what to do about it, and none repeats a row's values.

use daemon::chained::Chained;
use tokio_postgres::error::SqlState;
use wire::snapshot::{self, ErrorCode};

use crate::catalog;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    pub code: ErrorCode,
    pub error: String,
    pub hint: String,
}

impl Failure {
    pub fn new(code: ErrorCode, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code,
            error: error.into(),
            hint: hint.into(),
        }
    }

    pub fn unavailable(error: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unavailable, error, "ask again later")
    }

    pub fn cancelled() -> Self {
        Self::new(ErrorCode::Cancelled, "somebody cancelled the snapshot", "")
    }

    /// As it goes to `init.error.{table}` and to the requester.
    pub fn message(&self, schema: &str, table: &str, snapshot_id: Option<&str>) -> snapshot::Error {
        snapshot::Error {
            table: table.to_owned(),
            snapshot_id: snapshot_id.map(str::to_owned),
            code: self.code,
            error: self.error.clone(),
            hint: self.hint.clone(),
            schema: schema.to_owned(),
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(refusal) = error.as_db_error() else {
            return Self::unavailable(format!("PostgreSQL went away: {}", Chained(&error)));
        };
        let state = refusal.code();
        let (code, hint) = match state {
            &SqlState::INSUFFICIENT_PRIVILEGE => (
                ErrorCode::Denied,
                "GRANT SELECT ON the table TO the bridge's role",
            ),
            &SqlState::LOCK_NOT_AVAILABLE => (
                ErrorCode::LockTimeout,
                "another session holds an exclusive lock on the table; ask again when it is done",
            ),
            &SqlState::UNDEFINED_TABLE
            | &SqlState::UNDEFINED_COLUMN
            | &SqlState::UNDEFINED_OBJECT => (
                ErrorCode::TableChanged,
                "the table was dropped or altered meanwhile; ask again if it is still there",
            ),
            // Data exceptions: only the bounds of `where` are the requester's.
            state if state.code().starts_with("22") => (
                ErrorCode::BadRequest,
                "write the bounds of `where` as PostgreSQL prints values of that column",
            ),
            _ => (ErrorCode::Unavailable, "see the log of PostgreSQL"),
        };
        let error = format!("PostgreSQL: {} ({})", refusal.message(), state.code());
        Self::new(code, error, hint)
    }
}

impl From<catalog::Error> for Failure {
    fn from(error: catalog::Error) -> Self {
        match error {
            catalog::Error::Query(error) => error.into(),
            catalog::Error::Connect(error) => {
                Self::unavailable(format!("cannot reach PostgreSQL: {}", Chained(&error)))
            }
        }
    }
}
