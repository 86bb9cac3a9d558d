//! What a consumer would do, from the command line, against the running system.
//!
//! In: a subcommand. Out: text on stdout, an exit code.
//! Invariant: everything is learnt through the contract; only `verify` looks into PostgreSQL, to compare.

mod check;
mod schema;
mod snapshot;
mod verify;

use async_nats::Client;
use async_nats::jetstream;
use clap::Subcommand;
use daemon::chained::Chained;
use daemon::nats::FirstConnect;
use wire::{DecodeError, names};

use crate::config::Config;
use crate::exit;

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Tool {
    /// Ask the running bridge for a snapshot of a table
    Snapshot {
        /// users, or sales.orders
        table: String,
        /// Stay until it is made, and show how far it is
        #[arg(long)]
        watch: bool,
    },
    /// Print a table's schema from KV bucket `schemas`, as JSON
    Schema {
        /// users, or sales.orders
        table: String,
    },
    /// Check everything the bridge needs, change nothing, and say what to do: one line each, ok, warn or
    /// fail. Exit code 0 when nothing has failed, 1 else. Takes the flags the bridge is started with
    Check {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Prove that snapshot + stream = table: make a copy from both and compare it with PostgreSQL. Exit
    /// code 0 when they are equal, 1 when not. Holds one copy of the table in memory
    Verify {
        /// users, or sales.orders
        table: String,
    },
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0:?} is no table name; write users, or sales.orders")]
    Name(String),
    #[error(transparent)]
    Connect(#[from] daemon::nats::Error),
    #[error(transparent)]
    Postgres(#[from] daemon::postgres::Error),
    #[error("PostgreSQL refused a query")]
    Query(#[from] tokio_postgres::Error),
    #[error("NATS: cannot {0}")]
    Nats(
        &'static str,
        #[source] Box<dyn std::error::Error + Send + Sync>,
    ),
    #[error("the subscription has ended")]
    Ended,
    #[error("a message is not understood")]
    Decode(#[from] DecodeError),
    #[error("{}{}", .0.error, hint(.0))]
    Refused(Box<wire::snapshot::Error>),
    #[error(transparent)]
    Table(#[from] crate::snapshot::failure::Failure),
    #[error("table {0} has no schema in the bucket: it is not published, or no bridge has run")]
    NoSchema(String),
    #[error("the stream does not come past {0}; is the bridge of --slot running?")]
    Behind(wire::Lsn),
    #[error("the copy cannot be kept: {0}")]
    Contradiction(String),
}

fn hint(error: &wire::snapshot::Error) -> String {
    if error.hint.is_empty() {
        String::new()
    } else {
        format!("; {}", error.hint)
    }
}

/// Runs the tool; errors go to stderr.
pub async fn run(config: &Config, tool: &Tool) -> u8 {
    let done = match tool {
        Tool::Check { json } => check::run(config, *json).await,
        Tool::Snapshot { table, watch } => snapshot::run(config, table, *watch).await,
        Tool::Schema { table } => schema::run(config, table).await,
        Tool::Verify { table } => verify::run(config, table).await,
    };
    match done {
        Ok(true) => exit::DRAINED,
        Ok(false) => exit::FAILURE,
        Err(error) => {
            eprintln!("error: {}", Chained(&error));
            exit::FAILURE
        }
    }
}

/// (schema, table), as written in subjects or plainly.
fn name(table: &str) -> Result<(String, String), Error> {
    names::parse_table_path(table).ok_or_else(|| Error::Name(table.to_owned()))
}

async fn connect(config: &Config) -> Result<(Client, jetstream::Context), Error> {
    let client = config
        .nats
        .connect("bridge tool", FirstConnect::MustSucceed)
        .await?;
    Ok((client.clone(), jetstream::new(client)))
}

fn nats<E: std::error::Error + Send + Sync + 'static>(
    what: &'static str,
) -> impl FnOnce(E) -> Error {
    move |error| Error::Nats(what, Box::new(error))
}
