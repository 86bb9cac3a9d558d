//! What can go wrong with a session, told apart by what helps.
//!
//! In: I/O errors and the server's ErrorResponse. Out: an `Error` whose text names the remedy.
//! Invariant: PostgreSQL's words, which may be in any language, are only looked at where SQLSTATE and
//! routine do not decide. What is wrong with a slot the catalogue has told before (see `slot`): the words
//! serve a slot that is lost between its answer and START_REPLICATION.

use std::fmt;
use std::io;

/// The session or the stream ended. The supervisor decides what happens next; see `is_retryable`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot connect to PostgreSQL at {endpoint}")]
    Connect { endpoint: String, source: io::Error },
    #[error("connection to PostgreSQL failed")]
    Io(#[source] io::Error),
    #[error("PostgreSQL closed the connection")]
    Closed,
    #[error("PostgreSQL is not available: {0}")]
    Unavailable(Box<ServerError>),
    #[error(
        "PostgreSQL has no connection left: {0}; raise max_connections or max_wal_senders if it stays so"
    )]
    TooManyConnections(Box<ServerError>),
    #[error("replication slot is in use: {0}; standing by until it is free")]
    SlotInUse(Box<ServerError>),

    #[error("PostgreSQL refused the login: {0}; check PG_USER, PG_PASSWORD and pg_hba.conf")]
    Authentication(Box<ServerError>),
    #[error("PostgreSQL asks for a password; set PG_PASSWORD")]
    PasswordMissing,
    #[error("PostgreSQL could not prove that it knows the password (SCRAM)")]
    Scram(#[source] io::Error),
    #[error(
        "PostgreSQL asks for authentication method {0}; use scram-sha-256 for this user in pg_hba.conf"
    )]
    UnsupportedAuthentication(u32),
    #[error("privilege missing: {0}; the user needs REPLICATION, and SELECT on the tables")]
    Privilege(Box<ServerError>),
    #[error(
        "logical decoding is off: {0}; ALTER SYSTEM SET wal_level = logical and restart the server"
    )]
    WalLevel(Box<ServerError>),
    #[error("replication slot exists already: {0}")]
    SlotExists(Box<ServerError>),
    #[error(
        "replication slot is missing: {0}; changes since it was dropped are lost. Start with --on-slot-loss resnapshot to go on with a new slot, tell consumers of the gap and make new snapshots"
    )]
    SlotMissing(Box<ServerError>),
    #[error(
        "replication slot is lost: {0}; the WAL it needs is gone (see max_slot_wal_keep_size). Start with --on-slot-loss resnapshot to go on with a new slot, tell consumers of the gap and make new snapshots"
    )]
    SlotLost(Box<ServerError>),
    #[error("replication slot belongs to another database: {0}; check PG_DB or --slot")]
    WrongDatabase(Box<ServerError>),
    #[error("publication is missing: {0}; CREATE PUBLICATION it or check --publication")]
    PublicationMissing(Box<ServerError>),
    #[error("PostgreSQL reported: {0}")]
    Server(Box<ServerError>),
    #[error("the server does not speak the PostgreSQL protocol: expected {expected}")]
    Protocol { expected: &'static str },
}

impl Error {
    /// Whether the same attempt may succeed later without anyone doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Io(_)
            | Self::Closed
            | Self::Unavailable(_)
            | Self::TooManyConnections(_)
            | Self::SlotInUse(_) => true,
            Self::Server(error) => error.is_passing(),
            Self::Authentication(_)
            | Self::PasswordMissing
            | Self::Scram(_)
            | Self::UnsupportedAuthentication(_)
            | Self::Privilege(_)
            | Self::WalLevel(_)
            | Self::SlotExists(_)
            | Self::SlotMissing(_)
            | Self::SlotLost(_)
            | Self::WrongDatabase(_)
            | Self::PublicationMissing(_)
            | Self::Protocol { .. } => false,
        }
    }
}

/// An ErrorResponse. PostgreSQL: "Error and Notice Message Fields".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    /// Not localised: ERROR, FATAL or PANIC.
    pub severity: String,
    pub sqlstate: String,
    /// In the server's `lc_messages`.
    pub message: String,
    pub detail: String,
    pub hint: String,
    /// The function in PostgreSQL's source that reported it.
    pub routine: String,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)?;
        for more in [&self.detail, &self.hint] {
            if !more.is_empty() {
                write!(f, ". {}", more.trim_end_matches('.'))?;
            }
        }
        Ok(())
    }
}

impl ServerError {
    /// What was seen in the catalogue, before the server had to say it.
    pub fn own(sqlstate: &str, message: String) -> Box<Self> {
        Box::new(Self {
            sqlstate: sqlstate.to_owned(),
            message,
            ..Self::default()
        })
    }

    /// Reads the fields it knows; a malformed body gives what came before the damage.
    pub(super) fn parse(body: &[u8]) -> Self {
        let mut error = Self::default();
        for field in body.split(|&byte| byte == 0) {
            let Some((code, value)) = field.split_first() else {
                break;
            };
            let slot = match code {
                b'V' => &mut error.severity,
                b'C' => &mut error.sqlstate,
                b'M' => &mut error.message,
                b'D' => &mut error.detail,
                b'H' => &mut error.hint,
                b'R' => &mut error.routine,
                _ => continue,
            };
            *slot = String::from_utf8_lossy(value).into_owned();
        }
        error
    }

