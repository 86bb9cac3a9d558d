//! Decides what an error of PostgreSQL means for a write.
//!
//! In: the client's error, or a SQLSTATE. Out: one of four things to do.
//! Invariant: whatever is not the write's own fault is waited out, never dropped.

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, SqlState};

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The session is gone: open another and begin again.
    Lost,
    /// The server cannot do it now: wait, in order, for as long as it takes.
    Wait,
    /// It may succeed soon: the parent row may still be queued, or an internal error may pass.
    Soon,
    /// The write is wrong and stays wrong.
    Reject,
}

/// Sorts an error of any kind.
pub fn classify(error: &Error) -> Class {
    match error.as_db_error() {
        // The connection broke, or the server does not speak the protocol any more.
        None => Class::Lost,
        Some(error) if is_fatal(error) => Class::Lost,
        Some(error) => class_of(error.code().code()),
    }
}

/// The session ended without the server saying why: it may be the statement that kills it.
pub fn is_abrupt(error: &Error) -> bool {
    error
        .as_db_error()
        .is_none_or(|error| *error.code() == SqlState::CRASH_SHUTDOWN)
}

/// Sorts a SQLSTATE of a session that goes on.
pub fn class_of(code: &str) -> Class {
    match code {
        // Read-only: a failover is on its way. Lock, object in use: somebody else is at work.
        "25006" | "55P03" | "55006" => return Class::Wait,
        "23503" => return Class::Soon,
        _ => {}
    }
    match code.get(..2) {
        Some("08" | "57" | "58" | "40" | "53" | "28" | "3D") => Class::Wait,
        Some("XX") => Class::Soon,
        _ => Class::Reject,
    }
}

fn is_fatal(error: &DbError) -> bool {
    // The unlocalised severity; servers since 9.6 send it.
    error.parsed_severity().is_some_and(|severity| {
        use tokio_postgres::error::Severity;
        matches!(severity, Severity::Fatal | Severity::Panic)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_cannot_do_now_is_waited_out() {
        for code in [
            "08006", "40001", "40P01", "53100", "53300", "57014", "57P03", "58030", "25006",
            "55P03",
        ] {
            assert_eq!(class_of(code), Class::Wait, "{code}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_write_is_rejected() {
        for code in [
            "22P02", "22001", "23505", "23502", "23514", "42501", "42P01", "P0001", "0A000",
        ] {
            assert_eq!(class_of(code), Class::Reject, "{code}");
        }
    }

    #[test]
    fn a_missing_parent_may_come_soon() {
        assert_eq!(class_of("23503"), Class::Soon);
        assert_eq!(class_of("XX000"), Class::Soon);
    }
}
