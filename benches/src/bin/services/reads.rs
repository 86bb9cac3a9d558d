//! Reads of rows that are cached.
//!
//! In: connections. Out: reads a second, and how many of them came from the cache.
//! Must hold: nothing changes meanwhile, so that all but the first reads can come from there.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::client::Load;
use crate::world::World;

const ROWS: u64 = 1000;

pub async fn run(world: &mut World, connections: usize, seconds: u64) -> anyhow::Result<()> {
    world.stop("processor");
    let ids = "INSERT INTO users (id, name, email)
        SELECT ('00000000-0000-4000-a000-' || lpad(to_hex(n), 12, '0'))::uuid, 'Cached', 'cached' || n
        FROM generate_series(0, 999) AS n";
    world.stack.postgres().sql(ids);
    let addr = world.start("reader")?;
    let next = Arc::new(AtomicU64::new(0));
    let load = Load {
        addr,
        connections,
        seconds,
        rate: None,
        mark: "x-cache: HIT",
    };
    let warm_up = Load { seconds: 3, ..load };
    warm_up.run(next.clone(), request).await?;

    let before = world.used();
    let outcome = load.run(next, request).await?;

    println!("\nreads of {ROWS} cached rows, {connections} connections");
    println!(
        "answered:          {:>8.0} reads/s   {}",
        outcome.rate(),
        world.cost(&before, outcome.good)
    );
    println!(
        "X-Cache: HIT       {:>8.1} %",
        100.0 * outcome.marked as f64 / outcome.good as f64
    );
    println!(
        "answer after       p50 {:.2} ms, p99 {:.2} ms",
        outcome.quantile(0.5),
        outcome.quantile(0.99)
    );
    Ok(())
}

fn request(number: u64, into: &mut Vec<u8>) {
    let id = number % ROWS;
    write!(
        into,
        "GET /users/00000000-0000-4000-a000-{id:012x} HTTP/1.1\r\nhost: bench\r\n\r\n"
    )
    .expect("a Vec takes every write");
}
