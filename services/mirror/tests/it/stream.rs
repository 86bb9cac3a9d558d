//! Row changes: what they do to the rows, and when they become visible.

use wire::event::Oversize;
use wire::names::BUCKET_OVERSIZE;
use wire::schema::ReplicaIdentity;
use wire::{Message, Operation};

use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_is_applied() {
    let world = World::new().await;
    world.publish_schema(&users()).await;
    world.publish_schema(&orders()).await;
    world
        .snapshot(made(
            &users(),
            &[&["1", "one", "long"], &["2", "two", "NULL"]],
            100,
            0,
        ))
        .await;
    world
        .snapshot(made(&orders(), &[&["9", "1.50"]], 100, 0))
        .await;
    world.catch_up("users,orders");

    let mut toast = update("users", vec![int("id", 1), string("name", "uno")]);
    toast.unchanged = vec!["bio".to_owned()];
    let mut moved = update("users", user(3, "two"));
    moved.old = vec![int("id", 2)];
    let others = insert("strangers", vec![int("id", 1)]);
    world
        .transaction(110, vec![toast, others.clone(), moved])
        .await;
    world
        .transaction(
            120,
            vec![
                event("orders", Operation::Truncate, Vec::new()),
                insert("orders", order(10, "2.00")),
                insert("orders", order(11, "3.00")),
                delete("orders", vec![int("id", 10)]),
                others,
            ],
        )
        .await;
    let log = world.catch_up("users,orders");

    assert_eq!(
        world.rows("SELECT * FROM users ORDER BY id"),
        ["1|uno|long", "3|two|NULL"]
    );
    assert_eq!(world.rows("SELECT * FROM orders"), ["11|3.00"]);
    assert!(!log.contains("seeded"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_over_two_tables_is_seen_whole_or_not_at_all() {
    let world = World::with_users(&[]).await;
    world.publish_schema(&orders()).await;
    world.snapshot(made(&orders(), &[], 100, 0)).await;
    let mirror = world.mirror("users,orders", &[]);
    world.insert_user(110, 1, "one").await;
    world.wait_for_rows("SELECT id FROM users", &["1"]).await;

    let mut first = insert("users", user(2, "two"));
    (first.commit_lsn, first.xid, first.seq) = (wire::Lsn(120), 120, 1);
    let mut second = insert("orders", order(1, "1.00"));
    (second.commit_lsn, second.xid, second.seq, second.last) = (wire::Lsn(120), 120, 2, true);
    world.publish_event(&first).await;
    mirror.wait_for_line("follows the stream", DEADLINE);
    assert_eq!(world.rows("SELECT count(*) FROM users"), ["1"]);
    world.publish_event(&second).await;

    world
        .wait_for_rows("SELECT count(*) FROM orders", &["1"])
        .await;
    assert_eq!(world.rows("SELECT count(*) FROM users"), ["2"]);
    assert!(
        mirror.terminate(DEADLINE).success(),
        "SIGTERM stops it cleanly"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_one_equal_row_is_changed_and_no_more() {
    let world = World::new().await;
    let mut schema = schema("log", 1, &[(1, "line", "text"), (2, "n", "real")], &[]);
    schema.replica_identity = ReplicaIdentity::Full;
    schema.identity_columns = vec!["line".to_owned(), "n".to_owned()];
    world.publish_schema(&schema).await;
    let rows: &[&[&str]] = &[&["a", "1.5"], &["a", "1.5"], &["a", "1.5"], &["b", "NULL"]];
    world.snapshot(made(&schema, rows, 100, 0)).await;

    let row = |line: &str| {
        vec![
            string("line", line),
            wire::Column::new("n", wire::Value::Float(1.5)),
        ]
    };
    let mut changed = update("log", row("c"));
    changed.old = row("a");
    let null = vec![
        string("line", "b"),
        wire::Column::new("n", wire::Value::Null),
    ];
    world
        .transaction(
            110,
            vec![delete("log", row("a")), changed, delete("log", null)],
        )
        .await;
    world.catch_up("log");

    assert_eq!(
        world.rows("SELECT * FROM log ORDER BY line"),
        ["a|1.5", "c|1.5"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_of_an_event_too_large_for_a_message_is_fetched() {
    let world = World::with_users(&[]).await;
    let config = async_nats::jetstream::object_store::Config {
        bucket: BUCKET_OVERSIZE.to_owned(),
        ..Default::default()
    };
    let bucket = world.context.create_object_store(config).await.unwrap();
    let body = "x".repeat(2_000_000);
    let mut whole = insert("users", user(1, &body));
    (whole.commit_lsn, whole.xid, whole.seq, whole.last) = (wire::Lsn(110), 110, 1, true);
    let bytes = whole.to_msgpack();
    bucket
        .put("cdc_slot/0/6E:1", &mut bytes.as_slice())
        .await
        .unwrap();
    let stub = Oversize {
        bytes: bytes.len() as u64,
        sha256: sha256(&bytes),
        object: "cdc_slot/0/6E:1".to_owned(),
    };

    let stub = wire::Event {
        columns: vec![int("id", 1)],
        oversize: Some(stub),
        ..whole
    };
    world.publish_event(&stub).await;
    world.catch_up("users");

    assert_eq!(world.rows("SELECT length(name) FROM users"), ["2000000"]);
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    mirror::value::hex(&sha2::Sha256::digest(bytes))
}
