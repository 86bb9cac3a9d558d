//! Throws away cached answers about tables that changed.
//!
//! In: the change stream, whoever made the changes. Out: higher generations, then acks.
//! Invariant: an event is acked only after the generation of its table was raised at a moment when its
//! transaction was visible to readers. A change is in the stream before it is visible; an answer read in
//! between is under the new generation if that was raised too early, and would stay.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{Context, Message};
use daemon::backoff::{self, Backoff};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::{ToSql, Type};
use wire::names::schema_key;
use wire::{Lsn, Message as _};

use crate::cache::{self, Cache, Heard};
use crate::database::{self, Database};
use crate::metrics::Metrics;

/// What it works with.
pub struct Invalidator {
    /// Where answers are kept.
    pub cache: Cache,
    /// Where visibility is asked for: the same server that is read from.
    pub database: Arc<Database>,
    /// NATS.
    pub jetstream: Context,
    /// Name of the change stream.
    pub stream: String,
    /// What of it: `cdc.>`.
    pub subjects: String,
    /// Where a gap is announced.
    pub gap_subject: String,
    /// Name of the durable consumer; readers of one Redis share it.
    pub consumer: String,
    /// Numbers.
    pub metrics: Arc<Metrics>,
}

/// The keys of an event that matter here: its table and its transaction. Reading them skips the row.
#[derive(Debug, Serialize, Deserialize)]
struct Changed {
    table: String,
    #[serde(default = "public")]
    schema: String,
    #[serde(default)]
    xid: u64,
    #[serde(default)]
    commit_lsn: Lsn,
}

/// What is to be visible.
#[derive(Debug, Default)]
struct Transactions {
    xids: BTreeSet<String>,
    /// Where the last commit record begins.
    last_lsn: Lsn,
}

