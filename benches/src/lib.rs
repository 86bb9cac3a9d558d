//! What the micro benches and the end-to-end bench share: sample rows as PostgreSQL sends them, and
//! the steps of the hot path, one by one.

pub mod sample;
pub mod steps;
