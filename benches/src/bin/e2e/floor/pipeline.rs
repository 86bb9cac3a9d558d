//! The floor pipeline: the gulping reader and a bare publisher, with nothing but a counter between.
//!
//! In: a copy of the backlog's slot. Out: how long it took until as many messages were stored as
//! rows were read. Must hold: it does all the waiting and all the system calls the bridge must do,
//! and none of the work in between: no events, no encoding.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::publish::{Mode, Sender, wait_stored};
use super::read;
use crate::load::Load;
use crate::usage::{self, Meter};
use crate::world::World;

#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    pub elapsed: Duration,
    pub own_cpu: Duration,
    pub nats_cpu: Duration,
}

pub fn run(world: &World, load: &Load<'_>, mode: Mode, payload: &[u8]) -> anyhow::Result<Outcome> {
    let slot = world.copy_slot(&load.name)?;
    world.create_stream("FLOOR", "floor.>")?;
    let endpoint = world.endpoint();
    let (rows, news, is_over) = (AtomicU64::new(0), Notify::new(), AtomicBool::new(false));
    let mut nats = Meter::start(world.nats_pid()?);
    let started = Instant::now();
    let cpu = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let cpu = usage::thread_cpu();
            let read = read::gulp(&endpoint, &slot.name, &load.name, |new| {
                let before = rows.fetch_add(new, Ordering::AcqRel);
                news.notify_one();
                before + new < load.events
            });
            is_over.store(true, Ordering::Release);
            news.notify_one();
            read.map(|_| usage::thread_cpu().saturating_sub(cpu))
        });
        let publisher = scope.spawn(|| {
            let cpu = usage::thread_cpu();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut sender =
                    Sender::open(world, mode, "floor.bench.insert", payload.to_vec()).await?;
                loop {
                    // Asked first: what it had read when it was over has been counted.
                    let is_last = is_over.load(Ordering::Acquire);
                    let read = rows.load(Ordering::Acquire);
                    if read > sender.sent {
                        sender.send_up_to(read).await?;
                    } else if is_last {
                        break;
                    } else {
                        // The reader has a deadline, and says so when it is over.
                        news.notified().await;
                    }
                }
                sender.finish().await
            })?;
            anyhow::Ok(usage::thread_cpu().saturating_sub(cpu))
        });
        let reader = reader.join().expect("the reader does not panic")?;
        let publisher = publisher.join().expect("the publisher does not panic")?;
        anyhow::Ok(reader + publisher)
    });
    let stored = cpu.and_then(|cpu| wait_stored(world, "FLOOR", load.events).map(|()| cpu));
    let (elapsed, nats_cpu) = (started.elapsed(), nats.read());
    world.delete_streams(&["FLOOR"]);
    Ok(Outcome {
        elapsed,
        own_cpu: stored?,
        nats_cpu,
    })
}
