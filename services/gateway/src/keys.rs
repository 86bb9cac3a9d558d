//! Remembers the idempotency keys: a log in JetStream that every gateway writes and follows.
//!
//! In: records of keys, many in one message. Out: which record of a key is the first. What must hold: the first record in
//! the log decides, on every replica and after every crash; whoever wrote a record knows the log up to it before they act.
//!
//! One message of its own for each key, compared and set by the server, took 12 us of nats-server a write and some 150
//! bytes of its memory a key. In the log a key is 56 bytes of a message that all writes of a moment share, and in here the
//! sequence of that message.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::DirectGetErrorKind;
use bytes::Bytes;
use daemon::backoff::{self, Backoff};
use daemon::nats;
use futures_util::StreamExt;
use time::OffsetDateTime;
use tokio::sync::watch;
use uuid::Uuid;
use wire::names::{STREAM_WRITE_KEYS, WRITE_KEYS};

use crate::idempotency::Fingerprint;

/// What the log says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub operation_id: Uuid,
    /// Of the request.
    pub fingerprint: Fingerprint,
    /// When it was accepted, whole microseconds.
    pub accepted_at: OffsetDateTime,
}

/// The memory of one gateway.
#[derive(Debug)]
pub struct Keys {
    context: Context,
    timeout: Duration,
    index: Mutex<Index>,
    progress: watch::Sender<Progress>,
}

/// The log cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No ack, or one that says no.
    #[error("publish to {WRITE_KEYS}")]
    Publish(#[from] PublishError),
    /// The record is in the log, but did not come back.
    #[error("message {0} of {STREAM_WRITE_KEYS} did not come back")]
    Unread(u64),
    /// A record cannot be fetched.
    #[error("read message {sequence} of {STREAM_WRITE_KEYS}")]
    Read {
        /// Which.
        sequence: u64,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
}

/// Not a message of the log.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {STREAM_WRITE_KEYS} is no list of keys")]
pub struct Malformed;

/// How far the log was read.
#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    sequence: u64,
    /// Once to its end, at least.
    is_whole: bool,
}

/// The sequence of the first message with each key.
#[derive(Debug)]
struct Index {
    /// Apart, because a map that grows moves all it has, into memory that is new: 460,000 keys in one held every request
    /// up for 100 ms, 3,600 for 1 ms.
    shards: Vec<Shard>,
    hasher: RandomState,
    /// The last message that was read, to know the log again.
    newest: Option<(u64, Bytes)>,
}

/// Two generations: when the young one is full, the old one goes.
#[derive(Debug, Default)]
struct Shard {
    young: HashMap<Uuid, u64>,
    old: HashMap<Uuid, u64>,
}

/// Keys in a young generation: as many as a table of 1,024 places takes (`hashbrown`: seven eighths).
const YOUNG_MAX: usize = 896;
const RECORD_BYTES: usize = 16 + 32 + 8;
/// Bytes of a message's headers, at most.
const HEADERS_BYTES_MAX: usize = 128;
/// Messages asked for at a time.
const FETCH_MAX: usize = 1000;
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The server forgets a consumer that nobody reads.
const INACTIVE: Duration = Duration::from_mins(1);

impl Keys {
    /// A memory that holds between `keys_max` and half of them, give or take some, in about 30 bytes each. Records must come
    /// back within `timeout`.
    pub fn new(context: Context, timeout: Duration, keys_max: usize) -> Self {
        Self {
            context,
            timeout,
            index: Mutex::new(Index::new(keys_max)),
            progress: watch::Sender::default(),
        }
    }

    /// Whether the log was read to its end; before, nothing can be said about any key.
    pub fn is_whole(&self) -> bool {
        self.progress.borrow().is_whole
    }

    /// How many are remembered.
    pub fn count(&self) -> usize {
        self.index().count()
    }

    /// The message with the first record of a key, as far as the log was read.
    pub fn first(&self, operation_id: &Uuid) -> Option<u64> {
        self.index().get(operation_id)
    }

    /// Records in a message of so many bytes, at least one.
    pub fn batch_max(payload_bytes_max: usize) -> usize {
        (payload_bytes_max.saturating_sub(HEADERS_BYTES_MAX) / RECORD_BYTES).max(1)
    }

    /// Appends records in one message and reads the log up to it; its sequence. Which of them are first,
    /// [`Keys::first`] knows then. An error: they may be in the log or not.
    pub async fn append(&self, records: impl IntoIterator<Item = &Record>) -> Result<u64, Error> {
        let message = PublishMessage::build()
            .payload(encode(records).into())
            .expected_stream(STREAM_WRITE_KEYS);
        let ack = self.context.send_publish(WRITE_KEYS, message).await?;
        let sequence = ack.await?.sequence;
        let mut progress = self.progress.subscribe();
        let read = progress.wait_for(|progress| sequence <= progress.sequence);
        match tokio::time::timeout(self.timeout, read).await {
            Ok(Ok(_)) => Ok(sequence),
            Ok(Err(_)) | Err(_) => Err(Error::Unread(sequence)),
        }
    }

