//! How far a snapshot has come.
//!
//! In: rows and bytes as they are published, the time. Out: percent, rate and time left.
//! Invariant: no estimate is made up: without `reltuples` there is no percent.

use std::time::Duration;

use wire::snapshot::Progress;

#[derive(Debug, Clone, Copy, Default)]
pub struct Meter {
    pub rows: u64,
    /// Payload bytes, as published.
    pub bytes: u64,
    pub rows_estimated: Option<u64>,
}

impl Meter {
    pub fn published(&mut self, rows: u64, bytes: usize) {
        self.rows += rows;
        self.bytes += bytes as u64;
    }

    /// Of the estimate, so it may end off 100.
    pub fn percent(&self) -> Option<f64> {
        let estimated = self.rows_estimated.filter(|&rows| rows > 0)?;
        let percent = self.rows as f64 * 100.0 / estimated as f64;
        Some((percent * 10.0).round() / 10.0)
    }

    /// Seconds left at the rate so far.
    pub fn eta_s(&self, elapsed: Duration) -> Option<u64> {
        let left = self.rows_estimated?.saturating_sub(self.rows);
        let rate = self.rows_per_s(elapsed);
        (rate > 0.0).then(|| (left as f64 / rate).ceil() as u64)
    }

    pub fn rows_per_s(&self, elapsed: Duration) -> f64 {
        let seconds = elapsed.as_secs_f64();
        if seconds > 0.0 {
            self.rows as f64 / seconds
        } else {
            0.0
        }
    }

    pub fn message(
        &self,
        schema: &str,
        table: &str,
        snapshot_id: &str,
        elapsed: Duration,
    ) -> Progress {
        Progress {
            table: table.to_owned(),
            snapshot_id: snapshot_id.to_owned(),
            rows: self.rows,
            bytes: self.bytes,
            percent: self.percent(),
            eta_s: self.eta_s(elapsed),
            schema: schema.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_the_rate() {
        let mut meter = Meter {
            rows_estimated: Some(1000),
            ..Meter::default()
        };
        meter.published(250, 10_000);

        assert_eq!(meter.percent(), Some(25.0));
        assert_eq!(meter.eta_s(Duration::from_secs(5)), Some(15));
        assert_eq!(meter.eta_s(Duration::ZERO), None);
    }

    #[test]
    fn without_an_estimate_nothing_is_guessed() {
        let mut meter = Meter::default();
        meter.published(10, 10);

        assert_eq!(meter.percent(), None);
        assert_eq!(meter.eta_s(Duration::from_secs(1)), None);
    }
}
