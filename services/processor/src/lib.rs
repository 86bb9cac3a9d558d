//! Applies the writes in JetStream to PostgreSQL, each exactly once and in order.
//!
//! In: stream `WRITES`. Out: rows, and what became of each write in `write_operations`.
//! Invariant: idempotency check, row and outcome are one transaction; a message is acked after it,
//! never before.
//!
//! A write travels through the files in this order: `queue` -> `pull` -> `gather` -> `command` -> `run` -> `statement` ->
//! `session`, led by `worker`; `sqlstate` decides what an error means, `strikes` which message takes
//! everybody down.
#![warn(missing_docs)]

pub mod command;
pub mod run;
pub mod sqlstate;
pub mod statement;
pub mod strikes;
pub mod table;

pub mod gather;
pub mod pull;
pub mod queue;
pub mod session;
pub mod worker;

pub mod admin;
pub mod config;
pub mod dlq;
pub mod maintenance;
pub mod metrics;
pub mod supervisor;
