//! What the source's thread and the publisher tell each other, apart from events.
//!
//! In and out: one confirmed LSN backwards, one session number forwards, and how each side fares.
//! Invariant: the confirmed LSN only grows within a run.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wire::Lsn;

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
    session: AtomicU32,
    replications: AtomicU32,
    source: Mutex<Condition>,
    publisher: Mutex<Condition>,
    known: Mutex<Option<Known>>,
    identity: Mutex<Option<Identity>>,
    epoch: AtomicU64,
    slot_made: Mutex<Option<Lsn>>,
    reset: Mutex<Option<&'static str>>,
    is_postgres_stopping: AtomicBool,
    publisher_woken: Notify,
    accepts_reset: AtomicBool,
    publish_mode: Mutex<Option<Choice>>,
    has_company: AtomicBool,
    company_came: Notify,
    company_known: Notify,
    /// Where snapshots and the stream meet.
    pub handoff: Handoff,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            confirmed: AtomicU64::new(0),
            session: AtomicU32::new(0),
            replications: AtomicU32::new(0),
            source: Mutex::new(Condition::Starting),
            publisher: Mutex::new(Condition::Starting),
            known: Mutex::new(None),
            identity: Mutex::new(None),
            epoch: AtomicU64::new(0),
            slot_made: Mutex::new(None),
            reset: Mutex::new(None),
            is_postgres_stopping: AtomicBool::new(false),
            publisher_woken: Notify::new(),
            accepts_reset: AtomicBool::new(false),
            publish_mode: Mutex::new(None),
            has_company: AtomicBool::new(false),
            company_came: Notify::new(),
            company_known: Notify::new(),
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
        self.replications.fetch_add(1, Ordering::AcqRel);
    }

    /// How often the source got the slot; grows before the first slab of the new replication.
    pub fn replications(&self) -> u32 {
        self.replications.load(Ordering::Acquire)
    }

    /// PostgreSQL refuses new sessions, though it may still serve the one it has.
    pub fn is_postgres_stopping(&self) -> bool {
        self.is_postgres_stopping.load(Ordering::Acquire)
    }

    pub fn postgres_is_stopping(&self, is_stopping: bool) {
        self.is_postgres_stopping
            .store(is_stopping, Ordering::Release);
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
