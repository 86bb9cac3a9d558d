//! Nothing missing, nothing twice, in order: whoever dies, for however long.
//!
//! In: numbered rows while something breaks. Out: the same numbers, once each.
//! Must hold: every test ends with `assert_numbers` over the whole stream, most of them through
//! `assert_drains_to_numbers`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use stack::{Direction, Options, eventually};
use wire::Lsn;

use crate::rig::{DEADLINE, Rig};
use crate::stream;
use crate::writer::{Writer, assert_numbers};

#[track_caller]
fn wait_until_written(writer: &Writer, rows: u64) {
    eventually(DEADLINE, "the writer goes on", || writer.written() >= rows);
}

#[test]
fn rows_written_while_the_bridge_is_away_are_all_sent() {
    let rig = Rig::new();
    rig.create_numbers();
    rig.bridge(&[]).drain();

    rig.write_numbers(110);
    let bridge = rig.bridge(&[]);

    rig.assert_drains_to_numbers(&bridge, 110);
}

#[test]
fn killed_in_the_middle_of_drains_it_goes_on_where_the_stream_ends() {
    let rig = Rig::new();
    rig.create_numbers();
    rig.bridge(&[]).drain();
    rig.write_numbers(20_000);

    for stored in [1, 2_000, 2_001, 9_000, 15_000] {
        let bridge = rig.launch(&[]);
        rig.wait_until_stored(stored);
        bridge.kill();
    }
    let bridge = rig.bridge(&[]);

    rig.assert_drains_to_numbers(&bridge, 20_000);
}

#[test]
fn killed_again_and_again_under_load_it_loses_and_repeats_nothing() {
    let rig = Rig::new();
    rig.create_numbers();
    rig.bridge(&[]).drain();

    let writer = rig.start_writing();
    for _ in 0..8 {
        let stored = stream::last_sequence(rig.nats());
        let bridge = rig.launch(&[]);
        rig.wait_until_stored(stored + 500);
        bridge.kill();
    }
    let rows = writer.stop();
    let bridge = rig.bridge(&[]);

    rig.assert_drains_to_numbers(&bridge, rows);
}

#[test]
fn a_transaction_larger_than_the_ring_survives_a_kill_in_its_middle() {
    let rig = Rig::new();
    rig.create_numbers();
    rig.bridge(&[]).drain();
    rig.sql("INSERT INTO numbers SELECT n, 'row' FROM generate_series(1, 20000) n");

    for stored in [1, 7_000] {
        let bridge = rig.launch(&["--ring-events", "1000"]);
        rig.wait_until_stored(stored);
        bridge.kill();
    }
    let bridge = rig.bridge(&["--ring-events", "1000"]);

    rig.assert_drains_to_numbers(&bridge, 20_000);
}

#[test]
fn nats_stopped_under_load_loses_nothing() {
    let rig = Rig::new();
    rig.create_numbers();
    let bridge = rig.bridge(&["--ring-events", "2000"]);

    let writer = rig.start_writing();
    rig.wait_until_stored(1_000);
    rig.nats().stop();
    bridge.wait_until_not_ready("nats");
    wait_until_written(&writer, writer.written() + 5_000);
    rig.nats().start();
    bridge.wait_connected();
    wait_until_written(&writer, writer.written() + 1_000);
    let rows = writer.stop();

    rig.assert_drains_to_numbers(&bridge, rows);
}

#[test]
fn nats_killed_under_load_loses_nothing() {
    let rig = Rig::new();
    rig.create_numbers();
    let bridge = rig.bridge(&[]);

    let writer = rig.start_writing();
    for _ in 0..3 {
        rig.wait_until_more_are_stored(500);
        rig.nats().kill();
        bridge.wait_until_not_ready("nats");
        rig.nats().start();
    }
    let rows = writer.stop();

    rig.assert_drains_to_numbers(&bridge, rows);
}

#[test]
fn postgresql_restarted_and_killed_loses_nothing() {
    let rig = Rig::alone(Options::default().fsync(true));
    rig.create_numbers();
    let bridge = rig.bridge(&[]);

    rig.write_numbers(1_000);
    rig.postgres().restart();
    rig.write_numbers(1_000);
    rig.postgres().kill();
    bridge.wait_until_not_ready("postgres");
    rig.postgres().start();
    rig.write_numbers(1_000);
    let events = rig.events();

    assert!(bridge.metric("bridge_reconnects_total") >= 2.0);
    bridge.drain();
    assert_numbers(&events, 3_000);
}

#[test]
fn postgresql_can_be_stopped_while_events_wait_for_nats() {
    let rig = Rig::alone(Options::default());
    rig.create_numbers();
    let bridge = rig.bridge(&["--durability", "acked"]);

    rig.nats().stop();
    bridge.wait_until_not_ready("nats");
    rig.write_numbers(100);
    bridge.wait_until_ring_holds(100);
    // Panics when it takes longer than a minute.
    rig.postgres().stop();
    rig.postgres().start();
    rig.nats().start();
    bridge.wait_connected();

    rig.assert_drains_to_numbers(&bridge, 100);
}

