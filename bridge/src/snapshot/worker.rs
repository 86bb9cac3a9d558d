//! Makes one snapshot.
//!
//! In: a job. Out: its messages in the stream, ending in `init.meta` or `init.error`.
//! Invariant: meta goes out only after every chunk is stored, from a table that was the same before,
//! while and after it was read.
//!
//! While it reads it holds ACCESS SHARE: writers go on, DDL on the table waits for its end or cancel.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use daemon::backoff::{self, Backoff};
use daemon::chained::Chained;
use futures_util::StreamExt as _;
use tokio::sync::oneshot;
use tokio_postgres::{Client, NoTls};
use wire::names;
use wire::snapshot::{ErrorCode, Meta, Start};
use wire::snapshot_request::Compression;
use wire::{Lsn, Message};

use super::chunk::{self, Encoder, Header, Limits, Sealed};
use super::failure::Failure;
use super::join::{Joined, changed, join};
use super::outlet::Outlet;
use super::plan::{self, Plan, Size, Target};
use super::progress::Meter;
use super::queue::Job;
use super::{Settings, compress, unix_s};
use crate::catalog::Catalog;
use crate::schema_registry;

const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// NATS may be away for this long when the snapshot begins.
const VERSION_TIMEOUT: Duration = Duration::from_mins(1);
/// Room for the headers beside the snapshot's id: their names, `Content-Encoding`, a chunk's number.
const HEADERS_BYTES: usize = 160;

pub struct Worker {
    settings: Settings,
    jetstream: jetstream::Context,
}

/// What a finished snapshot was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub rows: u64,
    pub chunks: u64,
}

impl Worker {
    pub fn new(settings: Settings, jetstream: jetstream::Context) -> Self {
        Self {
            settings,
            jetstream,
        }
    }

    /// Makes the snapshot and says how it ended, in the stream and in the log.
    pub async fn run(&self, job: &Job, cancel: oneshot::Receiver<()>) -> Result<Summary, Failure> {
        let started = Instant::now();
        let made = self.make(job, cancel).await;
        match &made {
            Ok(summary) => {
                let rows = summary.rows;
                tracing::info!(
                    table = job.table, snapshot_id = job.snapshot_id, rows, chunks = summary.chunks,
                    elapsed = ?started.elapsed(), "snapshot made"
                );
                self.settings.metrics.snapshots_made.inc();
            }
            Err(failure) => {
                tracing::warn!(table = job.table, snapshot_id = job.snapshot_id, code = ?failure.code, error = %failure, "snapshot failed");
                self.settings.metrics.snapshots_failed.inc();
                self.say_failure(job, failure).await;
            }
        }
        made
    }

    async fn make(&self, job: &Job, cancel: oneshot::Receiver<()>) -> Result<Summary, Failure> {
        let connected = self.settings.postgres.connect("bridge snapshot").await;
        let (client, _closed) =
            connected.map_err(|error| Failure::unavailable(Chained(&error).to_string()))?;
        let made = tokio::select! {
            made = self.dump(&client, job) => made,
            // A dropped sender counts: whoever could cancel is gone.
            _ = cancel => Err(Failure::cancelled()),
        };
        if made.is_err() {
            // Else the connection would read the rest of the table before it ends.
            let stop = client.cancel_token();
            let stopped = tokio::time::timeout(Duration::from_secs(2), stop.cancel_query(NoTls));
            if !matches!(stopped.await, Ok(Ok(()))) {
                tracing::debug!(snapshot_id = job.snapshot_id, "cannot stop COPY");
            }
        }
        made
    }

    async fn dump(&self, client: &Client, job: &Job) -> Result<Summary, Failure> {
        let mut beside = Catalog::new(self.settings.postgres.clone());
        let limits = self.limits(job).await?;
        let Joined {
            target,
            plan,
            joint,
            size,
        } = join(&self.settings, client, &mut beside, job).await?;
        self.check_size(job, &size).await?;
        let cdc_seq = self.settings.shared.handoff.sequence_before(joint.lsn);
        let mut encoder = self
            .encoder(&mut beside, job, &plan, joint.lsn, limits)
            .await?;

        let mut outlet = Outlet::new(self.jetstream.clone());
        let version = self.schema_version(client, &target).await?;
        let start = start(job, &plan, &size, version);
        self.say(&mut outlet, job, "start", &start).await?;
        let meter = self
            .copy(client, job, &plan, &mut encoder, &mut outlet, &size)
            .await?;
        outlet.flush().await?;

        // PostgreSQL: DDL that waits for the table stands before every other session, and not before the
        // one that has the lock. What is published is asked of the catalogue as it is now, in any transaction.
        let found = plan::find(client, &job.schema, &job.table, &self.settings.publications).await;
        if found.is_err() || found.is_ok_and(|now| now != target) {
            return Err(changed());
        }
        let meta = Meta {
            snapshot_id: job.snapshot_id.clone(),
            lsn: joint.lsn,
            timestamp: unix_s(),
            batch_count: encoder.chunks(),
            row_count: meter.rows,
            table: job.table.clone(),
            skip_xids: joint.skip_xids,
            cdc_seq,
            schema: job.schema.clone(),
        };
        self.say(&mut outlet, job, "meta", &meta).await?;
        outlet.flush().await?;
        client.batch_execute("COMMIT").await?;
        Ok(Summary {
            rows: meter.rows,
            chunks: encoder.chunks(),
        })
    }

