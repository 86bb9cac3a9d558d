//! The gateway: writes over HTTP into JetStream.
//!
//! In: HTTP requests against any table that PostgreSQL grants to `app_writer`. Out: commands on
//! `writes.{table}.{operation_id}`. What must hold: an accepted write is in the queue, once, and was checked against the
//! table's shape; PostgreSQL and the processor need not be there.

// In: who asks for what.
pub mod idempotency;
pub mod prefer;
pub mod rate_limit;
pub mod request;
pub mod routes;
pub mod trace;

// Does it fit the table?
pub mod column_type;
pub mod date;
pub mod sent;
pub mod write;

// Into the queue.
pub mod backlog;
pub mod breaker;
pub mod intake;
pub mod keys;
pub mod queue;
pub mod streams;

// Out: what became of it.
pub mod answer;
pub mod outcome;

// Beside the road.
pub mod config;
pub mod metrics;
pub mod openapi;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::kv::Entry;
use async_nats::jetstream::stream::Info;
use daemon::backoff::{self, Backoff};
use daemon::bucket::Bucket;
use daemon::http::{ListenError, listen, serve_connections};
use daemon::nats::FirstConnect;
use daemon::shutdown::Shutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use wire::names::{BUCKET_SCHEMAS, TABLE_WRITE_OPERATIONS};
use wire::schema::Schema;
use wire::{DecodeError, Message};

use crate::backlog::Sample;
use crate::config::Config;
use crate::intake::{ACK_TIMEOUT, Intake, Line};
use crate::metrics::Metrics;
use crate::outcome::Outcomes;
use crate::queue::Queue;
use crate::rate_limit::RateLimit;
use crate::routes::Gateway;
use crate::streams::Limits;

/// The gateway, as its problems name it.
#[derive(Debug)]
pub enum Name {}

impl daemon::problem::Service for Name {
    const URN: &'static str = "urn:gateway";
}

/// One error, as clients read it.
pub type Problem = daemon::problem::Problem<Name>;

/// The gateway does not come up.
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

/// A gateway that has its port.
#[derive(Debug)]
pub struct Server {
    gateway: Arc<Gateway>,
    listener: TcpListener,
    context: Context,
    line: Line,
    limits: Limits,
    connections_max: usize,
    outcomes_subject: String,
}

impl Server {
    /// Opens the port. NATS need not be there yet: until it is, writes are answered 503.
    pub async fn bind(config: &Config, shutdown: Shutdown) -> Result<Self, Error> {
        let access = config
            .tokens
            .access(config.host)
            .map_err(config::Error::from)?;
        let outcomes_subject = config.cdc_filter(TABLE_WRITE_OPERATIONS)?;
        let nats = config.nats.options()?;
        let listener = listen(config.host, config.port, "--port (PORT)").await?;
        let client = nats.connect("gateway", FirstConnect::Retry).await?;
        let context = ContextBuilder::new()
            .timeout(ACK_TIMEOUT)
            .build(client.clone());
        let limits = config.limits();
        let in_flight_max = config.in_flight_max.into();
        let (intake, line) = Intake::new(context.clone(), in_flight_max, limits.keys_max as usize);
        let gateway = Arc::new(Gateway {
            access,
            rate_limit: config
                .rate_limit_per_s()
                .map(|limit| Mutex::new(RateLimit::new(limit))),
            schemas: Bucket::default(),
            intake,
            outcomes: Outcomes::default(),
            client,
            metrics: Metrics::default(),
            shutdown,
        });
        let connections_max = config.connections_max.into();
        Ok(Self {
            gateway,
            listener,
            context,
            line,
            limits,
            connections_max,
            outcomes_subject,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the shutdown; returns when the last answer is out.
    pub async fn run(self) {
        let Self {
            gateway,
            listener,
            context,
            line,
            limits,
            connections_max,
            outcomes_subject,
        } = self;
        let shutdown = gateway.shutdown.clone();
        let service = TowerToHyperService::new(routes::router(gateway.clone()));
        // Each is a task of its own: one that waits for all would look at all of them whenever one has something to do.
        // They end with this function.
        let mut beside = JoinSet::new();
        let (here, jetstream) = (gateway.clone(), context.clone());
        beside.spawn(async move {
            here.schemas
                .follow(&jetstream, BUCKET_SCHEMAS, read_schema)
                .await;
        });
        let here = gateway.clone();
        beside.spawn(async move { here.outcomes.follow(&here.client, &outcomes_subject).await });
        let here = gateway.clone();
        beside.spawn(async move { keep_streams(&context, limits, &here.intake.queue).await });
        let here = gateway.clone();
        beside.spawn(async move { here.intake.keys.follow().await });
        beside.spawn(async move { gateway.intake.work(line).await });
        serve_connections(listener, service, connections_max, shutdown).await;
        tracing::info!("stopped");
    }
}

fn read_schema(entry: &Entry) -> Result<Schema, DecodeError> {
    Schema::decode(&entry.value)
}

/// Looks at the streams every second and makes the missing ones.
async fn keep_streams(context: &Context, limits: Limits, queue: &Queue) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut is_seen = false;
    loop {
        let pause = match streams::ensure(context, limits).await {
            Ok(Info { config, state, .. }) => {
                if !std::mem::replace(&mut is_seen, true) {
                    streams::warn_of_long_memory(&config);
                }
                queue.observed(Some(Sample {
                    at: Instant::now(),
                    messages: state.messages,
                    last_sequence: state.last_sequence,
                }));
                backoff.reset();
                OBSERVE_EVERY
            }
            Err(error) => {
                tracing::warn!(%error, "cannot look at the streams of the gateway");
                queue.observed(None);
                backoff.next(backoff::random())
            }
        };
        tokio::time::sleep(pause).await;
    }
}

const OBSERVE_EVERY: Duration = Duration::from_secs(1);
