//! The servers, and what every scenario asks of them.
//!
//! In: the arguments. Out: SQL sessions, slots, streams.
//! Must hold: scenarios leave no slot, table or stream behind, so that their order does not matter.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::jetstream;
use bridge::postgres::{Endpoint, Host};
use daemon::nats::{NatsOptions, ServerVersion, Settings};
use stack::{Options, Stack};
use tokio_postgres::NoTls;

use crate::arguments::Arguments;

/// No single load or drain takes longer.
pub const DEADLINE: Duration = Duration::from_mins(15);

pub struct World {
    pub bridge: PathBuf,
    pub jetstream: jetstream::Context,
    /// Logged in with all rights.
    pub sql: tokio_postgres::Client,
    pub runtime: tokio::runtime::Runtime,
    slots: AtomicU32,
    pub stack: Stack,
}

impl World {
    pub fn up(arguments: &Arguments) -> anyhow::Result<Self> {
        let bridge = match &arguments.bridge {
            Some(path) => path.canonicalize().context("--bridge")?,
            None => stack::build_binary("bridge", "bridge")?,
        };
        let stack = Stack::up(options(arguments))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let (sql, jetstream) = runtime.block_on(async {
            let (sql, closed) = tokio_postgres::connect(&stack.postgres().url(), NoTls).await?;
            tokio::spawn(closed);
            sql.batch_execute(&format!(
                "SET synchronous_commit = off; SET statement_timeout = '{}s'",
                DEADLINE.as_secs()
            ))
            .await?;
            let nats = async_nats::ConnectOptions::new()
                .user_and_password("admin".to_owned(), "admin".to_owned())
                .connect(stack.nats().addr().to_string())
                .await?;
            anyhow::Ok((sql, jetstream::new(nats)))
        })?;
        Ok(Self {
            bridge,
            jetstream,
            sql,
            runtime,
            slots: AtomicU32::new(0),
            stack,
        })
    }

    /// One statement, or several that may share a transaction.
    pub fn execute(&self, sql: &str) -> anyhow::Result<()> {
        self.runtime
            .block_on(self.sql.batch_execute(sql))
            .with_context(|| format!("in: {sql}"))
    }

    /// The first column of the first row, which must be text.
    pub fn value(&self, sql: &str) -> anyhow::Result<String> {
        let row = self
            .runtime
            .block_on(self.sql.query_one(sql, &[]))
            .with_context(|| format!("in: {sql}"))?;
        Ok(row.try_get(0)?)
    }

    /// Makes a slot that keeps what is written from now on.
    pub fn create_slot(&self, name: &str) -> anyhow::Result<()> {
        self.execute(&format!(
            "SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
        ))
    }

