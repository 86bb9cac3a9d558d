//! Which backlogs are drained.

use std::time::{Duration, Instant};

use crate::arguments::Arguments;
use crate::bridge::{Bridge, Place, STREAM};
use crate::drain::{self, Floors, drain, megabytes, until};
use crate::floor::client;
use crate::floor::publish::{self, Mode, Publishing};
use crate::load::{Load, Writes};
use crate::report::{Metric, NATS_CPU, OWN_CPU, PEAK_RSS, RATE, Report};
use crate::targets::BRIDGE;
use crate::usage;
use crate::world::World;

pub const DRAIN_10: &str = "drain, 10-row transactions";
pub const DRAIN_1000: &str = "drain, 1,000-row transactions";
pub const DRAIN_COPY: &str = "drain, one COPY";
pub const LARGE: &str = "one large transaction";

const NEVER_STALLED: Metric = Metric::new("longest stall ms", 0);
const FIRST_RSS: Metric = Metric::new("RSS at 10 % MB", 1);
const LAST_RSS: Metric = Metric::new("RSS at 90 % MB", 1);

/// The six-column backlog.
pub fn backlog(
    world: &World,
    arguments: &Arguments,
    report: &mut Report,
    scenario: &str,
    writes: Writes,
) -> anyhow::Result<()> {
    eprintln!("bench: {scenario}, writing {} rows", arguments.rows);
    let load = Load::row6(world, "bench_row6", arguments.rows, writes)?;
    drain(world, arguments, report, scenario, &load, Floors::All)
}

/// As many bytes as the six-column backlog of a fifth of the rows has.
pub fn wide(world: &World, arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let load = Load::wide(world, "bench_wide", round(arguments.rows / 10))?;
    drain(
        world,
        arguments,
        report,
        "drain, 50 columns",
        &load,
        Floors::RecvLogical,
    )
}

pub fn fat(world: &World, arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let load = Load::fat(world, "bench_fat", round(arguments.rows / 50))?;
    drain(
        world,
        arguments,
        report,
        "drain, rows of 20 kB",
        &load,
        Floors::RecvLogical,
    )
}

pub fn tables(world: &World, arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let mut measured = |name, scenario, rows| {
        let load = Load::tables(world, name, TABLES, round(rows))?;
        drain(
            world,
            arguments,
            report,
            scenario,
            &load,
            Floors::RecvLogical,
        )?;
        let cost = report.median(scenario, BRIDGE, OWN_CPU);
        anyhow::Ok((load.events as f64, cost.unwrap_or(f64::NAN)))
    };
    let (few, few_cost) = measured("bench_few", "drain, 1,000 tables", arguments.rows / 8)?;
    let scenario = "drain, 1,000 tables, four times the rows";
    let (many, many_cost) = measured("bench_many", scenario, arguments.rows / 2)?;
    // What a table costs once, its shape, is in the first rows alone.
    let further = (many * many_cost - few * few_cost) / (many - few);
    let once = (few_cost - further) * few / TABLES as f64;
    report.add(scenario, BRIDGE, FURTHER_CPU, further);
    report.add(scenario, BRIDGE, TABLE_CPU, once);
    Ok(())
}

const TABLES: u64 = 1000;
const FURTHER_CPU: Metric = Metric::new("us/further event", 2);
const TABLE_CPU: Metric = Metric::new("us/table, once", 0);

/// Loads are written in transactions of at most 1,000 rows.
fn round(rows: u64) -> u64 {
    rows.div_ceil(1000) * 1000
}

/// nats-server alone.
pub fn publish(world: &World, arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let payload = benches::sample::Shape::row6().payload();
    let count = (arguments.rows / 4).max(1);
    let scenario = format!(
        "nats-server {}, ready-made messages",
        world.stack.nats().version()
    );
    let mut add = |who: &str, outcome: &Publishing| {
        let per_event = |cpu: Duration| usage::us_each(cpu, count);
        let rate = count as f64 / outcome.elapsed.as_secs_f64();
        report.add(&scenario, who, RATE, rate);
        report.add(&scenario, who, OWN_CPU, per_event(outcome.own_cpu));
        report.add(&scenario, who, NATS_CPU, per_event(outcome.nats_cpu));
    };
    for _ in 0..arguments.runs {
        for mode in Mode::all(world) {
            eprintln!("bench: publishing, {}", mode.name());
            add(mode.name(), &publish::run(world, mode, &payload, count)?);
        }
        eprintln!("bench: publishing, {}", client::NAME);
        add(client::NAME, &client::run(world, &payload, count)?);
    }
    Ok(())
}

