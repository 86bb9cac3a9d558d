//! Streams the row changes of PostgreSQL tables into NATS JetStream, once and in order.
//!
//! The modules stand in the order data travels; the confirmed LSN is the only arrow backwards.

// The road.
pub mod encode;
pub mod event;
pub mod assembler;
pub mod ledger;
pub mod pgoutput;
pub mod publish;
pub mod ring;

// Beside it.
pub mod catalog;
pub mod config;
pub mod metrics;
pub mod schema_registry;
pub mod shared;
