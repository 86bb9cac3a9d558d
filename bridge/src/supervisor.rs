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
use daemon::chained::Chained;
use daemon::http;
use daemon::nats::FirstConnect;
use daemon::postgres::{Address, CONNECT_TIMEOUT, PostgresOptions};
use daemon::shutdown::Shutdown;
use tokio::sync::oneshot;
use wire::{Lsn, Position};

use crate::admin::Admin;
use crate::catalog::Catalog;
use crate::checkpoint::{self, Fixed, Keeper, Records};
use crate::claims::{self, Claim, Claims, Overlap, Verdict};
use crate::config::Config;
use crate::counting::{Counted, Counting};
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::postgres::{Endpoint, Host};
use crate::publish::chain::Limits;
use crate::publish::oversize::Oversize;
use crate::publish::publisher::Target;
use crate::publish::{Publisher, tail};
use crate::ring::{self, Consumer, Producer};
use crate::schema_registry::{SchemaRegistry, Scope, Versions};
use crate::shared::{Condition, Shared};
use crate::snapshot::{self, reseed};
use crate::source::{Origin, Source};
use crate::{durability, exit, monitor, preflight, streams};

/// Runs the bridge until it is asked to stop, or cannot go on.
pub async fn run(config: Config) -> u8 {
    let shutdown = match Shutdown::on_signals() {
        Ok(shutdown) => shutdown,
        Err(error) => return fail("cannot listen to signals", &error, exit::FAILURE),
    };
    let seen = durability::look(&config.nats_monitoring).await;
    let durability = match durability::effective(
        config.durability,
        config.hold,
        seen,
        &config.nats_monitoring,
    ) {
        Ok(durability) => durability,
        Err(error) => return fail("cannot start", &error, exit::USAGE),
    };
    let hold = durability.hold;
    let (producer, consumer, gauge) = ring::ring(config.ring);
    let admin = Admin {
        started: Instant::now(),
        slot: config.slot.clone(),
        durability: durability.exposure,
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

    let prepared = tokio::select! {
        prepared = prepare(&config, &admin) => prepared,
        // Nothing has been read yet, so there is nothing to drain.
        _ = shutdown.wait() => Err(exit::DRAINED),
    };
    let code = match prepared {
        Ok(prepared) => Box::pin(stream(&config, hold, &admin, producer, consumer, prepared)).await,
        Err(code) => code,
    };
    monitor::print_line(&admin);
    code
}

/// Waits for both sides, checks them, and makes what is missing.
async fn prepare(config: &Config, admin: &Admin) -> Result<Prepared, u8> {
    let mut catalog = Catalog::new(config.postgres.clone());
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while let Err(error) = preflight::check(&mut catalog, config).await {
        if !error.is_retryable() {
            return Err(fail("cannot start", &error, exit::of_preflight(&error)));
        }
        let delay = backoff.next(backoff::random());
        tracing::warn!(postgres = %config.postgres, error = %Chained(&error), ?delay, "PostgreSQL is not ready");
        admin.shared.source_is(Condition::trouble(&Chained(&error)));
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
    let memory = loop {
        let error: Box<dyn std::error::Error> = match ensure_streams(config, &jetstream).await {
            Ok(()) => match remember(config, &jetstream, &admin.shared).await {
                Ok(memory) => break memory,
                Err(error) => error.into(),
            },
            Err(error @ streams::Error::Subjects { .. }) => {
                return Err(fail("cannot start", &error, exit::USAGE));
            }
            Err(error) => error.into(),
        };
        let delay = backoff.next(backoff::random());
        tracing::warn!(nats = %config.nats, error = %Chained(&*error), ?delay, "JetStream is not ready");
        admin
            .shared
            .publisher_is(Condition::trouble(&Chained(&*error)));
        tokio::time::sleep(delay).await;
    };
    if config.accepts_stream_reset {
        admin.shared.accept_reset();
    }
    tracing::info!(exposure = admin.durability, "durability");
    let claims = claim(config, &memory.store).await?;
    Ok(Prepared {
        jetstream,
        memory,
        claims,
    })
}

struct Prepared {
    jetstream: jetstream::Context,
    memory: Memory,
    claims: Claims,
}

/// What earlier runs have left.
struct Memory {
    store: checkpoint::Store,
    keeper: Keeper,
    /// One of them has had the slot.
    slot_was_used: bool,
}

/// Sees that no other bridge publishes the same tables into the stream.
async fn claim(config: &Config, store: &checkpoint::Store) -> Result<Claims, u8> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let claim = Claim {
            slot: config.slot.clone(),
            stream: config.cdc_stream.clone(),
            filters: config.tables.subject_filters(&config.subjects),
            is_shared: false,
        };
        match Claims::enter(store.clone(), claim).await {
            Ok(claims) => return Ok(claims),
            Err(error @ claims::Error::Overlap { .. }) => {
                return Err(fail("cannot start", &error, exit::USAGE));
            }
            Err(error) => {
                let delay = backoff.next(backoff::random());
                tracing::warn!(error = %Chained(&error), ?delay, "JetStream is not ready");
                tokio::time::sleep(delay).await;
            }
        }
    }
}

