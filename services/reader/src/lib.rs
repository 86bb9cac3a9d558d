//! Reads over HTTP: rows from a cache that changes keep fresh, live changes, the status of writes.
//!
//! In: HTTP requests against any table that PostgreSQL grants to `app_reader`, and the change stream.
//! Out: JSON and server-sent events.
//! Invariant: PostgreSQL alone decides who sees which rows, and no answer outlives a change.
//!
//! A read travels `routes` -> `query` -> `sql` -> `cache` -> `database` -> `body`; the change stream goes
//! through `invalidator` into `cache`, and through `changes` to clients.
#![warn(missing_docs)]

pub mod body;
pub mod query;
pub mod sql;

pub mod cache;
pub mod changes;
pub mod database;
pub mod invalidator;
pub mod routes;
pub mod schemas;
pub mod status;

pub mod config;
pub mod metrics;
pub mod openapi;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use async_nats::jetstream;
use daemon::http::{ListenError, listen, serve_connections};
use daemon::nats::FirstConnect;
use daemon::shutdown::Shutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use wire::names::{BUCKET_SCHEMAS, PUBLIC, TABLE_WRITE_OPERATIONS};

use crate::cache::Cache;
use crate::config::Config;
use crate::database::Database;
use crate::invalidator::Invalidator;
use crate::metrics::Metrics;
use crate::routes::Reader;
use crate::schemas::Schemas;
use crate::status::{Operations, Waiting};

/// The reader, as its problems name it.
#[derive(Debug)]
pub enum Name {}

impl daemon::problem::Service for Name {
    const URN: &'static str = "urn:reader";
}

/// One error, as clients read it.
pub type Problem = daemon::problem::Problem<Name>;

/// The reader does not come up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The flags make no sense.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The port cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// NATS cannot be named like this.
    #[error(transparent)]
    Nats(#[from] daemon::nats::Error),
}

/// A reader that has its port.
pub struct Server {
    reader: Arc<Reader>,
    invalidator: Invalidator,
    listener: TcpListener,
    connections_max: usize,
}

impl Server {
    /// Opens the port. None of the servers need be there yet.
    pub async fn bind(config: &Config, shutdown: Shutdown) -> Result<Self, Error> {
        let access = config
            .tokens
            .access(config.host)
            .map_err(config::Error::from)?;
        let subjects = config.subjects()?;
        let postgres = config.postgres.options().map_err(config::Error::from)?;
        let redis = config.redis()?;
        let nats = config.nats.options()?;
        let listener = listen(config.host, config.port, "--port (PORT)").await?;
        let client = nats.connect("reader", FirstConnect::Retry).await?;
        let jetstream = jetstream::new(client.clone());
        tracing::info!(%nats, %postgres, redis = redis.is_some(), "starting");

        let metrics = Arc::new(Metrics::default());
        let database = Arc::new(Database::new(
            postgres,
            config.pg_sessions_max.into(),
            config.pg_waiting_max.into(),
            config.pg_timeout,
            metrics.clone(),
        ));
        let cache = Cache::new(
            redis,
            config.cache_ttl,
            config.redis_timeout,
            metrics.clone(),
        );
        let invalidator = Invalidator {
            cache: cache.clone(),
            database: database.clone(),
            jetstream: jetstream.clone(),
            stream: config.cdc_stream.clone(),
            subjects: subjects.stream_subjects(),
            gap_subject: subjects.gap(),
            consumer: config.consumer.clone(),
            metrics: metrics.clone(),
        };
        let operations = Operations {
            database: database.clone(),
            jetstream: jetstream.clone(),
            changes_subject: subjects.filter(PUBLIC, TABLE_WRITE_OPERATIONS),
            waiting: Waiting::default(),
        };
        let reader = Arc::new(Reader {
            access,
            schemas: Schemas::default(),
            database,
            cache,
            operations,
            client,
            jetstream,
            cdc_stream: config.cdc_stream.clone(),
            subjects,
            live: (AtomicUsize::new(0), config.live_max.into()),
            metrics,
            shutdown,
        });
        Ok(Self {
            reader,
            invalidator,
            listener,
            connections_max: config.connections_max.into(),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the shutdown; returns when the last answer is out.
    pub async fn run(self) {
        let Self {
            reader,
            invalidator,
            listener,
            connections_max,
        } = self;
        let shutdown = reader.shutdown.clone();
        let service = TowerToHyperService::new(routes::router(reader.clone()));
        // None of the others ever ends.
        tokio::select! {
            () = serve_connections(listener, service, connections_max, shutdown) => {}
            () = reader.schemas.follow(&reader.jetstream, BUCKET_SCHEMAS, schemas::read) => {}
            () = reader.cache.keep_connected() => {}
            () = invalidator.run() => {}
            () = reader.operations.follow(&reader.client) => {}
            () = reader.operations.answer(&reader.client) => {}
        }
        tracing::info!("stopped");
    }
}
