//! Streams the row changes of PostgreSQL tables into NATS JetStream, once and in order.
//!
//! The modules stand in the order data travels; the confirmed LSN is the only arrow backwards.

// The road. What every row goes through is in a package of its own, compiled for speed.
pub use rows::{encode, event, pgoutput};

pub mod assembler;
pub mod feedback;
pub mod hold;
pub mod ledger;
pub mod postgres;
pub mod publish;
pub mod ring;
pub mod source;

// Beside it.
pub mod admin;
pub mod catalog;
pub mod checkpoint;
pub mod claims;
pub mod config;
pub mod counting;
pub mod durability;
pub mod exit;
pub mod identity;
pub mod metrics;
pub mod monitor;
pub mod preflight;
pub mod schema_registry;
pub mod shared;
pub mod slot;
pub mod snapshot;
pub mod streams;
pub mod supervisor;
pub mod tools;
