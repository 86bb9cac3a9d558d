//! The road.

pub mod pgoutput;
pub mod postgres;
