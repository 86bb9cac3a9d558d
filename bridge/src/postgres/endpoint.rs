//! Where PostgreSQL is, who we are there, and which settings every connection pins.
//!
//! In: configuration. Out: plain values and the parameters of the startup packet.
//! Invariant: the password shows up in no `Debug` output.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use daemon::postgres::PINNED_GUCS;

/// How long the server waits for our status before it drops the session, unless told otherwise.
/// Sent in the startup packet, so that no server-wide setting is needed.
pub const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(30);

/// How to reach a database.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub host: Host,
    pub port: u16,
    pub user: String,
    pub password: Option<String>,
    pub database: String,
    /// Shown in `pg_stat_replication` and `pg_stat_activity`.
    pub application_name: String,
    /// Bounds each address tried, and each wait for the server until the session is ready.
    pub connect_timeout: Duration,
}

/// The two ways PostgreSQL listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name or an address.
    Tcp(String),
    /// The directory of the socket `.s.PGSQL.<port>`.
    Unix(PathBuf),
}

impl From<&str> for Host {
    /// As libpq reads a host: what starts with a slash is a directory.
    fn from(host: &str) -> Self {
        if host.starts_with('/') {
            Self::Unix(host.into())
        } else {
            Self::Tcp(host.to_owned())
        }
    }
}

impl Endpoint {
    /// The parameters of a replication session's startup packet.
    pub(super) fn startup_parameters<'a>(
        &'a self,
        wal_sender_timeout: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        [
            ("user", self.user.as_str()),
            ("database", &self.database),
            ("application_name", &self.application_name),
            ("replication", "database"),
            ("wal_sender_timeout", wal_sender_timeout),
            ("client_encoding", "UTF8"),
        ]
        .into_iter()
        .chain(PINNED_GUCS)
    }
}

/// The address, for messages.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp(host) => write!(f, "{host}:{}", self.port),
            Host::Unix(directory) => {
                write!(f, "{}/.s.PGSQL.{}", directory.display(), self.port)
            }
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "hidden"))
            .field("database", &self.database)
            .field("application_name", &self.application_name)
            .field("connect_timeout", &self.connect_timeout)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(host: &str) -> Endpoint {
        Endpoint {
            host: host.into(),
            port: 5432,
            user: "bridge_reader".into(),
            password: Some("s3cret".into()),
            database: "shop".into(),
            application_name: "bridge".into(),
            connect_timeout: Duration::from_secs(5),
        }
    }

    #[test]
    fn the_password_is_not_in_the_debug_output() {
        let text = format!("{:?}", endpoint("localhost"));

        assert!(text.contains("bridge_reader"));
        assert!(!text.contains("s3cret"));
    }

    #[test]
    fn a_host_that_is_a_path_is_a_unix_socket() {
        assert_eq!(endpoint("db.example").to_string(), "db.example:5432");
        let unix = endpoint("/run/postgresql");
        assert_eq!(unix.to_string(), "/run/postgresql/.s.PGSQL.5432");
    }
}
