//! From nothing to rows: which snapshots are joined, and how.

use wire::snapshot::{Error, ErrorCode};
use wire::snapshot_request::Compression;
use wire::{Message, names};

use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_snapshot_is_joined_exactly() {
    let world = World::new().await;
    world.publish_schema(&users()).await;
    // In the rows already: committed before, or visible although it committed behind `lsn`.
    world.insert_user(90, 1, "one").await;
    let cdc_seq = world.insert_user(95, 2, "two").await;
    let mut visible = insert("users", user(3, "three"));
    visible.xid = 777;
    world.transaction(110, vec![visible]).await;
    world.insert_user(120, 4, "four").await;
    let rows: &[&[&str]] = &[
        &["1", "one", "NULL"],
        &["2", "two", "NULL"],
        &["3", "three", "NULL"],
    ];
    let snapshot = Made {
        skip_xids: vec![777],
        ..made(&users(), rows, 100, cdc_seq)
    };
    world.snapshot(snapshot).await;

    let log = world.catch_up("users");

    assert_eq!(
        world.rows("SELECT * FROM users ORDER BY id"),
        ["1|one|NULL", "2|two|NULL", "3|three|NULL", "4|four|NULL"]
    );
    assert!(log.contains("joins an existing snapshot"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_snapshot_is_asked_for() {
    let world = World::new().await;
    world.publish_schema(&users()).await;
    let mut requests = world.requests().await;
    let mirror = world.mirror("users", &["--once"]);

    requests
        .answer(made(&users(), &[&["1", "one", "NULL"]], 100, 0))
        .await;

    assert!(mirror.wait(DEADLINE).success(), "{}", mirror.log_tail());
    assert_eq!(world.rows("SELECT * FROM users"), ["1|one|NULL"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_be_joined_is_not() {
    let world = World::new().await;
    world.publish_schema(&users()).await;
    let compressed = Made {
        compression: Compression::Zstd,
        ..made(&users(), &[], 100, 0)
    };
    world.snapshot(compressed).await;
    let mut requests = world.requests().await;
    let mirror = world.mirror("users", &["--once"]);

    requests
        .answer(made(&users(), &[&["7", "NULL", "NULL"]], 100, 0))
        .await;

    assert!(mirror.wait(DEADLINE).success(), "{}", mirror.log_tail());
    assert_eq!(world.rows("SELECT id FROM users"), ["7"]);
    assert!(mirror.stderr().contains("its chunks are compressed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_ends_the_mirror_with_the_remedy() {
    let world = World::new().await;
    let mut requests = world.requests().await;
    let mirror = world.mirror("secrets", &["--once"]);
    let error = Error {
        table: "secrets".to_owned(),
        snapshot_id: None,
        code: ErrorCode::NotPublished,
        error: "table secrets is not in publication cdc_pub".to_owned(),
        hint: "ALTER PUBLICATION cdc_pub ADD TABLE secrets".to_owned(),
        schema: "public".to_owned(),
    };

    requests.wait().await;
    world
        .publish(names::init_error("public", "secrets"), error.to_msgpack())
        .await;

    assert_eq!(mirror.wait(DEADLINE).code(), Some(1));
    assert!(
        mirror
            .stderr()
            .contains("ALTER PUBLICATION cdc_pub ADD TABLE secrets")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn strange_names_and_every_type_are_kept() {
    let world = World::new().await;
    let columns = [
        (1, "select", "integer"),
        (2, "qu\"ote", "boolean"),
        (3, "f", "double precision"),
        (4, "b", "bytea"),
        (5, "n", "numeric"),
        (6, "größe", "text[]"),
    ];
    let schema = schema("order by", 1, &columns, &["select"]);
    world.publish_schema(&schema).await;
    let row: &[&str] = &["1", "t", "NaN", "\\x00ff", "1.10", "{a,NULL}"];
    world.snapshot(made(&schema, &[row], 100, 0)).await;

    world.catch_up("order by");

    assert_eq!(
        world.rows("SELECT *, typeof(\"qu\"\"ote\"), typeof(n) FROM \"order by\""),
        ["1|1|NaN|[00, ff]|1.10|{a,NULL}|integer|text"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_a_snapshot_goes_on_after_a_kill() {
    let world = World::new().await;
    world.publish_schema(&users()).await;
    let mut requests = world.requests().await;
    let mirror = world.mirror("users", &[]);
    let id = requests.promise().await;
    world.start(&id, &users(), Compression::None).await;
    world
        .chunk(&id, &users(), 0, &[texts(&["1", "one", "NULL"])])
        .await;
    let chunks = "SELECT chunks FROM _mirror_loads WHERE name = 'users'";
    world.wait_for_rows(chunks, &["1"]).await;
    mirror.kill();

    let mirror = world.mirror("users", &["--once"]);
    world
        .chunk(&id, &users(), 1, &[texts(&["2", "two", "NULL"])])
        .await;
    world.wait_for_rows(chunks, &["2"]).await;
    world.publish_meta(&meta(&id, &users(), 2, 2)).await;

    assert!(mirror.wait(DEADLINE).success(), "{}", mirror.log_tail());
    assert_eq!(world.rows("SELECT id FROM users ORDER BY id"), ["1", "2"]);
    assert!(requests.is_quiet(), "the same snapshot went on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_being_seeded_does_not_stop_the_others() {
    let world = World::new().await;
    world.publish_schema(&users()).await;
    world.publish_schema(&orders()).await;
    world.snapshot(made(&users(), &[], 100, 0)).await;
    let mut requests = world.requests().await;
    let mirror = world.mirror("users,orders", &[]);
    let id = requests.promise().await;
    world.start(&id, &orders(), Compression::None).await;
    let rows = [texts(&["1", "1.00"]), texts(&["2", "2.00"])];
    world.chunk(&id, &orders(), 0, &rows[..1]).await;

    // Both tables in one transaction, while the snapshot goes on for as long as the test likes.
    for number in 1..=20_u64 {
        let events = vec![
            insert("users", user(number as i64, "new")),
            insert("orders", order(100 + number as i64, "5.00")),
        ];
        world.transaction(100 + number, events).await;
        let count = number.to_string();
        world
            .wait_for_rows("SELECT count(*) FROM users", &[&count])
            .await;
    }
    let loaded = "SELECT chunks FROM _mirror_loads";
    world.wait_for_rows(loaded, &["1"]).await;
    world.chunk(&id, &orders(), 1, &rows[1..]).await;
    world
        .publish_meta(&wire::snapshot::Meta {
            lsn: wire::Lsn(100),
            ..meta(&id, &orders(), 2, 2)
        })
        .await;

    world
        .wait_for_rows("SELECT count(*), min(id) FROM orders", &["22|1"])
        .await;
    assert_eq!(world.rows("SELECT count(*) FROM users"), ["20"]);
    assert!(!mirror.stderr().contains("differ"), "{}", mirror.stderr());
}
