//! The public contract: what a consumer, a service or another language may rely on.
//!
//! In: values. Out: subjects, ids and message bytes (MessagePack, or JSON with the same keys).
//! Invariant: no I/O, clock or client library in here, and no byte of a message changes without its
//! golden file (`golden/`) changing in the same commit.

#![warn(missing_docs)]

// Names: where an event stands, and where a message goes.
pub mod lsn;
pub mod message_id;
pub mod names;
pub mod operation;
pub mod position;
pub mod subject;
pub mod token;

// Messages.
pub mod checkpoint;
pub mod codec;
pub mod command;
pub mod event;
pub mod gap;
pub mod schema;
pub mod snapshot;
pub mod snapshot_request;
pub mod sync;
pub mod value;

pub mod doc;

pub use codec::{DecodeError, Message};
pub use event::Event;
pub use lsn::Lsn;
pub use operation::Operation;
pub use position::Position;
pub use subject::{SubjectPattern, Subjects};
pub use value::{Column, Row, Value};
