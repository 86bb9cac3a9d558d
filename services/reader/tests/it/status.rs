//! What became of a write.

use std::time::Instant;

use serde_json::json;
use wire::Message;
use wire::command::{WriteCommand, WriteOp};
use wire::value::Column;

use crate::harness::{DEADLINE, World};

const ID: &str = "0191d2a0-7b7a-7cc3-8e6b-000000000001";

async fn queue(world: &World) {
    let command = WriteCommand {
        operation_id: ID.to_owned(),
        table: "books".to_owned(),
        op: WriteOp::Create,
        entity_id: Some("1".to_owned()),
        data: serde_json::Map::new(),
        principal: None,
        claims: None,
        accepted_at: "2026-01-02T03:04:05Z".to_owned(),
        body_sha256: String::new(),
        schema: "public".to_owned(),
    };
    let ack = world
        .jetstream
        .publish(format!("writes.books.{ID}"), command.to_msgpack().into())
        .await;
    ack.unwrap().await.unwrap();
}

fn complete(world: &World) {
    world.sql(&format!(
        "INSERT INTO write_operations (operation_id, entity_table, entity_key, op_type, status,
                                       completed_at)
         VALUES ('{ID}', 'books', '1', 'create', 'completed', now())"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_never_seen_is_404() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;

    assert_eq!(reader.get(&format!("/status/{ID}")).await.status, 404);
    assert_eq!(reader.get("/status/not-a-uuid").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_write_is_pending_from_the_first_poll_though_no_processor_runs() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;
    queue(&world).await;

    let answer = reader.get(&format!("/status/{ID}")).await;

    let expected = json!({"operationId": ID, "status": "pending", "table": "books",
        "entityId": "1", "acceptedAt": "2026-01-02T03:04:05Z"});
    assert_eq!((answer.status, answer.json()), (200, expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_write_names_an_lsn_that_shows_it() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;
    world.sql("INSERT INTO books (id) VALUES (1)");
    complete(&world);

    let status = reader.get(&format!("/status/{ID}")).await.json();
    let lsn = status["lsn"].as_str().unwrap();
    let row = reader.get_with("/books/1", &[("X-Min-LSN", lsn)]).await;

    assert_eq!(
        (&status["status"], &status["entityId"]),
        (&json!("completed"), &json!("1"))
    );
    assert_eq!(row.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_says_why() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;
    world.sql(&format!(
        "INSERT INTO write_operations (operation_id, entity_table, op_type, status, error)
         VALUES ('{ID}', 'books', 'create', 'failed',
                 '{{\"code\": \"23505\", \"constraint\": \"books_pkey\", \"message\": \"twice\"}}')"
    ));

    let status = reader.get(&format!("/status/{ID}")).await.json();

    let error = json!({"code": "23505", "constraint": "books_pkey", "message": "twice"});
    assert_eq!(
        (&status["status"], &status["error"]),
        (&json!("failed"), &error)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_request_is_answered_when_the_outcome_is_there() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;
    queue(&world).await;
    let path = format!("/status/{ID}?wait=30");
    let began = Instant::now();
    let mut connection = reader.connect().await;
    let waiting = tokio::spawn(async move { connection.get(&path, &[]).await });

    complete(&world);
    let id = vec![Column::new(
        "operation_id",
        wire::Value::Text(ID.to_owned()),
    )];
    world.publish("write_operations", 0, id).await;

    assert_eq!(waiting.await.unwrap().json()["status"], "completed");
    assert!(began.elapsed() < DEADLINE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_is_over_says_pending() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;
    queue(&world).await;

    let answer = reader.get(&format!("/status/{ID}?wait=1")).await;

    assert_eq!(
        (answer.status, &answer.json()["status"]),
        (200, &json!("pending"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_the_status_ends_with_the_outcome() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;
    queue(&world).await;
    let mut events = reader.connect().await;
    let path = format!("/status/{ID}");
    events.ask(&path, &[("Accept", "text/event-stream")]).await;

    assert!(events.event().await.2.contains("pending"));
    complete(&world);

    assert!(events.event().await.2.contains("completed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_can_ask_over_nats() {
    let world = World::up().await;
    let _reader = world.reader(&[]).await;
    complete(&world);
    let client = async_nats::connect(world.stack.nats().url()).await.unwrap();

    let answer = client
        .request(format!("operations.status.{ID}"), "".into())
        .await;

    let status = wire::command::OperationStatus::decode(&answer.unwrap().payload).unwrap();
    assert_eq!(status.status, wire::command::Status::Completed);
}
