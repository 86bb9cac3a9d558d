//! From lines of COPY straight to the bytes of a chunk.
//!
//! In: lines, one per row. Out: payloads of `wire::snapshot::Chunk`, uncompressed.
//! Invariant: the bytes are those of `Chunk::to_msgpack`, and no payload has more rows or more bytes
//! than the limits say.

use bytes::Bytes;
use wire::Lsn;
use wire::snapshot_request::Values;

use super::copy_text;
use crate::encode::msgpack;
use crate::encode::value::{self, Charset, Kind};

/// How large a chunk may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub rows_max: usize,
    /// Of the payload.
    pub bytes_max: usize,
}

/// What all chunks of a snapshot say.
#[derive(Debug, Clone)]
pub struct Header<'a> {
    pub schema: &'a str,
    pub table: &'a str,
    pub snapshot_id: &'a str,
    pub lsn: Lsn,
    pub values: Values,
}

/// A chunk ready to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub chunk: u64,
    pub rows: u64,
    pub payload: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a row takes {bytes} bytes and a message holds {bytes_max}")]
    RowTooLarge { bytes: usize, bytes_max: usize },
    #[error("COPY sent a row of {found} fields instead of {expected}")]
    Fields { expected: usize, found: usize },
}

/// Collects rows until a chunk is full.
#[derive(Debug)]
pub struct Encoder {
    columns: Vec<Column>,
    limits: Limits,
    /// From `table` to the key `chunk`.
    head: Vec<u8>,
    /// From the key `lsn` to the key `data`.
    middle: Vec<u8>,
    /// Behind the rows.
    tail: Vec<u8>,
    /// `margin` free bytes, then the rows of the open chunk.
    buffer: Vec<u8>,
    margin: usize,
    rows: usize,
    chunk: u64,
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Column {
    /// As a MessagePack str.
    name: Vec<u8>,
    kind: Kind,
}

impl Encoder {
    /// `columns` are names and types (of a domain, its base type), in the order COPY prints them.
    pub fn new<'a>(
        header: &Header<'_>,
        columns: impl IntoIterator<Item = (&'a str, u32)>,
        limits: Limits,
    ) -> Self {
        let mut head = Vec::new();
        msgpack::map_len(&mut head, 8);
        msgpack::key(&mut head, b"table");
        msgpack::str(&mut head, header.table.as_bytes());
        msgpack::key(&mut head, b"operation");
        msgpack::str(&mut head, b"snapshot");
        msgpack::key(&mut head, b"snapshot_id");
        msgpack::str(&mut head, header.snapshot_id.as_bytes());
        msgpack::key(&mut head, b"chunk");
        let mut middle = Vec::new();
        msgpack::key(&mut middle, b"lsn");
        msgpack::str(&mut middle, header.lsn.text(&mut [0; 17]));
        msgpack::key(&mut middle, b"data");
        let mut tail = Vec::new();
        msgpack::key(&mut tail, b"values");
        let values: &[u8] = match header.values {
            Values::Text => b"text",
            Values::Typed => b"typed",
        };
        msgpack::str(&mut tail, values);
        msgpack::key(&mut tail, b"schema");
        msgpack::str(&mut tail, header.schema.as_bytes());
        let margin = head.len() + UINT_BYTES_MAX + middle.len() + ARRAY_LEN_BYTES_MAX;
        let columns = columns.into_iter().map(|(name, type_oid)| Column {
            name: {
                let mut bytes = Vec::new();
                msgpack::str(&mut bytes, name.as_bytes());
                bytes
            },
            kind: match header.values {
                Values::Text => Kind::Text,
                Values::Typed => Kind::of(type_oid),
            },
        });
        Self {
            columns: columns.collect(),
            limits,
            head,
            middle,
            tail,
            buffer: vec![0; margin],
            margin,
            rows: 0,
            chunk: 0,
            scratch: Vec::new(),
        }
    }

