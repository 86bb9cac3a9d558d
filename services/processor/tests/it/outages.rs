//! Servers that go away and come back.

use serde_json::json;
use stack::{copy, eventually};
use wire::command::WriteOp::{Create, Update};

use crate::harness::{DEADLINE, World, newcomer, person};

#[tokio::test(flavor = "multi_thread")]
async fn while_postgresql_is_away_everything_waits_and_nothing_is_buried() {
    let world = World::up().await;
    let processor = world.processor("processor", &[]);
    processor.wait_for_line("active", DEADLINE);
    world.stack.postgres().stop();
    world
        .send(&person(1, Create, 101, json!({"name": "0"})))
        .await;
    for number in 1..=100 {
        let name = json!({"name": number.to_string()});
        world.send(&person(1 + number, Update, 101, name)).await;
    }
    processor.wait_for_line("PostgreSQL is away", DEADLINE);

    world.stack.postgres().start();
    world.settle(101).await;

    let failed = "SELECT count(*) FROM write_operations WHERE status <> 'completed'";
    assert_eq!(world.value(failed), "0");
    assert_eq!(world.value("SELECT name FROM people"), "100");
    let letters = world.jetstream.get_stream("WRITES_DLQ").await.unwrap();
    assert_eq!(letters.cached_info().state.messages, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_under_the_writes_loses_none_and_repeats_none() {
    let world = World::up().await;
    let _processor = world.processor("processor", &["--batch-max", "20"]);
    for round in 0..4 {
        for number in 0..150 {
            let number = round * 150 + number;
            world.send(&newcomer(1 + number, 1000 + number)).await;
            if number % 150 == 100 {
                world.stack.postgres().kill();
                world.stack.postgres().start();
            }
        }
    }
    world.settle(600).await;

    assert_eq!(world.value("SELECT count(*) FROM people"), "600");
    assert_eq!(world.value("SELECT count(*) FROM applied"), "600");
    let failed = "SELECT count(*) FROM write_operations WHERE status <> 'completed'";
    assert_eq!(world.value(failed), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_server_that_crashes_is_waited_for() {
    let world = World::up().await;
    let processor = world.processor("processor", &[]);
    processor.wait_for_line("active", DEADLINE);
    world.send(&newcomer(1, 101)).await;
    world.settle(1).await;
    world.stack.nats().kill();
    world.stack.nats().start();

    stack::eventually_async(DEADLINE, "a write to be taken", async || {
        let subject = format!("writes.people.{}", crate::harness::id(2));
        let payload = wire::Message::to_msgpack(&newcomer(2, 102));
        match world.jetstream.publish(subject, payload.into()).await {
            Ok(ack) => ack.await.map(drop).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    world.settle(2).await;

    assert_eq!(world.value("SELECT count(*) FROM applied"), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_a_crashed_nats_server_brings_back_are_taken_again() {
    let world = World::up().await;
    for number in 1..=20 {
        world.send(&newcomer(number, 100 + number)).await;
    }
    let nats = world.stack.nats();
    let messages = nats.store_dir().join("jetstream/APP/streams/WRITES/msgs");
    let kept = world.stack.dir().join("kept");
    nats.stop();
    copy(&messages, &kept);
    nats.start();
    let _processor = world.processor("processor", &[]);
    world.settle(20).await;

    // The consumer's state outlived the crash, the removal of its messages did not.
    nats.stop();
    std::fs::remove_dir_all(&messages).unwrap();
    copy(&kept, &messages);
    nats.start();
    world.settle(20).await;

    assert_eq!(world.value("SELECT count(*) FROM applied"), "20");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_session_begins_again_by_itself() {
    let world = World::up().await;
    let processor = world.processor("processor", &[]);
    processor.wait_for_line("active", DEADLINE);
    let sessions = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE application_name LIKE 'processor%'";
    eventually(DEADLINE, "sessions to end", || world.value(sessions) != "0");

    world.send(&newcomer(1, 101)).await;
    world.settle(1).await;

    assert_eq!(world.value("SELECT count(*) FROM applied"), "1");
}
