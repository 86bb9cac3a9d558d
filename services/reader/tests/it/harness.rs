//! One world per test: PostgreSQL, NATS, Redis and readers, and a hand in the bridge's place.
//!
//! In: SQL. Out: the rows, and the events the bridge would publish. Must hold: the reader logs in as an
//! ordinary user that `schema/` makes for it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{self, Context};
use daemon::nats;
use serde_json::{Value, json};
use stack::{Options, Process, Stack, eventually_async};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use wire::event::Event;
use wire::schema::Schema;
use wire::value::Column;
use wire::{Message, SubjectPattern, names};

pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct World {
    pub stack: Stack,
    pub jetstream: Context,
    has_reader: AtomicBool,
}

pub struct Reader {
    pub process: Process,
    pub addr: SocketAddr,
}

const TABLES: &str = "
    CREATE TABLE books (id integer PRIMARY KEY, title text, price numeric(10,2), sold bigint,
        tags text[], extra jsonb, is_new boolean, weight double precision, secret text);
    GRANT SELECT (id, title, price, sold, tags, extra, is_new, weight) ON books TO app_reader;
    CREATE TABLE closed (id integer PRIMARY KEY);";

impl World {
    pub async fn up() -> Self {
        Self::up_with(Options::default()).await
    }

    pub async fn up_with(options: Options) -> Self {
        let stack = Stack::up(options.schema(true).redis(true)).unwrap();
        stack.postgres().sql(TABLES);
        let client = async_nats::connect(stack.nats().url()).await.unwrap();
        let jetstream = jetstream::new(client);
        let bucket = nats::bucket(names::BUCKET_SCHEMAS, 10);
        jetstream.create_stream(bucket).await.unwrap();
        let cdc = Config {
            name: names::STREAM_CDC.to_owned(),
            subjects: vec!["cdc.>".to_owned()],
            ..Config::default()
        };
        jetstream.create_stream(cdc).await.unwrap();
        let writes = nats::write_queue(
            names::STREAM_WRITES,
            names::WRITE_SUBJECTS,
            nats::WRITES_MAX.into(),
            nats::WRITES_BYTES_MAX,
        );
        jetstream.create_stream(writes).await.unwrap();
        let world = Self {
            stack,
            jetstream,
            has_reader: AtomicBool::new(false),
        };
        world.publish_schema("books").await;
        world.publish_schema("closed").await;
        world
    }

    pub fn program(&self, name: &str, flags: &[&str]) -> stack::Program {
        let url = self
            .stack
            .postgres()
            .url_as("service_reader", "service_reader", "postgres");
        self.stack
            .program(env!("CARGO_BIN_EXE_reader"))
            .named(name)
            .env("NATS_URL", self.stack.nats().url())
            .env("DATABASE_URL", url)
            .env("REDIS_URL", self.stack.redis().url())
            .env("PORT", "0")
            .env("LOG_LEVEL", "info")
            // Answers are missing from the cache for a reason, not because the machine is busy.
            .args(["--redis-timeout", "20s"])
            .args(flags)
    }

    /// A reader that knows the tables and, if it has a Redis, is connected to it.
    pub async fn reader(&self, flags: &[&str]) -> Reader {
        self.start(&self.program("reader", flags)).await
    }

    pub async fn start(&self, program: &stack::Program) -> Reader {
        let process = program.start();
        let line = process.wait_for_line("listening", DEADLINE);
        let addr = line.rsplit_once("address=").unwrap().1.trim().parse();
        let reader = Reader {
            process,
            addr: addr.unwrap(),
        };
        let health = eventually_async(DEADLINE, "a healthy reader", async || {
            let (status, body) = stack::http_get(reader.addr, "/health").unwrap();
            let is_ok = status == 200 && body.contains("\"status\":\"ok\"");
            if is_ok { Ok(body) } else { Err(body) }
        })
        .await;
        // The first one cannot know what was missed before it, and throws everything away once.
        let is_first = !self.has_reader.swap(true, Ordering::Relaxed);
        if is_first && health.contains("\"redis\":\"up\"") {
            let reason = "every cached answer was thrown away";
            reader.process.wait_for_line(reason, DEADLINE);
        }
        self.settle().await;
        reader
    }

    #[track_caller]
    pub fn sql(&self, text: &str) -> Vec<Vec<Option<String>>> {
        self.stack.postgres().sql(text)
    }

    /// Publishes a table's shape and privileges as they are now.
    pub async fn publish_schema(&self, table: &str) {
        let schema = self.schema(table);
        let subject = format!("$KV.schemas.{}", names::schema_key("public", table));
        let ack = self
            .jetstream
            .publish(subject, schema.to_msgpack().into())
            .await;
        ack.unwrap().await.unwrap();
    }

