//! What the machine can do at most: each half of the road alone, and both without the work between.

pub mod client;
pub mod pipeline;
pub mod publish;
pub mod read;
