//! Finds tables to work for, and deletes old outcomes.
//!
//! In: a session of its own. Out: names of tables, as they appear; fewer rows.
//! Invariant: deleting is done in small transactions, so that it never holds up the writes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use daemon::postgres::PostgresOptions;
use daemon::shutdown::Shutdown;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::session::{OpenError, Session};

/// (schema, table).
pub type TableName = (String, String);

/// How to do it.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How often to look for tables.
    pub discover_interval: Duration,
    /// Age at which an outcome is deleted.
    pub retention: Duration,
}

#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error("no session with PostgreSQL")]
    Open(#[from] OpenError),
    #[error("the session with PostgreSQL was lost")]
    Lost(#[from] tokio_postgres::Error),
}

const PRUNE_INTERVAL: Duration = Duration::from_mins(1);
const PRUNE_ROWS: i32 = 5000;

/// Runs until the shutdown. Every table that role app_writer may write is sent at least once.
pub async fn run(
    postgres: PostgresOptions,
    settings: Settings,
    found: mpsc::Sender<TableName>,
    metrics: Metrics,
    shutdown: Shutdown,
) {
    let mut known = BTreeSet::new();
    loop {
        let work = work(&postgres, settings, &found, &mut known, &metrics);
        tokio::select! {
            Err(error) = work => {
                metrics.postgres_up.set(0);
                tracing::warn!(error = &error as &dyn std::error::Error, "PostgreSQL is away; writes wait in the queue");
            }
            _ = shutdown.wait() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(settings.discover_interval) => {}
            _ = shutdown.wait() => return,
        }
    }
}

async fn work(
    postgres: &PostgresOptions,
    settings: Settings,
    found: &mpsc::Sender<TableName>,
    known: &mut BTreeSet<TableName>,
    metrics: &Metrics,
) -> Result<(), Interrupted> {
    let session = Session::open(postgres, "processor maintenance").await?;
    let mut pruned_at: Option<Instant> = None;
    loop {
        for row in session.client().query(WRITABLE, &[]).await? {
            let table: TableName = (row.get(0), row.get(1));
            if known.insert(table.clone()) {
                // The receiver goes away at the shutdown, which ends this too.
                let _ = found.send(table).await;
            }
        }
        metrics.postgres_up.set(1);
        if pruned_at.is_none_or(|at| PRUNE_INTERVAL <= at.elapsed()) {
            pruned_at = Some(Instant::now());
            metrics
                .pruned
                .inc_by(prune(&session, settings.retention).await?);
        }
        tokio::time::sleep(settings.discover_interval).await;
    }
}

/// Deletes what is old, in transactions of [`PRUNE_ROWS`]. Returns how many rows.
pub async fn prune(session: &Session, retention: Duration) -> Result<u64, tokio_postgres::Error> {
    const PRUNE: &str = "SELECT public.prune_operations(make_interval(secs => $1), $2)";
    let mut total = 0;
    loop {
        let row = session
            .client()
            .query_one(PRUNE, &[&retention.as_secs_f64(), &PRUNE_ROWS])
            .await?;
        let deleted: i64 = row.get(0);
        total += deleted as u64;
        if deleted < i64::from(PRUNE_ROWS) {
            return Ok(total);
        }
    }
}

const WRITABLE: &str = "
    SELECT namespace.nspname::text, class.relname::text
    FROM pg_class AS class
    JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
    WHERE class.relkind IN ('r', 'p') AND NOT class.relispartition
      AND namespace.nspname NOT IN ('pg_catalog', 'information_schema')
      AND (has_any_column_privilege(current_role, class.oid, 'INSERT, UPDATE')
           OR has_table_privilege(current_role, class.oid, 'DELETE'))";
