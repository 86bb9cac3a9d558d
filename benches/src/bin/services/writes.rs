//! Writes over HTTP through the whole circle.
//!
//! In: connections. Out: writes accepted and applied a second, and how long a client waits for its 202, also at half of the
//! rate that is asked for (or of the one that was reached, if that is less).
//! Must hold: the clock of "applied" stops when the queue is empty, not when the last write was accepted.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::client::Load;
use crate::world::World;

/// Writes a second: 20,000 are asked for, and an answer within 10 ms at half of that.
const HALF_OF_TARGET: f64 = 10_000.0;

pub async fn run(world: &mut World, connections: usize, seconds: u64) -> anyhow::Result<()> {
    world.start("bridge")?;
    let addr = world.start("gateway")?;
    let next = Arc::new(AtomicU64::new(1 << 40));
    let full = Load {
        addr,
        connections,
        seconds,
        rate: None,
        mark: "location: ",
    };
    // Tables are known, statements prepared.
    let warm_up = Load { seconds: 1, ..full };
    warm_up.run(next.clone(), request).await?;
    world.drained().await?;

    let before = world.used();
    let began = std::time::Instant::now();
    let outcome = full.run(next.clone(), request).await?;
    world.drained().await?;
    let applied = outcome.good as f64 / began.elapsed().as_secs_f64();
    let accepted = outcome.rate();
    println!("\nwrites, {connections} connections, as many as are answered");
    println!(
        "accepted:          {accepted:>8.0} writes/s   {}",
        world.cost(&before, outcome.good)
    );
    println!("applied:           {applied:>8.0} writes/s, until the queue is empty");
    println!("503:               {:>8}", outcome.refused);
    let latency = |part| outcome.quantile(part);
    println!(
        "202 after          p50 {:.2} ms, p99 {:.2} ms",
        latency(0.5),
        latency(0.99)
    );

    let half = Load {
        rate: Some((accepted / 2.0).min(HALF_OF_TARGET)),
        ..full
    };
    let before = world.used();
    let outcome = half.run(next, request).await?;
    let latency = |part| outcome.quantile(part);
    println!(
        "at half, {:.0}/s:   p50 {:.2} ms, p99 {:.2} ms   {}",
        outcome.rate(),
        latency(0.5),
        latency(0.99),
        world.cost(&before, outcome.good)
    );
    world.drained().await?;
    world.stop("gateway");
    Ok(())
}

fn request(number: u64, into: &mut Vec<u8>) {
    let body = format!("{{\"name\":\"User-{number}\",\"email\":\"user{number}@example.com\"}}");
    write!(
        into,
        "POST /users HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
         idempotency-key: 00000000-0000-4000-9000-{number:012x}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("a Vec takes every write");
}
