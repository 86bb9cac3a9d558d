//! `cargo bench-services`: what the services can take, and what it costs.
//!
//! In: a checkout. Out: rates, latencies, and the CPU time of each process per write or read.
//! Must hold: figures that are compared come from one run on one machine; every process is stopped by its id.

mod apply;
mod client;
mod reads;
mod world;
mod writes;

use clap::Parser;

use world::World;

/// Boots PostgreSQL, nats-server and Redis, runs the services and the bridge over known loads, and prints what they did.
#[derive(Debug, Parser)]
#[command(name = "bench-services")]
struct Arguments {
    /// Writes in the queue for the processor; the naive one gets a tenth
    #[arg(long, default_value_t = 200_000)]
    queued: u64,
    /// Seconds of each load over HTTP
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Connections of each load
    #[arg(long, default_value_t = 128)]
    connections: usize,
    /// PostgreSQL waits for the disk, as in production
    #[arg(long)]
    fsync: bool,
    /// GOGC of nats-server: as docker-compose.prod.yml sets it; 100 is what Go does by itself
    #[arg(long, default_value_t = 300)]
    gogc: u32,
}

// One thread for the load: two that steal from each other take 3 of 140 us a write from the services on the same cores.
#[tokio::main(worker_threads = 1)]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse_from(stack::arguments());
    let mut world = World::up(arguments.fsync, arguments.gogc).await?;
    apply::run(&mut world, arguments.queued).await?;
    writes::run(&mut world, arguments.connections, arguments.seconds).await?;
    reads::run(&mut world, arguments.connections, arguments.seconds).await
}
