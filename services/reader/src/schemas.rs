//! The shapes of the tables, as the bridge publishes them.
//!
//! In: entries of KV bucket `schemas`. Out: tables.
//! Invariant: a table and its revision come from one entry.

use async_nats::jetstream::kv::Entry;
use daemon::bucket::{Bucket, Values};
use wire::schema::Schema;
use wire::{DecodeError, Message};

/// Tables by their key in the bucket.
pub type Tables = Values<Table>;
/// The present tables; clones see the same.
pub type Schemas = Bucket<Table>;

/// A table's shape and which one it is.
#[derive(Debug)]
pub struct Table {
    /// The shape, with what may be read.
    pub schema: Schema,
    /// Revision in the bucket: grows with every change of shape, privileges or row security.
    pub revision: u64,
}

/// For [`Bucket::follow`].
pub fn read(entry: &Entry) -> Result<Table, DecodeError> {
    let schema = Schema::decode(&entry.value)?;
    let revision = entry.revision;
    Ok(Table { schema, revision })
}
