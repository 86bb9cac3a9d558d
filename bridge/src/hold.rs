//! Keeps PostgreSQL's WAL until NATS has surely written to disk what it has acked.
//!
//! In: what the ledger confirms, when. Out: the same LSN, later.
//! Invariant: an LSN that lies behind a stored event is let go `delay` after that event's ack, not sooner.
//!
//! A PubAck means stored, not durable: nats-server syncs its files every `sync_interval` (2 min by
//! default), and a power cut takes what was acked since. WAL of that time can refill the stream.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use wire::{Lsn, Position};

/// A delay line for confirmed LSNs.
#[derive(Debug)]
pub struct Hold {
    delay: Duration,
    waiting: VecDeque<Held>,
    released: Released,
}

#[derive(Debug)]
struct Held {
    /// The first and the last ack this entry stands for, at most `GRAIN` apart.
    first_at: Instant,
    last_at: Instant,
    lsn: Lsn,
    position: Position,
}

/// What may be confirmed to PostgreSQL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Released {
    pub lsn: Lsn,
    /// The last event before it. Events up to here cannot be read from the slot again.
    pub position: Position,
}

/// Acks closer together than this are one entry: 130 s make at most 1,300.
const GRAIN: Duration = Duration::from_millis(100);

impl Hold {
    /// No delay lets everything through at once.
    pub fn new(delay: Duration) -> Self {
        Self {
            delay,
            waiting: VecDeque::new(),
            released: Released::default(),
        }
    }

    /// Everything before `lsn` is stored, the last event being `position`.
    pub fn acked(&mut self, lsn: Lsn, position: Position, now: Instant) {
        match self.waiting.back_mut() {
            Some(held) if lsn <= held.lsn => {}
            Some(held) if now.saturating_duration_since(held.first_at) < GRAIN => {
                held.last_at = now;
                held.lsn = lsn;
                held.position = position;
            }
            _ => self.waiting.push_back(Held {
                first_at: now,
                last_at: now,
                lsn,
                position,
            }),
        }
    }

    /// `lsn` was reached without any event since the last call of `acked`: it goes when that goes.
    pub fn passed(&mut self, lsn: Lsn) {
        match self.waiting.back_mut() {
            Some(held) => held.lsn = held.lsn.max(lsn),
            None => self.released.lsn = self.released.lsn.max(lsn),
        }
    }

    /// What has waited long enough.
    pub fn released(&mut self, now: Instant) -> Released {
        let delay = self.delay;
        while let Some(held) = self
            .waiting
            .pop_front_if(|held| now >= held.last_at + delay)
        {
            self.released = Released {
                lsn: self.released.lsn.max(held.lsn),
                position: held.position,
            };
        }
        self.released
    }

    /// The stream has lost acked events: nothing that waits may ever be confirmed by its old ack.
    /// Returns what was released before.
    pub fn forget(&mut self) -> Released {
        self.waiting.clear();
        self.released
    }

    /// When `released` has news.
    pub fn due(&self) -> Option<Instant> {
        let held = self.waiting.front()?;
        Some(held.last_at + self.delay)
    }

    /// The delay.
    pub fn delay(&self) -> Duration {
        self.delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_secs(130);

    fn position(seq: u32) -> Position {
        Position::new(Lsn(1), seq)
    }

    #[test]
    fn an_ack_is_let_go_after_the_delay() {
        let (mut hold, start) = (Hold::new(DELAY), Instant::now());

        hold.acked(Lsn(10), position(1), start);

        assert_eq!(hold.released(start + GRAIN).lsn, Lsn(0));
        assert_eq!(hold.due(), Some(start + DELAY));
        assert_eq!(
            hold.released(start + DELAY),
            Released {
                lsn: Lsn(10),
                position: position(1)
            }
        );
        assert_eq!(hold.due(), None);
    }

    #[test]
    fn an_entry_waits_for_its_youngest_ack() {
        let (mut hold, start) = (Hold::new(DELAY), Instant::now());

        hold.acked(Lsn(10), position(1), start);
        hold.acked(Lsn(20), position(2), start + GRAIN / 2);
        hold.acked(Lsn(30), position(3), start + GRAIN);

        assert_eq!(hold.released(start + DELAY).lsn, Lsn(0));
        assert_eq!(hold.released(start + DELAY + GRAIN / 2).lsn, Lsn(20));
        assert_eq!(hold.released(start + DELAY + GRAIN).lsn, Lsn(30));
    }

    #[test]
    fn what_holds_no_event_passes_at_once_unless_events_wait_before_it() {
        let (mut hold, start) = (Hold::new(DELAY), Instant::now());

        hold.passed(Lsn(5));
        assert_eq!(hold.released(start).lsn, Lsn(5));

        hold.acked(Lsn(10), position(1), start);
        hold.passed(Lsn(15));
        assert_eq!(hold.released(start).lsn, Lsn(5));
        assert_eq!(hold.released(start + DELAY).lsn, Lsn(15));
    }

    #[test]
    fn without_a_delay_nothing_waits() {
        let (mut hold, start) = (Hold::new(Duration::ZERO), Instant::now());

        hold.acked(Lsn(10), position(1), start);

        assert_eq!(hold.released(start).lsn, Lsn(10));
    }

    #[test]
    fn a_stream_that_lost_events_takes_their_acks_with_it() {
        let (mut hold, start) = (Hold::new(DELAY), Instant::now());
        hold.acked(Lsn(10), position(1), start);
        hold.released(start + DELAY);
        hold.acked(Lsn(20), position(2), start + DELAY);

        assert_eq!(hold.forget().lsn, Lsn(10));
        assert_eq!(hold.released(start + DELAY * 3).lsn, Lsn(10));
    }
}
