//! Decides which LSN is safe to confirm to PostgreSQL.
//!
//! In: every run of messages sent, every commit boundary passed, every ack. Out: one LSN that only grows.
//! Invariant: no event before that LSN is still waiting for its ack.

use std::collections::VecDeque;

use wire::Lsn;

/// A run of messages that is acked as one: from one message to a whole group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

#[derive(Debug)]
struct Run {
    /// Confirmed when this run and all before it are acked.
    boundary: Lsn,
    is_acked: bool,
}

/// The one writer of the confirmed LSN.
#[derive(Debug, Default)]
pub struct Ledger {
    confirmed: Lsn,
    in_flight: VecDeque<Run>,
    /// The ticket of the front run.
    front: u64,
}

impl Ledger {
    /// A run of messages was sent; the boundaries passed from now on lie behind it.
    pub fn sent(&mut self) -> Ticket {
        self.in_flight.push_back(Run {
            boundary: Lsn::INVALID,
            is_acked: false,
        });
        Ticket(self.front + self.in_flight.len() as u64 - 1)
    }

    /// A transaction's `end_lsn` was reached: every event before it has been sent, or was never ours.
    pub fn passed(&mut self, boundary: Lsn) {
        match self.in_flight.back_mut() {
            Some(run) => run.boundary = run.boundary.max(boundary),
            None => self.confirmed = self.confirmed.max(boundary),
        }
    }

    /// One run is stored. A ticket from before `restart`, or acked already, changes nothing.
    pub fn acked(&mut self, ticket: Ticket) -> Lsn {
        let index = ticket.0.checked_sub(self.front);
        if let Some(run) = index.and_then(|index| self.in_flight.get_mut(index as usize)) {
            run.is_acked = true;
        }
        while let Some(run) = self.in_flight.pop_front_if(|run| run.is_acked) {
            self.front += 1;
            self.confirmed = self.confirmed.max(run.boundary);
        }
        self.confirmed
    }

    /// The run and all before it are stored: what an ack of a chained message proves.
    pub fn acked_through(&mut self, ticket: Ticket) -> Lsn {
        let count = (ticket.0 + 1).saturating_sub(self.front);
        for run in self.in_flight.iter_mut().take(count as usize) {
            run.is_acked = true;
        }
        self.acked(ticket)
    }

    /// Everything in flight will be sent again, under new tickets.
    pub fn restart(&mut self) {
        self.front += self.in_flight.len() as u64;
        self.in_flight.clear();
    }

    /// The stream has lost what was acked: back to an LSN that was confirmed when it still held.
    pub fn rewind(&mut self, confirmed: Lsn) {
        self.restart();
        self.confirmed = confirmed;
    }

    /// Safe to confirm.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// Runs waiting for their ack.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_late_ack_holds_the_lsn_back() {
        let mut ledger = Ledger::default();
        let a = ledger.sent();
        ledger.passed(Lsn(10));
        let b = ledger.sent();
        ledger.passed(Lsn(20));

        assert_eq!(ledger.acked(b), Lsn(0));
        assert_eq!(ledger.acked(a), Lsn(20));
    }

    #[test]
    fn an_event_without_its_commit_confirms_nothing() {
        let mut ledger = Ledger::default();
        let a = ledger.sent();

        assert_eq!(ledger.acked(a), Lsn(0));
        ledger.passed(Lsn(10));
        assert_eq!(ledger.confirmed(), Lsn(10));
    }

    #[test]
    fn an_ack_of_a_chained_message_proves_those_before_it() {
        let mut ledger = Ledger::default();
        ledger.sent();
        ledger.passed(Lsn(10));
        let b = ledger.sent();

        assert_eq!(ledger.acked_through(b), Lsn(10));
    }

    #[test]
    fn a_ticket_from_before_a_restart_is_void() {
        let mut ledger = Ledger::default();
        let old = ledger.sent();
        ledger.passed(Lsn(10));
        ledger.restart();
        let new = ledger.sent();
        ledger.passed(Lsn(10));

        assert_eq!(ledger.acked(old), Lsn(0));
        assert_eq!(ledger.acked_through(old), Lsn(0));
        assert_eq!(ledger.acked(new), Lsn(10));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Send,
        Commit,
        Ack(usize),
        AckThrough(usize),
        Restart,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Send),
            2 => Just(Step::Commit),
            3 => any::<usize>().prop_map(Step::Ack),
            1 => any::<usize>().prop_map(Step::AckThrough),
            1 => Just(Step::Restart),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// The model keeps every event with its place in the log and whether it is stored.
        #[test]
        fn no_order_of_acks_passes_an_unacked_event(steps in steps()) {
            let mut ledger = Ledger::default();
            let mut runs: Vec<(Ticket, u64, bool)> = Vec::new();
            let mut lsn = 0_u64;
            let mut confirmed = Lsn::INVALID;
            for step in steps {
                lsn += 1;
                match step {
                    Step::Send => runs.push((ledger.sent(), lsn, false)),
                    Step::Commit => ledger.passed(Lsn(lsn)),
                    Step::Ack(index) if !runs.is_empty() => {
                        let index = index % runs.len();
                        let run = &mut runs[index];
                        run.2 = true;
                        ledger.acked(run.0);
                    }
                    Step::AckThrough(index) if !runs.is_empty() => {
                        let index = index % runs.len();
                        runs.iter_mut().take(index + 1).for_each(|run| run.2 = true);
                        ledger.acked_through(runs[index].0);
                    }
                    Step::Ack(_) | Step::AckThrough(_) => {}
                    Step::Restart => {
                        ledger.restart();
                        // Sent again at once, in order.
                        runs.retain(|run| !run.2);
                        for run in &mut runs {
                            run.0 = ledger.sent();
                        }
                    }
                }
                prop_assert!(confirmed <= ledger.confirmed(), "the LSN only grows");
                confirmed = ledger.confirmed();
                let waiting = runs.iter().filter(|run| !run.2).map(|run| run.1).min();
                prop_assert!(waiting.is_none_or(|waiting| confirmed < Lsn(waiting)));
            }
        }
    }
}
