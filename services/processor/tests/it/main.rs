//! The processor's promises, against real servers. The processor is the real binary.

mod harness;

mod crashes;
mod dead_letters;
mod errors;
mod order;
mod outages;
mod tables;
mod upkeep;
mod writes;
