//! Remembers across restarts what the stream itself cannot tell: KV bucket `bridge_state`.
//!
//! In: the publisher's progress, PostgreSQL's identity, gaps not told yet. Out: one record per slot, read at
//! the start and when the slot was another bridge's.
//! Invariant: the stream's tail outranks it; a record of another stream is ignored; only the bridge that has
//! the slot writes it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::stream::{self, LastRawMessageErrorKind};
use async_nats::jetstream::{self, kv};
use bytes::Bytes;
use daemon::chained::Chained;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use wire::checkpoint::Checkpoint;
use wire::gap::Gap;
use wire::names::{BUCKET_BRIDGE_STATE, kv_stream};
use wire::{Message as _, Position};

use crate::counting::{Counted, Counting};
use crate::publish::incarnation::Known;
use crate::shared::{Condition, Shared};
use crate::streams;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot open KV bucket {BUCKET_BRIDGE_STATE}; the NATS user needs to create stream KV_{BUCKET_BRIDGE_STATE}"
    )]
    Bucket(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot read key {key} of KV bucket {BUCKET_BRIDGE_STATE}")]
    Read {
        key: String,
        #[source]
        source: kv::EntryError,
    },
    #[error("cannot write key {key} of KV bucket {BUCKET_BRIDGE_STATE}")]
    Write {
        key: String,
        #[source]
        source: kv::UpdateError,
    },
    #[error("another bridge has written key {key} of KV bucket {BUCKET_BRIDGE_STATE}")]
    Moved { key: String },
    #[error("JetStream does not tell about stream {stream}")]
    Stream { stream: String },
    #[error("JetStream does not answer")]
    Silent,
}

/// The record of one slot.
#[derive(Debug, Clone)]
pub struct Store {
    bucket: kv::Store,
    slot: String,
    jetstream: jetstream::Context,
    replicas: usize,
    /// Held while the bucket is made again.
    making: Arc<Mutex<()>>,
}

/// A record, or none, and what the next writer has to name.
#[derive(Debug, Default)]
pub struct Found {
    pub checkpoint: Option<Checkpoint>,
    pub revision: u64,
}

impl Store {
    /// Opens the bucket, making it when missing.
    pub async fn open(
        jetstream: &jetstream::Context,
        slot: &str,
        replicas: usize,
    ) -> Result<Self, Error> {
        let bucket = match jetstream.get_key_value(BUCKET_BRIDGE_STATE).await {
            Ok(bucket) => bucket,
            Err(_missing) => {
                make(jetstream, replicas).await?;
                let opened = jetstream.get_key_value(BUCKET_BRIDGE_STATE).await;
                opened.map_err(|error| Error::Bucket(Box::new(error)))?
            }
        };
        Ok(Self::new(bucket, jetstream, slot, replicas))
    }

    /// The same without making it. None: it is not there.
    pub async fn find(jetstream: &jetstream::Context, slot: &str) -> Option<Self> {
        let bucket = jetstream.get_key_value(BUCKET_BRIDGE_STATE).await.ok()?;
        Some(Self::new(bucket, jetstream, slot, 1))
    }

    fn new(bucket: kv::Store, jetstream: &jetstream::Context, slot: &str, replicas: usize) -> Self {
        Self {
            bucket,
            slot: slot.to_owned(),
            jetstream: jetstream.clone(),
            replicas,
            making: Arc::default(),
        }
    }

    /// Makes the bucket again if somebody has deleted it meanwhile. False: it is there, or nobody knows.
    pub async fn restore(&self) -> Result<bool, Error> {
        let _making = self.making.lock().await;
        let name = kv_stream(BUCKET_BRIDGE_STATE);
        match self.jetstream.get_stream(&name).await {
            Err(error) if streams::is_missing(&error) => {}
            Ok(_) | Err(_) => return Ok(false),
        }
        make(&self.jetstream, self.replicas).await?;
        tracing::warn!(
            "KV bucket {BUCKET_BRIDGE_STATE} was deleted and is made again; each running bridge writes its record anew"
        );
        Ok(true)
    }

