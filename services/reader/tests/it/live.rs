//! Live changes.

use serde_json::{Value, json};
use wire::value::Column;

use crate::harness::World;

fn title(text: &str) -> Vec<Column> {
    vec![
        Column::new("id", wire::Value::Int(1)),
        Column::new("title", wire::Value::Text(text.to_owned())),
        Column::new("secret", wire::Value::Text("s".to_owned())),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_sent_as_they_happen_without_columns_that_may_not_be_read() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;
    let mut live = reader.connect().await;
    let (status, headers) = live.ask("/changes?tables=books", &[]).await;
    assert_eq!(
        (status, headers["content-type"].as_str()),
        (200, "text/event-stream")
    );
    assert_eq!(live.event().await.0, "ready");

    world.publish("closed", 1, Vec::new()).await;
    let sequence = world.publish("books", 1, title("new")).await;

    let (name, id, data) = live.event().await;
    assert_eq!((name.as_str(), id), ("update", sequence.to_string()));
    let event: Value = serde_json::from_str(&data).unwrap();
    let expected = json!([{"name": "id", "value": 1}, {"name": "title", "value": "new"}]);
    assert_eq!(event["columns"], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_goes_on_where_it_was() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;
    let first = world.publish("books", 1, title("one")).await;
    world.publish("books", 1, title("two")).await;

    let mut live = reader.connect().await;
    let last = first.to_string();
    live.ask("/changes?tables=books", &[("Last-Event-ID", &last)])
        .await;

    assert_eq!(live.event().await.0, "ready");
    assert!(live.event().await.2.contains("two"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_place_was_pruned_is_told_to_reset() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;
    let first = world.publish("books", 1, title("one")).await;
    world.publish("books", 1, title("two")).await;
    world.publish("books", 1, title("three")).await;
    let stream = world.jetstream.get_stream("CDC").await.unwrap();
    stream.purge().await.unwrap();

    let mut live = reader.connect().await;
    let last = first.to_string();
    live.ask("/changes?tables=books", &[("Last-Event-ID", &last)])
        .await;
    assert_eq!(live.event().await.0, "reset");
    world.publish("books", 1, title("four")).await;

    assert!(live.event().await.2.contains("four"));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_beyond_the_limit_are_asked_to_come_later_and_places_are_given_back() {
    let world = World::up().await;
    let reader = world.reader(&["--live-max", "1"]).await;
    let mut live = reader.connect().await;
    assert_eq!(live.ask("/changes?tables=books", &[]).await.0, 200);

    assert_eq!(reader.get("/changes?tables=books").await.status, 503);
    drop(live);

    stack::eventually_async(crate::harness::DEADLINE, "a place", async || {
        // The server notices at the latest with the next thing it sends.
        world.publish("books", 1, title("x")).await;
        reader
            .connect()
            .await
            .ask("/changes?tables=books", &[])
            .await
            .0
            == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_reader_ends_its_streams() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;
    let mut live = reader.connect().await;
    live.ask("/changes?tables=books", &[]).await;
    live.event().await;

    let status = reader.process.terminate(crate::harness::DEADLINE);

    assert!(status.success(), "{status}");
}
