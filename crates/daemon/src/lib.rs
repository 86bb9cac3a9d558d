//! The shell every process of the project shares, and nothing of what any of them does.
//!
//! In: flags, environment values, signals. Out: logs on stderr, one shutdown handle, connect options, a small HTTP
//! listener. What must hold: every wait is bounded or can be ended by [`shutdown::Shutdown`], and no secret is printed.
#![warn(missing_docs)]

#[cfg(feature = "web")]
pub mod access;
pub mod backoff;
#[cfg(feature = "nats")]
pub mod bucket;
pub mod chained;
#[cfg(feature = "flags")]
pub mod flags;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "jwt")]
pub mod jwt;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "web")]
pub mod openapi;
#[cfg(any(feature = "http", feature = "nats"))]
mod percent;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "web")]
pub mod problem;
pub mod secret;
pub mod shutdown;
pub mod telemetry;
pub mod units;
