//! The loop that publishes: slabs in, frames out, acks back, the ledger told.
//!
//! In: slabs from the ring, answers from the server. Out: messages in the stream, the confirmed LSN.
//! Invariant: an event is let go of (its slab recycled, its LSN confirmed) only when an ack, or the
//! stream's own tail, has proven that it is stored.
//!
//! Any failure ends in the same three steps: read the tail, drop everything at or below it, go on
//! behind it. There is no other recovery.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::backoff::{self, Backoff};
use daemon::nats::NatsOptions;
use wire::Position;

use super::chain::{ApiError, Chain, Limits, PubAck, Refusal};
use super::connection::{self, Connection};
use super::oversize::{self, Oversize};
use super::protocol::Incoming;
use super::{frame, tail};
use crate::encode;
use crate::event::{Event, Slab, Table};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::ring::Consumer;
use crate::schema_registry::SchemaRegistry;
use crate::shared::{Condition, Shared};

/// Everything here is retried, for ever; WAL holds what waits.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Connection(#[from] connection::Error),
    #[error(transparent)]
    Tail(#[from] tail::Error),
    #[error("no ack within {0:?}")]
    AckTimeout(Duration),
    #[error("a message was refused")]
    Refused(#[from] Refusal),
    #[error(
        "nobody answers on the subjects of stream {stream}: it is missing, or has other subjects"
    )]
    NoResponders { stream: String },
    #[error(transparent)]
    Oversize(#[from] oversize::Error),
    #[error("a PubAck is not understood: {0}")]
    Answer(String),
}

/// Where to publish.
#[derive(Debug, Clone)]
pub struct Target {
    pub nats: NatsOptions,
    pub stream: String,
    /// Wildcard over the bridge's own subjects, for reading the tail.
    pub filter: String,
    /// Name of the connection, shown by the server's monitoring.
    pub name: String,
}

pub struct Publisher {
    target: Target,
    ring: Consumer,
    chain: Chain,
    ledger: Ledger,
    /// Slabs not yet proven to be stored, oldest first.
    retained: VecDeque<Retained>,
    /// Index in `retained` of the slab to encode next.
    cursor: usize,
    /// The last event that was sent, or is known to be stored. Anything at or below it is a repeat.
    floor: Position,
    /// A larger message would not be taken: the lesser of the server's and the stream's limit.
    message_bytes_max: usize,
    registry: SchemaRegistry,
    oversize: Oversize,
    shared: Arc<Shared>,
    metrics: Metrics,
}

struct Retained {
    slab: Slab,
    /// Index of the event to encode next.
    next: usize,
    /// Its last message; the slab is done with when this is proven.
    last_sequence: u64,
}

/// Encoded ahead of the socket at most.
const UNSENT_BYTES_MAX: usize = 256 << 10;

impl Publisher {
    pub fn new(
        target: Target,
        ring: Consumer,
        limits: Limits,
        registry: SchemaRegistry,
        oversize: Oversize,
        shared: Arc<Shared>,
        metrics: Metrics,
    ) -> Self {
        Self {
            target,
            ring,
            chain: Chain::new(limits),
            ledger: Ledger::default(),
            retained: VecDeque::new(),
            cursor: 0,
            floor: Position::START,
            message_bytes_max: 0,
            registry,
            oversize,
            shared,
            metrics,
        }
    }

