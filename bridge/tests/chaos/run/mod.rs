//! Everything breaks at random while rows are written; then the stream is compared with PostgreSQL.
//!
//! In: a plan with its seed. Out: a summary, or a panic that says what differs.
//! Must hold: what is expected comes from a slot of its own read by SQL with another output plugin, so
//! that nothing of the bridge is taken for granted.

mod dice;
mod faults;
mod judge;
mod load;
mod sampler;
mod world;

use std::time::{Duration, Instant};

use stack::{NatsVersion, PostgresVersion};

use dice::Dice;
use faults::Faults;
use load::Load;
use sampler::Sampler;
use world::World;

/// What to do for how long.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub time: Duration,
    pub nats: NatsVersion,
    pub postgres: PostgresVersion,
    /// PostgreSQL waits for the disk.
    pub fsync: bool,
    /// Three nats-servers and three replicas of everything.
    pub is_cluster: bool,
    pub bridges: Bridges,
    /// `--publish-mode`.
    pub mode: String,
    /// `--durability`.
    pub durability: String,
    /// `--hold`, where that is `held`.
    pub hold: String,
    /// Rows of the large transactions.
    pub bulk_rows: u64,
    /// Tell each fault on standard error.
    pub is_loud: bool,
}

/// How many, and how they divide the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Bridges {
    One,
    /// Two on one slot
    Pair,
    /// Two on one stream, each with tables of its own
    Split,
}

/// For everything to arrive once nothing is broken any more.
const DEADLINE: Duration = Duration::from_mins(3);

/// Carries the plan out.
#[track_caller]
pub fn run(plan: &Plan) -> String {
    let world = World::new(plan);
    world.wait_streaming();
    world.create_shadow();
    let sampler = Sampler::start(&world);
    let load = Load::start(&world, plan);
    let mut faults = Faults::new(&world, Dice::new(plan.seed, 0), plan);
    let started = Instant::now();
    while started.elapsed() < plan.time {
        faults.play();
    }
    faults.heal();
    let transactions = load.stop();
    world.wait_for_fence(DEADLINE);
    let seen = sampler.stop();
    world.drain();

    let judgement = judge::judge(&world, &seen);
    let errors = world.errors();
    if plan.is_loud {
        for error in &errors {
            eprintln!("{error}");
        }
    }
    format!(
        "{judgement}, {} errors told, {transactions} transactions, {} faults: {}",
        errors.len(),
        faults.count(),
        faults.summary()
    )
}