    /// Takes a row. Gives the chunk that had no room for it, or that it has filled.
    #[inline]
    pub fn push(&mut self, line: &[u8]) -> Result<Option<Sealed>, Error> {
        let start = self.buffer.len();
        self.row(line)?;
        let bytes = self.buffer.len() - start;
        let bytes_max = self.limits.bytes_max;
        if self.margin + bytes + self.tail.len() > bytes_max {
            return Err(Error::RowTooLarge { bytes, bytes_max });
        }
        if self.buffer.len() + self.tail.len() > bytes_max {
            let next = self.fresh_buffer(&self.buffer[start..]);
            self.buffer.truncate(start);
            let sealed = self.seal(next);
            self.rows = 1;
            return Ok(Some(sealed));
        }
        self.rows += 1;
        if self.rows >= self.limits.rows_max {
            let next = self.fresh_buffer(&[]);
            return Ok(Some(self.seal(next)));
        }
        Ok(None)
    }

    /// The rows left over, if there are any.
    pub fn finish(&mut self) -> Option<Sealed> {
        (self.rows > 0).then(|| self.seal(Vec::new()))
    }

    /// Chunks given so far.
    pub fn chunks(&self) -> u64 {
        self.chunk
    }

    #[inline]
    fn row(&mut self, line: &[u8]) -> Result<(), Error> {
        let Self {
            columns,
            buffer,
            scratch,
            ..
        } = self;
        msgpack::map_len(buffer, columns.len());
        let mut found = 0;
        // A table of no columns has rows all the same: an empty line each.
        let fields = copy_text::fields(line).take(if columns.is_empty() { 0 } else { usize::MAX });
        for field in fields {
            if let Some(column) = columns.get(found) {
                buffer.extend_from_slice(&column.name);
                match copy_text::unescape(field, scratch) {
                    None => msgpack::nil(buffer),
                    Some(text) => value::encode(column.kind, text, Charset::Unknown, buffer),
                }
            }
            found += 1;
        }
        if found == columns.len() {
            Ok(())
        } else {
            Err(Error::Fields {
                expected: columns.len(),
                found,
            })
        }
    }

    /// The open chunk, its header written right before its rows; `next` becomes the open one.
    fn seal(&mut self, next: Vec<u8>) -> Sealed {
        let mut header = Vec::with_capacity(self.margin);
        header.extend_from_slice(&self.head);
        msgpack::uint(&mut header, self.chunk);
        header.extend_from_slice(&self.middle);
        msgpack::array_len(&mut header, self.rows);
        let start = self.margin - header.len();
        let mut buffer = std::mem::replace(&mut self.buffer, next);
        buffer[start..self.margin].copy_from_slice(&header);
        buffer.extend_from_slice(&self.tail);
        let sealed = Sealed {
            chunk: self.chunk,
            rows: self.rows as u64,
            payload: Bytes::from(buffer).slice(start..),
        };
        self.chunk += 1;
        self.rows = 0;
        sealed
    }

    /// As large as the chunk before it was, because the next one will be about that.
    fn fresh_buffer(&self, rows: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::with_capacity(self.buffer.len() + rows.len() + self.tail.len());
        buffer.resize(self.margin, 0);
        buffer.extend_from_slice(rows);
        buffer
    }
}

const UINT_BYTES_MAX: usize = 9;
const ARRAY_LEN_BYTES_MAX: usize = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::snapshot::{Chunk, Snapshot};
    use wire::{Column, Message as _, Row, Value};

    use super::*;

    const BIG: Limits = Limits {
        rows_max: 10_000,
        bytes_max: 1 << 20,
    };

