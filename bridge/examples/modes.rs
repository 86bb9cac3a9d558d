//! Tries the publish modes on the nats-servers the test suite may not rely on, and measures them.
//!
//! In: nothing, or `check` or `rate`. Out: one line per case; exit status 1 if one fails.
//! Must hold: what is read back from the stream is compared event by event.
//!
//! Not a test: newer servers come from PyPI. `cargo run --release -p bridge --example modes`.

#[path = "../tests/modes/rig.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod rig;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use rig::{Rig, numbers};
use stack::{NatsVersion, Options, eventually};

const SERVERS: [(&str, NatsVersion); 3] = [
    ("2.9", NatsVersion::Any),
    ("2.14", NatsVersion::V2_14),
    ("2.15", NatsVersion::V2_15),
];
const MODES: [&str; 4] = ["auto", "chain", "fast", "msg-id"];
/// What a bridge takes its slot's confirmed LSN for; kept short so that a restart repeats little.
const ACKED: [&str; 2] = ["--durability", "acked"];

fn main() -> ExitCode {
    let what = std::env::args().nth(1).unwrap_or_default();
    let mut is_well = true;
    for (name, version) in SERVERS {
        if what != "rate" {
            for mode in MODES {
                is_well &= case(name, &format!("killed, {mode}"), || killed(version, mode));
                is_well &= case(name, &format!("paused, {mode}"), || paused(version, mode));
            }
            is_well &= case(name, "foreign messages", || foreign(version));
            is_well &= case(name, "two bridges, killed", || shared(version));
            is_well &= case(name, "two bridges, read again", || read_again(version));
        }
        if what != "check" {
            for mode in ["chain", "fast", "msg-id"] {
                is_well &= case(name, &format!("rate, {mode}"), || {
                    rate(version, &["--publish-mode", mode], false)
                });
            }
            is_well &= case(name, "rate, shared", || rate(version, &[], true));
        }
    }
    if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn case(server: &str, name: &str, run: impl FnOnce() -> String) -> bool {
    let outcome = catch_unwind(AssertUnwindSafe(run));
    match &outcome {
        Ok(said) => println!("{server} {name}: {said}"),
        Err(_) => println!("{server} {name}: FAILED"),
    }
    outcome.is_ok()
}

fn mode_of(bridge: &rig::Bridge) -> String {
    bridge.status()["publish_mode"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Killed in the middle of drains.
fn killed(version: NatsVersion, mode: &str) -> String {
    let rig = Rig::new(Options::default().nats(version));
    let arguments = [&["--table", "a", "--publish-mode", mode], &ACKED[..]].concat();
    rig.bridge("s1", &arguments).drain();
    rig.insert("a", 1..=60_000);
    for stored in [1, 5_000, 5_001, 20_000, 40_000] {
        let bridge = rig.launch("s1", &arguments);
        rig.wait_stored("a", stored);
        bridge.kill();
    }
    let bridge = rig.bridge("s1", &arguments);
    rig.wait_last("a", 60_000);
    let mode = mode_of(&bridge);
    bridge.drain();
    assert!(numbers(&rig.read("cdc.a.*")).into_iter().eq(1..=60_000));
    format!("{mode}, exact")
}

/// Paused in the middle of a drain; another takes over; the first wakes up.
fn paused(version: NatsVersion, mode: &str) -> String {
    let rig = Rig::new(Options::default().nats(version));
    let arguments = [&["--table", "a", "--publish-mode", mode], &ACKED[..]].concat();
    rig.bridge("s1", &arguments).drain();
    rig.insert("a", 1..=120_000);
    let first = rig.launch("s1", &arguments);
    rig.wait_stored("a", 10_000);
    first.pause();
    rig.stack
        .postgres()
        .sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active");
    let second = rig.launch("s1", &arguments);
    rig.wait_stored("a", 30_000);
    first.resume();
    rig.wait_last("a", 120_000);
    let mode = mode_of(&second);
    first.kill();
    second.drain();
    let found = numbers(&rig.read("cdc.a.*"));
    if mode == "msg-id" {
        // Two writers at once repeat nothing, but nothing keeps them from interleaving.
        let mut sorted = found.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(1..=120_000));
    } else {
        assert!(found.into_iter().eq(1..=120_000));
    }
    format!("{mode}, exact")
}

/// Somebody else publishes into the stream, again and again.
fn foreign(version: NatsVersion) -> String {
    let rig = Rig::new(Options::default().nats(version));
    let bridge = rig.bridge("s1", &["--table", "a"]);
    rig.insert("a", 1..=10);
    rig.wait_stored("a", 10);
    let mode = mode_of(&bridge);
    let writer = rig.keep_writing("a", 11..=60_000);
    let mut foreign = 0;
    while !writer.is_finished() {
        rig.publish("cdc.zzz.insert");
        foreign += 1;
    }
    writer.join().expect("PostgreSQL takes the rows");
    rig.wait_last("a", 60_000);
    let after = mode_of(&bridge);
    bridge.drain();
    let found = numbers(&rig.read("cdc.a.*"));
    let lost = 60_000 - found.len();
    if mode == "chain" {
        assert_eq!(lost > 0, rig.holds("cdc.gap"), "lost {lost}");
    } else {
        assert!(found.into_iter().eq(1..=60_000), "lost {lost}");
    }
    format!("{mode}, then {after}: {foreign} foreign messages, {lost} events lost")
}

/// Two bridges on one stream, both killed in the middle.
fn shared(version: NatsVersion) -> String {
    let rig = Rig::new(Options::default().nats(version));
    let a = [&["--table", "a"], &ACKED[..]].concat();
    let b = [&["--table", "b"], &ACKED[..]].concat();
    rig.bridge("s1", &a).drain();
    rig.bridge("s2", &b).drain();
    let rows = [
        rig.keep_writing("a", 1..=60_000),
        rig.keep_writing("b", 1..=60_000),
    ];
    for stored in [1, 10_000, 40_000] {
        let bridges = [rig.launch("s1", &a), rig.launch("s2", &b)];
        rig.wait_stored("a", stored);
        rig.wait_stored("b", stored);
        for bridge in bridges {
            bridge.kill();
        }
    }
    for writer in rows {
        writer.join().expect("PostgreSQL takes the rows");
    }
    let (first, second) = (rig.bridge("s1", &a), rig.bridge("s2", &b));
    rig.wait_last("a", 60_000);
    rig.wait_last("b", 60_000);
    let mode = mode_of(&first);
    first.drain();
    second.drain();
    for filter in ["cdc.a.*", "cdc.b.*"] {
        assert!(
            numbers(&rig.read(filter)).into_iter().eq(1..=60_000),
            "{filter}"
        );
    }
    format!("{mode}, exact")
}

/// Two bridges on one stream; what is in the ring of one comes a second time, behind a batch left open.
fn read_again(version: NatsVersion) -> String {
    const ROWS: u64 = 60_000;
    let rig = Rig::new(Options::default().nats(version));
    let arguments = [&["--table", "a", "--ring-events", "3000"], &ACKED[..]].concat();
    let other = rig.bridge("s2", &["--table", "b"]);
    let bridge = rig.bridge("s1", &arguments);
    rig.stack.postgres().sql(&format!(
        "INSERT INTO a SELECT n FROM generate_series(1, {ROWS}) n"
    ));
    for (round, stored) in (1..).zip([1, 10_000, 20_000, 40_000]) {
        rig.wait_stored("a", stored);
        // Full, so that what comes again comes in as room is made for it.
        rig.stack.nats().pause();
        eventually(rig::DEADLINE, "the ring is full", || {
            bridge.status()["ring_events"].as_u64() >= Some(1_500)
        });
        rig.stack
            .postgres()
            .sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 's1'");
        eventually(rig::DEADLINE, "it is read again", || {
            bridge.status()["reconnect_count"].as_u64() >= Some(round)
                && bridge.status()["is_connected"] == true
        });
        rig.stack.nats().resume();
    }
    rig.wait_last("a", ROWS);
    let mode = mode_of(&bridge);
    bridge.drain();
    other.drain();
    assert!(numbers(&rig.read("cdc.a.*")).into_iter().eq(1..=ROWS));
    format!("{mode}, exact")
}

/// Drains 300,000 rows that wait in the slot; the rate is that of the messages' own times.
fn rate(version: NatsVersion, arguments: &[&str], is_shared: bool) -> String {
    const ROWS: u64 = 300_000;
    let rig = Rig::new(Options::default().nats(version));
    let arguments = [&["--table", "a"], arguments].concat();
    rig.bridge("s1", &arguments).drain();
    let other = is_shared.then(|| rig.bridge("s2", &["--table", "b"]));
    rig.insert("a", 1..=ROWS);
    let before = nats_cpu(&rig);
    let bridge = rig.launch("s1", &arguments);
    rig.wait_last("a", ROWS);
    let cpu = nats_cpu(&rig).saturating_sub(before);
    let mode = mode_of(&bridge);
    bridge.drain();
    drop(other);
    let took = published_within(&rig);
    format!(
        "{mode}, {:.0} events/s, nats-server {:.1} us per event",
        ROWS as f64 / took.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / ROWS as f64
    )
}

/// Time between the first and the last message of the stream, by the server's clock.
fn published_within(rig: &Rig) -> Duration {
    rig.runtime.block_on(async {
        let jetstream = rig.jetstream().await;
        let stream = jetstream
            .get_stream("CDC")
            .await
            .expect("there is a stream");
        let state = &stream.cached_info().state;
        let first = stream.get_raw_message(state.first_sequence).await;
        let last = stream.get_raw_message(state.last_sequence).await;
        let took = last.expect("it is there").time - first.expect("it is there").time;
        took.try_into().expect("time goes on")
    })
}

/// CPU time of the nats-server so far.
fn nats_cpu(rig: &Rig) -> Duration {
    let pid = rig.stack.nats().pid().expect("it runs");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields = stat.rsplit(')').next().unwrap_or_default();
    // proc(5): utime and stime, in clock ticks of 10 ms.
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks
        .map(|ticks| Duration::from_millis(10) * ticks.parse::<u32>().expect("a number"))
        .sum()
}
