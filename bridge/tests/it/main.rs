//! The bridge's promises, tested on real servers.
//!
//! In: SQL and broken servers. Out: the stream, event by event.
//! Must hold: every stream that is read is checked as a whole (see `stream::checked`), whatever the
//! test is about.

// What the tests stand on.
mod columns;
mod rig;
mod stream;
mod writer;

// The promises.
mod cases;
mod check;
mod cli;
mod counting;
mod crash;
mod gaps;
mod history;
mod idle;
mod timelines;
