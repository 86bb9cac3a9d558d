//! A server that is away for a while, a message nobody can read, and more load than there is room for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use stack::eventually_async;

use crate::http;
use crate::world::{DEADLINE, Replicas, World, new_id};

/// Seconds without PostgreSQL; by hand more than the least that shows something.
const AWAY: &str = "CIRCLE_POSTGRES_AWAY_S";

#[tokio::test(flavor = "multi_thread")]
async fn while_postgresql_is_away_writes_are_accepted_and_nothing_is_lost_or_buried() {
    let world = World::up().await;
    let mut locations = Vec::new();
    world.stack.postgres().stop();

    let mut accepted = 0;
    let until = std::env::var(AWAY).map_or(0, |seconds| seconds.parse().unwrap());
    let until = tokio::time::Instant::now() + Duration::from_secs(until);
    let is_noticed = || {
        let log = world.processors[0].process.stderr();
        3 <= log.matches("PostgreSQL is away").count()
    };
    while tokio::time::Instant::now() < until || accepted < 100 || !is_noticed() {
        let id = new_id();
        let headers = [("idempotency-key", id.as_str())];
        let body = json!({"name": "away", "email": id}).to_string();
        let answer = world
            .gateway()
            .send("POST", "/users", &headers, &body)
            .await;
        assert_eq!(answer.status, 202, "{answer:?}");
        accepted += 1;
        if accepted % 50 == 1 {
            let location = answer.header("location").to_owned();
            // From the very first poll on, with neither PostgreSQL nor processor.
            let status = world.reader().get(&location).await;
            assert_eq!(status.json()["status"], "pending", "{status:?}");
            locations.push(location);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.stack.postgres().start();
    world.settle(accepted).await;

    assert_eq!(world.outcomes(), format!("completed {accepted}"));
    assert_eq!(
        world.value("SELECT count(*) FROM users"),
        accepted.to_string()
    );
    assert_eq!(world.messages("WRITES_DLQ").await, 0);
    for location in locations {
        let status = world.reader().get(&format!("{location}?wait=60")).await;
        assert_eq!(status.json()["status"], "completed", "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_harms_only_itself() {
    let world = World::up().await;
    let user = |name: &str| json!({"name": name, "email": format!("{name}@example.com")});
    let before = world
        .gateway()
        .write("POST", "/users", &user("before"))
        .await;
    assert_eq!(before.status, 200, "{before:?}");
    let poison = new_id();

    let subject = format!("writes.users.{poison}");
    let published = world.jetstream.publish(subject, "\u{1}poison".into()).await;
    published.unwrap().await.unwrap();
    let after = world
        .gateway()
        .write("POST", "/users", &user("after"))
        .await;

    assert_eq!(after.status, 200, "{after:?}");
    let status = world
        .reader()
        .get(&format!("/status/{poison}?wait=60"))
        .await;
    assert_eq!(status.json()["status"], "failed", "{status:?}");
    assert_eq!(status.json()["error"]["code"], "unreadable", "{status:?}");
    assert_eq!(world.messages("WRITES_DLQ").await, 1);
    assert_eq!(world.value("SELECT count(*) FROM users"), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_times_the_load_is_refused_with_503_and_forgotten() {
    const ROOM: usize = 20;
    let flags = ["--in-flight-max", &ROOM.to_string()];
    let world = World::up_with(Replicas::default(), &flags).await;
    let gateway = world.gateway();
    let refused = AtomicUsize::new(0);
    let post = async |key: &str| {
        let headers = [("idempotency-key", key)];
        let body = json!({"name": "load", "email": key}).to_string();
        let answer = http::send(gateway.addr, "POST", "/users", &headers, body.as_bytes()).await;
        let answer = answer.expect("an answer, whatever the load");
        refused.fetch_add((answer.status == 503).into(), Ordering::Relaxed);
        answer
    };

    // A queue that does not answer for a moment fills every place.
    let keys: Vec<_> = (0..10 * ROOM).map(|_| new_id()).collect();
    world.stack.nats().pause();
    let requests = join_all(keys.iter().map(|key| post(key)));
    let resume = async {
        eventually_async(DEADLINE, "no place left", async || {
            let refused = refused.load(Ordering::Relaxed);
            (9 * ROOM <= refused)
                .then_some(())
                .ok_or(format!("{refused} refused"))
        })
        .await;
        world.stack.nats().resume();
    };
    let (answers, ()) = tokio::join!(requests, resume);

    for answer in &answers {
        match answer.status {
            202 => {}
            503 => {
                let seconds: u64 = answer.header("retry-after").parse().unwrap();
                assert!((1..=60).contains(&seconds), "{answer:?}");
            }
            _ => panic!("{answer:?}"),
        }
    }

    // The same keys again, until all are in: no restart, nothing twice.
    for key in &keys {
        eventually_async(DEADLINE, "room again", async || {
            let answer = post(key).await;
            (answer.status == 202).then_some(()).ok_or(answer.body)
        })
        .await;
    }
    world.settle(10 * ROOM).await;
    assert_eq!(world.outcomes(), format!("completed {}", 10 * ROOM));
    assert_eq!(
        world.value("SELECT count(*) FROM applied"),
        (10 * ROOM).to_string()
    );
}
