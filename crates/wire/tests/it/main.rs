//! The contract seen from outside: golden files, and decoding of anything.

mod decoding;
mod golden;
mod samples;
