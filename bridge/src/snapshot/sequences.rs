//! Remembers where in the stream each commit LSN begins.
//!
//! In: what the publisher knows to be stored. Out: a stream sequence to read behind.
//! Invariant: every event with `commit_lsn >= lsn` has a higher sequence than the one given for `lsn`.

use std::collections::VecDeque;

use wire::Lsn;

/// How many points are kept; one per slab, so this is some seconds under full load and minutes else.
const POINTS_MAX: usize = 4096;

/// Events up to a sequence have at most this commit LSN.
#[derive(Debug, Default)]
pub struct SequenceLog {
    /// (commit LSN of the last event, its sequence), growing in both.
    points: VecDeque<(Lsn, u64)>,
}

impl SequenceLog {
    /// All events up to `sequence` are stored, and the last of them committed at `commit_lsn`.
    pub fn stored(&mut self, commit_lsn: Lsn, sequence: u64) {
        // A stream that went backwards voids what was known of its end.
        while self
            .points
            .pop_back_if(|(_, known)| *known >= sequence)
            .is_some()
        {}
        if self.points.len() == POINTS_MAX {
            self.points.pop_front();
        }
        self.points.push_back((commit_lsn, sequence));
    }

    /// The sequence behind which all events from `lsn` on are. 0, the whole stream, when it is older
    /// than what is remembered.
    pub fn before(&self, lsn: Lsn) -> u64 {
        let point = self.points.iter().rev().find(|(known, _)| *known < lsn);
        point.map_or(0, |(_, sequence)| *sequence)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_point_before_the_lsn_is_given() {
        let mut log = SequenceLog::default();
        for (lsn, sequence) in [(10, 1), (20, 5), (30, 9)] {
            log.stored(Lsn(lsn), sequence);
        }

        assert_eq!(log.before(Lsn(31)), 9);
        assert_eq!(log.before(Lsn(30)), 5);
        assert_eq!(log.before(Lsn(10)), 0);
    }

    #[test]
    fn a_stream_that_went_backwards_is_believed() {
        let mut log = SequenceLog::default();
        log.stored(Lsn(10), 1);
        log.stored(Lsn(20), 5);
        log.stored(Lsn(10), 3);

        assert_eq!(log.before(Lsn(99)), 3);
    }

    proptest! {
        #[test]
        fn no_event_from_the_lsn_on_is_at_or_below_the_sequence(
            steps in prop::collection::vec((0_u64..3, 1_u64..4), 1..200),
            lsn in 0_u64..400,
        ) {
            let (mut log, mut events) = (SequenceLog::default(), Vec::new());
            let (mut commit_lsn, mut sequence) = (1, 0);
            for (grows, count) in steps {
                commit_lsn += grows;
                for _ in 0..count {
                    sequence += 1;
                    events.push((commit_lsn, sequence));
                }
                log.stored(Lsn(commit_lsn), sequence);
            }
            let before = log.before(Lsn(lsn));

            prop_assert!(events.iter().all(|&(commit, at)| commit < lsn || at > before));
        }
    }
}
