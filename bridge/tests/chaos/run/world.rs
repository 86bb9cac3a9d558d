//! Servers behind relays, and bridges between them.
//!
//! In: a plan. Out: handles to break and to ask. Must hold: bridges reach the servers through the relays
//! alone; load, sampler and judge never do.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream;
use stack::{Nats, Options, Postgres, Process, Program, Relay, Stack, eventually};
use tokio::runtime::Runtime;

use super::{Bridges, Plan};

pub struct World {
    pub postgres_relay: Relay,
    /// One to a node.
    pub nats_relays: Vec<Relay>,
    bridges: Vec<Bridge>,
    roads: Vec<Road>,
    pub runtime: Runtime,
    stack: Stack,
}

/// A slot, and the tables whose changes leave through it.
pub struct Road {
    pub slot: &'static str,
    pub tables: &'static [&'static str],
    /// The table that is written last.
    pub fence: &'static str,
}

const SMALL: Road = Road {
    slot: "small",
    tables: &["singles", "tens", "wide", "fence_small"],
    fence: "fence_small",
};
const LARGE: Road = Road {
    slot: "large",
    tables: &["copies", "bulk", "fence_large"],
    fence: "fence_large",
};
const ALL: Road = Road {
    slot: "all",
    tables: &[
        "singles",
        "tens",
        "wide",
        "copies",
        "bulk",
        "fence_small",
        "fence_large",
    ],
    fence: "fence_large",
};

/// A bridge that is started again and again.
pub struct Bridge {
    pub slot: &'static str,
    program: Program,
    addr: SocketAddr,
    running: Mutex<Option<Process>>,
}

pub const SHADOW: &str = "shadow";
pub const STREAM: &str = "CDC";
/// For one answer of a server that may be down.
const PATIENCE: Duration = Duration::from_secs(3);

impl World {
    pub fn new(plan: &Plan) -> Self {
        let options = Options::default()
            .nats(plan.nats)
            .postgres(plan.postgres)
            .fsync(plan.fsync)
            .nats_nodes(if plan.is_cluster { 3 } else { 1 });
        let stack = Stack::up(options).expect("the servers start");
        stack.postgres().sql(
            "CREATE TABLE singles (id bigserial PRIMARY KEY, note text, is_odd boolean, amount numeric);
             CREATE TABLE tens (id bigserial PRIMARY KEY, note text, body text);
             CREATE TABLE copies (id bigserial PRIMARY KEY, note text);
             CREATE TABLE bulk (id bigserial PRIMARY KEY, note text);
             CREATE TABLE hidden (id bigserial PRIMARY KEY, note text);
             CREATE TABLE wide (id bigserial PRIMARY KEY, body text);
             CREATE TABLE fence_small (id bigint PRIMARY KEY);
             CREATE TABLE fence_large (id bigint PRIMARY KEY);
             CREATE PUBLICATION cdc_pub FOR TABLE singles, tens, wide, copies, bulk, fence_small, fence_large",
        );
        let relay = |addr| Relay::to(addr).expect("a relay can be made");
        let postgres_relay = relay(stack.postgres().addr());
        let nats_relays: Vec<Relay> = stack
            .nats_nodes()
            .iter()
            .map(|node| relay(node.addr()))
            .collect();
        let urls: Vec<String> = nats_relays
            .iter()
            .map(|relay| stack.nats().url_via(relay.addr()))
            .collect();
        let postgres_url = stack.postgres().url_via(postgres_relay.addr());
        let (roads, riders) = match plan.bridges {
            Bridges::One => (vec![ALL], vec![ALL]),
            Bridges::Pair => (vec![ALL], vec![ALL, ALL]),
            Bridges::Split => (vec![SMALL, LARGE], vec![SMALL, LARGE]),
        };
        let bridges = riders.iter().zip(1..).map(|(road, number)| {
            let port = stack.claim_port();
            let program = stack
                .program(stack::bridge_binary().expect("the bridge is built"))
                .named(&format!("bridge-{number}"))
                .args(["--slot", road.slot, "--port", &port.to_string()])
                .args([
                    "--publish-mode",
                    &plan.mode,
                    "--durability",
                    &plan.durability,
                    "--hold",
                    &plan.hold,
                ])
                .args(["--stream-replicas", if plan.is_cluster { "3" } else { "1" }])
                .env("DATABASE_URL", &postgres_url)
                .env("NATS_URL", urls.join(","));
            let program = match plan.bridges {
                Bridges::One | Bridges::Pair => program,
                Bridges::Split => program.args(["--table", &road.tables.join(",")]),
            };
            Bridge {
                slot: road.slot,
                program,
                addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
                running: Mutex::new(None),
            }
        });
        let bridges = bridges.collect();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let world = Self {
            postgres_relay,
            nats_relays,
            bridges,
            roads,
            runtime: runtime.expect("a runtime can be made"),
            stack,
        };
        for bridge in &world.bridges {
            bridge.start();
        }
        world
    }

    pub fn postgres(&self) -> &Postgres {
        self.stack.postgres()
    }

    pub fn nats_nodes(&self) -> &[Nats] {
        self.stack.nats_nodes()
    }

    pub fn bridges(&self) -> &[Bridge] {
        &self.bridges
    }

    pub fn bridge(&self, index: usize) -> &Bridge {
        &self.bridges[index]
    }

    pub fn roads(&self) -> &[Road] {
        &self.roads
    }

    /// Waits until every slot is made, and a bridge streams from it.
    #[track_caller]
    pub fn wait_streaming(&self) {
        for road in &self.roads {
            eventually(super::DEADLINE, "a bridge streams", || {
                self.bridges.iter().any(|bridge| {
                    bridge.must_run();
                    bridge.slot == road.slot && bridge.status()["status"] == "connected"
                })
            });
        }
    }

