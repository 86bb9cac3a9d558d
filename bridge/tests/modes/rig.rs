//! One PostgreSQL, one nats-server, tables `a` and `b`, and bridges between them.
//!
//! In: rows. Out: what stream CDC holds. Must hold: each test has servers of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::{Deref, RangeInclusive};
use std::thread::JoinHandle;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::message::StreamMessage;
use futures_util::{StreamExt as _, TryStreamExt as _};
use stack::{Options, Process, Stack, eventually};
use tokio::runtime::Runtime;
use wire::{Event, Message as _, Value};

/// For whatever a healthy bridge does at once; long only because machines may be busy.
pub const DEADLINE: Duration = Duration::from_mins(2);

pub struct Rig {
    pub stack: Stack,
    pub runtime: Runtime,
}

/// A running bridge. Dropping it kills it.
pub struct Bridge {
    process: Process,
    addr: SocketAddr,
}

/// A message of the stream.
pub struct Stored {
    pub msg_id: Option<String>,
    pub event: Event,
}

impl Rig {
    pub fn new(options: Options) -> Self {
        let stack = Stack::up(options).expect("the servers start");
        stack.postgres().sql(
            "CREATE TABLE a (id bigint PRIMARY KEY); CREATE TABLE b (id bigint PRIMARY KEY);
             CREATE PUBLICATION cdc_pub FOR TABLE a, b",
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made");
        Self { stack, runtime }
    }

    /// Started on a slot with further arguments, in whatever state.
    pub fn launch(&self, slot: &str, arguments: &[&str]) -> Bridge {
        let port = self.stack.claim_port();
        let program = self
            .stack
            .program(stack::bridge_binary().expect("the bridge is built"))
            .named(&format!("bridge-{port}"))
            .args(["--slot", slot, "--port", &port.to_string()])
            .args(arguments.iter().copied())
            .env("DATABASE_URL", self.stack.postgres().url())
            .env("NATS_URL", self.stack.nats().url());
        Bridge {
            process: program.start(),
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        }
    }

    /// The same, and streaming.
    #[track_caller]
    pub fn bridge(&self, slot: &str, arguments: &[&str]) -> Bridge {
        let bridge = self.launch(slot, arguments);
        eventually(DEADLINE, "the bridge streams", || {
            if let Some(status) = bridge.exit_status() {
                panic!("the bridge ended ({status})\n{}", bridge.log_tail());
            }
            bridge.status()["status"] == "connected"
        });
        bridge
    }

    /// Ten rows to a transaction.
    pub fn insert(&self, table: &str, ids: RangeInclusive<u64>) {
        self.stack.postgres().sql(&insert(table, &ids));
    }

    /// The same, while the test goes on.
    pub fn keep_writing(&self, table: &str, ids: RangeInclusive<u64>) -> JoinHandle<()> {
        let url = self.stack.postgres().url();
        let sql = insert(table, &ids);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime can be made").block_on(async {
                let connected = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
                let (client, connection) = connected.expect("PostgreSQL answers");
                tokio::spawn(connection);
                client
                    .batch_execute(&sql)
                    .await
                    .expect("the rows are taken");
            });
        })
    }

    /// Until so many messages of the table are stored.
    #[track_caller]
    pub fn wait_stored(&self, table: &str, messages: u64) {
        eventually(DEADLINE, "events are stored", || {
            self.last_sequence(table) >= messages
        });
    }

    /// Until the table's last message has this id.
    #[track_caller]
    pub fn wait_last(&self, table: &str, id: u64) {
        let subject = format!("cdc.{table}.insert");
        eventually(DEADLINE, "the last event is stored", || {
            let last = self.last(&subject).map(|message| {
                let event = Event::decode(&message.payload).expect("it is an event");
                number(&event)
            });
            if last == Some(id) {
                Ok(())
            } else {
                Err(format!("{last:?}"))
            }
        });
    }

    fn last_sequence(&self, table: &str) -> u64 {
        let last = self.last(&format!("cdc.{table}.insert"));
        last.map_or(0, |message| message.sequence)
    }

    /// The last message on a subject, if stream and message exist.
    fn last(&self, subject: &str) -> Option<StreamMessage> {
        self.runtime.block_on(async {
            let stream = self.jetstream().await.get_stream("CDC").await.ok()?;
            stream.get_last_raw_message_by_subject(subject).await.ok()
        })
    }

    /// What the stream holds under a filter.
    pub fn read(&self, filter: &str) -> Vec<Stored> {
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await;
            let stream = jetstream
                .get_stream("CDC")
                .await
                .expect("there is a stream");
            let config = pull::Config {
                ack_policy: AckPolicy::None,
                filter_subject: filter.to_owned(),
                ..pull::Config::default()
            };
            let mut consumer = stream.create_consumer(config).await.expect("it is made");
            let info = consumer.info().await.expect("it is there");
            let messages = usize::try_from(info.num_pending).expect("it fits");
            let delivered = consumer.messages().await.expect("it delivers");
            delivered
                .take(messages)
                .map(|message| {
                    let message = message.expect("it delivers");
                    let headers = message.headers.as_ref();
                    Stored {
                        msg_id: headers
                            .and_then(|headers| headers.get(wire::names::HEADER_MSG_ID))
                            .map(ToString::to_string),
                        event: Event::decode(&message.payload).expect("it is an event"),
                    }
                })
                .collect()
                .await
        })
    }

    /// Whether there is any message on the subject.
    pub fn holds(&self, subject: &str) -> bool {
        self.last(subject).is_some()
    }

    /// Deletes what the bridges have said of themselves.
    pub fn forget_claims(&self) {
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await;
            let bucket = jetstream.get_key_value("bridge_state").await;
            let bucket = bucket.expect("there is a bucket");
            let keys: Vec<String> = bucket
                .keys()
                .await
                .expect("it lists its keys")
                .try_collect()
                .await
                .expect("it lists its keys");
            for key in keys.iter().filter(|key| key.starts_with("claim.")) {
                bucket.purge(key).await.expect("it can be purged");
            }
        });
    }

    /// Somebody else's message.
    pub fn publish(&self, subject: &str) {
        self.runtime.block_on(async {
            let jetstream = self.jetstream().await;
            let sent = jetstream.publish(subject.to_owned(), "{}".into()).await;
            sent.expect("NATS listens").await.expect("it is stored");
        });
    }

    pub async fn jetstream(&self) -> jetstream::Context {
        // async-nats does not send the user of a URL by itself.
        let options =
            async_nats::ConnectOptions::with_user_and_password("admin".into(), "admin".into());
        let client = options.connect(self.stack.nats().addr().to_string()).await;
        jetstream::new(client.expect("NATS answers"))
    }
}

