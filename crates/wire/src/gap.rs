//! Changes that no event will ever carry.
//!
//! In: nothing; this is the definition. Out: the message on `cdc.gap`.
//! Invariant: a bridge that goes on behind lost changes says so here first, with a higher epoch.

use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;

/// Between `from` and `to` changes were lost to the stream. Its reader must re-seed the tables it
/// keeps: take a new snapshot and go on from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The replication slot.
    pub slot: String,
    /// Grows by one with each gap of the slot.
    pub epoch: u64,
    /// Everything committed up to here was published.
    pub from: Lsn,
    /// Everything committed behind here will be.
    pub to: Lsn,
    /// Why.
    pub reason: Reason,
    /// Seconds since 1970-01-01 UTC.
    pub timestamp: i64,
}

/// Why changes were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// PostgreSQL removed WAL that the slot needed, or the slot itself is gone.
    SlotLost,
    /// An operator moved the slot ahead.
    Skipped,
    /// The stream was purged or made anew.
    StreamReset,
    /// The database was restored to an earlier point, or is another one.
    DatabaseReset,
    /// Somebody else published into the stream, and messages took the places of events.
    ForeignWriter,
    /// A reason this version does not know. Never written.
    #[serde(other)]
    Unknown,
}
