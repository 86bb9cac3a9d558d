//! Reads what the bridge has stored in NATS.
//!
//! In: stream names, subjects, sequences. Out: messages, schemas, bodies.
//! Invariant: nothing is written but snapshot requests, and nothing here remembers how far the mirror
//! is: that is in the SQLite file.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, Subscriber};
use daemon::nats::FirstConnect;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use wire::event::Oversize;
use wire::names::{self, BUCKET_OVERSIZE, BUCKET_SCHEMAS};
use wire::schema::Schema;
use wire::{Event, Lsn, Message, Operation, Position, SubjectPattern};

use crate::config::{self, Config, Streams};
use crate::join::Bounds;
use crate::table::TableName;
use crate::value::hex;

pub struct Source {
    client: Client,
    context: Context,
    streams: Streams,
    pattern: SubjectPattern,
}

/// A message of a stream.
#[derive(Debug, Clone)]
pub struct Stored {
    pub sequence: u64,
    pub subject: String,
    pub payload: bytes::Bytes,
    /// When the server stored it, in nanoseconds since 1970.
    pub stored_ns: i128,
    /// Messages behind it; 0 when it was the last one.
    pub pending: u64,
}

/// What is read of an event of a table that is not mirrored.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Mark {
    pub commit_lsn: Lsn,
    pub seq: u32,
    #[serde(default)]
    pub last: bool,
}

impl Message for Mark {}

/// Whose event it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Of {
    pub table: String,
    #[serde(default = "public")]
    pub schema: String,
}

impl Message for Of {}

fn public() -> String {
    names::PUBLIC.to_owned()
}

impl Mark {
    pub fn position(self) -> Position {
        Position::new(self.commit_lsn, self.seq)
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {what}")]
    Read {
        what: String,
        #[source]
        source: Cause,
    },
    #[error("cannot reach NATS")]
    Connect(#[source] daemon::nats::Error),
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error("{what} is no message of the bridge's")]
    Decode {
        what: String,
        #[source]
        source: wire::DecodeError,
    },
    #[error("reading stream {0} ended")]
    Ended(String),
    #[error("the body of event {object} is gone from bucket {BUCKET_OVERSIZE} or damaged")]
    Body { object: String },
}

impl Error {
    /// True when trying again later may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Read { .. } | Self::Connect(_) | Self::Ended(_) | Self::Body { .. } => true,
            Self::Config(_) | Self::Decode { .. } => false,
        }
    }
}

/// One stream's messages in order, each once.
pub struct Reader {
    stream: String,
    messages: Pin<Box<pull::Ordered>>,
    /// The highest sequence given out, or where reading began.
    read: u64,
}

