//! A bridge that has nothing to do: how soon it is there, and what it takes.

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::arguments::Arguments;
use crate::bridge::{Bridge, Place, STREAM};
use crate::drain::megabytes;
use crate::load::{Load, Writes};
use crate::report::{Metric, Report};
use crate::targets::BRIDGE;
use crate::usage;
use crate::world::World;

pub const START: &str = "start and idle";
pub const FIRST_EVENT: Metric = Metric::new("start to first event ms", 1);
pub const IDLE_RSS: Metric = Metric::new("idle RSS MB", 1);
pub const IDLE_CPU: Metric = Metric::new("idle CPU %", 2);
pub const BINARY: Metric = Metric::new("binary MB", 1);

const IDLE: Duration = Duration::from_secs(5);

pub fn run(world: &World, arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("bench: {START}");
    let size = std::fs::metadata(&world.bridge)?.len();
    report.add(START, BRIDGE, BINARY, megabytes(size));
    let load = Load::row6(world, "bench_start", 10, Writes::Transactions(10))?;
    for _ in 0..arguments.runs {
        let slot = world.copy_slot(&load.name)?;
        world.delete_streams(&[STREAM]);
        let bridge = Bridge::start(world, arguments, &Place::alone(&slot, &load))?;
        while world.messages(STREAM) == 0 {
            bridge.check()?;
            if bridge.started.elapsed() > Duration::from_secs(30) {
                bail!("no event within 30 s");
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        report.add(
            START,
            BRIDGE,
            FIRST_EVENT,
            bridge.started.elapsed().as_secs_f64() * 1e3,
        );
        bridge.wait_ready()?;
        let cpu = usage::cpu(bridge.pid()).unwrap_or_default();
        let idle_since = Instant::now();
        std::thread::sleep(IDLE);
        let used = usage::cpu(bridge.pid())
            .unwrap_or_default()
            .saturating_sub(cpu);
        let part = used.as_secs_f64() / idle_since.elapsed().as_secs_f64();
        report.add(START, BRIDGE, IDLE_CPU, part * 100.0);
        let rss = usage::rss(bridge.pid()).unwrap_or_default();
        report.add(START, BRIDGE, IDLE_RSS, megabytes(rss));
        bridge.stop()?;
        world.delete_streams(&[STREAM]);
    }
    Ok(())
}
