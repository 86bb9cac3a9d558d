//! `Order::Group` and `Order::Each` against models of a stream that others write to as well.

use std::collections::VecDeque;
use std::time::Instant;

use proptest::prelude::*;
use wire::{Lsn, Position};

use super::chain::{ApiError, Chain, Limits, Order, PubAck};
use crate::ledger::Ledger;

fn chain(order: Order, group_events_max: usize) -> Chain {
    let mut chain = Chain::new(Limits {
        group_events_max,
        in_flight_events_max: 50,
        ..Limits::default()
    });
    chain.set_order(order);
    chain.restart(0);
    chain
}

fn stored(seq: usize) -> PubAck {
    PubAck {
        seq: seq as u64,
        ..PubAck::default()
    }
}

fn refused() -> PubAck {
    PubAck {
        error: Some(ApiError {
            err_code: 10_071,
            ..ApiError::default()
        }),
        ..PubAck::default()
    }
}

fn position(event: u64) -> Position {
    Position::new(Lsn(event), 1)
}

/// One message on its way.
#[derive(Debug, Clone, Copy)]
struct Message {
    event: u64,
    token: u64,
    index: u64,
    /// Asks for an ack.
    is_end: bool,
    /// The last own event the group expects, in its first message.
    expected: u64,
}

struct Sender {
    chain: Chain,
    ledger: Ledger,
    /// The last event sent, or known to be stored.
    floor: u64,
    /// The last event of the groups proven, which the next group's expectation names.
    last_own: u64,
}

impl Sender {
    fn new(order: Order, group_events_max: usize) -> Self {
        Self {
            chain: chain(order, group_events_max),
            ledger: Ledger::default(),
            floor: 0,
            last_own: 0,
        }
    }

    fn send(&mut self, is_last: bool) -> Option<Message> {
        if self.chain.is_full() {
            return None;
        }
        if self.chain.is_group_start() {
            self.chain.open(self.ledger.sent(), Instant::now());
        }
        let asked = self.chain.ack_token(100, is_last);
        let place = self.chain.place();
        self.floor += 1;
        self.chain.sent(position(self.floor), 100, asked);
        self.ledger.passed(Lsn(self.floor));
        Some(Message {
            event: self.floor,
            token: place.token,
            index: place.index,
            is_end: asked.is_some(),
            expected: self.last_own,
        })
    }

    /// False: the stream refused, and its tail must be read.
    fn answered(&mut self, token: u64, ack: &PubAck) -> bool {
        match self.chain.answered(token, ack, Instant::now()) {
            Ok(Some(proof)) => {
                self.ledger.acked_through(proof.ticket);
                self.last_own = self.chain.proven().commit_lsn.0;
                true
            }
            Ok(None) => true,
            Err(_) => false,
        }
    }

    fn resume(&mut self, floor: u64) {
        self.chain.restart(1000);
        self.ledger.restart();
        self.floor = floor;
        self.last_own = floor;
    }
}

#[derive(Debug, Clone)]
enum Step {
    Send {
        is_last: bool,
    },
    /// The server takes the next message, or loses it.
    Serve {
        lose: bool,
    },
    /// Another bridge's message.
    Foreign,
    /// An answer arrives, not always the first.
    Answer(usize),
    Reconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => any::<bool>().prop_map(|is_last| Step::Send { is_last }),
        6 => prop::bool::weighted(0.05).prop_map(|lose| Step::Serve { lose }),
        2 => Just(Step::Foreign),
        4 => (0..4_usize).prop_map(Step::Answer),
        1 => Just(Step::Reconnect),
    ];
    prop::collection::vec(step, 0..400)
}

/// `FOREIGN` stands for messages of others.
const FOREIGN: u64 = 0;

fn own(stream: &[u64]) -> Vec<u64> {
    stream
        .iter()
        .copied()
        .filter(|event| *event != FOREIGN)
        .collect()
}

