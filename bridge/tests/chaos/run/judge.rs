//! Compares the stream with the shadow slot, event by event.
//!
//! In: both, and the samples. Out: a count, or a panic with the first positions that differ.
//! Must hold: lost, repeated and misplaced events are told apart.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use futures_util::StreamExt as _;
use tokio::io::AsyncReadExt as _;
use wire::{Event, Message as _, Operation, Position, SubjectPattern, Value};

use super::sampler::Sample;
use super::world::{SHADOW, STREAM, World};

/// As test_decoding writes it, with the transaction it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Change {
    xid: u32,
    table: String,
    text: String,
}

struct Stored {
    sequence: u64,
    position: Position,
    is_last: bool,
    change: Change,
}

/// Read from the shadow slot at a time.
const SHADOW_CHANGES: u32 = 20_000;
const SHOWN: usize = 8;
/// For one message to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// Remembered as it is below this length. Such texts are ASCII.
const LONG: usize = 1_000;

#[track_caller]
pub fn judge(world: &World, samples: &[Sample]) -> String {
    let (stored, gaps) = stream(world);
    let expected = shadow(world);
    let (changes, messages) = (expected.len(), stored.len());
    for road in world.roads() {
        let leaves_by = |change: &Change| road.tables.contains(&change.table.as_str());
        let expected: Vec<_> = expected.iter().filter(|change| leaves_by(change)).collect();
        let stored: Vec<_> = stored
            .iter()
            .filter(|stored| leaves_by(&stored.change))
            .collect();
        compare(&expected, &stored);
        positions(&stored);
        let samples = samples.iter().filter(|sample| sample.slot == road.slot);
        confirmed(&stored, samples);
    }
    assert_eq!(changes, messages, "all tables are on some road");
    assert!(
        gaps.is_empty(),
        "nothing is missing, and yet gaps were told: {gaps:?}"
    );
    format!(
        "{messages} events as in PostgreSQL, {} samples",
        samples.len()
    )
}

/// The slot was never told more than the stream held.
#[track_caller]
fn confirmed<'a>(stored: &[&Stored], samples: impl Iterator<Item = &'a Sample>) {
    for sample in samples {
        let behind = stored.partition_point(|stored| stored.sequence <= sample.sequence);
        let next = stored.get(behind);
        let early = next.filter(|next| next.position.commit_lsn < sample.confirmed);
        assert!(
            early.is_none(),
            "{} was confirmed when the stream held {} messages, but {} came later",
            sample.confirmed,
            sample.sequence,
            next.expect("it is early").position,
        );
    }
}

#[track_caller]
fn compare(expected: &[&Change], stored: &[&Stored]) {
    let found = || stored.iter().map(|stored| &stored.change);
    if expected.iter().copied().eq(found()) {
        return;
    }
    let mut surplus: HashMap<&Change, i64> = HashMap::new();
    for &change in expected {
        *surplus.entry(change).or_default() -= 1;
    }
    for change in found() {
        *surplus.entry(change).or_default() += 1;
    }
    let lost = expected
        .iter()
        .enumerate()
        .filter(|(_, change)| surplus[*change] < 0);
    let repeated = stored.iter().filter(|stored| surplus[&stored.change] > 0);
    let mut report = format!(
        "PostgreSQL has {} changes, the stream {}\n",
        expected.len(),
        stored.len()
    );
    let _ = writeln!(report, "lost: {}", lost.clone().count());
    for (index, change) in lost.take(SHOWN) {
        let _ = writeln!(report, "  change {index}: {change:?}");
    }
    let _ = writeln!(
        report,
        "too often, or never written: {}",
        repeated.clone().count()
    );
    for stored in repeated.take(SHOWN) {
        let _ = writeln!(
            report,
            "  message {} at {}: {:?}",
            stored.sequence, stored.position, stored.change
        );
    }
    let differs = expected
        .iter()
        .zip(found())
        .position(|(expected, found)| *expected != found);
    let differs = differs.unwrap_or(expected.len().min(stored.len()));
    let _ = writeln!(report, "the first difference is at change {differs}");
    for index in differs.saturating_sub(2)..differs + 3 {
        let found = stored
            .get(index)
            .map(|stored| (stored.sequence, stored.position.to_string(), &stored.change));
        let _ = writeln!(
            report,
            "  PostgreSQL {:?}\n  stream     {found:?}",
            expected.get(index)
        );
    }
    panic!("{report}");
}

/// Positions ascend, and a transaction's last event and no other says so.
#[track_caller]
fn positions(stored: &[&Stored]) {
    for pair in stored.windows(2) {
        let [one, next] = pair else { continue };
        assert!(
            one.position < next.position,
            "{} follows {}",
            next.position,
            one.position
        );
        let is_end = one.position.commit_lsn != next.position.commit_lsn;
        assert_eq!(
            one.is_last, is_end,
            "{} and {}",
            one.position, next.position
        );
        let seq = if is_end { 1 } else { one.position.seq + 1 };
        assert_eq!(
            next.position.seq, seq,
            "{} follows {}",
            next.position, one.position
        );
    }
}

