//! The loop that publishes: slabs in, frames out, acks back, the ledger told.
//!
//! In: slabs from the ring, answers from the server. Out: messages in the stream, the confirmed LSN.
//! Invariant: an event is let go of (its slab recycled, its LSN confirmed) only when an ack, or the
//! stream's own tail, has proven that it is stored.
//!
//! Any failure ends in the same three steps: read the tail, drop everything at or below it, go on
//! behind it. There is no other recovery.

mod gaps;
mod resume;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use daemon::backoff::{self, Backoff};
use daemon::chained::Chained;
use daemon::nats::NatsOptions;
use wire::gap::Gap;
use wire::{Lsn, Position, SubjectPattern};

use super::chain::{ApiError, Chain, Limits, PubAck, Refusal};
use super::connection::{self, Connection};
use super::frame;
use super::framing::{Framing, Subject};
use super::incarnation::Known;
use super::mode::{self, Mode};
use super::oversize::{self, Oversize};
use super::protocol::Incoming;
use super::tail;
use crate::encode;
use crate::event::{Event, Slab, Table};
use crate::hold::Hold;
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
    #[error(
        "stream {stream} was {what}: consumers have lost what it held. If that was meant, go on with \
         POST /stream/accept (or start with --accept-stream-reset); a message on {gap} tells consumers"
    )]
    Reset {
        stream: String,
        what: &'static str,
        gap: String,
    },
    #[error(
        "stream {stream} ends at {position}, ahead of the new slot at {from}: it holds changes of another PostgreSQL, or \
         of a later state of this one; start over with another --stream, or a new one of this name"
    )]
    OtherHistory {
        stream: String,
        position: Position,
        from: Lsn,
    },
    #[error("a PubAck is not understood: {0}")]
    Answer(String),
}

/// Where to publish.
#[derive(Debug, Clone)]
pub struct Target {
    pub nats: NatsOptions,
    pub stream: String,
    /// Wildcards over the bridge's own subjects, for reading the tail.
    pub filters: Vec<String>,
    /// Where each table's events go.
    pub subjects: SubjectPattern,
    pub publish_mode: mode::Wanted,
    /// Write a `Nats-Msg-Id` in every mode.
    pub has_msg_id: bool,
    /// Another bridge is known to write to the stream, on other subjects.
    pub is_shared: bool,
    /// Where gaps are told.
    pub gap_subject: String,
    pub slot: String,
    pub limits: Limits,
    /// How long acked events stay unconfirmed; see `hold`.
    pub hold: Duration,
    /// Name of the connection, shown by the server's monitoring.
    pub name: String,
}

impl Target {
    /// The filters leave room for others on the stream.
    fn has_own_tables(&self) -> bool {
        self.filters != [self.subjects.stream_subjects()]
    }
}