    /// Says what the error means for a replication session.
    pub(super) fn classify(self) -> Error {
        let this = Box::new(self);
        match this.sqlstate.as_str() {
            "55006" => Error::SlotInUse(this),
            "42710" => Error::SlotExists(this),
            "42704" if this.is_about_a_publication() => Error::PublicationMissing(this),
            "42704" => Error::SlotMissing(this),
            "55000" if this.routine == "CheckLogicalDecodingRequirements" => Error::WalLevel(this),
            // PostgreSQL: up to 15 a standby does not decode; it may be promoted.
            "0A000" if this.routine == "CheckLogicalDecodingRequirements" => {
                Error::Unavailable(this)
            }
            "55000" if this.message.contains("was not created in this database") => {
                Error::WrongDatabase(this)
            }
            "55000" if this.is_about_an_invalidated_slot() => Error::SlotLost(this),
            // PostgreSQL: "requested WAL segment ... has already been removed".
            "58P01"
                if this.message.contains("WAL segment")
                    || ["WalSndSegmentOpen", "CheckXLogRemoved"].contains(&&*this.routine) =>
            {
                Error::SlotLost(this)
            }
            "28000" | "28P01" => Error::Authentication(this),
            "42501" => Error::Privilege(this),
            "53300" => Error::TooManyConnections(this),
            // Shutting down, crashed, starting up.
            "57P01" | "57P02" | "57P03" => Error::Unavailable(this),
            _ => Error::Server(this),
        }
    }

    fn is_about_a_publication(&self) -> bool {
        self.routine.starts_with("get_publication") || self.message.starts_with("publication ")
    }

    /// PostgreSQL: 13 says "cannot read from logical replication slot", 14 to 17 "can no longer
    /// get changes from replication slot", 18 "can no longer access replication slot"; the detail
    /// says "invalidated" in each.
    fn is_about_an_invalidated_slot(&self) -> bool {
        self.message.contains("can no longer ")
            || self
                .message
                .starts_with("cannot read from logical replication slot")
            || self.detail.contains("invalidated")
    }

    /// Classes of trouble that the server's administrator or time may end: connection,
    /// transaction rollback, resources, intervention, system, internal. A limit of the
    /// configuration and a missing file stay.
    fn is_passing(&self) -> bool {
        let class = self.sqlstate.get(..2).unwrap_or_default();
        matches!(class, "08" | "40" | "53" | "57" | "58" | "XX")
            && !matches!(self.sqlstate.as_str(), "53400" | "58P01")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_error(sqlstate: &str, message: &str, detail: &str, routine: &str) -> ServerError {
        let body = format!(
            "SFEHLER\0VERROR\0C{sqlstate}\0M{message}\0D{detail}\0Fslot.c\0L1\0R{routine}\0\0"
        );
        ServerError::parse(body.as_bytes())
    }

    #[test]
    fn an_error_response_is_read_field_by_field() {
        let error = server_error("42704", "no such thing", "because.", "f");

        assert_eq!(error.severity, "ERROR");
        assert_eq!(error.routine, "f");
        assert_eq!(error.to_string(), "no such thing (SQLSTATE 42704). because");
    }

    #[test]
    fn a_damaged_error_response_gives_what_is_there() {
        for body in [b"".as_slice(), b"\0\0", b"C42", b"M\xFF\xFE\0\0garbage"] {
            let _ = ServerError::parse(body).classify();
        }
        assert_eq!(ServerError::parse(b"C42704\0Mno").message, "no");
    }

    #[test]
    fn every_wording_of_a_lost_slot_is_known() {
        let wordings = [
            (
                "cannot read from logical replication slot \"s\"",
                "This slot has been invalidated because it exceeded the maximum reserved size.",
            ),
            (
                "can no longer get changes from replication slot \"s\"",
                "This slot has never previously reserved WAL, or it has been invalidated.",
            ),
            (
                "can no longer access replication slot \"s\"",
                "This replication slot has been invalidated due to \"wal_removed\".",
            ),
        ];
        for (message, detail) in wordings {
            let error = server_error("55000", message, detail, "").classify();
            assert!(matches!(error, Error::SlotLost(_)), "{error}");
            assert!(!error.is_retryable());
        }
    }

    #[test]
    fn a_missing_publication_is_told_from_a_missing_slot_in_any_language() {
        let publication = server_error(
            "42704",
            "Publikation »p« existiert nicht",
            "",
            "get_publication_oid",
        );
        let slot = server_error(
            "42704",
            "Replikations-Slot »s« existiert nicht",
            "",
            "ReplicationSlotAcquire",
        );

        assert!(matches!(
            publication.classify(),
            Error::PublicationMissing(_)
        ));
        assert!(matches!(slot.classify(), Error::SlotMissing(_)));
    }

    #[test]
    fn a_server_that_starts_up_is_worth_another_try_and_a_wrong_password_is_not() {
        let starting = server_error("57P03", "the database system is starting up", "", "");
        let password = server_error("28P01", "password authentication failed", "", "");

        assert!(starting.classify().is_retryable());
        assert!(!password.classify().is_retryable());
    }
}
