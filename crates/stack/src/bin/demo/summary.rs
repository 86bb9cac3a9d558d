//! What arrived against what was written.
//!
//! In: every event, in the order it came. Out: the last page of the demo.
//! Must hold: `is_complete` only if each row's event came once, in commit order.

use std::fmt;
use std::time::Duration;

use crate::event::{Event, Position};

#[derive(Default)]
pub struct Summary {
    /// Events that the SQL must cause.
    pub expected: u64,
    /// What the server counts.
    pub stored: u64,
    pub received: u64,
    repeated: u64,
    out_of_order: u64,
    last: Option<Position>,
    /// What a step found wrong, in words.
    pub complaints: Vec<String>,
    /// Of single-row transactions only.
    pub latencies: Vec<Duration>,
}

impl Summary {
    pub fn saw(&mut self, event: &Event) {
        self.received += 1;
        match self.last {
            Some(last) if event.position == last => self.repeated += 1,
            Some(last) if event.position < last => self.out_of_order += 1,
            Some(_) | None => self.last = Some(event.position),
        }
    }

    pub fn is_complete(&self) -> bool {
        self.received == self.expected
            && self.stored == self.expected
            && self.repeated == 0
            && self.out_of_order == 0
            && self.complaints.is_empty()
    }

    /// The latency that `part` of all stay within.
    fn quantile(&self, part: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort();
        let index = (sorted.len() as f64 * part) as usize;
        sorted
            .get(index.min(sorted.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing = self.expected.saturating_sub(self.received - self.repeated);
        let milliseconds = |part| self.quantile(part).as_secs_f64() * 1e3;
        writeln!(f, "\n== Summary")?;
        writeln!(f, "   changes committed   {:>6}", self.expected)?;
        writeln!(
            f,
            "   events received     {:>6}   ({} in the stream)",
            self.received, self.stored
        )?;
        writeln!(f, "   missing             {missing:>6}")?;
        writeln!(f, "   repeated            {:>6}", self.repeated)?;
        writeln!(f, "   out of order        {:>6}", self.out_of_order)?;
        writeln!(
            f,
            "   commit to consumer   p50 {:.1} ms, p99 {:.1} ms ({} single-row transactions)",
            milliseconds(0.50),
            milliseconds(0.99),
            self.latencies.len()
        )?;
        for complaint in &self.complaints {
            writeln!(f, "   WRONG: {complaint}")?;
        }
        let verdict = if self.is_complete() {
            "every change arrived once, in commit order"
        } else {
            "NOT every change arrived once, in commit order"
        };
        writeln!(f, "   {verdict}")
    }
}