proptest! {
    /// The server stages a batch and stores it whole at its end, if nothing is missing in it and the last
    /// own message is the one expected. Two senders on one slot take turns at will: a paused bridge and
    /// the one that took over.
    #[test]
    fn batches_are_an_ordered_prefix_among_foreign_messages_and_zombies(
        steps in prop::collection::vec((any::<bool>(), steps()), 1..6),
        group in 1..6_usize,
    ) {
        let mut senders = [Sender::new(Order::Group, group), Sender::new(Order::Group, group)];
        let mut pipes = [VecDeque::<Message>::new(), VecDeque::new()];
        let mut answers = [VecDeque::<(u64, PubAck)>::new(), VecDeque::new()];
        let mut staged: [Vec<Message>; 2] = [Vec::new(), Vec::new()];
        let mut stream: Vec<u64> = Vec::new();
        for (is_second, step) in steps.into_iter().flat_map(|(who, steps)| {
            steps.into_iter().map(move |step| (who, step))
        }) {
            let who = usize::from(is_second);
            let sender = &mut senders[who];
            let mut must_resume = false;
            match step {
                Step::Send { is_last } => pipes[who].extend(sender.send(is_last)),
                Step::Foreign => stream.push(FOREIGN),
                Step::Serve { lose } => {
                    let Some(message) = pipes[who].pop_front() else { continue };
                    if lose { continue }
                    let batch = &mut staged[who];
                    if message.index == 1 { batch.clear(); }
                    let is_whole = message.index as usize == batch.len() + 1
                        && batch.first().is_none_or(|first| first.token == message.token);
                    batch.push(message);
                    if !message.is_end { continue }
                    let last_own = own(&stream).last().copied().unwrap_or(0);
                    let ack = if is_whole && batch[0].expected == last_own {
                        stream.extend(batch.iter().map(|message| message.event));
                        stored(stream.len())
                    } else {
                        refused()
                    };
                    batch.clear();
                    answers[who].push_back((message.token, ack));
                }
                Step::Answer(_) => {
                    let Some((token, ack)) = answers[who].pop_front() else { continue };
                    must_resume = !sender.answered(token, &ack);
                }
                Step::Reconnect => must_resume = true,
            }
            if must_resume {
                // What is in the pipe may still arrive.
                sender.resume(own(&stream).last().copied().unwrap_or(0));
            }
            let own = own(&stream);
            let ordered: Vec<u64> = (1..=own.len() as u64).collect();
            prop_assert_eq!(&own, &ordered);
            prop_assert!(sender.ledger.confirmed().0 <= own.len() as u64);
        }
    }

    /// The server stores what it has not stored yet, whatever is missing before it, and acks come in any
    /// order. Nothing is confirmed, or left out when sending again, that is not stored.
    #[test]
    fn single_acks_never_pass_a_lost_message(steps in steps()) {
        let mut sender = Sender::new(Order::Each, 500);
        let mut pipe = VecDeque::new();
        let mut answers: Vec<(u64, PubAck)> = Vec::new();
        let mut stream: Vec<u64> = Vec::new();
        for step in steps {
            match step {
                Step::Send { is_last } => pipe.extend(sender.send(is_last)),
                Step::Foreign => stream.push(FOREIGN),
                Step::Serve { lose } => {
                    let Some(message) = pipe.pop_front() else { continue };
                    if lose { continue }
                    prop_assert!(message.is_end, "each asks for its ack");
                    if !stream.contains(&message.event) {
                        stream.push(message.event);
                    }
                    answers.push((message.token, stored(stream.len())));
                }
                Step::Answer(which) if !answers.is_empty() => {
                    let (token, ack) = answers.remove(which % answers.len());
                    prop_assert!(sender.answered(token, &ack));
                }
                Step::Answer(_) => {}
                Step::Reconnect => {
                    pipe.clear();
                    let proven = sender.chain.proven().commit_lsn.0;
                    sender.resume(proven);
                }
            }
            for safe in [sender.ledger.confirmed().0, sender.chain.proven().commit_lsn.0] {
                prop_assert!((1..=safe).all(|event| stream.contains(&event)));
            }
            let mut unique = own(&stream);
            unique.sort_unstable();
            unique.dedup();
            prop_assert_eq!(unique.len(), own(&stream).len());
        }
    }
}

#[test]
fn a_group_waits_for_the_ack_of_the_one_before() {
    let mut sender = Sender::new(Order::Group, 2);
    sender.send(false).unwrap();
    let end = sender.send(false).unwrap();

    assert!(end.is_end && sender.send(false).is_none());
    assert!(sender.answered(end.token, &stored(700)));
    assert!(sender.send(false).is_some());
    assert_eq!(sender.chain.stored_sequence(), 700);
    assert_eq!(sender.chain.acked_sequence(), 2);
}

#[test]
fn flow_control_proves_nothing_and_a_gap_ends_the_chain() {
    let mut sender = Sender::new(Order::Sequence, 2);
    let token = sender.send(true).unwrap().token;
    let said = |kind: &str| PubAck {
        kind: kind.to_owned(),
        seq: 1,
        ..PubAck::default()
    };

    assert!(sender.answered(token, &said("ack")));
    assert_eq!(sender.chain.acked_sequence(), 0);
    assert!(!sender.answered(token, &said("gap")));
}
