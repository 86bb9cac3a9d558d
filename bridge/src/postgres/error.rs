//! What can go wrong in a replication session, sorted by what to do about it.
//!
//! In: an ErrorResponse or a failed system call. Out: an error that knows whether a retry can help.
//! Invariant: a message for people says what to do next.

use std::io;

use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::ErrorFields;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot reach PostgreSQL at {address}; check --pg-url (DATABASE_URL) or PG_HOST and PG_PORT"
    )]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("connection to PostgreSQL is lost")]
    Lost(#[source] io::Error),
    #[error("PostgreSQL closed the connection")]
    Closed,
    #[error(
        "PostgreSQL asks for {0}, which the bridge does not speak; allow scram-sha-256 or md5 in pg_hba.conf"
    )]
    Authentication(String),
    #[error(
        "PostgreSQL asks for a password; set PG_PASSWORD or write it into --pg-url (DATABASE_URL)"
    )]
    NoPassword,
    #[error(
        "PostgreSQL refused the login or a privilege; the role needs LOGIN and REPLICATION, and a line in pg_hba.conf"
    )]
    Denied(#[source] Box<ServerError>),
    #[error("slot {slot} is in use")]
    SlotInUse {
        slot: String,
        #[source]
        source: Box<ServerError>,
    },
    #[error(
        "slot {slot} does not exist any more: changes since then may be lost; start the bridge again to make a new one, \
         and seed the consumers again"
    )]
    SlotMissing {
        slot: String,
        #[source]
        source: Box<ServerError>,
    },
    #[error(
        "slot {slot} is lost, PostgreSQL has removed WAL it needs (max_slot_wal_keep_size): drop it with \
         SELECT pg_drop_replication_slot('{slot}'), start the bridge again and seed the consumers again"
    )]
    SlotLost {
        slot: String,
        #[source]
        source: Box<ServerError>,
    },
    #[error(
        "slot {slot} is of another database or plugin; choose another --slot, or another database"
    )]
    WrongDatabase {
        slot: String,
        #[source]
        source: Box<ServerError>,
    },
    #[error("a publication is missing; CREATE PUBLICATION it, or check --publication")]
    PublicationMissing(#[source] Box<ServerError>),
    #[error("PostgreSQL refused")]
    Server(#[source] Box<ServerError>),
    #[error("PostgreSQL sent what is not its protocol: {0}")]
    Protocol(String),
}

/// The fields of an ErrorResponse (PostgreSQL: "Error and Notice Message Fields").
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
#[error("{severity}: {message} ({sqlstate}){}", self.trailer())]
pub struct ServerError {
    pub severity: String,
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl ServerError {
    pub(super) fn from_fields(mut fields: ErrorFields<'_>) -> Self {
        let mut error = Self::default();
        while let Ok(Some(field)) = fields.next() {
            let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'S' => error.severity = text,
                b'C' => error.sqlstate = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
        }
        error
    }

    fn trailer(&self) -> String {
        let parts = [&self.detail, &self.hint];
        parts
            .into_iter()
            .flatten()
            .map(|part| format!("; {part}"))
            .collect()
    }
}

impl Error {
    /// Sorts a server's error; `slot` is the one asked for, if one was.
    pub(super) fn of_server(error: ServerError, slot: Option<&str>) -> Self {
        let error = Box::new(error);
        let slot_name = || slot.unwrap_or_default().to_owned();
        let says = |text: &str| error.message.contains(text);
        match error.sqlstate.as_str() {
            "55006" => Self::SlotInUse {
                slot: slot_name(),
                source: error,
            },
            "42704" if says("publication") => Self::PublicationMissing(error),
            "42704" if slot.is_some() => Self::SlotMissing {
                slot: slot_name(),
                source: error,
            },
            // PostgreSQL: the words changed between 13 and 18, the class did not.
            "55000" if says("not created in this database") || says("output plugin") => {
                Self::WrongDatabase {
                    slot: slot_name(),
                    source: error,
                }
            }
            "55000"
                if says("can no longer")
                    || says("invalidated")
                    || says("cannot read from logical replication slot") =>
            {
                Self::SlotLost {
                    slot: slot_name(),
                    source: error,
                }
            }
            "28000" | "28P01" | "3D000" | "42501" => Self::Denied(error),
            _ => Self::Server(error),
        }
    }

    /// Whether trying again can help without anybody doing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Lost(_)
            | Self::Closed
            | Self::SlotInUse { .. }
            | Self::Protocol(_) => true,
            // Starting up, shutting down, out of connections, out of slots' WAL senders: all pass.
            Self::Server(_) => true,
            Self::Authentication(_)
            | Self::NoPassword
            | Self::Denied(_)
            | Self::SlotMissing { .. }
            | Self::SlotLost { .. }
            | Self::WrongDatabase { .. }
            | Self::PublicationMissing(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(sqlstate: &str, message: &str) -> Error {
        let error = ServerError {
            sqlstate: sqlstate.into(),
            message: message.into(),
            ..ServerError::default()
        };
        Error::of_server(error, Some("cdc_slot"))
    }

    #[test]
    fn what_the_servers_say_is_sorted_by_what_to_do() {
        assert!(matches!(
            sorted("55006", "replication slot \"cdc_slot\" is active for PID 1"),
            Error::SlotInUse { .. }
        ));
        assert!(matches!(
            sorted("42704", "replication slot \"cdc_slot\" does not exist"),
            Error::SlotMissing { .. }
        ));
        assert!(matches!(
            sorted("42704", "publication \"cdc_pub\" does not exist"),
            Error::PublicationMissing(_)
        ));
        assert!(matches!(
            sorted(
                "55000",
                "can no longer get changes from replication slot \"cdc_slot\""
            ),
            Error::SlotLost { .. }
        ));
        assert!(matches!(
            sorted(
                "55000",
                "can no longer access replication slot \"cdc_slot\""
            ),
            Error::SlotLost { .. }
        ));
        assert!(matches!(
            sorted(
                "55000",
                "replication slot \"cdc_slot\" was not created in this database"
            ),
            Error::WrongDatabase { .. }
        ));
        assert!(sorted("57P03", "the database system is starting up").is_retryable());
        assert!(!sorted("28P01", "password authentication failed").is_retryable());
    }
}
