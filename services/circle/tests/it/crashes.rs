//! kill -9 of every process and of every server in turn, under load.
//!
//! In: clients that repeat each write with the same key until it is accepted. Out: what was applied, in which order.
//! Must hold: every accepted write is applied exactly once, and the writes to one row in the order they were accepted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::json;
use stack::eventually_async;
use wire::{Event, Message, Value};

use crate::http::{self, Events};
use crate::world::{DEADLINE, World, new_id};

const WRITERS: usize = 6;
/// Writes that must be accepted between two crashes.
const BETWEEN: usize = 40;
/// Between two writes of one writer, so that the machine is not the thing under test.
const PACE: Duration = Duration::from_millis(5);

/// What one writer got accepted: the names its row had, in order.
struct Written {
    row: String,
    names: Vec<String>,
}

#[derive(Default)]
struct Load {
    accepted: AtomicUsize,
    ends: AtomicBool,
}

/// Gives its row one name after another, each only when the one before was accepted.
async fn write(gateway: SocketAddr, load: Arc<Load>) -> Written {
    let row = new_id();
    let mut names = Vec::new();
    while !load.ends.load(Ordering::Relaxed) {
        let name = format!("{row} {}", names.len());
        let key = new_id();
        let (method, path, body) = if names.is_empty() {
            let body = json!({"id": row, "name": name, "email": row});
            ("POST", "/users".to_owned(), body)
        } else {
            ("PATCH", format!("/users/{row}"), json!({"name": name}))
        };
        let (headers, body) = ([("idempotency-key", key.as_str())], body.to_string());
        loop {
            let answer = http::send(gateway, method, &path, &headers, body.as_bytes()).await;
            match answer {
                Ok(answer) if answer.status == 202 => break,
                // Not there, or not ready: the same again.
                Ok(answer) if answer.status == 503 => {}
                Err(_) => {}
                Ok(answer) => panic!("{method} {path}: {answer:?}"),
            }
            tokio::time::sleep(10 * PACE).await;
        }
        names.push(name);
        load.accepted.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PACE).await;
    }
    Written { row, names }
}

/// Adds the names that `/changes` shows, through every crash of the reader, for ever.
async fn follow(reader: SocketAddr, names: Arc<Mutex<Vec<String>>>) {
    let mut last_id = String::new();
    loop {
        if let Ok(mut events) = Events::open(reader, "/changes?tables=users", &last_id).await {
            while let Ok(event) = events.next().await {
                assert_ne!(event.name, "reset", "{event:?}");
                let columns = event.json()["columns"].clone();
                let mut columns = columns.as_array().unwrap().iter();
                let column = columns.find(|column| column["name"] == "name").unwrap();
                let name = column["value"].as_str().unwrap().to_owned();
                names.lock().unwrap().push(name);
                last_id = event.id;
            }
        }
        tokio::time::sleep(10 * PACE).await;
    }
}

/// Waits until so many more writes were accepted.
async fn more(load: &Load, count: usize) {
    let goal = load.accepted.load(Ordering::Relaxed) + count;
    eventually_async(DEADLINE, "more accepted writes", async || {
        let accepted = load.accepted.load(Ordering::Relaxed);
        (goal <= accepted)
            .then_some(())
            .ok_or(format!("{accepted} of {goal}"))
    })
    .await;
}

fn by_row(names: impl IntoIterator<Item = String>) -> BTreeMap<String, Vec<String>> {
    let mut rows = BTreeMap::<_, Vec<_>>::new();
    for name in names {
        let row = name.split(' ').next().unwrap().to_owned();
        rows.entry(row).or_default().push(name);
    }
    rows
}

