//! The replication session with PostgreSQL.
//!
//! In: an `Endpoint`, a slot and publications. Out: the frames of the replication stream, and
//! errors that say whether waiting helps and what to do otherwise.
//! Invariant: reads block a plain thread; nothing here reconnects, confirms or decides. The
//! caller does, with the LSNs it passes to `send_status`.
//!
//! SQL on ordinary connections goes through tokio-postgres; it shares `daemon::postgres::PINNED_GUCS`.

mod authentication;
mod connection;
mod endpoint;
mod error;
pub mod gulp;
mod read_buffer;
mod replication;
mod stream;
mod transport;

pub use connection::Session;
pub use endpoint::{Endpoint, Host, WAL_SENDER_TIMEOUT};
pub use error::{Error, ServerError};
pub use gulp::Gulp;
pub use replication::{
    CreatedSlot, START_OPTIONS, SystemIdentity, TimelineEnd, quote_ident, quote_literal,
};
pub use stream::{Frame, Read, ReplicationStream};
