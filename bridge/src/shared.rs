//! What the source's thread and the publisher tell each other, apart from events.
//!
//! In and out: one confirmed LSN backwards, one session number forwards, and how each side fares.
//! Invariant: the confirmed LSN only grows within a run.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wire::checkpoint::Owed;
use wire::{Lsn, Position};

use crate::claims::Overlap;
use crate::counting::Counted;
use crate::identity::Identity;
use crate::publish::incarnation::Known;
use crate::publish::mode::Choice;
use crate::snapshot::handoff::Handoff;

/// How one side of the bridge fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Not connected yet.
    Starting,
    Well,
    /// Waits for another bridge to let go of the slot.
    Standby,
    /// Retrying; since when, and why.
    Trouble {
        since: Instant,
        why: String,
    },
}

#[derive(Debug)]
pub struct Shared {
    confirmed: AtomicU64,
    wanted: AtomicU64,
    recorded: AtomicU64,
    record_due: Notify,
    session: AtomicU32,
    replications: AtomicU32,
    is_server_stopping: AtomicBool,
    source: Mutex<Condition>,
    publisher: Mutex<Condition>,
    known: Mutex<Option<Known>>,
    identity: Mutex<Option<Identity>>,
    epoch: AtomicU64,
    slot_made: Mutex<Option<Lsn>>,
    debt: Mutex<Debt>,
    counted: Mutex<Counted>,
    snapshots_due: Notify,
    reset: Mutex<Option<&'static str>>,
    publisher_woken: Notify,
    accepts_reset: AtomicBool,
    publish_mode: Mutex<Option<Choice>>,
    has_company: AtomicBool,
    company_came: Notify,
    company_known: Notify,
    overlaps: Mutex<Vec<Overlap>>,
    /// Where snapshots and the stream meet.
    pub handoff: Handoff,
}

/// A gap from the moment it is known until consumers have all they need.
#[derive(Debug, Default)]
struct Debt {
    owed: Option<Owed>,
    is_told: bool,
    /// Epoch of the last one that is done with.
    settled: u64,
}

impl Debt {
    fn settle(&mut self) {
        if let Some(owed) = self.owed.take() {
            self.settled = owed.gap.epoch;
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            confirmed: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            recorded: AtomicU64::new(0),
            record_due: Notify::new(),
            session: AtomicU32::new(0),
            replications: AtomicU32::new(0),
            is_server_stopping: AtomicBool::new(false),
            source: Mutex::new(Condition::Starting),
            publisher: Mutex::new(Condition::Starting),
            known: Mutex::new(None),
            identity: Mutex::new(None),
            epoch: AtomicU64::new(0),
            slot_made: Mutex::new(None),
            debt: Mutex::new(Debt::default()),
            counted: Mutex::new(Counted::default()),
            snapshots_due: Notify::new(),
            reset: Mutex::new(None),
            publisher_woken: Notify::new(),
            accepts_reset: AtomicBool::new(false),
            publish_mode: Mutex::new(None),
            has_company: AtomicBool::new(false),
            company_came: Notify::new(),
            company_known: Notify::new(),
            overlaps: Mutex::default(),
            handoff: Handoff::default(),
        }
    }
}

impl Shared {
    /// The publisher: everything before this LSN is stored. The source: the slot has been told so before.
    pub fn confirm(&self, lsn: Lsn) {
        self.confirmed.fetch_max(lsn.0, Ordering::Release);
    }

    /// What the source may tell PostgreSQL; `Lsn::INVALID` until something was confirmed.
    pub fn confirmed(&self) -> Lsn {
        Lsn(self.confirmed.load(Ordering::Acquire))
    }

    /// The source would like to confirm this; gives how much of it the checkpoint allows. It is asked for
    /// more where that is less.
    pub fn allowed(&self, wanted: Lsn) -> Lsn {
        let recorded = self.recorded();
        if wanted > recorded {
            self.wanted.fetch_max(wanted.0, Ordering::AcqRel);
            self.record_due.notify_one();
        }
        wanted.min(recorded)
    }

    /// What is to be allowed by the next checkpoint.
    pub fn wanted(&self) -> Lsn {
        Lsn(self.wanted.load(Ordering::Acquire)).max(self.recorded())
    }

    /// The checkpoint says that the slot may have been told this much.
    pub fn record(&self, lsn: Lsn) {
        self.recorded.fetch_max(lsn.0, Ordering::AcqRel);
    }

    pub fn recorded(&self) -> Lsn {
        Lsn(self.recorded.load(Ordering::Acquire))
    }

    /// Returns when more should be allowed. Cancel safe.
    pub async fn record_due(&self) {
        self.record_due.notified().await;
    }

