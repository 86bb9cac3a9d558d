//! From PostgreSQL's text to the bytes of a message, in one pass and without a tree between.
//!
//! In: an event in its slab, its table's layout. Out: the MessagePack of a `wire::Event`, appended.
//! Invariant: the bytes are those of `wire::Event::to_msgpack`; the property test compares them.
//!
//! Everything of a message that is the same for each row of a table is encoded once, in `Layout`.

mod layout;
pub mod msgpack;
pub mod value;

use wire::Lsn;

use layout::ColumnLayout;
pub use layout::Layout;
use value::Charset;

use crate::event::{Change, Event, Old, Slab, Span};
use crate::pgoutput::{Cell, TupleData};

/// Appends the event's payload to `out`.
///
/// 6 columns, 120 bytes: see the figures of bench `encode/row6` in `benches/README.md`.
pub fn event(slab: &Slab, event: &Event, layout: &Layout, out: &mut Vec<u8>) {
    message(
        slab,
        event,
        layout,
        &Parts::of(slab, &event.change, layout),
        out,
    );
}

#[inline]
fn message(slab: &Slab, event: &Event, layout: &Layout, parts: &Parts<'_>, out: &mut Vec<u8>) {
    let transaction = slab.transaction(event);
    msgpack::map_len(out, parts.keys());
    out.extend_from_slice(layout.head(event.change.operation()));
    lsn(out, event.lsn);
    out.extend_from_slice(layout.columns_key());
    parts.columns(layout, out);
    out.extend_from_slice(layout.schema());
    lsn(out, transaction.commit_lsn);
    msgpack::key(out, b"seq");
    msgpack::uint(out, u64::from(event.seq));
    msgpack::key(out, b"xid");
    msgpack::uint(out, transaction.xid);
    msgpack::key(out, b"commit_time");
    msgpack::int(out, transaction.commit_time_us);
    out.extend_from_slice(layout.schema_version());
    msgpack::boolean(out, event.last);
    parts.optional(layout, out);
}

/// Appends what goes out in place of an event whose `body` no message can hold: the same keys, of the
/// columns only the replica identity's, and where the whole body is. Under REPLICA IDENTITY FULL,
/// where every column is identity, there are no columns.
pub fn stub(
    slab: &Slab,
    event: &Event,
    layout: &Layout,
    body: &wire::event::Oversize,
    out: &mut Vec<u8>,
) {
    let mut parts = Parts::of(slab, &event.change, layout);
    parts.row = match parts.row {
        Tuple::Key(tuple) | Tuple::All(tuple) if layout.key_columns() < layout.columns().len() => {
            Tuple::Key(tuple)
        }
        Tuple::None | Tuple::Key(_) | Tuple::All(_) => Tuple::None,
    };
    parts.old = Tuple::None;
    parts.source = None;
    parts.unchanged = 0;
    parts.oversize = Some(body);
    message(slab, event, layout, &parts, out);
}

/// The tuples of a change, sorted by where they go in the message.
struct Parts<'a> {
    /// `columns`: the new row, or of a DELETE what PostgreSQL sent.
    row: Tuple<'a>,
    /// `old`.
    old: Tuple<'a>,
    /// Where unchanged TOAST values can be taken from: the old row under REPLICA IDENTITY FULL.
    source: Option<TupleData<'a>>,
    /// Columns of `row` that are unchanged TOAST and have no source.
    unchanged: usize,
    truncate: Option<(bool, bool)>,
    oversize: Option<&'a wire::event::Oversize>,
}

