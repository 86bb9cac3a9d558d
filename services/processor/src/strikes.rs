//! Notices the message that takes the processor, or its session, down with it every time.
//!
//! In: the table's consumer as the last processor left it. Out: how often in a row the first message
//! was in flight when somebody went down.
//! Invariant: only a row of ends with no message acked between them adds up, so the first message
//! waiting is the one to suspect; an orderly end never counts.
//!
//! The count lives in the consumer's description: it must outlive a process that is killed, and it
//! must not need the database that may be what goes down.

use std::fmt;

/// Ends in a row before the first message is taken for the cause.
pub const STRIKES_MAX: u32 = 8;

/// The count and where it was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Strikes {
    /// Ends in a row.
    pub count: u32,
    /// Stream sequence up to which everything was acked then.
    pub floor: u64,
}

impl Strikes {
    /// Reads a description; any other text counts as none.
    pub fn parse(description: &str) -> Self {
        let numbers = description
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once(" at "));
        numbers
            .and_then(|(count, floor)| {
                Some(Self {
                    count: count.parse().ok()?,
                    floor: floor.parse().ok()?,
                })
            })
            .unwrap_or_default()
    }

    /// The count after taking over at `floor`. `was_orderly`: whoever had the consumer before says
    /// that nothing went down.
    #[must_use]
    pub fn after(self, floor: u64, in_flight: usize, was_orderly: bool) -> Self {
        let before = if self.floor == floor { self.count } else { 0 };
        let count = match (was_orderly, in_flight) {
            (true, _) => 0,
            // Taken over, then ended before it fetched anything.
            (false, 0) => before,
            (false, _) => before.saturating_add(1),
        };
        Self { count, floor }
    }
}

impl fmt::Display for Strikes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}{} at {}", self.count, self.floor)
    }
}

const PREFIX: &str = "went down ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_without_progress_add_up() {
        let first = Strikes::default().after(7, 3, false);
        let second = first.after(7, 3, false);

        assert_eq!(second, Strikes { count: 2, floor: 7 });
    }

    #[test]
    fn progress_starts_over() {
        let before = Strikes { count: 5, floor: 7 };

        assert_eq!(before.after(8, 3, false).count, 1);
    }

    #[test]
    fn an_end_with_nothing_in_flight_changes_nothing() {
        let before = Strikes { count: 5, floor: 7 };

        assert_eq!(before.after(7, 0, false), before);
    }

    #[test]
    fn an_orderly_end_clears_the_count() {
        let before = Strikes { count: 5, floor: 7 };

        assert_eq!(before.after(7, 3, true).count, 0);
    }

    #[test]
    fn the_description_says_it_and_is_read_back() {
        let strikes = Strikes { count: 2, floor: 7 };

        assert_eq!(strikes.to_string(), "went down 2 at 7");
        assert_eq!(Strikes::parse(&strikes.to_string()), strikes);
        assert_eq!(Strikes::parse("made by hand"), Strikes::default());
    }
}
