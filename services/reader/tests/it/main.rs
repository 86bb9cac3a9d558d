//! The reader's promises, against real servers. The reader is the real binary; changes and schemas are
//! published as the bridge publishes them.

mod harness;

mod access;
mod cache;
mod live;
mod rows;
mod standby;
mod status;