#[derive(Clone, Copy)]
enum Tuple<'a> {
    None,
    /// Only the replica identity's columns.
    Key(TupleData<'a>),
    All(TupleData<'a>),
}

impl<'a> Parts<'a> {
    fn of(slab: &'a Slab, change: &Change, layout: &Layout) -> Self {
        let tuple = |span: Span| slab.tuple(span);
        let old_tuple = |old: Old| match old {
            Old::None => Tuple::None,
            Old::Key(span) => Tuple::Key(tuple(span)),
            Old::Full(span) => Tuple::All(tuple(span)),
        };
        let mut parts = Self {
            row: Tuple::None,
            old: Tuple::None,
            source: None,
            unchanged: 0,
            truncate: None,
            oversize: None,
        };
        match *change {
            Change::Insert { new } => parts.row = Tuple::All(tuple(new)),
            Change::Update { old, new } => {
                let new = tuple(new);
                parts.row = Tuple::All(new);
                parts.old = old_tuple(old);
                match parts.old {
                    Tuple::All(old) => parts.source = Some(old),
                    Tuple::None | Tuple::Key(_) => {
                        parts.unchanged = new
                            .cells()
                            .take(layout.columns().len())
                            .filter(|cell| *cell == Cell::UnchangedToast)
                            .count();
                    }
                }
            }
            Change::Delete { old } => parts.row = old_tuple(old),
            Change::Truncate {
                cascade,
                restart_identity,
            } => {
                parts.truncate = Some((cascade, restart_identity));
            }
        }
        // An `old` without columns is left out, as an empty list is by the contract's types.
        if parts.old.count(layout) == 0 {
            parts.old = Tuple::None;
        }
        parts
    }

    /// Keys of the message's map; at most 14, so the header is one byte.
    fn keys(&self) -> usize {
        let has_old = !matches!(self.old, Tuple::None);
        wire::Event::FIXED_KEYS
            + usize::from(has_old)
            + usize::from(self.unchanged > 0)
            + if self.truncate.is_some() { 2 } else { 0 }
            + usize::from(self.oversize.is_some())
    }

    fn columns(&self, layout: &Layout, out: &mut Vec<u8>) {
        msgpack::array_len(out, self.row.count(layout) - self.unchanged);
        match self.source {
            None => self.row.encode(layout, out),
            Some(source) => {
                let Tuple::All(row) = self.row else { return };
                let charset = Charset::Unknown;
                for ((cell, old), column) in row.cells().zip(source.cells()).zip(layout.columns()) {
                    let cell = if cell == Cell::UnchangedToast {
                        old
                    } else {
                        cell
                    };
                    encode_column(column, cell, charset, out);
                }
            }
        }
    }

    fn optional(&self, layout: &Layout, out: &mut Vec<u8>) {
        if !matches!(self.old, Tuple::None) {
            msgpack::key(out, b"old");
            msgpack::array_len(out, self.old.count(layout));
            self.old.encode(layout, out);
        }
        if self.unchanged > 0
            && let Tuple::All(row) = self.row
        {
            msgpack::key(out, b"unchanged");
            msgpack::array_len(out, self.unchanged);
            for (cell, column) in row.cells().zip(layout.columns()) {
                if cell == Cell::UnchangedToast {
                    out.extend_from_slice(column.name());
                }
            }
        }
        if let Some((cascade, restart_identity)) = self.truncate {
            msgpack::key(out, b"cascade");
            msgpack::boolean(out, cascade);
            msgpack::key(out, b"restart_identity");
            msgpack::boolean(out, restart_identity);
        }
        if let Some(oversize) = self.oversize {
            msgpack::key(out, b"oversize");
            msgpack::map_len(out, 3);
            msgpack::key(out, b"bytes");
            msgpack::uint(out, oversize.bytes);
            msgpack::key(out, b"sha256");
            msgpack::str(out, oversize.sha256.as_bytes());
            msgpack::key(out, b"object");
            msgpack::str(out, oversize.object.as_bytes());
        }
    }
}

impl Tuple<'_> {
    fn count(&self, layout: &Layout) -> usize {
        match self {
            Self::None => 0,
            Self::Key(_) => layout.key_columns(),
            Self::All(tuple) => usize::from(tuple.columns()).min(layout.columns().len()),
        }
    }

    /// Unchanged TOAST is skipped: the caller counts and lists it.
    fn encode(&self, layout: &Layout, out: &mut Vec<u8>) {
        match self {
            Self::None => {}
            Self::Key(tuple) => {
                let charset = Charset::of(tuple);
                for (cell, column) in tuple.cells().zip(layout.columns()) {
                    if column.is_key {
                        encode_column(column, cell, charset, out);
                    }
                }
            }
            Self::All(tuple) => {
                let charset = Charset::of(tuple);
                for (cell, column) in tuple.cells().zip(layout.columns()) {
                    if cell != Cell::UnchangedToast {
                        encode_column(column, cell, charset, out);
                    }
                }
            }
        }
    }
}

impl Charset {
    /// One look at the row instead of one at each cell: 2,176 -> 1,840 instructions (`encode/row6`),
    /// 12,469 -> 9,759 (`encode/row50`). A length with its eighth bit set makes a row of ASCII
    /// `Unknown`, which only costs the looks at its cells.
    #[inline]
    fn of(tuple: &TupleData<'_>) -> Self {
        if tuple.bytes().is_ascii() {
            Self::Ascii
        } else {
            Self::Unknown
        }
    }
}

#[inline]
fn encode_column(column: &ColumnLayout, cell: Cell<'_>, charset: Charset, out: &mut Vec<u8>) {
    out.extend_from_slice(column.before_value());
    match cell {
        // An old row never holds unchanged TOAST: PostgreSQL fetches what it logs there.
        Cell::Null | Cell::UnchangedToast => msgpack::nil(out),
        Cell::Text(text) => value::encode(column.kind, text, charset, out),
        Cell::Binary(bytes) => msgpack::bin(out, bytes),
    }
}

fn lsn(out: &mut Vec<u8>, lsn: Lsn) {
    msgpack::str(out, lsn.text(&mut [0; 17]));
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
