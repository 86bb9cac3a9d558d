//! Keeps the bodies of events that no message can hold, in Object Store bucket `oversize`.
//!
//! In: an encoded event. Out: where it lies, for the stub that goes out in its place.
//! Invariant: the stub is published only after the object is stored; a repeat overwrites its own object.

use std::fmt::Write as _;
use std::time::Duration;

use async_nats::jetstream::{self, object_store};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use wire::Position;
use wire::names::BUCKET_OVERSIZE;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "a row of {bytes} bytes is too large for a message of at most {limit}, and --oversize is halt; raise max_payload \
         of the server (and max_msg_size of the stream), or use --oversize park"
    )]
    Halt { bytes: usize, limit: usize },
    #[error(
        "cannot open Object Store bucket {BUCKET_OVERSIZE}; the NATS user needs to create stream OBJ_{BUCKET_OVERSIZE}"
    )]
    Bucket(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot store a body of {bytes} bytes in bucket {BUCKET_OVERSIZE}")]
    Put {
        bytes: usize,
        #[source]
        source: object_store::PutError,
    },
    #[error("the digest of an object is not understood: {digest:?}")]
    Digest { digest: Option<String> },
}

/// What to do with such an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Body into the object store, stub into the stream.
    Park,
    /// Stop there, loudly, until somebody raises the limit.
    Halt,
}

pub struct Oversize {
    policy: Policy,
    jetstream: jetstream::Context,
    slot: String,
    /// Of the bucket, when it is made.
    replicas: usize,
    parked: Option<Parked>,
}

/// A body that is stored.
pub struct Parked {
    position: Position,
    body: wire::event::Oversize,
}

/// What the clients' object stores use by default; a server may allow less in a message.
const CHUNK_BYTES: usize = 128 << 10;
/// As long as the events that refer to them, by default.
const OBJECT_AGE_MAX: Duration = Duration::from_hours(7 * 24);

impl Oversize {
    pub fn new(
        policy: Policy,
        jetstream: jetstream::Context,
        slot: String,
        replicas: usize,
    ) -> Self {
        Self {
            policy,
            jetstream,
            slot,
            replicas,
            parked: None,
        }
    }

    /// The body of the event at this position, if it was the last one parked.
    pub fn parked(&self, position: Position) -> Option<&wire::event::Oversize> {
        let parked = self
            .parked
            .as_ref()
            .filter(|parked| parked.position == position)?;
        Some(&parked.body)
    }

    /// Fails where such a row is to stop the bridge.
    pub fn admits(&self, bytes: usize, limit: usize) -> Result<(), Error> {
        match self.policy {
            Policy::Park => Ok(()),
            Policy::Halt => Err(Error::Halt { bytes, limit }),
        }
    }

    /// Stores the body under `{slot}/{position}`, in chunks of no more than `message_bytes_max`.
    pub async fn park(
        &mut self,
        position: Position,
        body: Vec<u8>,
        message_bytes_max: usize,
    ) -> Result<(), Error> {
        let bytes = body.len();
        let object = format!("{}/{position}", self.slot);
        let store = self.bucket().await?;
        let metadata = object_store::ObjectMetadata {
            name: object.clone(),
            chunk_size: Some(CHUNK_BYTES.min(message_bytes_max)),
            ..object_store::ObjectMetadata::default()
        };
        let put = store.put(metadata, &mut body.as_slice()).await;
        let stored = put.map_err(|source| Error::Put { bytes, source })?;
        let sha256 = hex(stored.digest.as_deref()).ok_or(Error::Digest {
            digest: stored.digest,
        })?;
        self.parked = Some(Parked {
            position,
            body: wire::event::Oversize {
                bytes: bytes as u64,
                sha256,
                object,
            },
        });
        Ok(())
    }

    async fn bucket(&self) -> Result<object_store::ObjectStore, Error> {
        if let Ok(store) = self.jetstream.get_object_store(BUCKET_OVERSIZE).await {
            return Ok(store);
        }
        let config = object_store::Config {
            bucket: BUCKET_OVERSIZE.to_owned(),
            description: Some("bodies of events too large for a message".to_owned()),
            max_age: OBJECT_AGE_MAX,
            num_replicas: self.replicas,
            ..object_store::Config::default()
        };
        self.jetstream
            .create_object_store(config)
            .await
            .map_err(|error| Error::Bucket(Box::new(error)))
    }
}

/// The digest as object stores write it, in hexadecimal. It was made while the body went out, so the body
/// need not be read twice.
fn hex(digest: Option<&str>) -> Option<String> {
    let digest = URL_SAFE.decode(digest?.strip_prefix("SHA-256=")?).ok()?;
    Some(digest.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}
