//! Row changes between the decoder and the encoder, still as PostgreSQL's text.
//!
//! In: decoded messages and the table they belong to. Out: slabs of events, each slab with all it needs.
//! Invariant: an event leaves in a slab only when it is known whether it is its transaction's last.

use std::sync::{Arc, OnceLock};

use wire::{Lsn, Operation, Position, Subjects};

use crate::encode::Layout;
use crate::pgoutput::{OldTuple, Relation, TupleData};

/// A table in one shape. A changed Relation message makes a new one; events keep theirs alive.
#[derive(Debug)]
pub struct Table {
    pub relation: Relation,
    pub subjects: Subjects,
    /// Set once by the publisher, after the catalogue has told the types; see `encode`.
    pub layout: OnceLock<Layout>,
}

/// What the events of one transaction share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transaction {
    pub commit_lsn: Lsn,
    /// The first byte behind the commit record; invalid while the Commit has not arrived.
    pub end_lsn: Lsn,
    /// With the epoch, as `pg_current_xact_id()` gives it.
    pub xid: u64,
    /// Microseconds since 1970-01-01 UTC.
    pub commit_time_us: i64,
}

/// One row change. Its cells lie in the slab.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    table: u32,
    transaction: u32,
    /// Ordinal in its transaction, counted from 1 over published events.
    pub seq: u32,
    /// The row's own WAL position: information only, it neither orders nor identifies.
    pub lsn: Lsn,
    pub change: Change,
    /// The transaction has no further event.
    pub last: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum Change {
    Insert {
        new: Span,
    },
    Update {
        old: Old,
        new: Span,
    },
    Delete {
        old: Old,
    },
    Truncate {
        cascade: bool,
        restart_identity: bool,
    },
}

/// The old row, if PostgreSQL sent one.
#[derive(Debug, Clone, Copy)]
pub enum Old {
    None,
    /// Only the replica identity's columns mean something.
    Key(Span),
    Full(Span),
}

/// Where a tuple lies in the slab's bytes.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    start: u32,
    len: u32,
    columns: u16,
}

