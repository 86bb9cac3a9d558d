//! The loop that reads WAL: bytes from the walsender in, slabs into the ring, feedback back.
//!
//! In: one replication session after another. Out: slabs; StandbyStatusUpdates.
//! Invariant: only `Shared::confirmed` is confirmed, or a keepalive's WAL end when nothing at all is
//! under way; and feedback goes on while the ring is full.
//!
//! A plain OS thread on a blocking socket: it must be able to nap between reads (see `postgres::gulp`).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use daemon::backoff::{self, Backoff};
use daemon::chained::Chained;
use daemon::shutdown::Shutdown;
use wire::checkpoint::Owed;
use wire::gap::{Gap, Reason};
use wire::{Lsn, Position, SubjectPattern};

use crate::assembler::{self, Assembler};
use crate::checkpoint::{self, Records};
use crate::counting::{Counted, Counting};
use crate::event::Slab;
use crate::feedback::{Feedback, Pings};
use crate::identity::{self, Identity};
use crate::metrics::Metrics;
use crate::pgoutput;
use crate::postgres::gulp::Gulp;
use crate::postgres::{
    self, Endpoint, Frame, Read, ReplicationStream, START_OPTIONS, ServerError, Session,
    WAL_SENDER_TIMEOUT,
};
use crate::ring::Producer;
use crate::shared::{Condition, Shared};
use crate::slot::{self, OnLoss, Standing};
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
    #[error("what consumers have to be told cannot be written down yet")]
    Checkpoint(#[from] checkpoint::Error),
    #[error(
        "--skip-to-lsn {to} lies behind the slot, which is at {at}: there is no going back. Leave the flag out"
    )]
    SkipBackwards { to: Lsn, at: Lsn },
    #[error(
        "--skip-to-lsn {to} lies ahead of the end of WAL at {end}; SELECT pg_current_wal_lsn() skips everything \
         written so far"
    )]
    SkipAhead { to: Lsn, end: Lsn },
}

impl Error {
    /// What pgoutput sent makes sense when read again, or never; the slot keeps it either way.
    fn is_retryable(&self) -> bool {
        match self {
            Self::Postgres(error) => error.is_retryable(),
            Self::Decode(_) | Self::Assemble(_) | Self::ServerStopping | Self::Checkpoint(_) => {
                true
            }
            Self::Identity(_) | Self::SkipBackwards { .. } | Self::SkipAhead { .. } => false,
        }
    }

    fn is_slot_loss(&self) -> bool {
        matches!(
            self,
            Self::Postgres(postgres::Error::SlotLost(_) | postgres::Error::SlotMissing(_))
        )
    }
}

