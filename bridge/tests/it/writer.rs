//! Writes numbered rows, in many small transactions, while a test breaks things.
//!
//! In: a rig. Out: rows `1, 2, 3, ...` of table `numbers`, committed in that order.
//! Must hold: it goes on until it is told to stop, whatever happens to NATS and the bridge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use wire::{Event, Value};

use crate::rig::{Bridge, Rig};

/// Rows of one transaction.
pub const PER_TRANSACTION: u64 = 10;

/// A thread that writes. Stopping it says how many rows there are.
pub struct Writer {
    is_stopped: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    pub fn create_numbers(&self) {
        self.sql("CREATE TABLE numbers (id bigint PRIMARY KEY, note text)");
    }

    /// Appends `rows` to `numbers`, ten to a transaction, in one round trip.
    #[track_caller]
    pub fn write_numbers(&self, rows: u64) {
        let first = self.count_numbers() + 1;
        let last = first + rows - 1;
        self.sql(&format!(
            "DO $$ BEGIN
                FOR i IN {first}..{last} BY {PER_TRANSACTION} LOOP
                    INSERT INTO numbers
                    SELECT n, 'row ' || n FROM generate_series(i, least(i + {PER_TRANSACTION} - 1, {last})) n;
                    COMMIT;
                END LOOP;
            END $$"
        ));
    }

    pub fn count_numbers(&self) -> u64 {
        self.value("SELECT count(*) FROM numbers")
            .parse()
            .expect("a count")
    }

    /// The bridge drains in order, and of what was committed before this call the stream holds each of
    /// the rows 1 to `rows` once, in order, and nothing else.
    #[track_caller]
    pub fn assert_drains_to_numbers(&self, bridge: &Bridge, rows: u64) {
        let events = self.events();
        bridge.drain();
        assert_numbers(&events, rows);
    }

    /// Goes on until the `Writer` is stopped or dropped.
    pub fn start_writing(&self) -> Writer {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(self.count_numbers()));
        let (stop, count) = (is_stopped.clone(), written.clone());
        let url = self
            .postgres()
            .url_as("postgres", "postgres", &self.database);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be made");
            runtime.block_on(async {
                let connected = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
                let (client, connection) = connected.expect("PostgreSQL answers");
                let connection = tokio::spawn(connection);
                while !stop.load(Ordering::Relaxed) {
                    let last = count.load(Ordering::Relaxed);
                    let sql = format!(
                        "INSERT INTO numbers SELECT n, 'row ' || n FROM generate_series({}, {}) n",
                        last + 1,
                        last + PER_TRANSACTION
                    );
                    client.batch_execute(&sql).await.expect("the row is new");
                    count.store(last + PER_TRANSACTION, Ordering::Relaxed);
                }
                drop(client);
                let _ = connection.await;
            });
        });
        Writer {
            is_stopped,
            written,
            thread: Some(thread),
        }
    }
}

impl Writer {
    /// Rows committed so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Stops between two transactions; returns the number of rows there are.
    #[track_caller]
    pub fn stop(mut self) -> u64 {
        self.is_stopped.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is stopped once");
        assert!(thread.join().is_ok(), "the writer failed");
        self.written()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Each of the rows 1 to `rows` was inserted once, in order, and nothing else happened.
#[track_caller]
pub fn assert_numbers(events: &[Event], rows: u64) {
    for (event, expected) in events.iter().zip(1..) {
        assert_eq!(event.operation, wire::Operation::Insert);
        assert_eq!(event.columns[0].value, Value::Int(expected), "{event:?}");
    }
    assert_eq!(events.len() as u64, rows);
}
