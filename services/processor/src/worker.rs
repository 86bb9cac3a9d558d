//! Applies the writes of one table, in order, for as long as the process lives.
//!
//! In: the table's consumer. Out: outcomes in PostgreSQL, then acks.
//! Invariant: a message is acked only when its outcome is committed; the next is not applied before
//! the one in front of it, unless that one waits for its parent and they are about different rows.
//!
//! A worker keeps nothing across sessions: when PostgreSQL or NATS was lost it begins again with the
//! lock and with the first message that is not acked.

use std::collections::HashSet;
use std::pin::pin;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{Context, Message};
use daemon::backoff::{self, Backoff};
use daemon::nats;
use daemon::postgres::PostgresOptions;
use daemon::shutdown::Shutdown;
use serde_json::json;
use wire::command::{OperationError, WriteOp};
use wire::names::{self, STREAM_WRITES_DLQ};

use crate::command::Command;
use crate::gather::Batches;
use crate::metrics::Metrics;
use crate::pull::Pull;
use crate::queue::{self, Burial};
use crate::session::{ApplyError, OpenError, Session};
use crate::sqlstate::Class;
use crate::statement;
use crate::strikes::STRIKES_MAX;
use crate::table::Table;

/// What a worker needs, and the same for all of them.
#[derive(Clone)]
pub struct Surroundings {
    /// Where PostgreSQL is.
    pub postgres: PostgresOptions,
    /// NATS.
    pub jetstream: Context,
    /// `WRITES`.
    pub writes: Stream,
    /// Numbers.
    pub metrics: Metrics,
    /// Ends the worker after the batch in hand.
    pub shutdown: Shutdown,
    /// How to work.
    pub limits: Limits,
}

/// How to work.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Messages in one transaction at most.
    pub batch_max: usize,
    /// How long a create may wait for its parent.
    pub parent_patience: Duration,
}

/// One table's worker.
pub struct Worker {
    around: Surroundings,
    schema: String,
    table: String,
    /// As metrics and logs name it.
    label: String,
    /// The session before this one did not go down over a message.
    was_orderly: bool,
}