pub struct Publisher {
    target: Target,
    ring: Consumer,
    chain: Chain,
    framing: Framing,
    ledger: Ledger,
    /// Slabs not yet proven to be stored, oldest first.
    retained: VecDeque<Retained>,
    /// Index in `retained` of the slab to encode next.
    cursor: usize,
    /// The last event of each slab asks for an ack, until one comes.
    ends_slabs: bool,
    hold: Hold,
    /// The last event in a slab that was given back.
    proven: Position,
    /// Since the last look at the ledger an event was proven, not only a boundary passed.
    has_proven_events: bool,
    /// The last event this process ever sent; `START` before the first.
    sent: Position,
    /// Published before the next event, and kept until it is stored.
    gap: Option<Gap>,
    /// Subjects on which others were heard since the chain began; at most `FOREIGN_SUBJECTS_MAX`.
    foreign: Vec<String>,
    /// The stream's sequence with which the gap was sent on this connection.
    gap_sequence: Option<u64>,
    /// The stream's last event when it was found rolled back, until the slot has told what it let go.
    rolled_back_to: Option<Position>,
    /// The last event that was sent, or is known to be stored. Anything at or below it is a repeat.
    floor: Position,
    /// The replication whose events may follow the floor; see `Shared::replications`.
    replication: u32,
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
        registry: SchemaRegistry,
        oversize: Oversize,
        shared: Arc<Shared>,
        metrics: Metrics,
    ) -> Self {
        Self {
            ring,
            chain: Chain::new(target.limits),
            framing: Framing::new(target.subjects.clone(), target.has_msg_id),
            hold: Hold::new(target.hold),
            target,
            ledger: Ledger::default(),
            retained: VecDeque::new(),
            cursor: 0,
            ends_slabs: false,
            sent: Position::START,
            proven: Position::START,
            has_proven_events: false,
            gap: None,
            foreign: Vec::new(),
            gap_sequence: None,
            rolled_back_to: None,
            floor: Position::START,
            replication: 0,
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
                    err_code: 10_071 | 10_164,
                    ..
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

    async fn publish(&mut self, connection: &mut Connection) -> Result<(), Error> {
        loop {
            if let Some(what) = self.shared.reset() {
                return Err(self.reset(what));
            }
            self.notice_sharing(connection).await?;
            self.notice_new_slot()?;
            self.notice_released_before();
            self.notice_owed(connection).await?;
            self.send_gap(connection);
            if self.framing.mode() == Mode::Chain && !self.is_starved() {
                connection.listen(&self.target.subjects.stream_subjects());
            }
            self.fill(connection).await?;
            if !self.chain.is_idle() {
                self.sent = self.floor;
            }
            self.release(Instant::now());
            if self.is_drained(connection) {
                return Ok(());
            }
            let can_send = connection.unsent() < UNSENT_BYTES_MAX && !self.chain.is_full();
            tokio::select! {
                biased;
                moved = connection.progress() => moved?,
                () = self.ring.filled(), if can_send => {}
                () = until(self.chain.open_since().map(|since| since + LINGER)), if self.is_starved() => {
                    // An open batch is void then, so it must not stay open a second time.
                    self.ends_slabs = true;
                    self.resume(connection).await?;
                }
                () = until(self.hold.due()) => {}
                () = self.shared.company_came() => {}
                () = self.shared.publisher_woken() => {}
                () = until(self.chain.ack_deadline()) => return Err(Error::AckTimeout(Limits::default().ack_timeout)),
            }
            while let Some(incoming) = connection.next_message()? {
                self.take(incoming)?;
            }
        }
    }

    /// Encodes what the window and the buffer have room for.
    async fn fill(&mut self, connection: &mut Connection) -> Result<(), Error> {
        while connection.unsent() < UNSENT_BYTES_MAX && !self.chain.is_full() {
            if self.cursor == self.retained.len() {
                if !self.take_slab().await {
                    return Ok(());
                }
                // The slot may have moved on while another bridge had it. Its events follow only a
                // tail that was read since: behind an older one rows would be missing, and the
                // server would take the first message that happens to fit.
                let replication = self.shared.replications();
                if self.replication != replication {
                    self.resume(connection).await?;
                    self.replication = replication;
                    // Before the first event behind it.
                    self.notice_new_slot()?;
                    self.notice_owed(connection).await?;
                    self.send_gap(connection);
                    continue;
                }
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
        let is_last_slab =
            self.ends_slabs || (self.cursor + 1 == self.retained.len() && self.ring.is_empty());
        let Some(retained) = self.retained.get_mut(self.cursor) else {
            return Progress::SlabDone;
        };
        let slab = &retained.slab;
        let mut reply = Vec::with_capacity(100);
        let out = connection.out();
        while let Some(event) = slab.events().get(retained.next) {
            let position = slab.position(event);
            if position > self.floor {
                if self.chain.is_full() || out.len() >= UNSENT_BYTES_MAX {
                    return Progress::NoRoom;
                }
                let row_bytes = slab.row_bytes(event);
                // Not even written out to see, where that is sure.
                let is_huge = row_bytes / SHRINKS_MAX > self.message_bytes_max;
                if is_huge && self.oversize.parked(position).is_none() {
                    return Progress::TooLarge;
                }
                if self.chain.is_group_start() {
                    self.chain.open(self.ledger.sent(), Instant::now());
                }
                let is_last = is_last_slab && retained.next + 1 == slab.events().len();
                let token = self.chain.ack_token(row_bytes, is_last);
                let place = self.chain.place();
                let expected = self.chain.expected();
                let table = slab.table(event);
                let operation = event.change.operation();
                self.framing.next(table, place);
                let reply = self.framing.reply(&mut reply, place, token.is_some());
                let open = frame::begin(out, table.subjects.of(operation), reply, |out| {
                    let subject = Subject {
                        table,
                        operation,
                        position,
                    };
                    self.framing
                        .headers(out, place, token.is_some(), expected, subject);
                });
                let layout = table
                    .layout
                    .get()
                    .expect("take_slab has set the layout of each table");
                if !is_huge {
                    encode::event(slab, event, layout, out);
                }
                if is_huge || open.size(out) > self.message_bytes_max {
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
                self.chain.sent(position, open.finish(out), token);
                self.floor = position;
            } else {
                self.has_proven_events = true;
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
        let position = slab.position(event);
        let (bytes, limit) = (slab.row_bytes(event), self.message_bytes_max);
        self.oversize.admits(bytes, limit)?;
        tracing::warn!(
            table = %table.relation.name, %position, bytes, limit,
            "row is too large for a message, parking its event in the object store"
        );
        // What is ready goes out first, and its acks are not missed meanwhile.
        while connection.unsent() > 0 {
            connection.progress().await?;
        }
        let began = Instant::now();
        let mut body = Vec::with_capacity(bytes);
        encode::event(slab, event, layout, &mut body);
        self.oversize.park(position, body, limit).await?;
        self.chain.excuse(began.elapsed());
        self.metrics.oversize_events.inc();
        // A batch that was left open for longer is void (ADR-50); behind the tail begins a new one.
        if self.framing.mode() == Mode::Fast && began.elapsed() > OPEN_BATCH_MAX {
            self.resume(connection).await?;
        }
        Ok(())
    }

    fn take(&mut self, incoming: Incoming) -> Result<(), Error> {
        let Incoming::Message {
            subject,
            status,
            payload,
        } = incoming
        else {
            return match incoming {
                Incoming::Error(error)
                    if error.contains("Permissions Violation for Subscription") =>
                {
                    tracing::warn!(
                        error,
                        "others who publish into the stream are not heard; let the NATS user subscribe to its subjects"
                    );
                    Ok(())
                }
                Incoming::Error(error) => Err(connection::Error::Refused(error).into()),
                _ => Ok(()),
            };
        };
        if !self.framing.is_answer(&subject) {
            self.hear(subject, &payload);
            return Ok(());
        }
        let Some(token) = self.framing.token(&subject) else {
            return Ok(());
        };
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
        self.ends_slabs = false;
        self.ledger.acked_through(proof.ticket);
        self.framing.stored(proof.stored_sequence, proof.events);
        self.has_proven_events = true;
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
    fn release(&mut self, now: Instant) {
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
                self.proven = retained.slab.position(event);
                // Not in this mode: a repeat that the server dropped has no sequence of its own.
                if self.framing.mode() != Mode::MsgId {
                    self.shared
                        .handoff
                        .stored(self.proven.commit_lsn, retained.last_sequence);
                }
            }
            self.ring.recycle(retained.slab);
            self.note_known(self.chain.stored_sequence());
        }
        if self.gap_sequence.is_some_and(|sequence| sequence <= acked) {
            if let Some(gap) = self.gap.take() {
                self.shared.gap_told(gap.epoch);
            }
            self.gap_sequence = None;
        }
        let confirmed = self.ledger.confirmed();
        self.shared.handoff.stored_through(confirmed);
        let acked = confirmed.max(self.shared.confirmed());
        self.metrics.last_ack_lsn.set(acked.0 as i64);
        if std::mem::take(&mut self.has_proven_events) {
            self.hold.acked(confirmed, self.proven, now);
        } else {
            self.hold.passed(confirmed);
        }
        self.shared.confirm(self.hold.released(now).lsn);
    }

    /// For the checkpoint, and for the next look at the stream's tail.
    fn note_known(&mut self, sequence: u64) {
        if let Some(known) = self.shared.known() {
            let has_news = self.proven > known.position;
            self.shared.set_known(Known {
                sequence: known.sequence.max(sequence),
                position: known.position.max(self.proven),
                // Repeats and boundaries do not make the stream's last event younger.
                at: if has_news {
                    SystemTime::now()
                } else {
                    known.at
                },
                ..known
            });
        }
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

/// Text becomes this much shorter at most: a number in its binary form.
const SHRINKS_MAX: usize = 4;
/// Half of what the server grants.
const OPEN_BATCH_MAX: Duration = Duration::from_secs(5);

/// A group stays open without an ack when only repeats followed its last message. After this long
/// the tail is read instead, which proves the same, or voids a batch that has to be committed.
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

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
