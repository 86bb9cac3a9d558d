//! "No allocation per event" between the socket's buffer and the frame, counted.

use benches::sample::{self, Shape};
use bridge::encode;
use bridge::event::Slab;
use bridge::publish::frame;

#[test]
fn decoding_and_collecting_a_row_allocates_nothing() {
    let shape = Shape::row6();
    let (relation, begin, insert, commit) = (
        shape.relation(),
        sample::begin(),
        shape.insert(),
        sample::commit(),
    );
    let mut assembler = sample::assembler();
    sample::take(&mut assembler, &relation);
    let transaction = |assembler: &mut bridge::assembler::Assembler, spare: Slab| {
        sample::take(assembler, &begin);
        for _ in 0..100 {
            sample::take(assembler, &insert);
        }
        sample::take(assembler, &commit);
        let mut slab = assembler
            .seal(|| spare)
            .expect("the transaction is committed");
        slab.clear();
        slab
    };
    // Two slabs take turns, as through the ring; their first round gives them their memory.
    let first = transaction(&mut assembler, Slab::default());
    let second = transaction(&mut assembler, first);

    let counted = allocation_counter::measure(|| {
        let third = transaction(&mut assembler, second);
        let _fourth = std::hint::black_box(transaction(&mut assembler, third));
    });

    assert_eq!(counted.count_total, 0, "{counted:?}");
}

#[test]
fn encoding_and_framing_a_row_allocates_nothing() {
    for shape in [Shape::row6(), Shape::row50()] {
        let (slab, layout) = (shape.slab(30), shape.layout());
        let mut out = Vec::with_capacity(256 << 10);

        let counted = allocation_counter::measure(|| {
            for event in slab.events() {
                let open = frame::begin(&mut out, "cdc.bench.insert", None, |out| {
                    out.extend_from_slice(b"Nats-Expected-Last-Sequence: ");
                    frame::decimal(out, 1_234_567);
                    out.extend_from_slice(b"\r\n");
                });
                encode::event(&slab, event, &layout, &mut out);
                open.finish(&mut out);
            }
        });

        assert_eq!(counted.count_total, 0, "{counted:?}");
    }
}