fn insert(table: &str, ids: &RangeInclusive<u64>) -> String {
    let (first, last) = (ids.start(), ids.end());
    format!(
        "DO $$ BEGIN FOR i IN {first}..{last} BY 10 LOOP
            INSERT INTO {table} SELECT n FROM generate_series(i, least(i + 9, {last})) n;
            COMMIT;
        END LOOP; END $$"
    )
}

impl Bridge {
    /// `/status`, null while nobody answers.
    pub fn status(&self) -> serde_json::Value {
        match stack::http_get(self.addr, "/status") {
            Ok((200, body)) => serde_json::from_str(&body).expect("/status is JSON"),
            _ => serde_json::Value::Null,
        }
    }

    /// Whether it is ready, and what it answers.
    pub fn ready(&self) -> (bool, String) {
        let answer = stack::http_get(self.addr, "/ready");
        answer.map_or((false, String::new()), |(status, body)| {
            (status == 200, body)
        })
    }

    /// `/metrics`, empty while nobody answers.
    pub fn metrics(&self) -> String {
        let answer = stack::http_get(self.addr, "/metrics");
        answer.map_or(String::new(), |(_, body)| body)
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

/// The ids, in the order of the stream.
pub fn numbers(stored: &[Stored]) -> Vec<u64> {
    stored.iter().map(|stored| number(&stored.event)).collect()
}

fn number(event: &Event) -> u64 {
    match event.columns.first().map(|column| &column.value) {
        Some(Value::Int(id)) => u64::try_from(*id).expect("ids count from 1"),
        other => panic!("{other:?} is no id"),
    }
}
