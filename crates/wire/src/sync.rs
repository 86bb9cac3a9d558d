//! Documents that browsers keep, and their versions.
//!
//! In: nothing; this is the definition. Out: the messages on `users.update` (client to backend) and
//! `users.broadcast` (backend to all clients).
//! Invariant: every document taken from `users.update` is broadcast as one version, numbered from 1
//! per object with no holes.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A user as a client has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserDocument {
    /// UUID, chosen by the client.
    pub id: String,
    /// Their address.
    pub email: String,
    /// Such as `active`.
    pub status: String,
    /// Such as `member`.
    pub role: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// A tombstone: the user is gone, the document stays until all clients know.
    #[serde(rename = "_deleted", default)]
    pub deleted: bool,
}

/// One version of one object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// Such as `user`.
    pub object_type: String,
    /// The document's id.
    pub object_id: String,
    /// From 1.
    pub version: u64,
    /// The document.
    pub json: Value,
    /// What made this version.
    pub action: Action,
    /// Who.
    pub actor: String,
    /// RFC 3339.
    pub created_at: String,
}

/// What made a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The first version.
    Create,
    /// A later one.
    Update,
    /// A tombstone.
    Delete,
}
