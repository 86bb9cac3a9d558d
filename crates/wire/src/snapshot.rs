//! The rows a table has at one moment, and how to join the row changes to them.
//!
//! In: nothing; this is the definition. Out: the messages on `init.*`: one start, chunks from 0, then
//! either meta or error; progress in between.
//! Invariant: the chunks, followed by every event that [`Meta::admits`] lets through, give the table.

use serde::{Deserialize, Serialize};

use crate::event::{Event, public};
use crate::lsn::Lsn;
use crate::snapshot_request::{Compression, Values};
use crate::value::Row;

/// Says that chunks follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The table's name.
    pub table: String,
    /// Names the snapshot; opaque, unique in the stream.
    pub snapshot_id: String,
    /// The table's schema.
    #[serde(default = "public")]
    pub schema: String,
    /// How values are written in the chunks.
    pub values: Values,
    /// How the chunks' payloads are compressed; the header `Content-Encoding` repeats it.
    pub compression: Compression,
    /// The columns of every row, in order.
    pub columns: Vec<String>,
    /// Version of the table's schema, see [`crate::schema::Schema`].
    pub schema_version: u32,
    /// `reltuples`; null when PostgreSQL has no estimate.
    pub rows_estimated: Option<u64>,
    /// Seconds since 1970-01-01 UTC.
    pub timestamp: i64,
    /// True when the request chose columns or a range, so that this is not the whole table: nobody
    /// but the requester can use it. Not written when false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Some rows. At most 10,000 by default, and at most what fits a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// The table's name.
    pub table: String,
    /// Always `"snapshot"`.
    pub operation: Snapshot,
    /// Which snapshot.
    pub snapshot_id: String,
    /// Counts the chunks, from 0.
    pub chunk: u64,
    /// As in [`Meta`].
    pub lsn: Lsn,
    /// The rows: text or nil by default, the values of an event with `"typed"`.
    pub data: Vec<Row>,
    /// How values are written.
    #[serde(default)]
    pub values: Values,
    /// The table's schema.
    #[serde(default = "public")]
    pub schema: String,
}

/// The `operation` of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Snapshot {
    /// A row that was there.
    Snapshot,
}

/// Says that all chunks are in the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Which snapshot.
    pub snapshot_id: String,
    /// Commits before this LSN are in the rows.
    pub lsn: Lsn,
    /// Seconds since 1970-01-01 UTC.
    pub timestamp: i64,
    /// Number of chunks.
    pub batch_count: u64,
    /// Number of rows in all of them.
    pub row_count: u64,
    /// The table's name.
    pub table: String,
    /// Transactions (`xid8`) at or behind `lsn` that are in the rows all the same. Nearly always
    /// empty: a commit is in WAL a moment before it is visible.
    #[serde(default)]
    pub skip_xids: Vec<u64>,
    /// Stream sequence to read the changes behind: the first one needed is `cdc_seq + 1` or later.
    #[serde(default)]
    pub cdc_seq: u64,
    /// The table's schema.
    #[serde(default = "public")]
    pub schema: String,
}

impl Meta {
    /// True for a change that is not in the rows yet and must be applied to them.
    pub fn admits(&self, event: &Event) -> bool {
        event.commit_lsn >= self.lsn && !self.skip_xids.contains(&event.xid)
    }
}

/// Says why there is no snapshot, or no more of it. Also the reply to a refused request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// The table's name as the request had it.
    pub table: String,
    /// Which snapshot, if it had begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// For programs.
    pub code: ErrorCode,
    /// For people: what happened.
    pub error: String,
    /// For people: what to do about it.
    #[serde(default)]
    pub hint: String,
    /// The table's schema.
    #[serde(default = "public")]
    pub schema: String,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The options cannot be read, or name no column of the table.
    BadRequest,
    /// No such table.
    UnknownTable,
    /// The table is not in the publication.
    NotPublished,
    /// Row-level security would hide rows.
    RowSecurity,
    /// PostgreSQL refused for want of a privilege.
    Denied,
    /// The table is larger than what `INIT` can hold.
    TooLarge,
    /// Too many requests wait.
    QueueFull,
    /// The table was locked for too long.
    LockTimeout,
    /// The table was dropped or altered meanwhile.
    TableChanged,
    /// Someone cancelled it.
    Cancelled,
    /// PostgreSQL or NATS went away for too long.
    Unavailable,
    /// A kind this version does not know. Never written.
    #[serde(other)]
    Unknown,
}

/// How far a snapshot has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The table's name.
    pub table: String,
    /// Which snapshot.
    pub snapshot_id: String,
    /// Rows published so far.
    pub rows: u64,
    /// Payload bytes published so far.
    pub bytes: u64,
    /// Of `reltuples`, so it may end off 100; null when there is no estimate.
    pub percent: Option<f64>,
    /// Seconds left at the rate so far; null when unknown.
    pub eta_s: Option<u64>,
    /// The table's schema.
    #[serde(default = "public")]
    pub schema: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Message as _;

    fn event(commit_lsn: u64, xid: u64) -> Event {
        let json = br#"{"table":"users","operation":"INSERT","relation_id":16384,"lsn":"0/1","columns":[]}"#;
        Event {
            commit_lsn: Lsn(commit_lsn),
            xid,
            ..Event::decode(json).unwrap()
        }
    }

    #[test]
    fn a_change_is_applied_only_when_the_rows_lack_it() {
        let meta = Meta {
            snapshot_id: "snap-1".to_owned(),
            lsn: Lsn(100),
            timestamp: 0,
            batch_count: 0,
            row_count: 0,
            table: "users".to_owned(),
            skip_xids: vec![7],
            cdc_seq: 0,
            schema: public(),
        };

        assert!(!meta.admits(&event(99, 5)));
        assert!(meta.admits(&event(100, 6)));
        assert!(!meta.admits(&event(101, 7)));
    }
}
