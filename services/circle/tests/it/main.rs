//! HTTP request -> gateway -> JetStream -> processor -> PostgreSQL -> bridge -> CDC -> reader -> HTTP answer.
//!
//! In: real servers and the real binaries. Out: what a client sees, and what the rows say.
//! Must hold: nothing here reaches into a process; all that is known came over HTTP, SQL or NATS.

mod http;
mod world;

mod crashes;
mod hostile;
mod outages;
mod replicas;
mod travel;
