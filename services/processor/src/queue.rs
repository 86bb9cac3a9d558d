//! The streams of writes and dead letters, and the consumer of one table.
//!
//! In: JetStream. Out: the stream, made when missing, and a consumer that begins at the first write
//! that is not acked.
//! Invariant: an existing stream is never changed; a consumer never skips a message that the one
//! before it had fetched but not acked.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, SequenceInfo, pull};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, LastRawMessageErrorKind, StorageType, Stream,
};
use async_nats::jetstream::{Context, ErrorCode};
use bytes::Bytes;
use daemon::nats;
use wire::names;

use crate::strikes::Strikes;

/// Something about JetStream did not work. The caller begins again.
#[derive(Debug, thiserror::Error)]
#[error("{action}")]
pub struct Error {
    action: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// A consumer's history.
pub struct Taken {
    /// How often the first of them was there when somebody went down.
    pub strikes: Strikes,
    /// Writes that the one before had in flight.
    pub in_flight: usize,
    /// Deliveries of the consumer so far.
    pub delivered: u64,
}

/// What became of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Burial {
    /// It is in `WRITES_DLQ`.
    Stored,
    /// `WRITES_DLQ` is full.
    NoRoom,
}

/// Without an ack for this long the server delivers a message again. That is harmless (its outcome is
/// recorded) and only costs time.
const ACK_WAIT: Duration = Duration::from_mins(1);
const DEAD_LETTERS_BYTES_MAX: i64 = 1 << 28;

/// `WRITES`: what the gateway makes too, whoever comes first.
pub async fn writes(jetstream: &Context) -> Result<Stream, Error> {
    let config = nats::write_queue(
        names::STREAM_WRITES,
        names::WRITE_SUBJECTS,
        nats::WRITES_MAX.into(),
        nats::WRITES_BYTES_MAX,
    );
    stream(jetstream, config).await
}

/// `WRITES_DLQ`: the newest message of each operation.
pub async fn dead_letters(jetstream: &Context) -> Result<Stream, Error> {
    let config = Config {
        name: names::STREAM_WRITES_DLQ.to_owned(),
        subjects: vec![names::DEAD_LETTER_SUBJECTS.to_owned()],
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        max_messages_per_subject: 1,
        max_bytes: DEAD_LETTERS_BYTES_MAX,
        ..Config::default()
    };
    stream(jetstream, config).await
}

async fn stream(jetstream: &Context, config: Config) -> Result<Stream, Error> {
    let name = config.name.clone();
    let stream = jetstream.get_or_create_stream(config).await;
    stream.map_err(|error| Error::new(format!("cannot open or make stream {name}"), error))
}

/// The table's consumer, in order from the first write that is not acked: where the one before left
/// writes in flight, the server would deliver those last, and others that it takes for acked never,
/// so the consumer is made anew.
pub async fn take(
    stream: &Stream,
    schema: &str,
    table: &str,
    max_ack_pending: usize,
    was_orderly: bool,
) -> Result<Taken, Error> {
    let name = names::writer_consumer(schema, table);
    let (mut strikes, mut in_flight) = (Strikes::default(), 0);
    match stream.consumer_info(&name).await {
        Ok(info) => {
            in_flight = info.num_ack_pending;
            let description = info.config.description.unwrap_or_default();
            strikes = Strikes::parse(&description).after(
                info.ack_floor.stream_sequence,
                in_flight,
                was_orderly,
            );
            let filter = names::writes_filter(schema, table);
            if in_flight != 0 || has_stragglers(stream, &filter, &info.ack_floor).await? {
                delete(stream, &name).await?;
            }
        }
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(Error::new(format!("cannot read consumer {name}"), error)),
    }
    let config = config(schema, table, max_ack_pending, strikes);
    let consumer: Result<PullConsumer, _> = stream.create_consumer(config).await;
    let consumer =
        consumer.map_err(|error| Error::new(format!("cannot make consumer {name}"), error))?;
    Ok(Taken {
        strikes,
        in_flight,
        delivered: consumer.cached_info().delivered.consumer_sequence,
    })
}