impl Source {
    pub async fn connect(config: &Config) -> Result<Self, Error> {
        let options = config.nats()?;
        let client = options.connect("mirror", FirstConnect::Retry).await;
        let client = client.map_err(Error::Connect)?;
        Ok(Self {
            context: jetstream::new(client.clone()),
            client,
            streams: config.stream.clone(),
            pattern: config.subjects()?,
        })
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Where a gap is announced.
    pub fn gap_subject(&self) -> String {
        self.pattern.gap()
    }

    /// The subjects of the tables' events, each with its table's index.
    pub fn event_subjects(&self, tables: &[&TableName]) -> HashMap<String, usize> {
        let mut subjects = HashMap::new();
        for (index, name) in tables.iter().enumerate() {
            let table = self.pattern.subjects(&name.schema, &name.table);
            for operation in Operation::ALL {
                subjects.insert(table.of(operation).to_owned(), index);
            }
        }
        subjects
    }

    /// What the stream of row changes holds now.
    pub async fn bounds(&self) -> Result<Bounds, Error> {
        let mut stream = self.stream(&self.streams.cdc).await?;
        let what = || format!("stream {}", self.streams.cdc);
        let info = stream.info().await.map_err(|error| read(what(), error))?;
        let created_ns = info.created.unix_timestamp_nanos();
        let last_seq = info.state.last_sequence;
        let first_seq = if info.state.messages == 0 {
            last_seq + 1
        } else {
            info.state.first_sequence
        };
        let first = self.position_at(first_seq).await?;
        Ok(Bounds {
            first_seq,
            last_seq,
            first_commit_lsn: first.map(|(position, _)| position.commit_lsn),
            created_ns,
        })
    }

    /// The same for one table: commits of one bridge alone grow along the stream.
    pub async fn bounds_for(&self, name: &TableName) -> Result<Bounds, Error> {
        let mut bounds = self.bounds().await?;
        if bounds.first_commit_lsn.is_some() {
            let stream = self.stream(&self.streams.cdc).await?;
            let first = stream.get_raw_message(bounds.first_seq).await;
            let of = first.ok().and_then(|first| Of::decode(&first.payload).ok());
            let is_own = match of {
                Some(of) => {
                    self.slot(&of.schema, &of.table).await?
                        == self.slot(&name.schema, &name.table).await?
                }
                None => false,
            };
            bounds.first_commit_lsn = bounds.first_commit_lsn.filter(|_| is_own);
        }
        Ok(bounds)
    }

    /// Position of the event with this sequence, and when it was stored; None when there is none.
    pub async fn position_at(&self, sequence: u64) -> Result<Option<(Position, i128)>, Error> {
        let stream = self.stream(&self.streams.cdc).await?;
        match stream.get_raw_message(sequence).await {
            Ok(message) => {
                let mark = Mark::decode(&message.payload).ok();
                let stored_ns = message.time.unix_timestamp_nanos();
                Ok(mark.map(|mark| (mark.position(), stored_ns)))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(read(
                format!("message {sequence} of {}", self.streams.cdc),
                error,
            )),
        }
    }

    /// The last message on a subject of the snapshots' stream.
    pub async fn last_init(&self, subject: &str) -> Result<Option<Stored>, Error> {
        let stream = self.stream(&self.streams.init).await?;
        match stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(Stored {
                sequence: message.sequence,
                subject: message.subject.to_string(),
                payload: message.payload,
                stored_ns: message.time.unix_timestamp_nanos(),
                pending: 0,
            })),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(read(format!("the last message on {subject}"), error)),
        }
    }

    /// The same, read.
    pub async fn last<T: Message>(&self, subject: &str) -> Result<Option<(T, Stored)>, Error> {
        let Some(stored) = self.last_init(subject).await? else {
            return Ok(None);
        };
        Ok(Some((decode(&stored.payload, subject)?, stored)))
    }

    /// The versions of a table's schema that the bucket still has.
    pub async fn history(&self, name: &TableName) -> Result<Vec<Schema>, Error> {
        let what = || format!("the schema of {name} in bucket {BUCKET_SCHEMAS}");
        let bucket = self.context.get_key_value(BUCKET_SCHEMAS).await;
        let bucket = bucket.map_err(|error| read(what(), error))?;
        let history = bucket.history(name.key()).await;
        let entries: Vec<_> = history
            .map_err(|error| read(what(), error))?
            .try_collect()
            .await
            .map_err(|error| read(what(), error))?;
        let puts = entries
            .iter()
            .filter(|entry| entry.operation == jetstream::kv::Operation::Put);
        puts.map(|entry| decode(&entry.value, &what())).collect()
    }

    /// The last version of a table's schema; None when the table is gone.
    pub async fn schema(&self, name: &TableName) -> Result<Option<Schema>, Error> {
        let what = || format!("the schema of {name} in bucket {BUCKET_SCHEMAS}");
        let bucket = self.context.get_key_value(BUCKET_SCHEMAS).await;
        let bucket = bucket.map_err(|error| read(what(), error))?;
        let value = bucket.get(name.key()).await;
        let value = value.map_err(|error| read(what(), error))?;
        value.map(|value| decode(&value, &what())).transpose()
    }

    /// Slot of the bridge that publishes the table's events into this stream, or was the last to do so.
    /// Empty when no schema tells, as with the only bridge of a stream.
    pub async fn slot(&self, schema: &str, table: &str) -> Result<String, Error> {
        let history = self.history(&TableName::new(schema, table)).await?;
        let bridges = history.iter().rev().flat_map(|schema| &schema.bridges);
        let slot = bridges
            .filter(|bridge| bridge.stream == self.streams.cdc)
            .map(|bridge| bridge.slot.clone())
            .next();
        Ok(slot.unwrap_or_default())
    }

