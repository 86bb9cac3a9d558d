//! The servers, and the processes that are measured.
//!
//! In: which process. Out: a running one, and what it has used.
//! Must hold: processes log in as their own users; those that are not measured do not run.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context};
use benches::usage;
use stack::{Options, Process, Stack};

pub struct World {
    // Dropped before the servers.
    running: Vec<(&'static str, Process)>,
    binaries: Vec<PathBuf>,
    pub jetstream: Context,
    pub stack: Stack,
}

const PACKAGES: [&str; 4] = ["bridge", "gateway", "processor", "reader"];
const DEADLINE: Duration = Duration::from_mins(2);

impl World {
    pub async fn up(fsync: bool, gogc: u32) -> anyhow::Result<Self> {
        let binaries = stack::build_binaries(&PACKAGES)?;
        let options = Options::default().schema(true).redis(true).fsync(fsync);
        // As docker-compose.prod.yml has it, the first unless it is told otherwise.
        let options = options.nats_env("GOGC", &gogc.to_string());
        let options = options.nats_env("GODEBUG", "madvdontneed=0");
        let stack = Stack::up(options.postgres_setting("max_wal_size", "8GB"))?;
        let (postgres, nats) = (stack.postgres().version(), stack.nats().version());
        let cores = std::thread::available_parallelism()?;
        println!(
            "PostgreSQL {postgres}, nats-server {nats} (GOGC {gogc}), {cores} cores, fsync {fsync}"
        );
        let client = async_nats::connect(stack.nats().url()).await?;
        Ok(Self {
            running: Vec::new(),
            binaries,
            jetstream: jetstream::new(client),
            stack,
        })
    }

    /// Starts a process and waits until it is ready.
    pub fn start(&mut self, package: &'static str) -> anyhow::Result<SocketAddr> {
        let place = PACKAGES.iter().position(|name| *name == package);
        let binary = &self.binaries[place.expect("it is one of the four")];
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, self.stack.claim_port()));
        let user = match package {
            "bridge" => "bridge_reader",
            "processor" => "service_processor",
            "reader" => "service_reader",
            _ => "nobody",
        };
        let postgres = self.stack.postgres().url_as(user, user, "postgres");
        let process = self
            .stack
            .program(binary)
            .env("DATABASE_URL", postgres)
            .env("NATS_URL", self.stack.nats().url())
            .env("REDIS_URL", self.stack.redis().url())
            .args(["--port", &addr.port().to_string()])
            .try_start()?;
        let path = if package == "bridge" {
            "/ready"
        } else {
            "/health"
        };
        let started = Instant::now();
        while !matches!(stack::http_get(addr, path), Ok((200, _))) {
            if DEADLINE < started.elapsed() || !process.is_running() {
                anyhow::bail!("{package} is not ready\n{}", process.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.running.push((package, process));
        Ok(addr)
    }

    pub fn stop(&mut self, package: &str) {
        self.running.retain(|(name, process)| {
            let stays = *name != package;
            if !stays {
                process.terminate(DEADLINE);
            }
            stays
        });
    }

    /// CPU time so far of every process, and of this one.
    pub fn used(&self) -> Vec<(&'static str, Duration)> {
        let pid = |pid: Option<u32>| pid.unwrap_or_default();
        let mut used: Vec<_> = self
            .running
            .iter()
            .map(|(name, process)| (*name, usage::cpu(process.pid()).unwrap_or_default()))
            .collect();
        used.extend([
            (
                "PostgreSQL",
                usage::cpu_with_children(pid(self.stack.postgres().pid())),
            ),
            (
                "nats-server",
                usage::cpu_with_children(pid(self.stack.nats().pid())),
            ),
            (
                "Redis",
                usage::cpu_with_children(pid(self.stack.redis().pid())),
            ),
            (
                "this bench",
                usage::cpu(std::process::id()).unwrap_or_default(),
            ),
        ]);
        used
    }

    /// `processor 4.1 us, PostgreSQL 20.3 us`: per unit, since `before`, of those that did anything.
    pub fn cost(&self, before: &[(&'static str, Duration)], units: u64) -> String {
        let costs = self.used().into_iter().filter_map(|(name, now)| {
            let then = before.iter().find(|(known, _)| *known == name)?.1;
            let microseconds = usage::us_each(now.saturating_sub(then), units);
            (0.05 < microseconds).then(|| format!("{name} {microseconds:.1}"))
        });
        format!("CPU us each: {}", costs.collect::<Vec<_>>().join(", "))
    }

    /// Waits until the queue of writes is empty.
    pub async fn drained(&self) -> anyhow::Result<()> {
        let stream = self
            .jetstream
            .get_stream(wire::names::STREAM_WRITES)
            .await?;
        let started = Instant::now();
        while stream.get_info().await?.state.messages != 0 {
            anyhow::ensure!(started.elapsed() < 5 * DEADLINE, "the queue is not emptied");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}
