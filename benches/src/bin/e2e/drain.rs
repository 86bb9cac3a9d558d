//! Draining a backlog: the bridge beside the floors, in turn, on copies of the same slot.
//!
//! In: a load. Out: rates, CPU and memory of each reader, and the bridge's rate against the floors'.
//! Must hold: the clock runs from the start of the reader's process to the last message in the
//! stream, for all alike; the stream holds exactly the load's events, or the run fails.

use std::time::{Duration, Instant};

use anyhow::bail;
use async_nats::jetstream::stream::State;

use crate::arguments::{Arguments, Variant};
use crate::bridge::{Bridge, Place, STREAM};
use crate::floor::pipeline;
use crate::floor::publish::Mode;
use crate::floor::read::{self, Reading};
use crate::load::Load;
use crate::peer;
use crate::report::{
    AGAINST_PIPELINE, AGAINST_RECVLOGICAL, NATS_CPU, OWN_CPU, PEAK_RSS, RATE, READ_BYTES, Report,
    SENT_BYTES, STORED_BYTES, WALSENDER_CPU,
};
use crate::targets::BRIDGE;
use crate::usage::{self, Meter};
use crate::world::{DEADLINE, World};

/// Which floors stand beside the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Floors {
    All,
    /// pg_recvlogical alone: the others' payload is that of the six-column row.
    RecvLogical,
}

pub fn drain(
    world: &World,
    arguments: &Arguments,
    report: &mut Report,
    scenario: &str,
    load: &Load<'_>,
    floors: Floors,
) -> anyhow::Result<()> {
    let events = load.events as f64;
    let rate = |elapsed: Duration| events / elapsed.as_secs_f64();
    let per_event = |cpu: Duration| usage::us_each(cpu, load.events);
    let payload = benches::sample::Shape::row6().payload();
    for run in 1..=arguments.runs {
        eprintln!("bench: {scenario}, run {run} of {}", arguments.runs);
        let mut add_reading = |who: &str, reading: &Reading| {
            report.add(scenario, who, RATE, rate(reading.elapsed));
            report.add(scenario, who, OWN_CPU, per_event(reading.own_cpu));
            report.add(
                scenario,
                who,
                WALSENDER_CPU,
                per_event(reading.walsender_cpu),
            );
            if let Some(bytes) = reading.bytes {
                report.add(scenario, who, READ_BYTES, bytes as f64 / events);
            }
        };
        let recvlogical = read::pg_recvlogical(world, load)?;
        add_reading("floor: pg_recvlogical", &recvlogical);
        let mut pipelines = Vec::new();
        if floors == Floors::All {
            add_reading("floor: gulping reader", &read::gulping(world, load)?);
            for mode in Mode::all(world) {
                if matches!(mode, Mode::PubAck | Mode::MsgId) {
                    continue; // The bridge has no such mode; scenario `publish` shows them.
                }
                let outcome = pipeline::run(world, load, mode, &payload)?;
                let who = format!("floor: reader + {}", mode.name());
                report.add(scenario, &who, RATE, rate(outcome.elapsed));
                report.add(scenario, &who, OWN_CPU, per_event(outcome.own_cpu));
                report.add(scenario, &who, NATS_CPU, per_event(outcome.nats_cpu));
                pipelines.push((mode, outcome.elapsed));
            }
        }

        let first = Variant::default();
        for variant in [&first].into_iter().chain(&arguments.variant) {
            let outcome = bridge(world, arguments, load, variant)?;
            let who = match &*variant.name {
                "" => BRIDGE.to_owned(),
                name => format!("{BRIDGE}: {name}"),
            };
            let drained = rate(outcome.elapsed);
            let against = drained / rate(recvlogical.elapsed);
            let mut add = |metric, value| report.add(scenario, &who, metric, value);
            add(RATE, drained);
            add(AGAINST_RECVLOGICAL, against);
            let same_mode = pipelines
                .iter()
                .find(|(mode, _)| mode.is_called(&outcome.publish_mode));
            if let Some((_, elapsed)) = same_mode {
                add(AGAINST_PIPELINE, drained / rate(*elapsed) * 100.0);
            }
            add(OWN_CPU, per_event(outcome.own_cpu));
            add(WALSENDER_CPU, per_event(outcome.walsender_cpu));
            add(NATS_CPU, per_event(outcome.nats_cpu));
            add(PEAK_RSS, megabytes(outcome.peak_rss));
            add(SENT_BYTES, outcome.sent_bytes as f64 / events);
            add(STORED_BYTES, outcome.stored.bytes as f64 / events);
            if variant.name.is_empty() {
                for (thread, cpu) in &outcome.threads {
                    let scenario = format!("{scenario}: threads");
                    report.add(&scenario, thread, OWN_CPU, per_event(*cpu));
                }
            }
        }
        peer::drain(world, arguments, report, scenario, load)?;
    }
    Ok(())
}

/// What the bridge did.
#[derive(Debug)]
pub struct Outcome {
    pub elapsed: Duration,
    pub publish_mode: String,
    pub own_cpu: Duration,
    pub threads: Vec<(String, Duration)>,
    pub walsender_cpu: Duration,
    pub nats_cpu: Duration,
    pub peak_rss: u64,
    pub sent_bytes: u64,
    pub stored: State,
}

/// One drain by the bridge.
pub fn bridge(
    world: &World,
    arguments: &Arguments,
    load: &Load<'_>,
    variant: &Variant,
) -> anyhow::Result<Outcome> {
    let slot = world.copy_slot(&load.name)?;
    world.delete_streams(&[STREAM]);
    let mut nats = Meter::start(world.nats_pid()?);
    let sent_before = world.nats_in_bytes()?;
    let place = Place::alone(&slot, load);
    let bridge = Bridge::start_variant(world, arguments, &place, variant)?;
    let mut own = Meter::start(bridge.pid());
    let mut walsender: Option<Meter> = None;
    loop {
        let messages = world.messages(STREAM);
        if messages >= load.events {
            break;
        }
        bridge.check()?;
        if walsender.is_none() {
            walsender = world.walsender(&slot.name).map(Meter::start);
        }
        if bridge.started.elapsed() > DEADLINE {
            bail!("the bridge stands at {messages} of {} events", load.events);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let elapsed = bridge.started.elapsed();
    let outcome = Outcome {
        elapsed,
        publish_mode: bridge.publish_mode()?,
        // From the process's start: what start-up cost is in it.
        own_cpu: own.read() + own.at_start(),
        threads: usage::cpu_by_thread(bridge.pid()),
        walsender_cpu: walsender.map(|mut meter| meter.read()).unwrap_or_default(),
        nats_cpu: nats.read(),
        peak_rss: usage::peak_rss(bridge.pid()).unwrap_or_default(),
        sent_bytes: world.nats_in_bytes()? - sent_before,
        stored: world.stream(STREAM)?,
    };
    bridge.stop()?;
    if outcome.stored.messages != load.events {
        bail!(
            "the stream holds {} messages of {} events",
            outcome.stored.messages,
            load.events
        );
    }
    world.delete_streams(&[STREAM]);
    Ok(outcome)
}

pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Calls `look` every 10 ms until it returns true or the deadline of all waits is over.
pub fn until(what: &str, mut look: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let started = Instant::now();
    while !look()? {
        if started.elapsed() > DEADLINE {
            bail!("not within {DEADLINE:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