    /// The bucket itself, for what else is kept there.
    pub fn bucket(&self) -> kv::Store {
        self.bucket.clone()
    }

    /// The record, unless it is unreadable or of another stream.
    pub async fn read(&self, stream: &str) -> Result<Found, Error> {
        let entry = self.bucket.entry(self.slot.as_str()).await;
        let entry = entry.map_err(|source| Error::Read {
            key: self.slot.clone(),
            source,
        })?;
        let Some(entry) = entry else {
            return Ok(Found::default());
        };
        let checkpoint = match Checkpoint::decode(&entry.value) {
            _ if entry.operation != kv::Operation::Put => None,
            Ok(checkpoint) if checkpoint.stream == stream => Some(checkpoint),
            Ok(checkpoint) => {
                tracing::info!(
                    other = checkpoint.stream,
                    "the checkpoint is of another stream, ignoring it"
                );
                None
            }
            Err(error) => {
                tracing::warn!(%error, "the checkpoint cannot be read, ignoring it");
                None
            }
        };
        Ok(Found {
            checkpoint,
            revision: entry.revision,
        })
    }

    /// Writes, unless somebody else has since `revision`.
    async fn write(&self, checkpoint: &Checkpoint, revision: u64) -> Result<u64, Error> {
        let json = checkpoint.to_json().into();
        let written = self.bucket.update(self.slot.as_str(), json, revision).await;
        written.map_err(|source| match source.kind() {
            kv::UpdateErrorKind::WrongLastRevision => Error::Moved {
                key: self.slot.clone(),
            },
            _ => Error::Write {
                key: self.slot.clone(),
                source,
            },
        })
    }
}

async fn make(jetstream: &jetstream::Context, replicas: usize) -> Result<(), Error> {
    let config = stream::Config {
        num_replicas: replicas,
        // Of several replicas one that lags would answer, and a claim be missed.
        allow_direct: replicas == 1,
        ..daemon::nats::bucket(BUCKET_BRIDGE_STATE, 10)
    };
    let made = jetstream.create_stream(config).await;
    made.map(drop)
        .map_err(|error| Error::Bucket(Box::new(error)))
}

/// The parts of the record that do not change while the bridge runs.
#[derive(Debug, Clone)]
pub struct Fixed {
    pub slot: String,
    pub stream: String,
    /// When the server made the stream, for a record that is written before the stream's tail is read.
    pub stream_created: String,
    /// Of this run; the record says that of the stream.
    pub counting: Counting,
}

/// The one writer of the record in this process.
///
/// Each write names the revision it replaces: a bridge that was paused, and wakes up when another has
/// taken over, does not write its old state over the newer one.
#[derive(Debug, Clone)]
pub struct Keeper {
    store: Store,
    fixed: Fixed,
    shared: Arc<Shared>,
    last: Arc<Mutex<Last>>,
}

#[derive(Debug, Default)]
struct Last {
    revision: u64,
    written: Option<(Checkpoint, Instant)>,
    /// Somebody else wrote behind `revision`.
    has_moved: bool,
}

/// How far behind a crash may find the record.
const INTERVAL: Duration = Duration::from_secs(1);
const INTERVAL_MIN: Duration = Duration::from_millis(200);
/// Also a record that has not changed: somebody may have deleted it.
const REWRITTEN_EVERY: Duration = Duration::from_secs(5);
/// Others that write between two reads of one attempt.
const ATTEMPTS_MAX: u32 = 4;

impl Keeper {
    pub fn new(store: Store, fixed: Fixed, shared: Arc<Shared>) -> Self {
        Self {
            store,
            fixed,
            shared,
            last: Arc::default(),
        }
    }

    /// Takes in what another bridge on the slot, or an earlier run, has left. Gives the record.
    pub async fn refresh(&self) -> Result<Option<Checkpoint>, Error> {
        let mut last = self.last.lock().await;
        self.take_in(&mut last).await
    }