    async fn copy(
        &self,
        client: &Client,
        job: &Job,
        plan: &Plan,
        encoder: &mut Encoder,
        outlet: &mut Outlet,
        size: &Size,
    ) -> Result<Meter, Failure> {
        let started = Instant::now();
        let (mut said_at, mut logged_at) = (started, started);
        let mut meter = Meter {
            rows_estimated: size.rows_estimated,
            ..Meter::default()
        };
        let mut lines = std::pin::pin!(client.copy_out(&plan.copy).await?);
        // PostgreSQL: in COPY TO each CopyData message holds one row ("COPY-out mode").
        while let Some(line) = lines.next().await {
            let Some(sealed) = encoder.push(&line?).map_err(|error| refused(&error))? else {
                continue;
            };
            self.publish(outlet, job, sealed, &mut meter).await?;
            let now = Instant::now();
            if now - said_at >= PROGRESS_INTERVAL {
                said_at = now;
                self.say_progress(job, &meter, now - started).await;
            }
            if now - logged_at >= LOG_INTERVAL {
                logged_at = now;
                tracing::info!(
                    table = job.table,
                    snapshot_id = job.snapshot_id,
                    rows = meter.rows,
                    percent = meter.percent(),
                    eta_s = meter.eta_s(now - started),
                    "snapshot goes on"
                );
            }
        }
        if let Some(sealed) = encoder.finish() {
            self.publish(outlet, job, sealed, &mut meter).await?;
        }
        self.say_progress(job, &meter, started.elapsed()).await;
        Ok(meter)
    }

    async fn publish(
        &self,
        outlet: &mut Outlet,
        job: &Job,
        sealed: Sealed,
        meter: &mut Meter,
    ) -> Result<(), Failure> {
        let Sealed {
            chunk,
            rows,
            payload,
        } = sealed;
        let compression = job.options.compression;
        let payload = compress::compress(compression, payload)
            .map_err(|error| Failure::unavailable(format!("cannot compress: {error}")))?;
        meter.published(rows, payload.len());
        self.settings.metrics.snapshot_rows.inc_by(rows);
        let subject = names::init_snap(&job.schema, &job.table, &job.snapshot_id, chunk);
        let id = format!("{}/{chunk}", job.snapshot_id);
        outlet
            .publish(subject, id, compression.content_encoding(), payload)
            .await
    }

    async fn say(
        &self,
        outlet: &mut Outlet,
        job: &Job,
        what: &str,
        message: &impl Message,
    ) -> Result<(), Failure> {
        let subject = match what {
            "start" => names::init_start(&job.schema, &job.table),
            _ => names::init_meta(&job.schema, &job.table),
        };
        let id = format!("{}/{what}", job.snapshot_id);
        outlet
            .publish(subject, id, None, message.to_msgpack().into())
            .await
    }

    /// For people who watch: one that is lost does not matter.
    async fn say_progress(&self, job: &Job, meter: &Meter, elapsed: Duration) {
        let message = meter.message(&job.schema, &job.table, &job.snapshot_id, elapsed);
        let subject = names::init_progress(&job.schema, &job.table);
        let client = self.jetstream.client();
        if let Err(error) = client.publish(subject, message.to_msgpack().into()).await {
            tracing::debug!(%error, "cannot tell progress");
        }
    }

    /// The last word on a snapshot that has no meta.
    pub async fn say_failure(&self, job: &Job, failure: &Failure) {
        let message = failure.message(&job.schema, &job.table, Some(&job.snapshot_id));
        let subject = names::init_error(&job.schema, &job.table);
        let mut outlet = Outlet::new(self.jetstream.clone());
        let id = format!("{}/error", job.snapshot_id);
        let said = async {
            outlet
                .publish(subject, id, None, message.to_msgpack().into())
                .await?;
            outlet.flush().await
        };
        if let Err(error) = said.await {
            tracing::warn!(snapshot_id = job.snapshot_id, %error, "cannot say that a snapshot failed");
        }
    }

