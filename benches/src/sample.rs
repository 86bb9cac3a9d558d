//! Rows of the shapes that are measured, as the bytes of `pgoutput` and as slabs of events.
//!
//! In: a shape. Out: what the bridge would read, and what it would publish.
//! Must hold: the six-column row is the one the end-to-end bench inserts, about 120 bytes of text.

use bridge::assembler::Assembler;
use bridge::config::TableFilter;
use bridge::encode::{self, Layout};
use bridge::event::Slab;
use bridge::pgoutput;
use wire::{Lsn, SubjectPattern};

/// A table and one of its rows.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Name and type OID.
    columns: Vec<(String, u32)>,
    values: Vec<String>,
}

const INT8: u32 = 20;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const TIMESTAMPTZ: u32 = 1184;
const NUMERIC: u32 = 1700;
/// OID of the sample table.
const RELATION_ID: u32 = 16_385;

impl Shape {
    /// Six columns, about 120 bytes of text.
    pub fn row6() -> Self {
        let columns = [
            ("id", INT8, "1234567"),
            ("account", INT4, "34567"),
            ("amount", NUMERIC, "1234.56"),
            ("email", TEXT, "user1234567@example.com"),
            ("note", TEXT, "c4ca4238a0b923820dcc509a6f75849b 1234567"),
            ("created_at", TIMESTAMPTZ, "2025-12-10 10:30:00.123456+00"),
        ];
        Self {
            columns: columns
                .iter()
                .map(|&(name, oid, _)| (name.to_owned(), oid))
                .collect(),
            values: columns
                .iter()
                .map(|&(_, _, value)| value.to_owned())
                .collect(),
        }
    }

    /// An id and 49 columns of integers and short texts in turn.
    pub fn row50() -> Self {
        let mut shape = Self {
            columns: vec![("id".to_owned(), INT8)],
            values: vec!["1234567".to_owned()],
        };
        for index in 1..50 {
            let (oid, value) = if index % 2 == 0 {
                (INT4, (index * 1000).to_string())
            } else {
                (TEXT, format!("value {index} of the row"))
            };
            shape.columns.push((format!("column_{index}"), oid));
            shape.values.push(value);
        }
        shape
    }

    /// The Relation message.
    pub fn relation(&self) -> Vec<u8> {
        let mut bytes = vec![b'R'];
        bytes.extend_from_slice(&RELATION_ID.to_be_bytes());
        bytes.extend_from_slice(b"public\0bench\0d");
        bytes.extend_from_slice(&(self.columns.len() as u16).to_be_bytes());
        for (index, (name, oid)) in self.columns.iter().enumerate() {
            bytes.push(u8::from(index == 0));
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(&oid.to_be_bytes());
            bytes.extend_from_slice(&(-1_i32).to_be_bytes());
        }
        bytes
    }

    /// An Insert message.
    pub fn insert(&self) -> Vec<u8> {
        let mut bytes = vec![b'I'];
        bytes.extend_from_slice(&RELATION_ID.to_be_bytes());
        bytes.push(b'N');
        bytes.extend_from_slice(&(self.values.len() as u16).to_be_bytes());
        for value in &self.values {
            bytes.push(b't');
            bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
            bytes.extend_from_slice(value.as_bytes());
        }
        bytes
    }

    /// One transaction of `rows` inserts that fit a slab.
    pub fn slab(&self, rows: usize) -> Slab {
        let mut assembler = assembler();
        let insert = self.insert();
        take(&mut assembler, &self.relation());
        take(&mut assembler, &begin());
        for _ in 0..rows {
            take(&mut assembler, &insert);
        }
        take(&mut assembler, &commit());
        assembler
            .seal(Slab::default)
            .expect("a committed transaction can be sealed")
    }

    pub fn layout(&self) -> Layout {
        let relation = self.relation();
        match pgoutput::decode(&relation) {
            Ok(pgoutput::Message::Relation(relation)) => Layout::new(&relation, 1, |oid| oid),
            other => panic!("not a Relation: {other:?}"),
        }
    }

    /// The payload the bridge publishes for one row.
    pub fn payload(&self) -> Vec<u8> {
        let slab = self.slab(1);
        let mut payload = Vec::new();
        encode::event(&slab, &slab.events()[0], &self.layout(), &mut payload);
        payload
    }
}

/// For a new session, with no table filtered out.
pub fn assembler() -> Assembler {
    Assembler::new(
        TableFilter::default(),
        SubjectPattern::default(),
        0,
        1000,
        Slab::default(),
    )
}

/// Decodes one message into the assembler, whose slab must have room for it.
pub fn take(assembler: &mut Assembler, bytes: &[u8]) {
    let message = pgoutput::decode(bytes).expect("the sample is well-formed");
    assembler
        .take(COMMIT_LSN, message, |_| unreachable!("the slab has room"))
        .expect("the sample is in order");
}

/// A Begin message.
pub fn begin() -> Vec<u8> {
    let mut bytes = vec![b'B'];
    bytes.extend_from_slice(&COMMIT_LSN.0.to_be_bytes());
    bytes.extend_from_slice(&COMMIT_TIME.to_be_bytes());
    bytes.extend_from_slice(&1001_u32.to_be_bytes());
    bytes
}

/// The Commit message that belongs to `begin`.
pub fn commit() -> Vec<u8> {
    let mut bytes = vec![b'C', 0];
    bytes.extend_from_slice(&COMMIT_LSN.0.to_be_bytes());
    bytes.extend_from_slice(&(COMMIT_LSN.0 + 48).to_be_bytes());
    bytes.extend_from_slice(&COMMIT_TIME.to_be_bytes());
    bytes
}

const COMMIT_LSN: Lsn = Lsn(0x1_2345_6780);
/// Microseconds since 2000-01-01 UTC.
const COMMIT_TIME: i64 = 818_000_000_000_000;
