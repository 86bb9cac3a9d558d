//! Rows that no message can hold.

use sha2::{Digest as _, Sha256};
use stack::Options;
use tokio::io::AsyncReadExt as _;
use wire::{Event, Message as _, Operation, Value};

use crate::columns::{assert_same, int};
use crate::rig::{Bridge, Rig};
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

#[test]
fn a_wide_row_under_replica_identity_full_leaves_a_stub_without_columns() {
    let rig = Rig::with_nats(Options::default().nats_config("max_payload: 64KB"));
    rig.sql(
        "CREATE TABLE t (id int, body text); ALTER TABLE t REPLICA IDENTITY FULL;
         INSERT INTO t VALUES (1, repeat('wide', 50000))",
    );
    let bridge = rig.bridge(&[]);

    let row = rig.rows("t", "");
    rig.sql("UPDATE t SET id = 2");
    rig.sql("DELETE FROM t");
    let events = rig.events();
    bridge.drain();

    let [update, delete] = &events[..] else {
        panic!("{events:?}")
    };
    assert!(update.columns.is_empty() && update.old.is_empty());
    assert_same(&whole(&rig, update).old, &row[0]);
    assert!(delete.columns.is_empty());
    assert_eq!(whole(&rig, delete).columns[0], int("id", 2));
}

#[test]
fn rows_of_one_mebibyte_and_of_64_megabytes_hold_nobody_up_and_memory_is_given_back() {
    const LARGE: usize = 64_000_000;
    let rig = Rig::new();
    rig.sql("CREATE TABLE docs (id int PRIMARY KEY, body text); CREATE TABLE notes (id int PRIMARY KEY)");
    let bridge = rig.bridge(&[]);

    rig.sql("INSERT INTO notes VALUES (1)");
    rig.sql("INSERT INTO docs VALUES (1, repeat('s', 1048576 + 1))");
    rig.sql("INSERT INTO notes VALUES (2)");
    rig.sql(&format!(
        "INSERT INTO docs VALUES (2, repeat('l', {LARGE}))"
    ));
    rig.sql("INSERT INTO notes VALUES (3)");
    let events = rig.events();
    let (peak, now) = (memory(&bridge, "VmHWM"), memory(&bridge, "VmRSS"));
    bridge.drain();

    let seen: Vec<_> = events
        .iter()
        .map(|event| {
            (
                event.table.as_str(),
                event.columns[0].value.clone(),
                event.oversize.is_some(),
            )
        })
        .collect();
    let expected = [
        ("notes", 1, false),
        ("docs", 1, true),
        ("notes", 2, false),
        ("docs", 2, true),
        ("notes", 3, false),
    ];
    assert_eq!(
        seen,
        expected.map(|(table, id, is_stub)| (table, Value::Int(id), is_stub))
    );
    for (stub, letter, length) in [(&events[1], "s", 1_048_577), (&events[3], "l", LARGE)] {
        let Value::Text(body) = &whole(&rig, stub).columns[1].value else {
            panic!("it is text")
        };
        assert!(*body == letter.repeat(length));
    }
    assert!(peak < 4 * LARGE, "{peak} bytes");
    assert!(now < LARGE / 2, "{now} bytes");
}

#[test]
fn told_to_halt_at_such_a_row_it_says_how_to_go_on_and_goes_on_once_it_may() {
    let rig = Rig::with_nats(Options::default().nats_config("max_payload: 64KB"));
    rig.sql("CREATE TABLE t (id int PRIMARY KEY, body text)");
    let bridge = rig.bridge(&["--oversize", "halt"]);
    rig.sql("INSERT INTO t VALUES (1, 'small'), (2, repeat('wide', 50000)), (3, 'beside it')");

    let why = bridge.wait_until_not_ready("halt");
    bridge.kill();
    assert!(
        why.contains("max_payload") && why.contains("--oversize park"),
        "{why}"
    );
    let bridge = rig.bridge(&["--oversize", "park"]);
    let events = rig.events();
    bridge.drain();

    let ids: Vec<_> = events
        .iter()
        .map(|event| event.columns[0].value.clone())
        .collect();
    assert_eq!(ids, [1, 2, 3].map(Value::Int));
}

/// A figure of `/proc/<pid>/status`, in bytes.
fn memory(bridge: &Bridge, name: &str) -> usize {
    let path = format!("/proc/{}/status", bridge.pid());
    let status = std::fs::read_to_string(path).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.map(|kib: usize| kib << 10)
        .expect("it is a number of kB")
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
