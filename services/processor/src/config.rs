//! The processor's flags and environment.
//!
//! In: the command line. Out: typed values.
//! Invariant: an outcome is kept longer than a message can stay in `WRITES`, or a late repeat would
//! be applied again.

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use daemon::flags;
use daemon::telemetry::LogFormat;
use daemon::units;

use crate::worker::Limits;

/// Applies the writes in JetStream to PostgreSQL, each exactly once and in order.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "processor",
    version,
    about,
    after_help = "The user of --pg-url must be a member of role app_writer."
)]
pub struct Config {
    /// What to do; without a command it processes writes.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Connections.
    #[command(flatten)]
    pub connections: Connections,
    /// Address to listen on for /health and /metrics.
    #[arg(long, env = "HOST", default_value = "127.0.0.1", value_parser = flags::host)]
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
    /// Where NATS is.
    #[command(flatten)]
    pub nats: flags::Nats,
    /// Where PostgreSQL is.
    #[command(flatten)]
    pub postgres: flags::Postgres,
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