/// What SQL says.
fn shadow(world: &World) -> Vec<Change> {
    let mut changes = Vec::new();
    loop {
        let rows = world.postgres().sql(&format!(
            "SELECT xid, data FROM pg_logical_slot_get_changes('{SHADOW}', NULL, {SHADOW_CHANGES}, 'skip-empty-xacts', '1')"
        ));
        if rows.is_empty() {
            return changes;
        }
        for row in rows {
            let mut values = row.into_iter().flatten();
            let (Some(xid), Some(text)) = (values.next(), values.next()) else {
                continue;
            };
            let table = text
                .strip_prefix("table public.")
                .and_then(|rest| rest.split(':').next());
            if let Some(table) = table
                && table != "hidden"
            {
                changes.push(Change {
                    xid: xid.parse().expect("it is a transaction id"),
                    table: table.to_owned(),
                    text: short(text),
                });
            }
        }
    }
}

/// What the stream says, and the gaps it tells.
fn stream(world: &World) -> (Vec<Stored>, Vec<String>) {
    let pattern = SubjectPattern::default();
    world.runtime.block_on(async {
        let context = world.jetstream().await;
        let stream = context.get_stream(STREAM).await.expect("it was just read");
        let mut reader = Reader {
            messages: None,
            sequence: 0,
            last_sequence: stream.cached_info().state.last_sequence,
            failures: 0,
            context: context.clone(),
        };
        let (mut stored, mut gaps) = (Vec::new(), Vec::new());
        while let Some(message) = reader.next().await {
            let sequence = message.info().expect("it has a sequence").stream_sequence;
            if message.subject.as_str() == pattern.gap() {
                let gap = wire::gap::Gap::decode(&message.payload).expect("it is a gap");
                gaps.push(format!("{gap:?} at {sequence}"));
                continue;
            }
            let mut event = Event::decode(&message.payload).expect("it is an event");
            let position = event.position().expect("every event has a position");
            if let Some(oversize) = &event.oversize {
                event = whole(&context, oversize).await;
                assert_eq!(event.position(), Some(position), "it is the stub's own");
            }
            stored.push(Stored {
                sequence,
                position,
                is_last: event.last,
                change: Change {
                    xid: event.xid as u32,
                    text: short(text(&event)),
                    table: event.table,
                },
            });
        }
        (stored, gaps)
    })
}

/// Reads the stream, and asks again where a server has only just come back.
struct Reader {
    context: jetstream::Context,
    messages: Option<pull::Stream>,
    sequence: u64,
    last_sequence: u64,
    failures: u32,
}

impl Reader {
    async fn next(&mut self) -> Option<jetstream::Message> {
        while self.sequence < self.last_sequence {
            let Some(messages) = &mut self.messages else {
                match self.open().await {
                    Ok(messages) => self.messages = Some(messages),
                    Err(_) => self.failed().await,
                }
                continue;
            };
            let next = tokio::time::timeout(PATIENCE, messages.next()).await;
            if let Ok(Some(Ok(message))) = next {
                self.sequence = message.info().expect("it has one").stream_sequence;
                self.failures = 0;
                return Some(message);
            }
            self.messages = None;
            self.failed().await;
        }
        None
    }

    async fn open(&self) -> Result<pull::Stream, async_nats::Error> {
        let stream = self.context.get_stream(STREAM).await?;
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: self.sequence + 1,
            },
            ..pull::Config::default()
        };
        Ok(stream.create_consumer(config).await?.messages().await?)
    }

    /// It is allowed to, for a while.
    async fn failed(&mut self) {
        self.failures += 1;
        assert!(self.failures < 60, "the stream cannot be read");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What a stub stands for.
async fn whole(context: &jetstream::Context, stub: &wire::event::Oversize) -> Event {
    let store = context
        .get_object_store("oversize")
        .await
        .expect("there is a bucket");
    let mut object = store.get(&stub.object).await.expect("the object is there");
    let mut body = Vec::new();
    // The client compares the digest.
    object
        .read_to_end(&mut body)
        .await
        .expect("the object is whole");
    assert_eq!(body.len() as u64, stub.bytes);
    Event::decode(&body).expect("it is an event")
}

/// A long text by its beginning and a hash of the whole.
fn short(text: String) -> String {
    if text.len() < LONG {
        return text;
    }
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!(
        "{}... {} bytes, hash {:x}",
        &text[..100],
        text.len(),
        hasher.finish()
    )
}

/// The event as test_decoding writes it.
fn text(event: &Event) -> String {
    let mut text = format!(
        "table {}.{}: {}:",
        event.schema,
        event.table,
        event.operation.name()
    );
    if event.operation == Operation::Truncate {
        return text + " (no-flags)";
    }
    if !event.old.is_empty() {
        text.push_str(" old-key:");
        for column in &event.old {
            push_column(
                &mut text,
                &column.name,
                &literal(&column.name, &column.value),
            );
        }
        text.push_str(" new-tuple:");
    }
    for column in &event.columns {
        push_column(
            &mut text,
            &column.name,
            &literal(&column.name, &column.value),
        );
    }
    // Only the last column of any table is ever large.
    for name in &event.unchanged {
        push_column(&mut text, name, "unchanged-toast-datum");
    }
    text
}

fn push_column(text: &mut String, name: &str, value: &str) {
    let type_name = match name {
        "id" => "bigint",
        "is_odd" => "boolean",
        "amount" => "numeric",
        "extra" => "integer",
        _ => "text",
    };
    let _ = write!(text, " {name}[{type_name}]:{value}");
}

fn literal(column: &str, value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Text(digits) if column == "amount" => digits.clone(),
        Value::Text(text) => format!("'{}'", text.replace('\'', "''")),
        Value::Float(_) | Value::Bytes(_) => panic!("no column is of that type"),
    }
}