/// One transaction: the bridge's memory stays flat and its progress moves while it drains.
pub fn large(world: &World, arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("bench: {LARGE}, writing {} rows", arguments.large_rows);
    let load = Load::row6(world, "bench_large", arguments.large_rows, Writes::Copy)?;
    let slot = world.copy_slot(&load.name)?;
    world.delete_streams(&[STREAM]);
    let bridge = Bridge::start(world, arguments, &Place::alone(&slot, &load))?;
    let (mut stored, mut moved_at) = (0, Instant::now());
    let (mut longest, mut first_rss, mut last_rss) = (Duration::ZERO, None, None);
    let mut first_stored_at = None;
    until("the large transaction is stored", || {
        bridge.check()?;
        let now = world.messages(STREAM);
        if now > stored {
            // Before the first event PostgreSQL reads the whole transaction back.
            if first_stored_at.is_some() {
                longest = longest.max(moved_at.elapsed());
            }
            first_stored_at.get_or_insert_with(Instant::now);
            (stored, moved_at) = (now, Instant::now());
        }
        let rss = usage::rss(bridge.pid()).unwrap_or_default();
        if stored >= load.events / 10 && first_rss.is_none() {
            first_rss = Some(rss);
        }
        if stored >= load.events / 10 * 9 && last_rss.is_none() {
            last_rss = Some(rss);
        }
        Ok(stored >= load.events)
    })?;
    let sending = first_stored_at.map_or(Duration::ZERO, |at| at.elapsed());
    let rate = load.events as f64 / sending.as_secs_f64();
    report.add(LARGE, BRIDGE, RATE, rate);
    let peak = usage::peak_rss(bridge.pid()).unwrap_or_default();
    report.add(LARGE, BRIDGE, PEAK_RSS, megabytes(peak));
    report.add(
        LARGE,
        BRIDGE,
        FIRST_RSS,
        megabytes(first_rss.unwrap_or_default()),
    );
    report.add(
        LARGE,
        BRIDGE,
        LAST_RSS,
        megabytes(last_rss.unwrap_or_default()),
    );
    report.add(LARGE, BRIDGE, NEVER_STALLED, longest.as_secs_f64() * 1e3);
    let cpu = usage::cpu(bridge.pid()).unwrap_or_default();
    report.add(LARGE, BRIDGE, OWN_CPU, usage::us_each(cpu, load.events));
    bridge.stop()?;
    world.delete_streams(&[STREAM]);
    Ok(())
}

/// One, two and four bridges: a table, a slot and a stream each.
pub fn several(world: &World, arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let rows = round(arguments.rows / 4);
    for _ in 0..arguments.runs {
        for bridges in [1_u64, 2, 4] {
            let who = format!("{bridges} side by side");
            eprintln!("bench: bridges, {who}");
            let loads: Vec<Load<'_>> = (0..bridges)
                .map(|index| {
                    let name = format!("bench_side_{index}");
                    Load::row6(world, &name, rows / bridges, Writes::Transactions(10))
                })
                .collect::<Result<_, _>>()?;
            side_by_side(world, arguments, report, &who, &loads)?;
        }
    }
    Ok(())
}

fn side_by_side(
    world: &World,
    arguments: &Arguments,
    report: &mut Report,
    who: &str,
    loads: &[Load<'_>],
) -> anyhow::Result<()> {
    const SCENARIO: &str = "bridges side by side";
    let slots: Vec<_> = loads
        .iter()
        .map(|load| world.copy_slot(&load.name))
        .collect::<Result<_, _>>()?;
    let streams: Vec<String> = (0..loads.len())
        .map(|index| format!("SIDE{index}"))
        .collect();
    let started = Instant::now();
    let bridges: Vec<Bridge> = (0..loads.len())
        .map(|index| {
            let place = Place {
                slot: &slots[index].name,
                publication: &loads[index].name,
                stream: &streams[index],
                prefix: &format!("side{index}"),
            };
            Bridge::start(world, arguments, &place)
        })
        .collect::<Result<_, _>>()?;
    until("all bridges have drained", || {
        bridges.iter().try_for_each(Bridge::check)?;
        let mut waiting = streams.iter().zip(loads);
        Ok(waiting.all(|(stream, load)| world.messages(stream) >= load.events))
    })?;
    let events: u64 = loads.iter().map(|load| load.events).sum();
    let rate = events as f64 / started.elapsed().as_secs_f64();
    report.add(SCENARIO, who, RATE, rate);
    let cpu: Duration = bridges
        .iter()
        .filter_map(|bridge| usage::cpu(bridge.pid()))
        .sum();
    report.add(SCENARIO, who, OWN_CPU, usage::us_each(cpu, events));
    let peak: u64 = bridges
        .iter()
        .filter_map(|bridge| usage::peak_rss(bridge.pid()))
        .sum();
    report.add(SCENARIO, who, PEAK_RSS, drain::megabytes(peak));
    for bridge in bridges {
        bridge.stop()?;
    }
    let streams: Vec<&str> = streams.iter().map(String::as_str).collect();
    world.delete_streams(&streams);
    Ok(())
}
