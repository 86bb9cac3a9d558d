//! From slabs of events to stored messages: batches, in order, each confirmed.

pub mod chain;
pub mod connection;
pub mod frame;
pub mod incarnation;
pub mod oversize;
pub mod protocol;
pub mod publisher;
pub mod tail;

pub use publisher::Publisher;
