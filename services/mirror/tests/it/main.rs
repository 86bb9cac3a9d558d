//! Mirrors as processes of their own, against a real nats-server, and read by a real SQLite.

mod bridge;
mod faults;
mod harness;
mod sample;
mod seeding;
mod shapes;
mod stream;