#[test]
fn postgresql_can_be_stopped_while_a_full_ring_keeps_the_bridge_from_reading() {
    let rig = Rig::alone(Options::default());
    rig.create_numbers();
    let bridge = rig.bridge(&["--ring-events", "1000"]);

    rig.nats().stop();
    bridge.wait_until_not_ready("nats");
    // Far more than the sockets between hold.
    rig.sql(
        "DO $$ BEGIN FOR i IN 0..39 LOOP
            INSERT INTO numbers SELECT i * 500 + n, repeat('x', 1000) FROM generate_series(1, 500) n;
            COMMIT;
        END LOOP; END $$",
    );
    bridge.wait_until_ring_holds(500);
    // Panics when it takes longer than 20 s.
    rig.postgres().stop();
    rig.postgres().start();
    rig.nats().start();
    bridge.wait_connected();

    rig.assert_drains_to_numbers(&bridge, 20_000);
}

#[test]
fn a_cut_between_bridge_and_nats_loses_nothing() {
    let mut rig = Rig::new();
    let relay = rig.relay_nats();
    rig.create_numbers();
    let bridge = rig.bridge(&[]);

    let writer = rig.start_writing();
    for _ in 0..4 {
        rig.wait_until_more_are_stored(500);
        relay.cut();
        bridge.wait_until_not_ready("nats");
        relay.heal();
    }
    let rows = writer.stop();

    rig.assert_drains_to_numbers(&bridge, rows);
}

#[test]
fn acks_that_never_come_are_given_up_on_and_nothing_is_sent_twice() {
    let mut rig = Rig::new();
    let relay = rig.relay_nats();
    rig.create_numbers();
    let bridge = rig.bridge(&[]);

    let writer = rig.start_writing();
    rig.wait_until_stored(500);
    // Stored by the server, and the bridge does not hear of it.
    relay.stall(Direction::ToClient);
    bridge.wait_until_not_ready("nats");
    relay.heal();
    bridge.wait_connected();
    let rows = writer.stop();

    rig.assert_drains_to_numbers(&bridge, rows);
}

#[test]
fn messages_that_never_arrive_are_sent_again() {
    let mut rig = Rig::new();
    let relay = rig.relay_nats();
    rig.create_numbers();
    let bridge = rig.bridge(&[]);

    let writer = rig.start_writing();
    rig.wait_until_stored(500);
    relay.stall(Direction::ToServer);
    bridge.wait_until_not_ready("nats");
    // What was under way on the connection given up on arrives now, behind the new one's back.
    relay.heal();
    bridge.wait_connected();
    let rows = writer.stop();

    rig.assert_drains_to_numbers(&bridge, rows);
}

#[test]
fn a_cut_or_a_stall_between_postgresql_and_bridge_loses_nothing() {
    let mut rig = Rig::new();
    let relay = rig.relay_postgres();
    rig.create_numbers();
    let bridge = rig.bridge(&[]);

    let writer = rig.start_writing();
    for _ in 0..3 {
        rig.wait_until_more_are_stored(500);
        relay.cut();
        bridge.wait_until_not_ready("postgres");
        relay.heal();
    }
    rig.wait_until_more_are_stored(500);
    relay.stall(Direction::Both);
    wait_until_written(&writer, writer.written() + 2_000);
    relay.heal();
    let rows = writer.stop();

    rig.assert_drains_to_numbers(&bridge, rows);
}

#[test]
fn a_cut_in_the_middle_of_a_large_transaction_repeats_none_of_it() {
    let mut rig = Rig::new();
    let relay = rig.relay_postgres();
    rig.create_numbers();
    let bridge = rig.bridge(&["--ring-events", "1000"]);

    // Held up by NATS, so that most of it is still to be read when the connection goes.
    rig.nats().pause();
    rig.sql("INSERT INTO numbers SELECT n, 'row' FROM generate_series(1, 50000) n");
    bridge.wait_until_ring_holds(1);
    relay.cut();
    bridge.wait_until_not_ready("postgres");
    relay.heal();
    rig.nats().resume();

    rig.assert_drains_to_numbers(&bridge, 50_000);
}

#[test]
fn servers_that_are_not_there_yet_are_waited_for() {
    let rig = Rig::alone(Options::default());
    rig.create_numbers();
    rig.bridge(&[]).drain();
    rig.write_numbers(10);
    rig.postgres().stop();
    rig.nats().stop();

    let bridge = rig.launch(&[]);
    bridge.wait_for_line("PostgreSQL is not ready", DEADLINE);
    assert_eq!(bridge.request("GET", "/health").0, 200);
    assert_eq!(bridge.request("GET", "/ready").0, 503);
    rig.postgres().start();
    bridge.wait_for_line("PostgreSQL is ready", DEADLINE);
    rig.nats().start();
    bridge.wait_connected();

    rig.assert_drains_to_numbers(&bridge, 10);
}

