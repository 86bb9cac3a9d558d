//! Starts everything, and decides what any end means.
//!
//! In: the configuration. Out: an exit code. Invariant: only this file spawns, and any task that ends
//! ends the process: a half-alive daemon is worse than a dead one.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use daemon::backoff::{self, Backoff};
use daemon::http;
use daemon::nats::FirstConnect;
use daemon::postgres::{Address, CONNECT_TIMEOUT, PostgresOptions};
use daemon::shutdown::{Reason, Shutdown};
use tokio::sync::oneshot;

use crate::admin::Admin;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::postgres::{Endpoint, Host};
use crate::publish::Publisher;
use crate::publish::chain::Limits;
use crate::publish::oversize::Oversize;
use crate::publish::publisher::{Chained, Target};
use crate::ring::{self, Consumer, Producer};
use crate::schema_registry::{SchemaRegistry, Scope};
use crate::shared::{Condition, Shared};
use crate::snapshot;
use crate::source::{Origin, Source};
use crate::{exit, monitor, preflight, streams};

/// Runs the bridge until it is asked to stop, or cannot go on.
pub async fn run(config: Config) -> u8 {
    let shutdown = match Shutdown::on_signals() {
        Ok(shutdown) => shutdown,
        Err(error) => return fail("cannot listen to signals", &error, exit::FAILURE),
    };
    let (producer, consumer, gauge) = ring::ring(config.ring);
    let admin = Admin {
        started: Instant::now(),
        slot: config.slot.clone(),
        shared: Arc::new(Shared::default()),
        metrics: Metrics::new(),
        ring: gauge,
        shutdown: shutdown.clone(),
    };
    let listener = match http::listen(
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        config.port,
        "--port (BRIDGE_PORT)",
    )
    .await
    {
        Ok(listener) => listener,
        Err(error) => return fail("cannot serve HTTP", &error, exit::USAGE),
    };
    // The listener outlives the drain, so that it can be watched; the process's end closes it.
    let routes = admin.clone();
    tokio::spawn(http::serve(
        listener,
        move |request| {
            let admin = routes.clone();
            async move { admin.answer(&request) }
        },
        Shutdown::new(),
    ));

    let code = tokio::select! {
        prepared = prepare(&config, &admin) => match prepared {
            Ok(jetstream) => stream(&config, &admin, producer, consumer, jetstream).await,
            Err(code) => code,
        },
        // Nothing has been read yet, so there is nothing to drain.
        _ = before_start(&admin) => exit::DRAINED,
    };
    println!("{}", monitor::line(&admin));
    code
}

/// Returns on a shutdown that comes before streaming began; never after.
async fn before_start(admin: &Admin) -> Reason {
    let reason = admin.shutdown.wait().await;
    if admin.shared.source() == Condition::Starting
        && admin.shared.publisher() == Condition::Starting
    {
        return reason;
    }
    std::future::pending().await
}

/// Waits for both sides, checks them, and makes what is missing.
async fn prepare(config: &Config, admin: &Admin) -> Result<jetstream::Context, u8> {
    let mut catalog = Catalog::new(config.postgres.clone());
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while let Err(error) = preflight::check(&mut catalog, config).await {
        if !error.is_retryable() {
            return Err(fail("cannot start", &error, exit::of_preflight(&error)));
        }
        let delay = backoff.next(backoff::random());
        tracing::warn!(postgres = %config.postgres, error = %Chained(&error), ?delay, "PostgreSQL is not ready");
        tokio::time::sleep(delay).await;
    }
    drop(catalog);

    let client = match config
        .nats
        .connect(&format!("bridge {}", config.slot), FirstConnect::Retry)
        .await
    {
        Ok(client) => client,
        Err(error) => return Err(fail("cannot start", &error, exit::USAGE)),
    };
    let jetstream = jetstream::new(client);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while let Err(error) = ensure_streams(config, &jetstream).await {
        if let streams::Error::Subjects { .. } = error {
            return Err(fail("cannot start", &error, exit::USAGE));
        }
        let delay = backoff.next(backoff::random());
        tracing::warn!(nats = %config.nats, error = %Chained(&error), ?delay, "JetStream is not ready");
        admin.shared.publisher_is(Condition::Starting);
        tokio::time::sleep(delay).await;
    }
    Ok(jetstream)
}

async fn ensure_streams(
    config: &Config,
    jetstream: &jetstream::Context,
) -> Result<(), streams::Error> {
    streams::ensure_cdc(
        jetstream,
        &config.cdc_stream,
        &config.subjects.stream_subjects(),
    )
    .await?;
    streams::ensure_init(jetstream, &config.init_stream).await
}

