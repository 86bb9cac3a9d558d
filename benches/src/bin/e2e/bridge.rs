//! One running bridge, as an operator starts it.
//!
//! In: a slot, a publication, a stream. Out: a process, its metrics, its CPU and memory.
//! Must hold: it logs in as its own roles; it is stopped before its stream is deleted.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::bail;
use stack::Process;

use crate::arguments::{Arguments, Variant};
use crate::load::Load;
use crate::world::{Slot, World};

/// Where a bridge that runs alone publishes.
pub const STREAM: &str = "CDC";

const START_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

pub struct Bridge {
    process: Process,
    addr: SocketAddr,
    pub started: Instant,
}

/// What it reads and where it writes.
pub struct Place<'a> {
    pub slot: &'a str,
    pub publication: &'a str,
    pub stream: &'a str,
    pub prefix: &'a str,
}

impl<'a> Place<'a> {
    /// No other bridge beside it.
    pub fn alone(slot: &'a Slot<'_>, load: &'a Load<'_>) -> Self {
        Self {
            slot: &slot.name,
            publication: &load.name,
            stream: STREAM,
            prefix: "cdc",
        }
    }
}

impl Bridge {
    pub fn start(world: &World, arguments: &Arguments, place: &Place<'_>) -> anyhow::Result<Self> {
        Self::start_variant(world, arguments, place, &Variant::default())
    }

    pub fn start_variant(
        world: &World,
        arguments: &Arguments,
        place: &Place<'_>,
        variant: &Variant,
    ) -> anyhow::Result<Self> {
        let port = world.stack.claim_port();
        let extra = arguments.bridge_args.as_deref().unwrap_or_default();
        let program = world
            .stack
            .program(variant.path.as_ref().unwrap_or(&world.bridge))
            .named(&format!("bridge-{}", place.slot))
            .args(["--slot", place.slot, "--publication", place.publication])
            .args(["--stream", &format!("{},INIT", place.stream)])
            .args([
                "--subject-prefix",
                place.prefix,
                "--port",
                &port.to_string(),
            ])
            .args(extra.split_whitespace())
            .args(&variant.arguments)
            .env(
                "DATABASE_URL",
                world
                    .stack
                    .postgres()
                    .url_as("bridge_reader", "bridge_reader", "postgres"),
            )
            .env("NATS_URL", world.stack.nats().url_as("bridge", "bridge"));
        let started = Instant::now();
        let process = program.try_start()?;
        Ok(Self {
            process,
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            started,
        })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Fails when it has ended by itself.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.process.exit_status() {
            None => Ok(()),
            Some(status) => bail!("the bridge ended ({status})\n{}", self.process.log_tail()),
        }
    }

    /// Waits until it reads and publishes.
    pub fn wait_ready(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            self.check()?;
            if let Ok((200, _)) = stack::http_get(self.addr, "/ready") {
                return Ok(());
            }
            if started.elapsed() > START_DEADLINE {
                bail!("the bridge is not ready\n{}", self.process.log_tail());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// How it publishes: `chain`, `fast` and so on.
    pub fn publish_mode(&self) -> anyhow::Result<String> {
        let (_, body) = stack::http_get(self.addr, "/status")?;
        let status: serde_json::Value = serde_json::from_str(&body)?;
        Ok(status["publish_mode"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }

    /// SIGTERM; it must say that everything is drained.
    pub fn stop(self) -> anyhow::Result<()> {
        self.check()?;
        let status = self.process.terminate(STOP_DEADLINE);
        if !status.success() {
            bail!(
                "the bridge did not drain ({status})\n{}",
                self.process.log_tail()
            );
        }
        Ok(())
    }
}