    /// A slot in the same state: every reader drains the same backlog.
    pub fn copy_slot(&self, name: &str) -> anyhow::Result<Slot<'_>> {
        let copy = format!("{name}_{}", self.slots.fetch_add(1, Ordering::Relaxed));
        self.execute(&format!(
            "SELECT pg_copy_logical_replication_slot('{name}', '{copy}')"
        ))?;
        Ok(Slot {
            world: self,
            name: copy,
        })
    }

    /// The walsender that serves a slot; None while nobody reads it.
    pub fn walsender(&self, slot: &str) -> Option<u32> {
        let sql = format!(
            "SELECT coalesce(active_pid, 0)::text FROM pg_replication_slots WHERE slot_name = '{slot}'"
        );
        self.value(&sql).ok()?.parse().ok().filter(|&pid| pid > 0)
    }

    /// Messages and bytes a stream holds; zeros while it is missing.
    pub fn stream(&self, name: &str) -> anyhow::Result<jetstream::stream::State> {
        self.runtime.block_on(async {
            match self.jetstream.get_stream(name).await {
                Ok(stream) => Ok(stream.cached_info().state.clone()),
                Err(error) => Err(error.into()),
            }
        })
    }

    pub fn messages(&self, stream: &str) -> u64 {
        self.stream(stream).map_or(0, |state| state.messages)
    }

    /// A stream as the bridge makes it.
    pub fn create_stream(&self, name: &str, subjects: &str) -> anyhow::Result<()> {
        let config = jetstream::stream::Config {
            name: name.to_owned(),
            subjects: vec![subjects.to_owned()],
            storage: jetstream::stream::StorageType::File,
            max_age: Duration::from_hours(7 * 24),
            allow_direct: true,
            allow_atomic_publish: self.has_fast_batches(),
            allow_batch_publish: self.has_fast_batches(),
            ..jetstream::stream::Config::default()
        };
        self.runtime
            .block_on(self.jetstream.create_stream(config))?;
        Ok(())
    }

    /// Deletes streams that exist.
    pub fn delete_streams(&self, names: &[&str]) {
        for name in names {
            // Nothing is lost when it was not there.
            let _ = self.runtime.block_on(self.jetstream.delete_stream(name));
        }
    }

    /// Whether the server has fast-ingest batches; the bridge then makes streams that allow them.
    pub fn has_fast_batches(&self) -> bool {
        let version = self.stack.nats().version().parse::<ServerVersion>();
        version.is_ok_and(|version| version >= ServerVersion::new(2, 14, 0))
    }

    pub fn nats_pid(&self) -> anyhow::Result<u32> {
        self.stack
            .nats()
            .pid()
            .context("nats-server does not run any more")
    }

    /// Payload bytes nats-server has received, headers included.
    pub fn nats_in_bytes(&self) -> anyhow::Result<u64> {
        let (_, body) = stack::http_get(self.stack.nats().monitoring_addr(), "/varz")?;
        let varz: serde_json::Value = serde_json::from_str(&body)?;
        varz["in_bytes"].as_u64().context("/varz has no in_bytes")
    }

    pub fn nats_options(&self) -> anyhow::Result<NatsOptions> {
        let url = self.stack.nats().url();
        Ok(NatsOptions::new(Settings {
            url: Some(&url),
            ..Settings::default()
        })?)
    }

    pub fn endpoint(&self) -> Endpoint {
        let postgres = self.stack.postgres();
        Endpoint {
            host: Host::Tcp(postgres.host().to_owned()),
            port: postgres.port(),
            user: postgres.user().to_owned(),
            password: Some(postgres.password().to_owned()),
            database: "postgres".to_owned(),
            application_name: "bench".to_owned(),
            connect_timeout: Duration::from_secs(10),
        }
    }

    /// A program of the running server's own version, such as pg_recvlogical.
    pub fn postgres_program(&self, name: &str) -> anyhow::Result<PathBuf> {
        let pid = self
            .stack
            .postgres()
            .pid()
            .context("PostgreSQL does not run any more")?;
        let server = std::fs::read_link(format!("/proc/{pid}/exe"))?;
        let beside = server.with_file_name(name);
        if !beside.is_file() {
            bail!("{} is missing", beside.display());
        }
        Ok(beside)
    }
}

/// A slot that is dropped with this value.
pub struct Slot<'a> {
    world: &'a World,
    pub name: String,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Err(error) = drop_slot(self.world, &self.name) {
            eprintln!("bench: slot {} stays: {error:#}", self.name);
        }
    }
}

/// Waits until its walsender has noticed that the reader is gone.
pub fn drop_slot(world: &World, name: &str) -> anyhow::Result<()> {
    let started = std::time::Instant::now();
    while world.walsender(name).is_some() {
        if started.elapsed() > Duration::from_secs(30) {
            bail!("slot {name} is still read");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    world.execute(&format!("SELECT pg_drop_replication_slot('{name}')"))
}

fn options(arguments: &Arguments) -> Options {
    Options::default()
        .schema(true)
        .fsync(arguments.fsync)
        .nats(arguments.nats)
        .postgres(arguments.postgres)
        .postgres_setting("shared_buffers", "128MB")
        // No checkpoint and no vacuum in the middle of a figure.
        .postgres_setting("max_wal_size", "16GB")
        .postgres_setting("checkpoint_timeout", "1h")
        .postgres_setting("autovacuum", "off")
        .postgres_setting("max_connections", "50")
}
