//! What every message of one table has in common, encoded ahead.
//!
//! In: a table's relation, its types and schema version. Out: byte runs to copy between the values.
//! Invariant: none; this is a cache of constants.

use wire::Operation;

use super::msgpack;
use super::value::Kind;
use crate::pgoutput::Relation;

#[derive(Debug)]
pub struct Layout {
    /// Keys `table` to `lsn`, by operation in the order of `Operation::ALL`.
    heads: [Vec<u8>; 4],
    columns_key: Vec<u8>,
    columns: Vec<ColumnLayout>,
    key_columns: usize,
    /// From `schema` to the key `commit_lsn`.
    schema: Vec<u8>,
    /// From `schema_version` to the key `last`.
    schema_version: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct ColumnLayout {
    /// `{"name": <name>, "value":`.
    bytes: Vec<u8>,
    name_start: usize,
    name_end: usize,
    pub(super) kind: Kind,
    pub(super) is_key: bool,
}

impl Layout {
    /// `base_type` gives the type a domain is made of, and any other OID as it is.
    pub fn new(relation: &Relation, schema_version: u32, base_type: impl Fn(u32) -> u32) -> Self {
        let columns: Vec<_> = relation
            .columns
            .iter()
            .map(|column| {
                let kind = Kind::of(base_type(column.type_oid));
                ColumnLayout::new(&column.name, kind, column.is_key)
            })
            .collect();
        Self {
            heads: Operation::ALL.map(|operation| head(relation, operation)),
            columns_key: bytes(|out| msgpack::key(out, b"columns")),
            key_columns: columns.iter().filter(|column| column.is_key).count(),
            columns,
            schema: bytes(|out| {
                msgpack::key(out, b"schema");
                msgpack::str(out, relation.namespace.as_bytes());
                msgpack::key(out, b"commit_lsn");
            }),
            schema_version: bytes(|out| {
                msgpack::key(out, b"schema_version");
                msgpack::uint(out, u64::from(schema_version));
                msgpack::key(out, b"last");
            }),
        }
    }

    pub(super) fn head(&self, operation: Operation) -> &[u8] {
        &self.heads[operation as usize]
    }

    pub(super) fn columns_key(&self) -> &[u8] {
        &self.columns_key
    }

    pub(super) fn columns(&self) -> &[ColumnLayout] {
        &self.columns
    }

    pub(super) fn key_columns(&self) -> usize {
        self.key_columns
    }

    pub(super) fn schema(&self) -> &[u8] {
        &self.schema
    }

    pub(super) fn schema_version(&self) -> &[u8] {
        &self.schema_version
    }
}

impl ColumnLayout {
    fn new(name: &str, kind: Kind, is_key: bool) -> Self {
        let mut bytes = Vec::new();
        msgpack::map_len(&mut bytes, 2);
        msgpack::key(&mut bytes, b"name");
        let name_start = bytes.len();
        msgpack::str(&mut bytes, name.as_bytes());
        let name_end = bytes.len();
        msgpack::key(&mut bytes, b"value");
        Self {
            bytes,
            name_start,
            name_end,
            kind,
            is_key,
        }
    }

    #[inline]
    pub(super) fn before_value(&self) -> &[u8] {
        &self.bytes
    }

    /// The name alone, as a MessagePack str.
    pub(super) fn name(&self) -> &[u8] {
        &self.bytes[self.name_start..self.name_end]
    }
}

fn head(relation: &Relation, operation: Operation) -> Vec<u8> {
    bytes(|out| {
        msgpack::key(out, b"table");
        msgpack::str(out, relation.name.as_bytes());
        msgpack::key(out, b"operation");
        msgpack::str(out, operation.name().as_bytes());
        msgpack::key(out, b"relation_id");
        msgpack::uint(out, u64::from(relation.id));
        msgpack::key(out, b"lsn");
    })
}

fn bytes(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}