/// Renews the claim, for ever. Sees that the publisher knows when another bridge comes to the stream, and
/// that everybody does when one publishes the same tables.
async fn keep_claim(mut claims: Claims, shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(claims::RENEWED_EVERY);
    loop {
        interval.tick().await;
        // NATS may be away: then nobody publishes.
        let Ok(judgement) = claims.renew().await else {
            continue;
        };
        note_overlaps(&shared, judgement.overlaps);
        if claims.is_shared() || judgement.verdict == Verdict::Alone {
            continue;
        }
        shared.share_stream().await;
        if let Err(error) = claims.share().await {
            // The next renewal says it as well.
            tracing::debug!(error = %Chained(&error), "cannot tell the other bridge yet");
        }
    }
}

/// Two bridges may come to the same tables when one was cut off for so long that its claim was forgotten.
fn note_overlaps(shared: &Shared, overlaps: Vec<Overlap>) {
    let before = shared.overlaps();
    for overlap in overlaps.iter().filter(|overlap| !before.contains(overlap)) {
        tracing::error!("{overlap}");
    }
    if overlaps.is_empty() && !before.is_empty() {
        tracing::info!("no other bridge publishes the same tables any more");
    }
    shared.set_overlaps(overlaps);
}

/// Reads the checkpoint of an earlier run, if there is one.
async fn remember(
    config: &Config,
    jetstream: &jetstream::Context,
    shared: &Arc<Shared>,
) -> Result<Memory, checkpoint::Error> {
    let store = checkpoint::Store::open(jetstream, &config.slot, config.stream_replicas).await?;
    let Some(created) = tail::created(jetstream, &config.cdc_stream).await else {
        return Err(checkpoint::Error::Stream {
            stream: config.cdc_stream.clone(),
        });
    };
    let fixed = fixed(config, created.clone());
    shared.set_counted(Counted {
        by: fixed.counting.clone(),
        from: Position::START,
    });
    let keeper = Keeper::new(store.clone(), fixed, shared.clone());
    let found = keeper.refresh().await?;
    if let Some(found) = &found {
        tracing::info!(position = %found.position, sequence = found.stream_sequence, "checkpoint read");
        shared.set_known(checkpoint::known(found));
        // The events of another stream of this name are no reason to refuse another PostgreSQL.
        if created == found.stream_created {
            shared.set_identity(Identity {
                system_identifier: found.system_identifier.clone(),
                timeline: found.timeline,
            });
        }
    }
    Ok(Memory {
        store,
        keeper,
        slot_was_used: found.is_some(),
    })
}

async fn ensure_streams(
    config: &Config,
    jetstream: &jetstream::Context,
) -> Result<(), streams::Error> {
    streams::ensure_cdc(
        jetstream,
        &config.cdc_stream,
        &config.subjects.stream_subjects(),
        config.stream_replicas,
    )
    .await?;
    streams::ensure_init(jetstream, &config.init_stream, config.stream_replicas).await
}

/// What watches from the side: the stream, the slot, the line of figures.
fn start_monitors(config: &Config, admin: &Admin, jetstream: jetstream::Context) {
    tokio::spawn(monitor::watch_stream(
        jetstream,
        config.cdc_stream.clone(),
        admin.shared.clone(),
    ));
    tokio::spawn(monitor::watch_slot(
        Catalog::new(config.postgres.clone()),
        config.slot.clone(),
        config.publications.clone(),
        admin.clone(),
    ));
    tokio::spawn(monitor::print_lines(admin.clone()));
}

