//! What the benches share: sample rows as PostgreSQL sends them, the steps of the hot path, one by one, and what
//! processes have used.

pub mod sample;
pub mod steps;
pub mod usage;
