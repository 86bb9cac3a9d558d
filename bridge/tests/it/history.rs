//! A stream, a slot or a server that is no longer the one it was: noticed, told, never papered over.
//!
//! In: streams rolled back, purged, made anew or aged out; slots and clusters that changed; a bridge
//! that wakes up too late. Out: every row once, or a message on the gap subject.
//! Must hold: what is lost for good is told, and what can be read again is not lost.

use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Config;
use stack::{Options, copy, eventually};
use wire::checkpoint::Checkpoint;
use wire::gap::{Gap, Reason};
use wire::{Event, Message as _, Value};

use crate::rig::{DEADLINE, Rig};
use crate::stream;

/// The message on the gap subject, if there is one.
pub fn gap(rig: &Rig) -> Option<Gap> {
    stream::runtime().block_on(async {
        let context = stream::jetstream(rig.nats()).await;
        let stream = context.get_stream("CDC").await.expect("there is a stream");
        match stream.get_last_raw_message_by_subject("cdc.gap").await {
            Ok(message) => Some(Gap::decode(&message.payload).expect("it is a gap")),
            Err(_none) => None,
        }
    })
}

#[track_caller]
pub fn wait_for_gap(rig: &Rig) -> Gap {
    eventually(DEADLINE, "consumers are told of the gap", || gap(rig))
}

/// The numbers in the first column.
pub fn ids(events: &[Event]) -> Vec<i64> {
    let id = |event: &Event| match event.columns[0].value {
        Value::Int(id) => id,
        _ => panic!("{event:?}"),
    };
    events.iter().map(id).collect()
}

fn purge(rig: &Rig) {
    stream::runtime().block_on(async {
        let context = stream::jetstream(rig.nats()).await;
        let stream = context.get_stream("CDC").await.expect("there is a stream");
        stream.purge().await.expect("it can be purged");
    });
}

fn delete_checkpoints(rig: &Rig) {
    stream::runtime().block_on(async {
        let context = stream::jetstream(rig.nats()).await;
        let deleted = context.delete_stream("KV_bridge_state").await;
        deleted.expect("it can be deleted");
    });
}

/// Waits until PostgreSQL has been told all that was written so far.
#[track_caller]
fn wait_until_confirmed(rig: &Rig) {
    let written = rig.current_wal_lsn();
    eventually(DEADLINE, "it is confirmed", || {
        let confirmed = rig.confirmed_flush_lsn().expect("there is a slot");
        if confirmed >= written {
            Ok(())
        } else {
            Err(confirmed)
        }
    });
}

/// Makes stream CDC before the bridge does.
fn create_stream(rig: &Rig, config: Config) {
    stream::runtime().block_on(async {
        let context = stream::jetstream(rig.nats()).await;
        let config = Config {
            name: "CDC".into(),
            subjects: vec!["cdc.>".into()],
            allow_direct: true,
            ..config
        };
        let created = context.create_stream(config).await;
        created.expect("the stream can be made");
    });
}

#[test]
fn a_stream_rolled_back_is_refilled_from_the_slot_without_a_gap() {
    let rig = Rig::new();
    rig.create_numbers();
    let bridge = rig.bridge(&["--durability", "held"]);
    rig.write_numbers(100);
    rig.wait_until_stored(100);
    let (store, aside) = (rig.nats().store_dir(), rig.stack().dir().join("aside"));
    rig.nats().stop();
    copy(store, &aside);
    rig.nats().start();
    bridge.wait_connected();
    rig.write_numbers(200);
    rig.wait_until_stored(300);

    rig.nats().stop();
    std::fs::remove_dir_all(store).expect("it can be removed");
    copy(&aside, store);
    rig.nats().start();

    rig.assert_drains_to_numbers(&bridge, 300);
    assert_eq!(gap(&rig), None);
}

#[test]
fn what_a_rolled_back_stream_lost_for_good_is_told_also_after_a_restart() {
    let rig = Rig::new();
    rig.create_numbers();
    rig.bridge(&["--durability", "acked"]).drain();
    let (store, aside) = (rig.nats().store_dir(), rig.stack().dir().join("aside"));
    rig.nats().stop();
    copy(store, &aside);
    rig.nats().start();
    let bridge = rig.bridge(&["--durability", "acked"]);
    rig.write_numbers(100);
    rig.wait_until_stored(100);
    bridge.drain();

    // The stream goes back, the checkpoint does not.
    let cdc = Path::new("jetstream/APP/streams/CDC");
    rig.nats().stop();
    std::fs::remove_dir_all(store.join(cdc)).expect("it can be removed");
    copy(&aside.join(cdc), &store.join(cdc));
    rig.nats().start();
    let bridge = rig.bridge(&["--durability", "acked"]);
    rig.write_numbers(10);
    let told = wait_for_gap(&rig);
    let events = rig.events();
    bridge.drain();

    assert_eq!(told.reason, Reason::StreamReset);
    assert_eq!(ids(&events), (101..=110).collect::<Vec<_>>());
}

