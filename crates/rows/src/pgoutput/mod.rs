//! The payload of XLogData as the output plugin `pgoutput` writes it, protocol version 1.
//!
//! In: the bytes of one message. Out: a `Message` that borrows from them, and the `Relations` seen.
//! Invariant: no input panics; what is not a whole, well-formed message is an `Error`.

mod cursor;
pub mod decode;
mod message;
mod relations;

pub use decode::decode;
pub use message::{
    Begin, Cell, Cells, Commit, LogicalMessage, Message, OldTuple, RelationIds, Truncate,
    TupleData, TypeName,
};
pub use relations::{Change, Column, Relation, Relations, ReplicaIdentity};
