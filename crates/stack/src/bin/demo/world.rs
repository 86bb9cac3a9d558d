//! The processes of the demo: PostgreSQL, nats-server and the bridge between them.
//!
//! In: a checkout. Out: a bridge that streams.
//! Must hold: the bridge logs in as its own roles, as in production, never as a superuser; it is
//! stopped before the servers are.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context;
use stack::{Options, Process, Stack, build_binary, http_get};

const START_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(15);

pub struct World {
    // Dropped first: a bridge without servers would only wait for them.
    bridge: Process,
    bridge_addr: SocketAddr,
    pub stack: Stack,
}

impl World {
    /// Blocking; the first time it compiles the bridge and fetches servers that are not installed.
    pub fn build() -> anyhow::Result<Self> {
        let started = Instant::now();
        progress(1, "building the bridge (cargo build --package bridge)");
        let binary = build_binary("bridge", "bridge")?;

        progress(
            2,
            "starting PostgreSQL and nats-server in a temporary directory",
        );
        // As in production: commits wait for the disk, clients need a login.
        let stack = Stack::up(
            Options::default()
                .schema(true)
                .fsync(true)
                .nats_login_required(true),
        )?;
        let (postgres, nats) = (stack.postgres(), stack.nats());
        println!(
            "      PostgreSQL {}, nats-server {}",
            postgres.version(),
            nats.version()
        );

        progress(3, "starting the bridge on tables users and orders");
        let port = stack.claim_port();
        let bridge = stack
            .program(binary)
            .args([
                "--stream",
                "CDC,INIT",
                "--slot",
                "cdc_slot",
                "--publication",
                "cdc_pub",
            ])
            .args(["--table", "users,orders", "--port", &port.to_string()])
            .env(
                "DATABASE_URL",
                postgres.url_as("bridge_reader", "bridge_reader", "postgres"),
            )
            .env("NATS_URL", nats.url_as("bridge", "bridge"))
            .try_start()?;
        let bridge_addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let world = Self {
            bridge,
            bridge_addr,
            stack,
        };
        world.wait_connected()?;
        progress(
            4,
            &format!(
                "streaming, {:.1} s after the start",
                started.elapsed().as_secs_f64()
            ),
        );
        Ok(world)
    }

    fn wait_connected(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.bridge.exit_status() {
                anyhow::bail!("the bridge ended ({status})\n{}", self.bridge.log_tail());
            }
            if let Ok((200, body)) = http_get(self.bridge_addr, "/status") {
                let status: serde_json::Value =
                    serde_json::from_str(&body).context("/status is not JSON")?;
                if status["is_connected"] == true {
                    return Ok(());
                }
            }
            if START_DEADLINE < started.elapsed() {
                anyhow::bail!("the bridge does not connect\n{}", self.bridge.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The bridge drains, then the servers go.
    pub fn stop(self) -> anyhow::Result<()> {
        println!("\nstopping: the bridge drains, then the servers go");
        if let Some(status) = self.bridge.exit_status() {
            anyhow::bail!(
                "the bridge had ended ({status})\n{}",
                self.bridge.log_tail()
            );
        }
        let status = self.bridge.terminate(STOP_DEADLINE);
        if !status.success() {
            anyhow::bail!(
                "the bridge did not drain ({status})\n{}",
                self.bridge.log_tail()
            );
        }
        Ok(())
    }

    /// What to type to play with it.
    pub fn directions(&self) -> String {
        let (postgres, nats) = (self.stack.postgres(), self.stack.nats());
        let (bridge, nats_url) = (self.bridge_addr, nats.url_as("app", "app"));
        let (postgres_url, monitoring) = (postgres.url(), nats.monitoring_addr());
        let logs = self.stack.dir().display();
        format!(
            "
== It stays up; new events appear below. Ctrl-C stops everything.
   write    psql {postgres_url}
   read     nats --server {nats_url} stream view CDC
   bridge   curl http://{bridge}/status    (also /health, /metrics)
   NATS     http://{monitoring}
   logs     {logs}
"
        )
    }
}

fn progress(step: u32, text: &str) {
    println!("[{step}/4] {text}");
}
