//! Breaks bridge, nats-server and PostgreSQL at random for as long as wished, and compares.
//!
//! In: flags. Out: one line per run; exit status 1 if one fails, with the seed that repeats it.
//! Must hold: the suite runs the same in short (`tests/chaos`).
//!
//! `cargo run -p bridge --example chaos -- --seed 1 --runs 10 --seconds 120 --nats 2.15 --cluster`

#[path = "../tests/chaos/run/mod.rs"]
mod run;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use run::{Bridges, Plan};
use stack::{NatsVersion, PostgresVersion};

#[derive(Parser)]
struct Arguments {
    /// Of the first run; each further one has the next
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// How long a run breaks things
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    #[arg(long, value_enum, default_value = "2.9")]
    nats: Server,
    #[arg(long, value_enum, default_value = "installed")]
    postgres: PostgresVersion,
    /// PostgreSQL waits for the disk
    #[arg(long)]
    fsync: bool,
    /// Three nats-servers, three replicas, and the leader is hit most
    #[arg(long)]
    cluster: bool,
    #[arg(long, value_enum, default_value = "one")]
    bridges: Bridges,
    /// As the bridge's --publish-mode
    #[arg(long, default_value = "auto")]
    mode: String,
    /// As the bridge's
    #[arg(long, default_value = "acked")]
    durability: String,
    /// As the bridge's
    #[arg(long, default_value = "130s")]
    hold: String,
    /// Rows of the large transactions
    #[arg(long, default_value_t = 100_000)]
    bulk_rows: u64,
    /// Tell each fault
    #[arg(long)]
    loud: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Server {
    /// That of the system
    #[value(name = "2.9")]
    V2_9,
    #[value(name = "2.14")]
    V2_14,
    #[value(name = "2.15")]
    V2_15,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut failed = Vec::new();
    for seed in arguments.seed..arguments.seed + arguments.runs {
        let plan = Plan {
            seed,
            time: Duration::from_secs(arguments.seconds),
            nats: match arguments.nats {
                Server::V2_9 => NatsVersion::Any,
                Server::V2_14 => NatsVersion::V2_14,
                Server::V2_15 => NatsVersion::V2_15,
            },
            postgres: arguments.postgres,
            fsync: arguments.fsync,
            is_cluster: arguments.cluster,
            bridges: arguments.bridges,
            mode: arguments.mode.clone(),
            durability: arguments.durability.clone(),
            hold: arguments.hold.clone(),
            bulk_rows: arguments.bulk_rows,
            is_loud: arguments.loud,
        };
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| run::run(&plan)));
        let took = started.elapsed().as_secs();
        if let Ok(said) = outcome {
            println!("seed {seed}: {said}, in {took} s");
        } else {
            println!("seed {seed}: FAILED after {took} s; {plan:?}");
            failed.push(seed);
        }
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        println!("failed: {failed:?}");
        ExitCode::FAILURE
    }
}
