//! The loop that reads WAL: bytes from the walsender in, slabs into the ring, feedback back.
//!
//! In: one replication session after another. Out: slabs; StandbyStatusUpdates.
//! Invariant: only `Shared::confirmed` is confirmed, or a keepalive's WAL end when nothing at all is
//! under way; and feedback goes on while the ring is full.
//!
//! A plain OS thread on a blocking socket: it must be able to nap between reads (see `postgres::gulp`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::backoff::{self, Backoff};
use daemon::shutdown::Shutdown;
use wire::{Lsn, Position, SubjectPattern};

use crate::assembler::{self, Assembler};
use crate::config::TableFilter;
use crate::event::Slab;
use crate::feedback::{Feedback, Pings};
use crate::identity::{self, Identity};
use crate::metrics::Metrics;
use crate::pgoutput;
use crate::postgres::gulp::Gulp;
use crate::postgres::{
    self, CreatedSlot, Endpoint, Frame, Read, ReplicationStream, START_OPTIONS, Session,
    WAL_SENDER_TIMEOUT, quote_literal,
};
use crate::publish::publisher::Chained;
use crate::ring::Producer;
use crate::shared::{Condition, Shared};
use crate::snapshot::handoff::Observer;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error("a message of pgoutput is not understood")]
    Decode(#[from] pgoutput::decode::Error),
    #[error("the messages of pgoutput are out of order")]
    Assemble(#[from] assembler::Error),
    #[error("PostgreSQL is shutting down and waits for what is not confirmed yet; letting it go")]
    ServerStopping,
    #[error(transparent)]
    Identity(#[from] identity::Error),
}

impl Error {
    /// What pgoutput sent makes sense when read again, or never; the slot keeps it either way.
    fn is_retryable(&self) -> bool {
        match self {
            Self::Postgres(error) => error.is_retryable(),
            Self::Decode(_) | Self::Assemble(_) | Self::ServerStopping => true,
            Self::Identity(_) => false,
        }
    }
}

/// Where to read from.
#[derive(Debug, Clone)]
pub struct Origin {
    pub endpoint: Endpoint,
    pub slot: String,
    pub publications: Vec<String>,
    pub filter: TableFilter,
    pub subjects: SubjectPattern,
}

pub struct Source {
    origin: Origin,
    producer: Producer,
    shared: Arc<Shared>,
    metrics: Metrics,
    shutdown: Shutdown,
    observer: Observer,
    /// End of the last transaction that went into the ring, or waits to.
    handed_over: Lsn,
    /// From then on a missing slot is an error: a new one would skip changes silently.
    slot_was_seen: bool,
}

/// Longest time between two looks at feedback and shutdown.
const TICK: Duration = Duration::from_millis(100);
/// While the ring is full; the publisher wakes us sooner.
const FULL_PARK: Duration = Duration::from_millis(20);
/// For the walsender to let go of the slot.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a standby asks for the slot.
const STANDBY_RETRY: Duration = Duration::from_secs(1);

impl Source {
    pub fn new(
        origin: Origin,
        producer: Producer,
        shared: Arc<Shared>,
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            origin,
            producer,
            shared,
            metrics,
            shutdown,
            observer: Observer::default(),
            handed_over: Lsn::INVALID,
            slot_was_seen: false,
        }
    }

    /// Streams until the shutdown, then waits until the publisher is done. An error is one that no
    /// retry can mend.
    pub fn run(mut self) -> Result<(), Error> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        while !self.is_ending() {
            let started = Instant::now();
            let error = match self.session() {
                // The shutdown, or a rewind: then the next session reads from the slot again.
                Ok(()) => continue,
                Err(error) => error,
            };
            if !error.is_retryable() {
                return Err(error);
            }
            self.metrics.connected.set(0);
            if started.elapsed() > Duration::from_secs(10) {
                backoff.reset();
            }
            let delay = match &error {
                Error::Postgres(postgres::Error::SlotInUse(_)) => {
                    if self.shared.source() != Condition::Standby {
                        tracing::info!(slot = self.origin.slot, "the slot is in use, standing by");
                    }
                    self.shared.source_is(Condition::Standby);
                    // Jitter, so that of several standbys no two ask at the same time for ever.
                    STANDBY_RETRY / 2
                        + STANDBY_RETRY.mul_f64(backoff::random() as f64 / u64::MAX as f64 / 2.0)
                }
                Error::Postgres(_)
                | Error::Decode(_)
                | Error::Assemble(_)
                | Error::ServerStopping
                | Error::Identity(_) => {
                    self.metrics.reconnects.inc();
                    let delay = backoff.next(backoff::random());
                    tracing::warn!(error = %Chained(&error), ?delay, "replication stopped, will read on from the slot");
                    self.shared.source_is(Condition::trouble(&Chained(&error)));
                    delay
                }
            };
            self.pause(delay);
        }
        self.producer.complete();
        while !self.producer.is_abandoned() {
            std::thread::park_timeout(FULL_PARK);
        }
        Ok(())
    }

    /// One connection's life. Ok: the shutdown came, and what was read is stored.
    fn session(&mut self) -> Result<(), Error> {
        let mut session = Session::connect(&self.origin.endpoint, WAL_SENDER_TIMEOUT)?;
        self.shared.postgres_is_stopping(false);
        self.identify(&mut session)?;
        let xid = recent_xid(&mut session)?;
        self.observer.session(xid);
        match confirmed_flush_lsn(&mut session, &self.origin.slot)? {
            // Told by an earlier run, or by another bridge that had the slot meanwhile.
            Some(confirmed) => self.shared.confirm(confirmed),
            None if self.slot_was_seen => {}
            None => {
                if let Some(made) = make_slot(&mut session, &self.origin.slot)? {
                    let from = made.consistent_point;
                    tracing::info!(slot = self.origin.slot, %from, "slot made; changes from now on are kept");
                    self.shared.slot_made(from);
                }
            }
        }
        self.slot_was_seen = true;
        let mut stream = session.start_replication(
            &self.origin.slot,
            &self.origin.publications,
            &START_OPTIONS,
        )?;
        self.shared.replication_started();
        self.metrics.connected.set(1);
        self.shared.source_is(Condition::Well);
        // It may have to tell a gap, whether an event comes or not.
        self.shared.wake_publisher();
        tracing::info!(slot = self.origin.slot, "replication started");

        let number = self.shared.session();
        let mut run = Run {
            assembler: Assembler::new(
                self.origin.filter.clone(),
                self.origin.subjects.clone(),
                number,
                xid,
                self.producer.slab(),
            ),
            feedback: Feedback::new(Instant::now()),
            pings: Pings::new(Instant::now()),
            gulp: Gulp::default(),
            wal_end: Lsn::INVALID,
        };
        while !self.is_ending() && self.shared.session() == number {
            self.gulp(&mut stream, &mut run)?;
        }
        if self.shutdown.is_triggered() {
            self.drain(&mut stream, &mut run)?;
        }
        // Until the server has hung up the slot counts as in use.
        stream.close(CLOSE_TIMEOUT)?;
        Ok(())
    }

    /// Refuses another cluster, and an earlier state of this one.
    fn identify(&self, session: &mut Session) -> Result<(), Error> {
        let found = session.identify_system()?;
        // Without an identity the position is that of another stream, and says nothing about this server.
        let identity = self.shared.identity();
        let known = self.shared.known().filter(|_| identity.is_some());
        let position = known.map_or(Position::START, |known| known.position);
        identity::check(identity.as_ref(), &found, position)?;
        self.shared.set_identity(Identity::from(&found));
        Ok(())
    }

    /// One read, all the frames it brought, and feedback when it is due.
    fn gulp(&mut self, stream: &mut ReplicationStream, run: &mut Run) -> Result<(), Error> {
        let started = Instant::now();
        let bytes = match stream.read(TICK)? {
            Read::Bytes(bytes) => bytes,
            Read::TimedOut => 0,
        };
        let nap = run.gulp.nap_after(started.elapsed(), bytes);
        let mut messages = 0;
        let mut is_reply_due = false;
        let mut is_stopping = false;
        loop {
            // What did not fit goes into the ring before the next frame is looked at.
            let mut sealed = Vec::new();
            match stream.next_frame()? {
                None => break,
                Some(Frame::XLogData {
                    wal_start, payload, ..
                }) => {
                    let message = pgoutput::decode(payload)?;
                    let is_begin = matches!(message, pgoutput::Message::Begin(_));
                    if let pgoutput::Message::LogicalMessage(written) = &message {
                        let transaction = run.assembler.transaction();
                        self.observer
                            .message(written, transaction, &self.shared.handoff);
                    }
                    let producer = &mut self.producer;
                    run.assembler.take(wal_start, message, |slab| {
                        sealed.push(slab);
                        producer.slab()
                    })?;
                    if is_begin && let Some(transaction) = run.assembler.transaction() {
                        self.metrics.transactions.inc();
                        self.observer.began(transaction);
                    }
                }
                Some(Frame::PrimaryKeepalive {
                    wal_end,
                    reply_requested,
                    ..
                }) => {
                    run.wal_end = run.wal_end.max(wal_end);
                    is_reply_due |= reply_requested;
                    is_stopping |= reply_requested && run.pings.asked(started);
                }
            }
            messages += 1;
            for slab in sealed {
                if !self.hand_over(slab, stream, run)? {
                    return Ok(());
                }
            }
        }
        if messages > 0 {
            self.metrics.wal_messages_received.inc_by(messages);
            self.metrics.received_lsn.set(run.wal_end.0 as i64);
        }
        if let Some(slab) = run.assembler.seal(|| self.producer.slab())
            && !self.hand_over(slab, stream, run)?
        {
            return Ok(());
        }
        self.feedback(stream, run, is_reply_due)?;
        if is_stopping && self.shared.confirmed() < run.wal_end {
            return Err(Error::ServerStopping);
        }
        if let Some(nap) = nap {
            std::thread::sleep(nap);
        }
        Ok(())
    }

    /// Into the ring; waits while that is full, and goes on giving feedback. False: the bridge is ending
    /// and the slab was dropped, so nothing behind it may follow it into the ring.
    fn hand_over(
        &mut self,
        slab: Slab,
        stream: &mut ReplicationStream,
        run: &mut Run,
    ) -> Result<bool, Error> {
        // Before it waits: what it holds is under way, so no keepalive's WAL end may be confirmed.
        self.handed_over = self.handed_over.max(slab.boundary());
        let mut slab = slab;
        let mut waited_since = None;
        while let Err(refused) = self.producer.push(slab) {
            slab = refused;
            waited_since.get_or_insert_with(Instant::now);
            if self.is_ending() {
                // Not confirmed, so WAL has it.
                return Ok(false);
            }
            // It waits for the walsender, which waits for us: what it would say to that cannot be read now.
            if self.shared.is_postgres_stopping() {
                return Err(Error::ServerStopping);
            }
            std::thread::park_timeout(FULL_PARK);
            self.feedback(stream, run, false)?;
        }
        if let Some(since) = waited_since {
            self.metrics
                .full_wait_seconds
                .observe(since.elapsed().as_secs_f64());
        }
        Ok(true)
    }

    fn feedback(
        &mut self,
        stream: &mut ReplicationStream,
        run: &mut Run,
        is_requested: bool,
    ) -> Result<(), Error> {
        let mut confirmed = self.shared.confirmed();
        // PostgreSQL: a keepalive's WAL end lies behind everything sent so far. With nothing under way
        // all before it is done with, and must be said so, or an idle publication pins WAL for ever.
        if run.assembler.is_idle() && confirmed >= self.handed_over {
            confirmed = confirmed.max(run.wal_end);
        }
        let now = Instant::now();
        if run.feedback.is_due(confirmed, is_requested, now) {
            // Received, but not to be forgotten before it is confirmed.
            let received = run.wal_end.max(confirmed);
            stream.send_status(received, confirmed, confirmed, false)?;
            run.feedback.sent(confirmed, now);
            self.metrics.confirmed_lsn.set(confirmed.0 as i64);
        }
        Ok(())
    }

    /// Nothing new enters the ring; once the publisher has stored what is in it, PostgreSQL hears of it.
    fn drain(&mut self, stream: &mut ReplicationStream, run: &mut Run) -> Result<(), Error> {
        self.producer.complete();
        while !self.producer.is_abandoned() {
            std::thread::park_timeout(FULL_PARK);
            self.feedback(stream, run, false)?;
        }
        let confirmed = self.shared.confirmed();
        stream.send_status(confirmed, confirmed, confirmed, false)?;
        Ok(())
    }

    /// The shutdown came, or the publisher is gone.
    fn is_ending(&self) -> bool {
        self.shutdown.is_triggered() || self.producer.is_abandoned()
    }

    fn pause(&self, delay: Duration) {
        let until = Instant::now() + delay;
        while Instant::now() < until && !self.is_ending() {
            std::thread::park_timeout(TICK.min(delay));
        }
    }
}

