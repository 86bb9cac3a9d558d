//! Our own replication session: released clients have no replication mode, and the published
//! replication crates cost 1.3-2 times the CPU.
//!
//! In: an endpoint, a slot. Out: the frames of the walsender. Invariant: blocking, one thread, no
//! allocation or system call per frame. Everything that is not replication uses tokio-postgres.

pub mod connection;
pub mod error;
pub mod gulp;
pub mod replication;

pub use connection::{Address, Endpoint, Session};
pub use error::{Error, ServerError};
pub use replication::{Frame, Read, ReplicationStream};
