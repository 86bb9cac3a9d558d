//! Keeps tables of PostgreSQL in a local SQLite file: the reference consumer of the bridge.
//!
//! In: schemas (KV `schemas`), snapshots (stream `INIT`), row changes (stream `CDC`). Out: the same
//! tables in SQLite, as of a known transaction of the source.
//! Invariant: rows and position change together, so a mirror killed anywhere goes on where it was.

// Rules: no I/O, no clock.
pub mod bridges;
pub mod change;
pub mod join;
pub mod schema_change;
pub mod shape;
pub mod table;
pub mod transaction;
pub mod value;

// The file and the streams.
pub mod source;
pub mod store;

// What the mirror does with them, in this order.
pub mod continuity;
pub mod desk;
pub mod follow;
pub mod keeper;
pub mod request;
pub mod seed;

pub mod config;
pub mod progress;

#[cfg(test)]
#[path = "../tests/it/sample.rs"]
mod sample;