impl wire::Message for Changed {}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("JetStream does not answer")]
    JetStream(#[source] async_nats::Error),
    #[error("the consumer ended")]
    Ended,
    #[error(transparent)]
    Cache(#[from] cache::Error),
}

/// Events taken together.
const BATCH_MAX: usize = 1000;
/// Unacked events come again to any reader after this.
const ACK_WAIT: Duration = Duration::from_secs(10);
/// Until Redis is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// How often to ask whether the stream lost what was not seen yet.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How often to ask whether transactions have become visible.
const VISIBLE_INTERVAL: Duration = Duration::from_millis(2);

impl Invalidator {
    /// Works for ever; without a cache there is nothing to do.
    pub async fn run(&self) {
        if !self.cache.is_configured() {
            return std::future::pending().await;
        }
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            if let Err(error) = self.follow(&mut backoff).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot follow the changes"
                );
            }
            tokio::time::sleep(backoff.next(backoff::random())).await;
        }
    }

    async fn follow(&self, backoff: &mut Backoff) -> Result<(), Error> {
        let stream = self.jetstream.get_stream(&self.stream).await;
        let stream = stream.map_err(|error| Error::JetStream(error.into()))?;
        let consumer = self.consumer(&stream).await?;
        let mut heard = self.check(&stream, None).await?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(BATCH_MAX)
            .messages()
            .await
            .map_err(|error| Error::JetStream(error.into()))?;
        let mut batches = messages.ready_chunks(BATCH_MAX);
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        loop {
            // Cancel safety: the arms only wait; the work is behind them.
            let batch = tokio::select! {
                batch = batches.next() => batch.ok_or(Error::Ended)?,
                _ = check.tick() => {
                    heard = self.check(&stream, Some(heard)).await?;
                    continue;
                }
            };
            let batch: Vec<Message> = batch
                .into_iter()
                .collect::<Result<_, _>>()
                .map_err(|error| Error::JetStream(error.into()))?;
            let is_complete = follows(&mut heard, &batch)?;
            // Again and again with the batch in hand: given back, it would only come after ACK_WAIT.
            while let Err(error) = self.hear(&batch, is_complete, heard).await {
                tracing::warn!(%error, "answers not thrown away yet");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            for message in &batch {
                message.ack().await.map_err(Error::JetStream)?;
            }
            backoff.reset();
        }
    }

    async fn hear(&self, batch: &[Message], is_complete: bool, heard: Heard) -> Result<(), Error> {
        self.invalidate(batch, is_complete).await?;
        Ok(self.cache.set_heard(&self.consumer, heard).await?)
    }

    async fn consumer(&self, stream: &Stream) -> Result<PullConsumer, Error> {
        let config = pull::Config {
            durable_name: Some(self.consumer.clone()),
            filter_subject: self.subjects.clone(),
            deliver_policy: DeliverPolicy::New,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: 4 * BATCH_MAX as i64,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await;
        consumer.map_err(|error| Error::JetStream(error.into()))
    }

    /// Compares how far the stream and its consumer are with how far was heard; None asks the cache. Every
    /// answer goes where something lies between, also when it was the server that moved the consumer
    /// ahead. Returns where it stands now.
    async fn check(&self, stream: &Stream, heard: Option<Heard>) -> Result<Heard, Error> {
        let info = stream.consumer_info(&self.consumer).await;
        let info = info.map_err(|error| Error::JetStream(error.into()))?;
        let state = stream.get_info().await;
        let state = state.map_err(|error| Error::JetStream(error.into()))?.state;
        let gone = state.first_sequence.saturating_sub(1);
        let now = Heard {
            stream: info.delivered.stream_sequence.max(gone),
            consumer: info.delivered.consumer_sequence,
        };
        let heard = match heard {
            Some(heard) => Some(heard),
            None => self.cache.heard(&self.consumer).await?,
        };
        match heard {
            // What was delivered and not heard yet is still to come, from here on.
            Some(heard) if !heard.is_gap(now) && heard.consumer <= now.consumer => Ok(heard),
            Some(_) | None => {
                self.flush("changes may have been missed").await?;
                self.cache.set_heard(&self.consumer, now).await?;
                Ok(now)
            }
        }
    }

    async fn invalidate(&self, batch: &[Message], is_complete: bool) -> Result<(), Error> {
        let mut tables = BTreeSet::new();
        let mut transactions = Transactions::default();
        let mut is_unclear = !is_complete;
        for message in batch {
            if message.subject.as_str() == self.gap_subject {
                is_unclear = true;
                continue;
            }
            match Changed::decode(&message.payload) {
                Ok(changed) => {
                    tables.insert(schema_key(&changed.schema, &changed.table));
                    if changed.xid != 0 {
                        transactions.xids.insert(changed.xid.to_string());
                        transactions.last_lsn = transactions.last_lsn.max(changed.commit_lsn);
                    }
                }
                Err(error) => {
                    tracing::warn!(subject = %message.subject, %error, "change cannot be read");
                    is_unclear = true;
                }
            }
        }
        self.metrics.changes_total.inc_by(batch.len() as u64);
        let tables: Vec<String> = tables.into_iter().collect();
        let mut is_visible = self.are_visible(&transactions).await;
        loop {
            if is_unclear {
                self.flush("changes were lost or cannot be read").await?;
            } else {
                self.cache.invalidate(&tables).await?;
                self.metrics.invalidations_total.inc_by(tables.len() as u64);
            }
            if is_visible {
                return Ok(());
            }
            // What was read before is gone already. What is read from here on may still lack the
            // changes, so it goes as well once they are visible.
            while !self.are_visible(&transactions).await {
                tokio::time::sleep(VISIBLE_INTERVAL).await;
            }
            is_visible = true;
        }
    }

    async fn flush(&self, reason: &str) -> Result<(), Error> {
        self.cache.invalidate_everything().await?;
        self.metrics.flushes_total.inc();
        tracing::info!(reason, "every cached answer was thrown away");
        Ok(())
    }

    /// Whether a read that begins now sees all these transactions. False too when nobody can say.
    async fn are_visible(&self, transactions: &Transactions) -> bool {
        if transactions.xids.is_empty() {
            return true;
        }
        let xids: Vec<&String> = transactions.xids.iter().collect();
        let last_lsn = transactions.last_lsn.to_string();
        let asked: [(&(dyn ToSql + Sync), Type); 2] =
            [(&xids, Type::TEXT_ARRAY), (&last_lsn, Type::TEXT)];
        let asked = self.database.query(VISIBLE, &asked).await;
        match asked {
            Ok(rows) => rows.first().is_some_and(|row| row.get(0)),
            Err(database::Error::Refused(error)) => {
                // Ids that this server cannot know, from before it was restored: nothing to wait for.
                tracing::warn!(%error, "cannot tell what is visible");
                true
            }
            Err(database::Error::Busy | database::Error::Away(_)) => {
                tokio::time::sleep(VISIBLE_INTERVAL * 50).await;
                false
            }
        }
    }
}

/// Moves `heard` behind the batch. False when messages are missing before or in it, or may be.
fn follows(heard: &mut Heard, batch: &[Message]) -> Result<bool, Error> {
    let mut is_complete = true;
    for message in batch {
        let info = message.info().map_err(Error::JetStream)?;
        let next = Heard {
            stream: info.stream_sequence,
            consumer: info.consumer_sequence,
        };
        is_complete &= info.delivered == 1 && !heard.is_gap(next);
        if heard.stream < next.stream {
            *heard = next;
        }
    }
    Ok(is_complete)
}

/// An aborted transaction has no events, so one that is over is committed and seen.
///
/// PostgreSQL: on a standby pg_current_snapshot() does not list who is in progress; there a commit is visible
/// once its record was replayed.
const VISIBLE: &str = "
    SELECT CASE WHEN pg_is_in_recovery() THEN coalesce($2::pg_lsn < pg_last_wal_replay_lsn(), false)
                ELSE (SELECT bool_and(pg_visible_in_snapshot(xid::xid8, pg_current_snapshot()))
                      FROM unnest($1::text[]) AS xid) END";

fn public() -> String {
    wire::names::PUBLIC.to_owned()
}