    async fn take_in(&self, last: &mut Last) -> Result<Option<Checkpoint>, Error> {
        let found = match self.store.read(&self.fixed.stream).await {
            Err(Error::Read { .. }) if self.store.restore().await? => Found::default(),
            found => found?,
        };
        *last = Last {
            revision: found.revision,
            ..Last::default()
        };
        if let Some(checkpoint) = &found.checkpoint {
            self.shared.raise_epoch(checkpoint.epoch);
            self.shared.record(checkpoint.confirmed);
            self.shared.take_over_debt(checkpoint.owed.clone());
            if let Some(counted) = Counted::of(checkpoint, &self.fixed.counting) {
                self.shared.set_counted(counted);
            } else {
                tracing::warn!(
                    "an earlier version of the bridge ran with another --table or --publication: if it ended within a \
                     transaction, events of that may be missing or come twice"
                );
            }
        }
        Ok(found.checkpoint)
    }

    /// Writes the record when it has changed, for ever: once a second, and sooner when the source waits to
    /// confirm. Somebody may delete the bucket meanwhile.
    pub async fn keep(self) {
        let mut is_failing = false;
        loop {
            // Not for each LSN that is to be confirmed.
            tokio::time::sleep(INTERVAL_MIN).await;
            tokio::select! {
                () = self.shared.record_due() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
            match self.write_own().await {
                Ok(()) => is_failing = false,
                Err(error) if is_failing => {
                    tracing::debug!(error = %Chained(&error), "checkpoint still not written");
                }
                Err(error) => {
                    is_failing = true;
                    tracing::warn!(
                        error = %Chained(&error),
                        "checkpoint not written, trying again; PostgreSQL is told nothing new meanwhile"
                    );
                }
            }
        }
    }

    /// Writes it, if it has changed and is this bridge's to write.
    pub async fn write_own(&self) -> Result<(), Error> {
        let source = self.shared.source();
        let is_strange = matches!(source, Condition::Standby | Condition::Starting)
            || self.shared.known().is_none()
            || self.shared.identity().is_none();
        if is_strange {
            return Ok(());
        }
        let mut last = self.last.lock().await;
        if last.has_moved {
            // Not when it was first seen: a bridge that was paused needs a moment to notice that the slot
            // has become another's.
            if source != Condition::Well {
                return Ok(());
            }
            self.take_in(&mut last).await?;
        }
        let written = self.write_once(&mut last).await;
        last.has_moved = matches!(written, Err(Error::Moved { .. }));
        written
    }

    /// Writes it now. Once this has returned a crash does not lose what `Shared` says.
    pub async fn write(&self) -> Result<(), Error> {
        let mut last = self.last.lock().await;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.write_once(&mut last).await {
                Err(Error::Moved { .. }) if attempts < ATTEMPTS_MAX => {
                    self.take_in(&mut last).await?;
                }
                ended => return ended,
            }
        }
    }

    async fn write_once(&self, last: &mut Last) -> Result<(), Error> {
        let checkpoint = self.current();
        let is_same = last.written.as_ref().is_some_and(|(written, at)| {
            *written == unchanged(checkpoint.clone()) && at.elapsed() < REWRITTEN_EVERY
        });
        if is_same {
            return Ok(());
        }
        last.revision = match self.store.write(&checkpoint, last.revision).await {
            Err(Error::Write { .. }) if self.store.restore().await? => {
                self.store.write(&checkpoint, 0).await?
            }
            written => written?,
        };
        self.shared.record(checkpoint.confirmed);
        last.written = Some((unchanged(checkpoint), Instant::now()));
        Ok(())
    }

    fn current(&self) -> Checkpoint {
        let Self { fixed, shared, .. } = self;
        // Of a stream that nothing is known of yet nothing is said but its name.
        let known = shared.known().unwrap_or_else(|| Known {
            created: fixed.stream_created.clone(),
            sequence: 0,
            position: Position::START,
            at: SystemTime::now(),
        });
        let identity = shared.identity().unwrap_or_default();
        let counted = shared.counted();
        Checkpoint {
            slot: fixed.slot.clone(),
            position: known.position,
            stream: fixed.stream.clone(),
            stream_sequence: known.sequence,
            stream_created: known.created,
            system_identifier: identity.system_identifier,
            timeline: identity.timeline,
            epoch: shared.epoch(),
            publication: counted.by.publications.join(","),
            filter_hash: counted.by.hash(),
            tables: counted.by.tables,
            filters: counted.by.filters,
            counted_from: counted.from,
            updated_at: seconds(known.at),
            confirmed: shared.wanted().max(shared.confirmed()),
            owed: shared.debt(),
        }
    }
}

