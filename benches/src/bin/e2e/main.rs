//! `cargo bench-e2e`: the whole road under known loads, beside what the machine can do at most.
//!
//! In: a checkout. Out: tables of medians, the verdict on the targets; JSON and a picture on request.
//! Must hold: figures that are compared come from one run on one machine; every wait has a bound;
//! every process is stopped by its id.

mod arguments;
mod bridge;
mod drain;
mod floor;
mod live;
mod load;
mod peer;
mod plot;
mod report;
mod shapes;
mod snapshot;
mod start;
mod targets;
mod world;

use anyhow::Context as _;
use benches::usage;

use arguments::{Arguments, Scenario};
use load::Writes;
use report::Report;
use world::World;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::from_process();
    let world = World::up(&arguments)?;
    let mut report = Report::default();
    describe(&world, &arguments, &mut report);
    for (name, value) in &report.setting {
        println!("{name}: {value}");
    }
    let mut failure = None;
    for &scenario in &arguments.scenarios {
        let shown = report.scenarios().len();
        // What was measured before a failure is still worth its print.
        if let Err(error) = run(scenario, &world, &arguments, &mut report) {
            failure = Some(error.context(format!("scenario {scenario:?}")));
            break;
        }
        for name in &report.scenarios()[shown..] {
            println!("\n{}", report.table(name));
        }
    }
    println!(
        "\n{}",
        report.verdict(targets::all(world.has_fast_batches()))
    );
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &arguments.plot {
        plot::write(&report, path)?;
    }
    failure.map_or(Ok(()), Err)
}

fn run(
    scenario: Scenario,
    world: &World,
    arguments: &Arguments,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut backlog = |name, writes| shapes::backlog(world, arguments, report, name, writes);
    match scenario {
        Scenario::Drain10 => backlog(shapes::DRAIN_10, Writes::Transactions(10)),
        Scenario::Drain1000 => backlog(shapes::DRAIN_1000, Writes::Transactions(1000)),
        Scenario::DrainCopy => backlog(shapes::DRAIN_COPY, Writes::Copy),
        Scenario::Start => start::run(world, arguments, report),
        Scenario::Publish => shapes::publish(world, arguments, report),
        Scenario::Live => live::run(world, arguments, report),
        Scenario::Wide => shapes::wide(world, arguments, report),
        Scenario::Fat => shapes::fat(world, arguments, report),
        Scenario::Tables => shapes::tables(world, arguments, report),
        Scenario::Large => shapes::large(world, arguments, report),
        Scenario::Several => shapes::several(world, arguments, report),
        Scenario::Snapshot => snapshot::run(world, arguments, report),
    }
}

/// Under which circumstances the figures were taken.
fn describe(world: &World, arguments: &Arguments, report: &mut Report) {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let setting = [
        ("PostgreSQL", world.stack.postgres().version().to_owned()),
        ("nats-server", world.stack.nats().version().to_owned()),
        ("bridge", world.bridge.display().to_string()),
        ("cores", cores.to_string()),
        ("rows", arguments.rows.to_string()),
        ("runs", arguments.runs.to_string()),
        ("fsync", arguments.fsync.to_string()),
    ];
    report.setting.extend(setting);
}
