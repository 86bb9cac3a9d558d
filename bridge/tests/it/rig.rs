//! A database, a nats-server and the bridge between them.
//!
//! In: SQL. Out: the events it caused, and the bridge's own view of itself.
//! Must hold: no test sees another's rows. The PostgreSQL server may be shared by tests that run at
//! the same time; database, slot and nats-server never are.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use stack::{Nats, Options, Postgres, Process, Program, Relay, Stack, eventually};
use wire::{Lsn, Value};

use crate::stream::{self, Stored};

/// For whatever a healthy bridge does at once; long only because machines may be busy.
pub const DEADLINE: Duration = Duration::from_mins(1);

pub struct Rig {
    /// Its publication is `FOR ALL TABLES` and named `cdc_pub`.
    pub database: String,
    pub slot: String,
    /// What the bridge gets for `--publication`.
    pub publication: String,
    /// What the bridge gets for `DATABASE_URL`: the superuser over TCP, unless the test says otherwise.
    pub pg_url: String,
    /// What the bridge gets for `NATS_URL`.
    pub nats_url: String,
    fences: AtomicU32,
    bridges: AtomicU32,
    is_shared: bool,
    nats: Stack,
    postgres: Arc<Stack>,
}

/// A running bridge. Dropping it kills it.
pub struct Bridge {
    process: Process,
    addr: SocketAddr,
}

pub type Rows = Vec<Vec<Option<String>>>;

/// A table of the rig's own, written to mark the end of what a test has written.
const FENCE: &str = "fence";

/// The PostgreSQL server of all tests that are running now. It goes with the last of them, so
/// that nothing is left behind.
fn shared_postgres() -> Arc<Stack> {
    static SHARED: Mutex<Weak<Stack>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(running) = shared.upgrade() {
        return running;
    }
    let options = Options::default()
        .without_nats()
        .postgres_setting("max_replication_slots", "100")
        .postgres_setting("max_wal_senders", "100")
        .postgres_setting("max_connections", "200");
    let started = Arc::new(Stack::up(options).expect("PostgreSQL starts"));
    *shared = Arc::downgrade(&started);
    started
}

impl Rig {
    pub fn new() -> Self {
        Self::with_nats(Options::default())
    }

    /// With a nats-server of these options.
    pub fn with_nats(options: Options) -> Self {
        Self::prepared(shared_postgres(), options, true)
    }

    /// With a PostgreSQL server of its own too, for tests that break it or set it up differently.
    pub fn alone(options: Options) -> Self {
        let postgres = Stack::up(options.clone().without_nats()).expect("PostgreSQL starts");
        Self::prepared(Arc::new(postgres), options, false)
    }