    fn header(values: Values) -> Header<'static> {
        Header {
            schema: "public",
            table: "users",
            snapshot_id: "snap-1",
            lsn: Lsn(0x191_BFD0),
            values,
        }
    }

    fn chunk(chunk: u64, values: Values, data: Vec<Row>) -> Chunk {
        Chunk {
            table: "users".into(),
            operation: Snapshot::Snapshot,
            snapshot_id: "snap-1".into(),
            chunk,
            lsn: Lsn(0x191_BFD0),
            data,
            values,
            schema: "public".into(),
        }
    }

    fn row(values: [(&str, Value); 2]) -> Row {
        Row(values.map(|(name, value)| Column::new(name, value)).into())
    }

    #[test]
    fn the_bytes_are_those_of_the_contract() {
        let columns = [("id", 23), ("name", 25)];
        let mut text = Encoder::new(&header(Values::Text), columns, BIG);
        let mut typed = Encoder::new(&header(Values::Typed), columns, BIG);
        for encoder in [&mut text, &mut typed] {
            assert_eq!(encoder.push(b"3001\tUser\\t1\n"), Ok(None));
            assert_eq!(encoder.push(b"-7\t\\N\n"), Ok(None));
        }

        let as_text = |id: &str, name| row([("id", Value::Text(id.into())), ("name", name)]);
        let expected = vec![
            as_text("3001", Value::Text("User\t1".into())),
            as_text("-7", Value::Null),
        ];
        let sealed = text.finish().unwrap();
        assert_eq!(sealed.rows, 2);
        assert_eq!(
            sealed.payload,
            chunk(0, Values::Text, expected).to_msgpack()
        );
        let expected = vec![
            row([
                ("id", Value::Int(3001)),
                ("name", Value::Text("User\t1".into())),
            ]),
            row([("id", Value::Int(-7)), ("name", Value::Null)]),
        ];
        assert_eq!(
            typed.finish().unwrap().payload,
            chunk(0, Values::Typed, expected).to_msgpack()
        );
    }

    #[test]
    fn a_row_that_no_message_holds_is_an_error_with_the_numbers() {
        let limits = Limits {
            bytes_max: 300,
            ..BIG
        };
        let mut encoder = Encoder::new(&header(Values::Text), [("a", 25)], limits);

        let refused = encoder.push(&[b'x'; 300]).unwrap_err();

        assert!(matches!(refused, Error::RowTooLarge { bytes_max: 300, .. }));
    }

    #[test]
    fn a_line_of_other_columns_is_an_error() {
        let mut encoder = Encoder::new(&header(Values::Text), [("a", 25)], BIG);

        assert!(encoder.push(b"1\t2\n").is_err());
    }

    #[test]
    fn rows_without_columns_are_counted() {
        let mut encoder = Encoder::new(&header(Values::Text), [], BIG);

        assert_eq!(encoder.push(b"\n"), Ok(None));
        assert_eq!(encoder.finish().unwrap().rows, 1);
    }

    proptest! {
        #[test]
        fn chunks_hold_all_rows_in_order_within_both_limits(
            texts in prop::collection::vec("[a-z]{0,60}", 0..200),
            rows_max in 1_usize..40,
            bytes_max in 250_usize..1500,
        ) {
            let limits = Limits { rows_max, bytes_max };
            let mut encoder = Encoder::new(&header(Values::Text), [("a", 25)], limits);
            let mut sealed = Vec::new();
            for text in &texts {
                sealed.extend(encoder.push(format!("{text}\n").as_bytes()).unwrap());
            }
            sealed.extend(encoder.finish());

            let mut read = Vec::new();
            for (index, sealed) in sealed.iter().enumerate() {
                prop_assert_eq!(sealed.chunk, index as u64);
                prop_assert!(sealed.payload.len() <= bytes_max);
                prop_assert!((1..=rows_max as u64).contains(&sealed.rows));
                let message = Chunk::decode(&sealed.payload).unwrap();
                prop_assert_eq!(message.to_msgpack(), sealed.payload.to_vec());
                prop_assert_eq!(message.data.len() as u64, sealed.rows);
                read.extend(message.data);
            }
            let expected: Vec<Row> = texts
                .iter()
                .map(|text| Row(vec![Column::new("a", Value::Text(text.clone()))]))
                .collect();
            prop_assert_eq!(read, expected);
        }
    }
}
