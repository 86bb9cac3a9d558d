//! One write, all the way round; and tables that nobody told the services about.

use futures_util::StreamExt;
use serde_json::json;
use stack::eventually_async;
use wire::{Event, Message, Value};

use crate::http::Events;
use crate::world::{DEADLINE, World, new_id};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test(flavor = "multi_thread")]
async fn one_write_travels_the_whole_circle() {
    let world = World::up().await;
    let client = world.jetstream.client();
    let mut commands = client.subscribe("writes.>").await.unwrap();
    let mut outcomes = client.subscribe("cdc.write_operations.*").await.unwrap();
    client.flush().await.unwrap();
    let mut live = world.reader().events("/changes?tables=users").await;
    let key = new_id();

    let headers = [
        ("idempotency-key", key.as_str()),
        ("prefer", "wait=60"),
        ("traceparent", TRACE),
    ];
    let body = json!({"name": "Ada", "email": "ada@example.com"}).to_string();
    let answer = world
        .gateway()
        .send("POST", "/users", &headers, &body)
        .await;

    // The client.
    assert_eq!(answer.status, 200, "{answer:?}");
    let outcome = answer.json();
    assert_eq!(outcome["status"], "completed");
    assert_eq!(outcome["operationId"], key);
    let id = outcome["entityId"].as_str().unwrap();
    let lsn = outcome["lsn"].as_str().unwrap();
    // The queue.
    let command = commands.next().await.unwrap();
    assert_eq!(command.subject.as_str(), format!("writes.users.{key}"));
    let headers = command.headers.unwrap();
    assert_eq!(headers.get("traceparent").unwrap().as_str(), TRACE);
    // PostgreSQL.
    let row = format!("SELECT name FROM users WHERE id = '{id}'");
    assert_eq!(world.value(&row), "Ada");
    assert_eq!(
        world.value("SELECT traceparent FROM write_operations"),
        TRACE
    );
    // The change stream.
    let event = Event::decode(&outcomes.next().await.unwrap().payload).unwrap();
    let trace = event
        .columns
        .iter()
        .find(|column| column.name == "traceparent");
    assert_eq!(trace.unwrap().value, Value::Text(TRACE.to_owned()));
    // The reader.
    let status = world.reader().get(answer.header("location")).await.json();
    assert_eq!(status["status"], "completed");
    assert_eq!(status["entityId"], id);
    let path = format!("/users/{id}");
    let read = world.reader().get_with(&path, &[("x-min-lsn", lsn)]).await;
    assert_eq!((read.status, &read.json()["name"]), (200, &json!("Ada")));
    let change = live.next().await.unwrap();
    assert_eq!(change.name, "insert");
    assert_eq!(change.json()["table"], "users");
}

/// Whoever waits for the outcome of a write reads it, every time, however warm the cache is.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_behind_a_write_sees_it() {
    let world = World::up().await;
    let id = new_id();
    let path = format!("/users/{id}");
    let row = json!({"id": id, "name": "0", "email": "a@example.com"});
    let created = world.gateway().write("POST", "/users", &row).await;
    assert_eq!(created.status, 200, "{created:?}");

    for number in 1..=100 {
        let name = number.to_string();
        world.reader().get(&path).await;
        let answer = world
            .gateway()
            .write("PATCH", &path, &json!({"name": name}))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let outcome = answer.json();
        let lsn = outcome["lsn"].as_str().unwrap();

        let read = world.reader().get_with(&path, &[("x-min-lsn", lsn)]).await;

        assert_eq!(read.json()["name"], name, "{read:?}");
    }
    let gone = world
        .gateway()
        .write("DELETE", &path, &json!({}))
        .await
        .json();
    let lsn = gone["lsn"].as_str().unwrap();
    let read = world.reader().get_with(&path, &[("x-min-lsn", lsn)]).await;
    assert_eq!(read.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_says_so_everywhere() {
    let world = World::up().await;
    let path = format!("/users/{}", new_id());

    let missing = world
        .gateway()
        .write("PATCH", &path, &json!({"name": "nobody"}))
        .await;

    assert_eq!(missing.status, 422, "{missing:?}");
    assert_eq!(missing.json()["operation"]["error"]["code"], "not_found");
    let status = world.reader().get(missing.header("location")).await.json();
    assert_eq!(status["status"], "failed");
    assert_eq!(status["error"]["code"], "not_found");

    let order = json!({"user_id": "not a uuid", "total": "1.00"});
    let refused = world.gateway().write("POST", "/orders", &order).await;
    assert_eq!(refused.status, 422, "{refused:?}");
    assert_eq!(refused.json()["type"], "urn:gateway:invalid-columns");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_added_by_sql_alone_goes_round_without_a_restart() {
    let world = World::up().await;
    assert_eq!(world.reader().get("/books").await.status, 404);

    world.sql(
        "CREATE TABLE books (id integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
            title text NOT NULL, price numeric(10,2));
         GRANT SELECT ON books TO app_reader, bridge_reader;
         GRANT SELECT, INSERT, UPDATE, DELETE ON books TO app_writer;
         ALTER PUBLICATION cdc_pub ADD TABLE books",
    );

    world.gateway().documents("/books").await;
    world.reader().documents("/books/{id}").await;
    let mut live = world.reader().events("/changes?tables=books").await;
    let book = json!({"title": "Notes", "price": "18.43"});
    let created = world.gateway().write("POST", "/books", &book).await;
    assert_eq!(created.status, 200, "{created:?}");
    let outcome = created.json();
    // PostgreSQL made the key, and it is no UUID.
    assert_eq!(outcome["entityId"], "1", "{outcome}");
    let lsn = outcome["lsn"].as_str().unwrap();
    let read = world
        .reader()
        .get_with("/books/1", &[("x-min-lsn", lsn)])
        .await;
    assert_eq!(
        read.json(),
        json!({"id": 1, "title": "Notes", "price": "18.43"})
    );
    assert_eq!(live.next().await.unwrap().name, "insert");

    world.sql("REVOKE ALL ON books FROM app_reader, app_writer");
    eventually_async(DEADLINE, "a closed table", async || {
        let read = world.reader().get("/books/1").await.status;
        let write = world.gateway().write("POST", "/books", &book).await.status;
        let statuses = (read, write);
        (statuses == (403, 403))
            .then_some(())
            .ok_or(format!("{statuses:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_misses_no_change() {
    let world = World::up().await;
    let mut live = world.reader().events("/changes?tables=users").await;
    let user = |name: &str| json!({"name": name, "email": format!("{name}@example.com")});
    world.gateway().write("POST", "/users", &user("one")).await;
    let first = live.next().await.unwrap();
    drop(live);
    world.gateway().write("POST", "/users", &user("two")).await;

    let path = "/changes?tables=users";
    let mut live = Events::open(world.reader().addr, path, &first.id)
        .await
        .unwrap();

    let second = live.next().await.unwrap();
    assert!(second.data.contains("\"two\""), "{second:?}");
}