    /// Publishes until the source has closed the ring and everything in it is stored.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(5));
        let mut attempt = 0;
        loop {
            let acked_before = self.chain.acked_sequence();
            let error = match self.session(attempt).await {
                Ok(()) => return,
                Err(error) => error,
            };
            self.metrics.nats_connected.set(0);
            self.metrics.nats_reconnects.inc();
            if self.chain.acked_sequence() > acked_before {
                backoff.reset();
            }
            attempt += 1;
            let delay = backoff.next(backoff::random());
            tracing::warn!(error = %Chained(&error), ?delay, "publishing stopped, will go on from the stream's tail");
            self.shared
                .publisher_is(Condition::trouble(&Chained(&error)));
            tokio::time::sleep(delay).await;
        }
    }

    /// One connection's life.
    async fn session(&mut self, attempt: usize) -> Result<(), Error> {
        let mut connection =
            Connection::open(&self.target.nats, attempt, &self.target.name).await?;
        self.resume(&mut connection).await?;
        self.metrics.nats_connected.set(1);
        self.shared.publisher_is(Condition::Well);
        let mut conflicts = 0;
        loop {
            match self.publish(&mut connection).await {
                // "Wrong last sequence" means: read the tail again. Not that somebody else writes,
                // until the tail itself says so.
                Err(Error::Refused(Refusal::Api(ApiError {
                    err_code: 10_071, ..
                }))) if conflicts < CONFLICTS_MAX => {
                    conflicts += 1;
                    tracing::info!(
                        expected = self.chain.expected(),
                        "wrong last sequence, reading the tail again"
                    );
                    self.resume(&mut connection).await?;
                }
                ended => return ended,
            }
        }
    }

    /// Finds out what the stream holds, and starts over right behind it.
    async fn resume(&mut self, connection: &mut Connection) -> Result<(), Error> {
        let tail = tail::read(connection, &self.target.stream, &self.target.filter).await?;
        self.chain.restart(tail.last_sequence);
        self.ledger.restart();
        self.floor = tail.position;
        self.shared
            .handoff
            .stored(tail.position.commit_lsn, tail.last_sequence);
        self.cursor = 0;
        for retained in &mut self.retained {
            retained.next = 0;
        }
        let max_payload = connection.info().max_payload;
        self.message_bytes_max = tail.max_msg_size.unwrap_or(max_payload).min(max_payload);
        tracing::info!(
            position = %tail.position,
            sequence = tail.last_sequence,
            server = connection.info().server_name,
            version = %connection.version(),
            "going on from the stream's tail"
        );
        Ok(())
    }

    async fn publish(&mut self, connection: &mut Connection) -> Result<(), Error> {
        loop {
            self.fill(connection).await?;
            self.release();
            if self.is_drained(connection) {
                return Ok(());
            }
            let can_send = connection.unsent() < UNSENT_BYTES_MAX && !self.chain.is_full();
            tokio::select! {
                biased;
                moved = connection.progress() => moved?,
                () = self.ring.filled(), if can_send => {}
                () = until(self.chain.open_since().map(|since| since + LINGER)), if self.is_starved() => {
                    self.resume(connection).await?;
                }
                () = until(self.chain.ack_deadline()) => return Err(Error::AckTimeout(Limits::default().ack_timeout)),
            }
            while let Some(incoming) = connection.next_message()? {
                self.take(connection.inbox(), incoming)?;
            }
        }
    }

    /// Encodes what the window and the buffer have room for.
    async fn fill(&mut self, connection: &mut Connection) -> Result<(), Error> {
        while connection.unsent() < UNSENT_BYTES_MAX && !self.chain.is_full() {
            if self.cursor == self.retained.len() && !self.take_slab().await {
                return Ok(());
            }
            match self.encode_slab(connection) {
                Progress::SlabDone => self.cursor += 1,
                Progress::NoRoom => return Ok(()),
                Progress::TooLarge => self.park(connection).await?,
            }
        }
        Ok(())
    }

    /// Takes the next slab from the ring, and sees that its tables' schemas are known before its rows go out.
    async fn take_slab(&mut self) -> bool {
        let slab = loop {
            match self.ring.pop() {
                None => return false,
                Some(void) if void.session() < self.shared.session() => self.ring.recycle(void),
                Some(slab) => break slab,
            }
        };
        for table in slab.tables() {
            if table.layout.get().is_none() {
                let layout = self
                    .registry
                    .layout(&table.relation, first_position(&slab, table))
                    .await;
                // Two runs of one table in a slab share the entry; the first one has set it.
                let _ = table.layout.set(layout);
            }
        }
        self.retained.push_back(Retained {
            slab,
            next: 0,
            last_sequence: 0,
        });
        true
    }

    /// The hot loop: from the slab under the cursor into the socket's buffer.
    fn encode_slab(&mut self, connection: &mut Connection) -> Progress {
        let is_last_slab = self.cursor + 1 == self.retained.len() && self.ring.is_empty();
        let Some(retained) = self.retained.get_mut(self.cursor) else {
            return Progress::SlabDone;
        };
        let slab = &retained.slab;
        let inbox = connection.inbox().to_owned();
        let mut reply = Vec::with_capacity(inbox.len() + 20);
        let out = connection.out();
        while let Some(event) = slab.events().get(retained.next) {
            let position = slab.position(event);
            if position > self.floor {
                if self.chain.is_full() || out.len() >= UNSENT_BYTES_MAX {
                    return Progress::NoRoom;
                }
                if self.chain.is_group_start() {
                    self.chain.open(self.ledger.sent(), Instant::now());
                }
                let is_last = is_last_slab && retained.next + 1 == slab.events().len();
                let token = self.chain.ack_token(slab.row_bytes(event), is_last);
                let reply = token.map(|token| reply_to(&mut reply, &inbox, token));
                let expected = self.chain.expected();
                let table = slab.table(event);
                let open = frame::begin(
                    out,
                    table.subjects.of(event.change.operation()),
                    reply,
                    |out| {
                        out.extend_from_slice(b"Nats-Expected-Last-Sequence: ");
                        frame::decimal(out, expected);
                        out.extend_from_slice(b"\r\n");
                    },
                );
                let layout = table
                    .layout
                    .get()
                    .expect("take_slab has set the layout of each table");
                encode::event(slab, event, layout, out);
                if open.size(out) > self.message_bytes_max {
                    match self.oversize.parked(position) {
                        None => {
                            open.abandon(out);
                            return Progress::TooLarge;
                        }
                        Some(parked) => {
                            out.truncate(open.payload_start());
                            encode::stub(slab, event, layout, parked, out);
                        }
                    }
                }
                self.chain.sent(open.finish(out), token);
                self.floor = position;
            }
            if event.last {
                self.ledger.passed(slab.transaction(event).end_lsn);
            }
            retained.next += 1;
        }
        retained.last_sequence = self.chain.expected();
        if slab.boundary().is_valid() {
            self.ledger.passed(slab.boundary());
        }
        Progress::SlabDone
    }

    /// Stores the whole body of an event that no message can hold; its stub goes out next.
    async fn park(&mut self, connection: &mut Connection) -> Result<(), Error> {
        let Some(Retained { slab, next, .. }) = self.retained.get(self.cursor) else {
            return Ok(());
        };
        let Some(event) = slab.events().get(*next) else {
            return Ok(());
        };
        let table = slab.table(event);
        let layout = table
            .layout
            .get()
            .expect("take_slab has set the layout of each table");
        let mut body = Vec::new();
        encode::event(slab, event, layout, &mut body);
        let position = slab.position(event);
        tracing::warn!(
            table = %table.relation.name, %position, bytes = body.len(), limit = self.message_bytes_max,
            "event is too large for a message, parking its body in the object store"
        );
        // What is ready goes out first: the object may take longer than acks may.
        while connection.unsent() > 0 {
            connection.progress().await?;
        }
        self.oversize.park(position, body).await?;
        self.metrics.oversize_events.inc();
        Ok(())
    }

    fn take(&mut self, inbox: &str, incoming: Incoming) -> Result<(), Error> {
        let Incoming::Message {
            subject,
            status,
            payload,
        } = incoming
        else {
            return match incoming {
                Incoming::Error(error) => Err(connection::Error::Refused(error).into()),
                _ => Ok(()),
            };
        };
        let token = subject
            .strip_prefix(inbox)
            .and_then(|token| token.parse().ok());
        let Some(token) = token else { return Ok(()) };
        if status == Some(503) {
            return Err(Error::NoResponders {
                stream: self.target.stream.clone(),
            });
        }
        let ack: PubAck = serde_json::from_slice(&payload)
            .map_err(|_| Error::Answer(String::from_utf8_lossy(&payload).into_owned()))?;
        let Some(proof) = self.chain.answered(token, &ack, Instant::now())? else {
            return Ok(());
        };
        self.ledger.acked_through(proof.ticket);
        self.metrics
            .cdc_events_published
            .inc_by(proof.events as u64);
        self.metrics
            .ack_wait_seconds
            .observe(proof.waited.as_secs_f64());
        self.metrics
            .last_processing_time_us
            .set(proof.waited.as_micros() as i64);
        Ok(())
    }

    /// Gives back the slabs that are proven, and tells the source what it may confirm.
    fn release(&mut self) {
        let acked = self.chain.acked_sequence();
        while self.cursor > 0
            && self
                .retained
                .front()
                .is_some_and(|slab| slab.last_sequence <= acked)
        {
            let Some(retained) = self.retained.pop_front() else {
                break;
            };
            self.cursor -= 1;
            if let Some(event) = retained.slab.events().last() {
                let commit_lsn = retained.slab.transaction(event).commit_lsn;
                self.shared
                    .handoff
                    .stored(commit_lsn, retained.last_sequence);
            }
            self.ring.recycle(retained.slab);
        }
        self.shared.handoff.stored_through(self.ledger.confirmed());
        self.shared.confirm(self.ledger.confirmed());
    }

    /// Nothing is left to send.
    fn is_starved(&self) -> bool {
        self.cursor == self.retained.len() && self.ring.is_empty()
    }

    fn is_drained(&self, connection: &Connection) -> bool {
        self.ring.is_complete()
            && self.is_starved()
            && self.chain.is_idle()
            && connection.unsent() == 0
    }
}

/// A group stays open without an ack when only repeats followed its last message. After this long
/// the tail is read instead, which proves the same.
const LINGER: Duration = Duration::from_millis(100);

enum Progress {
    SlabDone,
    NoRoom,
    TooLarge,
}

/// "Wrong last sequence" in a row on one connection before it counts as a failure that backs off.
const CONFLICTS_MAX: u32 = 8;

fn first_position(slab: &Slab, table: &Arc<Table>) -> Position {
    let first = slab
        .events()
        .iter()
        .find(|event| Arc::ptr_eq(slab.table(event), table));
    first.map_or(Position::START, |event: &Event| slab.position(event))
}

fn reply_to<'a>(reply: &'a mut Vec<u8>, inbox: &str, token: u64) -> &'a [u8] {
    reply.clear();
    reply.extend_from_slice(inbox.as_bytes());
    frame::decimal(reply, token);
    reply
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// An error and its causes in one line, for a log.
pub struct Chained<'a>(pub &'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chained<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
