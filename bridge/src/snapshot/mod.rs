//! Snapshots: the rows a table has at one moment, joined exactly with the stream of changes.
//!
//! In: requests on `snapshot.request.*`. Out: `init.start`, chunks, then `init.meta` or `init.error`.
//! Invariant: the row changes never wait for a snapshot. It runs on a thread of its own, with its own
//! connections; with the road it shares only `Handoff`, a few locks held for a lookup.
//!
//! A request comes by `listener` (or lies in `kept`), waits in `queue`, is made by `worker` in the
//! transaction that `join` opens, from the SQL of `plan`: COPY's lines go through `chunk` straight into
//! payloads, which `outlet` publishes. `transactions` and `sequences` are the rules of the hand-off,
//! `handoff` brings them together. `reseed` asks for all tables when changes were lost.
//!
//! 5,000,000 rows of six columns: 0.86 and 1.06 million rows/s, 0.65-0.71 of bare COPY in the same run,
//! 24 MB of memory as with 1,000,000; 500 row changes/s beside it at p99 7 ms (busy 2-core machine,
//! PostgreSQL 15, nats-server 2.14, optimised without LTO; `benches`, binary `snapshot`).

pub use rows::snapshot::{chunk, copy_text};

pub mod compress;
pub mod failure;
pub mod handoff;
pub mod join;
pub mod kept;
pub mod listener;
pub mod outlet;
pub mod plan;
pub mod progress;
pub mod queue;
pub mod reseed;
pub mod sequences;
pub mod transactions;
pub mod worker;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use daemon::nats::NatsOptions;
use daemon::postgres::PostgresOptions;

use crate::config::TableFilter;
use crate::metrics::Metrics;
use crate::schema_registry::Versions;
use crate::shared::Shared;

/// What snapshots need to know.
#[derive(Clone)]
pub struct Settings {
    pub postgres: PostgresOptions,
    pub nats: NatsOptions,
    pub slot: String,
    pub publications: Vec<String>,
    pub tables: TableFilter,
    /// The stream of the snapshots.
    pub init_stream: String,
    /// Of stream `REQUESTS`, when it is made.
    pub stream_replicas: usize,
    /// How many are made at a time.
    pub workers_max: usize,
    pub chunk_rows_max: usize,
    pub shared: Arc<Shared>,
    pub metrics: Metrics,
    /// Names the version that a table's rows have.
    pub versions: Versions,
}

/// Where a bridge says how far its stream is: a request here is answered with `Reached` as JSON. For
/// `bridge verify`, which must know when the stream has passed an LSN.
pub fn reached_subject(slot: &str) -> String {
    format!("snapshot.reached.{}", wire::token::escape_token(slot))
}

/// See [`reached_subject`].
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Reached {
    /// Every event of the bridge that committed before it is in the stream.
    pub lsn: wire::Lsn,
}

pub(crate) fn unix_s() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| elapsed.as_secs() as i64)
}
