//! What a bridge remembers about its stream, in KV bucket `bridge_state`.
//!
//! In: nothing; this is the definition. Out: the value under key = slot, as JSON so that an operator
//! can read it.
//! Invariant: the stream's own tail outranks it. It decides only when the tail has aged out, and it
//! tells another stream, database or configuration from the one it was written for.

use serde::{Deserialize, Serialize};

use crate::gap::Gap;
use crate::lsn::Lsn;
use crate::position::Position;

/// The last known state of one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The replication slot.
    pub slot: String,
    /// Position of the last acked event.
    pub position: Position,
    /// The stream it is in.
    pub stream: String,
    /// Its sequence there.
    pub stream_sequence: u64,
    /// When the server made the stream, as the server writes it: compared, never parsed.
    pub stream_created: String,
    /// `system_identifier` of the cluster, in decimal.
    pub system_identifier: String,
    /// Its timeline.
    pub timeline: u32,
    /// Number of gaps so far, see [`crate::gap::Gap`].
    pub epoch: u64,
    /// The publication, or several joined by commas.
    pub publication: String,
    /// Hash of the table filter: `seq` counts published events, so a position means the same only
    /// under the same publications and the same filter.
    pub filter_hash: String,
    /// The tables of `--table`; empty when all are published.
    #[serde(default)]
    pub tables: Vec<String>,
    /// Wildcards over the subjects of their events.
    #[serde(default)]
    pub filters: Vec<String>,
    /// The last transaction that was counted under other settings. All of it is in the stream.
    #[serde(default)]
    pub counted_from: Position,
    /// Seconds since 1970-01-01 UTC.
    pub updated_at: i64,
    /// PostgreSQL was told to forget WAL up to here at most; written before it is.
    #[serde(default)]
    pub confirmed: Lsn,
    /// What consumers have yet to be told. Written before the slot is touched, gone once they were told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owed: Option<Owed>,
}

/// A gap that is not in the stream yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owed {
    /// As it will be told. `from` or `to` is 0/0 while that is not known.
    pub gap: Gap,
    /// Snapshots of the bridge's tables are asked for once it was told.
    #[serde(default)]
    pub resnapshot: bool,
}
