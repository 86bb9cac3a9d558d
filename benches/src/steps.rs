//! The steps of the hot path, each alone and repeatable: what criterion times and callgrind counts.
//!
//! In: a step's name. Out: a closure that does it once, for a known number of events.
//! Must hold: memory is warm after the first call; nothing allocates after it.

use std::hint::black_box;
use std::time::Instant;

use bridge::encode;
use bridge::event::Slab;
use bridge::ledger::Ledger;
use bridge::pgoutput;
use bridge::publish::chain::{Chain, Limits, PubAck};
use bridge::publish::frame;
use bridge::ring::{Budget, ring};

use crate::sample::{self, Shape};

/// One step, ready to be done again and again.
pub struct Step {
    pub name: &'static str,
    /// Events each call handles.
    pub events: u64,
    pub run: Box<dyn FnMut()>,
}

/// All of them, in the order data travels.
pub fn all() -> Vec<Step> {
    vec![
        decode(),
        collect(),
        ring_of_slabs(),
        encode("encode/row6", &Shape::row6(), 100),
        encode("encode/row50", &Shape::row50(), 30),
        framing(),
        chain_and_ledger(),
        ledger(),
    ]
}

/// Bytes to message.
fn decode() -> Step {
    let insert = Shape::row6().insert();
    Step {
        name: "decode/row6",
        events: 1,
        run: Box::new(move || {
            black_box(pgoutput::decode(black_box(&insert)).is_ok());
        }),
    }
}

/// Bytes to message to slab.
fn collect() -> Step {
    let shape = Shape::row6();
    let (begin, insert, commit) = (sample::begin(), shape.insert(), sample::commit());
    let mut assembler = sample::assembler();
    sample::take(&mut assembler, &shape.relation());
    let mut spare = Some(Slab::default());
    Step {
        name: "decode and assemble/row6",
        events: 100,
        run: Box::new(move || {
            sample::take(&mut assembler, &begin);
            for _ in 0..100 {
                sample::take(&mut assembler, &insert);
            }
            sample::take(&mut assembler, &commit);
            let sealed = assembler.seal(|| spare.take().unwrap_or_default());
            spare = sealed.map(|mut slab| {
                slab.clear();
                slab
            });
        }),
    }
}

/// A slab through the ring and back.
fn ring_of_slabs() -> Step {
    let (mut producer, mut consumer, _) = ring(Budget {
        events_max: 32_768,
        bytes_max: 8 << 20,
    });
    Step {
        name: "ring/slab",
        events: 1,
        run: Box::new(move || {
            let slab = producer.slab();
            assert!(producer.push(slab).is_ok(), "the ring is empty");
            let slab = consumer.pop().expect("it was pushed just now");
            consumer.recycle(slab);
        }),
    }
}

/// Slab to payload.
fn encode(name: &'static str, shape: &Shape, rows: usize) -> Step {
    let (slab, layout) = (shape.slab(rows), shape.layout());
    let mut out = Vec::with_capacity(256 << 10);
    Step {
        name,
        events: rows as u64,
        run: Box::new(move || {
            out.clear();
            for event in slab.events() {
                encode::event(&slab, event, &layout, &mut out);
            }
            black_box(&out);
        }),
    }
}

/// The frame around a payload of the usual size.
fn framing() -> Step {
    let payload = Shape::row6().payload();
    let mut out = Vec::with_capacity(256 << 10);
    let mut sequence = 1_000_000;
    Step {
        name: "frame/hpub",
        events: 100,
        run: Box::new(move || {
            out.clear();
            for _ in 0..100 {
                let open = frame::begin(&mut out, "cdc.bench.insert", None, |out| {
                    out.extend_from_slice(b"Nats-Expected-Last-Sequence: ");
                    frame::decimal(out, sequence);
                    out.extend_from_slice(b"\r\n");
                });
                out.extend_from_slice(&payload);
                open.finish(&mut out);
                sequence += 1;
            }
            black_box(&out);
        }),
    }
}

/// The book-keeping of a group of 500 messages and its ack.
fn chain_and_ledger() -> Step {
    let mut chain = Chain::new(Limits::default());
    chain.restart(0);
    let mut ledger = Ledger::default();
    let now = Instant::now();
    Step {
        name: "chain and ledger/group",
        events: 500,
        run: Box::new(move || {
            let mut asked = None;
            while asked.is_none() {
                if chain.is_group_start() {
                    chain.open(ledger.sent(), now);
                }
                asked = chain.ack_token(120, false);
                chain.sent(wire::Position::START, 400, asked);
            }
            let ack = PubAck {
                seq: chain.expected(),
                ..PubAck::default()
            };
            let proof = chain.answered(asked.unwrap_or(0), &ack, now);
            let proof = proof.expect("the sequence is the expected one");
            ledger.acked_through(proof.expect("the group was in flight").ticket);
        }),
    }
}

/// One run sent, one boundary passed, one ack.
fn ledger() -> Step {
    let mut ledger = Ledger::default();
    let mut lsn = 1;
    Step {
        name: "ledger/run",
        events: 1,
        run: Box::new(move || {
            let ticket = ledger.sent();
            lsn += 100;
            ledger.passed(wire::Lsn(lsn));
            black_box(ledger.acked_through(ticket));
        }),
    }
}