/// Gives back what is in flight after an orderly end. Only for who has the table's lock.
pub async fn give_back(
    stream: &Stream,
    schema: &str,
    table: &str,
    max_ack_pending: usize,
) -> Result<(), Error> {
    take(stream, schema, table, max_ack_pending, true)
        .await
        .map(|_| ())
}

/// (schema, table) of every table that has a consumer.
pub async fn tables(stream: &Stream) -> Result<Vec<(String, String)>, Error> {
    use futures_util::TryStreamExt;

    let consumers: Vec<_> = stream
        .consumers()
        .try_collect()
        .await
        .map_err(|error| Error::new("cannot list the consumers".to_owned(), error))?;
    Ok(consumers
        .iter()
        .filter_map(|info| {
            let path = info.config.filter_subject.strip_prefix("writes.")?;
            names::parse_table_path(path.strip_suffix(".*")?)
        })
        .collect())
}

/// Publishes a dead letter and waits until it is stored, or the stream has no room for it. A repeat replaces it.
pub async fn bury(
    jetstream: &Context,
    subject: &str,
    payload: Bytes,
    headers: Option<&HeaderMap>,
    reason: &str,
) -> Result<Burial, Error> {
    let names = names::parse_writes(subject);
    let target = match names {
        Some((schema, table, id)) => names::dead_letter(&schema, &table, &id),
        None => format!("writes_dlq.{}", wire::token::escape_token(subject)),
    };
    let mut letter = HeaderMap::new();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        // JetStream's own headers are about the stream the message came from.
        if !name.to_string().starts_with("Nats-") {
            for value in values {
                letter.append(name.clone(), value.clone());
            }
        }
    }
    letter.insert(HEADER_SUBJECT, subject);
    letter.insert(HEADER_REASON, reason.replace(['\r', '\n'], " ").as_str());
    let message = PublishMessage::build().payload(payload).headers(letter);
    let failed = |error| Error::new(format!("cannot bury {subject}"), error);
    let ack = jetstream.send_publish(target, message).await;
    match ack.map_err(failed)?.await {
        Ok(_) => Ok(Burial::Stored),
        Err(error) if nats::is_full(&error) => Ok(Burial::NoRoom),
        Err(error) => Err(failed(error)),
    }
}

/// Where a dead letter came from.
pub const HEADER_SUBJECT: &str = "Dead-Letter-Subject";
/// Why it is one.
pub const HEADER_REASON: &str = "Dead-Letter-Reason";

impl Error {
    pub(crate) fn new(
        action: String,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            action,
            source: source.into(),
        }
    }
}

fn config(schema: &str, table: &str, max_ack_pending: usize, strikes: Strikes) -> pull::Config {
    pull::Config {
        durable_name: Some(names::writer_consumer(schema, table)),
        description: (strikes.count != 0).then(|| strikes.to_string()),
        filter_subject: names::writes_filter(schema, table),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_ack_pending: max_ack_pending as i64,
        ..pull::Config::default()
    }
}

/// Whether the queue holds messages that the consumer has behind itself. nats-server 2.9, killed, may
/// keep an ack and lose the removal of its message.
async fn has_stragglers(
    stream: &Stream,
    filter: &str,
    ack_floor: &SequenceInfo,
) -> Result<bool, Error> {
    match stream.get_first_raw_message_by_subject(filter, 1).await {
        Ok(first) => Ok(first.sequence <= ack_floor.stream_sequence),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(false),
        Err(error) => Err(Error::new(format!("cannot look for {filter}"), error)),
    }
}

async fn delete(stream: &Stream, name: &str) -> Result<(), Error> {
    match stream.delete_consumer(name).await {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::new(format!("cannot delete consumer {name}"), error)),
    }
}

fn is_missing(error: &async_nats::jetstream::context::ConsumerInfoError) -> bool {
    use async_nats::jetstream::context::ConsumerInfoErrorKind as Kind;
    match error.kind() {
        Kind::NotFound => true,
        Kind::JetStream(error) => error.error_code() == ErrorCode::CONSUMER_NOT_FOUND,
        _ => false,
    }
}
