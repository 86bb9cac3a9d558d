//! Several bridges on one stream: whose transaction is whole, and what may be stored.
//!
//! In: every event of the stream, with the slot of its bridge. Out: the messages to apply now; whether
//! what is applied consists of whole transactions.
//! Invariant: nothing of a transaction that is not whole is applied beside whole ones of other bridges,
//! unless it is too large to be kept back; then nothing is stored before its end.
//!
//! Positions order the events of one bridge. Those of two stand in the stream in any order, and while
//! one bridge is inside a transaction the other may be too, for ever: there need be no place where all
//! transactions are whole. So an open one is kept back here until its end.

use wire::Position;

use crate::source::{Mark, Stored};
use crate::transaction::{OutOfOrder, Transactions};

/// What is kept back at most; larger transactions are applied as they come.
const KEPT_BYTES_MAX: usize = 64 << 20;

#[derive(Debug, Default)]
pub struct Bridges {
    bridges: Vec<Bridge>,
    kept_bytes: usize,
}

#[derive(Debug, Default)]
struct Bridge {
    slot: String,
    transactions: Transactions,
    /// Of the open transaction.
    kept: Vec<Stored>,
    /// A part of the open transaction is applied.
    is_applied: bool,
    /// Of the last event.
    position: Option<Position>,
}

impl Bridges {
    /// The bridge on this slot.
    pub fn index(&mut self, slot: &str) -> usize {
        let known = self.bridges.iter().position(|bridge| bridge.slot == slot);
        known.unwrap_or_else(|| {
            self.bridges.push(Bridge {
                slot: slot.to_owned(),
                ..Bridge::default()
            });
            self.bridges.len() - 1
        })
    }

    pub fn slot(&self, index: usize) -> &str {
        &self.bridges[index].slot
    }

    /// Of the bridge's last event.
    pub fn position(&self, index: usize) -> Option<Position> {
        self.bridges[index].position
    }

    /// Takes the bridge's next event; gives what is to be applied now, in order.
    pub fn take(
        &mut self,
        index: usize,
        message: Stored,
        mark: Mark,
    ) -> Result<Vec<Stored>, OutOfOrder> {
        let is_alone = self.bridges.len() == 1;
        let bridge = &mut self.bridges[index];
        let is_whole = bridge.transactions.take(mark.position(), mark.last)?;
        bridge.position = Some(mark.position());
        let is_large = KEPT_BYTES_MAX < self.kept_bytes + message.payload.len();
        if !is_whole && !is_alone && !bridge.is_applied && !is_large {
            self.kept_bytes += message.payload.len();
            bridge.kept.push(message);
            return Ok(Vec::new());
        }
        bridge.is_applied = !is_whole;
        let mut all = std::mem::take(&mut bridge.kept);
        self.kept_bytes -= all.iter().map(|kept| kept.payload.len()).sum::<usize>();
        all.push(message);
        Ok(all)
    }

    /// What comes next of this bridge need not continue what came.
    pub fn break_off(&mut self, index: usize) {
        let bridge = &mut self.bridges[index];
        self.kept_bytes -= bridge
            .kept
            .drain(..)
            .map(|kept| kept.payload.len())
            .sum::<usize>();
        bridge.transactions = Transactions::default();
        bridge.is_applied = false;
        bridge.position = None;
    }

    pub fn indexes(&self) -> std::ops::Range<usize> {
        0..self.bridges.len()
    }

    /// All that is applied is of whole transactions.
    pub fn may_store(&self) -> bool {
        self.bridges.iter().all(|bridge| !bridge.is_applied)
    }

    /// No transaction is open.
    pub fn is_between(&self) -> bool {
        let mut all = self.bridges.iter();
        all.all(|bridge| bridge.transactions.is_between())
    }

