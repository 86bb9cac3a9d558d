//! Turns the bytes of one `pgoutput` message into a `Message`.
//!
//! In: the payload of one XLogData. Out: a `Message` that borrows from it.
//! Invariant: total: any bytes give a message or an error, and a message used up every byte.

use wire::Lsn;

use super::cursor::Cursor;
use super::message::{
    Begin, Commit, LogicalMessage, Message, OldTuple, RelationIds, Truncate, TupleData, TypeName,
};
use super::relations::{Column, Relation, ReplicaIdentity};

/// The bytes are not a message of protocol version 1. Never retryable: the same WAL decodes
/// to the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("pgoutput message is malformed: expected {expected} at byte {at}")]
pub struct Error {
    pub expected: &'static str,
    /// Counted from 0, the tag of the message.
    pub at: usize,
}

/// Decodes one message. Allocates only for Relation.
///
/// PostgreSQL: "Logical Replication Message Formats".
#[inline]
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, Error> {
    let mut cursor = Cursor::new(bytes);
    let message = match cursor.u8("a message tag")? {
        b'I' => insert(&mut cursor)?,
        b'U' => update(&mut cursor)?,
        b'D' => delete(&mut cursor)?,
        b'B' => begin(&mut cursor)?,
        b'C' => commit(&mut cursor)?,
        b'R' => Message::Relation(relation(&mut cursor)?),
        b'Y' => type_name(&mut cursor)?,
        b'T' => truncate(&mut cursor)?,
        b'M' => logical_message(&mut cursor)?,
        b'O' => origin(&mut cursor)?,
        _ => return Err(cursor.error_before("a message tag, one of BCORYIUDTM")),
    };
    cursor.end()?;
    Ok(message)
}

#[inline]
fn insert<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Error> {
    let relation_id = relation_id(cursor)?;
    let new = new_tuple(cursor)?;
    Ok(Message::Insert { relation_id, new })
}

#[inline]
fn update<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Error> {
    let relation_id = relation_id(cursor)?;
    let (old, new) = match cursor.u8("tuple tag K, O or N")? {
        b'N' => (None, tuple(cursor)?),
        b'K' => (Some(OldTuple::Key(tuple(cursor)?)), new_tuple(cursor)?),
        b'O' => (Some(OldTuple::Full(tuple(cursor)?)), new_tuple(cursor)?),
        _ => return Err(cursor.error_before("tuple tag K, O or N")),
    };
    Ok(Message::Update {
        relation_id,
        old,
        new,
    })
}

#[inline]
fn delete<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Error> {
    let relation_id = relation_id(cursor)?;
    let old = match cursor.u8("tuple tag K or O")? {
        b'K' => OldTuple::Key(tuple(cursor)?),
        b'O' => OldTuple::Full(tuple(cursor)?),
        _ => return Err(cursor.error_before("tuple tag K or O")),
    };
    Ok(Message::Delete { relation_id, old })
}

fn begin<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Error> {
    Ok(Message::Begin(Begin {
        final_lsn: Lsn(cursor.u64("the final LSN")?),
        commit_time_us: cursor.i64("the commit time")?,
        xid: cursor.u32("the transaction id")?,
    }))
}

fn commit<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Error> {
    Ok(Message::Commit(Commit {
        flags: cursor.u8("commit flags")?,
        commit_lsn: Lsn(cursor.u64("the commit LSN")?),
        end_lsn: Lsn(cursor.u64("the end LSN")?),
        commit_time_us: cursor.i64("the commit time")?,
    }))
}

fn origin<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Error> {
    Ok(Message::Origin {
        commit_lsn: Lsn(cursor.u64("the origin's commit LSN")?),
        name: cursor.c_bytes("the origin's name")?,
    })
}

fn relation(cursor: &mut Cursor<'_>) -> Result<Relation, Error> {
    let id = relation_id(cursor)?;
    let namespace = namespace(cursor)?.to_owned();
    let name = cursor.c_str("a relation name in UTF-8")?.to_owned();
    let replica_identity = match cursor.u8("replica identity d, n, f or i")? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        _ => return Err(cursor.error_before("replica identity d, n, f or i")),
    };
    let count = cursor.u16("the column count")?;
    let columns = (0..count)
        .map(|_| column(cursor))
        .collect::<Result<_, _>>()?;
    Ok(Relation {
        id,
        namespace,
        name,
        replica_identity,
        columns,
    })
}

fn column(cursor: &mut Cursor<'_>) -> Result<Column, Error> {
    let flags = cursor.u8("column flags")?;
    Ok(Column {
        is_key: flags & 1 != 0,
        name: cursor.c_str("a column name in UTF-8")?.to_owned(),
        type_oid: cursor.u32("a type OID")?,
        type_modifier: cursor.i32("a type modifier")?,
    })
}

fn type_name<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Error> {
    Ok(Message::Type(TypeName {
        oid: cursor.u32("a type OID")?,
        namespace: namespace(cursor)?,
        name: cursor.c_str("a type name in UTF-8")?,
    }))
}

fn truncate<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Error> {
    let count = cursor.u32("the relation count")?;
    let flags = cursor.u8("truncate flags")?;
    let ids = cursor.take((count as usize).saturating_mul(4), "relation ids")?;
    Ok(Message::Truncate(Truncate {
        relation_ids: RelationIds::new(ids),
        cascade: flags & 1 != 0,
        restart_identity: flags & 2 != 0,
    }))
}

fn logical_message<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, Error> {
    let flags = cursor.u8("message flags")?;
    let lsn = Lsn(cursor.u64("the message's LSN")?);
    let prefix = cursor.c_bytes("the message's prefix")?;
    let len = cursor.u32("the length of the content")?;
    Ok(Message::LogicalMessage(LogicalMessage {
        transactional: flags & 1 != 0,
        lsn,
        prefix,
        content: cursor.take(len as usize, "the content")?,
    }))
}

#[inline]
fn relation_id(cursor: &mut Cursor<'_>) -> Result<u32, Error> {
    cursor.u32("a relation id")
}

/// PostgreSQL: an empty namespace stands for `pg_catalog`.
fn namespace<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, Error> {
    match cursor.c_str("a namespace in UTF-8")? {
        "" => Ok("pg_catalog"),
        namespace => Ok(namespace),
    }
}

#[inline]
fn new_tuple<'a>(cursor: &mut Cursor<'a>) -> Result<TupleData<'a>, Error> {
    match cursor.u8("tuple tag N")? {
        b'N' => tuple(cursor),
        _ => Err(cursor.error_before("tuple tag N")),
    }
}

/// Walks the cells once, so that whoever encodes them later need not expect an error.
#[inline]
fn tuple<'a>(cursor: &mut Cursor<'a>) -> Result<TupleData<'a>, Error> {
    let columns = cursor.u16("the cell count")?;
    let start = *cursor;
    for _ in 0..columns {
        match cursor.u8("a cell tag")? {
            b't' | b'b' => {
                let len = cursor.u32("the length of a cell")?;
                cursor.take(len as usize, "a cell's value")?;
            }
            b'n' | b'u' => {}
            _ => return Err(cursor.error_before("a cell tag, one of ntub")),
        }
    }
    Ok(TupleData::from_parts(columns, cursor.since(start)))
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
