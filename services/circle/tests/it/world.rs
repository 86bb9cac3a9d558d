//! PostgreSQL, NATS, Redis, and all four processes between them.
//!
//! In: how many of each service. Out: their addresses, and a way to kill each one.
//! Must hold: every process logs in as the ordinary user that `schema/` makes for it, and keeps its port when it is
//! started again.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use serde_json::Value;
use stack::{Options, Process, Program, Stack, eventually_async};

use crate::http::{self, Answer, Events};

/// For whatever a healthy circle does at once; long only because machines may be busy.
pub const DEADLINE: Duration = Duration::from_mins(2);

/// How many of each.
#[derive(Debug, Clone, Copy)]
pub struct Replicas {
    pub gateways: usize,
    pub processors: usize,
    pub readers: usize,
}

impl Default for Replicas {
    fn default() -> Self {
        Self {
            gateways: 1,
            processors: 1,
            readers: 1,
        }
    }
}

pub struct World {
    // Dropped in this order: the processes before the servers.
    pub gateways: Vec<Service>,
    pub processors: Vec<Service>,
    pub readers: Vec<Service>,
    pub bridge: Service,
    pub jetstream: Context,
    pub stack: Stack,
}

/// A process that may be killed and started again.
pub struct Service {
    program: Program,
    pub process: Process,
    pub addr: SocketAddr,
}

/// `applied` counts what really happened to `users`, one row for each row change, in order.
const SET_UP: &str = "
    CREATE TABLE applied (place bigserial, op text, id uuid, name text);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            INSERT INTO public.applied (op, id, name)
            VALUES (TG_OP, coalesce(new.id, old.id), new.name);
            RETURN NULL;
        END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON users
        FOR EACH ROW EXECUTE FUNCTION note()";

impl World {
    pub async fn up() -> Self {
        Self::up_with(Replicas::default(), &[]).await
    }

    /// Returns when a write would be accepted, applied and read.
    pub async fn up_with(replicas: Replicas, gateway_flags: &[&str]) -> Self {
        let stack = Stack::up(Options::default().schema(true).redis(true)).unwrap();
        stack.postgres().sql(SET_UP);
        let options = async_nats::ConnectOptions::new().max_reconnects(None);
        let client = options.connect(stack.nats().url()).await.unwrap();
        let jetstream = jetstream::new(client);

        let start = |package: &str, number: usize, user: &str, flags: &[&str]| {
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, stack.claim_port()));
            let program = stack
                .program(stack::binary(package).unwrap())
                .named(&format!("{package}-{number}"))
                .env("NATS_URL", stack.nats().url())
                .env(
                    "DATABASE_URL",
                    stack.postgres().url_as(user, user, "postgres"),
                )
                .env("REDIS_URL", stack.redis().url())
                .env("LOG_LEVEL", "info")
                .args(["--port", &addr.port().to_string()])
                .args(flags);
            let process = program.start();
            Service {
                program,
                process,
                addr,
            }
        };
        let several = |package: &str, count: usize, user: &str, flags: &[&str]| {
            (1..=count)
                .map(|number| start(package, number, user, flags))
                .collect::<Vec<_>>()
        };
        let bridge = start("bridge", 1, "bridge_reader", &[]);
        let gateways = several("gateway", replicas.gateways, "nobody", gateway_flags);
        let processors = several("processor", replicas.processors, "service_processor", &[]);
        let readers = several("reader", replicas.readers, "service_reader", &[]);
        let world = Self {
            gateways,
            processors,
            readers,
            bridge,
            jetstream,
            stack,
        };
        world.ready().await;
        world
    }

    /// Waits until every process is ready and knows the tables.
    pub async fn ready(&self) {
        self.bridge.healthy("/ready").await;
        for service in self
            .gateways
            .iter()
            .chain(&self.processors)
            .chain(&self.readers)
        {
            service.healthy("/health").await;
        }
        for service in self.gateways.iter().chain(&self.readers) {
            service.documents("/users").await;
        }
    }

    pub fn gateway(&self) -> &Service {
        &self.gateways[0]
    }

    pub fn reader(&self) -> &Service {
        &self.readers[0]
    }

    pub fn sql(&self, text: &str) -> Vec<Vec<Option<String>>> {
        self.stack.postgres().sql(text)
    }

    pub fn value(&self, text: &str) -> String {
        self.stack.postgres().value(text)
    }

    /// Waits until `operations` writes have an outcome and the queue is empty.
    pub async fn settle(&self, operations: usize) {
        let count = "SELECT count(*) FROM write_operations WHERE status <> 'pending'";
        eventually_async(DEADLINE, "an outcome of every write", async || {
            let outcomes = self.value(count);
            let is_all = outcomes == operations.to_string();
            is_all
                .then_some(())
                .ok_or(format!("{outcomes} of {operations}"))
        })
        .await;
        eventually_async(DEADLINE, "an empty queue", async || {
            let messages = self.messages("WRITES").await;
            (messages == 0)
                .then_some(())
                .ok_or(format!("{messages} messages"))
        })
        .await;
    }

    pub async fn messages(&self, stream: &str) -> u64 {
        let stream = self.jetstream.get_stream(stream).await.unwrap();
        stream.get_info().await.unwrap().state.messages
    }

    /// The distinct statuses there are, for people: `completed 12`.
    pub fn outcomes(&self) -> String {
        self.value(
            "SELECT coalesce(string_agg(line, ', ' ORDER BY line), 'none') FROM (
                SELECT status || ' ' || count(*) FROM write_operations GROUP BY status
            ) AS lines(line)",
        )
    }
}

impl Service {
    /// kill -9, and start again with the same words.
    pub fn crash(&mut self) {
        self.process.kill();
        self.process = self.program.start();
    }

    pub async fn healthy(&self, path: &str) {
        eventually_async(DEADLINE, self.program.name(), async || {
            assert!(
                self.process.exit_status().is_none(),
                "{}",
                self.process.log_tail()
            );
            match http::send(self.addr, "GET", path, &[], b"").await {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(answer.body),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    /// Waits until the OpenAPI document has this path.
    pub async fn documents(&self, path: &str) {
        eventually_async(DEADLINE, "a documented table", async || {
            let document = self.get("/openapi.json").await.json();
            let paths = document["paths"].as_object().unwrap();
            let names: Vec<_> = paths.keys().collect();
            paths
                .contains_key(path)
                .then_some(())
                .ok_or(format!("{names:?}"))
        })
        .await;
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send("GET", path, headers, "").await
    }

    /// A write under a key of its own that waits for its outcome.
    pub async fn write(&self, method: &str, path: &str, body: &Value) -> Answer {
        let key = new_id();
        let headers = [("idempotency-key", key.as_str()), ("prefer", "wait=60")];
        self.send(method, path, &headers, &body.to_string()).await
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let answer = http::send(self.addr, method, path, headers, body.as_bytes()).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub async fn events(&self, path: &str) -> Events {
        Events::open(self.addr, path, "").await.unwrap()
    }
}

/// A UUID that no other call makes.
pub fn new_id() -> String {
    // Each state hashes with keys of its own.
    let random = || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    let (high, low) = (random(), random());
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}
