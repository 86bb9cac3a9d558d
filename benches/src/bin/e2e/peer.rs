//! Another program beside the bridge, on the same backlog.
//!
//! In: a command, and where its count of events is found. Out: its rate, CPU and memory.
//! Must hold: nothing is known of it here but what the flags say.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, bail};
use regex_lite::Regex;
use stack::Process;

use crate::arguments::Arguments;
use crate::drain::{megabytes, until};
use crate::load::Load;
use crate::report::{NATS_CPU, OWN_CPU, PEAK_RSS, RATE, Report, STORED_BYTES};
use crate::start::FIRST_EVENT;
use crate::usage::{self, Meter};
use crate::world::World;

const PEER: &str = "peer";

/// Nothing to do without `--peer`.
pub fn drain(
    world: &World,
    arguments: &Arguments,
    report: &mut Report,
    scenario: &str,
    load: &Load<'_>,
) -> anyhow::Result<()> {
    let Some(command) = &arguments.peer else {
        return Ok(());
    };
    let slot = world.copy_slot(&load.name)?;
    let port = world.stack.claim_port();
    let fill = |text: &str| filled(world, text, &slot.name, &load.name, port);
    let mut streams = Vec::new();
    for stream in &arguments.peer_stream {
        let (name, subject) = stream
            .split_once('=')
            .context("--peer-stream takes NAME=SUBJECT")?;
        world.delete_streams(&[name]);
        world.create_stream(name, subject)?;
        streams.push(name);
    }
    let metrics_url = arguments.peer_metrics_url.as_deref().map(fill);
    let done = |process: &Process| match &arguments.peer_metric {
        Some(metric) => counted(process, metrics_url.as_deref(), metric),
        None => streams.iter().map(|stream| world.messages(stream)).sum(),
    };
    let mut nats = Meter::start(world.nats_pid()?);
    let mut first_event = None;
    let started = Instant::now();
    let process = world
        .stack
        .program("/bin/sh")
        .named(&format!("peer-{}", slot.name))
        // Its process id is then the peer's own.
        .args(["-c", &format!("exec {}", fill(command))])
        .try_start()?;
    until("the peer has done all events", || {
        if let Some(status) = process.exit_status() {
            bail!("the peer ended ({status})\n{}", process.log_tail());
        }
        let done = done(&process);
        if done > 0 {
            first_event.get_or_insert_with(|| started.elapsed());
        }
        Ok(done >= load.events)
    })?;
    let elapsed = started.elapsed().as_secs_f64();
    report.add(scenario, PEER, RATE, load.events as f64 / elapsed);
    let own_cpu = usage::cpu(process.pid()).unwrap_or_default();
    report.add(
        scenario,
        PEER,
        OWN_CPU,
        usage::us_each(own_cpu, load.events),
    );
    report.add(
        scenario,
        PEER,
        NATS_CPU,
        usage::us_each(nats.read(), load.events),
    );
    let first_event = first_event.unwrap_or_default().as_secs_f64();
    report.add(scenario, PEER, FIRST_EVENT, first_event * 1e3);
    let peak = usage::peak_rss(process.pid()).unwrap_or_default();
    report.add(scenario, PEER, PEAK_RSS, megabytes(peak));
    let mut stored = 0;
    for stream in &streams {
        stored += world.stream(stream)?.bytes;
    }
    if stored > 0 {
        let each = stored as f64 / load.events as f64;
        report.add(scenario, PEER, STORED_BYTES, each);
    }
    process.kill();
    world.delete_streams(&streams);
    Ok(())
}

/// 0 while it says nothing.
fn counted(process: &Process, url: Option<&str>, metric: &Regex) -> u64 {
    let text = match url {
        None => process.stdout() + &process.stderr(),
        Some(url) => fetch(url).unwrap_or_default(),
    };
    let last = metric.captures_iter(&text).last();
    last.and_then(|found| found.get(1)?.as_str().parse().ok())
        .unwrap_or(0)
}

fn fetch(url: &str) -> Option<String> {
    let rest = url.strip_prefix("http://")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let addr: SocketAddr = host.replace("localhost", "127.0.0.1").parse().ok()?;
    Some(stack::http_get(addr, &format!("/{path}")).ok()?.1)
}

fn filled(world: &World, text: &str, slot: &str, publication: &str, port: u16) -> String {
    let postgres = world.stack.postgres();
    [
        ("{pg_host}", postgres.host().to_owned()),
        ("{pg_port}", postgres.port().to_string()),
        ("{pg_user}", postgres.user().to_owned()),
        ("{pg_password}", postgres.password().to_owned()),
        ("{pg_database}", "postgres".to_owned()),
        ("{pg_url}", postgres.url()),
        ("{nats_url}", world.stack.nats().url()),
        ("{slot}", slot.to_owned()),
        ("{publication}", publication.to_owned()),
        ("{port}", port.to_string()),
    ]
    .iter()
    .fold(text.to_owned(), |text, (name, value)| {
        text.replace(name, value)
    })
}