#[test]
fn a_purged_stream_stops_the_bridge_until_that_is_accepted() {
    let rig = Rig::new();
    rig.create_numbers();
    let bridge = rig.bridge(&[]);
    rig.write_numbers(10);
    rig.wait_until_stored(10);

    purge(&rig);
    bridge.wait_until_not_ready("purged");
    rig.write_numbers(10);
    assert_eq!(bridge.request("POST", "/stream/accept").0, 202);
    bridge.wait_connected();
    let told = wait_for_gap(&rig);
    let events = rig.events();
    bridge.drain();

    assert_eq!((told.epoch, told.reason), (1, Reason::StreamReset));
    assert_eq!(ids(&events), (11..=20).collect::<Vec<_>>());
}

#[test]
fn a_stream_made_anew_stops_the_bridge_until_that_is_accepted() {
    let rig = Rig::new();
    rig.create_numbers();
    let bridge = rig.bridge(&[]);
    rig.write_numbers(10);
    rig.wait_until_stored(10);

    stream::runtime().block_on(async {
        let context = stream::jetstream(rig.nats()).await;
        let deleted = context.delete_stream("CDC").await;
        deleted.expect("it can be deleted");
    });
    create_stream(&rig, Config::default());
    rig.write_numbers(10);
    bridge.wait_until_not_ready("made anew");
    assert_eq!(stream::last_sequence(rig.nats()), 0);
    assert_eq!(bridge.request("POST", "/stream/accept").0, 202);
    let told = wait_for_gap(&rig);
    let events = rig.events();
    bridge.drain();

    assert_eq!((told.epoch, told.reason), (1, Reason::StreamReset));
    assert_eq!(ids(&events), (11..=20).collect::<Vec<_>>());
}

#[test]
fn a_checkpoint_bucket_deleted_under_a_bridge_is_made_again_and_confirming_goes_on() {
    let rig = Rig::new();
    rig.create_numbers();
    let bridge = rig.bridge(&["--durability", "acked"]);
    rig.write_numbers(10);
    wait_until_confirmed(&rig);

    for _ in 0..2 {
        delete_checkpoints(&rig);
        rig.write_numbers(10);
        wait_until_confirmed(&rig);
    }
    let said = bridge.said();
    bridge.kill();
    let bridge = rig.bridge(&["--durability", "acked"]);
    rig.write_numbers(10);
    let events = rig.events();
    bridge.drain();

    assert_eq!(said.matches("is made again").count(), 2, "{said}");
    assert!(!said.contains("checkpoint not written"), "{said}");
    assert_eq!(ids(&events), (1..=40).collect::<Vec<_>>());
    assert_eq!(gap(&rig), None);
}

#[test]
fn a_checkpoint_deleted_while_nothing_happens_is_written_again() {
    let rig = Rig::alone(Options::default());
    rig.create_numbers();
    let bridge = rig.bridge(&["--durability", "acked"]);
    rig.write_numbers(10);
    wait_until_confirmed(&rig);

    delete_checkpoints(&rig);
    let checkpoint = eventually(DEADLINE, "the record is there again", || {
        stream::runtime().block_on(async {
            let context = stream::jetstream(rig.nats()).await;
            let bucket = context.get_key_value("bridge_state").await.ok()?;
            bucket.get(rig.slot.as_str()).await.ok()?
        })
    });
    bridge.drain();

    let checkpoint = Checkpoint::decode(&checkpoint).expect("it is a checkpoint");
    assert_eq!(checkpoint.stream_sequence, 10);
}

#[test]
fn restarted_after_its_last_event_has_aged_out_it_repeats_nothing() {
    let rig = Rig::new();
    rig.create_numbers();
    // Above the slack with which a stream counts as emptied by age.
    let max_age = Duration::from_secs(12);
    create_stream(
        &rig,
        Config {
            max_age,
            duplicate_window: Duration::from_secs(1),
            ..Config::default()
        },
    );
    let bridge = rig.bridge(&[]);
    rig.write_numbers(100);
    rig.wait_until_stored(100);
    bridge.drain();
    eventually(DEADLINE, "the stream is empty", || {
        stream::count(rig.nats()) == 0
    });

    // The second time the emptiness is older news than the first.
    rig.bridge(&[]).drain();
    let bridge = rig.bridge(&[]);
    rig.write_numbers(10);
    let events = rig.events();
    bridge.drain();

    assert_eq!(ids(&events), (101..=110).collect::<Vec<_>>());
    assert_eq!(gap(&rig), None);
}

#[test]
fn another_cluster_is_refused() {
    let mut rig = Rig::new();
    rig.create_numbers();
    rig.bridge(&[]).drain();
    let other = Rig::alone(Options::default().own_initdb(true));

    rig.pg_url.clone_from(&other.pg_url);
    let (code, said) = rig.refused(&[]);

    assert_eq!(code, 16, "{said}");
    assert!(said.contains("another cluster"), "{said}");
}

