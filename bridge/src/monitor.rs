//! Watches from the side: the slot in PostgreSQL, and a line of figures on stdout.
//!
//! In: the catalogue, the metrics. Out: gauges, warnings, `METRICS` lines.
//! Invariant: trouble here never touches the road.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use wire::Lsn;

use crate::admin::Admin;
use crate::catalog::Catalog;
use crate::publish::incarnation::Known;
use crate::shared::{Condition, Shared};

const SLOT_INTERVAL: Duration = Duration::from_secs(5);
const LINE_INTERVAL: Duration = Duration::from_secs(15);
const STREAM_INTERVAL: Duration = Duration::from_secs(5);
const LAG_WARNING_BYTES: i64 = 512 << 20;
const LAG_CRITICAL_BYTES: i64 = 1 << 30;

/// Asks for the slot every 5 s, for ever.
pub async fn watch_slot(
    mut catalog: Catalog,
    slot: String,
    publications: Vec<String>,
    admin: Admin,
) {
    // Not at once: the source is about to take the slot.
    let first = tokio::time::Instant::now() + Duration::from_millis(500);
    let mut interval = tokio::time::interval_at(first, SLOT_INTERVAL);
    loop {
        interval.tick().await;
        let mut found = catalog.slot(&slot).await;
        if found.is_err() {
            // The connection may have been of before a restart.
            found = catalog.slot(&slot).await;
        }
        match found {
            Ok(Some(found)) => {
                let metrics = &admin.metrics;
                metrics.slot_active.set(i64::from(found.is_active));
                metrics.wal_lag_bytes.set(found.lag_bytes);
                metrics.wal_retained_bytes.set(found.retained_bytes);
                warn_of_lag(&slot, found.lag_bytes);
            }
            Ok(None) => admin.metrics.slot_active.set(0),
            Err(error) => {
                admin.metrics.slot_active.set(0);
                admin.shared.server_is_stopping(error.is_stopping());
                tracing::debug!(%error, "cannot read the slot");
                continue;
            }
        }
        // PostgreSQL 18 sends nothing, and says nothing, when a publication is missing.
        if let Ok(missing) = catalog.missing_publications(&publications).await
            && !missing.is_empty()
        {
            tracing::error!(
                ?missing,
                "publication is gone: its tables' changes are not sent; create it again"
            );
        }
    }
}

/// Looks every 5 s, for ever, whether the stream was purged. The publisher cannot see that: sequences
/// go on as if nothing had happened.
pub async fn watch_stream(context: jetstream::Context, stream: String, shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(STREAM_INTERVAL);
    let mut last_seen: Option<Seen> = None;
    loop {
        interval.tick().await;
        let Ok(found) = context.get_stream(&stream).await else {
            continue;
        };
        let info = found.cached_info();
        let seen = Seen {
            created: info.created,
            first_sequence: info.state.first_sequence,
            last_sequence: info.state.last_sequence,
            last_stored: info.state.last_timestamp,
        };
        if let Some(before) = &last_seen
            && was_purged(
                &before.with(shared.known()),
                &seen,
                info.config.max_age,
                time::OffsetDateTime::now_utc(),
            )
            && has_no_size_limit(&info.config)
            && shared.reset().is_none()
        {
            tracing::error!(stream, "the stream was purged");
            shared.set_reset(Some("purged"));
            let why = format!("stream {stream} was purged; POST /stream/accept goes on");
            shared.publisher_is(Condition::trouble(&why));
        }
        last_seen = Some(seen);
    }
}

/// A stream as it was at one look.
struct Seen {
    created: time::OffsetDateTime,
    first_sequence: u64,
    last_sequence: u64,
    last_stored: time::OffsetDateTime,
}

impl Seen {
    /// With what the publisher has stored since.
    fn with(&self, known: Option<Known>) -> Self {
        match known {
            Some(known) if known.sequence > self.last_sequence => Self {
                first_sequence: self.first_sequence.min(known.sequence),
                last_sequence: known.sequence,
                last_stored: self.last_stored.max(known.at.into()),
                created: self.created,
            },
            Some(_) | None => Self { ..*self },
        }
    }
}

/// Everything that was there at the look before is gone, and its youngest message was not due yet.
fn was_purged(
    before: &Seen,
    now_seen: &Seen,
    max_age: Duration,
    now: time::OffsetDateTime,
) -> bool {
    let had_messages = before.first_sequence <= before.last_sequence && before.last_sequence > 0;
    let is_due = !max_age.is_zero() && before.last_stored + max_age <= now + STREAM_INTERVAL;
    before.created == now_seen.created
        && had_messages
        && now_seen.first_sequence > before.last_sequence
        && !is_due
}

/// With one, messages may go before they are due.
fn has_no_size_limit(config: &jetstream::stream::Config) -> bool {
    config.max_bytes <= 0 && config.max_messages <= 0 && config.max_messages_per_subject <= 0
}

fn warn_of_lag(slot: &str, lag_bytes: i64) {
    if lag_bytes >= LAG_CRITICAL_BYTES {
        tracing::error!(
            slot,
            lag_bytes,
            "the slot keeps more than 1 GiB of WAL; see /status for what it waits for"
        );
    } else if lag_bytes >= LAG_WARNING_BYTES {
        tracing::warn!(slot, lag_bytes, "the slot keeps more than 512 MiB of WAL");
    }
}

/// Prints the line that dashboards parse, every 15 s, for ever.
pub async fn print_lines(admin: Admin) {
    let mut interval = tokio::time::interval(LINE_INTERVAL);
    interval.tick().await;
    loop {
        interval.tick().await;
        print_line(&admin);
    }
}

/// Once. Nobody may be reading any more; that is no reason to end.
pub fn print_line(admin: &Admin) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{}", line(admin)).and_then(|()| stdout.flush());
}

/// The figures of the contract in one line.
pub fn line(admin: &Admin) -> String {
    let metrics = &admin.metrics;
    format!(
        "METRICS uptime={} wal_messages={} cdc_events={} lsn={} connected={} reconnects={} nats_reconnects={} \
         lag_bytes={} slot_active={}",
        admin.started.elapsed().as_secs(),
        metrics.wal_messages_received.get(),
        metrics.cdc_events_published.get(),
        Lsn(metrics.last_ack_lsn.get() as u64),
        metrics.connected.get(),
        metrics.reconnects.get(),
        metrics.nats_reconnects.get(),
        metrics.wal_lag_bytes.get(),
        metrics.slot_active.get(),
    )
}