    /// Up to which message everything of this bridge is applied, `read` being the last one read.
    pub fn applied(&self, index: usize, read: u64) -> u64 {
        let first = self.bridges[index].kept.first();
        first.map_or(read, |first| first.sequence - 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::Lsn;

    use super::*;

    fn message(sequence: u64) -> Stored {
        Stored {
            sequence,
            subject: String::new(),
            payload: bytes::Bytes::from_static(b"x"),
            stored_ns: 0,
            pending: 0,
        }
    }

    fn mark(commit_lsn: u64, seq: u32, last: bool) -> Mark {
        Mark {
            commit_lsn: Lsn(commit_lsn),
            seq,
            last,
        }
    }

    #[test]
    fn one_bridge_alone_is_applied_as_it_comes() {
        let mut bridges = Bridges::default();
        let index = bridges.index("a");

        assert_eq!(
            bridges
                .take(index, message(1), mark(10, 1, false))
                .unwrap()
                .len(),
            1
        );
        assert!(!bridges.may_store());
        assert_eq!(
            bridges
                .take(index, message(2), mark(10, 2, true))
                .unwrap()
                .len(),
            1
        );
        assert!(bridges.may_store());
    }

    #[test]
    fn a_transaction_too_large_is_applied_and_holds_the_storing_up() {
        let mut bridges = Bridges::default();
        let (a, b) = (bridges.index("a"), bridges.index("b"));
        let mut large = message(1);
        large.payload = vec![0; KEPT_BYTES_MAX + 1].into();

        assert_eq!(bridges.take(a, large, mark(10, 1, false)).unwrap().len(), 1);
        assert_eq!(
            bridges
                .take(b, message(2), mark(10, 1, true))
                .unwrap()
                .len(),
            1
        );
        assert!(!bridges.may_store());
        assert_eq!(
            bridges
                .take(a, message(3), mark(10, 2, true))
                .unwrap()
                .len(),
            1
        );
        assert!(bridges.may_store());
    }

    proptest! {
        /// Two or three bridges, each with its own transactions, in any interleaving.
        #[test]
        fn whatever_is_stored_is_of_whole_transactions_and_nothing_is_missed(
            sizes in prop::collection::vec(prop::collection::vec(1_u32..4, 1..6), 2..4),
            turns in prop::collection::vec(any::<prop::sample::Index>(), 60),
        ) {
            let mut events: Vec<std::collections::VecDeque<Mark>> = sizes.iter().map(|sizes| {
                (1_u64..).zip(sizes)
                    .flat_map(|(lsn, size)| (1..=*size).map(move |seq| mark(lsn, seq, seq == *size)))
                    .collect()
            }).collect();
            let mut bridges = Bridges::default();
            for index in 0..events.len() {
                bridges.index(&index.to_string());
            }
            // What is applied of each bridge, by sequence, and where its transactions end.
            let mut applied = vec![Vec::new(); events.len()];
            let mut whole_at = vec![vec![0]; events.len()];
            let mut of = Vec::new();
            for turn in turns {
                let left: Vec<usize> = (0..events.len()).filter(|&index| !events[index].is_empty()).collect();
                if left.is_empty() {
                    break;
                }
                let index = left[turn.index(left.len())];
                let mark = events[index].pop_front().unwrap();
                let read = of.len() as u64 + 1;
                of.push(index);
                if mark.last {
                    whole_at[index].push(read);
                }
                for message in bridges.take(index, message(read), mark).unwrap() {
                    applied[index].push(message.sequence);
                }

                prop_assert!(bridges.may_store(), "nothing here is large");
                for index in 0..events.len() {
                    let sequence = bridges.applied(index, read);
                    // All of its own up to there is applied, and nothing behind.
                    let own: Vec<u64> = (1..=sequence).filter(|&at| of[at as usize - 1] == index).collect();
                    prop_assert_eq!(&applied[index], &own);
                    let last = own.last().copied().unwrap_or(0);
                    prop_assert!(whole_at[index].contains(&last));
                }
            }
        }
    }
}
