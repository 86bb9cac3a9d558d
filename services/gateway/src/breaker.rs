//! Stops asking a server that does not answer.
//!
//! In: the results of attempts, and the time. Out: whether the next attempt may be made. What must hold: after
//! [`FAILURES_MAX`] failures in a row nothing is attempted for [`OPEN_FOR`], and then one attempt at a time until one
//! succeeds.

use std::time::{Duration, Instant};

/// Consecutive failures that open the breaker.
pub const FAILURES_MAX: u32 = 5;
/// How long it stays open, and how long a probe may take before the next one.
pub const OPEN_FOR: Duration = Duration::from_secs(10);

/// A circuit breaker.
#[derive(Debug)]
pub struct Breaker(State);

#[derive(Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { probe_until: Instant },
}

impl Default for Breaker {
    fn default() -> Self {
        Self(State::Closed { failures: 0 })
    }
}

impl Breaker {
    /// Lets an attempt through, or says in how long to ask again.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.0 {
            State::Closed { .. } => Ok(()),
            // A probe whose client hung up has no result; the next one then takes its place.
            State::Open { until } | State::HalfOpen { probe_until: until } if until <= now => {
                self.0 = State::HalfOpen {
                    probe_until: now + OPEN_FOR,
                };
                Ok(())
            }
            State::Open { until } | State::HalfOpen { probe_until: until } => Err(until - now),
        }
    }

    /// An attempt succeeded, whenever it began: the server is there.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// An attempt failed. One that began before the breaker opened does not keep it open longer.
    pub fn failed(&mut self, now: Instant) {
        self.0 = match self.0 {
            State::Closed { failures } if failures + 1 < FAILURES_MAX => State::Closed {
                failures: failures + 1,
            },
            State::Closed { .. } | State::HalfOpen { .. } => State::Open {
                until: now + OPEN_FOR,
            },
            State::Open { until } => State::Open { until },
        };
    }

    /// `closed`, `open` or `half-open`.
    pub fn name(&self) -> &'static str {
        match self.0 {
            State::Closed { .. } => "closed",
            State::Open { .. } => "open",
            State::HalfOpen { .. } => "half-open",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES_MAX {
            breaker.failed(now);
        }
        breaker
    }

    #[test]
    fn five_failures_in_a_row_open_it() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 1..FAILURES_MAX {
            breaker.failed(now);
            assert_eq!(breaker.admit(now), Ok(()));
        }

        breaker.failed(now);

        assert_eq!(breaker.admit(now + SECOND), Err(9 * SECOND));
        assert_eq!(breaker.name(), "open");
    }

    #[test]
    fn a_success_in_between_starts_the_count_over() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..20 {
            breaker.failed(now);
            breaker.failed(now);
            breaker.succeeded();
        }

        assert_eq!(breaker.name(), "closed");
    }

    #[test]
    fn after_ten_seconds_one_probe_decides() {
        let now = Instant::now();
        let later = now + OPEN_FOR;

        let mut breaker = opened(now);
        assert_eq!(breaker.admit(later), Ok(()));
        assert_eq!(
            breaker.admit(later),
            Err(OPEN_FOR),
            "only one probe at a time"
        );
        breaker.failed(later);
        assert_eq!(breaker.admit(later), Err(OPEN_FOR));

        let mut breaker = opened(now);
        assert_eq!(breaker.admit(later), Ok(()));
        breaker.succeeded();
        assert_eq!(breaker.admit(later), Ok(()));
        assert_eq!(breaker.name(), "closed");
    }

    #[test]
    fn a_probe_without_a_result_does_not_block_the_next_for_ever() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admit(now + OPEN_FOR), Ok(()));

        assert_eq!(breaker.admit(now + 2 * OPEN_FOR), Ok(()));
    }

    #[test]
    fn late_failures_do_not_prolong_it() {
        let now = Instant::now();
        let mut breaker = opened(now);

        breaker.failed(now + 9 * SECOND);

        assert_eq!(breaker.admit(now + OPEN_FOR), Ok(()));
    }
}
