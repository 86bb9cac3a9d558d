//! Opens a snapshot's transaction and finds where the stream joins it.
//!
//! In: a job, two connections. Out: the open transaction's plan and joint.
//! Invariant: the lock is older than what the transaction sees, and the marker is younger; so nothing
//! can alter the table in between, and every commit the transaction sees is before the marker.
//!
//! A source that is far behind is waited for before the table is locked: DDL would wait for the lock, and every writer of
//! the table behind the DDL.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use wire::snapshot::ErrorCode;

use super::Settings;
use super::failure::Failure;
use super::handoff::MARKER_PREFIX;
use super::plan::{self, Plan, Size, Target};
use super::queue::Job;
use super::transactions::{Joint, Visibility};
use crate::catalog::Catalog;

/// How long the table may be locked by others before the snapshot is refused.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// How far the source may be behind.
const MARKER_TIMEOUT: Duration = Duration::from_mins(5);
/// A source so little behind is as near as it gets.
const NEAR: Duration = Duration::from_secs(5);
/// A snapshot is taken again at most so often; each time a commit needs to become visible.
const ATTEMPTS_MAX: u32 = 120;
const ATTEMPT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// The marker's commit need not be on a standby, which may be away for hours.
const MARKER_SESSION: &str = "SET synchronous_commit = local";
/// The lock timeout is the session's.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off; \
    SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";

/// A transaction that stands ready for COPY.
pub struct Joined {
    pub target: Target,
    pub plan: Plan,
    pub joint: Joint,
    pub size: Size,
}

/// `client` holds the transaction afterwards; `beside` is another session, for the marker.
pub async fn join(
    settings: &Settings,
    client: &Client,
    beside: &mut Catalog,
    job: &Job,
) -> Result<Joined, Failure> {
    let publications = &settings.publications;
    let patience = format!("SET lock_timeout = {}", LOCK_TIMEOUT.as_millis());
    client.batch_execute(&patience).await?;
    catch_up(settings, beside, job).await?;
    let target = plan::find(client, &job.schema, &job.table, publications).await?;
    let plan = target.plan(client, &job.options).await?;
    for attempt in 0..ATTEMPTS_MAX {
        // PostgreSQL: the transaction's snapshot is taken by its first query; neither SET nor LOCK is one.
        client.batch_execute(BEGIN).await?;
        client.batch_execute(&plan.lock).await?;
        let visibility = visible_to(client).await?;
        let now = plan::find(client, &job.schema, &job.table, publications)
            .await
            .map_err(|failure| match failure.code {
                ErrorCode::UnknownTable | ErrorCode::NotPublished => changed(),
                _ => failure,
            })?;
        if now != target {
            return Err(changed());
        }
        let size = plan::size(client, &target).await?;
        // Another one each time: after a reconnect the source may read an older marker again.
        let id = format!("{}/{attempt}", job.snapshot_id);
        let joint = marker(settings, beside, &id, visibility).await?;
        if !have_committed(beside.client().await?, &joint.unaccounted).await? {
            return Ok(Joined {
                target,
                plan,
                joint,
                size,
            });
        }
        client.batch_execute("ROLLBACK").await?;
        tokio::time::sleep(ATTEMPT_PAUSE_MAX.min(Duration::from_millis(100) * (attempt + 1))).await;
    }
    Err(Failure::unavailable(
        "transactions that committed before the bridge started do not become visible",
    ))
}

/// Waits until the source is near the end of WAL, or keeps a distance for as long as it may have one.
async fn catch_up(settings: &Settings, beside: &mut Catalog, job: &Job) -> Result<(), Failure> {
    let began = Instant::now();
    for attempt in 0.. {
        let written = Instant::now();
        let visibility = visible_to(beside.client().await?).await?;
        let id = format!("{}/behind/{attempt}", job.snapshot_id);
        marker(settings, beside, &id, visibility).await?;
        if written.elapsed() < NEAR || MARKER_TIMEOUT < began.elapsed() {
            break;
        }
    }
    Ok(())
}

/// What the session's transaction sees.
async fn visible_to(client: &Client) -> Result<Visibility, Failure> {
    let sql = "SELECT pg_current_snapshot()::text";
    let row = client.query_one(sql, &[]).await?;
    Visibility::parse(row.get(0)).map_err(|error| Failure::unavailable(error.to_string()))
}

/// Writes a marker behind the snapshot and waits until the source has read it.
async fn marker(
    settings: &Settings,
    beside: &mut Catalog,
    id: &str,
    visibility: Visibility,
) -> Result<Joint, Failure> {
    let answer = settings.shared.handoff.expect(id, visibility);
    let sql = "SELECT pg_logical_emit_message(true, $1, $2::text)";
    let client = beside.client().await?;
    client.batch_execute(MARKER_SESSION).await?;
    client.query_one(sql, &[&MARKER_PREFIX, &id]).await?;
    match tokio::time::timeout(MARKER_TIMEOUT, answer).await {
        Ok(Ok(joint)) => Ok(joint),
        Ok(Err(_)) | Err(_) => Err(Failure::unavailable(format!(
            "the bridge is more than {MARKER_TIMEOUT:?} behind PostgreSQL"
        ))),
    }
}

/// PostgreSQL: a commit that waits for a standby is in WAL, not visible, and by its status "in progress".
const HAVE_COMMITTED: &str = "\
    SELECT EXISTS (SELECT FROM unnest($1::text[]) AS xid \
      WHERE pg_xact_status(xid::xid8) = 'committed' OR EXISTS (SELECT FROM pg_stat_activity \
        WHERE backend_xid = xid::xid8::xid AND wait_event = 'SyncRep'))";

/// Whether some of the transactions are in WAL as committed.
async fn have_committed(client: &Client, xids: &[u64]) -> Result<bool, Failure> {
    if xids.is_empty() {
        return Ok(false);
    }
    let xids: Vec<String> = xids.iter().map(u64::to_string).collect();
    Ok(client.query_one(HAVE_COMMITTED, &[&xids]).await?.get(0))
}

/// The table is not what it was.
pub fn changed() -> Failure {
    Failure::new(
        ErrorCode::TableChanged,
        "the table or its publication changed while it was read",
        "read its schema again, then ask again",
    )
}