    fn prepared(postgres: Arc<Stack>, options: Options, is_shared: bool) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let nats = Stack::up(options.without_postgres()).expect("nats-server starts");
        let database = format!("test_{number}");
        postgres.postgres().create_database(&database);
        let rig = Self {
            slot: format!("slot_{number}"),
            publication: "cdc_pub".to_owned(),
            pg_url: postgres
                .postgres()
                .url_as("postgres", "postgres", &database),
            nats_url: nats.nats().url(),
            fences: AtomicU32::new(0),
            bridges: AtomicU32::new(0),
            database,
            is_shared,
            nats,
            postgres,
        };
        rig.sql(
            "CREATE TABLE fence (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR ALL TABLES",
        );
        rig
    }

    pub fn postgres(&self) -> &Postgres {
        self.postgres.postgres()
    }

    pub fn nats(&self) -> &Nats {
        self.nats.nats()
    }

    pub fn stack(&self) -> &Stack {
        &self.nats
    }

    /// What the bridge says to NATS goes through the relay from now on.
    pub fn relay_nats(&mut self) -> Relay {
        let relay = Relay::to(self.nats().addr()).expect("a port is free");
        self.nats_url = self.nats().url_via(relay.addr());
        relay
    }

    /// What the bridge says to PostgreSQL goes through the relay from now on.
    pub fn relay_postgres(&mut self) -> Relay {
        let relay = Relay::to(self.postgres().addr()).expect("a port is free");
        self.pg_url = format!(
            "postgresql://postgres:postgres@{}/{}",
            relay.addr(),
            self.database
        );
        relay
    }

    /// Statements of one text are one transaction.
    #[track_caller]
    pub fn sql(&self, text: &str) -> Rows {
        self.postgres().sql_in(&self.database, text)
    }

    /// The first value of the first row.
    #[track_caller]
    pub fn value(&self, text: &str) -> String {
        self.postgres().value_in(&self.database, text)
    }

    /// What the slot has been told, `None` before there is a slot.
    pub fn confirmed_flush_lsn(&self) -> Option<Lsn> {
        let sql = format!(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
            self.slot
        );
        let lsn = self.sql(&sql).into_iter().next()?.into_iter().next()??;
        Some(lsn.parse().expect("PostgreSQL prints LSNs"))
    }

    /// Waits until the slot has been told this much.
    #[track_caller]
    pub fn wait_until_confirmed(&self, lsn: Lsn) {
        eventually(DEADLINE, "it is confirmed", || {
            let confirmed = self.confirmed_flush_lsn().expect("there is a slot");
            if confirmed >= lsn {
                Ok(())
            } else {
                Err(confirmed)
            }
        });
    }

    /// As PostgreSQL does when the silence of the slot's reader has lasted for wal_sender_timeout.
    pub fn terminate_walsender(&self) {
        self.sql(&format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}'",
            self.slot
        ));
    }

    /// Drops the slot, also under a bridge that reads it.
    #[track_caller]
    pub fn drop_slot(&self) {
        let sql = format!("SELECT pg_drop_replication_slot('{}')", self.slot);
        // The bridge comes back soon; until it is the slower one.
        eventually(DEADLINE, "the slot is dropped", || {
            self.terminate_walsender();
            self.postgres().try_sql_in(&self.database, &sql)
        });
    }

    pub fn current_wal_lsn(&self) -> Lsn {
        let lsn = self.value("SELECT pg_current_wal_lsn()");
        lsn.parse().expect("PostgreSQL prints LSNs")
    }

    /// The bridge's program with this rig's servers, slot and publication.
    pub fn program(&self) -> Program {
        let number = self.bridges.fetch_add(1, Ordering::Relaxed);
        let mut program = self
            .nats
            .program(env!("CARGO_BIN_EXE_bridge"))
            .named(&format!("bridge-{number}"))
            .args(["--slot", &self.slot])
            .args(["--publication", &self.publication]);
        for name in [
            "PG_HOST",
            "PG_PORT",
            "PG_USER",
            "PG_PASSWORD",
            "PG_DB",
            "NATS_HOST",
            "NATS_BRIDGE_USER",
            "NATS_BRIDGE_PASSWORD",
            "BRIDGE_PORT",
            "LOG_LEVEL",
        ] {
            program = program.env_remove(name);
        }
        program
            .env("DATABASE_URL", &self.pg_url)
            .env("NATS_URL", &self.nats_url)
    }

    /// Started with further arguments, and streaming.
    #[track_caller]
    pub fn bridge(&self, arguments: &[&str]) -> Bridge {
        let bridge = self.launch(arguments);
        bridge.wait_connected();
        bridge
    }

    /// Started with further arguments, in whatever state.
    pub fn launch(&self, arguments: &[&str]) -> Bridge {
        let port = self.nats.claim_port();
        let program = self.program().args(["--port", &port.to_string()]);
        Bridge {
            process: program.args(arguments.iter().copied()).start(),
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        }
    }

    /// Runs it to its end with further arguments; returns its exit code and what it said.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let bridge = self.launch(arguments);
        let status = bridge.wait(DEADLINE);
        (status.code().expect("no signal ends it"), bridge.said())
    }

    /// Waits until the stream has taken this many messages.
    #[track_caller]
    pub fn wait_until_stored(&self, messages: u64) {
        eventually(DEADLINE, "the bridge stores events", || {
            let stored = stream::last_sequence(self.nats());
            if stored >= messages {
                Ok(())
            } else {
                Err(stored)
            }
        });
    }

    /// Waits until it has taken this many more than it has now.
    #[track_caller]
    pub fn wait_until_more_are_stored(&self, messages: u64) {
        self.wait_until_stored(stream::last_sequence(self.nats()) + messages);
    }

    /// Every event of what was committed before this call, in the order of the stream.
    #[track_caller]
    pub fn events(&self) -> Vec<wire::Event> {
        self.stored()
            .into_iter()
            .map(|stored| stored.event)
            .collect()
    }

    /// The same with what the server keeps beside each event.
    #[track_caller]
    pub fn stored(&self) -> Vec<Stored> {
        let number = self.fences.fetch_add(1, Ordering::Relaxed) + 1;
        // What follows it in the stream was committed after it.
        self.sql(&format!("INSERT INTO {FENCE} VALUES ({number})"));
        let fence = Value::Int(i64::from(number));
        eventually(DEADLINE, "the last event committed is stored", || {
            stream::last_of(self.nats(), "cdc.fence.insert")
                .is_some_and(|event| event.columns.first().is_some_and(|id| id.value == fence))
        });
        let mut stored = stream::checked(stream::read(self.nats()));
        let fence_at = stored.iter().position(|stored| {
            stored.event.table == FENCE && stored.event.columns[0].value == fence
        });
        stored.truncate(fence_at.expect("it was just seen"));
        stored.retain(|stored| stored.event.table != FENCE);
        stored
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !self.is_shared || std::thread::panicking() {
            return;
        }
        // A slot left behind would keep the WAL of all other tests.
        let sql = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{}'",
            self.slot
        );
        eventually(DEADLINE, "the slot can be dropped", || {
            self.postgres().try_sql_in(&self.database, &sql)
        });
        self.postgres()
            .sql(&format!("DROP DATABASE {} WITH (FORCE)", self.database));
    }
}