#[test]
fn asked_to_stop_with_nothing_under_way_it_ends_in_order_whatever_is_missing() {
    let rig = Rig::alone(Options::default());
    rig.create_numbers();
    let streaming = rig.bridge(&[]);
    let standby = rig.launch(&[]);
    standby.wait_for_line("standing by", DEADLINE);
    rig.write_numbers(10);
    rig.events();

    standby.drain();
    rig.postgres().stop();
    streaming.wait_until_not_ready("postgres");
    streaming.drain();
    let starting = rig.launch(&[]);
    starting.wait_for_line("PostgreSQL is not ready", DEADLINE);
    starting.drain();
    rig.postgres().start();
    rig.write_numbers(10);
    let bridge = rig.bridge(&[]);

    rig.assert_drains_to_numbers(&bridge, 20);
}

#[test]
fn asked_to_stop_while_draining_it_ends_in_order_and_the_next_start_goes_on() {
    let mut rig = Rig::new();
    // 500 events per round trip of 50 ms: seconds for all of them, on any machine.
    let relay = rig.relay_nats();
    relay.delay(Duration::from_millis(50));
    rig.create_numbers();
    rig.bridge(&[]).drain();
    rig.write_numbers(30_000);

    let bridge = rig.launch(&["--ring-events", "500"]);
    rig.wait_until_stored(1_000);
    bridge.drain();
    relay.delay(Duration::ZERO);
    let stored = stream::last_sequence(rig.nats());
    let bridge = rig.bridge(&[]);

    assert!(stored < 30_000, "it was asked in the middle");
    rig.assert_drains_to_numbers(&bridge, 30_000);
}

#[test]
fn asked_to_stop_while_nats_is_away_it_gives_up_in_time_and_loses_nothing() {
    let rig = Rig::new();
    rig.create_numbers();
    let bridge = rig.bridge(&["--drain-timeout", "1s"]);

    rig.nats().stop();
    bridge.wait_until_not_ready("nats");
    rig.write_numbers(100);
    let status = bridge.terminate(Duration::from_secs(10));
    rig.nats().start();
    let again = rig.bridge(&[]);

    assert_eq!(status.code(), Some(3), "{}", bridge.log_tail());
    rig.assert_drains_to_numbers(&again, 100);
}

#[test]
fn a_second_bridge_on_the_slot_stands_by_and_takes_over() {
    let rig = Rig::new();
    rig.create_numbers();
    // Confirmed at once, so that the slot resumes in the middle of what the standby has not seen.
    let arguments = ["--durability", "acked"];
    let mut active = rig.bridge(&arguments);

    let writer = rig.start_writing();
    for _ in 0..4 {
        let standby = rig.launch(&arguments);
        standby.wait_for_line("standing by", DEADLINE);
        assert_eq!(standby.request("GET", "/ready").0, 503);
        assert_eq!(standby.status()["status"], "standby");
        // A little, so that what the standby sends first reaches to where the stream ends.
        rig.wait_until_more_are_stored(100);
        active.kill();
        standby.wait_connected();
        rig.wait_until_more_are_stored(500);
        active = standby;
    }
    let rows = writer.stop();

    rig.assert_drains_to_numbers(&active, rows);
}

#[test]
fn postgresql_never_hears_of_more_than_the_stream_holds() {
    let mut rig = Rig::new();
    let relay = rig.relay_nats();
    rig.create_numbers();
    let bridge = rig.bridge(&["--ring-events", "5000"]);
    let is_over = AtomicBool::new(false);
    let looks = AtomicUsize::new(0);

    let (rows, samples) = std::thread::scope(|scope| {
        // What was confirmed, then what the stream holds: a little later, so at least that.
        let sampler = scope.spawn(|| {
            let mut samples: Vec<(Lsn, u64)> = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                if let Some(confirmed) = rig.confirmed_flush_lsn() {
                    samples.push((confirmed, stream::last_sequence(rig.nats())));
                }
                looks.fetch_add(1, Ordering::Relaxed);
            }
            samples
        });
        let writer = rig.start_writing();
        for _ in 0..3 {
            rig.wait_until_more_are_stored(500);
            relay.cut();
            wait_until_written(&writer, writer.written() + 500);
            relay.heal();
            let before = looks.load(Ordering::Relaxed);
            eventually(DEADLINE, "the slot is looked at", || {
                looks.load(Ordering::Relaxed) >= before + 2
            });
        }
        bridge.kill();
        let rows = writer.stop();
        is_over.store(true, Ordering::Relaxed);
        (rows, sampler.join().expect("the sampler does not fail"))
    });
    let again = rig.bridge(&[]);
    let stored = rig.stored();
    again.drain();

    for (confirmed, last_sequence) in &samples {
        let early = stored.iter().find(|stored| {
            stored.event.commit_lsn < *confirmed && stored.sequence > *last_sequence
        });
        assert!(
            early.is_none(),
            "{confirmed} was confirmed when the stream held {last_sequence} messages"
        );
    }
    assert!(samples.len() >= 3, "it was looked at: {}", samples.len());
    let events: Vec<_> = stored.into_iter().map(|stored| stored.event).collect();
    assert_numbers(&events, rows);
}
