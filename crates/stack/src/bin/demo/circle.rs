//! One write, all the way round.
//!
//! In: the gateway's and the reader's address, and the feed. Out: each station with the time since the request.
//! Must hold: every station is seen from outside (HTTP, NATS, SQL time), so nothing here is taken on trust.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::feed::Feed;
use crate::summary::Summary;
use crate::world::World;

/// For each station.
const DEADLINE: Duration = Duration::from_secs(20);
const KEY: &str = "demo-1";

struct Answer {
    status: u16,
    x_cache: String,
    body: Value,
}

/// Prints the journey. What is not as it should be goes to the summary.
pub async fn show(world: &World, feed: &mut Feed, summary: &mut Summary) -> anyhow::Result<()> {
    let mut commands = world.nats_client().await?.subscribe("writes.>").await?;
    let row = json!({"name": "Katherine", "email": "katherine@example.com"});
    println!("\n-- One write, the whole circle: HTTP, JetStream, PostgreSQL, CDC, HTTP");
    println!(
        "  POST http://{}/users    Idempotency-Key: {KEY}, Prefer: wait=20",
        world.gateway
    );
    println!("       {row}");
    let (began, began_at) = (Instant::now(), SystemTime::now());
    let post = async {
        let headers = format!("idempotency-key: {KEY}\r\nprefer: wait=20\r\n");
        let answer = request(world.gateway, "POST", "/users", &headers, &row.to_string()).await?;
        Ok::<_, anyhow::Error>((answer, began.elapsed()))
    };
    let queued = async {
        let command = tokio::time::timeout(DEADLINE, commands.next()).await;
        Ok((command.ok().flatten(), began.elapsed()))
    };
    let streamed = async {
        let mut events = Vec::new();
        for _ in 0..2 {
            match tokio::time::timeout(DEADLINE, feed.next()).await {
                Ok(event) => events.push((event?, began.elapsed())),
                Err(_) => break,
            }
        }
        Ok(events)
    };
    let ((answer, answered), (command, queued), events) = tokio::try_join!(post, queued, streamed)?;

    if let Some(command) = command {
        station(queued, &command.subject, "the gateway has queued it");
    }
    summary.expected += 2;
    for (index, (event, arrived)) in events.iter().enumerate() {
        if index == 0 {
            // Both clocks are this machine's.
            let committed = event.committed_at.duration_since(began_at)?;
            station(
                committed,
                "COMMIT",
                "the processor has applied it, with its outcome",
            );
        }
        summary.saw(event);
        station(*arrived, &event.subject, "the bridge has streamed it");
    }
    station(
        answered,
        &format!("{} {}", answer.status, answer.body["status"]),
        "the gateway has heard and answered",
    );
    expect(summary, answer.status == 200, &answer.body);

    let id = answer.body["entityId"].as_str().unwrap_or_default();
    let lsn = answer.body["lsn"].as_str().unwrap_or_default();
    let path = format!("/users/{id}");
    println!("  GET http://{}{path}    X-Min-LSN: {lsn}", world.reader);
    let headers = format!("x-min-lsn: {lsn}\r\n");
    let asked = Instant::now();
    let read = request(world.reader, "GET", &path, &headers, "").await?;
    station(
        began.elapsed(),
        &format!("{}", read.status),
        &format!(
            "the reader has it, {:.1} ms after it was asked",
            milliseconds(asked.elapsed())
        ),
    );
    println!("       {}", read.body);
    expect(summary, read.body["name"] == "Katherine", &read.body);

    // The answer is kept once the reader has heard of the change too.
    let asked = Instant::now();
    loop {
        let again = Instant::now();
        let read = request(world.reader, "GET", &path, "", "").await?;
        if read.x_cache == "HIT" {
            println!(
                "  GET again, X-Cache: HIT: {:.1} ms; any change of users throws it away",
                milliseconds(again.elapsed())
            );
            return Ok(());
        }
        if DEADLINE < asked.elapsed() {
            expect(summary, false, &json!({"x-cache": read.x_cache}));
            return Ok(());
        }
    }
}

fn expect(summary: &mut Summary, is_so: bool, seen: &Value) {
    if !is_so {
        summary
            .complaints
            .push(format!("the circle answered {seen}"));
    }
}

fn station(after: Duration, what: &str, meaning: &str) {
    println!("  {:>6.1} ms  {what:<54}  {meaning}", milliseconds(after));
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// One request over a connection of its own.
async fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(addr).await?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer))
        .await
        .with_context(|| format!("no answer to {method} {path}"))??;
    let (head, body) = answer.split_once("\r\n\r\n").context("not HTTP")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let mut lines = head.lines();
    let x_cache = lines.find_map(|line| line.strip_prefix("x-cache: "));
    Ok(Answer {
        status: status.context("not HTTP")?,
        x_cache: x_cache.unwrap_or_default().to_owned(),
        body: serde_json::from_str(body).unwrap_or_else(|_| body.into()),
    })
}
