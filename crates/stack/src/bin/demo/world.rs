//! The processes of the demo: PostgreSQL, nats-server, Redis, the bridge between them, and the services around it.
//!
//! In: a checkout. Out: a bridge that streams, a gateway that accepts, a reader that answers.
//! Must hold: each process logs in as its own roles, as in production, never as a superuser; all are
//! stopped before the servers are.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use stack::{Options, Process, Stack, build_binaries, http_get};

const START_DEADLINE: Duration = Duration::from_mins(1);
const STOP_DEADLINE: Duration = Duration::from_secs(15);

pub struct World {
    // Dropped first: a process without servers would only wait for them.
    services: Vec<Process>,
    bridge: Process,
    bridge_addr: SocketAddr,
    pub gateway: SocketAddr,
    pub reader: SocketAddr,
    pub stack: Stack,
}

const PACKAGES: [&str; 4] = ["bridge", "gateway", "processor", "reader"];

impl World {
    /// Blocking; the first time it compiles the processes and fetches servers that are not installed.
    pub fn build() -> anyhow::Result<Self> {
        let started = Instant::now();
        progress(1, "building the bridge and the services (cargo build)");
        let binaries = build_binaries(&PACKAGES)?;

        progress(
            2,
            "starting PostgreSQL, nats-server and Redis in a temporary directory",
        );
        // As in production: commits wait for the disk, clients need a login.
        let stack = Stack::up(
            Options::default()
                .schema(true)
                .fsync(true)
                .nats_login_required(true)
                .redis(true),
        )?;
        let (postgres, nats) = (stack.postgres(), stack.nats());
        println!(
            "      PostgreSQL {}, nats-server {}",
            postgres.version(),
            nats.version()
        );

        progress(
            3,
            "starting the bridge on tables users and orders, and the services around it",
        );
        let addresses =
            PACKAGES.map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, stack.claim_port())));
        let start = |index: usize, pg_user: &str, nats_user: &str, flags: &[&str]| {
            stack
                .program(&binaries[index])
                .args(["--port", &addresses[index].port().to_string()])
                .args(flags)
                .env(
                    "DATABASE_URL",
                    postgres.url_as(pg_user, pg_user, "postgres"),
                )
                .env("NATS_URL", nats.url_as(nats_user, nats_user))
                .env("REDIS_URL", stack.redis().url())
                .try_start()
        };
        let tables = "users,orders,write_operations";
        let slot = ["--stream", "CDC,INIT", "--slot", "cdc_slot"];
        let publication = ["--publication", "cdc_pub", "--table", tables];
        let bridge = start(0, "bridge_reader", "bridge", &[slot, publication].concat())?;
        let services = vec![
            start(1, "nobody", "app", &[])?,
            start(2, "service_processor", "app", &[])?,
            start(3, "service_reader", "app", &[])?,
        ];
        let [bridge_addr, gateway, processor, reader] = addresses;
        let world = Self {
            services,
            bridge,
            bridge_addr,
            gateway,
            reader,
            stack,
        };
        wait_ready(bridge_addr, "/ready", &world.bridge)?;
        for (addr, service) in [gateway, processor, reader]
            .into_iter()
            .zip(&world.services)
        {
            wait_ready(addr, "/health", service)?;
        }
        progress(
            4,
            &format!(
                "streaming, {:.1} s after the start",
                started.elapsed().as_secs_f64()
            ),
        );
        Ok(world)
    }

    /// As the services log in.
    pub async fn nats_client(&self) -> anyhow::Result<async_nats::Client> {
        // async-nats does not send the user of a URL by itself.
        let options =
            async_nats::ConnectOptions::with_user_and_password("app".into(), "app".into());
        Ok(options
            .connect(self.stack.nats().addr().to_string())
            .await?)
    }

    /// The services finish what they have in hand, the bridge drains, then the servers go.
    pub fn stop(self) -> anyhow::Result<()> {
        println!("\nstopping: the services, the bridge, then the servers");
        for process in self.services.iter().chain([&self.bridge]) {
            if let Some(status) = process.exit_status() {
                anyhow::bail!("a process had ended ({status})\n{}", process.log_tail());
            }
            let status = process.terminate(STOP_DEADLINE);
            if !status.success() {
                anyhow::bail!("a process did not drain ({status})\n{}", process.log_tail());
            }
        }
        Ok(())
    }

    /// What to type to play with it.
    pub fn directions(&self) -> String {
        let (postgres, nats) = (self.stack.postgres(), self.stack.nats());
        let (bridge, nats_url) = (self.bridge_addr, nats.url_as("app", "app"));
        let (gateway, reader) = (self.gateway, self.reader);
        let (postgres_url, monitoring) = (postgres.url(), nats.monitoring_addr());
        let logs = self.stack.dir().display();
        format!(
            "
== It stays up; new events appear below. Ctrl-C stops everything.
   write    psql {postgres_url}
   read     nats --server {nats_url} stream view CDC
   bridge   curl http://{bridge}/status    (also /health, /metrics)
   gateway  curl http://{gateway}/users -H 'Idempotency-Key: 1' --json '{{\"name\":\"Mary\",\"email\":\"mary@example.com\"}}'
   reader   curl 'http://{reader}/users?order=created_at.desc&limit=3'    (live: curl -N 'http://{reader}/changes?tables=users')
   NATS     http://{monitoring}
   logs     {logs}
"
        )
    }
}

fn wait_ready(addr: SocketAddr, path: &str, process: &Process) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        if let Some(status) = process.exit_status() {
            anyhow::bail!("it ended ({status})\n{}", process.log_tail());
        }
        if let Ok((200, _)) = http_get(addr, path) {
            return Ok(());
        }
        if START_DEADLINE < started.elapsed() {
            anyhow::bail!("it is not ready\n{}", process.log_tail());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn progress(step: u32, text: &str) {
    println!("[{step}/4] {text}");
}
