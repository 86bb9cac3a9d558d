//! The reader's flags and environment.
//!
//! In: the command line. Out: typed values.
//! Invariant: without a key for tokens the reader listens on loopback only.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use daemon::nats::{self, NatsOptions};
use daemon::postgres::{self, PostgresOptions};
use daemon::secret::Secret;
use daemon::telemetry::LogFormat;
use daemon::units;

use crate::access::Access;

/// Reads over HTTP: cached rows that changes keep fresh, live changes, and the status of writes.
#[derive(Debug, Clone, Parser)]
#[command(name = "reader", version, about)]
pub struct Config {
    /// NATS servers, separated by commas.
    #[arg(
        long,
        env = "NATS_URL",
        default_value = "nats://localhost:4222",
        hide_env_values = true
    )]
    pub nats_url: String,
    /// Credentials file for NATS.
    #[arg(long, env = "NATS_CREDS")]
    pub nats_creds: Option<PathBuf>,
    /// PostgreSQL as a URL; PG_HOST, PG_PORT, PG_USER, PG_PASSWORD and PG_DB are read without it. The
    /// user must be a member of app_reader.
    #[arg(long = "pg-url", env = "DATABASE_URL", hide_env_values = true, value_parser = secret)]
    pub pg_url: Option<Secret>,
    /// Redis as redis://[user:password@]host:port[/db]. Without it nothing is cached.
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_parser = secret)]
    pub redis_url: Option<Secret>,
    /// Address to listen on. Any but loopback needs --jwt-key-file.
    #[arg(long, env = "HOST", default_value = "127.0.0.1", value_parser = host)]
    pub host: IpAddr,
    /// Port to listen on.
    #[arg(long, env = "PORT", default_value_t = 3001)]
    pub port: u16,
    /// File with a PEM public key, a JWK set or a shared secret: every request then needs a token.
    #[arg(long, env = "JWT_KEY_FILE")]
    pub jwt_key_file: Option<PathBuf>,
    /// Issuer that tokens must name.
    #[arg(long, env = "JWT_ISSUER", requires = "jwt_key_file")]
    pub jwt_issuer: Option<String>,
    /// Audience that tokens must name.
    #[arg(long, env = "JWT_AUDIENCE", requires = "jwt_key_file")]
    pub jwt_audience: Option<String>,
    /// Sessions with PostgreSQL: the cap on what a missing cache can ask of it.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub pg_sessions_max: u16,
    /// Requests that may wait for a session; more are answered 503.
    #[arg(long, default_value_t = 256)]
    pub pg_waiting_max: u16,
    /// A query may take this long.
    #[arg(long, default_value = "5s", value_parser = units::duration)]
    pub pg_timeout: Duration,
    /// A cached answer is thrown away after this, changed or not.
    #[arg(long, default_value = "5m", value_parser = units::duration)]
    pub cache_ttl: Duration,
    /// A Redis that takes longer to answer is slower than none, and is done without.
    #[arg(long, default_value = "250ms", value_parser = units::duration)]
    pub redis_timeout: Duration,
    /// Durable consumer of the change stream, shared by the readers of one Redis.
    #[arg(long, default_value = "reader-cache")]
    pub consumer: String,
    /// Clients of /changes at a time; more are answered 503.
    #[arg(long, default_value_t = 1000)]
    pub live_max: u16,
    /// Connections at a time; more wait to be accepted.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u16).range(1..))]
    pub connections_max: u16,
    /// First token of the CDC subjects, as given to the bridge.
    #[arg(long, default_value = wire::subject::DEFAULT_PREFIX)]
    pub cdc_prefix: String,
    /// Stream of the changes, as given to the bridge.
    #[arg(long, default_value = wire::names::STREAM_CDC)]
    pub cdc_stream: String,
    /// Log lines as text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// The values make no sense together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Strangers could read.
    #[error(
        "without tokens the reader listens on loopback only: give --jwt-key-file, or --host 127.0.0.1"
    )]
    Open,
    /// The key cannot be used.
    #[error(transparent)]
    Jwt(#[from] daemon::jwt::LoadError),
    /// NATS cannot be named like this.
    #[error(transparent)]
    Nats(#[from] nats::Error),
    /// PostgreSQL cannot be named like this.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// The URL of Redis. It is not shown: it may hold a password.
    #[error("cannot read --redis-url (REDIS_URL); write redis://host:6379")]
    Redis(#[source] redis::RedisError),
    /// The CDC prefix makes no subject.
    #[error("--cdc-prefix: {0}")]
    CdcPrefix(#[from] wire::subject::PatternError),
}

impl Config {
    /// Who may come in. Reads the key file.
    pub fn access(&self) -> Result<Access, Error> {
        match &self.jwt_key_file {
            Some(path) => {
                let verifier = daemon::jwt::Verifier::from_file(path)?;
                let (issuer, audience) = (self.jwt_issuer.clone(), self.jwt_audience.clone());
                Ok(Access::Token(verifier.expecting(issuer, audience)))
            }
            None if self.host.is_loopback() => Ok(Access::Local),
            None => Err(Error::Open),
        }
    }

    /// Where NATS is.
    pub fn nats(&self) -> Result<NatsOptions, Error> {
        Ok(NatsOptions::new(nats::Settings {
            url: Some(&self.nats_url),
            credentials: self.nats_creds.as_deref(),
            ..nats::Settings::default()
        })?)
    }

    /// Where PostgreSQL is.
    pub fn postgres(&self) -> Result<PostgresOptions, Error> {
        Ok(match &self.pg_url {
            Some(url) => PostgresOptions::new(postgres::Settings {
                url: Some(url),
                ..postgres::Settings::default()
            })?,
            None => PostgresOptions::from_env()?,
        })
    }

    /// Where Redis is; None without one.
    pub fn redis(&self) -> Result<Option<redis::Client>, Error> {
        let url = self.redis_url.as_ref().map(Secret::expose);
        url.filter(|url| !url.is_empty())
            .map(|url| redis::Client::open(url).map_err(Error::Redis))
            .transpose()
    }

    /// How change events are addressed.
    pub fn subjects(&self) -> Result<wire::SubjectPattern, Error> {
        Ok(wire::SubjectPattern::with_prefix(&self.cdc_prefix)?)
    }
}

fn host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        _ => text
            .parse()
            .map_err(|_| "must be an IP address or localhost".to_owned()),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "clap asks for a Result")]
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[&str]) -> Config {
        Config::try_parse_from([&["reader"], flags].concat()).unwrap()
    }

    #[test]
    fn strangers_are_kept_out_without_a_key() {
        assert!(matches!(
            config(&["--host", "0.0.0.0"]).access(),
            Err(Error::Open)
        ));
        assert!(matches!(config(&[]).access(), Ok(Access::Local)));
    }

    #[test]
    fn no_password_is_printed() {
        let flags = [
            "--pg-url",
            "postgresql://app:hunter2@db/app",
            "--redis-url",
            "redis://:hunter2@cache",
        ];

        assert!(!format!("{:?}", config(&flags)).contains("hunter2"));
    }
}
