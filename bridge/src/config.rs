//! Command line and environment, parsed once into typed values.
//!
//! In: arguments and variables. Out: `Config`, printed at the start with its secrets hidden.
//! Invariant: nothing else of the bridge reads the environment or parses a flag.

use std::time::Duration;

use clap::{CommandFactory as _, Parser, ValueEnum};
use daemon::chained::Chained;
use daemon::nats::{self, NatsOptions};
use daemon::postgres::{self, PostgresOptions};
use daemon::secret::Secret;
use daemon::units;
use wire::{Lsn, SubjectPattern};

use crate::durability::Durability;
use crate::publish::{mode, oversize};
use crate::ring::Budget;
use crate::slot::OnLoss;
use crate::tools::Tool;

/// Streams the row changes of PostgreSQL tables into NATS JetStream, once and in order.
#[derive(Debug, Parser)]
#[command(
    name = "bridge",
    version,
    after_help = "PostgreSQL is also found through PG_HOST PG_PORT PG_USER PG_PASSWORD PG_DB,\n\
        NATS through NATS_HOST NATS_BRIDGE_USER NATS_BRIDGE_PASSWORD; LOG_LEVEL sets the log's level.\n\n\
        Exit codes: 0 drained, 2 wrong flags, 3 stopped before everything was stored (WAL replays it),\n\
        10 slot missing, 11 slot lost, 12 slot of another database, 13 publication missing,\n\
        14 wal_level is not logical, 15 PostgreSQL refused the login or a privilege is missing,\n\
        16 PostgreSQL is another cluster than the stream's, or was restored to an earlier point."
)]
#[allow(clippy::struct_excessive_bools, reason = "flags are what they are")]
pub struct Arguments {
    #[command(subcommand)]
    tool: Option<Tool>,
    /// Streams for row changes and snapshots; made when missing
    #[arg(
        long,
        global = true,
        value_name = "CDC,INIT",
        default_value = "CDC,INIT",
        value_delimiter = ',',
        num_args = 1
    )]
    stream: Vec<String>,
    /// Replicas of the streams and buckets made here: 3 in a cluster outlive the loss of a server
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    stream_replicas: u8,
    /// Replication slot; made when missing. A second bridge on the same slot stands by
    #[arg(long, global = true, default_value = "cdc_slot")]
    slot: String,
    /// Publications that say which tables, columns and rows
    #[arg(long, global = true, default_value = "cdc_pub", value_delimiter = ',')]
    publication: Vec<String>,
    /// Only these of the published tables: users,orders or sales.orders [default: all]
    #[arg(
        id = "tables",
        long = "table",
        global = true,
        value_name = "TABLE",
        value_delimiter = ','
    )]
    table: Vec<String>,
    /// Make the publication for the tables of --table when it is missing
    #[arg(long, requires = "tables")]
    create_publication: bool,
    /// Port of /health, /status, /metrics and /shutdown, on the loopback address
    #[arg(long, env = "BRIDGE_PORT", default_value_t = 9090)]
    port: u16,
    /// PostgreSQL: postgres://user:password@host:port/database or key=value pairs
    #[arg(
        long,
        global = true,
        env = "DATABASE_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pg_url: Option<String>,
    /// NATS: nats://user:password@host:port, several separated by commas
    #[arg(
        long,
        global = true,
        env = "NATS_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    nats_url: Option<String>,
    /// First token of the subjects
    #[arg(long, global = true, value_name = "PREFIX", default_value = wire::subject::DEFAULT_PREFIX)]
    subject_prefix: String,
    /// Pattern of the subjects, from {prefix} {schema} {table} {op}
    /// [default: {prefix}.{table}.{op}, with {schema} in front of {table} outside public]
    #[arg(long, global = true, value_name = "PATTERN")]
    subject: Option<String>,
    /// How messages are published; auto goes by the server's version and the stream's settings
    #[arg(long, global = true, value_enum, default_value_t = PublishModeArgument::Auto)]
    publish_mode: PublishModeArgument,
    /// Write a Nats-Msg-Id in every mode; msg-id mode always does
    #[arg(long)]
    msg_id: bool,
    /// What becomes of an event that no message can hold
    #[arg(long, value_enum, default_value_t = OversizeArgument::Park)]
    oversize: OversizeArgument,
    /// When PostgreSQL may forget an event: once acked, once NATS has surely synced it to disk (`held`),
    /// or at once because NATS syncs each message (`fsync`, needs `sync_interval: always`)
    #[arg(long, global = true, value_enum, default_value_t = Durability::Held)]
    durability: Durability,
    /// How long `held` holds [default: 10s more than NATS's sync_interval, 130s where that is not known]
    #[arg(long, global = true, value_name = "TIME", value_parser = units::duration)]
    hold: Option<Duration>,
    /// Monitoring port of NATS, which tells its sync_interval [default: port 8222 of the first server]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    nats_monitoring: Option<String>,
    /// Go on with a stream that was purged or made anew, telling consumers of the gap
    #[arg(long)]
    accept_stream_reset: bool,
    /// What becomes of changes when the slot was lost or dropped
    #[arg(long, value_enum, default_value_t = OnLoss::Halt)]
    on_slot_loss: OnLoss,
    /// Move the slot ahead at the start: changes committed before are left out, and consumers told
    #[arg(long, value_name = "LSN")]
    skip_to_lsn: Option<Lsn>,
    /// Time to store what was read when asked to stop
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::duration)]
    drain_timeout: Duration,
    /// Events between decoder and ack
    #[arg(long, value_name = "EVENTS", default_value_t = 32_768)]
    ring_events: usize,
    /// Bytes between decoder and ack
    #[arg(long, value_name = "SIZE", default_value = "2MiB", value_parser = units::bytes)]
    ring_bytes: u64,
    /// Snapshots made at a time
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    snapshot_workers: u8,
    /// Rows in a chunk of a snapshot at most
    #[arg(long, value_name = "ROWS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    snapshot_chunk_rows: u32,
    /// How a log line looks
    #[arg(long, value_enum, default_value_t = LogArgument::Text)]
    log_format: LogArgument,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PublishModeArgument {
    /// What costs the server least and is exact.
    Auto,
    /// Each message names the one before it.
    Chain,
    /// Fast-ingest batches; nats-server 2.14 and a stream with allow_batched.
    Fast,
    /// A message id and an ack for each; repeats are dropped within the duplicate window only.
    MsgId,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OversizeArgument {
    /// Body into Object Store bucket `oversize`, a stub into the stream.
    Park,
    /// Wait there until the limit is raised.
    Halt,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogArgument {
    Text,
    Json,
}

/// What the bridge was asked to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// Do this and end; without it, stream.
    pub tool: Option<Tool>,
    pub postgres: PostgresOptions,
    pub nats: NatsOptions,
    pub cdc_stream: String,
    pub init_stream: String,
    /// Of streams and buckets that are made; existing ones keep theirs.
    pub stream_replicas: usize,
    pub slot: String,
    pub publications: Vec<String>,
    pub tables: TableFilter,
    pub create_publication: bool,
    pub port: u16,
    pub subjects: SubjectPattern,
    pub publish_mode: mode::Wanted,
    pub has_msg_id: bool,
    pub oversize: oversize::Policy,
    pub durability: Durability,
    /// How long an acked event's WAL is kept, where that was said.
    pub hold: Option<Duration>,
    /// `host:port`.
    pub nats_monitoring: String,
    pub accepts_stream_reset: bool,
    pub on_slot_loss: OnLoss,
    /// Leave out what was committed before.
    pub skip_to_lsn: Option<Lsn>,
    pub drain_timeout: Duration,
    pub ring: Budget,
    pub snapshot_workers: usize,
    pub snapshot_chunk_rows: usize,
    pub log_format: daemon::telemetry::LogFormat,
}

/// Which published tables the bridge streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableFilter {
    /// `table` for schema public, `schema.table` for any; empty admits all.
    names: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "--stream takes the streams for changes and for snapshots, such as CDC,INIT; got {0:?}"
    )]
    Streams(String),
    #[error("{flag} {name:?} has characters that JetStream does not allow in a stream's name")]
    StreamName { flag: &'static str, name: String },
    #[error("slot {0:?} is no slot name: up to 63 of a-z, 0-9 and _ (--slot)")]
    Slot(String),
    #[error("--{0} names nothing between two commas")]
    Empty(&'static str),
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error(transparent)]
    Nats(#[from] nats::Error),
    #[error(transparent)]
    Subject(#[from] wire::subject::PatternError),
}

impl Config {
    /// From this process's arguments and environment. Wrong flags end the process with exit code 2
    /// and a hint, `--help` with 0.
    pub fn from_process() -> Self {
        let arguments = Arguments::parse();
        match Self::new(arguments, |name| {
            std::env::var(name).ok().filter(|value| !value.is_empty())
        }) {
            Ok(config) => config,
            Err(error) => {
                eprintln!(
                    "error: {}\n\nFor more information, try '--help'.",
                    Chained(&error)
                );
                std::process::exit(2);
            }
        }
    }

    fn new(arguments: Arguments, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let secret = |text: Option<String>| text.map(Secret::from);
        let pg_url = secret(arguments.pg_url.filter(|url| !url.is_empty()));
        let pg_password = secret(variable("PG_PASSWORD"));
        let postgres = PostgresOptions::new(postgres::Settings {
            url: pg_url.as_ref(),
            host: variable("PG_HOST").as_deref(),
            port: variable("PG_PORT").as_deref(),
            user: variable("PG_USER").as_deref(),
            password: pg_password.as_ref(),
            database: variable("PG_DB").as_deref(),
        })?;
        let nats_password = secret(variable("NATS_BRIDGE_PASSWORD"));
        let nats = NatsOptions::new(nats::Settings {
            url: arguments.nats_url.as_deref().filter(|url| !url.is_empty()),
            host: variable("NATS_HOST").as_deref(),
            user: variable("NATS_BRIDGE_USER").as_deref(),
            password: nats_password.as_ref(),
            credentials: None,
        })?;
        let [cdc_stream, init_stream] = streams(&arguments.stream)?;
        let subjects = match &arguments.subject {
            None => SubjectPattern::with_prefix(&arguments.subject_prefix)?,
            Some(pattern) => SubjectPattern::parse(pattern, &arguments.subject_prefix)?,
        };
        let is_slot_byte =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if !(1..=63).contains(&arguments.slot.len()) || !arguments.slot.bytes().all(is_slot_byte) {
            return Err(Error::Slot(arguments.slot));
        }
        for (flag, values) in [
            ("publication", &arguments.publication),
            ("table", &arguments.table),
        ] {
            if values.iter().any(String::is_empty) {
                return Err(Error::Empty(flag));
            }
        }
        Ok(Self {
            tool: arguments.tool,
            postgres,
            cdc_stream,
            init_stream,
            stream_replicas: usize::from(arguments.stream_replicas),
            slot: arguments.slot,
            publications: arguments.publication,
            tables: TableFilter {
                names: arguments.table,
            },
            create_publication: arguments.create_publication,
            port: arguments.port,
            subjects,
            publish_mode: match arguments.publish_mode {
                PublishModeArgument::Auto => mode::Wanted::Auto,
                PublishModeArgument::Chain => mode::Wanted::Chain,
                PublishModeArgument::Fast => mode::Wanted::Fast,
                PublishModeArgument::MsgId => mode::Wanted::MsgId,
            },
            has_msg_id: arguments.msg_id,
            oversize: match arguments.oversize {
                OversizeArgument::Park => oversize::Policy::Park,
                OversizeArgument::Halt => oversize::Policy::Halt,
            },
            durability: arguments.durability,
            hold: arguments.hold,
            nats_monitoring: arguments
                .nats_monitoring
                .unwrap_or_else(|| monitoring(&nats)),
            accepts_stream_reset: arguments.accept_stream_reset,
            on_slot_loss: arguments.on_slot_loss,
            skip_to_lsn: arguments.skip_to_lsn,
            drain_timeout: arguments.drain_timeout,
            ring: Budget {
                events_max: arguments.ring_events.max(1),
                bytes_max: usize::try_from(arguments.ring_bytes).unwrap_or(usize::MAX),
            },
            snapshot_workers: usize::from(arguments.snapshot_workers),
            snapshot_chunk_rows: arguments.snapshot_chunk_rows as usize,
            nats,
            log_format: match arguments.log_format {
                LogArgument::Text => daemon::telemetry::LogFormat::Text,
                LogArgument::Json => daemon::telemetry::LogFormat::Json,
            },
        })
    }
}

impl TableFilter {
    /// Filters over the subjects of these tables, or of all.
    pub fn subject_filters(&self, subjects: &SubjectPattern) -> Vec<String> {
        if self.names.is_empty() {
            return vec![subjects.stream_subjects()];
        }
        let mut filters = Vec::new();
        for name in &self.names {
            if let Some((schema, table)) = name.split_once('.') {
                filters.push(subjects.filter(schema, table));
            }
            // A table of `public` may have a dot in its name.
            filters.push(subjects.filter(wire::names::PUBLIC, name));
        }
        filters
    }

    pub fn admits(&self, schema: &str, table: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| names(name, schema, table))
    }

    /// Admits only these; all when there are none.
    pub fn of<T: AsRef<str>>(names: &[T]) -> Self {
        Self {
            names: names.iter().map(|name| name.as_ref().to_owned()).collect(),
        }
    }

    /// As they were given.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

/// One flag, for the table in the README.
pub struct Flag {
    /// `--slot <SLOT>`.
    pub usage: String,
    pub default: String,
    pub help: String,
}

/// Every flag in the order of `--help`.
pub fn flags() -> Vec<Flag> {
    let command = Arguments::command();
    let flag = |argument: &clap::Arg| {
        let long = argument.get_long()?;
        let takes_value = argument.get_action().takes_values();
        let value = argument.get_value_names().filter(|_| takes_value);
        Some(Flag {
            usage: value.map_or(format!("--{long}"), |names| {
                format!("--{long} <{}>", names[0])
            }),
            default: match argument.get_default_values() {
                [value] if takes_value => format!("`{}`", value.to_string_lossy()),
                _ => String::new(),
            },
            help: argument
                .get_help()?
                .to_string()
                .replace('\n', " ")
                .replace('|', "\\|"),
        })
    };
    command.get_arguments().filter_map(flag).collect()
}

/// Whether `name` from the command line means this table.
pub fn names(name: &str, schema: &str, table: &str) -> bool {
    let is_qualified = name
        .strip_prefix(schema)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|rest| rest == table);
    is_qualified || (schema == wire::names::PUBLIC && name == table)
}

/// Where nats-server is told to answer in most configurations.
fn monitoring(nats: &NatsOptions) -> String {
    let host = nats
        .servers()
        .first()
        .map_or("localhost", |server| server.host());
    format!("{host}:8222")
}

fn streams(given: &[String]) -> Result<[String; 2], Error> {
    let (cdc, init) = match given {
        [cdc] => (cdc.clone(), wire::names::STREAM_INIT.to_owned()),
        [cdc, init] => (cdc.clone(), init.clone()),
        _ => return Err(Error::Streams(given.join(","))),
    };
    for name in [&cdc, &init] {
        let is_valid = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b".*>/\\".contains(&byte));
        if !is_valid {
            return Err(Error::StreamName {
                flag: "--stream",
                name: name.clone(),
            });
        }
    }
    Ok([cdc, init])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, Error> {
        let arguments =
            Arguments::try_parse_from([&["bridge"], arguments].concat()).expect("the flags parse");
        Config::new(arguments, |name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = config(&[], &[]).unwrap();

        assert_eq!(
            (config.cdc_stream.as_str(), config.init_stream.as_str()),
            ("CDC", "INIT")
        );
        assert_eq!(config.slot, "cdc_slot");
        assert_eq!(config.publications, ["cdc_pub"]);
        assert_eq!(config.ring.events_max, 32_768);
        assert!(config.tables.admits("public", "anything"));
    }

    #[test]
    fn the_environment_of_the_contract_is_read() {
        let config = config(
            &["--table", "users,orders"],
            &[
                ("PG_HOST", "db"),
                ("PG_PORT", "5433"),
                ("PG_USER", "u"),
                ("PG_PASSWORD", "secret"),
                ("PG_DB", "d"),
                ("NATS_HOST", "nats"),
                ("NATS_BRIDGE_USER", "b"),
                ("NATS_BRIDGE_PASSWORD", "secret"),
            ],
        )
        .unwrap();

        assert_eq!(config.postgres.to_string(), "u:***@db:5433/d");
        assert_eq!(config.nats.to_string(), "b:***@nats:4222");
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn a_table_is_named_with_or_without_its_schema() {
        let filter = TableFilter {
            names: vec!["users".into(), "sales.orders".into()],
        };

        assert!(filter.admits("public", "users"));
        assert!(filter.admits("sales", "orders"));
        assert!(!filter.admits("sales", "users"));
        assert!(!filter.admits("public", "orders"));
        assert!(names("public.users", "public", "users"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert!(matches!(
            config(&["--slot", "My-Slot"], &[]),
            Err(Error::Slot(_))
        ));
        assert!(matches!(
            config(&["--stream", "A,B,C"], &[]),
            Err(Error::Streams(_))
        ));
        assert!(matches!(
            config(&["--stream", "C.D"], &[]),
            Err(Error::StreamName { .. })
        ));
        assert!(matches!(
            config(&["--table", "users,,orders"], &[]),
            Err(Error::Empty("table"))
        ));
        assert!(matches!(
            config(&["--subject-prefix", "init"], &[]),
            Err(Error::Subject(_))
        ));
    }
}
