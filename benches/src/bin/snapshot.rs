//! How fast a snapshot is beside bare COPY, and what it does to the row changes meanwhile.
//!
//! In: `[ROWS] [RUNS] [--bridge PATH]`, by default 1,000,000 rows of six columns and 3 runs. Out: a table.
//! Invariant: COPY and snapshot are measured in turn in the same run, so their ratio bears a busy machine.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use async_nats::Client;
use futures_util::{StreamExt as _, TryStreamExt as _};
use stack::{NatsVersion, Options, Stack};
use tokio_postgres::NoTls;
use wire::snapshot::Meta;
use wire::snapshot_request::Reply;
use wire::{Event, Message as _};

struct Arguments {
    rows: u64,
    runs: u32,
    bridge: Option<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = arguments()?;
    let bridge = match arguments.bridge {
        Some(path) => path.into(),
        None => stack::bridge_binary()?,
    };
    let stack = Stack::up(Options::default().nats(NatsVersion::V2_14))
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    make_tables(&stack, arguments.rows);
    let process = stack
        .program(bridge)
        .args(["--port", "0", "--pg-url", &stack.postgres().url()])
        .args(["--nats-url", &format!("nats://{}", stack.nats().addr())])
        .start();
    process.wait_for_line("replication started", Duration::from_mins(1));
    let nats = async_nats::connect(stack.nats().addr().to_string()).await?;
    let delays = tokio::spawn(watch_delays(nats.clone()));
    let writer = tokio::spawn(write(stack.postgres().url()));

    println!("{} rows of six columns", arguments.rows);
    println!(
        "| run | COPY alone, rows/s | snapshot, rows/s | ratio | chunks | bridge's peak memory |"
    );
    println!("|---|---|---|---|---|---|");
    for run in 1..=arguments.runs {
        let copy = bare_copy(&stack, arguments.rows).await?;
        let (snapshot, meta) = snapshot(&nats).await?;
        if meta.row_count != arguments.rows {
            bail!("the snapshot has {} rows", meta.row_count);
        }
        let rate = |elapsed: Duration| arguments.rows as f64 / elapsed.as_secs_f64();
        println!(
            "| {run} | {:.0} | {:.0} | {:.2} | {} | {} |",
            rate(copy),
            rate(snapshot),
            copy.as_secs_f64() / snapshot.as_secs_f64(),
            meta.batch_count,
            peak_memory(process.pid())?
        );
    }
    writer.abort();
    delays.abort();
    Ok(())
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut given = Arguments {
        rows: 1_000_000,
        runs: 3,
        bridge: None,
    };
    let mut words = std::env::args().skip(1);
    let mut place = 0;
    while let Some(word) = words.next() {
        match (word.as_str(), place) {
            ("--bridge", _) => given.bridge = words.next(),
            (count, 0) => given.rows = count.parse().context("ROWS")?,
            (count, 1) => given.runs = count.parse().context("RUNS")?,
            (other, _) => bail!("{other:?} is too much"),
        }
        place += u32::from(word != "--bridge");
    }
    Ok(given)
}

fn make_tables(stack: &Stack, rows: u64) {
    let postgres = stack.postgres();
    postgres.sql(
        "CREATE TABLE users (id bigint PRIMARY KEY, name text, email text, age int, active bool, created_at timestamptz)",
    );
    postgres.sql(&format!(
        "INSERT INTO users SELECT i, 'User-' || i, 'user' || i || '@example.com', i % 90, i % 2 = 0, \
         timestamptz '2025-12-08' + i * interval '1 second' FROM generate_series(1, {rows}) i"
    ));
    postgres.sql("CREATE TABLE live (id bigint PRIMARY KEY, at timestamptz NOT NULL)");
    postgres.sql("CREATE PUBLICATION cdc_pub FOR TABLE users, live");
    postgres.sql("VACUUM ANALYZE users");
}

async fn connect(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn bare_copy(stack: &Stack, rows: u64) -> anyhow::Result<Duration> {
    let client = connect(&stack.postgres().url()).await?;
    let started = Instant::now();
    let lines = client.copy_out("COPY users TO STDOUT").await?;
    let count = lines.try_fold(0, async |count, _| Ok(count + 1)).await?;
    if count != rows {
        bail!("COPY gave {count} rows");
    }
    Ok(started.elapsed())
}

/// From the request to meta in the stream.
async fn snapshot(nats: &Client) -> anyhow::Result<(Duration, Meta)> {
    let mut metas = nats.subscribe("init.meta.users").await?;
    let started = Instant::now();
    let reply = nats.request("snapshot.request.users", "".into()).await?;
    let Reply::Accepted { snapshot_id } = Reply::decode(&reply.payload)? else {
        bail!("the snapshot was refused");
    };
    loop {
        let message = metas.next().await.context("the subscription has ended")?;
        let meta = Meta::decode(&message.payload)?;
        if meta.snapshot_id == snapshot_id {
            return Ok((started.elapsed(), meta));
        }
    }
}

/// 500 single-row commits a second.
async fn write(url: String) -> anyhow::Result<()> {
    let client = connect(&url).await?;
    let mut interval = tokio::time::interval(Duration::from_millis(2));
    for id in 0_i64.. {
        interval.tick().await;
        client
            .execute("INSERT INTO live VALUES ($1, now())", &[&id])
            .await?;
    }
    Ok(())
}

/// Commit to arrival of the writer's rows, printed every second.
async fn watch_delays(nats: Client) -> anyhow::Result<()> {
    let mut events = nats.subscribe("cdc.live.insert").await?;
    let mut delays_us = Vec::new();
    let mut printed_at = Instant::now();
    while let Some(message) = events.next().await {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        delays_us.push(now.as_micros() as i64 - Event::decode(&message.payload)?.commit_time);
        if printed_at.elapsed() >= Duration::from_secs(1) {
            delays_us.sort_unstable();
            let at = |percent: usize| delays_us[(delays_us.len() - 1) * percent / 100] / 1000;
            eprintln!(
                "row changes: p50 {} ms, p99 {} ms, max {} ms",
                at(50),
                at(99),
                at(100)
            );
            delays_us.clear();
            printed_at = Instant::now();
        }
    }
    Ok(())
}

fn peak_memory(pid: u32) -> anyhow::Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(line.context("VmHWM")?.trim().to_owned())
}
