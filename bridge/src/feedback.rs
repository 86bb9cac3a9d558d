//! Decides when PostgreSQL hears what was confirmed.
//!
//! In: the LSN to confirm, the time. Out: whether to send a StandbyStatusUpdate now.
//! Invariant: at least one a second, so that no `wal_sender_timeout` above 2 s ever strikes; at most
//! ten a second, unless the server asks or 1 MB has piled up.

use std::time::{Duration, Instant};

use wire::Lsn;

#[derive(Debug)]
pub struct Feedback {
    sent: Lsn,
    sent_at: Instant,
}

const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(1);
const BYTES_MAX: u64 = 1 << 20;

impl Feedback {
    /// For a session that starts now.
    pub fn new(now: Instant) -> Self {
        Self {
            sent: Lsn::INVALID,
            sent_at: now,
        }
    }

    pub fn is_due(&self, confirmed: Lsn, is_requested: bool, now: Instant) -> bool {
        let waited = now.saturating_duration_since(self.sent_at);
        let late_bytes = confirmed.0.saturating_sub(self.sent.0);
        is_requested
            || waited >= INTERVAL_MAX
            || (late_bytes > 0 && waited >= INTERVAL_MIN)
            || (self.sent.is_valid() && late_bytes >= BYTES_MAX && waited >= INTERVAL_MIN / 10)
    }

    pub fn sent(&mut self, confirmed: Lsn, now: Instant) {
        self.sent = confirmed;
        self.sent_at = now;
    }
}

/// Tells a server that is shutting down by its questions.
///
/// PostgreSQL: a fast shutdown waits until each walsender's client has confirmed everything, and asks
/// again after every answer (walsender.c, `WalSndDone`). What is held back would keep it waiting.
#[derive(Debug)]
pub struct Pings {
    since: Instant,
    count: u32,
}

/// So many requests within `PINGS_WINDOW`; otherwise there are two per `wal_sender_timeout`.
const PINGS_MAX: u32 = 10;
const PINGS_WINDOW: Duration = Duration::from_secs(1);

impl Pings {
    /// For a session that starts now.
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            count: 0,
        }
    }

    /// A reply was requested. True: the server waits for us to be able to stop.
    pub fn asked(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) > PINGS_WINDOW {
            *self = Self::new(now);
        }
        self.count += 1;
        self.count >= PINGS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(late_bytes: u64, waited_ms: u64, is_requested: bool) -> bool {
        let start = Instant::now();
        let mut feedback = Feedback::new(start);
        feedback.sent(Lsn(1000), start);
        feedback.is_due(
            Lsn(1000 + late_bytes),
            is_requested,
            start + Duration::from_millis(waited_ms),
        )
    }

    #[test]
    fn a_request_is_answered_at_once() {
        assert!(due(0, 0, true));
    }

    #[test]
    fn news_waits_a_tenth_of_a_second_and_silence_a_whole_one() {
        assert!(!due(1, 99, false));
        assert!(due(1, 100, false));
        assert!(!due(0, 999, false));
        assert!(due(0, 1000, false));
    }

    #[test]
    fn only_a_server_that_stops_asks_again_and_again() {
        let start = Instant::now();
        let mut pings = Pings::new(start);

        let calm = (0..20).any(|second| pings.asked(start + Duration::from_secs(second * 15)));
        assert!(!calm);
        let later = start + Duration::from_secs(400);
        let stopping = (0..10).any(|ms| pings.asked(later + Duration::from_millis(ms)));
        assert!(stopping);
    }

    #[test]
    fn much_news_does_not_wait_as_long() {
        assert!(due(1 << 20, 10, false));
        assert!(!due(1 << 20, 9, false));
    }
}
