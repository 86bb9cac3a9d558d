//! The public contract: what a consumer, a service or another language may rely on.
//!
//! In: values. Out: subjects, ids and message bytes (MessagePack, or JSON with the same keys).
//! Invariant: no I/O, clock or client library in here, and no byte of a message changes without its
//! golden file (`golden/`) changing in the same commit.

#![warn(missing_docs)]

pub mod lsn;
pub mod message_id;
pub mod names;
pub mod operation;
pub mod position;
pub mod subject;
pub mod token;

pub use lsn::Lsn;
pub use operation::Operation;
pub use position::Position;
pub use subject::{SubjectPattern, Subjects};
