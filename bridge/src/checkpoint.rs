//! Remembers across restarts what the stream itself cannot tell: KV bucket `bridge_state`.
//!
//! In: the publisher's progress, PostgreSQL's identity. Out: one record per slot, read once at start.
//! Invariant: the stream's tail outranks it; a record of another stream is ignored.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::{self, kv, stream};
use wire::Message as _;
use wire::checkpoint::Checkpoint;
use wire::names::BUCKET_BRIDGE_STATE;

use crate::publish::incarnation::Known;
use crate::shared::{Condition, Shared};

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
        source: kv::PutError,
    },
}

/// The record of one slot.
#[derive(Debug, Clone)]
pub struct Store {
    bucket: kv::Store,
    slot: String,
}

/// How far behind a crash may find the record. It is read only when the tail has aged out, which
/// takes far longer.
const INTERVAL: Duration = Duration::from_secs(5);

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
                let config = stream::Config {
                    num_replicas: replicas,
                    // Of several replicas one that lags would answer, and a claim be missed.
                    allow_direct: replicas == 1,
                    ..daemon::nats::bucket(BUCKET_BRIDGE_STATE, 10)
                };
                jetstream
                    .create_stream(config)
                    .await
                    .map_err(|error| Error::Bucket(Box::new(error)))?;
                let opened = jetstream.get_key_value(BUCKET_BRIDGE_STATE).await;
                opened.map_err(|error| Error::Bucket(Box::new(error)))?
            }
        };
        Ok(Self {
            bucket,
            slot: slot.to_owned(),
        })
    }

    /// The bucket itself, for what else is kept there.
    pub fn bucket(&self) -> kv::Store {
        self.bucket.clone()
    }

    /// The record, unless it is unreadable or of another stream.
    pub async fn read(&self, stream: &str) -> Result<Option<Checkpoint>, Error> {
        let entry = self.bucket.get(self.slot.as_str()).await;
        let value = entry.map_err(|source| Error::Read {
            key: self.slot.clone(),
            source,
        })?;
        let Some(value) = value else { return Ok(None) };
        match Checkpoint::decode(&value) {
            Ok(checkpoint) if checkpoint.stream == stream => Ok(Some(checkpoint)),
            Ok(checkpoint) => {
                tracing::info!(
                    other = checkpoint.stream,
                    "the checkpoint is of another stream, ignoring it"
                );
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(%error, "the checkpoint cannot be read, ignoring it");
                Ok(None)
            }
        }
    }

    async fn write(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        let written = self
            .bucket
            .put(self.slot.as_str(), checkpoint.to_json().into())
            .await;
        written.map(drop).map_err(|source| Error::Write {
            key: self.slot.clone(),
            source,
        })
    }
}

/// The parts of the record that do not change while the bridge runs.
#[derive(Debug, Clone)]
pub struct Fixed {
    pub slot: String,
    pub stream: String,
    pub publication: String,
    pub filter_hash: String,
}

/// Writes the record when it has changed, every 5 s, for ever.
pub async fn keep(store: Store, fixed: Fixed, shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(INTERVAL);
    let mut written = None;
    loop {
        interval.tick().await;
        let Some(checkpoint) = current(&fixed, &shared) else {
            continue;
        };
        if written == Some(unchanged(checkpoint.clone())) {
            continue;
        }
        match store.write(&checkpoint).await {
            Ok(()) => written = Some(unchanged(checkpoint)),
            Err(error) => tracing::debug!(%error, "checkpoint not written, trying again"),
        }
    }
}

/// Writes it once more, at the end of a drain.
pub async fn write_last(store: &Store, fixed: &Fixed, shared: &Shared) {
    if let Some(checkpoint) = current(fixed, shared)
        && let Err(error) = store.write(&checkpoint).await
    {
        tracing::warn!(%error, "the last checkpoint was not written; the stream's tail will do");
    }
}

/// None until both sides have connected, and while another bridge has the slot: the record is its.
fn current(fixed: &Fixed, shared: &Shared) -> Option<Checkpoint> {
    if shared.source() == Condition::Standby {
        return None;
    }
    let (known, identity) = (shared.known()?, shared.identity()?);
    Some(Checkpoint {
        slot: fixed.slot.clone(),
        position: known.position,
        stream: fixed.stream.clone(),
        stream_sequence: known.sequence,
        stream_created: known.created,
        system_identifier: identity.system_identifier,
        timeline: identity.timeline,
        epoch: shared.epoch(),
        publication: fixed.publication.clone(),
        filter_hash: fixed.filter_hash.clone(),
        updated_at: seconds(known.at),
    })
}

/// Without what changes by itself.
fn unchanged(checkpoint: Checkpoint) -> Checkpoint {
    Checkpoint {
        updated_at: 0,
        ..checkpoint
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
