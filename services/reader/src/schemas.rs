//! Keeps the shapes of the tables at hand.
//!
//! In: KV bucket `schemas`, which the bridge writes. Out: the present shape of any table, at once. What must hold: while
//! NATS is away the last known shapes stay, and a bucket is taken over whole or not at all.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Entry, Operation};
use daemon::backoff::{self, Backoff};
use futures_util::StreamExt;
use wire::Message;
use wire::names::{BUCKET_SCHEMAS, schema_key};
use wire::schema::Schema;

/// Tables by their key in the bucket.
pub type Tables = HashMap<String, Arc<Table>>;

/// A table's shape and which one it is.
#[derive(Debug)]
pub struct Table {
    /// The shape, with what may be read.
    pub schema: Schema,
    /// Revision in the bucket: grows with every change of shape, privileges or row security.
    pub revision: u64,
}

/// The shapes; clones see the same.
#[derive(Debug, Clone, Default)]
pub struct Schemas(Arc<RwLock<Option<Arc<Tables>>>>);

impl Schemas {
    /// All tables; None until the bucket was read once.
    pub fn tables(&self) -> Option<Arc<Tables>> {
        // The lock is held for a clone or an assignment: nothing in there panics.
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The shape of one table, if the bucket has it.
    pub fn table(&self, schema: &str, table: &str) -> Option<Arc<Table>> {
        self.tables()?.get(&schema_key(schema, table)).cloned()
    }

    fn set(&self, tables: Tables) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(tables));
    }
}

/// Follows the bucket for ever. Cancel safe: the shapes are replaced at once or not at all.
pub async fn follow(context: &Context, schemas: &Schemas) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        if let Err(error) = watch(context, schemas, &mut backoff).await {
            tracing::warn!(%error, "cannot follow the schemas");
        }
        tokio::time::sleep(backoff.next(backoff::random())).await;
    }
}

/// Follows the bucket until the watch ends.
async fn watch(
    context: &Context,
    schemas: &Schemas,
    backoff: &mut Backoff,
) -> Result<(), async_nats::Error> {
    let bucket = context.get_key_value(BUCKET_SCHEMAS).await?;
    // Values still to come: the watch itself says nothing about an empty bucket.
    let is_empty = bucket.status().await?.values() == 0;
    let mut watch = bucket.watch_with_history(">").await?;
    let mut tables = Tables::new();
    if is_empty {
        schemas.set(tables.clone());
    }
    while let Some(entry) = watch.next().await {
        let entry = entry?;
        apply(&mut tables, &entry);
        if entry.delta == 0 {
            schemas.set(tables.clone());
            backoff.reset();
        }
    }
    Ok(())
}

fn apply(tables: &mut Tables, entry: &Entry) {
    match entry.operation {
        Operation::Delete | Operation::Purge => drop(tables.remove(&entry.key)),
        Operation::Put => match Schema::decode(&entry.value) {
            Ok(schema) => {
                tracing::info!(table = schema.schema, version = schema.version, "schema");
                let revision = entry.revision;
                tables.insert(entry.key.clone(), Arc::new(Table { schema, revision }));
            }
            Err(error) => {
                // Better no table than one checked against a shape it no longer has.
                tracing::error!(key = entry.key, %error, "schema cannot be read");
                tables.remove(&entry.key);
            }
        },
    }
}