/// What to append; borrowed from the WAL buffer.
#[derive(Debug, Clone, Copy)]
pub enum Row<'a> {
    Insert(TupleData<'a>),
    Update(Option<OldTuple<'a>>, TupleData<'a>),
    Delete(OldTuple<'a>),
    Truncate {
        cascade: bool,
        restart_identity: bool,
    },
}

/// A run of events and the bytes of their rows; recycled through the ring.
#[derive(Debug, Default)]
pub struct Slab {
    bytes: Vec<u8>,
    events: Vec<Event>,
    tables: Vec<Arc<Table>>,
    transactions: Vec<Transaction>,
    boundary: Lsn,
    session: u32,
}

/// A slab takes rows until it holds this many bytes. One larger row makes a larger slab.
pub const SLAB_BYTES: usize = 64 << 10;
/// And at most this many events, for rows of no bytes.
pub const SLAB_EVENTS: usize = 1024;

impl Change {
    pub fn operation(&self) -> Operation {
        match self {
            Self::Insert { .. } => Operation::Insert,
            Self::Update { .. } => Operation::Update,
            Self::Delete { .. } => Operation::Delete,
            Self::Truncate { .. } => Operation::Truncate,
        }
    }
}

impl Row<'_> {
    /// Bytes it takes in a slab.
    pub fn len(&self) -> usize {
        let old_len = |old: &OldTuple<'_>| match old {
            OldTuple::Key(tuple) | OldTuple::Full(tuple) => tuple.bytes().len(),
        };
        match self {
            Self::Insert(new) => new.bytes().len(),
            Self::Update(old, new) => old.as_ref().map_or(0, old_len) + new.bytes().len(),
            Self::Delete(old) => old_len(old),
            Self::Truncate { .. } => 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Slab {
    /// The same slab for another session of the source; see `session`.
    #[must_use]
    pub fn of_session(self, session: u32) -> Self {
        Self { session, ..self }
    }

    /// Counts the source's sessions: a rewind makes the slabs of older ones void.
    pub fn session(&self) -> u32 {
        self.session
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }

    pub fn table(&self, event: &Event) -> &Arc<Table> {
        &self.tables[event.table as usize]
    }

    /// One entry per run of events of the same table.
    pub fn tables(&self) -> &[Arc<Table>] {
        &self.tables
    }

    pub fn transaction(&self, event: &Event) -> &Transaction {
        &self.transactions[event.transaction as usize]
    }

    pub fn position(&self, event: &Event) -> Position {
        Position::new(self.transaction(event).commit_lsn, event.seq)
    }

    pub fn tuple(&self, span: Span) -> TupleData<'_> {
        let start = span.start as usize;
        TupleData::from_parts(span.columns, &self.bytes[start..start + span.len as usize])
    }

    /// Bytes of the event's tuples, before encoding.
    pub fn row_bytes(&self, event: &Event) -> usize {
        let old_len = |old: Old| match old {
            Old::None => 0,
            Old::Key(span) | Old::Full(span) => span.len as usize,
        };
        match event.change {
            Change::Insert { new } => new.len as usize,
            Change::Update { old, new } => old_len(old) + new.len as usize,
            Change::Delete { old } => old_len(old),
            Change::Truncate { .. } => 0,
        }
    }

    /// Everything up to here is in this slab or before it; invalid when no transaction ended in it.
    pub fn boundary(&self) -> Lsn {
        self.boundary
    }

    /// Memory its content takes, for the ring's byte budget.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.events.len() * size_of::<Event>()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && !self.boundary.is_valid()
    }

    /// Whether one more row belongs into this slab rather than the next.
    #[inline]
    pub fn has_room(&self, row: &Row<'_>) -> bool {
        self.events.is_empty()
            || (self.bytes.len() + row.len() <= SLAB_BYTES && self.events.len() < SLAB_EVENTS)
    }

    /// Appends a row of `transaction`. The caller asks `has_room` first.
    #[inline]
    pub fn push(
        &mut self,
        table: &Arc<Table>,
        transaction: &Transaction,
        seq: u32,
        lsn: Lsn,
        row: &Row<'_>,
    ) {
        if !self
            .tables
            .last()
            .is_some_and(|last| Arc::ptr_eq(last, table))
        {
            self.tables.push(table.clone());
        }
        if self.transactions.last().map(|last| last.commit_lsn) != Some(transaction.commit_lsn) {
            self.transactions.push(*transaction);
        }
        let change = match *row {
            Row::Insert(new) => Change::Insert {
                new: self.copy(new),
            },
            Row::Update(old, new) => Change::Update {
                old: old.map_or(Old::None, |old| self.copy_old(old)),
                new: self.copy(new),
            },
            Row::Delete(old) => Change::Delete {
                old: self.copy_old(old),
            },
            Row::Truncate {
                cascade,
                restart_identity,
            } => Change::Truncate {
                cascade,
                restart_identity,
            },
        };
        self.events.push(Event {
            table: self.tables.len() as u32 - 1,
            transaction: self.transactions.len() as u32 - 1,
            seq,
            lsn,
            change,
            last: false,
        });
    }

    /// The transaction with this commit LSN is complete. Its last event, if it has any, is still here.
    pub fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) {
        if let (Some(event), Some(transaction)) =
            (self.events.last_mut(), self.transactions.last_mut())
            && transaction.commit_lsn == commit_lsn
        {
            event.last = true;
            transaction.end_lsn = end_lsn;
        }
        self.boundary = end_lsn;
    }

    /// Ready for its next use; keeps its memory, but not that of an unusually large row.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(SLAB_BYTES);
        self.events.clear();
        self.tables.clear();
        self.transactions.clear();
        self.boundary = Lsn::INVALID;
    }

    fn copy(&mut self, tuple: TupleData<'_>) -> Span {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(tuple.bytes());
        Span {
            start,
            len: tuple.bytes().len() as u32,
            columns: tuple.columns(),
        }
    }

    fn copy_old(&mut self, old: OldTuple<'_>) -> Old {
        match old {
            OldTuple::Key(tuple) => Old::Key(self.copy(tuple)),
            OldTuple::Full(tuple) => Old::Full(self.copy(tuple)),
        }
    }
}
