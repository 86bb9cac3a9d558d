//! Every kind of row change PostgreSQL can send, and what becomes of it.
//!
//! In: SQL. Out: events. Must hold: values are compared with what SQL itself shows.

mod identity;
mod names;
mod operations;
mod oversize;
mod publications;
mod shapes;
mod values;
