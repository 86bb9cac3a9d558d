//! Tokens, principals and their share.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::harness::{Answer, Gateway, World};

const SECRET: &str = "a secret of at least thirty-two bytes";

fn token(claims: &Value) -> String {
    let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encoded(&json!({"alg": "HS256"})), encoded(claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = ring::hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

async fn guarded(world: &World, flags: &[&str]) -> Gateway {
    let path = world.stack.dir().join("secret");
    std::fs::write(&path, format!("{SECRET}\n")).unwrap();
    world
        .gateway(&[&["--jwt-key-file", path.to_str().unwrap()], flags].concat())
        .await
}

async fn post_as(gateway: &Gateway, subject: &str, key: &str, body: &str) -> Answer {
    let bearer = format!("Bearer {}", token(&json!({"sub": subject, "tenant": 7})));
    let headers = [("idempotency-key", key), ("authorization", bearer.as_str())];
    gateway.send("POST", "/users", &headers, body).await
}

const ALICE: &str = r#"{"name":"Alice"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn without_a_good_token_nothing_is_accepted() {
    let world = World::new().await;
    let gateway = guarded(&world, &[]).await;
    let expired = format!("Bearer {}", token(&json!({"sub": "alice", "exp": 1})));

    for authorization in ["", "Basic YTpi", "Bearer", "Bearer x", &expired] {
        let headers = [("idempotency-key", "1"), ("authorization", authorization)];
        let answer = gateway.send("POST", "/users", &headers, ALICE).await;
        assert_eq!(
            (answer.status, answer.problem()),
            (401, "unauthorized"),
            "{authorization}"
        );
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    assert_eq!(world.queued().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_claims_travel_with_the_command() {
    let world = World::new().await;
    let gateway = guarded(&world, &[]).await;

    assert_eq!(post_as(&gateway, "alice", "1", ALICE).await.status, 202);

    let (command, _) = world.command(1).await;
    assert_eq!(command.principal.as_deref(), Some("alice"));
    assert_eq!(command.claims.unwrap()["tenant"], 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_principals_may_use_the_same_key() {
    let world = World::new().await;
    let gateway = guarded(&world, &[]).await;

    assert_eq!(post_as(&gateway, "alice", "1", ALICE).await.status, 202);
    assert_eq!(
        post_as(&gateway, "bob", "1", r#"{"name":"Bob"}"#)
            .await
            .status,
        202
    );

    assert_eq!(world.queued().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uuid_of_another_principal_tells_nothing_and_does_nothing() {
    let world = World::new().await;
    let gateway = guarded(&world, &[]).await;
    let key = crate::harness::new_id();

    assert_eq!(post_as(&gateway, "alice", &key, ALICE).await.status, 202);
    let answer = post_as(&gateway, "bob", &key, ALICE).await;

    assert_eq!((answer.status, answer.problem()), (422, "key-reused"));
    assert_eq!(world.queued().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_principal_is_held_to_its_share() {
    let world = World::new().await;
    let gateway = guarded(&world, &["--rate-limit", "2"]).await;

    let mut answers = Vec::new();
    for key in 0..20 {
        answers.push(post_as(&gateway, "alice", &key.to_string(), ALICE).await);
    }

    let limited = answers
        .iter()
        .find(|answer| answer.status == 429)
        .expect("some are limited");
    assert_eq!(
        (limited.problem(), limited.retry_after_s()),
        ("rate-limit", 1)
    );
    assert_eq!(post_as(&gateway, "bob", "b", ALICE).await.status, 202);
    let metrics = gateway.get("/metrics").await.text;
    assert!(
        metrics.contains("gateway_refused_total{kind=\"rate-limit\"}"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_need_tokens() {
    let world = World::new().await;
    let flags = ["--host", "0.0.0.0"];

    let process = world
        .stack
        .program(env!("CARGO_BIN_EXE_gateway"))
        .args(flags)
        .start();
    let status = process.wait(crate::harness::DEADLINE);

    assert!(!status.success());
    assert!(
        process.stderr().contains("--jwt-key-file"),
        "{}",
        process.stderr()
    );
}
