//! Rows that no message can hold.

use sha2::{Digest as _, Sha256};
use stack::Options;
use tokio::io::AsyncReadExt as _;
use wire::{Event, Message as _, Operation, Value};

use crate::columns::{assert_same, int};
use crate::rig::Rig;
use crate::stream::{jetstream, runtime};

#[test]
fn a_row_too_wide_for_a_message_leaves_a_stub_and_its_body_in_the_object_store() {
    let rig = Rig::with_nats(Options::default().nats_config("max_payload: 64KB"));
    rig.sql("CREATE TABLE t (id int PRIMARY KEY, body text)");
    let bridge = rig.bridge(&[]);

    rig.sql("INSERT INTO t VALUES (1, 'small')");
    rig.sql("INSERT INTO t VALUES (2, repeat('wide', 50000)), (3, 'beside it'), (4, repeat('W', 70000))");
    rig.sql("UPDATE t SET body = body || '.' WHERE id = 2");
    rig.sql("INSERT INTO t VALUES (5, 'after it')");
    let events = rig.events();
    bridge.drain();

    let shapes: Vec<_> = events
        .iter()
        .map(|event| {
            (
                event.operation,
                event.columns[0].value.clone(),
                event.oversize.is_some(),
            )
        })
        .collect();
    let expected = [
        (Operation::Insert, 1, false),
        (Operation::Insert, 2, true),
        (Operation::Insert, 3, false),
        (Operation::Insert, 4, true),
        (Operation::Update, 2, true),
        (Operation::Insert, 5, false),
    ];
    assert_eq!(
        shapes,
        expected.map(|(operation, id, is_stub)| (operation, Value::Int(id), is_stub))
    );
    for stub in events.iter().filter(|event| event.oversize.is_some()) {
        assert_eq!(stub.columns.len(), 1, "the key alone");
        let body = whole(&rig, stub);
        assert_eq!(body.position(), stub.position());
        assert_eq!(body.last, stub.last);
        assert_eq!(body.columns[0], stub.columns[0]);
    }
    assert_same(
        &whole(&rig, &events[4]).columns,
        &rig.rows("t", "WHERE id = 2")[0],
    );
    assert_same(&events[5].columns[..1], &[int("id", 5)]);
}

/// What a consumer does with a stub.
fn whole(rig: &Rig, stub: &Event) -> Event {
    let oversize = stub.oversize.as_ref().expect("it is a stub");
    let body = runtime().block_on(async {
        let store = jetstream(rig.nats())
            .await
            .get_object_store("oversize")
            .await;
        let mut object = store
            .expect("the bucket is there")
            .get(&oversize.object)
            .await;
        let object = object.as_mut().expect("the object is there");
        let mut body = Vec::new();
        object.read_to_end(&mut body).await.expect("it can be read");
        body
    });
    let digest = Sha256::digest(&body);
    let pairs = oversize.sha256.as_bytes().chunks(2);
    let stated: Vec<u8> = pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    assert_eq!(digest.as_slice(), stated);
    assert_eq!(body.len() as u64, oversize.bytes);
    Event::decode(&body).expect("it is an event")
}
