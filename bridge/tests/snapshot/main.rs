//! Snapshots and schemas against real servers.
//!
//! In: a stack of its own per test, the `bridge` binary. Out: what a consumer sees.
//! Invariant: every copy is built through the contract alone: chunks, meta, events.

mod copy;
mod handoff;
mod requests;
mod schemas;
mod storm;
mod tools;
mod world;
