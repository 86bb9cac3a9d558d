//! Estimates when the queue will have room.
//!
//! In: the stream's counters, as often as somebody looks. Out: the drain rate and a `Retry-After`. What must hold: a
//! standing queue is told apart from an empty one, and the answer is never less than a second or more than a minute.

use std::time::{Duration, Instant};

/// One look at the stream.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// Messages in the queue.
    pub messages: u64,
    /// Sequence of the newest message ever.
    pub last_sequence: u64,
}

/// Queue length and how fast it is emptied.
#[derive(Debug, Default)]
pub struct Backlog {
    last: Option<Sample>,
    drained_per_s: f64,
}

/// Shortest and longest advice.
const ADVICE_MIN: Duration = Duration::from_secs(1);
const ADVICE_MAX: Duration = Duration::from_mins(1);
/// Weight of the newest interval in the average.
const WEIGHT: f64 = 0.3;

impl Backlog {
    /// Takes a look into account. Looks that are out of order, or at another stream of the same name, start over.
    pub fn observe(&mut self, sample: Sample) {
        let drained = self.last.and_then(|last| {
            let published = sample.last_sequence.checked_sub(last.last_sequence)?;
            let drained = (last.messages + published).checked_sub(sample.messages)?;
            let elapsed = sample.at.checked_duration_since(last.at)?.as_secs_f64();
            (elapsed > 0.0).then_some(drained as f64 / elapsed)
        });
        self.drained_per_s = match drained {
            Some(rate) if self.drained_per_s > 0.0 => {
                self.drained_per_s + WEIGHT * (rate - self.drained_per_s)
            }
            Some(rate) => rate,
            None => 0.0,
        };
        self.last = Some(sample);
    }

    /// Messages in the queue at the last look.
    pub fn messages(&self) -> u64 {
        self.last.map_or(0, |sample| sample.messages)
    }

    /// Messages a second that left the queue lately.
    pub fn drained_per_s(&self) -> f64 {
        self.drained_per_s
    }

    /// How long the queue needs to empty at the present rate, within a second and a minute.
    pub fn retry_after(&self) -> Duration {
        let messages = self.messages() as f64;
        let seconds = messages / self.drained_per_s;
        if messages == 0.0 {
            ADVICE_MIN
        } else if seconds < ADVICE_MAX.as_secs_f64() {
            Duration::from_secs_f64(seconds.ceil()).max(ADVICE_MIN)
        } else {
            ADVICE_MAX // Also when nothing drains: the quotient is infinite then.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backlog(samples: &[(u64, u64, u64)]) -> Backlog {
        let start = Instant::now();
        let mut backlog = Backlog::default();
        for &(at_s, messages, last_sequence) in samples {
            let at = start + Duration::from_secs(at_s);
            backlog.observe(Sample {
                at,
                messages,
                last_sequence,
            });
        }
        backlog
    }

    #[test]
    fn advice_is_queue_over_drain_rate() {
        let backlog = backlog(&[(0, 1000, 5000), (1, 1500, 5600)]);

        assert!((backlog.drained_per_s() - 100.0).abs() < 1e-9);
        assert_eq!(backlog.retry_after(), Duration::from_secs(15));
    }

    #[test]
    fn an_empty_queue_needs_a_second() {
        assert_eq!(Backlog::default().retry_after(), ADVICE_MIN);
        assert_eq!(backlog(&[(0, 0, 10), (1, 0, 10)]).retry_after(), ADVICE_MIN);
        assert_eq!(
            backlog(&[(0, 5, 10), (1, 1, 1000)]).retry_after(),
            ADVICE_MIN
        );
    }

    #[test]
    fn a_queue_that_nobody_empties_needs_a_minute() {
        assert_eq!(backlog(&[(0, 500, 500)]).retry_after(), ADVICE_MAX);
        assert_eq!(
            backlog(&[(0, 500, 500), (1, 900, 900)]).retry_after(),
            ADVICE_MAX
        );
    }

    #[test]
    fn one_odd_interval_moves_the_average_a_little() {
        let backlog = backlog(&[(0, 1000, 1000), (1, 900, 1000), (2, 900, 1000)]);

        assert!((backlog.drained_per_s() - 70.0).abs() < 1e-9);
    }

    #[test]
    fn a_stream_that_was_recreated_starts_over() {
        let backlog = backlog(&[(0, 1000, 5000), (1, 900, 5000), (2, 3, 3)]);

        assert!(backlog.drained_per_s() < 1e-9);
        assert_eq!(backlog.messages(), 3);
    }
}