/// Without what changes by itself.
fn unchanged(checkpoint: Checkpoint) -> Checkpoint {
    Checkpoint {
        updated_at: 0,
        ..checkpoint
    }
}

/// The record for the source, whose thread may block.
#[derive(Debug, Clone)]
pub struct Records {
    runtime: Handle,
    keeper: Keeper,
    jetstream: jetstream::Context,
    gap_subject: String,
}

/// For one question to NATS; then the source asks PostgreSQL again, too.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

impl Records {
    /// For threads beside the runtime this is called in.
    pub fn new(keeper: Keeper, jetstream: jetstream::Context, gap_subject: String) -> Self {
        Self {
            runtime: Handle::current(),
            keeper,
            jetstream,
            gap_subject,
        }
    }

    /// Returns once a crash does not lose what `Shared` says.
    pub fn write(&self) -> Result<(), Error> {
        self.wait(self.keeper.write())
    }

    /// The same, if it is this bridge's to write.
    pub fn write_own(&self) -> Result<(), Error> {
        self.wait(self.keeper.write_own())
    }

    /// Another bridge had the slot: takes in what it has left.
    pub fn refresh(&self) -> Result<(), Error> {
        self.wait(async { self.keeper.refresh().await.map(drop) })
    }

    /// The last event under any of these filters, whoever wrote it, and whether its transaction ends there.
    pub fn last_event(&self, filters: &[String]) -> Result<Option<(Position, bool)>, Error> {
        self.wait(async {
            let mut found: Option<(Position, bool)> = None;
            for filter in filters {
                let Some(payload) = self.last(filter).await? else {
                    continue;
                };
                // Behind a gap nothing was published yet, so no transaction is under way there.
                let last = match wire::event::Tail::decode(&payload) {
                    Ok(tail) => Some((tail.position(), tail.last)),
                    Err(_) => Gap::decode(&payload)
                        .ok()
                        .map(|gap| (Position::new(gap.to, 0), true)),
                };
                found = found.max(last);
            }
            Ok(found)
        })
    }

    /// The gap that consumers were told of last, if it is of this slot.
    pub fn last_gap(&self) -> Result<Option<Gap>, Error> {
        let last = self.wait(self.last(&self.gap_subject))?;
        let gap = last.and_then(|payload| Gap::decode(&payload).ok());
        Ok(gap.filter(|gap| gap.slot == self.keeper.fixed.slot))
    }

    async fn last(&self, filter: &str) -> Result<Option<Bytes>, Error> {
        let name = &self.keeper.fixed.stream;
        let failed = || Error::Stream {
            stream: name.clone(),
        };
        let stream = self.jetstream.get_stream_no_info(name).await;
        let stream = stream.map_err(|_| failed())?;
        match stream.get_last_raw_message_by_subject(filter).await {
            Ok(message) => Ok(Some(message.payload)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(_) => Err(failed()),
        }
    }

    fn wait<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let bounded = async { tokio::time::timeout(ANSWER_TIMEOUT, answer).await };
        self.runtime.block_on(bounded).unwrap_or(Err(Error::Silent))
    }
}

/// What the record says of the stream.
pub fn known(checkpoint: &Checkpoint) -> Known {
    let updated_at = Duration::from_secs(u64::try_from(checkpoint.updated_at).unwrap_or(0));
    Known {
        created: checkpoint.stream_created.clone(),
        sequence: checkpoint.stream_sequence,
        position: checkpoint.position,
        at: UNIX_EPOCH + updated_at,
    }
}

/// Seconds since 1970-01-01 UTC.
pub fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
