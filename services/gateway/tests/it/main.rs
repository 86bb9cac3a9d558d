//! The gateway as a process, against a real nats-server. There is no PostgreSQL here: it must not be needed.

mod accept;
mod access;
mod harness;
mod hostile;
mod outage;
mod outcome;
mod tables;
