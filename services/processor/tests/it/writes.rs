//! What an accepted write becomes.

use serde_json::json;
use wire::command::WriteOp::{Create, Delete, Update};

use crate::harness::{World, command, id, newcomer, person};

#[tokio::test(flavor = "multi_thread")]
async fn accepted_writes_become_rows_and_outcomes() {
    let world = World::up().await;
    let all = json!({"name": "Alice", "age": 7, "balance": "12345678.90", "tags": ["a", "b"],
        "extra": {"deep": [1, null, "x"]}});
    world.send(&person(1, Create, 101, all)).await;
    world
        .send(&person(2, Create, 102, json!({"name": "Bob"})))
        .await;
    world
        .send(&person(
            3,
            Update,
            101,
            json!({"age": null, "name": "Alicia"}),
        ))
        .await;
    world.send(&person(4, Delete, 102, json!(null))).await;

    let _processor = world.processor("processor", &[]);
    world.settle(4).await;

    let rows = world
        .stack
        .postgres()
        .sql("SELECT name, age, balance, tags, extra FROM people");
    let expected = [
        Some("Alicia"),
        None,
        Some("12345678.90"),
        Some("{a,b}"),
        Some(r#"{"deep": [1, null, "x"]}"#),
    ];
    assert_eq!(rows, [expected.map(|text| text.map(str::to_owned))]);
    let outcomes = world.value(
        "SELECT string_agg(concat_ws(' ', status, op_type, entity_table, entity_id), ',' \
         ORDER BY operation_id) FROM write_operations WHERE created_at = '2026-01-02T03:04:05Z'",
    );
    let (alice, bob) = (id(101), id(102));
    assert_eq!(
        outcomes,
        format!(
            "completed create people {alice},completed create people {bob},\
         completed update people {alice},completed delete people {bob}"
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_operation_is_applied_once() {
    let world = World::up().await;
    for _ in 0..3 {
        world.send(&newcomer(1, 101)).await;
    }
    let _processor = world.processor("processor", &[]);
    world.settle(1).await;

    world.send(&newcomer(1, 101)).await;
    world.send(&newcomer(2, 102)).await;
    world.settle(2).await;

    assert_eq!(world.outcome(&id(1)).0, "completed");
    assert_eq!(world.value("SELECT count(*) FROM applied"), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_id_apart_from_the_operation_id_is_derived_when_absent() {
    let world = World::up().await;
    world
        .send(&command(1, Create, "people", None, json!({"name": "Eve"})))
        .await;

    let _processor = world.processor("processor", &[]);
    world.settle(1).await;

    let row = world.value("SELECT id FROM people");
    assert_ne!(row, id(1));
    assert_eq!(row, world.value("SELECT entity_id FROM write_operations"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_not_there_cannot_be_changed() {
    let world = World::up().await;
    world
        .send(&person(1, Update, 101, json!({"name": "x"})))
        .await;
    world.send(&person(2, Delete, 101, json!(null))).await;

    let _processor = world.processor("processor", &[]);
    world.settle(2).await;

    for number in [1, 2] {
        let (status, error) = world.outcome(&id(number));
        assert_eq!(
            (status.as_str(), &error["code"]),
            ("failed", &json!("not_found"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_values_stay_values() {
    let world = World::up().await;
    let text = "'); DROP TABLE people; -- \\ \" $1 \u{1F600}";
    world
        .send(&person(1, Create, 101, json!({"name": text})))
        .await;
    world
        .send(&person(2, Create, 102, json!({"name": "nul \0"})))
        .await;
    world
        .send(&person(3, Create, 103, json!({"name": "x", "id\") --": 1})))
        .await;

    let _processor = world.processor("processor", &[]);
    world.settle(3).await;

    assert_eq!(world.value("SELECT name FROM people"), text);
    assert_eq!(world.outcome(&id(2)).1["code"], "22P05");
    assert_eq!(world.outcome(&id(3)).1["code"], "42703");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_context_reaches_the_outcome() {
    let world = World::up().await;
    let write = newcomer(1, 101);
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("traceparent", traceparent);
    let subject = format!("writes.people.{}", id(1));
    let payload = wire::Message::to_msgpack(&write).into();
    let ack = world
        .jetstream
        .publish_with_headers(subject, headers, payload)
        .await;
    ack.unwrap().await.unwrap();

    let _processor = world.processor("processor", &[]);
    world.settle(1).await;

    assert_eq!(
        world.value("SELECT traceparent FROM write_operations"),
        traceparent
    );
}
