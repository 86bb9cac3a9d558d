//! One row change, as consumers read it.
//!
//! In: nothing; this is the definition. Out: the keys, their order and their encodings.
//! Invariant: the bridge's hand-written encoder gives the bytes of [`Event`]'s `to_msgpack`, see
//! [`crate::codec`].

use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;
use crate::names::PUBLIC;
use crate::operation::Operation;
use crate::position::Position;
use crate::value::Column;

/// A change of a row, or of a whole table. The first five keys are older than the rest: a message
/// without the others is read with their defaults.
///
/// [`Event::FIXED_KEYS`] keys are always written, the optional ones behind them when there is
/// something to say; all together fit a `fixmap`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The table's name, unescaped.
    pub table: String,
    /// What happened.
    pub operation: Operation,
    /// OID of the relation; of the partition root under `publish_via_partition_root`.
    pub relation_id: u32,
    /// LSN of the change's own WAL record. Information only: neither unique nor ordered.
    pub lsn: Lsn,
    /// INSERT, UPDATE: the new row. DELETE: what PostgreSQL sent, the key columns or (replica
    /// identity FULL) all. TRUNCATE: none. Oversize: the key columns.
    pub columns: Vec<Column>,
    /// The table's schema.
    #[serde(default = "public")]
    pub schema: String,
    /// LSN of the transaction's commit record.
    #[serde(default)]
    pub commit_lsn: Lsn,
    /// Ordinal of the event in its transaction, from 1.
    #[serde(default)]
    pub seq: u32,
    /// Transaction id with its epoch (`xid8`).
    #[serde(default)]
    pub xid: u64,
    /// Commit time in microseconds since 1970-01-01 UTC, see [`unix_us`].
    #[serde(default)]
    pub commit_time: i64,
    /// Version of the table's schema in KV bucket `schemas`, from 1.
    #[serde(default)]
    pub schema_version: u32,
    /// True on the transaction's last event.
    #[serde(default)]
    pub last: bool,
    /// UPDATE: the old row where PostgreSQL sent it: its key columns when the key changed, all
    /// columns under replica identity FULL. Not written when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub old: Vec<Column>,
    /// Columns whose TOAST value did not change and was not sent: keep what you have. They are
    /// absent from `columns`. Not written when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unchanged: Vec<String>,
    /// TRUNCATE only: it was CASCADE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cascade: Option<bool>,
    /// TRUNCATE only: it was RESTART IDENTITY.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_identity: Option<bool>,
    /// The event did not fit a message; this one stands in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oversize: Option<Oversize>,
}

/// Where the whole event is when it did not fit a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oversize {
    /// Length of the whole event, encoded.
    pub bytes: u64,
    /// Its SHA-256, in lower-case hex.
    pub sha256: String,
    /// Its name in Object Store bucket `oversize`.
    pub object: String,
}

/// The two keys of an event that say where the stream ends. Reading them skips the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// As in [`Event`].
    pub commit_lsn: Lsn,
    /// As in [`Event`].
    pub seq: u32,
    /// As in [`Event`].
    #[serde(default)]
    pub last: bool,
}

impl Event {
    /// Number of keys that are always written: `table` to `last`.
    pub const FIXED_KEYS: usize = 12;

    /// The event's position; None in a message from before positions were sent.
    pub fn position(&self) -> Option<Position> {
        self.commit_lsn
            .is_valid()
            .then(|| Position::new(self.commit_lsn, self.seq))
    }
}

impl Tail {
    /// The position of the stream's last event.
    pub fn position(self) -> Position {
        Position::new(self.commit_lsn, self.seq)
    }
}

/// A timestamp of the replication protocol (microseconds since 2000-01-01 UTC) as `commit_time`.
pub fn unix_us(postgres_us: i64) -> i64 {
    postgres_us.saturating_add(POSTGRES_EPOCH_UNIX_US)
}

/// 2000-01-01 00:00:00 UTC in microseconds since 1970-01-01 UTC.
pub const POSTGRES_EPOCH_UNIX_US: i64 = 946_684_800_000_000;

pub(crate) fn public() -> String {
    PUBLIC.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Message;

    #[test]
    fn a_message_from_before_positions_is_read() {
        let old = br#"{"table":"users","operation":"INSERT","relation_id":16384,"lsn":"0/25cb3c8",
            "columns":[{"name":"id","value":1}]}"#;

        let event = Event::decode(old).unwrap();

        assert_eq!(event.position(), None);
        assert_eq!(event.schema, "public");
        assert_eq!(event.lsn, Lsn(0x25C_B3C8));
    }

    #[test]
    fn unknown_keys_are_ignored() {
        let newer = br#"{"table":"t","operation":"DELETE","relation_id":1,"lsn":"0/1","columns":[],
            "commit_lsn":"0/2","seq":3,"novelty":{"deep":[1,{"er":null}]}}"#;

        assert_eq!(
            Event::decode(newer).unwrap().position(),
            Some(Position::new(Lsn(2), 3))
        );
        assert_eq!(
            Tail::decode(newer).unwrap().position(),
            Position::new(Lsn(2), 3)
        );
    }

    #[test]
    fn postgres_time_becomes_unix_time() {
        assert_eq!(unix_us(0), 946_684_800_000_000);
        assert_eq!(unix_us(i64::MAX), i64::MAX);
    }
}