    /// What the bridges called errors.
    pub fn errors(&self) -> Vec<String> {
        let said = self.bridges.iter().map(|bridge| {
            let path = self
                .stack
                .dir()
                .join(format!("{}.stderr", bridge.program.name()));
            std::fs::read_to_string(path).unwrap_or_default()
        });
        let lines: Vec<_> = said.collect();
        let errors = lines
            .iter()
            .flat_map(|said| said.lines())
            .filter(|line| line.contains(" ERROR "));
        errors.map(str::to_owned).collect()
    }

    /// From now on PostgreSQL keeps what the stream must hold.
    pub fn create_shadow(&self) {
        self.postgres().sql(&format!(
            "SELECT pg_create_logical_replication_slot('{SHADOW}', 'test_decoding')"
        ));
    }

    /// A client of all nodes that comes back by itself.
    pub async fn jetstream(&self) -> jetstream::Context {
        let nodes: Vec<async_nats::ServerAddr> = self
            .nats_nodes()
            .iter()
            .map(|node| node.url().parse().expect("it is a URL"))
            .collect();
        let options =
            async_nats::ConnectOptions::with_user_and_password("admin".into(), "admin".into());
        let client = options.retry_on_initial_connect().connect(nodes).await;
        let mut jetstream = jetstream::new(client.expect("it retries"));
        jetstream.set_timeout(Duration::from_secs(2));
        jetstream
    }

    /// Runs a statement if PostgreSQL takes it soon.
    pub fn try_sql(&self, sql: &str) {
        let url = self.postgres().url();
        let executed = async {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
                .await
                .ok()?;
            tokio::spawn(connection);
            client.batch_execute(sql).await.ok()
        };
        let _ = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, executed).await });
    }

    /// Which node leads the stream.
    pub fn leader(&self) -> Option<usize> {
        let asked = async {
            let stream = self.jetstream().await.get_stream(STREAM).await.ok()?;
            stream.cached_info().cluster.as_ref()?.leader.clone()
        };
        let name = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, asked).await });
        let name = name.ok()??;
        name.strip_prefix("nats-")?
            .parse::<usize>()
            .ok()?
            .checked_sub(1)
    }

    /// The JetStream API, whatever becomes of it.
    pub fn api(&self, subject: &str) {
        let asked = async {
            let answer: Result<serde_json::Value, _> = self
                .jetstream()
                .await
                .request(subject.to_owned(), &())
                .await;
            drop(answer);
        };
        let _ = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, asked).await });
    }

    /// Writes the last rows, and waits until the stream has them.
    #[track_caller]
    pub fn wait_for_fence(&self, deadline: Duration) {
        for road in &self.roads {
            let sql = format!(
                "INSERT INTO {} VALUES (1) ON CONFLICT DO NOTHING",
                road.fence
            );
            eventually(deadline, "PostgreSQL takes the last row", || {
                self.postgres().try_sql_in("postgres", &sql)
            });
        }
        let context = self.runtime.block_on(self.jetstream());
        eventually(deadline, "the last rows are in the stream", || {
            for bridge in &self.bridges {
                bridge.must_run();
            }
            let found = self.runtime.block_on(async {
                let stream = context
                    .get_stream(STREAM)
                    .await
                    .map_err(|error| error.to_string())?;
                for road in &self.roads {
                    let subject = format!("cdc.{}.insert", road.fence);
                    let message = stream.get_last_raw_message_by_subject(&subject).await;
                    message.map_err(|error| error.to_string())?;
                }
                Ok(())
            });
            found.map_err(|error: String| {
                let statuses: Vec<_> = self
                    .bridges
                    .iter()
                    .map(|bridge| bridge.status().to_string())
                    .collect();
                format!("{error}; {}", statuses.join(" "))
            })
        });
    }

    /// Ends all bridges in order.
    #[track_caller]
    pub fn drain(&self) {
        for bridge in &self.bridges {
            bridge.stop();
        }
    }
}

impl Bridge {
    /// Nothing to do when it runs.
    pub fn start(&self) {
        let mut running = self.running();
        if running.is_none() {
            *running = Some(self.program.start());
        }
    }

    pub fn kill(&self) {
        if let Some(process) = self.running().take() {
            process.kill();
        }
    }

    /// SIGTERM. It either drained or gave up in time; anything else is a failure.
    #[track_caller]
    pub fn stop(&self) {
        if let Some(process) = self.running().take() {
            process.resume();
            let status = process.terminate(Duration::from_mins(1));
            assert!(
                matches!(status.code(), Some(0 | 3)),
                "{status}\n{}",
                process.log_tail()
            );
        }
    }

    pub fn pause(&self) {
        if let Some(process) = self.running().as_ref() {
            process.pause();
        }
    }

    pub fn resume(&self) {
        if let Some(process) = self.running().as_ref() {
            process.resume();
        }
    }

    /// Nobody has stopped it, so it must not have ended.
    #[track_caller]
    pub fn must_run(&self) {
        if let Some(process) = self.running().as_ref()
            && let Some(status) = process.exit_status()
        {
            panic!(
                "a bridge ended by itself ({status})\n{}",
                process.log_tail()
            );
        }
    }

    /// `/status`, null while nobody answers.
    pub fn status(&self) -> serde_json::Value {
        match stack::http_get(self.addr, "/status") {
            Ok((200, body)) => serde_json::from_str(&body).expect("/status is JSON"),
            _ => serde_json::Value::Null,
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Process>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
