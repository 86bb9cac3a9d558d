//! Decides how long to wait before the next attempt.
//!
//! In: the number of failures so far and a random number. Out: a delay. What must hold: a delay is at most the cap and
//! at least half of what the exponential says, so that a crowd spreads out and nobody hammers.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Exponential backoff with equal jitter, for one thing that is attempted again and again.
#[derive(Debug, Clone)]
pub struct Backoff {
    initial: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// The first delay is at most `initial`, later ones double up to `cap`.
    pub fn new(initial: Duration, cap: Duration) -> Self {
        Self {
            initial,
            cap,
            failures: 0,
        }
    }

    /// The delay before the next attempt; each call counts as one more failure. `random` is any number, see [`random`].
    pub fn next(&mut self, random: u64) -> Duration {
        let delay = delay(self.initial, self.cap, self.failures, random);
        self.failures = self.failures.saturating_add(1);
        delay
    }

    /// Starts over. Call it when an attempt succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// The delay after `failures` earlier failures: `ceiling / 2 + random share of ceiling / 2`, where the ceiling is
/// `initial * 2^failures`, at most `cap`.
pub fn delay(initial: Duration, cap: Duration, failures: u32, random: u64) -> Duration {
    let factor = 2_u32.saturating_pow(failures);
    let ceiling = initial.saturating_mul(factor).min(cap);
    let half = ceiling / 2;
    let share = random as f64 / u64::MAX as f64;
    half + half.mul_f64(share)
}

/// A random number that is good enough to spread retries and no good for anything secret: the seed that the standard
/// library gives every hash map.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn delays_double_up_to_the_cap() {
        let mut backoff = Backoff::new(100 * MS, 450 * MS);

        let delays: Vec<_> = (0..4).map(|_| backoff.next(u64::MAX)).collect();

        assert_eq!(delays, [100 * MS, 200 * MS, 400 * MS, 450 * MS]);
    }

    #[test]
    fn jitter_takes_away_at_most_half() {
        let mut backoff = Backoff::new(100 * MS, 450 * MS);

        assert_eq!(backoff.next(0), 50 * MS);
        assert_eq!(backoff.next(0), 100 * MS);
    }

    #[test]
    fn a_success_starts_over() {
        let mut backoff = Backoff::new(100 * MS, 450 * MS);
        backoff.next(0);
        backoff.next(0);

        backoff.reset();

        assert_eq!(backoff.failures(), 0);
        assert_eq!(backoff.next(u64::MAX), 100 * MS);
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        assert_eq!(
            delay(Duration::MAX, Duration::MAX, 1000, 0),
            Duration::MAX / 2
        );
        assert_eq!(delay(MS, 30_000 * MS, u32::MAX, u64::MAX), 30_000 * MS);
    }

    #[test]
    fn two_random_numbers_differ() {
        assert_ne!(random(), random());
    }
}
