//! A nats-server, the bridge's messages made by hand, and mirrors that read them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::{self, Context, stream};
use futures_util::{FutureExt as _, StreamExt as _};
use rusqlite::{Connection, OpenFlags};
use stack::{Options, Process, Stack};
use wire::names::{self, BUCKET_SCHEMAS, PUBLIC};
use wire::schema::Schema;
use wire::snapshot::{Chunk, Meta, Snapshot, Start};
use wire::snapshot_request::{Compression, Reply, Values};
use wire::{Column, Event, Lsn, Message, Operation, Row, SubjectPattern, Value};

use crate::sample;
pub use crate::sample::int;

pub const DEADLINE: Duration = Duration::from_mins(2);

pub struct World {
    pub stack: Stack,
    pub context: Context,
    snapshots: AtomicU64,
}

impl World {
    pub async fn new() -> Self {
        let world = Self::on(Stack::up(Options::default().without_postgres()).unwrap()).await;
        world.make_stream("CDC", "cdc.>").await;
        world.make_stream("INIT", "init.>").await;
        let bucket = daemon::nats::bucket(BUCKET_SCHEMAS, 10);
        world.context.create_stream(bucket).await.unwrap();
        world
    }

    /// With table `users`, of which a snapshot at LSN 100 has these rows.
    pub async fn with_users(rows: &[&[&'static str]]) -> Self {
        let world = Self::new().await;
        world.publish_schema(&users()).await;
        world.snapshot(made(&users(), rows, 100, 0)).await;
        world
    }

    /// Without streams and buckets: a bridge will make them.
    pub async fn on(stack: Stack) -> Self {
        let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
        let client = options
            .connect(stack.nats().addr().to_string())
            .await
            .unwrap();
        Self {
            stack,
            context: jetstream::new(client),
            snapshots: AtomicU64::new(0),
        }
    }

    pub async fn make_stream(&self, name: &str, subjects: &str) {
        let config = stream::Config {
            name: name.to_owned(),
            subjects: vec![subjects.to_owned()],
            allow_direct: true,
            ..stream::Config::default()
        };
        self.context.create_stream(config).await.unwrap();
    }

    /// Returns when the server has stored it; its sequence.
    pub async fn publish(&self, subject: String, payload: Vec<u8>) -> u64 {
        let ack = self.context.publish(subject, payload.into()).await.unwrap();
        ack.await.unwrap().sequence
    }

    pub async fn publish_schema(&self, schema: &Schema) {
        let bucket = self.context.get_key_value(BUCKET_SCHEMAS).await.unwrap();
        let key = names::schema_key(schema.namespace(), &schema.table);
        bucket.put(key, schema.to_msgpack().into()).await.unwrap();
    }

    /// Publishes the events as one transaction; the sequence of the last.
    pub async fn transaction(&self, commit_lsn: u64, events: Vec<Event>) -> u64 {
        let count = events.len();
        let mut sequence = 0;
        for (index, mut event) in events.into_iter().enumerate() {
            event.commit_lsn = Lsn(commit_lsn);
            event.seq = index as u32 + 1;
            event.last = index + 1 == count;
            if event.xid == 0 {
                event.xid = commit_lsn;
            }
            sequence = self.publish_event(&event).await;
        }
        sequence
    }

    /// A transaction that inserts a row of `users`; its sequence.
    pub async fn insert_user(&self, commit_lsn: u64, id: i64, name: &str) -> u64 {
        let row = insert("users", user(id, name));
        self.transaction(commit_lsn, vec![row]).await
    }

    pub async fn publish_event(&self, event: &Event) -> u64 {
        let subjects = SubjectPattern::default().subjects(&event.schema, &event.table);
        self.publish(subjects.of(event.operation).to_owned(), event.to_msgpack())
            .await
    }

    /// Publishes a whole snapshot; its id.
    pub async fn snapshot(&self, made: Made) -> String {
        let number = self.snapshots.fetch_add(1, Ordering::Relaxed);
        let id = format!("snap-{number}");
        self.snapshot_as(&id, made).await;
        id
    }

    async fn snapshot_as(&self, id: &str, made: Made) {
        self.start(id, &made.schema, made.compression).await;
        // Two rows a chunk, so that there is more than one.
        let chunks: Vec<_> = made.rows.chunks(2).collect();
        for (number, rows) in (0..).zip(&chunks) {
            self.chunk(id, &made.schema, number, rows).await;
        }
        let meta = Meta {
            lsn: Lsn(made.lsn),
            skip_xids: made.skip_xids,
            cdc_seq: made.cdc_seq,
            ..meta(id, &made.schema, chunks.len(), made.rows.len())
        };
        self.publish_meta(&meta).await;
    }

    pub async fn publish_meta(&self, meta: &Meta) {
        let subject = names::init_meta(PUBLIC, &meta.table);
        self.publish(subject, meta.to_msgpack()).await;
    }

    pub async fn start(&self, id: &str, schema: &Schema, compression: Compression) {
        let start = Start {
            table: schema.table.clone(),
            snapshot_id: id.to_owned(),
            schema: PUBLIC.to_owned(),
            values: Values::Text,
            compression,
            columns: column_names(schema),
            schema_version: schema.version,
            rows_estimated: None,
            timestamp: 0,
            partial: false,
        };
        let subject = names::init_start(PUBLIC, &schema.table);
        self.publish(subject, start.to_msgpack()).await;
    }

    pub async fn chunk(&self, id: &str, schema: &Schema, number: u64, rows: &[Texts]) {
        let columns = column_names(schema);
        let row = |row: &Texts| {
            let pairs = columns.iter().zip(row);
            Row(pairs
                .map(|(name, value)| Column::new(name, text(*value)))
                .collect())
        };
        let chunk = Chunk {
            table: schema.table.clone(),
            operation: Snapshot::Snapshot,
            snapshot_id: id.to_owned(),
            chunk: number,
            lsn: Lsn(0),
            data: rows.iter().map(row).collect(),
            values: Values::Text,
            schema: PUBLIC.to_owned(),
        };
        let subject = names::init_snap(PUBLIC, &schema.table, id, number);
        self.publish(subject, chunk.to_msgpack()).await;
    }

    /// Listens for a snapshot request; see [`Requests::answer`]. The listener stands when this returns.
    pub async fn requests(&self) -> Requests<'_> {
        let client = self.context.client();
        let requests = client.subscribe("snapshot.request.>").await.unwrap();
        client.flush().await.unwrap();
        Requests {
            world: self,
            requests,
        }
    }

    pub fn db(&self) -> PathBuf {
        self.stack.dir().join("local.db")
    }

    /// No mirror may run.
    pub fn remove_db(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let mut path = self.db().into_os_string();
            path.push(suffix);
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
                Ok(()) | Err(_) => {}
            }
        }
    }

    pub fn mirror(&self, tables: &str, flags: &[&str]) -> Process {
        self.stack
            .program(env!("CARGO_BIN_EXE_mirror"))
            .args(["--tables", tables, "--nats-url", &self.stack.nats().url()])
            .arg("--db")
            .arg(self.db())
            .args(flags)
            .env("LOG_LEVEL", "info,async_nats=warn")
            .start()
    }

    /// Runs a mirror until it is caught up.
    pub fn catch_up(&self, tables: &str) -> String {
        let mirror = self.mirror(tables, &["--once"]);
        let status = mirror.wait(DEADLINE);
        assert!(status.success(), "{status}\n{}", mirror.log_tail());
        mirror.stderr()
    }

    /// What another process reads in the file.
    pub fn rows(&self, sql: &str) -> Vec<String> {
        self.try_rows(sql).unwrap()
    }

    /// An error while the file or the table is not there yet.
    pub fn try_rows(&self, sql: &str) -> Result<Vec<String>, rusqlite::Error> {
        let file = Connection::open_with_flags(self.db(), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        file.busy_timeout(DEADLINE)?;
        let mut statement = file.prepare(sql)?;
        let width = statement.column_count();
        let rows = statement.query_map([], |row| {
            let values = (0..width).map(|index| Ok(shown(&row.get(index)?)));
            Ok(values
                .collect::<Result<Vec<_>, rusqlite::Error>>()?
                .join("|"))
        })?;
        rows.collect()
    }

    /// Waits until the query gives these rows.
    pub async fn wait_for_rows(&self, sql: &str, expected: &[&str]) {
        stack::eventually_async(DEADLINE, sql, async || match self.try_rows(sql) {
            Ok(rows) if rows == expected => Ok(()),
            other => Err(format!("{other:?}, not {expected:?}")),
        })
        .await;
    }
}

