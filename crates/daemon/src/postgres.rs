//! Says where PostgreSQL is and how to log in.
//!
//! In: the values of flags and environment. Out: a `tokio_postgres::Config`, or the bare parts for a session of one's
//! own. What must hold: every session formats values alike ([`PINNED_GUCS`]), whatever ALTER ROLE or ALTER DATABASE set,
//! and a connection that was to be encrypted is never made in plain text.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, NoTls};

use crate::secret::Secret;

/// Settings that decide how PostgreSQL writes values as text, sent in the startup packet of every session.
/// (`client_encoding=UTF8` belongs to them; tokio-postgres always sends it itself.)
pub const PINNED_GUCS: [(&str, &str); 6] = [
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
];

/// A TCP connection must stand within this.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A session (connection, login) must stand within this.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(20);

/// Values as they came from flags and environment, none of them checked yet.
#[derive(Debug, Default, Clone, Copy)]
pub struct Settings<'a> {
    /// `--pg-url`, `DATABASE_URL`: a `postgres://` URL or libpq's `key=value` form. The other fields are then read only
    /// for a password that it leaves out.
    pub url: Option<&'a Secret>,
    /// `PG_HOST`: a name, an address, or a directory (starting with `/`) with the server's socket.
    pub host: Option<&'a str>,
    /// `PG_PORT`.
    pub port: Option<&'a str>,
    /// `PG_USER`.
    pub user: Option<&'a str>,
    /// `PG_PASSWORD`.
    pub password: Option<&'a Secret>,
    /// `PG_DB`; the user's name when absent, as everywhere in PostgreSQL.
    pub database: Option<&'a str>,
}

/// Why the values make no sense, or the session did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a URL nor `key=value` pairs. The text is not shown: it may hold a password.
    #[error("cannot read the PostgreSQL connection string, check --pg-url (DATABASE_URL)")]
    Url(#[source] tokio_postgres::Error),
    /// Not a port.
    #[error("{0:?} is not a port, check PG_PORT")]
    Port(String),
    /// More than one host: a replication slot lives on one server.
    #[error("--pg-url (DATABASE_URL) names several hosts; name one")]
    SeveralHosts,
    /// The connection string asks for encryption.
    #[error(
        "TLS is not supported yet, but --pg-url (DATABASE_URL) asks for it; say sslmode=disable and use a Unix socket, \
         loopback or a tunnel"
    )]
    Tls,
    /// The server cannot be reached or refuses the login.
    #[error("cannot open a session with PostgreSQL at {address}")]
    Connect {
        /// Where.
        address: String,
        /// What the client says.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No session within [`SESSION_TIMEOUT`].
    #[error("no session with PostgreSQL at {address} within {SESSION_TIMEOUT:?}")]
    Timeout {
        /// Where.
        address: String,
    },
}

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Over TCP.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// On a Unix socket: the path of the socket itself (`/run/postgresql/.s.PGSQL.5432`).
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(formatter, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(formatter, "{host}:{port}"),
            Self::Unix(path) => write!(formatter, "{}", path.display()),
        }
    }
}

/// Where PostgreSQL is and how to log in. `{}` and `{:?}` show it without the password.
#[derive(Clone)]
pub struct PostgresOptions {
    config: Config,
    address: Address,
    user: String,
    password: Option<Secret>,
    database: String,
}

impl PostgresOptions {
    /// Checks the values. Without any it is user `postgres` at `localhost:5432`.
    pub fn new(settings: Settings<'_>) -> Result<Self, Error> {
        let mut config = match settings.url {
            Some(url) => parse(url.expose())?,
            None => from_parts(settings)?,
        };
        match config.get_ssl_mode() {
            SslMode::Disable | SslMode::Prefer => config.ssl_mode(SslMode::Disable),
            _ => return Err(Error::Tls),
        };
        let address = address(&mut config)?;
        let user = config.get_user().unwrap_or("postgres").to_owned();
        let database = config.get_dbname().unwrap_or(&user).to_owned();
        if config.get_password().is_none()
            && let Some(password) = settings.password
        {
            config.password(password.expose());
        }
        let password = config
            .get_password()
            .map(|password| Secret::from(String::from_utf8_lossy(password).into_owned()));

        // Ours come last: of two settings of one name the server takes the later.
        let pinned: Vec<_> = PINNED_GUCS
            .iter()
            .map(|(name, value)| format!("-c {name}={value}"))
            .collect();
        let options = [config.get_options().unwrap_or(""), &pinned.join(" ")].join(" ");
        config
            .user(&user)
            .dbname(&database)
            .options(options.trim_start())
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        Ok(Self {
            config,
            address,
            user,
            password,
            database,
        })
    }