    /// Slabs of an older session are void.
    pub fn session(&self) -> u32 {
        self.session.load(Ordering::Acquire)
    }

    /// Makes the source read from the slot again and everything under way void.
    pub fn rewind(&self) {
        self.session.fetch_add(1, Ordering::AcqRel);
    }

    /// The source has the slot again, or for the first time. Until then another bridge may have had it.
    pub fn replication_started(&self) {
        self.server_is_stopping(false);
        self.replications.fetch_add(1, Ordering::AcqRel);
    }

    /// PostgreSQL lets nobody in any more. A source that does not read cannot hear of that by itself.
    pub fn server_is_stopping(&self, is_stopping: bool) {
        self.is_server_stopping
            .store(is_stopping, Ordering::Release);
    }

    pub fn is_server_stopping(&self) -> bool {
        self.is_server_stopping.load(Ordering::Acquire)
    }

    /// How often the source got the slot; grows before the first slab of the new replication.
    pub fn replications(&self) -> u32 {
        self.replications.load(Ordering::Acquire)
    }

    pub fn source(&self) -> Condition {
        lock(&self.source).clone()
    }

    pub fn publisher(&self) -> Condition {
        lock(&self.publisher).clone()
    }

    /// The stream as far as acks, or the checkpoint of an earlier run, have told.
    pub fn known(&self) -> Option<Known> {
        lock(&self.known).clone()
    }

    pub fn set_known(&self, known: Known) {
        *lock(&self.known) = Some(known);
    }

    /// The PostgreSQL cluster the stream's events are from.
    pub fn identity(&self) -> Option<Identity> {
        lock(&self.identity).clone()
    }

    pub fn set_identity(&self, identity: Identity) {
        *lock(&self.identity) = Some(identity);
    }

