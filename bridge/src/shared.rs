//! What the source's thread and the publisher tell each other, apart from events.
//!
//! In and out: one confirmed LSN backwards, one session number forwards, and how each side fares.
//! Invariant: the confirmed LSN only grows within a run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wire::Lsn;

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
    source: Mutex<Condition>,
    publisher: Mutex<Condition>,
    /// Where snapshots and the stream meet.
    pub handoff: Handoff,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            confirmed: AtomicU64::new(0),
            session: AtomicU32::new(0),
            source: Mutex::new(Condition::Starting),
            publisher: Mutex::new(Condition::Starting),
            handoff: Handoff::default(),
        }
    }
}

impl Shared {
    /// The publisher, and nobody else: everything before this LSN is stored.
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

    pub fn source(&self) -> Condition {
        self.source
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    pub fn publisher(&self) -> Condition {
        self.publisher
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
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

fn set(slot: &Mutex<Condition>, mut condition: Condition) {
    let mut current = slot
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let (Condition::Trouble { since: began, .. }, Condition::Trouble { since, .. }) =
        (&*current, &mut condition)
    {
        *since = *began;
    }
    *current = condition;
}
