//! Once and in order, whatever crashes: a short run of what `cargo run -p bridge --example chaos` does for
//! hours, on the nats-server and PostgreSQL of the system.

mod run;

use std::time::Duration;

use run::{Bridges, Plan};
use stack::{NatsVersion, PostgresVersion};

fn plan(seed: u64) -> Plan {
    Plan {
        seed,
        time: Duration::from_secs(15),
        nats: NatsVersion::Any,
        postgres: PostgresVersion::Any,
        fsync: false,
        is_cluster: false,
        bridges: Bridges::One,
        mode: "auto".to_owned(),
        durability: "acked".to_owned(),
        hold: "130s".to_owned(),
        bulk_rows: 10_000,
        is_loud: true,
    }
}

#[test]
fn a_pair_of_bridges_loses_and_repeats_nothing_while_everything_breaks() {
    let said = run::run(&Plan {
        bridges: Bridges::Pair,
        ..plan(3)
    });

    println!("{said}");
}

#[test]
fn a_cluster_whose_leader_goes_down_again_and_again_loses_and_repeats_nothing() {
    let said = run::run(&Plan {
        is_cluster: true,
        ..plan(4)
    });

    println!("{said}");
}

#[test]
fn two_bridges_on_one_stream_lose_and_repeat_nothing_while_everything_breaks() {
    let said = run::run(&Plan {
        bridges: Bridges::Split,
        ..plan(5)
    });

    println!("{said}");
}
