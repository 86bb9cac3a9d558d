//! Readers that do nothing with what they read.
//!
//! In: a copy of the backlog's slot. Out: how long it took, and what it cost.
//! Must hold: they read the same bytes, with the same options, as the bridge.

use std::time::{Duration, Instant};

use anyhow::bail;
use bridge::pgoutput::{self, Message};
use bridge::postgres::{Endpoint, Frame, Gulp, Read, START_OPTIONS, Session, WAL_SENDER_TIMEOUT};
use wire::Lsn;

use crate::load::Load;
use crate::usage::{self, Meter};
use crate::world::{DEADLINE, World};

/// Longest wait for bytes.
const TICK: Duration = Duration::from_millis(100);

/// What a reader did.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    pub elapsed: Duration,
    pub own_cpu: Duration,
    pub walsender_cpu: Duration,
    /// Bytes read from the socket; not known of pg_recvlogical.
    pub bytes: Option<u64>,
}

/// `pg_recvlogical`, into /dev/null, up to the WAL's end.
pub fn pg_recvlogical(world: &World, load: &Load<'_>) -> anyhow::Result<Reading> {
    let slot = world.copy_slot(&load.name)?;
    let end = world.value("SELECT pg_current_wal_lsn()::text")?;
    let postgres = world.stack.postgres();
    let program = world
        .stack
        .program(world.postgres_program("pg_recvlogical")?)
        .args(["--start", "--no-loop", "-f", "/dev/null", "--endpos", &end])
        .args(["--slot", &slot.name, "-d", &postgres.url()])
        .args(["-o", "proto_version=1", "-o", "messages=true"])
        .args(["-o", &format!("publication_names={}", load.name)]);
    let started = Instant::now();
    let process = program.try_start()?;
    let mut own = Meter::start(process.pid());
    let mut walsender: Option<Meter> = None;
    let status = loop {
        if let Some(status) = process.exit_status() {
            break status;
        }
        own.read();
        match &mut walsender {
            Some(meter) => drop(meter.read()),
            None => walsender = world.walsender(&slot.name).map(Meter::start),
        }
        if started.elapsed() > DEADLINE {
            bail!("pg_recvlogical does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if !status.success() {
        bail!("pg_recvlogical ended ({status})\n{}", process.log_tail());
    }
    Ok(Reading {
        elapsed: started.elapsed(),
        own_cpu: own.read(),
        walsender_cpu: walsender.map(|mut meter| meter.read()).unwrap_or_default(),
        bytes: None,
    })
}

/// The bridge's own session and naps; decodes each message and lets go of it.
pub fn gulping(world: &World, load: &Load<'_>) -> anyhow::Result<Reading> {
    let slot = world.copy_slot(&load.name)?;
    let started = Instant::now();
    let endpoint = world.endpoint();
    let (bytes, own_cpu, walsender_cpu, elapsed) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let cpu = usage::thread_cpu();
            let mut rows = 0;
            let mut walsender = None;
            let bytes = gulp(&endpoint, &slot.name, &load.name, |new| {
                if walsender.is_none() {
                    walsender = world.walsender(&slot.name).map(Meter::start);
                }
                rows += new;
                rows < load.events
            })?;
            let elapsed = started.elapsed();
            let walsender_cpu = walsender.map(|mut meter| meter.read()).unwrap_or_default();
            anyhow::Ok((
                bytes,
                usage::thread_cpu().saturating_sub(cpu),
                walsender_cpu,
                elapsed,
            ))
        });
        reader.join().expect("the reader does not panic")
    })?;
    Ok(Reading {
        elapsed,
        own_cpu,
        walsender_cpu,
        bytes: Some(bytes),
    })
}

/// Reads until `on_rows`, called after each read with the rows it brought, says to stop. Confirms
/// nothing. Returns the bytes read.
pub fn gulp(
    endpoint: &Endpoint,
    slot: &str,
    publication: &str,
    mut on_rows: impl FnMut(u64) -> bool,
) -> anyhow::Result<u64> {
    let session = Session::connect(endpoint, WAL_SENDER_TIMEOUT)?;
    let mut stream = session.start_replication(slot, &[publication.to_owned()], &START_OPTIONS)?;
    let started = Instant::now();
    let (mut bytes, mut status_at) = (0, started);
    let mut naps = Gulp::default();
    loop {
        let before = Instant::now();
        let read = match stream.read(TICK)? {
            Read::Bytes(count) => count,
            Read::TimedOut => 0,
        };
        bytes += read as u64;
        let nap = naps.nap_after(before.elapsed(), read);
        let mut rows = 0;
        while let Some(frame) = stream.next_frame()? {
            if let Frame::XLogData { payload, .. } = frame
                && let Message::Insert { .. } = pgoutput::decode(payload)?
            {
                rows += 1;
            }
        }
        if rows > 0 && !on_rows(rows) {
            return Ok(bytes);
        }
        if status_at.elapsed() > Duration::from_secs(1) {
            stream.send_status(Lsn::INVALID, Lsn::INVALID, Lsn::INVALID, false)?;
            status_at = Instant::now();
        }
        if started.elapsed() > DEADLINE {
            bail!("the backlog does not end");
        }
        if let Some(nap) = nap {
            std::thread::sleep(nap);
        }
    }
}