    /// The first record of a key, in the message that [`Keys::first`] named; None: the log has forgotten it.
    pub async fn record(
        &self,
        operation_id: &Uuid,
        sequence: u64,
    ) -> Result<Option<Record>, Error> {
        let failed = |source: async_nats::Error| Error::Read { sequence, source };
        let stream = self.context.get_stream_no_info(STREAM_WRITE_KEYS).await;
        let stream = stream.map_err(|error| failed(error.into()))?;
        let found = match stream.direct_get(sequence).await {
            Ok(message) => decode(&message.payload)
                .map_err(|error| failed(error.into()))?
                .find(|record| record.operation_id == *operation_id),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => None,
            Err(error) => return Err(failed(error.into())),
        };
        if found.is_none() {
            self.index().forget(operation_id, sequence);
        }
        Ok(found)
    }

    /// Follows the log for ever.
    pub async fn follow(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            if let Err(error) = self.read_on(&mut backoff).await {
                tracing::warn!(%error, "cannot follow the idempotency keys");
            }
            tokio::time::sleep(backoff.next(backoff::random())).await;
        }
    }

    /// Reads on until NATS was away or the consumer is gone.
    async fn read_on(&self, backoff: &mut Backoff) -> Result<(), async_nats::Error> {
        let mut reconnected = pin!(nats::reconnected(&self.context.client()));
        let stream = self.context.get_stream(STREAM_WRITE_KEYS).await?;
        let last = stream.cached_info().state.last_sequence;
        let start_sequence = self.resume(last);
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
            ack_policy: AckPolicy::None,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await?;
        // A log whose messages are all too old has a last sequence still, and nothing to read.
        let mut is_at_end = consumer.cached_info().num_pending == 0;
        let messages = consumer.stream().max_messages_per_batch(FETCH_MAX);
        let mut messages = messages.heartbeat(HEARTBEAT).messages().await?;
        backoff.reset();
        let mut previous = None;
        loop {
            if is_at_end && !self.is_whole() {
                tracing::info!(keys = self.count(), "the idempotency keys are read");
                self.progress
                    .send_modify(|progress| progress.is_whole = true);
            }
            let message = tokio::select! {
                () = &mut reconnected => return Ok(()),
                message = messages.next() => message.ok_or("the consumer ended")??,
                // What was still to come has gone meanwhile.
                () = tokio::time::sleep(HEARTBEAT), if !self.is_whole() => return Ok(()),
            };
            let info = message.info()?;
            let sequence = info.stream_sequence;
            is_at_end = info.pending == 0 || last <= sequence;
            let follows = previous.is_none_or(|previous| sequence == previous + 1);
            if !follows || !self.read(sequence, &message.payload) {
                return Ok(());
            }
            previous = Some(sequence);
        }
    }

    /// From where to read a log whose last message is `last`. One that is shorter than before is another log, or has lost
    /// its end.
    fn resume(&self, last: u64) -> u64 {
        let mut index = self.index();
        let newest = index.newest.as_ref().map(|(sequence, _)| *sequence);
        if newest.is_some_and(|newest| last < newest) {
            self.begin_anew(&mut index);
            return 1;
        }
        newest.unwrap_or(1)
    }

    /// Takes a message in. False: this is not the log that was read so far.
    fn read(&self, sequence: u64, payload: &Bytes) -> bool {
        let mut index = self.index();
        match &index.newest {
            Some((newest, known)) if *newest == sequence && known == payload => return true,
            Some((newest, _)) if sequence <= *newest => {
                self.begin_anew(&mut index);
                return false;
            }
            Some(_) | None => {}
        }
        match decode(payload) {
            Ok(records) => {
                for record in records {
                    index.insert(record.operation_id, sequence);
                }
            }
            Err(error) => tracing::error!(sequence, %error, "passed over"),
        }
        index.newest = Some((sequence, payload.clone()));
        drop(index);
        self.progress
            .send_modify(|progress| progress.sequence = sequence);
        true
    }

    /// Forgets everything: the log is not the one that was read.
    fn begin_anew(&self, index: &mut Index) {
        tracing::warn!("the log of the idempotency keys is another one; it is read again");
        index.clear();
        self.progress.send_replace(Progress::default());
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn new(keys_max: usize) -> Self {
        let shards = keys_max.div_ceil(2 * YOUNG_MAX);
        Self {
            shards: std::iter::repeat_with(Shard::default)
                .take(shards)
                .collect(),
            hasher: RandomState::new(),
            newest: None,
        }
    }

    fn get(&self, operation_id: &Uuid) -> Option<u64> {
        let shard = &self.shards[self.place(operation_id)];
        let known = shard.young.get(operation_id);
        known.or_else(|| shard.old.get(operation_id)).copied()
    }

    /// Keeps the first.
    fn insert(&mut self, operation_id: Uuid, sequence: u64) {
        if self.get(&operation_id).is_some() {
            return;
        }
        let place = self.place(&operation_id);
        let shard = &mut self.shards[place];
        if YOUNG_MAX <= shard.young.len() {
            std::mem::swap(&mut shard.young, &mut shard.old);
            shard.young.clear();
        }
        shard.young.insert(operation_id, sequence);
    }

    fn forget(&mut self, operation_id: &Uuid, sequence: u64) {
        let place = self.place(operation_id);
        let shard = &mut self.shards[place];
        for generation in [&mut shard.young, &mut shard.old] {
            if generation.get(operation_id) == Some(&sequence) {
                generation.remove(operation_id);
            }
        }
    }

    fn clear(&mut self) {
        self.shards.fill_with(Shard::default);
        self.newest = None;
    }

    fn count(&self) -> usize {
        let counts = self.shards.iter();
        counts
            .map(|shard| shard.young.len() + shard.old.len())
            .sum()
    }

    /// Not the id's own bits: clients choose them.
    fn place(&self, operation_id: &Uuid) -> usize {
        self.hasher.hash_one(operation_id) as usize % self.shards.len()
    }
}

