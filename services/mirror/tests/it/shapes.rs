//! Schemas that change under the mirror.

use wire::schema::SchemaChanged;
use wire::{Column, Lsn, Message, Position, Value, names};

use crate::harness::*;

fn of_version(mut event: wire::Event, version: u32) -> wire::Event {
    event.schema_version = version;
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_added_dropped_and_renamed_with_the_first_row_of_the_new_shape() {
    let world = World::with_users(&[&["1", "one", "x"]]).await;
    world.insert_user(110, 2, "two").await;
    world.catch_up("users");

    let swapped = schema(
        "users",
        2,
        &[
            (1, "id", "integer"),
            (2, "bio", "text"),
            (3, "name", "text"),
        ],
        &["id"],
    );
    let grown = schema(
        "users",
        3,
        &[
            (1, "key", "integer"),
            (2, "bio", "text"),
            (4, "age", "integer"),
        ],
        &["key"],
    );
    world.publish_schema(&swapped).await;
    world.publish_schema(&grown).await;
    let row = vec![int("key", 3), string("bio", "three"), int("age", 33)];
    world
        .transaction(120, vec![of_version(insert("users", row), 3)])
        .await;
    let log = world.catch_up("users");

    assert_eq!(
        world.rows("SELECT key, bio, age FROM users ORDER BY key"),
        ["1|one|NULL", "2|two|NULL", "3|three|33"]
    );
    assert!(!log.contains("seeded"), "{log}");
    let unlike = world.try_rows("SELECT name FROM users");
    assert!(unlike.is_err(), "the column is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_type_seeds_the_table_anew() {
    let world = World::with_users(&[&["1", "one", "x"]]).await;
    world.catch_up("users");
    let mut requests = world.requests().await;
    let retyped = schema(
        "users",
        2,
        &[(1, "id", "text"), (2, "name", "text"), (3, "bio", "text")],
        &["id"],
    );
    world.publish_schema(&retyped).await;
    let row = vec![
        string("id", "2"),
        string("name", "two"),
        Column::new("bio", Value::Null),
    ];
    let sequence = world
        .transaction(120, vec![of_version(insert("users", row), 2)])
        .await;

    let mirror = world.mirror("users", &["--once"]);
    let rows: &[&[&str]] = &[&["1", "one", "x"], &["2", "two", "NULL"]];
    requests.answer(made(&retyped, rows, 121, sequence)).await;

    assert!(mirror.wait(DEADLINE).success(), "{}", mirror.log_tail());
    assert_eq!(
        world.rows("SELECT id, typeof(id) FROM users ORDER BY id"),
        ["1|text", "2|text"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_changed_without_events_are_read_anew_when_it_is_announced() {
    let world = World::with_users(&[&["1", "one", "x"]]).await;
    let mirror = world.mirror("users", &[]);
    world.wait_for_rows("SELECT bio FROM users", &["x"]).await;
    mirror.wait_for_line("follows the stream", DEADLINE);
    let mut requests = world.requests().await;
    let changed = SchemaChanged {
        table: "users".to_owned(),
        schema: "public".to_owned(),
        version: 1,
        valid_from: Position::new(Lsn(150), 1),
        resnapshot: true,
        reason: "ALTER TYPE with a rewrite".to_owned(),
    };

    let client = world.context.client();
    let subject = names::schema_changed("public", "users");
    client
        .publish(subject, changed.to_msgpack().into())
        .await
        .unwrap();
    requests
        .answer(made(&users(), &[&["1", "one", "X"]], 151, 0))
        .await;

    world.wait_for_rows("SELECT bio FROM users", &["X"]).await;
}
