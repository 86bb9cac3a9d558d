//! A nats-server, gateways in front of it, and a client that writes HTTP by hand.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::{self, Context, kv, stream};
use serde_json::{Value, json};
use stack::{Options, Process, Stack, eventually_async};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::Message;
use wire::command::WriteCommand;
use wire::names::{BUCKET_SCHEMAS, STREAM_WRITES};
use wire::schema::Schema;

pub const DEADLINE: Duration = Duration::from_secs(20);

pub struct World {
    pub stack: Stack,
    pub context: Context,
}

impl World {
    /// A nats-server whose bucket `schemas` holds the table `users`.
    pub async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let stack = Stack::up(options.without_postgres()).unwrap();
        let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
        let client = options
            .connect(stack.nats().addr().to_string())
            .await
            .unwrap();
        let context = jetstream::new(client);
        context
            .create_stream(daemon::nats::bucket(BUCKET_SCHEMAS, 10))
            .await
            .unwrap();
        let world = Self { stack, context };
        world.publish_schema("users", &users()).await;
        world
    }

    pub async fn schemas(&self) -> kv::Store {
        self.context.get_key_value(BUCKET_SCHEMAS).await.unwrap()
    }

    pub async fn publish_schema(&self, key: &str, schema: &Value) {
        let schema = Schema::decode(schema.to_string().as_bytes()).unwrap();
        self.schemas()
            .await
            .put(key, schema.to_msgpack().into())
            .await
            .unwrap();
    }

    /// A gateway of its own process that is ready.
    pub async fn gateway(&self, flags: &[&str]) -> Gateway {
        let gateway = self.start_gateway(flags);
        gateway.ready().await;
        gateway
    }

    /// A gateway that listens; whether it is ready depends on NATS.
    pub fn start_gateway(&self, flags: &[&str]) -> Gateway {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let process = self
            .stack
            .program(env!("CARGO_BIN_EXE_gateway"))
            .named(&format!("gateway-{number}"))
            .env("PORT", "0")
            .env("NATS_URL", self.stack.nats().url())
            .args(flags)
            .start();
        let line = process.wait_for_line("listening", DEADLINE);
        let address = line
            .split("address=")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let address = address.and_then(|address| address.parse().ok());
        Gateway {
            process,
            address: address.expect("the line names the address"),
        }
    }

    pub async fn writes(&self) -> stream::Stream {
        self.context.get_stream(STREAM_WRITES).await.unwrap()
    }

    /// Messages in the queue of writes.
    pub async fn queued(&self) -> u64 {
        self.writes().await.get_info().await.unwrap().state.messages
    }

    /// The command at a sequence of the queue, with its message.
    pub async fn command(&self, sequence: u64) -> (WriteCommand, StreamMessage) {
        let message = self.writes().await.direct_get(sequence).await.unwrap();
        (WriteCommand::decode(&message.payload).unwrap(), message)
    }
}

pub struct Gateway {
    pub process: Process,
    pub address: SocketAddr,
}

impl Gateway {
    pub async fn ready(&self) {
        eventually_async(DEADLINE, "the gateway is ready", async || {
            self.get("/health").await.status == 200
        })
        .await;
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn post(&self, table: &str, key: &str, body: &Value) -> Answer {
        self.send(
            "POST",
            &format!("/{table}"),
            &[("idempotency-key", key)],
            &body.to_string(),
        )
        .await
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let headers = headers.concat();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\
             content-length: {}\r\n{headers}\r\n{body}",
            body.len()
        );
        self.send_raw(request.as_bytes()).await
    }

    pub async fn send_raw(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        Answer::parse(&String::from_utf8(answer).unwrap())
    }
}

#[derive(Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Value,
    pub text: String,
}

impl Answer {
    fn parse(answer: &str) -> Self {
        let (head, text) = answer
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{answer:?}"));
        let mut lines = head.lines();
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        let headers = headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let body = serde_json::from_str(text).unwrap_or(Value::Null);
        Self {
            status,
            headers,
            body,
            text: text.to_owned(),
        }
    }

    pub fn header(&self, name: &str) -> &str {
        let header = self.headers.iter().find(|(header, _)| header == name);
        header.map_or("", |(_, value)| value)
    }

    /// The last part of a problem's type.
    #[track_caller]
    pub fn problem(&self) -> &str {
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{self:?}"
        );
        assert_eq!(self.body["status"], self.status, "{self:?}");
        self.body["type"]
            .as_str()
            .unwrap()
            .strip_prefix("urn:gateway:")
            .unwrap()
    }

    #[track_caller]
    pub fn retry_after_s(&self) -> u64 {
        self.header("retry-after")
            .parse()
            .unwrap_or_else(|_| panic!("{self:?}"))
    }
}

/// `users(id uuid, name text not null, email varchar(40), balance numeric)`, all of it granted.
pub fn users() -> Value {
    table(
        "users",
        &[
            ("id", "uuid", false),
            ("name", "text", false),
            ("email", "character varying(40)", true),
            ("balance", "numeric", true),
        ],
    )
}

pub fn table(name: &str, columns: &[(&str, &str, bool)]) -> Value {
    let column = |(position, (name, data_type, is_nullable)): (usize, &(&str, &str, bool))| {
        json!({
            "name": name, "position": position + 1, "data_type": data_type,
            "is_nullable": is_nullable, "column_default": null,
        })
    };
    json!({
        "table": name, "schema": format!("public.{name}"), "timestamp": 0, "version": 1,
        "columns": columns.iter().enumerate().map(column).collect::<Vec<_>>(),
        "primary_key": [columns[0].0],
        "privileges": {"reader": ["select"], "writer": ["insert", "update", "delete"]},
    })
}

/// A UUID that no other test uses.
pub fn new_id() -> String {
    static COUNT: OnceLock<std::sync::atomic::AtomicU64> = OnceLock::new();
    let count = COUNT.get_or_init(Default::default);
    let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("0191d2a0-7b7a-7cc3-8e6b-{number:012x}")
}