impl Bridge {
    #[track_caller]
    pub fn wait_connected(&self) {
        eventually(DEADLINE, "the bridge streams", || {
            if let Some(status) = self.exit_status() {
                panic!("the bridge ended ({status})\n{}", self.log_tail());
            }
            match self.status()["status"].as_str() {
                Some("connected") => Ok(()),
                status => Err(format!("{status:?}")),
            }
        });
    }

    /// `/status`, null while nobody answers.
    pub fn status(&self) -> serde_json::Value {
        match stack::http_get(self.addr, "/status") {
            Ok((200, body)) => serde_json::from_str(&body).expect("/status is JSON"),
            _ => serde_json::Value::Null,
        }
    }

    /// A number of `/metrics`.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let (status, text) = stack::http_get(self.addr, "/metrics").expect("/metrics answers");
        assert_eq!(status, 200);
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or_else(|| panic!("no metric {name} in\n{text}"))
    }

    /// Waits until `/ready` says 503 with `why` in it; all it says then.
    #[track_caller]
    pub fn wait_until_not_ready(&self, why: &str) -> String {
        eventually(DEADLINE, "the bridge notices", || {
            let (status, body) = self.request("GET", "/ready");
            if status == 503 && body.contains(why) {
                Ok(body)
            } else {
                Err(body)
            }
        })
    }

    /// Waits until this many events are between decoder and ack.
    #[track_caller]
    pub fn wait_until_ring_holds(&self, events: u32) {
        eventually(DEADLINE, "the ring fills", || {
            let held = self.metric("bridge_ring_events");
            if held >= f64::from(events) {
                Ok(())
            } else {
                Err(held)
            }
        });
    }

    /// Status code and body.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.addr).expect("the bridge listens");
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.addr
        )
        .expect("the bridge reads");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("the bridge answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        (status.expect("a status line"), body.to_owned())
    }

    /// SIGTERM; it must say that everything is stored.
    #[track_caller]
    pub fn drain(&self) {
        let status = self.terminate(DEADLINE);
        assert_eq!(status.code(), Some(0), "{}", self.log_tail());
    }

    /// Everything it has written so far.
    pub fn said(&self) -> String {
        self.stdout() + &self.stderr()
    }
}

impl Deref for Bridge {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}