/// A row of a chunk.
pub type Texts = Vec<Option<&'static str>>;

/// A snapshot to be published.
pub struct Made {
    pub schema: Schema,
    pub rows: Vec<Texts>,
    pub lsn: u64,
    pub skip_xids: Vec<u64>,
    pub cdc_seq: u64,
    pub compression: Compression,
}

/// The end of a snapshot at LSN 0, before the stream.
pub fn meta(id: &str, schema: &Schema, chunks: usize, rows: usize) -> Meta {
    Meta {
        snapshot_id: id.to_owned(),
        lsn: Lsn(0),
        timestamp: 0,
        batch_count: chunks as u64,
        row_count: rows as u64,
        table: schema.table.clone(),
        skip_xids: Vec::new(),
        cdc_seq: 0,
        schema: PUBLIC.to_owned(),
    }
}

/// A snapshot of the rows at an LSN.
pub fn made(schema: &Schema, rows: &[&[&'static str]], lsn: u64, cdc_seq: u64) -> Made {
    Made {
        schema: schema.clone(),
        rows: rows.iter().map(|row| texts(row)).collect(),
        lsn,
        skip_xids: Vec::new(),
        cdc_seq,
        compression: Compression::None,
    }
}

/// `NULL` is NULL.
pub fn texts(row: &[&'static str]) -> Texts {
    let text = |value: &&'static str| (*value != "NULL").then_some(*value);
    row.iter().map(text).collect()
}

pub struct Requests<'a> {
    world: &'a World,
    requests: async_nats::Subscriber,
}

impl Requests<'_> {
    /// Waits for a request.
    pub async fn wait(&mut self) -> async_nats::Message {
        let request = tokio::time::timeout(DEADLINE, self.requests.next());
        request.await.expect("a request in time").unwrap()
    }

    /// Waits for a request and promises a snapshot, as the bridge does; its id.
    pub async fn promise(&mut self) -> String {
        let request = self.wait().await;
        let number = self.world.snapshots.fetch_add(1, Ordering::Relaxed);
        let id = format!("snap-{number}");
        let reply = Reply::Accepted {
            snapshot_id: id.clone(),
        };
        let client = self.world.context.client();
        let inbox = request.reply.expect("the mirror wants a reply");
        client
            .publish(inbox, reply.to_msgpack().into())
            .await
            .unwrap();
        id
    }

    /// Waits for a request, promises a snapshot and makes it.
    pub async fn answer(&mut self, made: Made) {
        let id = self.promise().await;
        self.world.snapshot_as(&id, made).await;
    }

    /// True when nobody has asked since the last time.
    pub fn is_quiet(&mut self) -> bool {
        self.requests.next().now_or_never().is_none()
    }
}

fn column_names(schema: &Schema) -> Vec<String> {
    let names = schema.columns.iter().map(|column| column.name.clone());
    names.collect()
}

fn shown(value: &rusqlite::types::Value) -> String {
    use rusqlite::types::Value as Sql;
    match value {
        Sql::Null => "NULL".to_owned(),
        Sql::Integer(value) => value.to_string(),
        Sql::Real(value) => format!("{value:?}"),
        Sql::Text(value) => value.clone(),
        Sql::Blob(value) => format!("{value:02x?}"),
    }
}

/// Of `(attnum, name, type)`.
pub fn schema(table: &str, version: u32, columns: &[(u32, &str, &str)], key: &[&str]) -> Schema {
    Schema {
        table: table.to_owned(),
        schema: format!("public.{table}"),
        ..sample::schema(version, columns, key)
    }
}

pub fn users() -> Schema {
    schema(
        "users",
        1,
        &[
            (1, "id", "integer"),
            (2, "name", "text"),
            (3, "bio", "text"),
        ],
        &["id"],
    )
}

pub fn orders() -> Schema {
    schema(
        "orders",
        1,
        &[(1, "id", "bigint"), (2, "total", "numeric(10,2)")],
        &["id"],
    )
}

pub fn text(value: Option<&str>) -> Value {
    value.map_or(Value::Null, |value| Value::Text(value.to_owned()))
}

pub fn string(name: &str, value: &str) -> Column {
    Column::new(name, Value::Text(value.to_owned()))
}

pub fn event(table: &str, operation: Operation, columns: Vec<Column>) -> Event {
    Event {
        table: table.to_owned(),
        ..sample::event(operation, columns)
    }
}

pub fn insert(table: &str, columns: Vec<Column>) -> Event {
    event(table, Operation::Insert, columns)
}

pub fn update(table: &str, columns: Vec<Column>) -> Event {
    event(table, Operation::Update, columns)
}

pub fn delete(table: &str, columns: Vec<Column>) -> Event {
    event(table, Operation::Delete, columns)
}

/// A row of `users`.
pub fn user(id: i64, name: &str) -> Vec<Column> {
    vec![
        int("id", id),
        string("name", name),
        Column::new("bio", Value::Null),
    ]
}

/// A row of `orders`.
pub fn order(id: i64, total: &str) -> Vec<Column> {
    vec![int("id", id), string("total", total)]
}
