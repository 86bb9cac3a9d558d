//! Knows the shape of each table, before the first row of that shape goes out.
//!
//! In: a relation that was never seen, or has changed. Out: its layout for the encoder.
//! Invariant: no row is published before its table's types are known.

use std::collections::HashMap;
use std::time::Duration;

use daemon::backoff::{self, Backoff};
use wire::Position;

use crate::catalog::{self, Catalog};
use crate::encode::Layout;
use crate::pgoutput::Relation;

pub struct SchemaRegistry {
    catalog: Catalog,
}

impl SchemaRegistry {
    pub fn new(catalog: Catalog) -> Self {
        Self { catalog }
    }

    /// Waits for PostgreSQL as long as it takes: a guess would change the types in the messages.
    pub async fn layout(&mut self, relation: &Relation, _valid_from: Position) -> Layout {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let base_types = loop {
            match self.base_types(relation).await {
                Ok(base_types) => break base_types,
                Err(error) => {
                    let delay = backoff.next(backoff::random());
                    tracing::warn!(table = %relation.name, %error, ?delay, "cannot read the types of a table, its rows wait");
                    tokio::time::sleep(delay).await;
                }
            }
        };
        Layout::new(relation, 1, |oid| {
            base_types.get(&oid).copied().unwrap_or(oid)
        })
    }

    async fn base_types(
        &mut self,
        relation: &Relation,
    ) -> Result<HashMap<u32, u32>, catalog::Error> {
        let type_oids: Vec<u32> = relation
            .columns
            .iter()
            .map(|column| column.type_oid)
            .collect();
        self.catalog.base_types(&type_oids).await
    }
}
