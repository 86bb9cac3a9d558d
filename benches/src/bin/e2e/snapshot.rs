//! A snapshot beside bare COPY, and what it does to row changes meanwhile.
//!
//! In: rows. Out: rates of both, taken in turn, and the latency of single-row commits under snapshots.
//! Must hold: COPY and snapshot read the same table; the snapshot says that it holds every row of it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use async_nats::Client;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio_postgres::NoTls;
use wire::Message as _;
use wire::names::{self, PUBLIC, STREAM_INIT};
use wire::snapshot::Meta;
use wire::snapshot_request::Reply;

use crate::arguments::Arguments;
use crate::bridge::{Bridge, Place, STREAM};
use crate::drain::megabytes;
use crate::live;
use crate::load::{Load, Writes};
use crate::report::{Metric, PEAK_RSS, RATE, Report};
use crate::targets::BRIDGE;
use crate::usage;
use crate::world::{World, drop_slot};

const SNAPSHOT: &str = "snapshot, six columns";
const AGAINST_COPY: Metric = Metric::new("x bare COPY", 2);
const LIVE_P99: Metric = Metric::new("row changes meanwhile p99 ms", 1);
/// Between two single-row commits.
const WRITE_INTERVAL: Duration = Duration::from_millis(2);

pub fn run(world: &World, arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("bench: {SNAPSHOT}, writing {} rows", arguments.rows);
    let load = Load::row6(world, "bench_snapshot", arguments.rows, Writes::Copy)?;
    let table = "bench_snapshot_1";
    world.execute(&format!(
        "GRANT SELECT ON {table} TO bridge_reader; CREATE TABLE bench_live (id bigint PRIMARY KEY);
         ALTER PUBLICATION {} ADD TABLE bench_live",
        load.name
    ))?;
    // A slot from behind the rows: they are read from the table here.
    let slot = "bench_snapshot_later";
    world.create_slot(slot)?;
    let place = Place {
        slot,
        publication: &load.name,
        stream: STREAM,
        prefix: "cdc",
    };
    world.delete_streams(&[STREAM, STREAM_INIT]);
    let bridge = Bridge::start(world, arguments, &place)?;
    bridge.wait_ready()?;

    let nats = world.jetstream.client();
    let writer = world.runtime.spawn(write(world.stack.postgres().url()));
    let rate = |elapsed: Duration| arguments.rows as f64 / elapsed.as_secs_f64();
    for run in 1..=arguments.runs {
        eprintln!("bench: {SNAPSHOT}, run {run} of {}", arguments.runs);
        let measured = async {
            let copy = bare_copy(&world.stack.postgres().url(), table, arguments.rows).await?;
            let (snapshot, meta) = snapshot(&nats, table).await?;
            anyhow::Ok((copy, snapshot, meta))
        };
        let (copy, snapshot, meta) = world.runtime.block_on(measured)?;
        if meta.row_count != arguments.rows {
            bail!("the snapshot has {} rows", meta.row_count);
        }
        report.add(SNAPSHOT, "floor: bare COPY", RATE, rate(copy));
        report.add(SNAPSHOT, BRIDGE, RATE, rate(snapshot));
        let ratio = copy.as_secs_f64() / snapshot.as_secs_f64();
        report.add(SNAPSHOT, BRIDGE, AGAINST_COPY, ratio);
    }
    writer.abort();
    // The abort may be in the middle of a commit.
    let _ = world.runtime.block_on(writer);
    let peak = usage::peak_rss(bridge.pid()).unwrap_or_default();
    report.add(SNAPSHOT, BRIDGE, PEAK_RSS, megabytes(peak));
    bridge.stop()?;
    let mut latencies = live::latencies(world, world.messages(STREAM))?;
    latencies.sort_by(f64::total_cmp);
    report.add(SNAPSHOT, BRIDGE, LIVE_P99, live::at(&latencies, 0.99));
    world.delete_streams(&[STREAM, STREAM_INIT]);
    drop_slot(world, slot)?;
    world.execute("DROP TABLE bench_live")
}

async fn connect(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, closed) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(closed);
    Ok(client)
}

async fn bare_copy(url: &str, table: &str, rows: u64) -> anyhow::Result<Duration> {
    let client = connect(url).await?;
    let started = Instant::now();
    let lines = client.copy_out(&format!("COPY {table} TO STDOUT")).await?;
    let count = lines.try_fold(0, async |count, _| Ok(count + 1)).await?;
    if count != rows {
        bail!("COPY gave {count} rows");
    }
    Ok(started.elapsed())
}

/// From the request to meta in the stream.
async fn snapshot(nats: &Client, table: &str) -> anyhow::Result<(Duration, Meta)> {
    let mut metas = nats.subscribe(names::init_meta(PUBLIC, table)).await?;
    let started = Instant::now();
    let subject = names::snapshot_request(PUBLIC, table);
    let reply = nats.request(subject, "".into()).await?;
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

/// Single-row commits until it is stopped.
async fn write(url: String) -> anyhow::Result<()> {
    let client = connect(&url).await?;
    let mut interval = tokio::time::interval(WRITE_INTERVAL);
    for id in 0_i64.. {
        interval.tick().await;
        client
            .execute("INSERT INTO bench_live VALUES ($1)", &[&id])
            .await?;
    }
    Ok(())
}
