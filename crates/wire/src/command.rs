//! A write on its way into PostgreSQL, and what became of it.
//!
//! In: nothing; this is the definition. Out: the message on `writes.{table}.{operation_id}`, and the
//! body of `/status/{operation_id}`.
//! Invariant: one operation id is one write, however often it is sent; `body_sha256` tells a repeat
//! from another write under the same id.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::event::public;
use crate::lsn::Lsn;

/// One write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WriteCommand {
    /// UUID: the `Idempotency-Key`, or made from it.
    pub operation_id: String,
    /// The table's name.
    pub table: String,
    /// What to do.
    pub op: WriteOp,
    /// Primary key of the row. On create it may be absent: made from the operation id then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity_id: Option<String>,
    /// Column values; a NUMERIC is text, so that no digit is lost.
    #[serde(default)]
    pub data: Map<String, Value>,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Their JWT claims, set in the transaction for row-level security.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<Map<String, Value>>,
    /// When the gateway took it, RFC 3339.
    pub accepted_at: String,
    /// SHA-256 of the request's body, in lower-case hex.
    pub body_sha256: String,
    /// The table's schema.
    #[serde(default = "public")]
    pub schema: String,
}

/// Kinds of write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteOp {
    /// A new row.
    Create,
    /// Some columns of a row.
    Update,
    /// A row less.
    Delete,
}

/// What became of a write, as HTTP clients read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    /// Which write.
    pub operation_id: String,
    /// How far it is.
    pub status: Status,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<OperationError>,
    /// The table's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Primary key of the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity_id: Option<String>,
    /// Completed: an LSN at or behind its commit, for `X-Min-LSN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<Lsn>,
    /// Its transaction, for `X-Min-XID`, where it may not be visible to readers yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xid: Option<u64>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_at: Option<String>,
    /// RFC 3339, of either end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<String>,
}

/// How far a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Accepted, not applied yet.
    Pending,
    /// Committed.
    Completed,
    /// Refused by the database, or unreadable; it will not be tried again.
    Failed,
}

/// Why a write failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationError {
    /// SQLSTATE, or a word of ours such as `unreadable`.
    pub code: String,
    /// The violated constraint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<String>,
    /// For people.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Message;

    #[test]
    fn a_value_as_deep_as_json_may_be_is_readable() {
        // serde_json reads 127 within each other.
        let deep = format!("{}{}", "[".repeat(127), "]".repeat(127));
        let value: Value = serde_json::from_str(&deep).unwrap();
        let command = WriteCommand {
            operation_id: "1".to_owned(),
            table: "t".to_owned(),
            op: WriteOp::Create,
            entity_id: None,
            data: Map::from_iter([("document".to_owned(), value)]),
            principal: None,
            claims: None,
            accepted_at: String::new(),
            body_sha256: String::new(),
            schema: public(),
        };

        assert_eq!(
            WriteCommand::decode(&command.to_msgpack()).unwrap(),
            command
        );
    }
}