/// The road itself, from start to drain.
async fn stream(
    config: &Config,
    admin: &Admin,
    producer: Producer,
    mut consumer: Consumer,
    jetstream: jetstream::Context,
) -> u8 {
    let (ended, source_ended) = oneshot::channel();
    let source = Source::new(
        Origin {
            endpoint: endpoint(&config.postgres),
            slot: config.slot.clone(),
            publications: config.publications.clone(),
            filter: config.tables.clone(),
            subjects: config.subjects.clone(),
        },
        producer,
        admin.shared.clone(),
        admin.metrics.clone(),
        admin.shutdown.clone(),
    );
    let spawned = std::thread::Builder::new()
        .name("source".to_owned())
        .spawn(move || {
            // Nobody listens only when the process is ending anyway.
            let _ = ended.send(source.run());
        });
    match spawned {
        Ok(thread) => consumer.wakes(thread.thread().clone()),
        Err(error) => return fail("cannot start a thread", &error, exit::FAILURE),
    }
    let (registry, keeper) = SchemaRegistry::new(
        Scope {
            publications: config.publications.clone(),
            tables: config.tables.clone(),
            slot: config.slot.clone(),
        },
        Catalog::new(config.postgres.clone()),
        jetstream.clone(),
        admin.shared.clone(),
    );
    tokio::spawn(keeper.run());
    let snapshots_ended = match start_snapshots(config, admin) {
        Ok(ended) => ended,
        Err(error) => return fail("cannot start a thread", &error, exit::FAILURE),
    };
    let publisher = Publisher::new(
        Target {
            nats: config.nats.clone(),
            stream: config.cdc_stream.clone(),
            filter: config.subjects.stream_subjects(),
            name: format!("bridge {} publisher", config.slot),
        },
        consumer,
        Limits::default(),
        registry,
        Oversize::new(config.oversize, jetstream, config.slot.clone()),
        admin.shared.clone(),
        admin.metrics.clone(),
    );
    tokio::spawn(publisher.run());
    let catalog = Catalog::new(config.postgres.clone());
    tokio::spawn(monitor::watch_slot(
        catalog,
        config.slot.clone(),
        config.publications.clone(),
        admin.clone(),
    ));
    tokio::spawn(monitor::print_lines(admin.clone()));

    let code = tokio::select! {
        ended = source_ended => match ended {
            Ok(Ok(())) => drained(admin),
            Ok(Err(error)) => fail("replication cannot go on", &error, exit::of_source(&error)),
            Err(_) => exit::FAILURE,
        },
        () = drain_deadline(&admin.shutdown, config.drain_timeout) => {
            tracing::warn!(
                timeout = ?config.drain_timeout,
                ring_events = admin.ring.events(),
                "not everything was stored in time; WAL has it and the next start sends it"
            );
            exit::NOT_DRAINED
        }
    };
    // Snapshots that were under way tell their requesters; that takes a moment at most.
    if admin.shutdown.is_triggered() {
        let _ = tokio::time::timeout(Duration::from_secs(3), snapshots_ended).await;
    }
    code
}

/// Snapshots have a thread, a runtime and connections of their own, so that the row changes, which
/// share theirs with nobody, never wait for one. The receiver resolves when the thread has ended.
fn start_snapshots(config: &Config, admin: &Admin) -> std::io::Result<oneshot::Receiver<()>> {
    let settings = snapshot::Settings {
        postgres: config.postgres.clone(),
        nats: config.nats.clone(),
        slot: config.slot.clone(),
        publications: config.publications.clone(),
        tables: config.tables.clone(),
        init_stream: config.init_stream.clone(),
        workers_max: config.snapshot_workers,
        chunk_rows_max: config.snapshot_chunk_rows,
        shared: admin.shared.clone(),
        metrics: admin.metrics.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let serving = snapshot::listener::run(settings, admin.shutdown.clone());
    let (ended, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("snapshots".to_owned())
        .spawn(move || {
            runtime.block_on(serving);
            let _ = ended.send(());
        })?;
    Ok(receiver)
}

async fn drain_deadline(shutdown: &Shutdown, timeout: Duration) {
    shutdown.wait().await;
    tokio::time::sleep(timeout).await;
}

fn drained(admin: &Admin) -> u8 {
    let metrics = &admin.metrics;
    tracing::info!(
        uptime = ?admin.started.elapsed(),
        wal_messages = metrics.wal_messages_received.get(),
        events = metrics.cdc_events_published.get(),
        reconnects = metrics.reconnects.get(),
        nats_reconnects = metrics.nats_reconnects.get(),
        confirmed = %admin.shared.confirmed(),
        "drained: everything read is stored and confirmed"
    );
    exit::DRAINED
}

fn fail(what: &str, error: &(dyn std::error::Error + 'static), code: u8) -> u8 {
    tracing::error!(code, "{what}: {}", Chained(error));
    code
}

fn endpoint(options: &PostgresOptions) -> Endpoint {
    let (host, port) = match options.address() {
        Address::Tcp { host, port } => (Host::Tcp(host.clone()), *port),
        Address::Unix(socket) => unix(socket),
    };
    Endpoint {
        host,
        port,
        user: options.user().to_owned(),
        password: options
            .password()
            .map(|password| password.expose().to_owned()),
        database: options.database().to_owned(),
        application_name: "bridge".to_owned(),
        connect_timeout: CONNECT_TIMEOUT,
    }
}

/// Directory and port of a socket's path, `/run/postgresql/.s.PGSQL.5432`.
fn unix(socket: &Path) -> (Host, u16) {
    let port = socket
        .extension()
        .and_then(|port| port.to_str()?.parse().ok());
    let directory = socket.parent().map(Path::to_owned).unwrap_or_default();
    (Host::Unix(directory), port.unwrap_or(5432))
}
