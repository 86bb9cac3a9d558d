//! Single-row commits at a steady rate: how long until each is stored in the stream.
//!
//! In: a rate. Out: percentiles of the latency.
//! Must hold: latency is the stream's own timestamp of the message less the timestamp in the commit
//! record, both of one clock. PostgreSQL takes the latter before it flushes WAL, so the flush is
//! part of the figure; the consumer's way is not. Nothing is read back until the load is over.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use futures_util::StreamExt as _;
use tokio_postgres::NoTls;
use wire::{Event, Message as _};

use crate::arguments::Arguments;
use crate::bridge::{Bridge, Place, STREAM};
use crate::drain::until;
use crate::load::Load;
use crate::report::{Metric, OWN_CPU, Report};
use crate::targets::BRIDGE;
use crate::usage;
use crate::world::World;

pub const LIVE_1000: &str = "live, 1,000 commits/s";
pub const LIVE_5000: &str = "live, 5,000 commits/s";
pub const LIVE_20000: &str = "live, 20,000 commits/s";
const ACHIEVED: Metric = Metric::new("commits/s", 0);
pub const P50: Metric = Metric::new("p50 ms", 2);
pub const P99: Metric = Metric::new("p99 ms", 2);
const MAX: Metric = Metric::new("max ms", 1);

pub fn run(world: &World, arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    for _ in 0..arguments.runs {
        for (scenario, rate) in [(LIVE_1000, 1_000), (LIVE_5000, 5_000), (LIVE_20000, 20_000)] {
            eprintln!("bench: {scenario}");
            live(world, arguments, report, scenario, rate)?;
        }
    }
    Ok(())
}

fn live(
    world: &World,
    arguments: &Arguments,
    report: &mut Report,
    scenario: &str,
    rate: u64,
) -> anyhow::Result<()> {
    let load = Load::empty(world, "bench_live")?;
    let slot = world.copy_slot(&load.name)?;
    world.delete_streams(&[STREAM]);
    let bridge = Bridge::start(world, arguments, &Place::alone(&slot, &load))?;
    bridge.wait_ready()?;
    let cpu = usage::cpu(bridge.pid()).unwrap_or_default();
    let started = Instant::now();
    let commits = rate * arguments.live_seconds;
    commit_at(world, rate, commits)?;
    let elapsed = started.elapsed();
    until("all commits are stored", || {
        bridge.check()?;
        Ok(world.messages(STREAM) >= commits)
    })?;
    let cpu = usage::cpu(bridge.pid())
        .unwrap_or_default()
        .saturating_sub(cpu);
    bridge.stop()?;
    let mut latencies = latencies(world, commits)?;
    world.delete_streams(&[STREAM]);
    // The first half second warms caches and the plan.
    latencies.drain(..(rate / 2).min(commits / 2) as usize);
    latencies.sort_by(f64::total_cmp);
    let at = |part| at(&latencies, part);
    report.add(
        scenario,
        BRIDGE,
        ACHIEVED,
        commits as f64 / elapsed.as_secs_f64(),
    );
    report.add(scenario, BRIDGE, P50, at(0.5));
    report.add(scenario, BRIDGE, P99, at(0.99));
    report.add(scenario, BRIDGE, MAX, at(1.0));
    report.add(scenario, BRIDGE, OWN_CPU, usage::us_each(cpu, commits));
    Ok(())
}

/// One session of the server itself makes the commits, so that no client takes part of the machine.
/// `pg_sleep` wakes every millisecond: above 1,000 commits/s they come in small bursts.
fn commit_at(world: &World, rate: u64, commits: u64) -> anyhow::Result<()> {
    let url = world.stack.postgres().url();
    let sql = format!(
        "DO $$
         DECLARE
             started timestamptz := clock_timestamp();
             n bigint := 0;
             due bigint;
         BEGIN
             WHILE n < {commits} LOOP
                 due := extract(epoch FROM clock_timestamp() - started) * {rate};
                 WHILE n < due AND n < {commits} LOOP
                     n := n + 1;
                     INSERT INTO bench_live_1 VALUES (n, n % 1000, n / 100.0, 'user' || n || '@example.com',
                         'a row that is written on its own ' || n, clock_timestamp());
                     COMMIT;
                 END LOOP;
                 PERFORM pg_sleep(0.0001);
             END LOOP;
         END $$"
    );
    let deadline = Duration::from_mins(2) + Duration::from_secs(commits / rate);
    world.runtime.block_on(async {
        let (client, closed) = tokio_postgres::connect(&url, NoTls).await?;
        let closed = tokio::spawn(closed);
        client.batch_execute("SET synchronous_commit = on").await?;
        tokio::time::timeout(deadline, client.batch_execute(&sql))
            .await
            .context("the commits do not end")??;
        drop(client);
        Ok(closed.await??)
    })
}

/// A quantile of sorted values; NaN when there are none.
pub fn at(sorted: &[f64], part: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * part) as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// Milliseconds, in the order of the stream.
pub fn latencies(world: &World, commits: u64) -> anyhow::Result<Vec<f64>> {
    let read = async {
        let stream = world.jetstream.get_stream(STREAM).await?;
        let consumer = stream
            .create_consumer(pull::OrderedConfig {
                deliver_policy: DeliverPolicy::All,
                ..pull::OrderedConfig::default()
            })
            .await?;
        let mut messages = consumer.messages().await?;
        let mut latencies = Vec::with_capacity(commits as usize);
        while (latencies.len() as u64) < commits {
            let next = tokio::time::timeout(Duration::from_secs(30), messages.next()).await?;
            let Some(message) = next.transpose()? else {
                bail!("the stream ended early");
            };
            let event = Event::decode(&message.payload)?;
            let info = message
                .info()
                .map_err(|error| anyhow::anyhow!("a message without metadata: {error}"))?;
            let stored_ns = info.published.unix_timestamp_nanos();
            let committed_ns = i128::from(event.commit_time) * 1000;
            latencies.push((stored_ns - committed_ns) as f64 / 1e6);
        }
        Ok(latencies)
    };
    world.runtime.block_on(read)
}
