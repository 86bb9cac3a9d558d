//! Messages to bytes and back.
//!
//! In: a message, or bytes from anywhere. Out: MessagePack or JSON with the same keys, or the message.
//! Invariant: decoding returns for any input, ignores unknown keys and tells the two formats apart
//! by the first byte, because every message is a map.
//!
//! # MessagePack, exactly
//!
//! What `rmp-serde` writes with named fields; a hand-written encoder must give the same bytes:
//! - structs and rows: map, keys in declaration order, absent optional fields not counted;
//! - map, array, str, bin: the shortest length form (`fixmap` to 15, `fixarray` to 15, `fixstr` to
//!   31 bytes, then `str8`, and so on);
//! - integers: the shortest form, the unsigned forms for every value >= 0 (127 is `7f`, 128 is
//!   `cc 80`, -32 is `e0`, -33 is `d0 df`);
//! - floats: always `cb` and 8 bytes, NaN as `7ff8000000000000`;
//! - LSNs, positions and enums: their text as str.

use rmp_serde::decode::Deserializer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{checkpoint, command, event, gap, schema, snapshot, snapshot_request, sync};

/// The bytes are not the message that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Neither JSON by its first byte nor MessagePack that fits.
    #[error("not a MessagePack message of the expected kind")]
    MsgPack(#[from] rmp_serde::decode::Error),
    /// Begins like JSON.
    #[error("not a JSON message of the expected kind")]
    Json(#[from] serde_json::Error),
    /// A whole message, then more.
    #[error("{bytes} bytes follow the message")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

/// Maps and lists within each other, in either format. Bounds the stack that a hostile message takes; a value that was
/// read as JSON has 127 at most (`serde_json`), and stands in a message within two or three more.
const DEPTH_MAX: usize = 160;

/// A message of the contract.
pub trait Message: Serialize + DeserializeOwned {
    /// The message as a MessagePack map.
    fn to_msgpack(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("messages hold no type that MessagePack lacks")
    }

    /// The message as one line of JSON.
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("messages have text keys and finite numbers only")
    }

    /// Reads a message in either format.
    fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        if is_json(payload) {
            return Ok(serde_json::from_slice(payload)?);
        }
        let mut rest = payload;
        let mut deserializer = Deserializer::new(&mut rest);
        deserializer.set_max_depth(DEPTH_MAX);
        let message = Self::deserialize(&mut deserializer)?;
        match rest.len() {
            0 => Ok(message),
            bytes => Err(DecodeError::Trailing { bytes }),
        }
    }
}

/// A MessagePack map never begins with `{` or white space: those bytes are small integers there.
fn is_json(payload: &[u8]) -> bool {
    payload.trim_ascii_start().first() == Some(&b'{')
}

macro_rules! messages {
    ($($message:ty),* $(,)?) => { $(impl Message for $message {})* };
}

messages!(
    checkpoint::Checkpoint,
    command::OperationStatus,
    command::WriteCommand,
    event::Event,
    event::Tail,
    gap::Gap,
    schema::Schema,
    schema::SchemaChanged,
    snapshot::Chunk,
    snapshot::Error,
    snapshot::Meta,
    snapshot::Progress,
    snapshot::Start,
    snapshot_request::Options,
    snapshot_request::Reply,
    sync::UserDocument,
    sync::VersionRecord,
);
