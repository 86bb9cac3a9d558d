//! The gateway's flags and environment.
//!
//! In: the command line. Out: typed values. What must hold: without a key for tokens the gateway listens on loopback only.

use std::net::IpAddr;
use std::num::NonZeroUsize;

use clap::Parser;
use daemon::flags;
use daemon::nats;
use daemon::telemetry::LogFormat;
use daemon::units;

use crate::streams::Limits;

/// Takes writes over HTTP into JetStream.
#[derive(Debug, Clone, Parser)]
#[command(name = "gateway", version, about)]
pub struct Config {
    /// Where NATS is.
    #[command(flatten)]
    pub nats: flags::Nats,
    /// Address to listen on. Any but loopback needs --jwt-key-file.
    #[arg(long, env = "HOST", default_value = "127.0.0.1", value_parser = flags::host)]
    pub host: IpAddr,
    /// Port to listen on.
    #[arg(long, env = "PORT", default_value_t = 3000)]
    pub port: u16,
    /// Who may come in.
    #[command(flatten)]
    pub tokens: flags::Tokens,
    /// Requests a second for each principal; 0 is no limit. Without tokens there is one principal.
    #[arg(long, env = "RATE_LIMIT")]
    pub rate_limit: Option<u32>,
    /// Writes that may wait for JetStream at a time; more are answered 503.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..))]
    pub in_flight_max: u16,
    /// Connections at a time; more wait to be accepted.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..))]
    pub connections_max: u16,
    /// Threads that serve requests [default: half of the cores]. One takes some 40,000 writes a second.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Messages that a new WRITES stream may hold.
    #[arg(long, default_value_t = nats::WRITES_MAX)]
    pub queue_messages_max: u32,
    /// Bytes that a new WRITES stream may hold.
    #[arg(long, default_value = "1GiB", value_parser = units::bytes)]
    pub queue_bytes_max: u64,
    /// Idempotency keys to remember, for at most a day: between this many and half of them, in some 30 bytes of memory each.
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u32).range(10_000..))]
    pub keys_max: u32,
    /// First token of the CDC subjects, as given to the bridge.
    #[arg(long, default_value = wire::subject::DEFAULT_PREFIX)]
    pub cdc_prefix: String,
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
    /// The CDC prefix makes no subject.
    #[error("--cdc-prefix: {0}")]
    CdcPrefix(#[from] wire::subject::PatternError),
}

/// Requests a second for each principal with a token, unless said otherwise.
const RATE_LIMIT: u32 = 500;

impl Config {
    /// How large the streams may grow.
    pub fn limits(&self) -> Limits {
        Limits {
            queue_messages_max: self.queue_messages_max.into(),
            queue_bytes_max: i64::try_from(self.queue_bytes_max).unwrap_or(i64::MAX),
            keys_max: self.keys_max,
        }
    }

    /// Threads that serve requests. Who is woken on another core is woken late and at a price (2 of 25 us a write), and
    /// nats-server and the processor want cores too.
    pub fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.threads.map_or((cores / 2).max(1), usize::from)
    }

    /// Requests a second for each principal; None is no limit.
    pub fn rate_limit_per_s(&self) -> Option<u32> {
        let default = if self.tokens.jwt_key_file.is_some() {
            RATE_LIMIT
        } else {
            0
        };
        Some(self.rate_limit.unwrap_or(default)).filter(|limit| *limit > 0)
    }

    /// The subject of the change events of `table` in schema `public`.
    pub fn cdc_filter(&self, table: &str) -> Result<String, Error> {
        let pattern = wire::SubjectPattern::with_prefix(&self.cdc_prefix)?;
        Ok(pattern.filter(wire::names::PUBLIC, table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[&str]) -> Config {
        Config::try_parse_from([&["gateway"], flags].concat()).unwrap()
    }

    #[test]
    fn principals_with_tokens_are_limited_unless_said_otherwise() {
        assert_eq!(config(&[]).rate_limit_per_s(), None);
        assert_eq!(
            config(&["--jwt-key-file", "key"]).rate_limit_per_s(),
            Some(RATE_LIMIT)
        );
        let unlimited = config(&["--jwt-key-file", "key", "--rate-limit", "0"]);
        assert_eq!(unlimited.rate_limit_per_s(), None);
    }

    #[test]
    fn the_queue_is_by_default_as_large_as_the_processor_makes_it() {
        assert_eq!(config(&[]).limits().queue_bytes_max, nats::WRITES_BYTES_MAX);
    }

    #[test]
    fn the_outcomes_are_on_the_bridges_subjects() {
        let filter = |flags: &[&str]| config(flags).cdc_filter("write_operations");

        assert_eq!(filter(&[]).unwrap(), "cdc.write_operations.*");
        assert_eq!(
            filter(&["--cdc-prefix", "acme"]).unwrap(),
            "acme.write_operations.*"
        );
        assert!(
            filter(&["--cdc-prefix", "a b"])
                .unwrap_err()
                .to_string()
                .contains("--cdc-prefix")
        );
    }
}