    /// Number of gaps so far.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
    }

    /// At least so many.
    pub fn raise_epoch(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::AcqRel);
    }

    /// Consumers have to be told; once the checkpoint says so too, no crash forgets it. A gap that they
    /// have not been told of yet becomes part of this one. Gives it with its new epoch.
    pub fn owe(&self, mut owed: Owed) -> Owed {
        let mut debt = lock(&self.debt);
        if let Some(earlier) = debt.owed.take() {
            owed.resnapshot |= earlier.resnapshot;
            if !debt.is_told {
                owed.gap.from = if owed.gap.from.is_valid() && earlier.gap.from.is_valid() {
                    owed.gap.from.min(earlier.gap.from)
                } else {
                    owed.gap.from.max(earlier.gap.from)
                };
                if owed.gap.to.is_valid() {
                    owed.gap.to = owed.gap.to.max(earlier.gap.to);
                }
            }
        }
        owed.gap.epoch = self.epoch() + 1;
        self.set_epoch(owed.gap.epoch);
        debt.owed = Some(owed.clone());
        debt.is_told = false;
        owed
    }

    /// A gap that an earlier run, or another bridge on the slot, has left.
    pub fn take_over_debt(&self, found: Option<Owed>) {
        let mut debt = lock(&self.debt);
        if debt.owed.is_none()
            && found
                .as_ref()
                .is_some_and(|owed| owed.gap.epoch > debt.settled)
        {
            debt.owed = found;
            debt.is_told = false;
        }
    }

    /// What consumers have yet to be told.
    pub fn owed(&self) -> Option<Owed> {
        let debt = lock(&self.debt);
        debt.owed.clone().filter(|_| !debt.is_told)
    }

    /// The same, or told with its snapshots yet to be asked for.
    pub fn debt(&self) -> Option<Owed> {
        lock(&self.debt).owed.clone()
    }

    /// Fills in where the lost changes begin and end, where that was not known.
    pub fn complete_debt(&self, from: Lsn, to: Lsn) -> Option<Owed> {
        let mut debt = lock(&self.debt);
        let gap = &mut debt.owed.as_mut()?.gap;
        if !gap.from.is_valid() {
            gap.from = from;
        }
        if !gap.to.is_valid() {
            gap.to = to;
        }
        debt.owed.clone()
    }

    /// The gap of this epoch is in the stream, and those before it.
    pub fn gap_told(&self, epoch: u64) {
        let mut debt = lock(&self.debt);
        if debt.owed.as_ref().is_none_or(|owed| owed.gap.epoch > epoch) {
            return;
        }
        debt.is_told = true;
        if debt.owed.as_ref().is_some_and(|owed| owed.resnapshot) {
            self.snapshots_due.notify_one();
        } else {
            debt.settle();
        }
    }

    /// Another bridge on the slot has taken it on itself.
    pub fn forget_debt(&self) {
        *lock(&self.debt) = Debt::default();
    }

    /// Returns when snapshots of all tables have to be asked for.
    pub async fn snapshots_due(&self) {
        self.snapshots_due.notified().await;
    }

    /// They were asked for.
    pub fn snapshots_asked(&self) {
        let mut debt = lock(&self.debt);
        if debt.is_told {
            debt.settle();
        }
    }

    /// How the stream's events were counted so far.
    pub fn counted(&self) -> Counted {
        lock(&self.counted).clone()
    }

    /// The stream is another one.
    pub fn forget_counted_from(&self) {
        lock(&self.counted).from = Position::START;
    }

    pub fn set_counted(&self, counted: Counted) {
        *lock(&self.counted) = counted;
    }

    /// The slot did not exist and was made now, keeping changes from this LSN on.
    pub fn slot_made(&self, from: Lsn) {
        *lock(&self.slot_made) = Some(from);
    }

    pub fn is_slot_new(&self) -> bool {
        lock(&self.slot_made).is_some()
    }

    pub fn slot_made_at(&self) -> Option<Lsn> {
        *lock(&self.slot_made)
    }

    /// That LSN, once.
    pub fn take_slot_made(&self) -> Option<Lsn> {
        lock(&self.slot_made).take()
    }

    /// What was seen to have happened to the stream behind the publisher's back, until it is accepted.
    pub fn reset(&self) -> Option<&'static str> {
        *lock(&self.reset)
    }

    pub fn set_reset(&self, what: Option<&'static str>) {
        *lock(&self.reset) = what;
        self.wake_publisher();
    }

    /// There is news here that the publisher should not learn only with the next event.
    pub fn wake_publisher(&self) {
        self.publisher_woken.notify_one();
    }

    /// Returns when there may be. Cancel safe.
    pub async fn publisher_woken(&self) {
        self.publisher_woken.notified().await;
    }

    /// An operator says that a purged or recreated stream is meant to be so.
    pub fn accept_reset(&self) {
        self.accepts_reset.store(true, Ordering::Release);
    }

    /// Whether that was said; once asked, it has to be said again.
    pub fn take_reset_acceptance(&self) -> bool {
        self.accepts_reset.swap(false, Ordering::AcqRel)
    }

    /// How messages are published; None until the stream's tail was read.
    pub fn publish_mode(&self) -> Option<Choice> {
        lock(&self.publish_mode).clone()
    }

    pub fn set_publish_mode(&self, choice: Choice) {
        *lock(&self.publish_mode) = Some(choice);
    }

    /// Another bridge is about to write to the stream. Returns once the publisher has nothing in flight
    /// that needs the stream alone.
    pub async fn share_stream(&self) {
        self.has_company.store(true, Ordering::Release);
        self.company_came.notify_one();
        self.company_known.notified().await;
    }

    pub fn is_stream_shared(&self) -> bool {
        self.has_company.load(Ordering::Acquire)
    }

    /// Wakes the publisher when that begins.
    pub async fn company_came(&self) {
        self.company_came.notified().await;
    }

    /// The publisher, in a mode for shared streams.
    pub fn knows_sharing(&self) {
        self.company_known.notify_one();
    }

    /// Other bridges that publish the same tables into the stream.
    pub fn overlaps(&self) -> Vec<Overlap> {
        lock(&self.overlaps).clone()
    }

    pub fn set_overlaps(&self, overlaps: Vec<Overlap>) {
        *lock(&self.overlaps) = overlaps;
    }

    pub fn source_is(&self, condition: Condition) {
        set(&self.source, condition);
    }

    pub fn publisher_is(&self, condition: Condition) {
        set(&self.publisher, condition);
    }

    /// Both sides are connected and neither retries.
    pub fn is_well(&self) -> bool {
        self.source() == Condition::Well && self.publisher() == Condition::Well
    }
}

impl Condition {
    /// Trouble that begins now; `set` keeps the time of trouble that goes on.
    pub fn trouble(why: &impl ToString) -> Self {
        Self::Trouble {
            since: Instant::now(),
            why: why.to_string(),
        }
    }

    /// How long it has been in trouble.
    pub fn troubled_for(&self, now: Instant) -> Option<Duration> {
        match self {
            Self::Trouble { since, .. } => Some(now.saturating_duration_since(*since)),
            Self::Starting | Self::Well | Self::Standby => None,
        }
    }
}

/// Nothing panics while it holds one of these locks, so a poisoned one is whole.
fn lock<T>(slot: &Mutex<T>) -> MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set(slot: &Mutex<Condition>, mut condition: Condition) {
    let mut current = lock(slot);
    if let (Condition::Trouble { since: began, .. }, Condition::Trouble { since, .. }) =
        (&*current, &mut condition)
    {
        *since = *began;
    }
    *current = condition;
}