    /// Reads messages on `filter` (empty: all) behind a sequence.
    ///
    /// The consumer is ephemeral and acks nothing. A durable one would keep a second position in the
    /// server, and of two positions one is wrong after a crash: ours is in the same SQLite transaction
    /// as the rows, so the server has nothing to remember and nothing is left behind when a mirror
    /// goes away for good.
    pub async fn reader(&self, stream: &str, filter: String, behind: u64) -> Result<Reader, Error> {
        let what = || format!("stream {stream}");
        let config = pull::OrderedConfig {
            filter_subject: filter,
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: behind + 1,
            },
            ..pull::OrderedConfig::default()
        };
        let handle = self.stream(stream).await?;
        let consumer = handle.create_consumer(config).await;
        let consumer = consumer.map_err(|error| read(what(), error))?;
        let messages = consumer
            .messages()
            .await
            .map_err(|error| read(what(), error))?;
        Ok(Reader {
            stream: stream.to_owned(),
            messages: Box::pin(messages),
            read: behind,
        })
    }

    pub async fn subscribe(&self, subject: String) -> Result<Subscriber, Error> {
        let what = format!("subject {subject}");
        self.client
            .subscribe(subject)
            .await
            .map_err(|error| read(what, error))
    }

    /// The whole event behind a stub.
    pub async fn body(&self, stub: &Oversize) -> Result<Event, Error> {
        let what = || format!("bucket {BUCKET_OVERSIZE}");
        let gone = || Error::Body {
            object: stub.object.clone(),
        };
        let store = self.context.get_object_store(BUCKET_OVERSIZE).await;
        let store = store.map_err(|error| read(what(), error))?;
        let mut object = match store.get(stub.object.as_str()).await {
            Ok(object) => object,
            Err(error) if error.kind() == jetstream::object_store::GetErrorKind::NotFound => {
                return Err(gone());
            }
            Err(error) => return Err(read(what(), error)),
        };
        let mut body = Vec::new();
        match object.read_to_end(&mut body).await {
            Ok(_) => {}
            // async-nats: the digest is another one.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Err(gone()),
            Err(error) => return Err(read(what(), error)),
        }
        let is_whole =
            body.len() as u64 == stub.bytes && hex(&Sha256::digest(&body)) == stub.sha256;
        if !is_whole {
            return Err(gone());
        }
        decode(&body, &stub.object)
    }

    async fn stream(&self, name: &str) -> Result<Stream, Error> {
        let stream = self.context.get_stream(name).await;
        stream.map_err(|error| read(format!("stream {name}"), error))
    }
}

impl Reader {
    /// The next message. Cancel safe.
    pub async fn next(&mut self) -> Result<Stored, Error> {
        loop {
            let ended = || Error::Ended(self.stream.clone());
            let message = self.messages.next().await.ok_or_else(ended)?;
            let message =
                message.map_err(|error| read(format!("stream {}", self.stream), error))?;
            let info = message
                .info()
                .map_err(|error| read(format!("stream {}", self.stream), error))?;
            // A consumer that was made anew before its first message begins at the stream's first.
            if info.stream_sequence <= self.read {
                continue;
            }
            self.read = info.stream_sequence;
            return Ok(Stored {
                sequence: info.stream_sequence,
                pending: info.pending,
                stored_ns: info.published.unix_timestamp_nanos(),
                subject: message.subject.to_string(),
                payload: message.payload.clone(),
            });
        }
    }

    /// The next message; None when there is none for this long.
    pub async fn next_within(&mut self, patience: Duration) -> Result<Option<Stored>, Error> {
        match tokio::time::timeout(patience, self.next()).await {
            Ok(message) => message.map(Some),
            Err(_) => Ok(None),
        }
    }
}

/// `payload` as a message.
pub fn decode<T: Message>(payload: &[u8], what: &str) -> Result<T, Error> {
    T::decode(payload).map_err(|source| Error::Decode {
        what: what.to_owned(),
        source,
    })
}

fn read(what: String, source: impl Into<Cause>) -> Error {
    Error::Read {
        what,
        source: source.into(),
    }
}