    fn schema(&self, table: &str) -> Schema {
        let columns = self.sql(&format!(
            "SELECT attname, attnum, format_type(atttypid, atttypmod),
                    has_column_privilege('app_reader', attrelid, attnum, 'SELECT')
             FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0
               AND NOT attisdropped ORDER BY attnum"
        ));
        let columns: Vec<Value> = columns
            .iter()
            .map(|column| {
                let text = |index: usize| column[index].clone().unwrap();
                let reader = if text(3) == "t" {
                    vec!["select"]
                } else {
                    vec![]
                };
                json!({"name": text(0), "position": text(1).parse::<u32>().unwrap(),
                    "data_type": text(2), "is_nullable": true, "column_default": null,
                    "privileges": {"reader": reader, "writer": []}})
            })
            .collect();
        let row_security = self.stack.postgres().value(&format!(
            "SELECT relrowsecurity FROM pg_class WHERE oid = '{table}'::regclass"
        )) == "t";
        serde_json::from_value(json!({"table": table, "schema": format!("public.{table}"),
            "timestamp": 0, "columns": columns, "primary_key": ["id"],
            "row_security": row_security}))
        .unwrap()
    }

    /// Runs SQL and publishes that `table` changed. Returns when the readers' cache has heard.
    pub async fn change(&self, table: &str, sql: &str) {
        self.change_unheard(table, sql).await;
        self.settle().await;
    }

    /// The same without waiting for the cache.
    pub async fn change_unheard(&self, table: &str, sql: &str) {
        let sql = format!("{sql}; SELECT pg_current_xact_id()");
        let rows = self.sql(&sql);
        let xid = rows.last().unwrap()[0].clone().unwrap().parse().unwrap();
        self.publish(table, xid, Vec::new()).await;
    }

    pub async fn publish(&self, table: &str, xid: u64, columns: Vec<Column>) -> u64 {
        self.publish_event(&event(table, xid, columns)).await
    }

    pub async fn publish_event(&self, event: &Event) -> u64 {
        let subjects = SubjectPattern::default().subjects("public", &event.table);
        let ack = self
            .jetstream
            .publish(subjects.update, event.to_msgpack().into())
            .await;
        ack.unwrap().await.unwrap().sequence
    }

    /// Waits until every change was heard by the cache, where there is one.
    pub async fn settle(&self) {
        let stream = self.jetstream.get_stream("CDC").await.unwrap();
        let Ok(_) = stream.consumer_info("reader-cache").await else {
            return;
        };
        eventually_async(DEADLINE, "the cache to hear of everything", async || {
            let last = stream.get_info().await.unwrap().state.last_sequence;
            let info = stream.consumer_info("reader-cache").await.unwrap();
            let heard = info.ack_floor.stream_sequence;
            if last <= heard {
                Ok(())
            } else {
                Err(format!("{heard} of {last}"))
            }
        })
        .await;
    }
}

pub fn event(table: &str, xid: u64, columns: Vec<Column>) -> Event {
    let json = json!({"table": table, "operation": "UPDATE", "relation_id": 1, "lsn": "0/1",
        "columns": [], "commit_lsn": "0/1", "seq": 1, "xid": xid, "schema_version": 1, "last": true});
    let event = Event::decode(json.to_string().as_bytes()).unwrap();
    Event { columns, ..event }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn cache(&self) -> &str {
        &self.headers["x-cache"]
    }
}

impl Reader {
    pub async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.connect().await.get(path, headers).await
    }

    pub async fn connect(&self) -> Connection {
        Connection(BufReader::new(TcpStream::connect(self.addr).await.unwrap()))
    }
}

/// HTTP/1.1, kept alive.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let (status, headers) = self.ask(path, headers).await;
        let length = headers
            .get("content-length")
            .map_or(0, |text| text.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        Answer {
            status,
            headers,
            body: String::from_utf8(body).unwrap(),
        }
    }

    /// Sends the request and reads the head; server-sent events follow.
    pub async fn ask(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (u16, HashMap<String, String>) {
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n");
        for (name, value) in headers {
            request.extend([name, ": ", value, "\r\n"]);
        }
        request.push_str("\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
        let status = self.line().await;
        let status = status.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = HashMap::new();
        loop {
            let line = self.line().await;
            match line.split_once(": ") {
                Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
                None => return (status, headers),
            };
        }
    }

    /// The next server-sent event as (event, id, data).
    pub async fn event(&mut self) -> (String, String, String) {
        let mut fields = HashMap::new();
        loop {
            let line = tokio::time::timeout(DEADLINE, self.line()).await.unwrap();
            if let Some((name, value)) = line.split_once(": ") {
                fields.insert(name.to_owned(), value.to_owned());
            } else if line.is_empty() && fields.contains_key("data") {
                let mut field = |name| fields.remove(name).unwrap_or_default();
                return (field("event"), field("id"), field("data"));
            }
        }
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).await.unwrap();
        assert_ne!(read, 0, "the connection ended");
        line.trim_end().to_owned()
    }
}
