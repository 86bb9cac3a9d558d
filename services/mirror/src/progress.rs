//! Says how far the mirror is.
//!
//! In: what was read. Out: a log line every so often.
//! Invariant: no row values.

use std::time::{Duration, Instant};

use crate::store::Load;
use crate::table::TableName;

#[derive(Debug)]
pub struct Progress {
    interval: Duration,
    said_at: Instant,
    /// Rows or events at that time.
    said: u64,
}

impl Progress {
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            said_at: now,
            said: 0,
        }
    }

    /// A chunk was stored. `row_count` is known once the snapshot is whole.
    pub fn loading(&mut self, name: &TableName, load: &Load, row_count: Option<u64>) {
        if let Some(rows_per_s) = self.rate(load.rows, Instant::now()) {
            let percent = percent(load.rows, row_count.or(load.start.rows_estimated));
            tracing::info!(table = %name, rows = load.rows, percent, rows_per_s, "loading");
        }
    }

    /// Events were applied; `pending` are in the stream behind them.
    pub fn following(&mut self, sequence: u64, pending: u64) {
        if let Some(messages_per_s) = self.rate(sequence, Instant::now()) {
            tracing::info!(sequence, pending, messages_per_s, "following");
        }
    }

    /// The rate since the last line, when another is due.
    fn rate(&mut self, count: u64, now: Instant) -> Option<u64> {
        let elapsed = now - self.said_at;
        if elapsed < self.interval {
            return None;
        }
        let done = count.saturating_sub(self.said) as f64;
        self.said_at = now;
        self.said = count;
        Some((done / elapsed.as_secs_f64().max(f64::MIN_POSITIVE)) as u64)
    }
}

/// Of an estimate, so at most 100 is said.
fn percent(rows: u64, of: Option<u64>) -> Option<u64> {
    let of = of.filter(|of| *of > 0)?;
    Some((rows.saturating_mul(100) / of).min(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_once_an_interval_and_says_the_rate_since() {
        let start = Instant::now();
        let mut progress = Progress::new(Duration::from_secs(10), start);

        assert_eq!(progress.rate(500, start + Duration::from_secs(9)), None);
        assert_eq!(
            progress.rate(1000, start + Duration::from_secs(10)),
            Some(100)
        );
        assert_eq!(progress.rate(1500, start + Duration::from_secs(15)), None);
        assert_eq!(
            progress.rate(3000, start + Duration::from_secs(20)),
            Some(200)
        );
    }

    #[test]
    fn an_estimate_never_gives_more_than_all() {
        assert_eq!(percent(50, Some(200)), Some(25));
        assert_eq!(percent(300, Some(200)), Some(100));
        assert_eq!(percent(300, None), None);
        assert_eq!(percent(0, Some(0)), None);
    }
}
