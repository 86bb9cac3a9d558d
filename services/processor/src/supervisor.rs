//! Starts a worker for every table and stops them all.
//!
//! In: names of tables, from PostgreSQL and from the consumers that exist. Out: running tasks.
//! Invariant: only this file spawns, and a task that ends before the shutdown ends the process: half
//! a processor is worse than none.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use daemon::backoff::{self, Backoff};
use daemon::http;
use daemon::nats::FirstConnect;
use daemon::postgres::PostgresOptions;
use daemon::shutdown::{Reason, Shutdown};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::admin;
use crate::config::Config;
use crate::maintenance::{self, TableName};
use crate::metrics::Metrics;
use crate::queue;
use crate::worker::{Surroundings, Worker};

/// Why it cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// NATS cannot be named or logged in to like this.
    #[error(transparent)]
    Nats(#[from] daemon::nats::Error),
    /// PostgreSQL cannot be named like this.
    #[error(transparent)]
    Postgres(#[from] daemon::postgres::Error),
    /// The port is taken.
    #[error(transparent)]
    Listen(#[from] daemon::http::ListenError),
    /// A repeat could come after its outcome was deleted.
    #[error(
        "stream WRITES keeps messages for {max_age:?}; outcomes must be kept longer: raise --retention"
    )]
    Retention {
        /// Of the stream.
        max_age: Duration,
    },
    /// A task ended that should not.
    #[error("a task ended unexpectedly")]
    Task(#[source] Option<tokio::task::JoinError>),
}

/// A processor that listens and has not begun to work.
pub struct Processor {
    config: Config,
    listener: TcpListener,
    client: async_nats::Client,
    postgres: PostgresOptions,
    metrics: Metrics,
    shutdown: Shutdown,
}

impl Processor {
    /// Checks the configuration and opens the port. The servers need not be there.
    pub async fn bind(config: Config, shutdown: Shutdown) -> Result<Self, Error> {
        let postgres = config.connections.postgres.options()?;
        let nats = config.connections.nats.options()?;
        let listener = http::listen(config.host, config.port, "--port (PORT)").await?;
        let client = nats.connect("processor", FirstConnect::Retry).await?;
        tracing::info!(%nats, %postgres, retention = ?config.retention, "starting");
        Ok(Self {
            config,
            listener,
            client,
            postgres,
            metrics: Metrics::default(),
            shutdown,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> std::io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Works until the shutdown, then finishes the batches in hand.
    pub async fn run(self) -> Result<(), Error> {
        let shutdown = self.shutdown.clone();
        let mut tasks = JoinSet::new();
        let (client, metrics) = (self.client.clone(), self.metrics.clone());
        let handler = move |request: http::Request| {
            let answer = admin::answer(&request, &client, &metrics);
            std::future::ready(answer)
        };
        tasks.spawn(http::serve(self.listener, handler, shutdown.clone()));
        let (found, tables) = mpsc::channel(64);
        let settings = maintenance::Settings {
            discover_interval: self.config.discover_interval,
            retention: self.config.retention,
        };
        tasks.spawn(maintenance::run(
            self.postgres.clone(),
            settings,
            found,
            self.metrics.clone(),
            shutdown.clone(),
        ));

        let jetstream = jetstream::new(self.client.clone());
        let opened = tokio::select! {
            opened = open(&jetstream, self.config.retention) => Some(opened),
            _ = shutdown.wait() => None,
        };
        let ended = match opened {
            None => Ok(()),
            Some(Err(error)) => Err(error),
            Some(Ok((writes, known))) => {
                let around = Surroundings {
                    postgres: self.postgres,
                    jetstream,
                    writes,
                    metrics: self.metrics,
                    shutdown: shutdown.clone(),
                    limits: self.config.limits(),
                };
                employ(&mut tasks, &around, known, tables, &shutdown).await
            }
        };
        let reason = ended
            .as_ref()
            .map_or_else(ToString::to_string, |()| String::new());
        shutdown.trigger(Reason::Request(reason));
        while tasks.join_next().await.is_some() {}
        // The last acks leave the buffer.
        let flushed = tokio::time::timeout(FLUSH_TIMEOUT, self.client.flush()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!(
                "the last acks were not sent; their writes will come again and do nothing"
            );
        }
        ended
    }
}

const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Starts a worker per table until the shutdown, or until a task ends.
async fn employ(
    tasks: &mut JoinSet<()>,
    around: &Surroundings,
    known: Vec<TableName>,
    mut tables: mpsc::Receiver<TableName>,
    shutdown: &Shutdown,
) -> Result<(), Error> {
    let mut employed = HashSet::new();
    let mut employ = |tasks: &mut JoinSet<()>, name: TableName| {
        if employed.insert(name.clone()) {
            let (schema, table) = name;
            tasks.spawn(Worker::new(around.clone(), schema, table).run());
        }
    };
    for name in known {
        employ(tasks, name);
    }
    loop {
        tokio::select! {
            biased;
            _ = shutdown.wait() => return Ok(()),
            Some(name) = tables.recv() => employ(tasks, name),
            Some(ended) = tasks.join_next() => match ended {
                // The shutdown came behind the look at it, and this task was the first to hear of it.
                Ok(()) if shutdown.is_triggered() => {}
                ended => return Err(Error::Task(ended.err())),
            }
        }
    }
}

/// The streams, and the tables that have a consumer. Waits for JetStream as long as it takes.
async fn open(
    jetstream: &Context,
    retention: Duration,
) -> Result<(jetstream::stream::Stream, Vec<TableName>), Error> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let opened = async {
            let writes = queue::writes(jetstream).await?;
            queue::dead_letters(jetstream).await?;
            let known = queue::tables(&writes).await?;
            Ok::<_, queue::Error>((writes, known))
        };
        match opened.await {
            Ok((writes, known)) => {
                let max_age = writes.cached_info().config.max_age;
                if retention <= max_age {
                    return Err(Error::Retention { max_age });
                }
                return Ok((writes, known));
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "JetStream is away"
                );
                tokio::time::sleep(backoff.next(backoff::random())).await;
            }
        }
    }
}
