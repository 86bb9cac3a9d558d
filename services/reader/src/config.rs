//! The reader's flags and environment.
//!
//! In: the command line. Out: typed values.
//! Invariant: without a key for tokens the reader listens on loopback only.

use std::net::IpAddr;
use std::time::Duration;

use clap::Parser;
use daemon::flags;
use daemon::secret::Secret;
use daemon::telemetry::LogFormat;
use daemon::units;

/// Reads over HTTP: cached rows that changes keep fresh, live changes, and the status of writes.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "reader",
    version,
    about,
    after_help = "The user of --pg-url must be a member of role app_reader."
)]
pub struct Config {
    /// Where NATS is.
    #[command(flatten)]
    pub nats: flags::Nats,
    /// Where PostgreSQL is.
    #[command(flatten)]
    pub postgres: flags::Postgres,
    /// Redis as redis://[user:password@]host:port[/db]. Without it nothing is cached.
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_parser = flags::secret)]
    pub redis_url: Option<Secret>,
    /// Address to listen on. Any but loopback needs --jwt-key-file.
    #[arg(long, env = "HOST", default_value = "127.0.0.1", value_parser = flags::host)]
    pub host: IpAddr,
    /// Port to listen on.
    #[arg(long, env = "PORT", default_value_t = 3001)]
    pub port: u16,
    /// Who may come in.
    #[command(flatten)]
    pub tokens: flags::Tokens,
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
    /// Nobody can be let in like this.
    #[error(transparent)]
    Access(#[from] flags::AccessError),
    /// NATS cannot be named like this.
    #[error(transparent)]
    Nats(#[from] daemon::nats::Error),
    /// PostgreSQL cannot be named like this.
    #[error(transparent)]
    Postgres(#[from] daemon::postgres::Error),
    /// The URL of Redis. It is not shown: it may hold a password.
    #[error("cannot read --redis-url (REDIS_URL); write redis://host:6379")]
    Redis(#[source] redis::RedisError),
    /// The CDC prefix makes no subject.
    #[error("--cdc-prefix: {0}")]
    CdcPrefix(#[from] wire::subject::PatternError),
}

impl Config {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[&str]) -> Config {
        Config::try_parse_from([&["reader"], flags].concat()).unwrap()
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
