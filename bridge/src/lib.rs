//! The road.

pub mod pgoutput;
