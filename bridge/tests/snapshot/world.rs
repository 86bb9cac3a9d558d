//! A stack, a bridge on it, and a consumer's hands.

use std::time::Duration;

use async_nats::jetstream::consumer::{self, DeliverPolicy, pull};
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt as _;
use stack::{Options, Process, Stack, eventually_async};
use wire::names::{self, BUCKET_SCHEMAS};
use wire::schema::Schema;
use wire::snapshot::{Chunk, ErrorCode, Meta};
use wire::snapshot_request::{self, Reply};
use wire::{Event, Message as _, Row};

pub const DEADLINE: Duration = Duration::from_mins(2);

pub struct World {
    pub bridge: Process,
    pub stack: Stack,
    pub nats: async_nats::Client,
    pub jetstream: jetstream::Context,
    args: Vec<String>,
}

/// A whole snapshot, as a consumer reads it from the stream.
pub struct Loaded {
    pub meta: Meta,
    pub rows: Vec<Row>,
}

impl World {
    /// Runs `setup`, which makes the tables and publication `cdc_pub`, then a bridge.
    pub async fn new(setup: &str, args: &[&str]) -> Self {
        Self::with(Options::default(), setup, args).await
    }

    pub async fn with(options: Options, setup: &str, args: &[&str]) -> Self {
        let stack = Stack::up(options).unwrap();
        for statement in setup.split(";;") {
            stack.postgres().sql(statement);
        }
        let nats = async_nats::connect(stack.nats().addr().to_string())
            .await
            .unwrap();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let bridge = start(&stack, &args);
        let world = Self {
            jetstream: jetstream::new(nats.clone()),
            bridge,
            stack,
            nats,
            args,
        };
        world.is_up().await;
        world
    }

    pub fn restart(&mut self) {
        self.bridge = start(&self.stack, &self.args);
    }

    pub async fn is_up(&self) {
        self.bridge.wait_for_line("replication started", DEADLINE);
        // Answering means that the listener is up.
        eventually_async(DEADLINE, "a bridge that answers requests", async || {
            self.nats
                .request("snapshot.reached.cdc_slot", "".into())
                .await
                .map(drop)
        })
        .await;
    }

    pub fn sql(&self, text: &str) {
        self.stack.postgres().sql(text);
    }

    pub async fn request(&self, table: &str, options: &str) -> Reply {
        let subject = format!("snapshot.request.{table}");
        let reply = self
            .nats
            .request(subject, options.to_owned().into())
            .await
            .unwrap();
        Reply::decode(&reply.payload).unwrap()
    }

    pub async fn accepted(&self, table: &str, options: &str) -> String {
        match self.request(table, options).await {
            Reply::Accepted { snapshot_id } => snapshot_id,
            Reply::Refused(error) => panic!("refused: {error:?}"),
        }
    }

    pub async fn refused(&self, table: &str, options: &str) -> ErrorCode {
        match self.request(table, options).await {
            Reply::Accepted { .. } => panic!("{table} was accepted"),
            Reply::Refused(error) => {
                assert!(!error.error.is_empty());
                error.code
            }
        }
    }

    /// Asks, waits, loads.
    pub async fn snapshot(&self, table: &str, options: &str) -> Loaded {
        let id = self.accepted(table, options).await;
        self.load(table, &id).await
    }

    pub async fn load(&self, table: &str, id: &str) -> Loaded {
        let (schema, name) = names::parse_table_path(table).unwrap();
        let meta = self.meta(&schema, &name, id).await;
        let mut rows = Vec::new();
        for index in 0..meta.batch_count {
            let message = self
                .init()
                .await
                .get_last_raw_message_by_subject(&names::init_snap(&schema, &name, id, index))
                .await
                .unwrap();
            let encoding = message
                .headers
                .get("Content-Encoding")
                .map(async_nats::HeaderValue::as_str);
            let payload =
                bridge::snapshot::compress::decompress(encoding, message.payload, 64 << 20)
                    .unwrap();
            let chunk = Chunk::decode(&payload).unwrap();
            assert_eq!((chunk.chunk, chunk.lsn), (index, meta.lsn));
            rows.extend(chunk.data);
        }
        assert_eq!(rows.len() as u64, meta.row_count);
        Loaded { meta, rows }
    }

    async fn meta(&self, schema: &str, table: &str, id: &str) -> Meta {
        let subjects = [
            names::init_meta(schema, table),
            names::init_error(schema, table),
        ];
        eventually_async(DEADLINE, "a snapshot's meta", async || {
            for message in self.messages("INIT", &subjects, 1).await {
                if let Ok(error) = wire::snapshot::Error::decode(&message.payload) {
                    assert_ne!(error.snapshot_id.as_deref(), Some(id), "{error:?}");
                }
                if let Ok(meta) = Meta::decode(&message.payload)
                    && meta.snapshot_id == id
                {
                    return Some(meta);
                }
            }
            None
        })
        .await
    }

