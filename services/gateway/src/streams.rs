//! The two streams that the gateway writes: the queue of commands, and the memory of the keys.
//!
//! In: limits. Out: the definitions, made when missing. What must hold: a full queue refuses instead of forgetting, and
//! the memory of keys forgets the oldest instead of refusing.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::CreateStreamError;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, StorageType};
use daemon::nats;
use wire::names::{STREAM_WRITE_KEYS, STREAM_WRITES, WRITE_KEYS, WRITE_SUBJECTS};

/// A key is remembered for this long, unless more than `keys_max` come meanwhile.
const KEYS_MAX_AGE: Duration = Duration::from_hours(24);

/// How large the streams may grow.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Commands in the queue.
    pub queue_messages_max: i64,
    /// Bytes of commands in the queue.
    pub queue_bytes_max: i64,
    /// Keys remembered.
    pub keys_max: u32,
}

/// Makes the streams that are missing; existing ones keep their limits. What is to say of the queue.
pub async fn ensure(context: &Context, limits: Limits) -> Result<Info, CreateStreamError> {
    context.get_or_create_stream(keys(limits)).await?;
    let queue = nats::write_queue(
        STREAM_WRITES,
        WRITE_SUBJECTS,
        limits.queue_messages_max,
        limits.queue_bytes_max,
    );
    let queue = context.get_or_create_stream(queue).await?;
    Ok(queue.cached_info().clone())
}

/// Says so when somebody else made the queue, and it remembers message ids for longer than any repeat takes.
pub fn warn_of_long_memory(queue: &Config) {
    let enough = nats::WRITES_DUPLICATE_WINDOW;
    if enough < queue.duplicate_window {
        tracing::warn!(
            duplicate_window_s = queue.duplicate_window.as_secs(),
            "{STREAM_WRITES} remembers message ids for longer than it must, which costs nats-server memory and pauses \
             under load; nats stream edit {STREAM_WRITES} --dupe-window={}s",
            enough.as_secs()
        );
    }
}

/// The log of keys; a full one drops its oldest messages. One message has a key at least, so no key is dropped before
/// `keys_max` others came.
fn keys(limits: Limits) -> Config {
    Config {
        name: STREAM_WRITE_KEYS.to_owned(),
        subjects: vec![WRITE_KEYS.to_owned()],
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        max_messages: limits.keys_max.into(),
        max_bytes: i64::from(limits.keys_max) * KEY_BYTES_MAX,
        max_age: KEYS_MAX_AGE,
        allow_direct: true,
        deny_delete: true,
        ..Config::default()
    }
}

/// What a key takes in the stream when its message has no other: 22 + 8 bytes of the server's around a subject of 10, a
/// header of 53 and a record of 56 (nats-server: filestore.go, `fileStoreMsgSize`).
const KEY_BYTES_MAX: i64 = 160;