/// Why a session ended early. The worker begins again.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error("no session with PostgreSQL")]
    Open(#[from] OpenError),
    #[error("the session with PostgreSQL was lost")]
    Lost(#[from] ApplyError),
    #[error("PostgreSQL does not answer")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("JetStream does not answer")]
    Queue(#[from] queue::Error),
    #[error("the connection ended")]
    Ended,
    #[error("NATS was away; its server may have forgotten acks")]
    Reconnected,
    /// To one that held the lock before and has not noticed, or into a connection that broke.
    #[error("a write was delivered and did not come here")]
    Elsewhere,
    /// And the message names no operation that could be failed instead.
    #[error("{STREAM_WRITES_DLQ} is full; make room with processor dlq drop")]
    NoRoom,
    #[error("the table has a new shape")]
    Shape,
}

/// A message in hand.
struct Entry {
    command: Command,
    message: Message,
    /// Since when it waits for its parent.
    waiting_since: Option<Instant>,
}

/// Everything of one session.
struct Shift<'a> {
    worker: &'a mut Worker,
    session: Session,
    table: Table,
    /// Waiting for their parents, in stream order.
    aside: Vec<Entry>,
    /// Messages to apply one by one, because a batch with them went down.
    cautious: usize,
    /// The first message is the one that takes everybody down.
    buries_first: bool,
    /// The last delivery of the consumer that came here.
    delivered: u64,
}

/// Another processor has the lock: how often to look.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);
/// How often writes that wait for their parent are tried again.
const ASIDE_INTERVAL: Duration = Duration::from_millis(250);
/// Writes waiting for parents before the table waits with them.
const ASIDE_MAX: usize = 1000;

impl Worker {
    /// A worker that has not begun.
    pub fn new(around: Surroundings, schema: String, table: String) -> Self {
        let label = names::table_path(&schema, &table);
        Self {
            around,
            schema,
            table,
            label,
            // What an earlier process left, the consumer says.
            was_orderly: false,
        }
    }

    /// Works until the shutdown.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let shutdown = self.around.shutdown.clone();
        loop {
            let began = Instant::now();
            let ended = self.session().await;
            self.active().set(0);
            match ended {
                Ok(()) => return,
                Err(Interrupted::Shape) => {
                    tracing::info!(table = self.label, "the table has a new shape");
                }
                Err(error) => {
                    tracing::warn!(
                        table = self.label,
                        error = &error as &dyn std::error::Error,
                        "begin again"
                    );
                }
            }
            if Duration::from_secs(10) < began.elapsed() {
                backoff.reset();
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next(backoff::random())) => {}
                _ = shutdown.wait() => return,
            }
        }
    }

    /// One session, from the lock to its loss. Ok: shutdown.
    async fn session(&mut self) -> Result<(), Interrupted> {
        let shutdown = self.around.shutdown.clone();
        let name = format!("processor {}", self.label);
        let session = tokio::select! {
            session = Session::open(&self.around.postgres, &name) => session?,
            _ = shutdown.wait() => return Ok(()),
        };
        while !session.try_lock(&self.label).await? {
            tokio::select! {
                () = tokio::time::sleep(STANDBY_INTERVAL) => {}
                _ = shutdown.wait() => return Ok(()),
            }
        }
        let table = Table::load(session.client(), &self.schema, &self.table).await?;
        let ack_pending_max = self.ack_pending_max();
        let reconnected = nats::reconnected(&self.around.jetstream.client());
        let taken = queue::take(
            &self.around.writes,
            &self.schema,
            &self.table,
            ack_pending_max,
            self.was_orderly,
        )
        .await?;
        self.was_orderly = true;
        self.active().set(1);
        let strikes = taken.strikes.count;
        tracing::info!(
            table = self.label,
            in_flight = taken.in_flight,
            strikes,
            "active"
        );
        let consumer = names::writer_consumer(&self.schema, &self.table);
        let jetstream = self.around.jetstream.clone();
        let messages = Pull::open(jetstream, names::STREAM_WRITES, &consumer).await?;
        let mut shift = Shift {
            session,
            table,
            aside: Vec::new(),
            cautious: if strikes == 0 { 0 } else { taken.in_flight },
            buries_first: STRIKES_MAX <= strikes,
            delivered: taken.delivered,
            worker: self,
        };
        shift.work(messages, reconnected, &shutdown).await?;
        queue::give_back(
            &self.around.writes,
            &self.schema,
            &self.table,
            ack_pending_max,
        )
        .await?;
        Ok(())
    }

    fn active(&self) -> prometheus::IntGauge {
        self.around.metrics.active.with_label_values(&[&self.label])
    }

    /// Room for those set aside, a batch in hand and one fetched ahead.
    fn ack_pending_max(&self) -> usize {
        ASIDE_MAX + 3 * self.around.limits.batch_max
    }
}

