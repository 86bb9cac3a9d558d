//! Tells the stream the bridge knows from one that has become another.
//!
//! In: what was known, and the tail just read. Out: a verdict. Invariant: a stream that was made
//! anew, purged or rolled back is never taken for the one before.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wire::Position;

use super::tail::Tail;

/// What is known of the stream from acks, or from the checkpoint of an earlier run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// When the server made the stream, as the server writes it.
    pub created: String,
    /// Highest sequence ever acked.
    pub sequence: u64,
    /// Position of the event there, or a little before.
    pub position: Position,
    /// When that was noted.
    pub at: SystemTime,
}

/// What the tail says about the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was known before.
    First,
    /// The stream known, with its tail.
    Same,
    /// The stream known; its last event has aged out.
    AgedOut,
    /// The stream known, without events that were acked: a power cut, or an older copy was restored.
    RolledBack,
    /// Another stream of the same name.
    Recreated,
    /// The stream known, emptied before its events were due.
    Purged,
}

/// Compares. `now` decides whether an empty stream is empty by age.
pub fn judge(known: Option<&Known>, tail: &Tail, now: SystemTime) -> Verdict {
    let Some(known) = known else {
        return Verdict::First;
    };
    if known.created != tail.created && !is_one_creation(known, tail) {
        return Verdict::Recreated;
    }
    if tail.last_sequence < known.sequence {
        return Verdict::RolledBack;
    }
    // On a shared stream another bridge may have written past the end that was known.
    let has_position = tail.position > Position::START;
    if has_position && !tail.is_consumed && is_behind(tail.position, known.position) {
        return Verdict::RolledBack;
    }
    if has_position || known.position == Position::START {
        return Verdict::Same;
    }
    let age = now.duration_since(known.at).unwrap_or(Duration::ZERO);
    match tail.max_age {
        Some(max_age) if age + AGE_SLACK >= max_age => Verdict::AgedOut,
        _ => Verdict::Purged,
    }
}

/// Whether an event is missing between the two. A gap has the place 0 in its transaction, whose events may be there.
fn is_behind(tail: Position, known: Position) -> bool {
    tail < known && tail != Position::new(known.commit_lsn, 0)
}

/// Of two bridges that make a stream in a cluster at the same time each sets its time of creation; which of the two
/// a server tells changes when it restarts. Nothing that is known may be missing then.
fn is_one_creation(known: &Known, tail: &Tail) -> bool {
    let time = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
    let (Some(one), Some(other)) = (time(&known.created), time(&tail.created)) else {
        return false;
    };
    (one - other).abs() <= SAME_CREATION
        && tail.last_sequence >= known.sequence
        && tail.position >= known.position
}

const SAME_CREATION: time::Duration = time::Duration::seconds(10);

/// The server removes messages up to this much late or, by its own clock, early.
const AGE_SLACK: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use wire::Lsn;

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn known() -> Known {
        Known {
            created: "2026-01-01T00:00:00Z".into(),
            sequence: 10,
            position: Position::new(Lsn(100), 1),
            at: NOW,
        }
    }

    fn tail(last_sequence: u64, position: Position) -> Tail {
        Tail {
            last_sequence,
            position,
            created: known().created,
            max_age: Some(Duration::from_hours(1)),
            ..Tail::default()
        }
    }

    fn verdict(tail: &Tail, later: Duration) -> Verdict {
        judge(Some(&known()), tail, NOW + later)
    }

    #[test]
    fn the_same_stream_goes_on() {
        let tail = tail(12, Position::new(Lsn(120), 1));

        assert_eq!(judge(None, &tail, NOW), Verdict::First);
        assert_eq!(verdict(&tail, Duration::ZERO), Verdict::Same);
    }

    #[test]
    fn a_stream_without_acked_events_was_rolled_back() {
        let tail = tail(9, Position::new(Lsn(90), 1));

        assert_eq!(verdict(&tail, Duration::ZERO), Verdict::RolledBack);
    }

    #[test]
    fn acked_events_are_missed_though_another_bridge_wrote_past_them() {
        let shared = tail(50, Position::new(Lsn(90), 1));
        let gap = tail(50, Position::new(known().position.commit_lsn, 0));

        assert_eq!(verdict(&shared, Duration::ZERO), Verdict::RolledBack);
        assert_eq!(verdict(&gap, Duration::ZERO), Verdict::Same);
    }

    #[test]
    fn another_creation_time_is_another_stream_even_with_the_same_content() {
        let tail = Tail {
            created: "2026-02-02T00:00:00Z".into(),
            ..tail(10, known().position)
        };

        assert_eq!(verdict(&tail, Duration::ZERO), Verdict::Recreated);
    }

    #[test]
    fn two_bridges_that_made_it_at_the_same_time_made_one_stream() {
        let made_twice = |last_sequence| Tail {
            created: "2026-01-01T00:00:00.0503Z".into(),
            ..tail(last_sequence, known().position)
        };

        assert_eq!(verdict(&made_twice(10), Duration::ZERO), Verdict::Same);
        assert_eq!(verdict(&made_twice(9), Duration::ZERO), Verdict::Recreated);
    }

    #[test]
    fn an_empty_stream_is_purged_unless_its_events_were_due() {
        let empty = tail(10, Position::START);

        assert_eq!(verdict(&empty, Duration::from_mins(30)), Verdict::Purged);
        assert_eq!(verdict(&empty, Duration::from_mins(61)), Verdict::AgedOut);
        let for_ever = Tail {
            max_age: None,
            ..empty
        };
        assert_eq!(
            verdict(&for_ever, Duration::from_hours(1000)),
            Verdict::Purged
        );
    }
}
