//! Command line and environment, parsed once.
//!
//! In: arguments. Out: what the mirror was asked to do.
//! Invariant: nothing else of the mirror reads the environment or parses a flag.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use daemon::nats::{self, NatsOptions};
use daemon::telemetry::LogFormat;
use daemon::units;
use wire::SubjectPattern;

use crate::table::{self, TableName};

/// Keeps tables of PostgreSQL in a local SQLite file, through the streams of the bridge.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "mirror",
    version,
    about,
    after_help = "LOG_LEVEL sets the log's level.\n\nExit codes: 0 stopped, or caught up with --once; 1 gave up, for the reason printed; 2 wrong flags."
)]
pub struct Config {
    /// Tables to keep: users,sales.orders
    #[arg(
        long,
        alias = "table",
        required = true,
        value_delimiter = ',',
        value_name = "TABLES"
    )]
    pub tables: Vec<TableName>,
    /// SQLite file; made when missing
    #[arg(long, value_name = "FILE")]
    pub db: PathBuf,
    /// NATS: nats://user:password@host:port, several separated by commas
    #[arg(long, env = "NATS_URL", hide_env_values = true, value_name = "URL")]
    pub nats_url: Option<String>,
    /// Credentials file for NATS
    #[arg(long, env = "NATS_CREDS", value_name = "FILE")]
    pub nats_creds: Option<PathBuf>,
    /// Streams of the row changes and of the snapshots, as given to the bridge
    #[arg(long, value_name = "CDC,INIT", default_value = "CDC,INIT", value_parser = streams)]
    pub stream: Streams,
    /// First token of the subjects, as given to the bridge
    #[arg(long, value_name = "PREFIX", default_value = wire::subject::DEFAULT_PREFIX)]
    pub subject_prefix: String,
    /// Pattern of the subjects, as given to the bridge
    #[arg(long, value_name = "PATTERN")]
    pub subject: Option<String>,
    /// Exit when every change is here that was in the stream once the tables were seeded
    #[arg(long)]
    pub once: bool,
    /// How often progress is logged
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::duration)]
    pub progress: Duration,
    /// Log lines as text or json
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Names of the two streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streams {
    pub cdc: String,
    pub init: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Nats(#[from] nats::Error),
    #[error("--subject-prefix, --subject")]
    Subject(#[from] wire::subject::PatternError),
    #[error("--tables")]
    Tables(#[from] table::Error),
}

impl Config {
    pub fn nats(&self) -> Result<NatsOptions, Error> {
        Ok(NatsOptions::new(nats::Settings {
            url: self.nats_url.as_deref().filter(|url| !url.is_empty()),
            credentials: self.nats_creds.as_deref(),
            ..nats::Settings::default()
        })?)
    }

    pub fn subjects(&self) -> Result<SubjectPattern, Error> {
        Ok(match &self.subject {
            None => SubjectPattern::with_prefix(&self.subject_prefix)?,
            Some(pattern) => SubjectPattern::parse(pattern, &self.subject_prefix)?,
        })
    }

    /// The tables, each once.
    pub fn tables(&self) -> Result<Vec<TableName>, Error> {
        Ok(table::distinct(&self.tables)?)
    }
}

fn streams(text: &str) -> Result<Streams, String> {
    let (cdc, init) = text
        .split_once(',')
        .unwrap_or((text, wire::names::STREAM_INIT));
    let is_name = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b".*>/\\,".contains(&byte))
    };
    if is_name(cdc) && is_name(init) {
        Ok(Streams {
            cdc: cdc.to_owned(),
            init: init.to_owned(),
        })
    } else {
        Err("two stream names, such as CDC,INIT".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[&str]) -> Result<Config, clap::Error> {
        let basic = [
            "mirror",
            "--db",
            "local.db",
            "--tables",
            "users,sales.orders",
        ];
        Config::try_parse_from(basic.iter().chain(flags))
    }

    #[test]
    fn the_defaults_are_those_of_the_bridge() {
        let config = config(&[]).unwrap();

        assert_eq!(
            (config.stream.cdc.as_str(), config.stream.init.as_str()),
            ("CDC", "INIT")
        );
        assert_eq!(
            config.subjects().unwrap().filter("public", "users"),
            "cdc.users.*"
        );
        assert_eq!(config.tables().unwrap().len(), 2);
    }

    #[test]
    fn streams_are_named_as_for_the_bridge() {
        assert_eq!(config(&["--stream", "A"]).unwrap().stream.init, "INIT");
        assert_eq!(config(&["--stream", "A,B"]).unwrap().stream.init, "B");
        assert!(config(&["--stream", "A,B,C"]).is_err());
        assert!(config(&["--stream", "A.b"]).is_err());
    }
}