    /// The version of the rows that will be read: nobody can alter the table now. In the bucket before
    /// it is named.
    async fn schema_version(&self, client: &Client, target: &Target) -> Result<u32, Failure> {
        let publications = &self.settings.publications;
        let shape = schema_registry::of_table(client, target.oid, publications).await?;
        let shape = shape.ok_or_else(changed)?;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let asking = async {
            loop {
                if let Some(version) = self.settings.versions.of(shape.clone()).await {
                    return version;
                }
                tokio::time::sleep(backoff.next(backoff::random())).await;
            }
        };
        let asked = tokio::time::timeout(VERSION_TIMEOUT, asking).await;
        asked.map_err(|_| Failure::unavailable("NATS does not take the table's schema"))
    }

    async fn encoder(
        &self,
        beside: &mut Catalog,
        job: &Job,
        plan: &Plan,
        lsn: Lsn,
        limits: Limits,
    ) -> Result<Encoder, Failure> {
        let type_oids: Vec<u32> = plan.columns.iter().map(|column| column.type_oid).collect();
        let base_types = beside.base_types(&type_oids).await?;
        let columns = plan.columns.iter().map(|column| {
            let base = base_types.get(&column.type_oid).copied();
            (column.name.as_str(), base.unwrap_or(column.type_oid))
        });
        let header = Header {
            schema: &job.schema,
            table: &job.table,
            snapshot_id: &job.snapshot_id,
            lsn,
            values: job.options.values,
        };
        Ok(Encoder::new(&header, columns, limits))
    }

    /// What a chunk may take, by the limits of the server and of the stream.
    async fn limits(&self, job: &Job) -> Result<Limits, Failure> {
        let stream = self.init_stream().await?;
        let max_payload = self.jetstream.client().max_payload();
        let max_message = usize::try_from(stream.max_message_size)
            .ok()
            .filter(|&size| size > 0);
        let whole = max_message.map_or(max_payload, |size| size.min(max_payload));
        let growth = match job.options.compression {
            Compression::None => 0,
            Compression::Zstd | Compression::Lz4 | Compression::Gzip => {
                compress::growth_bytes_max(whole)
            }
        };
        Ok(Limits {
            rows_max: self.settings.chunk_rows_max,
            bytes_max: whole.saturating_sub(HEADERS_BYTES + job.snapshot_id.len() + growth),
        })
    }

    /// Part of a table may well fit where the whole does not, so a range is let through.
    async fn check_size(&self, job: &Job, size: &Size) -> Result<(), Failure> {
        let held = u64::try_from(self.init_stream().await?.max_bytes).unwrap_or(0);
        if held == 0 || size.table_bytes <= held || job.options.range.is_some() {
            return Ok(());
        }
        Err(Failure::new(
            ErrorCode::TooLarge,
            format!(
                "the table takes {} bytes and stream {} holds {held}",
                size.table_bytes, self.settings.init_stream
            ),
            "raise max_bytes of the stream, or ask for ranges with `where`",
        ))
    }

    async fn init_stream(&self) -> Result<jetstream::stream::Config, Failure> {
        let stream = self.jetstream.get_stream(&self.settings.init_stream).await;
        stream
            .map(|stream| stream.cached_info().config.clone())
            .map_err(|error| {
                Failure::unavailable(format!(
                    "cannot read stream {}: {}",
                    self.settings.init_stream,
                    Chained(&error)
                ))
            })
    }
}

fn start(job: &Job, plan: &Plan, size: &Size, schema_version: u32) -> Start {
    let columns = plan.columns.iter();
    Start {
        table: job.table.clone(),
        snapshot_id: job.snapshot_id.clone(),
        schema: job.schema.clone(),
        values: job.options.values,
        compression: job.options.compression,
        columns: columns.map(|column| column.name.clone()).collect(),
        schema_version,
        rows_estimated: size.rows_estimated,
        timestamp: unix_s(),
        partial: !job.options.columns.is_empty() || job.options.range.is_some(),
    }
}

fn refused(error: &chunk::Error) -> Failure {
    match error {
        chunk::Error::RowTooLarge { .. } => Failure::new(
            ErrorCode::TooLarge,
            error.to_string(),
            "raise max_payload of NATS (and max_msg_size of the stream), or leave columns out with `columns`",
        ),
        chunk::Error::Fields { .. } => changed(),
    }
}