/// The road itself, from start to drain.
async fn stream(
    config: &Config,
    hold: Duration,
    admin: &Admin,
    producer: Producer,
    mut consumer: Consumer,
    prepared: Prepared,
) -> u8 {
    let Prepared {
        jetstream,
        memory,
        claims,
    } = prepared;
    let keeper = memory.keeper;
    let (registry, versions) = start_registry(config, admin, jetstream.clone()).await;
    let (ended, source_ended) = oneshot::channel();
    let source = Source::new(
        origin(config, memory.slot_was_used),
        producer,
        admin.shared.clone(),
        admin.metrics.clone(),
        admin.shutdown.clone(),
        Records::new(keeper.clone(), jetstream.clone(), config.subjects.gap()),
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
    let snapshots_ended = match start_snapshots(config, admin, versions) {
        Ok(ended) => ended,
        Err(error) => return fail("cannot start a thread", &error, exit::FAILURE),
    };
    let publisher = Publisher::new(
        Target {
            nats: config.nats.clone(),
            stream: config.cdc_stream.clone(),
            filters: config.tables.subject_filters(&config.subjects),
            subjects: config.subjects.clone(),
            publish_mode: config.publish_mode,
            has_msg_id: config.has_msg_id,
            is_shared: claims.is_shared(),
            gap_subject: config.subjects.gap(),
            slot: config.slot.clone(),
            limits: Limits::default(),
            hold,
            name: format!("bridge {} publisher", config.slot),
        },
        consumer,
        registry,
        Oversize::new(
            config.oversize,
            jetstream.clone(),
            config.slot.clone(),
            config.stream_replicas,
        ),
        admin.shared.clone(),
        admin.metrics.clone(),
    );
    let publishing = tokio::spawn(publisher.run());
    tokio::spawn(keep_claim(claims.clone(), admin.shared.clone()));
    tokio::spawn(reseed::run(
        jetstream.clone(),
        Catalog::new(config.postgres.clone()),
        config.publications.clone(),
        config.tables.clone(),
        config.stream_replicas,
        admin.shared.clone(),
    ));
    start_monitors(config, admin, jetstream);
    tokio::spawn(keeper.clone().keep());

    let code = tokio::select! {
        biased;
        // The source ends when the publisher has; that is a drain only if this is none.
        Err(panicked) = publishing => fail("the publisher failed", &panicked, exit::FAILURE),
        ended = source_ended => match ended {
            Ok(Ok(())) => {
                if let Err(error) = keeper.write_own().await {
                    tracing::warn!(error = %Chained(&error), "the last checkpoint was not written; the stream's tail will do");
                }
                claims.leave().await;
                drained(admin)
            }
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

fn origin(config: &Config, slot_was_used: bool) -> Origin {
    Origin {
        endpoint: endpoint(&config.postgres),
        slot: config.slot.clone(),
        counting: Counting::of(config),
        subjects: config.subjects.clone(),
        on_slot_loss: config.on_slot_loss,
        skip_to: config.skip_to_lsn,
        slot_was_used,
    }
}

/// What of the configuration goes into the checkpoint.
fn fixed(config: &Config, stream_created: String) -> Fixed {
    Fixed {
        slot: config.slot.clone(),
        stream: config.cdc_stream.clone(),
        stream_created,
        counting: Counting::of(config),
    }
}

/// The registry, its keeper running, the shapes of all tables published.
async fn start_registry(
    config: &Config,
    admin: &Admin,
    jetstream: jetstream::Context,
) -> (SchemaRegistry, Versions) {
    let scope = Scope {
        publications: config.publications.clone(),
        tables: config.tables.clone(),
        slot: config.slot.clone(),
        replicas: config.stream_replicas,
        stream: config.cdc_stream.clone(),
    };
    let catalog = Catalog::new(config.postgres.clone());
    let (registry, versions, mut keeper) =
        SchemaRegistry::new(scope, catalog, jetstream, admin.shared.clone());
    keeper.first_look().await;
    tokio::spawn(keeper.run());
    (registry, versions)
}

/// Snapshots have a thread, a runtime and connections of their own, so that the row changes, which
/// share theirs with nobody, never wait for one. The receiver resolves when the thread has ended.
fn start_snapshots(
    config: &Config,
    admin: &Admin,
    versions: Versions,
) -> std::io::Result<oneshot::Receiver<()>> {
    let settings = snapshot::Settings {
        postgres: config.postgres.clone(),
        nats: config.nats.clone(),
        slot: config.slot.clone(),
        publications: config.publications.clone(),
        tables: config.tables.clone(),
        init_stream: config.init_stream.clone(),
        stream_replicas: config.stream_replicas,
        workers_max: config.snapshot_workers,
        chunk_rows_max: config.snapshot_chunk_rows,
        shared: admin.shared.clone(),
        metrics: admin.metrics.clone(),
        versions,
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
        stored = %Lsn(metrics.last_ack_lsn.get() as u64),
        confirmed = %Lsn(metrics.confirmed_lsn.get() as u64),
        "drained: everything read is stored; what is not confirmed yet is held, and will be skipped when it is sent again"
    );
    exit::DRAINED
}

fn fail(what: &str, error: &(dyn std::error::Error + 'static), code: u8) -> u8 {
    tracing::error!(code, "{what}: {}", Chained(error));
    code
}

pub(crate) fn endpoint(options: &PostgresOptions) -> Endpoint {
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
