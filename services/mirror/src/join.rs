//! Whether a snapshot and the stream meet, and when they must meet anew.
//!
//! In: a snapshot's start and meta, what the stream holds, why a table is seeded. Out: yes, or the
//! reason.
//! Invariant: a snapshot that is joined lacks no change that the stream will not bring.

use serde::{Deserialize, Serialize};
use wire::Lsn;
use wire::gap::Gap;
use wire::schema::SchemaChanged;
use wire::snapshot::{Meta, Start};
use wire::snapshot_request::{Compression, Values};

/// What the stream of row changes holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// One more than `last_seq` when the stream is empty.
    pub first_seq: u64,
    pub last_seq: u64,
    /// Commit LSN of the first event in it.
    pub first_commit_lsn: Option<Lsn>,
    /// When the server made the stream, in nanoseconds since 1970: by the server's clock, as
    /// everything that is compared with it.
    pub created_ns: i128,
}

/// Why a table is seeded, and which snapshot will do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// For people.
    pub reason: String,
    /// The rows must be of this LSN or later.
    #[serde(default)]
    pub lsn_min: Lsn,
    /// The rows must have this version of the schema or a later one.
    #[serde(default)]
    pub schema_version_min: u32,
    /// The snapshot must have ended later than this, in nanoseconds since 1970 by the server's clock.
    #[serde(default)]
    pub after_ns: i64,
}

/// A snapshot that is whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub start: Start,
    pub meta: Meta,
    /// When `meta` was stored, by the server's clock.
    pub ended_ns: i128,
}

/// Why a snapshot cannot be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it has only some rows or columns")]
    Partial,
    #[error("its chunks are compressed")]
    Compressed,
    #[error("its rows are text, and a column of a type of the database's own needs typed ones")]
    Untyped,
    #[error("its rows are older than what happened since")]
    Old,
    #[error("it is older than the stream")]
    OtherStream,
    #[error("it ends ahead of the stream, which has lost its end or is another one")]
    Ahead,
    #[error("changes that follow it have left the stream")]
    Overtaken,
}

/// The stream sequence to read behind.
pub fn join(snapshot: &Snapshot, bounds: &Bounds, need: &Need) -> Result<u64, Refusal> {
    let Snapshot {
        start,
        meta,
        ended_ns,
    } = snapshot;
    let is_old = meta.lsn < need.lsn_min
        || start.schema_version < need.schema_version_min
        || *ended_ns <= i128::from(need.after_ns);
    if is_old {
        return Err(Refusal::Old);
    }
    if *ended_ns < bounds.created_ns {
        return Err(Refusal::OtherStream);
    }
    if meta.cdc_seq > bounds.last_seq {
        return Err(Refusal::Ahead);
    }
    let is_there = bounds.first_seq <= meta.cdc_seq + 1;
    // Commits grow along the stream: what has left it committed before its first event.
    let is_complete = bounds
        .first_commit_lsn
        .is_some_and(|first| first < meta.lsn);
    if is_there || is_complete {
        Ok(meta.cdc_seq.max(bounds.first_seq.saturating_sub(1)))
    } else {
        Err(Refusal::Overtaken)
    }
}

/// Whether the rows are whole and readable here, as `start` says.
pub fn is_usable(start: &Start, needs_typed_rows: bool) -> Result<(), Refusal> {
    if start.partial {
        return Err(Refusal::Partial);
    }
    if start.compression != Compression::None {
        return Err(Refusal::Compressed);
    }
    if needs_typed_rows && start.values != Values::Typed {
        return Err(Refusal::Untyped);
    }
    Ok(())
}

impl Need {
    /// A first copy: any snapshot that the stream continues will do.
    pub fn first() -> Self {
        Self {
            reason: "it is not here yet".to_owned(),
            ..Self::default()
        }
    }

    /// Every earlier snapshot may lack the lost changes.
    pub fn after_gap(gap: &Gap, announced_ns: i128) -> Self {
        Self {
            reason: format!(
                "changes from {} to {} are lost: {:?}",
                gap.from, gap.to, gap.reason
            ),
            lsn_min: gap.to,
            schema_version_min: 0,
            after_ns: i64::try_from(announced_ns).unwrap_or(i64::MAX),
        }
    }

    /// True when rows that ended then have what the need is about.
    pub fn is_met_by(&self, meta: &Meta, schema_version: u32, ended_ns: i128) -> bool {
        meta.lsn >= self.lsn_min
            && schema_version >= self.schema_version_min
            && ended_ns > i128::from(self.after_ns)
    }

