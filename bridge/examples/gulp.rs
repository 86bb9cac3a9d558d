//! What the nap is worth: drains one backlog again and again, with the nap and without.
//!
//! `cargo run --release -p bridge --example gulp [rows]`; `STACK_PG_BIN` chooses the server.

use std::time::{Duration, Instant};

use bridge::pgoutput::{Message, decode};
use bridge::postgres::{
    Endpoint, Frame, Gulp, Host, Read, START_OPTIONS, Session, WAL_SENDER_TIMEOUT,
};
use stack::{Options, Stack};

const ROUNDS: usize = 3;

struct Drained {
    wall: Duration,
    cpu: Duration,
    reads: u64,
    bytes: usize,
}

fn main() {
    let rows: u32 = std::env::args()
        .nth(1)
        .map_or(1_000_000, |rows| rows.parse().expect("a number of rows"));
    let stack = Stack::up(Options::default().without_nats()).unwrap();
    let postgres = stack.postgres();
    let tcp = Endpoint {
        host: Host::from(postgres.host()),
        port: postgres.port(),
        user: postgres.user().to_owned(),
        password: Some(postgres.password().to_owned()),
        database: "postgres".to_owned(),
        application_name: "gulp".to_owned(),
        connect_timeout: Duration::from_secs(10),
    };
    let unix = Endpoint {
        host: Host::Unix(postgres.socket_dir().to_owned()),
        ..tcp.clone()
    };
    postgres.sql(
        "CREATE TABLE items (id int PRIMARY KEY, name text, email text, at timestamptz);
         CREATE PUBLICATION cdc_pub FOR TABLE items",
    );
    let mut session = Session::connect(&tcp, WAL_SENDER_TIMEOUT).unwrap();
    session.create_slot("gulp", false).unwrap();
    drop(session);
    postgres.sql(&format!(
        "DO $$ BEGIN FOR i IN 0 .. {rows} / 10 - 1 LOOP
           INSERT INTO items SELECT i * 10 + n, 'name-' || n, n || '@example.com', now()
             FROM generate_series(0, 9) n;
           COMMIT;
         END LOOP; END $$"
    ));

    println!("PostgreSQL {}, {rows} rows by 10", postgres.version());
    for _ in 0..ROUNDS {
        for (name, endpoint, nap) in [
            ("tcp, nap", &tcp, true),
            ("tcp, no nap", &tcp, false),
            ("unix, nap", &unix, true),
            ("unix, no nap", &unix, false),
        ] {
            let drained = drain(endpoint, rows, nap);
            println!(
                "{name:12}  {:7.0} rows/s  {:.3} us CPU/row  {:6.1} rows/read  {:.0} bytes/row",
                f64::from(rows) / drained.wall.as_secs_f64(),
                drained.cpu.as_secs_f64() * 1e6 / f64::from(rows),
                f64::from(rows) / drained.reads as f64,
                drained.bytes as f64 / f64::from(rows),
            );
        }
    }
}

/// Reads and decodes until all rows are there; confirms nothing, so the next round has them too.
fn drain(endpoint: &Endpoint, rows: u32, nap: bool) -> Drained {
    let session = Session::connect(endpoint, WAL_SENDER_TIMEOUT).unwrap();
    let mut stream = session
        .start_replication("gulp", &["cdc_pub".to_owned()], &START_OPTIONS)
        .unwrap();
    let (started, cpu) = (Instant::now(), thread_cpu());
    let mut gulp = Gulp::default();
    let (mut inserts, mut reads, mut bytes, mut cells) = (0, 0, 0, 0);
    while inserts < rows {
        let before = Instant::now();
        let count = match stream.read(Duration::from_millis(100)).unwrap() {
            Read::Bytes(count) => count,
            Read::TimedOut => 0,
        };
        let pause = gulp.nap_after(before.elapsed(), count);
        reads += 1;
        bytes += count;
        while let Some(frame) = stream.next_frame().unwrap() {
            if let Frame::XLogData { payload, .. } = frame
                && let Message::Insert { new, .. } = decode(payload).unwrap()
            {
                inserts += 1;
                cells += new.cells().count();
            }
        }
        if let Some(pause) = pause.filter(|_| nap) {
            std::thread::sleep(pause);
        }
    }
    assert_eq!(cells, rows as usize * 4);
    let drained = Drained {
        wall: started.elapsed(),
        cpu: thread_cpu().saturating_sub(cpu),
        reads,
        bytes,
    };
    stream.close(Duration::from_secs(10)).unwrap();
    drained
}

/// CPU time of this thread, user and system.
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanos = text.split(' ').next().unwrap().parse().unwrap();
    Duration::from_nanos(nanos)
}
