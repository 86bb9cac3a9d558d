//! Accepting a write, and accepting it again.

use std::time::Duration;

use serde_json::json;
use stack::{Options, eventually_async};
use wire::command::WriteOp;
use wire::names::{STREAM_WRITE_KEYS, STREAM_WRITES, WRITE_KEYS, WRITE_SUBJECTS};

use crate::harness::{DEADLINE, World, new_id};

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_accepted_while_postgresql_and_the_processor_are_away() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let (operation_id, id) = (new_id(), new_id());
    let body = json!({"id": id, "name": "Alice", "balance": 19.90});

    let answer = gateway.post("users", &operation_id, &body).await;

    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.header("location"), format!("/status/{operation_id}"));
    assert_eq!(answer.body["status"], "pending");
    assert_eq!(answer.body["operationId"], operation_id);
    assert_eq!(answer.body["entityId"], id);
    let (command, message) = world.command(1).await;
    assert_eq!(
        message.subject.as_str(),
        format!("writes.users.{operation_id}")
    );
    assert_eq!(
        message.headers.get("Nats-Msg-Id").unwrap().as_str(),
        operation_id
    );
    assert_eq!(
        (command.op, command.entity_id.as_deref()),
        (WriteOp::Create, Some(id.as_str()))
    );
    assert_eq!(command.data["balance"], "19.9");
    assert_eq!(
        command.accepted_at,
        answer.body["acceptedAt"].as_str().unwrap()
    );
    assert_eq!(command.body_sha256.len(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_changed_replaced_and_deleted_by_their_id() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let user = format!("/users/{}", new_id());

    for (method, body) in [
        ("PATCH", r#"{"email":"a@b"}"#),
        ("PUT", r#"{"name":"Bob"}"#),
        ("DELETE", ""),
    ] {
        let answer = gateway
            .send(method, &user, &[("idempotency-key", method)], body)
            .await;
        assert_eq!(answer.status, 202, "{method}: {answer:?}");
    }

    let (patch, put, delete) = (
        world.command(1).await.0,
        world.command(2).await.0,
        world.command(3).await.0,
    );
    assert_eq!((patch.op, patch.data.len()), (WriteOp::Update, 1));
    assert_eq!((put.op, put.data.len()), (WriteOp::Update, 3));
    assert_eq!((delete.op, delete.data.len()), (WriteOp::Delete, 0));
    assert_eq!(delete.entity_id.as_deref(), user.strip_prefix("/users/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_gets_the_same_answer_from_every_replica_and_after_a_crash() {
    let world = World::new().await;
    let (first, second) = (world.gateway(&[]).await, world.gateway(&[]).await);
    let body = json!({"name": "Alice"});

    let answer = first.post("users", "order-1", &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let same = |other: &crate::harness::Answer| {
        (other.status, &other.body) == (answer.status, &answer.body)
    };

    assert!(same(&first.post("users", "order-1", &body).await));
    assert!(same(&second.post("users", "order-1", &body).await));
    assert_eq!(world.queued().await, 1, "a repeat is not queued again");
    first.process.kill();
    world.writes().await.purge().await.unwrap();
    world.stack.nats().restart();
    second.ready().await;
    let third = world.gateway(&[]).await;
    assert!(same(&third.post("users", "order-1", &body).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_request_under_the_same_key_is_refused() {
    let world = World::new().await;
    let (first, second) = (world.gateway(&[]).await, world.gateway(&[]).await);
    let body = json!({"name": "Alice"});
    assert_eq!(first.post("users", "order-1", &body).await.status, 202);

    let other_body = second
        .post("users", "order-1", &json!({"name": "Bob"}))
        .await;
    let path = format!("/users/{}", new_id());
    let key = [("idempotency-key", "order-1")];
    let other_path = second.send("PATCH", &path, &key, &body.to_string()).await;

    for answer in [other_body, other_path] {
        assert_eq!((answer.status, answer.problem()), (422, "key-reused"));
    }
    assert_eq!(world.queued().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_racing_requests_under_one_key_one_wins() {
    let world = World::new().await;
    let (first, second) = (world.gateway(&[]).await, world.gateway(&[]).await);

    for round in 0..50 {
        let key = format!("race-{round}");
        let (alice, bob) = (json!({"name": "Alice"}), json!({"name": "Bob"}));
        let (alice, bob) = tokio::join!(
            first.post("users", &key, &alice),
            second.post("users", &key, &bob)
        );

        let mut statuses = [alice.status, bob.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [202, 422], "round {round}");
    }
    assert_eq!(world.queued().await, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_requests_at_once_under_one_key_one_is_queued_and_all_alike_are_told() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let (alice, bob) = (json!({"name": "Alice"}), json!({"name": "Bob"}));

    let posts = (0..40).map(|number| {
        let body = if number % 2 == 0 { &alice } else { &bob };
        gateway.post("users", "order-1", body)
    });
    let answers = futures_util::future::join_all(posts).await;

    let first = answers.iter().find(|answer| answer.status == 202).unwrap();
    let (accepted, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == 202);
    assert_eq!((accepted.len(), refused.len()), (20, 20));
    assert!(accepted.iter().all(|answer| answer.body == first.body));
    assert!(
        refused
            .iter()
            .all(|answer| answer.problem() == "key-reused")
    );
    assert_eq!(world.queued().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_through_two_gateways_at_once_are_queued_once_each() {
    let world = World::new().await;
    let gateways = [world.gateway(&[]).await, world.gateway(&[]).await];
    let body = json!({"name": "Alice"});

    // Each gateway's chain of commands is cut by the other's.
    for round in 0..5 {
        let keys: Vec<_> = (0..100).map(|number| format!("{round}-{number}")).collect();
        let posts = keys
            .iter()
            .enumerate()
            .map(|(index, key)| gateways[index % 2].post("users", key, &body));
        for answer in futures_util::future::join_all(posts).await {
            assert_eq!(answer.status, 202, "{answer:?}");
        }
    }

    assert_eq!(world.queued().await, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replicated_queue_takes_each_write_once_too() {
    let world = World::with(Options::default().nats_nodes(3)).await;
    let gateway = world.gateway(&[]).await;
    for stream in [STREAM_WRITES, STREAM_WRITE_KEYS] {
        let stream = world.context.get_stream(stream).await.unwrap();
        let mut config = stream.cached_info().config.clone();
        config.num_replicas = 3;
        world.context.update_stream(config).await.unwrap();
    }
    let body = json!({"name": "Alice"});

    eventually_async(DEADLINE, "100 writes at once are accepted", async || {
        let keys: Vec<_> = (0..100).map(|number| number.to_string()).collect();
        let posts = keys.iter().map(|key| gateway.post("users", key, &body));
        let answers = futures_util::future::join_all(posts).await;
        // While the replicas elect their leaders nothing is.
        match answers.iter().find(|answer| answer.status != 202) {
            Some(answer) => Err(format!("{answer:?}")),
            None => Ok(()),
        }
    })
    .await;

    assert_eq!(world.queued().await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_remembers_ids_for_long_is_kept_and_told_of() {
    let world = World::new().await;
    let mut config = daemon::nats::write_queue(STREAM_WRITES, WRITE_SUBJECTS, 1000, 1 << 20);
    config.duplicate_window = Duration::from_mins(2);
    world.context.create_stream(&config).await.unwrap();

    let gateway = world.gateway(&[]).await;

    let line = gateway.process.wait_for_line("--dupe-window=2s", DEADLINE);
    assert!(line.contains("duplicate_window_s=120"), "{line}");
    let kept = world.writes().await.cached_info().config.clone();
    assert_eq!(kept.duplicate_window, config.duplicate_window);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_small_messages_only_takes_many_keys_too() {
    let world = World::with(Options::default().nats_config("max_payload: 2KB")).await;
    let gateway = world.gateway(&[]).await;
    let body = json!({"name": "Alice"});

    let keys: Vec<_> = (0..200).map(|number| number.to_string()).collect();
    let posts = keys.iter().map(|key| gateway.post("users", key, &body));
    for answer in futures_util::future::join_all(posts).await {
        assert_eq!(answer.status, 202, "{answer:?}");
    }

    assert_eq!(world.queued().await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_key_in_the_log_is_passed_over() {
    let world = World::new().await;
    let first = world.gateway(&[]).await;
    let body = json!({"name": "Alice"});
    let answer = first.post("users", "1", &body).await;
    let nonsense = world.context.publish(WRITE_KEYS, "nonsense".into()).await;
    nonsense.unwrap().await.unwrap();
    assert_eq!(first.post("users", "2", &body).await.status, 202);

    let second = world.gateway(&[]).await;

    assert_eq!(second.post("users", "1", &body).await.body, answer.body);
    assert_eq!(world.queued().await, 2);
    assert_eq!(second.get("/health").await.body["keys"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_a_usable_key_is_refused() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;

    let missing = gateway
        .send("POST", "/users", &[], r#"{"name":"Alice"}"#)
        .await;
    let long = gateway
        .post("users", &"x".repeat(129), &json!({"name": "Alice"}))
        .await;

    for answer in [missing, long] {
        assert_eq!((answer.status, answer.problem()), (400, "idempotency-key"));
    }
    assert_eq!(world.queued().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_accepted_that_does_not_fit_the_table() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let body = json!({"balance": "much", "email": "x".repeat(41), "name": null, "nmae": "Alice"});

    let answer = gateway.post("users", "1", &body).await;

    assert_eq!((answer.status, answer.problem()), (422, "invalid-columns"));
    let errors = answer.body["errors"].as_array().unwrap();
    let columns: Vec<_> = errors
        .iter()
        .map(|error| error["column"].as_str().unwrap())
        .collect();
    assert_eq!(columns, ["balance", "email", "name", "nmae"]);
    assert_eq!(world.queued().await, 0);
    // The key is still free.
    assert_eq!(
        gateway
            .post("users", "1", &json!({"name": "Alice"}))
            .await
            .status,
        202
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_carried_or_begun() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    let headers = [("idempotency-key", "1"), ("traceparent", trace)];
    gateway
        .send("POST", "/users", &headers, r#"{"name":"Alice"}"#)
        .await;
    gateway.post("users", "2", &json!({"name": "Bob"})).await;

    let carried = world.command(1).await.1.headers;
    assert_eq!(carried.get("traceparent").unwrap().as_str(), trace);
    let begun = world.command(2).await.1.headers;
    assert_eq!(
        begun.get("traceparent").unwrap().as_str().len(),
        trace.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_answers_what_was_asked_and_ends_well() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    world.stack.nats().pause();
    let (status, answer) = tokio::join!(
        async {
            let in_flight = async || gateway.get("/health").await.body["inFlight"] == 1;
            eventually_async(DEADLINE, "the write is in flight", in_flight).await;
            gateway.process.signal(stack::Signal::TERM);
            gateway.process.wait_for_line("shutting down", DEADLINE);
            world.stack.nats().resume();
            tokio::task::block_in_place(|| gateway.process.wait(DEADLINE))
        },
        async { gateway.post("users", "1", &json!({"name": "Alice"})).await },
    );

    assert!(status.success(), "{status}");
    assert_eq!(answer.status, 202, "{answer:?}");
}
