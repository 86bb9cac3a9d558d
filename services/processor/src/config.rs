//! The processor's flags and environment.
//!
//! In: the command line. Out: typed values.
//! Invariant: an outcome is kept longer than a message can stay in `WRITES`, or a late repeat would
//! be applied again.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use daemon::nats::{self, NatsOptions};
use daemon::postgres::{self, PostgresOptions};
use daemon::secret::Secret;
use daemon::telemetry::LogFormat;
use daemon::units;

use crate::worker::Limits;

/// Applies the writes in JetStream to PostgreSQL, each exactly once and in order.
#[derive(Debug, Clone, Parser)]
#[command(name = "processor", version, about)]
pub struct Config {
    /// What to do; without a command it processes writes.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Connections.
    #[command(flatten)]
    pub connections: Connections,
    /// Address to listen on for /health and /metrics.
    #[arg(long, env = "HOST", default_value = "127.0.0.1", value_parser = host)]
    pub host: IpAddr,
    /// Port to listen on for /health and /metrics.
    #[arg(long, env = "PORT", default_value_t = 3002)]
    pub port: u16,
    /// Writes in one transaction at most.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_max: u16,
    /// How long a create may wait for the row it refers to.
    #[arg(long, default_value = "30s", value_parser = units::duration)]
    pub parent_patience: Duration,
    /// How long outcomes are kept.
    #[arg(long, default_value = "30d", value_parser = units::duration)]
    pub retention: Duration,
    /// How often to look for new tables.
    #[arg(long, default_value = "2s", value_parser = units::duration)]
    pub discover_interval: Duration,
    /// Log lines as text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Where the servers are.
#[derive(Debug, Clone, Args)]
pub struct Connections {
    /// NATS servers, separated by commas.
    #[arg(
        long,
        env = "NATS_URL",
        default_value = "nats://localhost:4222",
        hide_env_values = true,
        global = true
    )]
    pub nats_url: String,
    /// Credentials file for NATS.
    #[arg(long, env = "NATS_CREDS", global = true)]
    pub nats_creds: Option<PathBuf>,
    /// PostgreSQL as a URL; PG_HOST, PG_PORT, PG_USER, PG_PASSWORD and PG_DB are read without it. The
    /// user must be a member of app_writer.
    #[arg(long = "pg-url", env = "DATABASE_URL", hide_env_values = true, global = true, value_parser = secret)]
    pub pg_url: Option<Secret>,
}

/// What else it can do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Looks after the writes that could not be applied.
    Dlq {
        /// What to do with them.
        #[command(subcommand)]
        action: DlqAction,
    },
}

/// What to do with dead letters.
#[derive(Debug, Clone, Subcommand)]
pub enum DlqAction {
    /// Prints them as JSON, one a line.
    List,
    /// Puts them back into the queue and forgets that they failed.
    Replay(Selection),
    /// Deletes them; their operations stay failed.
    Drop(Selection),
}

/// Which dead letters.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Selection {
    /// Operation ids.
    pub operation_ids: Vec<String>,
    /// Every one.
    #[arg(long)]
    pub all: bool,
}

impl Config {
    /// How the workers work.
    pub fn limits(&self) -> Limits {
        Limits {
            batch_max: self.batch_max.into(),
            parent_patience: self.parent_patience,
        }
    }
}

impl Connections {
    /// Where NATS is.
    pub fn nats(&self) -> Result<NatsOptions, nats::Error> {
        NatsOptions::new(nats::Settings {
            url: Some(&self.nats_url),
            credentials: self.nats_creds.as_deref(),
            ..nats::Settings::default()
        })
    }

    /// Where PostgreSQL is.
    pub fn postgres(&self) -> Result<PostgresOptions, postgres::Error> {
        match &self.pg_url {
            Some(url) => PostgresOptions::new(postgres::Settings {
                url: Some(url),
                ..postgres::Settings::default()
            }),
            None => PostgresOptions::from_env(),
        }
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

    #[test]
    fn the_password_of_the_url_is_not_printed() {
        let url = "postgresql://app:hunter2@db/app";

        let config = Config::try_parse_from(["processor", "--pg-url", url]).unwrap();

        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn dead_letters_are_named_or_all_of_them_meant() {
        let parse =
            |words: &[&str]| Config::try_parse_from([&["processor", "dlq"], words].concat());

        assert!(parse(&["replay"]).is_err());
        assert!(parse(&["replay", "--all"]).is_ok());
        assert!(parse(&["drop", "7d1e", "7d1f"]).is_ok());
        assert!(parse(&["drop", "7d1e", "--all"]).is_err());
    }
}
