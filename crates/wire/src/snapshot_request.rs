//! Asking for a snapshot on `snapshot.request.{table}`.
//!
//! In: a payload: nothing, or a map of options as MessagePack or JSON. Out: the options, and the
//! reply to a request that has a reply subject.
//! Invariant: an option nobody knows is refused, not ignored: the requester meant something by it.

use serde::{Deserialize, Serialize};

use crate::codec::{DecodeError, Message};
use crate::snapshot;
use crate::value::Value;

/// What the requester wants; all of it optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// How values are written.
    pub values: Values,
    /// Only these columns, in this order. Empty: all that are published.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// Only these rows.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
    /// How payloads are compressed.
    pub compression: Compression,
    /// Go on with an interrupted snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
}

/// Rows with `from <= column < to`; a bound left out is open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// A column of the key.
    pub column: String,
    /// The first value in the range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// The first value behind the range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

/// Where to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// The interrupted snapshot.
    pub snapshot_id: String,
    /// The first chunk the requester lacks.
    pub chunk: u64,
}

/// How values are written in chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Values {
    /// PostgreSQL's text, or nil.
    #[default]
    Text,
    /// As in events.
    Typed,
}

/// How a payload is compressed, whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not.
    #[default]
    None,
    /// One zstd frame.
    Zstd,
    /// One LZ4 frame.
    Lz4,
    /// One gzip member.
    Gzip,
}

/// The reply to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)] // `error` marks a refusal, so it must be tried first.
pub enum Reply {
    /// There will be no snapshot.
    Refused(snapshot::Error),
    /// There will be one, or the one already running is shared.
    Accepted {
        /// Which snapshot.
        snapshot_id: String,
    },
}

impl Options {
    /// Reads a request's payload; none is all defaults.
    pub fn from_payload(payload: &[u8]) -> Result<Self, DecodeError> {
        if payload.is_empty() {
            Ok(Self::default())
        } else {
            Self::decode(payload)
        }
    }
}

impl Compression {
    /// The value of the header `Content-Encoding`; None for no header.
    pub fn content_encoding(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Zstd => Some("zstd"),
            Self::Lz4 => Some("lz4"),
            Self::Gzip => Some("gzip"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_payload_asks_for_everything_as_text() {
        assert_eq!(Options::from_payload(b"").unwrap(), Options::default());
        assert_eq!(Options::from_payload(b"{}").unwrap(), Options::default());
        assert_eq!(Options::from_payload(&[0x80]).unwrap(), Options::default());
    }

    #[test]
    fn a_misspelt_option_is_refused() {
        assert!(Options::from_payload(br#"{"valeus":"typed"}"#).is_err());
        assert!(Options::from_payload(br#"{"values":"types"}"#).is_err());
    }
}