    /// None when the rows here already are of the new shape.
    pub fn after_change(changed: &SchemaChanged, meta: &Meta, schema_version: u32) -> Option<Self> {
        let is_newer = schema_version < changed.version || meta.lsn < changed.valid_from.commit_lsn;
        (changed.resnapshot && is_newer).then(|| Self {
            reason: changed.reason.clone(),
            lsn_min: changed.valid_from.commit_lsn,
            schema_version_min: changed.version,
            after_ns: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::Position;
    use wire::gap::Reason;

    use super::*;

    fn snapshot(lsn: u64, cdc_seq: u64) -> Snapshot {
        Snapshot {
            start: Start {
                table: "t".to_owned(),
                snapshot_id: "s".to_owned(),
                schema: "public".to_owned(),
                values: Values::Text,
                compression: Compression::None,
                columns: vec!["id".to_owned()],
                schema_version: 3,
                rows_estimated: None,
                timestamp: 0,
                partial: false,
            },
            meta: Meta {
                snapshot_id: "s".to_owned(),
                lsn: Lsn(lsn),
                timestamp: 0,
                batch_count: 0,
                row_count: 0,
                table: "t".to_owned(),
                skip_xids: Vec::new(),
                cdc_seq,
                schema: "public".to_owned(),
            },
            ended_ns: 100,
        }
    }

    fn bounds(first_seq: u64, last_seq: u64, first_commit_lsn: Option<u64>) -> Bounds {
        Bounds {
            first_seq,
            last_seq,
            first_commit_lsn: first_commit_lsn.map(Lsn),
            created_ns: 50,
        }
    }

    #[test]
    fn a_snapshot_is_joined_while_what_follows_it_is_in_the_stream() {
        let need = Need::first();

        assert_eq!(
            join(&snapshot(10, 7), &bounds(8, 20, Some(11)), &need),
            Ok(7)
        );
        assert_eq!(
            join(&snapshot(10, 7), &bounds(8, 7, None), &need),
            Ok(7),
            "an empty stream"
        );
        assert_eq!(
            join(&snapshot(10, 7), &bounds(9, 20, Some(11)), &need),
            Err(Refusal::Overtaken)
        );
        assert_eq!(
            join(&snapshot(10, 7), &bounds(1, 6, Some(1)), &need),
            Err(Refusal::Ahead)
        );
    }

    #[test]
    fn a_coarse_sequence_does_when_the_stream_begins_before_the_rows() {
        // `cdc_seq` 0 is "the whole stream".
        assert_eq!(
            join(&snapshot(10, 0), &bounds(5, 9, Some(9)), &Need::first()),
            Ok(4)
        );
        assert_eq!(
            join(&snapshot(10, 0), &bounds(5, 9, Some(10)), &Need::first()),
            Err(Refusal::Overtaken)
        );
    }

    #[test]
    fn a_snapshot_from_before_the_stream_or_the_gap_is_refused() {
        let stream = bounds(1, 20, Some(1));
        let younger = Bounds {
            created_ns: 101,
            ..stream.clone()
        };
        let gap = Gap {
            slot: "s".to_owned(),
            epoch: 1,
            from: Lsn(5),
            to: Lsn(12),
            reason: Reason::SlotLost,
            timestamp: 0,
        };

        assert_eq!(
            join(&snapshot(10, 7), &younger, &Need::first()),
            Err(Refusal::OtherStream)
        );
        assert_eq!(
            join(&snapshot(11, 7), &stream, &Need::after_gap(&gap, 60)),
            Err(Refusal::Old)
        );
        assert_eq!(
            join(&snapshot(12, 7), &stream, &Need::after_gap(&gap, 60)),
            Ok(7)
        );
        // The database was reset: its LSNs say nothing, the time does.
        assert_eq!(
            join(&snapshot(12, 7), &stream, &Need::after_gap(&gap, 100)),
            Err(Refusal::Old)
        );
    }

    #[test]
    fn rows_that_cannot_be_read_whole_are_refused() {
        let whole = snapshot(10, 7).start;
        let partial = Start {
            partial: true,
            ..whole.clone()
        };
        let compressed = Start {
            compression: Compression::Zstd,
            ..whole.clone()
        };
        let typed = Start {
            values: Values::Typed,
            ..whole.clone()
        };

        assert_eq!(is_usable(&whole, false), Ok(()));
        assert_eq!(is_usable(&typed, false), Ok(()));
        assert_eq!(is_usable(&typed, true), Ok(()));
        assert_eq!(is_usable(&whole, true), Err(Refusal::Untyped));
        assert_eq!(is_usable(&partial, false), Err(Refusal::Partial));
        assert_eq!(is_usable(&compressed, false), Err(Refusal::Compressed));
    }

    #[test]
    fn a_changed_schema_asks_for_new_rows_once() {
        let changed = SchemaChanged {
            table: "t".to_owned(),
            schema: "public".to_owned(),
            version: 3,
            valid_from: Position::new(Lsn(10), 1),
            resnapshot: true,
            reason: "ADD COLUMN with a DEFAULT".to_owned(),
        };
        let (older, newer) = (snapshot(9, 1).meta, snapshot(10, 1).meta);

        assert!(Need::after_change(&changed, &older, 3).is_some());
        assert!(Need::after_change(&changed, &newer, 2).is_some());
        assert!(Need::after_change(&changed, &newer, 3).is_none());
        let harmless = SchemaChanged {
            resnapshot: false,
            ..changed
        };
        assert!(Need::after_change(&harmless, &older, 2).is_none());
    }

    proptest! {
        /// Events 1..=last with commit LSN 10 * sequence; retention removed some from the front. The
        /// rows lack what committed at or behind `lsn`.
        #[test]
        fn a_joined_snapshot_lacks_nothing_the_stream_lost(
            last in 0_u64..12, removed in 0_u64..12, lsn in 0_u64..140, coarse in 0_u64..12,
        ) {
            let removed = removed.min(last);
            let before = (lsn.div_ceil(10).saturating_sub(1)).min(last);
            let cdc_seq = before.saturating_sub(coarse);
            let first = (removed < last).then_some((removed + 1) * 10);

            let joined = join(&snapshot(lsn, cdc_seq), &bounds(removed + 1, last, first), &Need::first());

            if let Ok(sequence) = joined {
                let needed = (1..=last).filter(|seq| seq * 10 >= lsn);
                for needed in needed {
                    prop_assert!(needed > removed && needed > sequence);
                }
            }
        }
    }
}