/// Every change of `users` in the stream, in its order, with the positions checked.
async fn stream(world: &World, count: usize) -> Vec<String> {
    let stream = world.jetstream.get_stream("CDC").await.unwrap();
    let config = async_nats::jetstream::consumer::pull::OrderedConfig {
        filter_subject: "cdc.users.*".to_owned(),
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut messages = consumer.messages().await.unwrap();
    let mut names = Vec::new();
    let mut last = (wire::Lsn(0), 0);
    while names.len() < count {
        let message = tokio::time::timeout(DEADLINE, messages.next()).await;
        let message = message.expect("an event").unwrap().unwrap();
        let event = Event::decode(&message.payload).unwrap();
        let position = (event.commit_lsn, event.seq);
        assert!(last < position, "{last:?} before {position:?}");
        last = position;
        let name = event.columns.iter().find(|column| column.name == "name");
        match &name.unwrap().value {
            Value::Text(name) => names.push(name.clone()),
            other => panic!("{other:?} is no name"),
        }
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn under_kill_9_of_everything_each_accepted_write_is_applied_once_and_in_order() {
    let mut world = World::up().await;
    let load = Arc::new(Load::default());
    let shown = Arc::new(Mutex::new(Vec::new()));
    let gateway = world.gateway().addr;
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| tokio::spawn(write(gateway, load.clone())))
        .collect();
    let live = tokio::spawn(follow(world.reader().addr, shown.clone()));

    for round in 1..=2 {
        more(&load, BETWEEN).await;
        world.gateways[0].crash();
        more(&load, BETWEEN).await;
        world.processors[0].crash();
        more(&load, BETWEEN).await;
        world.bridge.crash();
        more(&load, BETWEEN).await;
        world.readers[0].crash();
        more(&load, BETWEEN).await;
        world.stack.redis().kill();
        world.stack.redis().start();
        more(&load, BETWEEN).await;
        world.stack.postgres().kill();
        // Writes are accepted without it.
        more(&load, BETWEEN).await;
        world.stack.postgres().start();
        more(&load, BETWEEN).await;
        world.stack.nats().kill();
        world.stack.nats().start();
        more(&load, BETWEEN).await;
        println!(
            "round {round}: {} accepted",
            load.accepted.load(Ordering::Relaxed)
        );
    }
    load.ends.store(true, Ordering::Relaxed);
    let written: Vec<Written> = join_all(writers)
        .await
        .into_iter()
        .collect::<Result<_, _>>()
        .unwrap();
    let accepted = load.accepted.load(Ordering::Relaxed);
    world.ready().await;
    world.settle(accepted).await;

    // PostgreSQL applied each of them once, in order.
    assert_eq!(world.outcomes(), format!("completed {accepted}"));
    assert_eq!(world.messages("WRITES_DLQ").await, 0);
    let expected: BTreeMap<_, _> = written
        .into_iter()
        .map(|written| (written.row, written.names))
        .collect();
    let applied = world.sql("SELECT name FROM applied ORDER BY place");
    let applied = applied.into_iter().map(|row| row[0].clone().unwrap());
    assert!(by_row(applied) == expected, "applied otherwise");
    // So did the change stream, and whoever followed it through the reader.
    let streamed = stream(&world, accepted).await;
    assert!(by_row(streamed) == expected, "streamed otherwise");
    eventually_async(DEADLINE, "every change shown", async || {
        assert!(!live.is_finished(), "see the panic above");
        let count = shown.lock().unwrap().len();
        (accepted <= count)
            .then_some(())
            .ok_or(format!("{count} of {accepted}"))
    })
    .await;
    live.abort();
    let shown = std::mem::take(&mut *shown.lock().unwrap());
    assert!(by_row(shown) == expected, "shown otherwise");
    // And the cache holds nothing older.
    for (row, names) in &expected {
        let path = format!("/users/{row}");
        eventually_async(DEADLINE, "the last name", async || {
            let read = world.reader().get(&path).await;
            let name = read.json()["name"].clone();
            (Some(&name) == names.last().map(|name| json!(name)).as_ref())
                .then_some(())
                .ok_or(read.body)
        })
        .await;
    }
}
