//! Requests that are wrong on purpose.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{World, new_id};

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_request_gets_its_problem() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let key = ("idempotency-key", "1");
    let text = ("content-type", "text/plain");
    let user = format!("/users/{}", new_id());

    for (method, path, headers, body, expected) in [
        ("GET", "/users", &[key][..], "", (405, "method-not-allowed")),
        (
            "POST",
            user.as_str(),
            &[key],
            "{}",
            (405, "method-not-allowed"),
        ),
        ("BREW", "/users", &[key], "", (405, "method-not-allowed")),
        ("DELETE", "/health", &[key], "", (405, "method-not-allowed")),
        ("POST", "/health", &[], "{}", (405, "method-not-allowed")),
        ("POST", "/nobody", &[], "{}", (404, "not-found")),
        ("POST", "/", &[key], "{}", (404, "not-found")),
        ("POST", "/users/", &[key], "{}", (404, "not-found")),
        ("POST", "/nobody", &[key], "{}", (404, "not-found")),
        (
            "POST",
            "/pg_catalog.pg_class",
            &[key],
            "{}",
            (404, "not-found"),
        ),
        ("POST", "/users%zz", &[key], "{}", (404, "not-found")),
        (
            "POST",
            "/users%22;drop%20table%20users",
            &[key],
            "{}",
            (404, "not-found"),
        ),
        ("DELETE", "/a/b/c", &[key], "", (404, "not-found")),
        ("DELETE", "/users/1", &[key], "", (400, "malformed-id")),
        ("POST", "/users", &[key], "", (400, "malformed-body")),
        ("POST", "/users", &[key], "[1]", (400, "malformed-body")),
        (
            "POST",
            "/users",
            &[key],
            "{\"name\":\"\\ud800\"}",
            (422, "invalid-columns"),
        ),
        (
            "POST",
            "/users",
            &[key],
            "{\"name\":\"a\",\"name\":\"b\"}",
            (400, "malformed-body"),
        ),
        ("POST", "/users", &[key, text], "{}", (415, "media-type")),
        (
            "PATCH",
            user.as_str(),
            &[key],
            "{}",
            (422, "invalid-columns"),
        ),
    ] {
        let answer = gateway.send(method, path, headers, body).await;
        assert_eq!(
            (answer.status, answer.problem()),
            expected,
            "{method} {path} {body}"
        );
    }
    assert_eq!(world.queued().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let body = |bytes: usize| json!({"name": "x".repeat(bytes - r#"{"name":""}"#.len())});

    assert_eq!(
        gateway.post("users", "1", &body(256 << 10)).await.status,
        202
    );

    // The answer comes before the body is read, so the connection may be reset under it.
    let length = (256 << 10) + 1;
    let head = format!(
        "POST /users HTTP/1.1\r\nhost: x\r\nidempotency-key: 2\r\ncontent-length: {length}\r\n\r\n"
    );
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
        .write_all(body(length).to_string().as_bytes())
        .await
        .unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 413");
}

#[tokio::test(flavor = "multi_thread")]
async fn nesting_without_end_is_an_error_and_not_a_crash() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let body = format!("{{\"name\":{}", "[".repeat(100_000));

    let answer = gateway
        .send("POST", "/users", &[("idempotency-key", "1")], &body)
        .await;

    assert_eq!((answer.status, answer.problem()), (400, "malformed-body"));
    assert_eq!(gateway.get("/health").await.status, 200);
}