#[test]
fn another_cluster_under_a_new_slot_is_not_taken_for_a_repeat() {
    let mut rig = Rig::new();
    rig.create_numbers();
    for _ in 0..8 {
        rig.sql("SELECT pg_switch_wal()");
        rig.sql("CREATE TABLE IF NOT EXISTS filler ()");
        rig.sql("DROP TABLE filler");
    }
    let bridge = rig.bridge(&[]);
    rig.write_numbers(10);
    rig.wait_until_stored(10);
    bridge.drain();
    let other = Rig::alone(Options::default().own_initdb(true));
    other.create_numbers();

    rig.pg_url.clone_from(&other.pg_url);
    let own_slot = std::mem::replace(&mut rig.slot, "of_another".to_owned());
    let bridge = rig.launch(&[]);
    eventually(DEADLINE, "the bridge listens", || {
        !bridge.status().is_null()
    });
    bridge.wait_until_not_ready("another PostgreSQL");
    other.write_numbers(10);

    assert_eq!(stream::last_sequence(rig.nats()), 10);
    bridge.kill();
    rig.slot = own_slot;
}

#[test]
fn a_paused_bridge_that_wakes_up_does_not_disturb_the_one_that_took_over() {
    let rig = Rig::new();
    rig.create_numbers();
    let first = rig.bridge(&[]);
    let second = rig.launch(&[]);
    let writer = rig.start_writing();
    rig.wait_until_stored(500);

    first.pause();
    rig.terminate_walsender();
    second.wait_connected();
    rig.wait_until_more_are_stored(500);
    first.resume();
    eventually(DEADLINE, "the first one stands by", || {
        first.status()["status"] == "standby"
    });
    rig.wait_until_more_are_stored(500);
    let rows = writer.stop();

    rig.assert_drains_to_numbers(&second, rows);
    first.wait_connected();
    first.drain();
}

#[test]
fn a_held_bridge_does_not_hold_up_a_fast_shutdown_of_postgresql() {
    let rig = Rig::alone(Options::default());
    rig.create_numbers();
    let bridge = rig.bridge(&["--durability", "held"]);
    rig.write_numbers(100);
    rig.wait_until_stored(100);

    let started = Instant::now();
    rig.postgres().stop();
    let took = started.elapsed();
    rig.postgres().start();
    rig.write_numbers(100);

    // It would take the 130 s of the hold.
    assert!(took < Duration::from_mins(1), "{took:?}");
    rig.assert_drains_to_numbers(&bridge, 200);
}

#[test]
fn asked_to_stop_with_a_full_ring_it_leaves_no_hole() {
    let rig = Rig::new();
    rig.create_numbers();
    rig.bridge(&[]).drain();
    for first in (1..50_000).step_by(5_000) {
        rig.sql(&format!(
            "INSERT INTO numbers SELECT n, 'row' FROM generate_series({first}, {}) n",
            first + 4_999
        ));
    }

    for stored in [500, 10_000, 20_000, 30_000] {
        let bridge = rig.launch(&["--ring-events", "1000", "--durability", "acked"]);
        // The one before may have stored them already; a signal before it listens to any just ends it.
        bridge.wait_for_line("PostgreSQL is ready", DEADLINE);
        rig.wait_until_stored(stored);
        bridge.drain();
    }
    let bridge = rig.bridge(&[]);

    rig.assert_drains_to_numbers(&bridge, 50_000);
}

#[test]
fn a_transaction_that_waits_for_the_ring_is_not_confirmed() {
    let rig = Rig::new();
    rig.create_numbers();
    let bridge = rig.bridge(&["--ring-events", "1000", "--durability", "acked"]);

    rig.nats().pause();
    rig.sql("INSERT INTO numbers SELECT n, 'row' FROM generate_series(1, 1500) n");
    let committed = rig.current_wal_lsn();
    bridge.wait_until_ring_holds(1_000);
    let full_since = rig.value("SELECT clock_timestamp()");
    eventually(DEADLINE, "feedback goes on", || {
        let sql = format!(
            "SELECT reply_time - '{full_since}' > interval '2 s' FROM pg_stat_replication
             JOIN pg_replication_slots ON pid = active_pid WHERE slot_name = '{}'",
            rig.slot
        );
        let row = rig
            .sql(&sql)
            .pop()
            .ok_or_else(|| "no walsender".to_owned())?;
        match row[0].as_deref() {
            Some("t") => Ok(()),
            _ => Err(format!("{row:?}")),
        }
    });
    let confirmed = rig.confirmed_flush_lsn().expect("there is a slot");
    assert!(confirmed < committed, "{confirmed} was confirmed too early");

    bridge.kill();
    rig.nats().resume();
    let bridge = rig.bridge(&[]);

    rig.assert_drains_to_numbers(&bridge, 1_500);
}
