//! Watches what PostgreSQL was told, and what the stream held then.
//!
//! In: the servers, asked every 100 ms. Out: pairs of the slot's confirmed LSN and the stream's last
//! sequence. Must hold: the sequence is asked after the LSN, never before.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use wire::Lsn;

use super::world::{STREAM, World};

pub struct Sampler {
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Sample>>>,
}

/// When the slot was confirmed up to `confirmed`, the stream held `sequence` messages or fewer.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub slot: &'static str,
    pub confirmed: Lsn,
    pub sequence: u64,
}

const EVERY: Duration = Duration::from_millis(100);

impl Sampler {
    pub fn start(world: &World) -> Self {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stopped = is_stopped.clone();
        let url = world.postgres().url();
        let slots: Vec<_> = world.roads().iter().map(|road| road.slot).collect();
        let context = world.runtime.block_on(world.jetstream());
        let handle = world.runtime.handle().clone();
        let thread = std::thread::spawn(move || {
            let mut samples = Vec::new();
            // Confirmed while the stream could not be asked.
            let mut confirmed: HashMap<&str, Lsn> = HashMap::new();
            let mut client = None;
            while !stopped.load(Ordering::Relaxed) {
                for &slot in &slots {
                    let seen = handle.block_on(confirmed_flush_lsn(&mut client, &url, slot));
                    if let Some(seen) = seen {
                        let highest = confirmed.entry(slot).or_default();
                        *highest = seen.max(*highest);
                    } else {
                        client = None;
                    }
                }
                // Without a leader, any server answers with what it has.
                if let Ok(stream) = handle.block_on(context.get_stream(STREAM))
                    && stream
                        .cached_info()
                        .cluster
                        .as_ref()
                        .is_none_or(|cluster| cluster.leader.is_some())
                {
                    let sequence = stream.cached_info().state.last_sequence;
                    samples.extend(confirmed.drain().map(|(slot, confirmed)| Sample {
                        slot,
                        confirmed,
                        sequence,
                    }));
                }
                std::thread::sleep(EVERY);
            }
            samples
        });
        Self {
            is_stopped,
            thread: Some(thread),
        }
    }

    pub fn stop(mut self) -> Vec<Sample> {
        self.is_stopped.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is stopped once");
        thread.join().expect("the sampler does not fail")
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }
}

async fn confirmed_flush_lsn(client: &mut Option<Client>, url: &str, slot: &str) -> Option<Lsn> {
    let asked = async {
        if client.is_none() {
            let (connected, connection) = tokio_postgres::connect(url, NoTls).await.ok()?;
            tokio::spawn(connection);
            *client = Some(connected);
        }
        let sql = format!(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"
        );
        let messages = client.as_ref()?.simple_query(&sql).await.ok()?;
        messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        })
    };
    tokio::time::timeout(Duration::from_secs(2), asked)
        .await
        .ok()?
}
