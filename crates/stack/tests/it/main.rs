//! The stack against itself: every handle that other crates' tests lean on.

mod demo;
mod install;
mod nats;
mod postgres;
mod program;
mod redis;
mod relay;
mod setup;

use std::time::Duration;

/// Generous: reached only when something is wrong.
const DEADLINE: Duration = Duration::from_secs(30);
