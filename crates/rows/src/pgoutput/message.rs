//! The messages of `pgoutput`, borrowed from the bytes they came in.
//!
//! In: what `decode` has checked. Out: plain fields, and iterators over the cells of a tuple.
//! Invariant: the iterators are total: over corrupt bytes they end early and never panic.

use wire::Lsn;

use super::relations::Relation;

/// One message of protocol version 1. Only `Relation` owns memory; it is rare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    Begin(Begin),
    Commit(Commit),
    /// The transaction was replicated to this server from elsewhere.
    Origin {
        commit_lsn: Lsn,
        name: &'a [u8],
    },
    Relation(Relation),
    /// The name of a type that is not built in; sent before the first relation that uses it.
    Type(TypeName<'a>),
    Insert {
        relation_id: u32,
        new: TupleData<'a>,
    },
    Update {
        relation_id: u32,
        /// `None`: neither the key changed nor is the replica identity FULL.
        old: Option<OldTuple<'a>>,
        new: TupleData<'a>,
    },
    Delete {
        relation_id: u32,
        old: OldTuple<'a>,
    },
    Truncate(Truncate<'a>),
    LogicalMessage(LogicalMessage<'a>),
}

/// Opens a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// The LSN of the commit record: equal to `Commit::commit_lsn`.
    pub final_lsn: Lsn,
    /// Microseconds since 2000-01-01 UTC; see `wire::event::unix_us`.
    pub commit_time_us: i64,
    pub xid: u32,
}

/// Closes a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Unused by PostgreSQL so far.
    pub flags: u8,
    pub commit_lsn: Lsn,
    /// The first byte behind the commit record: what to confirm.
    pub end_lsn: Lsn,
    /// Microseconds since 2000-01-01 UTC; see `wire::event::unix_us`.
    pub commit_time_us: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeName<'a> {
    pub oid: u32,
    pub namespace: &'a str,
    pub name: &'a str,
}

/// The tables one TRUNCATE emptied, the cascaded ones included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate<'a> {
    pub relation_ids: RelationIds<'a>,
    pub cascade: bool,
    pub restart_identity: bool,
}

/// From `pg_logical_emit_message`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// Part of the surrounding transaction; otherwise it comes on its own, also if that rolls back.
    pub transactional: bool,
    pub lsn: Lsn,
    pub prefix: &'a [u8],
    pub content: &'a [u8],
}

/// The old row of an UPDATE or DELETE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// Only the replica identity's columns hold values. The other cells read `Null`
    /// and say nothing: go by `Column::is_key`.
    Key(TupleData<'a>),
    /// Every column, as REPLICA IDENTITY FULL sends it.
    Full(TupleData<'a>),
}

/// The cells of one row, still as they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TupleData<'a> {
    columns: u16,
    bytes: &'a [u8],
}

impl<'a> TupleData<'a> {
    /// A tuple over bytes that `bytes()` of another gave, copied elsewhere meanwhile.
    /// Other bytes do no harm: `cells` then ends early.
    #[inline]
    pub fn from_parts(columns: u16, bytes: &'a [u8]) -> Self {
        Self { columns, bytes }
    }

    /// How many cells the tuple has.
    #[inline]
    pub fn columns(&self) -> u16 {
        self.columns
    }

    /// The cells with their tags and lengths, without the column count in front.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The cells in the order of the relation's columns.
    #[inline]
    pub fn cells(&self) -> Cells<'a> {
        Cells {
            remaining: self.columns,
            rest: self.bytes,
        }
    }
}

impl<'a> IntoIterator for TupleData<'a> {
    type Item = Cell<'a>;
    type IntoIter = Cells<'a>;

    #[inline]
    fn into_iter(self) -> Cells<'a> {
        self.cells()
    }
}

/// One column of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    Null,
    /// A TOASTed value the UPDATE did not touch. It is there, PostgreSQL just does not send it.
    UnchangedToast,
    /// The type's output function, in UTF-8 (the session pins `client_encoding`).
    Text(&'a [u8]),
    /// The type's send function. Only sent to who asks for it, which the bridge does not.
    Binary(&'a [u8]),
}

/// Iterator over the cells of a tuple.
#[derive(Debug, Clone)]
pub struct Cells<'a> {
    remaining: u16,
    rest: &'a [u8],
}

impl<'a> Cells<'a> {
    #[inline]
    fn value(&mut self, rest: &'a [u8]) -> Option<&'a [u8]> {
        let (len, rest) = rest.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        self.rest = rest;
        Some(value)
    }
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    #[inline]
    fn next(&mut self) -> Option<Cell<'a>> {
        self.remaining = self.remaining.checked_sub(1)?;
        let (tag, rest) = self.rest.split_first()?;
        match tag {
            b't' => self.value(rest).map(Cell::Text),
            b'n' => {
                self.rest = rest;
                Some(Cell::Null)
            }
            b'u' => {
                self.rest = rest;
                Some(Cell::UnchangedToast)
            }
            b'b' => self.value(rest).map(Cell::Binary),
            _ => None,
        }
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(usize::from(self.remaining)))
    }
}

/// Iterator over the relation ids of a TRUNCATE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationIds<'a> {
    ids: &'a [[u8; 4]],
}

impl<'a> RelationIds<'a> {
    /// Big-endian ids, four bytes each; an incomplete last one is not an id.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            ids: bytes.as_chunks().0,
        }
    }
}

impl Iterator for RelationIds<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (id, rest) = self.ids.split_first()?;
        self.ids = rest;
        Some(u32::from_be_bytes(*id))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.ids.len(), Some(self.ids.len()))
    }
}

impl ExactSizeIterator for RelationIds<'_> {}