    /// The same from `DATABASE_URL`, `PG_HOST`, `PG_PORT`, `PG_USER`, `PG_PASSWORD` and `PG_DB`; an empty variable counts
    /// as unset.
    pub fn from_env() -> Result<Self, Error> {
        let value = |name| {
            std::env::var(name)
                .ok()
                .filter(|value: &String| !value.is_empty())
        };
        let url = value("DATABASE_URL").map(Secret::from);
        let password = value("PG_PASSWORD").map(Secret::from);
        Self::new(Settings {
            url: url.as_ref(),
            host: value("PG_HOST").as_deref(),
            port: value("PG_PORT").as_deref(),
            user: value("PG_USER").as_deref(),
            password: password.as_ref(),
            database: value("PG_DB").as_deref(),
        })
    }

    /// Where the server listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The role to log in as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Its password, where one was given.
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// The database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The configuration of a session that `pg_stat_activity` shows as `application_name`.
    pub fn config(&self, application_name: &str) -> Config {
        let mut config = self.config.clone();
        config.application_name(application_name);
        config
    }

    /// Opens a session. Its connection runs in a task of its own until the client is dropped or the connection breaks;
    /// await [`Closed`] to hear of it. No reconnect here; the caller's supervisor does that.
    pub async fn connect(&self, application_name: &str) -> Result<(Client, Closed), Error> {
        let config = self.config(application_name);
        let address = || self.address.to_string();
        let session = tokio::time::timeout(SESSION_TIMEOUT, config.connect(NoTls))
            .await
            .map_err(|_| Error::Timeout { address: address() })?
            .map_err(|source| Error::Connect {
                address: address(),
                source,
            })?;
        let (client, connection) = session;
        Ok((client, Closed(tokio::spawn(connection))))
    }
}

impl fmt::Display for PostgresOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = if self.password.is_some() { ":***" } else { "" };
        write!(
            formatter,
            "{}{password}@{}/{}",
            self.user, self.address, self.database
        )
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PostgresOptions({self})")
    }
}

/// Resolves when the session's connection has ended: to `Ok` after the client was dropped, else to the error that
/// broke it. Dropping this changes nothing.
#[derive(Debug)]
pub struct Closed(JoinHandle<Result<(), tokio_postgres::Error>>);

impl Future for Closed {
    type Output = Result<(), tokio_postgres::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The task is never aborted; a runtime that is shutting down ends it, and nobody is left to hear of it.
        Pin::new(&mut self.0)
            .poll(context)
            .map(|joined| joined.unwrap_or(Ok(())))
    }
}

fn parse(url: &str) -> Result<Config, Error> {
    // tokio-postgres does not know the stricter modes and would call them invalid.
    let verifies = ["verify-ca", "verify-full", "allow"]
        .iter()
        .any(|mode| url.contains(&format!("sslmode={mode}")));
    match url.parse::<Config>() {
        Ok(config) => Ok(config),
        Err(_) if verifies => Err(Error::Tls),
        Err(error) => Err(Error::Url(error)),
    }
}

fn from_parts(settings: Settings<'_>) -> Result<Config, Error> {
    let mut config = Config::new();
    config.host(settings.host.unwrap_or("localhost"));
    if let Some(text) = settings.port {
        config.port(text.parse().map_err(|_| Error::Port(text.to_owned()))?);
    }
    if let Some(user) = settings.user {
        config.user(user);
    }
    if let Some(database) = settings.database {
        config.dbname(database);
    }
    Ok(config)
}