/// Id, fingerprint and microseconds since 1970, big-endian, one record behind the other.
fn encode<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<u8> {
    let records = records.into_iter();
    let mut bytes = Vec::with_capacity(records.size_hint().0 * RECORD_BYTES);
    for record in records {
        let accepted_us = record.accepted_at.unix_timestamp_nanos() / 1000;
        bytes.extend_from_slice(record.operation_id.as_bytes());
        bytes.extend_from_slice(&record.fingerprint.0);
        bytes.extend_from_slice(&(accepted_us as i64).to_be_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Result<impl Iterator<Item = Record>, Malformed> {
    let (records, rest) = bytes.as_chunks::<RECORD_BYTES>();
    let records: Option<Vec<_>> = records.iter().map(record).collect();
    match (records, rest) {
        (Some(records), []) => Ok(records.into_iter()),
        _ => Err(Malformed),
    }
}

fn record(bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
    let (operation_id, bytes) = bytes.split_first_chunk::<16>()?;
    let (fingerprint, bytes) = bytes.split_first_chunk::<32>()?;
    let accepted_us = i64::from_be_bytes(*bytes.first_chunk()?);
    let accepted_at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(accepted_us) * 1000);
    Some(Record {
        operation_id: Uuid::from_bytes(*operation_id),
        fingerprint: Fingerprint(*fingerprint),
        accepted_at: accepted_at.ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys_max: usize, inserted: &[(u128, u64)]) -> Index {
        let mut index = Index::new(keys_max);
        for (key, sequence) in inserted {
            index.insert(Uuid::from_u128(*key), *sequence);
        }
        index
    }

    fn first(index: &Index, key: u128) -> Option<u64> {
        index.get(&Uuid::from_u128(key))
    }

    #[test]
    fn the_first_record_of_a_key_stays() {
        let index = keys(10_000, &[(1, 10), (1, 11), (2, 11), (3, 12), (1, 13)]);

        assert_eq!((first(&index, 1), first(&index, 3)), (Some(10), Some(12)));
    }

    #[test]
    fn a_repeat_stays_one_when_its_generation_is_full() {
        let full: Vec<_> = (1..=YOUNG_MAX as u128).map(|key| (key, 10)).collect();
        let mut index = keys(2 * YOUNG_MAX, &full);

        index.insert(Uuid::from_u128(1), 11);

        assert_eq!(first(&index, 1), Some(10));
    }

    #[test]
    fn the_oldest_keys_go_and_half_of_them_stay() {
        let records: Vec<_> = (0..500_000).map(|number| (number, number as u64)).collect();
        let index = keys(100_000, &records);

        // Of 56 shards, which are not all full at the same time.
        assert!(
            (50_000..=56 * 2 * YOUNG_MAX).contains(&index.count()),
            "{}",
            index.count()
        );
        assert!((465_000..500_000).all(|key| first(&index, key).is_some()));
        assert_eq!(first(&index, 0), None);
    }

    #[test]
    fn only_the_record_that_the_log_forgot_is_forgotten() {
        let mut index = keys(10, &[(1, 10)]);

        index.forget(&Uuid::from_u128(1), 9);
        assert_eq!(first(&index, 1), Some(10));
        index.forget(&Uuid::from_u128(1), 10);
        assert_eq!(first(&index, 1), None);
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let record = |number: u8| Record {
            operation_id: Uuid::from_u128(number.into()),
            fingerprint: Fingerprint([number; 32]),
            accepted_at: OffsetDateTime::from_unix_timestamp_nanos(1_790_000_000_123_456_000)
                .unwrap(),
        };
        let records = [record(1), record(2)];

        let bytes = encode(&records);

        assert_eq!(bytes.len(), 2 * RECORD_BYTES);
        assert!(decode(&bytes).unwrap().eq(records));
    }

    #[test]
    fn no_bytes_panic() {
        let years_too_late = [0x7f; RECORD_BYTES];
        for bytes in [
            &[0; RECORD_BYTES - 1][..],
            &[0; RECORD_BYTES + 1],
            &years_too_late,
        ] {
            assert_eq!(decode(bytes).err(), Some(Malformed));
        }
        assert_eq!(decode(&[]).unwrap().count(), 0);
    }
}