    /// How a snapshot that must not succeed has ended.
    pub async fn failure(&self, table: &str, id: &str) -> ErrorCode {
        let (schema, name) = names::parse_table_path(table).unwrap();
        let subjects = [
            names::init_meta(&schema, &name),
            names::init_error(&schema, &name),
        ];
        eventually_async(DEADLINE, "a snapshot's error", async || {
            for message in self.messages("INIT", &subjects, 1).await {
                if let Ok(meta) = Meta::decode(&message.payload) {
                    assert_ne!(meta.snapshot_id, id, "a meta where there must be an error");
                }
                if let Ok(error) = wire::snapshot::Error::decode(&message.payload)
                    && error.snapshot_id.as_deref() == Some(id)
                {
                    return Some(error.code);
                }
            }
            None
        })
        .await
    }

    /// All events of a table from a sequence on, as far as the stream goes now.
    pub async fn events(&self, table: &str, from: u64) -> Vec<Event> {
        let messages = self
            .messages("CDC", &[format!("cdc.{table}.*")], from)
            .await;
        messages
            .iter()
            .map(|message| Event::decode(&message.payload).unwrap())
            .collect()
    }

    /// All events of a table, each with its sequence.
    pub async fn numbered_events(&self, table: &str) -> Vec<(u64, Event)> {
        let messages = self
            .numbered_messages("CDC", &[format!("cdc.{table}.*")], 1)
            .await;
        messages
            .iter()
            .map(|(sequence, message)| (*sequence, Event::decode(&message.payload).unwrap()))
            .collect()
    }

    /// Messages that are in a stream now.
    pub async fn messages(
        &self,
        stream: &str,
        filters: &[String],
        from: u64,
    ) -> Vec<async_nats::Message> {
        let messages = self.numbered_messages(stream, filters, from).await;
        messages.into_iter().map(|(_, message)| message).collect()
    }

    async fn numbered_messages(
        &self,
        stream: &str,
        filters: &[String],
        from: u64,
    ) -> Vec<(u64, async_nats::Message)> {
        let mut all = Vec::new();
        for filter in filters {
            let stream = self.jetstream.get_stream(stream).await.unwrap();
            let consumer = stream
                .create_consumer(pull::Config {
                    filter_subject: filter.clone(),
                    deliver_policy: DeliverPolicy::ByStartSequence {
                        start_sequence: from.max(1),
                    },
                    ack_policy: consumer::AckPolicy::None,
                    ..pull::Config::default()
                })
                .await
                .unwrap();
            let mut left = consumer.cached_info().num_pending;
            while left > 0 {
                let mut batch = consumer
                    .fetch()
                    .max_messages(left.min(1000) as usize)
                    .messages()
                    .await
                    .unwrap();
                while let Some(message) = batch.next().await {
                    let message = message.unwrap();
                    let sequence = message.info().unwrap().stream_sequence;
                    all.push((sequence, message.message.clone()));
                    left -= 1;
                }
            }
            let name = consumer.cached_info().name.clone();
            stream.delete_consumer(&name).await.unwrap();
        }
        all
    }

    /// Returns when everything committed so far is in the stream. Needs a published table `fence`.
    pub async fn fence(&self, mark: u32) {
        self.sql(&format!("INSERT INTO fence VALUES ({mark})"));
        eventually_async(DEADLINE, "the fence in the stream", async || {
            let events = self.events("fence", 1).await;
            events
                .iter()
                .any(|event| event.columns[0].value == wire::Value::Int(i64::from(mark)))
        })
        .await;
    }

    pub async fn init(&self) -> stream::Stream {
        self.jetstream.get_stream("INIT").await.unwrap()
    }

    /// Waits until the bucket holds a schema that pleases.
    pub async fn schema(&self, table: &str, pleases: impl Fn(&Schema) -> bool) -> Schema {
        eventually_async(DEADLINE, "a schema in the bucket", async || {
            let seen = self.schema_now(table).await;
            match seen {
                Some(schema) if pleases(&schema) => Ok(schema),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    pub async fn schema_now(&self, table: &str) -> Option<Schema> {
        let bucket = self.jetstream.get_key_value(BUCKET_SCHEMAS).await.ok()?;
        let value = bucket.get(table).await.ok()??;
        Some(Schema::decode(&value).unwrap())
    }
}

fn start(stack: &Stack, args: &[String]) -> Process {
    stack
        .program(env!("CARGO_BIN_EXE_bridge"))
        .args(["--port", "0"])
        .args(["--pg-url", &stack.postgres().url()])
        .args(["--nats-url", &format!("nats://{}", stack.nats().addr())])
        .args(args)
        .start()
}

/// For requests with options.
pub fn json(options: &snapshot_request::Options) -> String {
    options.to_json()
}