/// The one place to connect to; makes `localhost` explicit where nothing was said.
fn address(config: &mut Config) -> Result<Address, Error> {
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        config.host("localhost");
    }
    let port = match config.get_ports() {
        [] => 5432,
        [port] => *port,
        _ => return Err(Error::SeveralHosts),
    };
    match (config.get_hosts(), config.get_hostaddrs()) {
        ([Host::Unix(directory)], []) => {
            Ok(Address::Unix(directory.join(format!(".s.PGSQL.{port}"))))
        }
        ([Host::Tcp(host)], []) => Ok(Address::Tcp {
            host: host.clone(),
            port,
        }),
        ([] | [_], [address]) => Ok(Address::Tcp {
            host: address.to_string(),
            port,
        }),
        _ => Err(Error::SeveralHosts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_url(url: &str) -> Result<PostgresOptions, Error> {
        PostgresOptions::new(Settings {
            url: Some(&Secret::from(url)),
            ..Settings::default()
        })
    }

    #[test]
    fn without_settings_it_is_postgres_at_localhost() {
        let options = PostgresOptions::new(Settings::default()).unwrap();

        assert_eq!(options.to_string(), "postgres@localhost:5432/postgres");
        assert_eq!(options.password(), None);
    }

    #[test]
    fn the_parts_make_the_whole() {
        let password = Secret::from("hunter2");
        let options = PostgresOptions::new(Settings {
            host: Some("db.internal"),
            port: Some("5433"),
            user: Some("bridge_reader"),
            password: Some(&password),
            database: Some("shop"),
            ..Settings::default()
        })
        .unwrap();

        assert_eq!(
            options.to_string(),
            "bridge_reader:***@db.internal:5433/shop"
        );
        assert_eq!(
            format!("{options:?}"),
            format!("PostgresOptions({options})")
        );
        assert_eq!(options.password(), Some(&password));
        assert_eq!(
            options.config("bridge").get_application_name(),
            Some("bridge")
        );
    }

    #[test]
    fn a_directory_as_host_is_a_unix_socket() {
        let options = PostgresOptions::new(Settings {
            host: Some("/run/postgresql"),
            port: Some("5433"),
            ..Settings::default()
        })
        .unwrap();

        let socket = PathBuf::from("/run/postgresql/.s.PGSQL.5433");
        assert_eq!(options.address(), &Address::Unix(socket));
    }

    #[test]
    fn urls_and_key_value_strings_say_the_same() {
        for text in [
            "postgres://bridge:hunter2@db:5433/shop?application_name=x",
            "host=db port=5433 user=bridge password=hunter2 dbname=shop",
        ] {
            let options = from_url(text).unwrap();

            assert_eq!(options.to_string(), "bridge:***@db:5433/shop");
            assert_eq!(options.password().unwrap().expose(), "hunter2");
        }
    }

    #[test]
    fn a_url_may_leave_the_password_to_the_environment() {
        let (url, password) = (
            Secret::from("postgres://bridge@db"),
            Secret::from("hunter2"),
        );
        let options = PostgresOptions::new(Settings {
            url: Some(&url),
            password: Some(&password),
            host: Some("ignored"),
            ..Settings::default()
        })
        .unwrap();

        assert_eq!(options.to_string(), "bridge:***@db:5432/bridge");
    }

    #[test]
    fn the_formats_are_pinned_after_the_users_own_options() {
        let options = from_url("host=db options='-c TimeZone=CET -c work_mem=1MB'").unwrap();

        assert_eq!(
            options.config("test").get_options(),
            Some(
                "-c TimeZone=CET -c work_mem=1MB -c TimeZone=UTC -c DateStyle=ISO \
                 -c IntervalStyle=postgres -c extra_float_digits=1 -c bytea_output=hex \
                 -c lc_monetary=C"
            )
        );
    }

    #[test]
    fn encryption_that_was_asked_for_is_refused_and_not_dropped() {
        for mode in ["require", "verify-ca", "verify-full"] {
            let error = from_url(&format!("postgres://db/shop?sslmode={mode}")).unwrap_err();
            assert!(matches!(error, Error::Tls), "{mode}");
            assert!(error.to_string().contains("--pg-url"));
        }
        for mode in ["disable", "prefer"] {
            from_url(&format!("postgres://db/shop?sslmode={mode}")).unwrap();
        }
    }

    #[test]
    fn nonsense_is_refused_without_showing_it() {
        let error = from_url("postgres://u:hunter2@db:port/shop").unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");

        assert!(matches!(from_url("host=a,b"), Err(Error::SeveralHosts)));
        let port = Settings {
            port: Some("54x"),
            ..Settings::default()
        };
        assert!(matches!(PostgresOptions::new(port), Err(Error::Port(_))));
    }

    #[test]
    fn an_ipv6_address_is_shown_in_brackets() {
        let options = from_url("host=::1 user=u").unwrap();

        assert_eq!(options.to_string(), "u@[::1]:5432/u");
    }
}
