//! NATS slow, full, or away.

use std::time::Instant;

use serde_json::json;
use stack::eventually_async;
use wire::names::STREAM_WRITE_KEYS;

use crate::harness::{DEADLINE, World, new_id};

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_it_says_so_opens_the_breaker_and_recovers_by_itself() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let body = json!({"name": "Alice"});

    world.stack.nats().kill();
    eventually_async(DEADLINE, "the gateway sees the outage", async || {
        gateway.get("/health").await.status == 503
    })
    .await;
    for _ in 0..5 {
        let answer = gateway.post("users", "1", &body).await;
        assert_eq!(
            (answer.status, answer.problem()),
            (503, "queue-unavailable")
        );
        assert!(answer.retry_after_s() >= 1);
    }
    let answer = gateway.post("users", "1", &body).await;
    assert_eq!((answer.status, answer.problem()), (503, "breaker-open"));
    assert!((1..=10).contains(&answer.retry_after_s()), "{answer:?}");
    assert_eq!(gateway.get("/health").await.body["breaker"], "open");

    world.stack.nats().start();
    eventually_async(DEADLINE, "the gateway recovers", async || {
        gateway.post("users", "1", &body).await.status == 202
    })
    .await;
    assert_eq!(gateway.get("/health").await.body["breaker"], "closed");
    assert_eq!(world.queued().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_starts_before_nats_waits_for_it() {
    let world = World::new().await;
    world.stack.nats().kill();

    let gateway = world.start_gateway(&[]);
    let answer = gateway.post("users", "1", &json!({"name": "Alice"})).await;
    assert_eq!((answer.status, answer.problem()), (503, "no-schemas"));
    world.stack.nats().start();

    gateway.ready().await;
    assert_eq!(
        gateway
            .post("users", "1", &json!({"name": "Alice"}))
            .await
            .status,
        202
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_until_it_is_drained() {
    let world = World::new().await;
    let gateway = world.gateway(&["--queue-messages-max", "3"]).await;
    let body = json!({"name": "Alice"});
    for key in ["1", "2", "3"] {
        assert_eq!(gateway.post("users", key, &body).await.status, 202);
    }

    for _ in 0..10 {
        let answer = gateway.post("users", "4", &body).await;
        assert_eq!((answer.status, answer.problem()), (503, "queue-full"));
        assert!((1..=60).contains(&answer.retry_after_s()));
    }
    assert_eq!(
        gateway.get("/health").await.body["breaker"],
        "closed",
        "the server is there"
    );
    world.writes().await.delete_message(1).await.unwrap();

    assert_eq!(gateway.post("users", "4", &body).await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_advice_grows_with_a_queue_that_nobody_empties() {
    let world = World::new().await;
    let gateway = world.gateway(&["--queue-messages-max", "1"]).await;
    let body = json!({"name": "Alice"});
    assert_eq!(gateway.post("users", "1", &body).await.status, 202);

    eventually_async(DEADLINE, "a minute is advised", async || {
        let answer = gateway.post("users", "2", &body).await;
        if answer.retry_after_s() == 60 {
            Ok(())
        } else {
            Err(format!("{answer:?}"))
        }
    })
    .await;
    assert!(
        gateway
            .get("/metrics")
            .await
            .text
            .contains("gateway_backlog_messages 1\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_beyond_the_limit_in_flight_are_turned_away_at_once() {
    let world = World::new().await;
    let gateway = world.gateway(&["--in-flight-max", "2"]).await;
    let body = json!({"name": "Alice"});
    world.stack.nats().pause();

    let third = async {
        eventually_async(DEADLINE, "two writes are in flight", async || {
            gateway.get("/health").await.body["inFlight"] == 2
        })
        .await;
        let started = Instant::now();
        let answer = gateway.post("users", "3", &body).await;
        assert_eq!((answer.status, answer.problem()), (503, "busy"));
        assert!(
            started.elapsed().as_millis() < 1000,
            "{:?}",
            started.elapsed()
        );
        world.stack.nats().resume();
    };
    let (first, second, ()) = tokio::join!(
        gateway.post("users", "1", &body),
        gateway.post("users", "2", &body),
        third
    );

    // The server was still within the time for an ack.
    assert_eq!((first.status, second.status), (202, 202));
    assert_eq!(gateway.post("users", "3", &body).await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_ack_was_lost_is_queued_once_when_it_is_repeated() {
    let world = World::new().await;
    let relay = stack::Relay::to(world.stack.nats().addr()).unwrap();
    let url = format!("nats://{}", relay.addr());
    let gateway = world.gateway(&["--nats-url", &url]).await;
    let (key, body) = (new_id(), json!({"name": "Alice"}));

    relay.stall(stack::Direction::ToClient);
    let answer = gateway.post("users", &key, &body).await;
    assert_eq!(
        (answer.status, answer.problem()),
        (503, "queue-unavailable")
    );
    relay.heal();

    eventually_async(DEADLINE, "the repeat is accepted", async || {
        gateway.post("users", &key, &body).await.status == 202
    })
    .await;
    assert_eq!(world.queued().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_were_deleted_are_made_again() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let body = json!({"name": "Alice"});
    assert_eq!(gateway.post("users", "1", &body).await.status, 202);

    for stream in ["WRITES", "WRITE_KEYS"] {
        world.context.delete_stream(stream).await.unwrap();
    }

    eventually_async(DEADLINE, "writes are accepted again", async || {
        gateway.post("users", "2", &body).await.status == 202
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_when_all_keys_are_too_old() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let body = json!({"name": "Alice"});
    assert_eq!(gateway.post("users", "1", &body).await.status, 202);
    drop(gateway);
    let keys = world.context.get_stream(STREAM_WRITE_KEYS).await.unwrap();
    keys.purge().await.unwrap();

    let gateway = world.gateway(&[]).await;

    assert_eq!(gateway.post("users", "2", &body).await.status, 202);
    let other = json!({"name": "Bob"});
    assert_eq!(gateway.post("users", "2", &other).await.status, 422);
}
