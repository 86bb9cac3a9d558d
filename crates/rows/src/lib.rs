//! A row on its way from PostgreSQL's bytes to the bytes of a message.
//!
//! In: the payload of XLogData, or lines of COPY. Out: MessagePack of the public contract. Invariant: no I/O, clock or
//! client library in here, no allocation for a row, and no input that panics.
//!
//! The bridge's own modules, apart from it for one reason: a release is compiled for speed here and for size everywhere
//! else, which Cargo can tell apart by package only.

pub mod pgoutput;

pub mod event;

pub mod encode;

pub mod snapshot;
