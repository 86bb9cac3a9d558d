//! `Prefer: wait`.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::json;
use stack::eventually_async;
use wire::{Column, Event, Message, Value};

use crate::harness::{Answer, DEADLINE, Gateway, World, new_id};

async fn post_and_wait(gateway: &Gateway, key: &str, seconds: u32) -> Answer {
    let prefer = format!("wait={seconds}");
    let headers = [("idempotency-key", key), ("prefer", prefer.as_str())];
    gateway
        .send("POST", "/users", &headers, r#"{"name":"Alice"}"#)
        .await
}

/// What the bridge publishes when the processor has written its row.
fn event(operation_id: &str, status: &str, error: Value) -> Event {
    let json = json!({
        "table": "write_operations", "operation": "INSERT", "relation_id": 1, "lsn": "0/10",
        "columns": [], "commit_lsn": "0/2A", "seq": 1,
    });
    let mut event = Event::decode(json.to_string().as_bytes()).unwrap();
    let text = |text: &str| Value::Text(text.to_owned());
    event.columns = vec![
        Column::new("operation_id", text(operation_id)),
        Column::new("entity_table", text("users")),
        Column::new("status", text(status)),
        Column::new("error", error),
        Column::new("completed_at", text("2025-12-31 23:59:59+00")),
    ];
    event
}

/// Plays processor and bridge: applies the first command in the queue.
async fn apply(world: &World, status: &str, error: Value) {
    eventually_async(DEADLINE, "the write is queued", async || {
        match world.context.get_stream("WRITES").await {
            Ok(stream) => stream
                .get_info()
                .await
                .is_ok_and(|info| info.state.messages == 1),
            Err(_) => false,
        }
    })
    .await;
    let (command, _) = world.command(1).await;
    let event = event(&command.operation_id, status, error);
    let client = world.context.client();
    client
        .publish("cdc.write_operations.insert", event.to_msgpack().into())
        .await
        .unwrap();
    client.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outcome_comes_in_the_same_response() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let key = new_id();

    let (answer, ()) = tokio::join!(
        post_and_wait(&gateway, &key, 20),
        apply(&world, "completed", Value::Null)
    );

    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("preference-applied"), "wait=20");
    assert_eq!(answer.body["status"], "completed");
    assert_eq!(answer.body["operationId"], key);
    assert_eq!(answer.body["lsn"], "0/2A");
    assert!(answer.body["acceptedAt"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_is_a_problem_with_the_reason() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let error = r#"{"code":"23505","constraint":"users_email_key","message":"email is taken"}"#;

    let (answer, ()) = tokio::join!(
        post_and_wait(&gateway, "1", 20),
        apply(&world, "failed", Value::Text(error.to_owned()))
    );

    assert_eq!((answer.status, answer.problem()), (422, "write-failed"));
    assert_eq!(answer.body["detail"], "email is taken");
    assert_eq!(
        answer.body["operation"]["error"]["constraint"],
        "users_email_key"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_outcome_in_time_the_write_is_pending() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let started = Instant::now();

    let answer = post_and_wait(&gateway, &new_id(), 1).await;

    assert_eq!(
        (answer.status, &answer.body["status"]),
        (202, &json!("pending"))
    );
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_from_before_the_request_is_asked_for() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let key = new_id();
    assert_eq!(post_and_wait(&gateway, &key, 1).await.status, 202);

    let client = world.context.client();
    let mut questions = client.subscribe("operations.status.*").await.unwrap();
    let answering = tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            let id = question.subject.strip_prefix("operations.status.");
            let status = json!({"operationId": id, "status": "completed"}).to_string();
            client
                .publish(question.reply.unwrap(), status.into())
                .await
                .unwrap();
        }
    });
    let answer = post_and_wait(&gateway, &key, 20).await;

    assert_eq!(
        (answer.status, &answer.body["status"]),
        (200, &json!("completed"))
    );
    answering.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_does_not_wait_for_outcomes() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let started = Instant::now();

    let shutdown = async {
        eventually_async(DEADLINE, "the write is accepted", async || {
            world
                .context
                .get_stream("WRITES")
                .await
                .unwrap()
                .get_info()
                .await
                .unwrap()
                .state
                .messages
                == 1
        })
        .await;
        gateway.process.signal(stack::Signal::TERM);
    };
    let (answer, ()) = tokio::join!(post_and_wait(&gateway, "1", 30), shutdown);

    assert_eq!(answer.status, 202, "{answer:?}");
    assert!(started.elapsed() < Duration::from_secs(25));
    assert!(gateway.process.wait(DEADLINE).success());
}