/// A 64 bit transaction id of about now: where the epoch of the 32 bit ones comes from.
fn recent_xid(session: &mut Session) -> Result<u64, postgres::Error> {
    let rows = session.simple_query("SELECT pg_snapshot_xmax(pg_current_snapshot())")?;
    let xid = rows
        .first()
        .and_then(|row| row.first()?.as_ref()?.parse().ok());
    xid.ok_or(postgres::Error::Protocol {
        expected: "a transaction id",
    })
}

/// What the slot has been told so far; None when there is no slot.
fn confirmed_flush_lsn(session: &mut Session, slot: &str) -> Result<Option<Lsn>, postgres::Error> {
    let sql = format!(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = {}",
        quote_literal(slot)
    );
    let rows = session.simple_query(&sql)?;
    let lsn = |row: &Vec<Option<String>>| row.first()?.as_ref()?.parse().ok();
    // A slot of another kind has none; START_REPLICATION says what is wrong with it.
    Ok(rows.first().map(|row| lsn(row).unwrap_or(Lsn::INVALID)))
}

/// Makes the slot. None: it is there already.
fn make_slot(session: &mut Session, slot: &str) -> Result<Option<CreatedSlot>, postgres::Error> {
    // PostgreSQL: a failover slot is copied to standbys from 17 on, if they ask for it.
    let is_failover = session.server_major_version() >= 17;
    match session.create_slot(slot, is_failover) {
        Ok(made) => Ok(Some(made)),
        // Another bridge was quicker.
        Err(postgres::Error::SlotExists(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What lives as long as one session.
struct Run {
    assembler: Assembler,
    feedback: Feedback,
    pings: Pings,
    gulp: Gulp,
    /// The highest WAL end a keepalive named.
    wal_end: Lsn,
}
