//! The command line of the bench.

use std::path::PathBuf;

use clap::{ArgGroup, Parser, ValueEnum};
use regex_lite::Regex;
use stack::{NatsVersion, PostgresVersion};

/// Boots PostgreSQL and nats-server, runs the bridge over known loads, and prints what it did beside
/// what the machine can do at most.
#[derive(Debug, Parser)]
#[command(name = "bench-e2e")]
#[command(group(ArgGroup::new("peer_count").args(["peer_metric", "peer_stream"]).multiple(true)))]
pub struct Arguments {
    /// What to measure [default: all]
    #[arg(value_enum)]
    pub scenarios: Vec<Scenario>,
    /// How often each figure is taken; the median is printed
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Rows of the backlog
    #[arg(long, default_value_t = 2_000_000)]
    pub rows: u64,
    /// Rows of the one large transaction
    #[arg(long, default_value_t = 5_000_000)]
    pub large_rows: u64,
    /// Seconds of each live rate
    #[arg(long, default_value_t = 10)]
    pub live_seconds: u64,
    /// A tenth of the rows and a third of the live seconds, once each
    #[arg(long)]
    pub quick: bool,
    /// nats-server: installed is whatever is found, else Debian's
    #[arg(long, value_enum, default_value = "installed")]
    pub nats: NatsVersion,
    /// PostgreSQL: installed is whatever is found, else Debian's
    #[arg(long, value_enum, default_value = "installed")]
    pub postgres: PostgresVersion,
    /// PostgreSQL waits for the disk, as in production
    #[arg(long)]
    pub fsync: bool,
    /// Bridge to measure [default: built with this program's profile]
    #[arg(long, value_name = "PATH")]
    pub bridge: Option<PathBuf>,
    /// More arguments for the bridge, separated by spaces
    #[arg(long, value_name = "ARGUMENTS", allow_hyphen_values = true)]
    pub bridge_args: Option<String>,
    /// Another build of the bridge to drain the same backlogs in turn with the first; an empty PATH is
    /// the first itself. May be given several times
    #[arg(long, value_name = "NAME=PATH ARGUMENTS", value_parser = Variant::parse)]
    pub variant: Vec<Variant>,
    /// Another program to drain the same backlog, run by `sh -c`. {pg_host} {pg_port} {pg_user}
    /// {pg_password} {pg_database} {pg_url} {nats_url} {slot} {publication} {port} are filled in
    #[arg(long, value_name = "COMMAND", requires = "peer_count")]
    pub peer: Option<String>,
    /// Its count of events done: the first group of the last match, in what it prints or serves
    /// [default: the messages in its streams]
    #[arg(long, value_name = "REGEX")]
    pub peer_metric: Option<Regex>,
    /// Where it serves its metrics, such as http://127.0.0.1:{port}/metrics [default: what it prints]
    #[arg(long, value_name = "URL")]
    pub peer_metrics_url: Option<String>,
    /// Makes the streams it needs: NAME=SUBJECT, several separated by commas
    #[arg(long, value_name = "NAME=SUBJECT", value_delimiter = ',')]
    pub peer_stream: Vec<String>,
    /// Write every value as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the rates as a picture
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

/// A build of the bridge, or other arguments for it, under a name.
#[derive(Debug, Clone, Default)]
pub struct Variant {
    pub name: String,
    pub path: Option<PathBuf>,
    pub arguments: Vec<String>,
}

impl Variant {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (name, command) = text.split_once('=').ok_or("write NAME=PATH ARGUMENTS")?;
        let (path, arguments) = command.split_once(' ').unwrap_or((command, ""));
        Ok(Self {
            name: name.to_owned(),
            path: (!path.is_empty()).then(|| PathBuf::from(path)),
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Start to first event, idle memory, size of the binary.
    Start,
    /// nats-server alone, fed ready-made messages in each publish mode.
    Publish,
    /// Backlog in 10-row transactions, beside the floors.
    Drain10,
    /// Backlog in 1,000-row transactions, beside the floors.
    Drain1000,
    /// Backlog in one COPY, beside the floors.
    DrainCopy,
    /// Single-row commits at 1,000, 5,000 and 20,000 per second: latency.
    Live,
    /// Backlog of rows of 50 columns.
    Wide,
    /// Backlog of rows of 20 kB.
    Fat,
    /// Backlog over 1,000 tables.
    Tables,
    /// One large transaction: memory stays flat, progress moves.
    Large,
    /// Several bridges side by side, a table and a stream each.
    Several,
    /// Snapshots beside bare COPY, and row changes meanwhile.
    Snapshot,
}

impl Arguments {
    /// With what `--quick` and an empty list of scenarios stand for.
    pub fn from_process() -> Self {
        let mut arguments = Self::parse_from(stack::arguments());
        if arguments.quick {
            arguments.runs = 1;
            arguments.rows /= 10;
            arguments.large_rows /= 10;
            arguments.live_seconds = arguments.live_seconds.div_ceil(3);
        }
        if arguments.scenarios.is_empty() {
            arguments.scenarios = Scenario::value_variants().to_vec();
        }
        arguments
    }
}
