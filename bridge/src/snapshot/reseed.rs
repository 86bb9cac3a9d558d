//! Asks for snapshots of all tables after changes were lost.
//!
//! In: a gap that consumers were told of. Out: a request for each table, as any consumer would send it.
//! Invariant: the checkpoint remembers the gap until every request is in stream `REQUESTS`.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use bytes::Bytes;
use daemon::backoff::{self, Backoff};
use daemon::chained::Chained;
use wire::names;

use super::kept;
use crate::catalog::Catalog;
use crate::config::TableFilter;
use crate::shared::Shared;

/// Runs for ever.
pub async fn run(
    jetstream: jetstream::Context,
    mut catalog: Catalog,
    publications: Vec<String>,
    tables: TableFilter,
    replicas: usize,
    shared: Arc<Shared>,
) {
    loop {
        shared.snapshots_due().await;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        while let Err(error) = ask(&jetstream, &mut catalog, &publications, &tables, replicas).await
        {
            let delay = backoff.next(backoff::random());
            tracing::warn!(error = %Chained(&*error), ?delay, "cannot ask for snapshots yet");
            tokio::time::sleep(delay).await;
        }
        shared.snapshots_asked();
    }
}

async fn ask(
    jetstream: &jetstream::Context,
    catalog: &mut Catalog,
    publications: &[String],
    tables: &TableFilter,
    replicas: usize,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // A request that comes before the stream is one that nobody keeps.
    kept::open(jetstream, replicas).await?;
    let client = jetstream.client();
    let mut asked = 0;
    for table in catalog.published_tables(publications).await? {
        if tables.admits(&table.schema, &table.table) {
            let subject = names::snapshot_request(&table.schema, &table.table);
            client.publish(subject, Bytes::new()).await?;
            asked += 1;
        }
    }
    client.flush().await?;
    tracing::info!(
        tables = asked,
        "snapshots asked for, so that consumers can seed again"
    );
    Ok(())
}