/// Where to read from.
#[derive(Debug, Clone)]
pub struct Origin {
    pub endpoint: Endpoint,
    pub slot: String,
    pub counting: Counting,
    pub subjects: SubjectPattern,
    pub on_slot_loss: OnLoss,
    /// Where an operator wants to go on, leaving out what was committed before.
    pub skip_to: Option<Lsn>,
    /// An earlier run has had the slot.
    pub slot_was_used: bool,
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
    records: Records,
    /// PostgreSQL has said so, whatever the catalogue shows.
    slot_is_lost: bool,
    /// Another bridge had the slot, so what is known may be out of date.
    was_standby: bool,
    /// The record says how this run counts.
    is_recorded: bool,
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
        records: Records,
    ) -> Self {
        Self {
            origin,
            records,
            producer,
            shared,
            metrics,
            shutdown,
            observer: Observer::default(),
            handed_over: Lsn::INVALID,
            slot_is_lost: false,
            was_standby: false,
            is_recorded: false,
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
            let is_renewed = error.is_slot_loss() && self.origin.on_slot_loss == OnLoss::Resnapshot;
            if !error.is_retryable() && !is_renewed {
                return Err(error);
            }
            self.slot_is_lost |= matches!(error, Error::Postgres(postgres::Error::SlotLost(_)));
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
                    self.was_standby = true;
                    // Jitter, so that of several standbys no two ask at the same time for ever.
                    STANDBY_RETRY / 2
                        + STANDBY_RETRY.mul_f64(backoff::random() as f64 / u64::MAX as f64 / 2.0)
                }
                Error::Postgres(_)
                | Error::Decode(_)
                | Error::Assemble(_)
                | Error::ServerStopping
                | Error::Identity(_)
                | Error::Checkpoint(_)
                | Error::SkipBackwards { .. }
                | Error::SkipAhead { .. } => {
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
        let wal_end = self.identify(&mut session)?;
        let xid = recent_xid(&mut session)?;
        self.observer.session(xid);
        self.ready_slot(&mut session, wal_end)?;
        let begun = self.begun_transaction()?;
        let counting = match &begun {
            Some(begun) => begun.by.clone(),
            None => self.origin.counting.clone(),
        };
        let mut stream =
            session.start_replication(&self.origin.slot, &counting.publications, &START_OPTIONS)?;
        if self.was_standby {
            let before = self.shared.counted();
            self.records.refresh()?;
            self.was_standby = false;
            if self.shared.counted() != before {
                stream.close(CLOSE_TIMEOUT)?;
                return Ok(());
            }
        }
        if !self.is_recorded {
            self.records.write()?;
            self.is_recorded = true;
        }
        self.metrics.connected.set(1);
        self.shared.source_is(Condition::Well);
        self.shared.replication_started();
        // It may have to tell a gap, whether an event comes or not.
        self.shared.wake_publisher();
        tracing::info!(slot = self.origin.slot, "replication started");

        let number = self.shared.session();
        let mut run = Run {
            assembler: Assembler::new(
                counting.filter(),
                self.origin.subjects.clone(),
                number,
                xid,
                self.producer.slab(),
            ),
            feedback: Feedback::new(Instant::now()),
            pings: Pings::new(Instant::now()),
            gulp: Gulp::default(),
            wal_end: Lsn::INVALID,
            begun,
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

    /// Refuses another cluster, and an earlier state of this one. Gives the end of WAL.
    fn identify(&self, session: &mut Session) -> Result<Lsn, Error> {
        let found = session.identify_system()?;
        // Without an identity the position is that of another stream, and says nothing about this server.
        let identity = self.shared.identity();
        let known = self.shared.known().filter(|_| identity.is_some());
        let mut position = known.map_or(Position::START, |known| known.position);
        let mut history = Vec::new();
        if let Some(identity) = &identity
            && identity.system_identifier == found.system_identifier
            && identity.timeline != found.timeline
        {
            history = session.timeline_history(found.timeline)?;
            // The last events before a failover decide: those that the record does not know of yet, and
            // those under way.
            while !self.producer.is_empty() && !self.is_ending() {
                std::thread::park_timeout(FULL_PARK);
            }
            let filters = self.shared.counted().by.filters;
            let last = self.records.last_event(&filters)?;
            position = position.max(last.map_or(Position::START, |(position, _)| position));
        }
        identity::check(identity.as_ref(), &found, &history, position)?;
        if let Some(before) = identity.filter(|identity| identity.timeline != found.timeline) {
            tracing::info!(
                before = before.timeline,
                timeline = found.timeline,
                "PostgreSQL was promoted, and has all that the stream holds"
            );
        }
        self.shared.set_identity(Identity::from(&found));
        Ok(found.wal_lsn)
    }

    /// Sees that there is a slot to stream from, and that consumers will hear of what it does not hold.
    fn ready_slot(&mut self, session: &mut Session, wal_end: Lsn) -> Result<(), Error> {
        let name = &self.origin.slot;
        let found = slot::look(session, name)?;
        let at = found.map_or(Lsn::INVALID, |found| found.confirmed_flush);
        match found.map(|found| found.standing) {
            Some(Standing::Elsewhere) => {
                let text = format!("slot {name} was not created in this database");
                return Err(postgres::Error::WrongDatabase(ServerError::own("55000", text)).into());
            }
            Some(Standing::Copy) => {
                let text = format!("slot {name} is a standby's copy, waiting for its promotion");
                return Err(postgres::Error::Unavailable(ServerError::own("55000", text)).into());
            }
            None if slot::is_standby(session)? => {
                let text = format!("a standby without slot {name}, waiting for its promotion");
                return Err(postgres::Error::Unavailable(ServerError::own("42704", text)).into());
            }
            None => self.renew(session, false)?,
            Some(Standing::Lost) => self.renew(session, true)?,
            // Before anything is written down: the record is that of the bridge that streams.
            Some(Standing::Active) => {
                let text = format!("slot {name} is active");
                return Err(postgres::Error::SlotInUse(ServerError::own("55006", text)).into());
            }
            Some(Standing::Free) if self.slot_is_lost => self.renew(session, true)?,
            Some(Standing::Free) => {
                let confirmed = self.skip(session, at, wal_end)?;
                self.compare(confirmed)?;
                // Told by an earlier run, or by another bridge that had the slot meanwhile.
                self.shared.confirm(confirmed);
                self.shared.complete_debt(Lsn::INVALID, confirmed);
            }
        }
        self.origin.slot_was_used = true;
        Ok(())
    }

    /// Makes a slot where there is none, or in the place of one that is lost. What it cannot send is owed
    /// to consumers, and that is written down before the slot is there: a crash in between must not make
    /// the new slot look like one that has always been.
    fn renew(&mut self, session: &mut Session, is_there: bool) -> Result<(), Error> {
        let name = &self.origin.slot;
        let is_begun = match self.shared.owed() {
            Some(owed) if owed.gap.reason == Reason::SlotLost => {
                let last = self.records.last_gap()?;
                last.is_none_or(|last| last.epoch < owed.gap.epoch)
            }
            _ => false,
        };
        let is_lost = is_there || self.origin.slot_was_used;
        if is_lost && !is_begun && self.origin.on_slot_loss == OnLoss::Halt {
            return Err(Error::Postgres(if is_there {
                let text = format!("slot {name} was invalidated");
                postgres::Error::SlotLost(ServerError::own("55000", text))
            } else {
                let text = format!("slot {name} does not exist");
                postgres::Error::SlotMissing(ServerError::own("42704", text))
            }));
        }
        // What was read from the old slot belongs before the gap.
        while !self.producer.is_empty() && !self.is_ending() {
            std::thread::park_timeout(FULL_PARK);
        }
        if !is_begun && (is_lost || self.holds_events()?) {
            tracing::error!(
                slot = name,
                "the slot is gone and with it changes; making a new one, consumers will be told"
            );
            self.owe(Reason::SlotLost, Lsn::INVALID)?;
        }
        if is_there {
            slot::drop_lost(session, name, self.slot_is_lost)?;
        }
        if let Some(made) = slot::make(session, name)? {
            let from = made.consistent_point;
            tracing::info!(slot = name, %from, "slot made; changes from now on are kept");
            self.shared.confirm(from);
            self.shared.complete_debt(Lsn::INVALID, from);
            self.shared.slot_made(from);
        } else {
            self.shared.forget_debt();
        }
        self.slot_is_lost = false;
        Ok(())
    }

    /// Where an earlier run was told to publish other tables: the transaction it ended in, if that is in
    /// the stream in part only.
    fn begun_transaction(&mut self) -> Result<Option<Begun>, Error> {
        let counted = self.shared.counted();
        if counted.by == self.origin.counting {
            return Ok(None);
        }
        let last = self.records.last_event(&counted.by.filters)?;
        let (position, is_last) = last.unwrap_or((Position::START, true));
        if is_last || position <= counted.from {
            let commit_lsn = position.max(counted.from).commit_lsn;
            tracing::info!(behind = %commit_lsn, "publications or tables are others than in the run before");
            let by = self.origin.counting.clone();
            self.shared.set_counted(Counted::behind(commit_lsn, by));
            self.records.write()?;
            return Ok(None);
        }
        tracing::warn!(
            %position, publications = ?counted.by.publications, tables = ?counted.by.tables,
            "publications or tables are others than in the run before, which ended in the middle of a transaction: \
             finishing that as it was begun"
        );
        Ok(Some(Begun {
            commit_lsn: position.commit_lsn,
            by: counted.by,
        }))
    }

    /// The transaction that was begun under other settings is read to its end. Once it is stored the next
    /// session goes by those of this run.
    fn count_anew(&mut self, stream: &mut ReplicationStream, run: &mut Run) -> Result<(), Error> {
        while !self.producer.is_empty() && !self.is_ending() {
            std::thread::park_timeout(FULL_PARK);
            self.feedback(stream, run, false)?;
        }
        self.shared.rewind();
        Ok(())
    }

    /// Moves the slot ahead from `at` where an operator wants that, or an earlier run has begun to. Gives
    /// where the slot stands then.
    fn skip(&mut self, session: &mut Session, at: Lsn, wal_end: Lsn) -> Result<Lsn, Error> {
        let begun = self
            .shared
            .owed()
            .filter(|owed| owed.gap.reason == Reason::Skipped);
        let to = match (self.origin.skip_to, begun) {
            (Some(to), begun) if begun.as_ref().is_none_or(|owed| owed.gap.to < to) => {
                if to < at && self.was_skipped_to(to)? {
                    tracing::warn!(%to, "an earlier run has skipped to there; leave out --skip-to-lsn");
                    self.origin.skip_to = None;
                    return Ok(at);
                }
                if to < at {
                    return Err(Error::SkipBackwards { to, at });
                }
                if to > wal_end {
                    return Err(Error::SkipAhead { to, end: wal_end });
                }
                if to == at {
                    tracing::info!(%to, "the slot is there already, nothing is skipped");
                    self.origin.skip_to = None;
                    return Ok(at);
                }
                self.owe(Reason::Skipped, to)?;
                to
            }
            (_, Some(owed)) if owed.gap.to > at => owed.gap.to,
            (_, _) => return Ok(at),
        };
        slot::advance(session, &self.origin.slot, to)?;
        tracing::warn!(slot = self.origin.slot, from = %at, %to, "the slot was moved ahead: what was committed between is not read");
        self.origin.skip_to = None;
        Ok(to)
    }

    fn holds_events(&self) -> Result<bool, Error> {
        let last = self.records.last_event(&self.origin.counting.filters)?;
        Ok(last.is_some())
    }

    /// An earlier run did, and has told it.
    fn was_skipped_to(&self, to: Lsn) -> Result<bool, Error> {
        let last = self.records.last_gap()?;
        Ok(last.is_some_and(|last| last.reason == Reason::Skipped && last.to == to))
    }

    /// The checkpoint is written before PostgreSQL is told to forget. A slot that was told more has been
    /// moved or made anew by hand, or the checkpoint is from before, and the stream with it.
    fn compare(&self, confirmed: Lsn) -> Result<(), Error> {
        if !self.shared.recorded().is_valid() || confirmed <= self.shared.recorded() {
            return Ok(());
        }
        // Another bridge may have had the slot meanwhile.
        self.records.refresh()?;
        let recorded = self.shared.recorded();
        let last = self
            .records
            .last_event(&self.shared.counted().by.filters)?
            .map_or(Lsn::INVALID, |(position, _)| position.commit_lsn);
        if confirmed <= recorded.max(last) || self.shared.owed().is_some() {
            return Ok(());
        }
        tracing::error!(
            slot = self.origin.slot, %confirmed, %recorded, %last,
            "PostgreSQL has forgotten more than this bridge has told it to: the stream was restored from an older \
             copy while the bridge was down, or the slot was moved or made anew by hand. What lies between cannot \
             be read again; consumers are told"
        );
        self.owe(Reason::StreamReset, confirmed)
    }

    /// Consumers have to be told; from here on no crash forgets it.
    fn owe(&self, reason: Reason, to: Lsn) -> Result<(), Error> {
        let resnapshot =
            reason == Reason::SlotLost && self.origin.on_slot_loss == OnLoss::Resnapshot;
        self.shared.owe(Owed {
            gap: Gap {
                slot: self.origin.slot.clone(),
                epoch: 0,
                // Where the stream ends then.
                from: Lsn::INVALID,
                to,
                reason,
                timestamp: checkpoint::seconds(SystemTime::now()),
            },
            resnapshot,
        });
        Ok(self.records.write()?)
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
        let mut is_past_begun = false;
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
                    if let (pgoutput::Message::Begin(begin), Some(begun)) = (&message, &run.begun)
                        && begin.final_lsn > begun.commit_lsn
                    {
                        is_past_begun = true;
                        break;
                    }
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
        if is_past_begun {
            return self.count_anew(stream, run);
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
            if self.shared.is_server_stopping() {
                // PostgreSQL: a fast shutdown waits for each walsender to send all it has; this one cannot.
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
        // What PostgreSQL forgets while the checkpoint does not know of it would look like nothing later,
        // were both restored from an older copy.
        let confirmed = self.shared.allowed(confirmed);
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
        let mut confirmed = self.shared.confirmed();
        if self.shared.allowed(confirmed) < confirmed {
            if let Err(error) = self.records.write_own() {
                tracing::warn!(error = %Chained(&error), "PostgreSQL is not told all that is stored, and will send it again");
            }
            confirmed = self.shared.allowed(confirmed);
        }
        stream.send_status(confirmed, confirmed, confirmed, false)?;
        self.metrics.confirmed_lsn.set(confirmed.0 as i64);
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

/// What lives as long as one session.
struct Run {
    assembler: Assembler,
    feedback: Feedback,
    pings: Pings,
    gulp: Gulp,
    /// The highest WAL end a keepalive named.
    wal_end: Lsn,
    /// To be finished before anything else is read.
    begun: Option<Begun>,
}

/// A transaction of which the stream holds only the beginning, counted as an earlier run was told to.
struct Begun {
    commit_lsn: Lsn,
    by: Counting,
}
