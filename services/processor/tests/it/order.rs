//! Order per row, and per table across processors.

use async_nats::jetstream::consumer::PullConsumer;
use futures_util::StreamExt;
use serde_json::json;
use stack::eventually;
use wire::command::WriteOp::{Create, Delete, Update};

use crate::harness::{DEADLINE, World, newcomer, person};

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_one_row_is_kept_within_a_fetch() {
    let world = World::up().await;
    let mut number = 0;
    let mut send = async |op, data| {
        number += 1;
        world.send(&person(number, op, 101, data)).await;
    };
    for round in 0..20 {
        send(Create, json!({"name": format!("{round} a")})).await;
        send(Update, json!({"name": format!("{round} b")})).await;
        send(Update, json!({"name": format!("{round} c")})).await;
        send(Delete, json!(null)).await;
    }

    let _processor = world.processor("processor", &[]);
    world.settle(80).await;

    let done = "SELECT string_agg(concat_ws(' ', op, name), ',' ORDER BY place) FROM applied";
    let expected: Vec<_> = (0..20)
        .map(|n| format!("INSERT {n} a,UPDATE {n} b,UPDATE {n} c,DELETE"))
        .collect();
    assert_eq!(world.value(done), expected.join(","));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processors_one_is_active_and_the_other_takes_over_in_order() {
    let world = World::up().await;
    let first = world.processor("first", &[]);
    first.wait_for_line("active", DEADLINE);
    let second = world.processor("second", &[]);
    world
        .send(&person(1, Create, 101, json!({"name": "0"})))
        .await;
    for number in 1..=400 {
        let name = json!({"name": number.to_string()});
        world.send(&person(1 + number, Update, 101, name)).await;
        if number == 200 {
            eventually(DEADLINE, "some applied", || {
                world.value("SELECT count(*) FROM applied") != "0"
            });
            first.kill();
        }
    }
    second.wait_for_line("active table=\"people\"", DEADLINE);
    world.settle(401).await;

    let out_of_order = "SELECT count(*) FROM (
        SELECT name::int < lag(name::int) OVER (ORDER BY place) AS back FROM applied) t WHERE back";
    assert_eq!(world.value(out_of_order), "0");
    assert_eq!(world.value("SELECT count(*) FROM applied"), "401");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_dead_processor_had_fetched_comes_before_what_it_had_not() {
    let world = World::up().await;
    // The first processor fetches and cannot apply: the table is locked.
    let locked = world.stack.postgres().url();
    let (holder, connection) = tokio_postgres::connect(&locked, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let first = world.processor("first", &[]);
    first.wait_for_line("active", DEADLINE);
    holder
        .batch_execute("BEGIN; LOCK TABLE people")
        .await
        .unwrap();
    world.send(&newcomer(1, 101)).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE application_name LIKE 'processor people%' AND wait_event_type = 'Lock'";
    eventually(DEADLINE, "the first to wait for the lock", || {
        world.value(waiting) == "1"
    });
    first.kill();
    world
        .send(&person(2, Update, 101, json!({"name": "second"})))
        .await;

    let _second = world.processor("second", &[]);
    holder.batch_execute("ROLLBACK").await.unwrap();
    world.settle(2).await;

    let done = "SELECT string_agg(op, ' ' ORDER BY place) FROM applied";
    assert_eq!(world.value(done), "INSERT UPDATE");
}

/// One that held the lock before and has not noticed may still ask.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_went_to_somebody_else_is_not_overtaken() {
    let world = World::up().await;
    let processor = world.processor("processor", &[]);
    world
        .send(&person(1, Create, 101, json!({"name": "0"})))
        .await;
    world.settle(1).await;
    let stream = world.jetstream.get_stream("WRITES").await.unwrap();
    let consumer: PullConsumer = stream.get_consumer("people-writer").await.unwrap();
    let thief = tokio::spawn(async move {
        let mut stolen = consumer.fetch().max_messages(1).messages().await.unwrap();
        loop {
            // Never acked.
            if let Some(message) = stolen.next().await {
                return message.unwrap();
            }
            stolen = consumer.fetch().max_messages(1).messages().await.unwrap();
        }
    });

    for number in 1..=100 {
        let name = json!({"name": number.to_string()});
        world.send(&person(1 + number, Update, 101, name)).await;
    }

    let stolen = thief.await.unwrap();
    world.settle(101).await;
    assert!(stolen.info().unwrap().stream_sequence > 1);
    let out_of_order = "SELECT count(*) FROM (
        SELECT name::int < lag(name::int) OVER (ORDER BY place) AS back FROM applied) t WHERE back";
    assert_eq!(world.value(out_of_order), "0");
    assert_eq!(world.value("SELECT count(*) FROM applied"), "101");
    processor.wait_for_line("did not come here", DEADLINE);
}
