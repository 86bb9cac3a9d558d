//! From slabs of events to stored messages: batches, in order, each confirmed.

pub mod chain;
pub mod connection;
pub mod frame;
pub mod framing;
pub mod incarnation;
pub mod mode;
pub mod oversize;
pub mod protocol;
pub mod publisher;
pub mod tail;

#[cfg(test)]
mod orders_tests;

pub use publisher::Publisher;
