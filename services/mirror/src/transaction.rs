//! Where one PostgreSQL transaction ends and the next begins.
//!
//! In: position and `last` of every event of the stream, mirrored or not. Out: whether the transaction
//! is whole.
//! Invariant: "whole" is said only after every event of every transaction seen so far.

use wire::Position;

/// Follows the stream's transactions.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Transactions {
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first event: it may be in the middle of a transaction.
    #[default]
    Start,
    /// Behind a transaction's last event.
    Between(Position),
    Inside(Position),
}

/// The events are not those of one bridge in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "event {found} follows {before}: transactions are cut or mixed. Several bridges may write this stream, and no schema in bucket schemas names one of them; give each its own (bridge --stream)"
)]
pub struct OutOfOrder {
    pub before: Position,
    pub found: Position,
}

impl Transactions {
    /// Takes the next event; true when it ends its transaction.
    pub fn take(&mut self, position: Position, last: bool) -> Result<bool, OutOfOrder> {
        let is_next = |before: Position, starts: bool| {
            if starts {
                position.commit_lsn > before.commit_lsn && position.seq == 1
            } else {
                position.commit_lsn == before.commit_lsn && position.seq == before.seq + 1
            }
        };
        let (before, fits) = match self.state {
            State::Start => (position, true),
            State::Between(before) => (before, is_next(before, true)),
            State::Inside(before) => (before, is_next(before, false)),
        };
        if !fits {
            return Err(OutOfOrder {
                before,
                found: position,
            });
        }
        self.state = if last {
            State::Between(position)
        } else {
            State::Inside(position)
        };
        Ok(last)
    }

    /// True when no transaction is open.
    pub fn is_between(&self) -> bool {
        match self.state {
            State::Start | State::Between(_) => true,
            State::Inside(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use wire::Lsn;

    use super::*;

    fn at(commit_lsn: u64, seq: u32) -> Position {
        Position::new(Lsn(commit_lsn), seq)
    }

    #[test]
    fn a_transaction_is_whole_with_its_last_event() {
        let mut transactions = Transactions::default();

        assert_eq!(transactions.take(at(10, 1), false), Ok(false));
        assert!(!transactions.is_between());
        assert_eq!(transactions.take(at(10, 2), true), Ok(true));
        assert_eq!(transactions.take(at(20, 1), true), Ok(true));
        assert!(transactions.is_between());
    }

    #[test]
    fn reading_may_begin_inside_a_transaction() {
        let mut transactions = Transactions::default();

        assert_eq!(transactions.take(at(10, 7), false), Ok(false));
        assert_eq!(transactions.take(at(10, 8), true), Ok(true));
    }

    #[test]
    fn a_missing_event_or_a_second_writer_is_noticed() {
        let after = |last: bool, next: Position| {
            let mut transactions = Transactions::default();
            transactions.take(at(10, 1), last).unwrap();
            transactions.take(next, true)
        };

        assert!(after(false, at(10, 3)).is_err(), "an event is missing");
        assert!(
            after(false, at(20, 1)).is_err(),
            "the rest of a transaction is missing"
        );
        assert!(
            after(true, at(20, 2)).is_err(),
            "the beginning of a transaction is missing"
        );
        assert!(after(true, at(5, 1)).is_err(), "commits go backwards");
        assert!(
            after(true, at(10, 2)).is_err(),
            "a transaction goes on behind its end"
        );
    }

    proptest! {
        #[test]
        fn any_one_event_left_out_of_the_middle_is_noticed(
            sizes in prop::collection::vec(1_u32..4, 2..6),
            left_out: prop::sample::Index,
        ) {
            let events: Vec<(Position, bool)> = (1_u64..).zip(&sizes)
                .flat_map(|(lsn, size)| (1..=*size).map(move |seq| (at(lsn, seq), seq == *size)))
                .collect();
            // Neither the first event, before which anything may be, nor the last.
            let left_out = 1 + left_out.index(events.len() - 1);
            prop_assume!(left_out + 1 < events.len());
            let whole_transaction = events[left_out] .0.seq == 1 && events[left_out].1;
            prop_assume!(!whole_transaction, "the stream's sequence tells that");

            let mut transactions = Transactions::default();
            let outcome = events.iter().enumerate()
                .filter(|(index, _)| *index != left_out)
                .try_for_each(|(_, (position, last))| transactions.take(*position, *last).map(drop));

            prop_assert!(outcome.is_err());
        }
    }
}