impl Shift<'_> {
    /// Ok: shutdown.
    async fn work(
        &mut self,
        messages: Pull,
        reconnected: impl Future<Output = ()>,
        shutdown: &Shutdown,
    ) -> Result<(), Interrupted> {
        let mut reconnected = pin!(reconnected);
        let mut batches = Batches::new(messages, self.worker.around.limits.batch_max);
        let mut again = tokio::time::interval(ASIDE_INTERVAL);
        again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Cancel safety: only waits are in the arms; the work is behind them.
            let batch = tokio::select! {
                biased;
                _ = shutdown.wait() => return Ok(()),
                closed = &mut self.session.closed => {
                    closed?;
                    return Err(Interrupted::Ended);
                }
                () = &mut reconnected => return Err(Interrupted::Reconnected),
                _ = again.tick(), if !self.aside.is_empty() => None,
                batch = batches.next(), if self.aside.len() < ASIDE_MAX => {
                    Some(batch?)
                }
            };
            let entries = match batch {
                Some(batch) => self.read(batch).await?,
                None => std::mem::take(&mut self.aside),
            };
            self.apply(entries, shutdown).await?;
            self.show_aside();
        }
    }

    /// Reads messages; those that cannot be read are buried.
    async fn read(&mut self, batch: Vec<Message>) -> Result<Vec<Entry>, Interrupted> {
        let mut entries = Vec::with_capacity(batch.len());
        for message in batch {
            let info = message.info();
            let info =
                info.map_err(|error| queue::Error::new("not of a consumer".to_owned(), error))?;
            // Those behind one that is missing would overtake it; the next session begins with it.
            if info.consumer_sequence != self.delivered + 1 {
                return Err(Interrupted::Elsewhere);
            }
            self.delivered = info.consumer_sequence;
            let traceparent = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get(names::HEADER_TRACEPARENT))
                .map(async_nats::HeaderValue::as_str);
            let subject = message.subject.as_str();
            let command = Command::read(subject, &message.payload, traceparent, &self.table);
            match command {
                // Delivered again because it has waited for long; it still waits.
                Ok(command) if self.is_aside(&command) => {}
                Ok(command) => entries.push(Entry {
                    command,
                    message,
                    waiting_since: None,
                }),
                // It may have been written for another primary key.
                Err(_) if self.has_new_shape().await? => return Err(Interrupted::Shape),
                Err(unreadable) => {
                    let operation = json!({
                        "operation_id": unreadable.operation_id.map(|id| id.to_string()),
                        "entity_table": statement::entity_table(&self.table),
                        "op_type": "unreadable",
                    });
                    let has_id = unreadable.operation_id.is_some();
                    let operation = has_id.then_some(operation);
                    self.bury(&message, operation, "unreadable", &unreadable.reason)
                        .await?;
                }
            }
        }
        if self.buries_first && !entries.is_empty() {
            self.buries_first = false;
            let first = entries.remove(0);
            let operation = statement::operation(&first.command, &self.table);
            let reason = "the processor or its session went down with this write every time";
            self.bury(&first.message, Some(operation), "crashed", reason)
                .await?;
        }
        Ok(entries)
    }

    /// Applies entries one after another, in as few transactions as their errors allow, and acks
    /// them. Those whose parent is missing end up aside.
    async fn apply(&mut self, entries: Vec<Entry>, shutdown: &Shutdown) -> Result<(), Interrupted> {
        let mut pieces = self.pieces(entries);
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        // Invariant: the pieces, from the last to the first, are what is left in stream order.
        while let Some(piece) = pieces.pop() {
            let mut piece = self.without_followers(piece);
            if piece.is_empty() {
                continue;
            }
            let began = Instant::now();
            let commands: Vec<_> = piece.iter().map(|entry| &entry.command).collect();
            let error = match self.session.apply(&commands, &self.table).await {
                Ok(missed) => {
                    backoff.reset();
                    self.observe(began, missed);
                    self.ack(&piece).await?;
                    continue;
                }
                Err(error) => error,
            };
            match error.class() {
                Class::Lost => {
                    self.worker.was_orderly = !error.is_abrupt();
                    return Err(error.into());
                }
                Class::Wait => {
                    self.count(&self.worker.around.metrics.waits_total, 1);
                    tracing::warn!(
                        table = self.worker.label,
                        error = &error as &dyn std::error::Error,
                        "wait"
                    );
                    pieces.push(piece);
                    tokio::select! {
                        () = tokio::time::sleep(backoff.next(backoff::random())) => {}
                        _ = shutdown.wait() => return Ok(()),
                    }
                }
                Class::Soon | Class::Reject if piece.len() > 1 => {
                    let behind = piece.split_off(piece.len() / 2);
                    pieces.extend([behind, piece]);
                }
                Class::Soon if self.may_wait(&piece[0], &error) => {
                    let mut entry = piece.remove(0);
                    entry.waiting_since.get_or_insert_with(Instant::now);
                    self.aside.push(entry);
                }
                Class::Soon | Class::Reject => {
                    if error.is_about_shape() && self.has_new_shape().await? {
                        return Err(Interrupted::Shape);
                    }
                    self.reject(&piece[0], &error.fault()).await?;
                }
            }
        }
        Ok(())
    }

    /// What to try as one transaction, last piece first.
    fn pieces(&mut self, entries: Vec<Entry>) -> Vec<Vec<Entry>> {
        if self.cautious == 0 {
            return vec![entries];
        }
        self.cautious = self.cautious.saturating_sub(entries.len());
        entries.into_iter().rev().map(|entry| vec![entry]).collect()
    }

    /// Moves aside what is about a row that is set aside already.
    fn without_followers(&mut self, piece: Vec<Entry>) -> Vec<Entry> {
        if self.aside.is_empty() {
            return piece;
        }
        let rows: HashSet<_> = self
            .aside
            .iter()
            .filter_map(|entry| entry.command.key.text())
            .collect();
        let follows = |entry: &Entry| {
            let row = entry.command.key.text();
            row.is_some_and(|row| rows.contains(&row))
        };
        let (followers, rest) = piece.into_iter().partition(follows);
        self.aside.extend::<Vec<_>>(followers);
        rest
    }

    /// A create whose parent may still be queued, or a write that met an internal error.
    fn may_wait(&self, entry: &Entry, error: &ApplyError) -> bool {
        let patience = self.worker.around.limits.parent_patience;
        let is_orphan = error.fault().code == "23503";
        let has_patience = entry
            .waiting_since
            .is_none_or(|since| since.elapsed() < patience);
        has_patience && (entry.command.op == WriteOp::Create || !is_orphan)
    }

    async fn has_new_shape(&self) -> Result<bool, Interrupted> {
        let Table { schema, name, .. } = &self.table;
        let table = Table::load(self.session.client(), schema, name).await?;
        Ok(table != self.table)
    }

    async fn reject(&mut self, entry: &Entry, fault: &OperationError) -> Result<(), Interrupted> {
        let operation = statement::operation(&entry.command, &self.table);
        self.session.fail(&operation, fault).await?;
        self.count(&self.worker.around.metrics.done_total, 1);
        self.count(&self.worker.around.metrics.failed_total, 1);
        self.ack(std::slice::from_ref(entry)).await
    }

    /// Outcome first: a crash between the two leaves the message to be buried again.
    async fn bury(
        &mut self,
        message: &Message,
        operation: Option<serde_json::Value>,
        code: &str,
        reason: &str,
    ) -> Result<(), Interrupted> {
        let subject = message.subject.as_str();
        let has_outcome = operation.is_some();
        if let Some(operation) = operation {
            let fault = OperationError {
                code: code.to_owned(),
                constraint: None,
                message: reason.replace('\0', " "),
            };
            self.session.fail(&operation, &fault).await?;
            self.count(&self.worker.around.metrics.failed_total, 1);
        }
        let reason = format!("{code}: {reason}");
        let jetstream = &self.worker.around.jetstream;
        let (payload, headers) = (message.payload.clone(), message.headers.as_ref());
        match queue::bury(jetstream, subject, payload, headers, &reason).await? {
            Burial::Stored => {
                self.count(&self.worker.around.metrics.dead_letters_total, 1);
                tracing::error!(%subject, reason, "message buried; see processor dlq list");
            }
            // Its outcome is recorded; those behind it are not held up for a letter that nobody reads.
            Burial::NoRoom if has_outcome => {
                tracing::error!(
                    %subject, reason,
                    "no dead letter: {STREAM_WRITES_DLQ} is full; make room with processor dlq drop"
                );
            }
            Burial::NoRoom => return Err(Interrupted::NoRoom),
        }
        let acked = message.ack().await;
        acked.map_err(|error| queue::Error::new("cannot ack".to_owned(), error).into())
    }

    async fn ack(&self, entries: &[Entry]) -> Result<(), Interrupted> {
        for entry in entries {
            let acked = entry.message.ack().await;
            acked.map_err(|error| queue::Error::new("cannot ack".to_owned(), error))?;
        }
        self.count(&self.worker.around.metrics.done_total, entries.len() as u64);
        Ok(())
    }

    fn is_aside(&self, command: &Command) -> bool {
        self.aside
            .iter()
            .any(|entry| entry.command.operation_id == command.operation_id)
    }

    fn observe(&self, began: Instant, missed: u64) {
        let metrics = &self.worker.around.metrics;
        let apply_seconds = &metrics.apply_seconds;
        apply_seconds
            .with_label_values(&[&self.worker.label])
            .observe(began.elapsed().as_secs_f64());
        self.count(&metrics.failed_total, missed);
    }

    fn count(&self, counter: &prometheus::IntCounterVec, by: u64) {
        counter.with_label_values(&[&self.worker.label]).inc_by(by);
    }

    fn show_aside(&self) {
        let gauge = &self.worker.around.metrics.set_aside;
        let gauge = gauge.with_label_values(&[&self.worker.label]);
        gauge.set(self.aside.len() as i64);
    }
}
