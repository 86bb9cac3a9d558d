//! Changes that no event will carry: a slot that is lost, or moved ahead.
//!
//! In: slots dropped, invalidated and skipped, a bridge killed in between. Out: one message on the gap
//! subject with a higher epoch, in its place, and snapshots where they were asked for.
//! Must hold: the bridge goes on behind lost changes only when told to, and then never silently.

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use stack::{Options, copy, eventually};
use wire::gap::Reason;
use wire::{Event, Message as _};

use crate::history::{gap, ids, wait_for_gap};
use crate::rig::{DEADLINE, Rig};
use crate::stream;

/// A rig whose stream holds the numbers 1 to 10; the bridge has gone.
fn with_ten_numbers(options: Options) -> Rig {
    let rig = Rig::alone(options);
    rig.create_numbers();
    let bridge = rig.bridge(&[]);
    rig.write_numbers(10);
    rig.wait_until_stored(10);
    bridge.drain();
    rig
}

/// The numbers, without those between the gap's ends.
fn assert_gap_between(events: &[Event], last_before: usize, told: &wire::gap::Gap) {
    let (before, behind) = (&events[last_before - 1], &events[last_before]);
    assert!(before.commit_lsn <= told.from, "{told:?}");
    assert!(told.to <= behind.commit_lsn, "{told:?}");
}

/// Rows in the last snapshot of a table, once there is one.
#[track_caller]
fn wait_for_snapshot(rig: &Rig, table: &str) -> u64 {
    eventually(DEADLINE, "a snapshot is made", || {
        stream::runtime().block_on(async {
            let context = stream::jetstream(rig.nats()).await;
            let stream = context.get_stream("INIT").await.expect("there is a stream");
            let subject = format!("init.meta.{table}");
            let message = stream.get_last_raw_message_by_subject(&subject).await;
            let meta = wire::snapshot::Meta::decode(&message.ok()?.payload);
            Some(meta.expect("it is a meta").row_count)
        })
    })
}

/// Lets the stream take `messages` in all, and refuse more.
pub fn limit_stream(rig: &Rig, messages: i64) {
    stream::runtime().block_on(async {
        let context = stream::jetstream(rig.nats()).await;
        let stream = context.get_stream("CDC").await.expect("there is a stream");
        let config = Config {
            max_messages: messages,
            discard: if messages > 0 {
                DiscardPolicy::New
            } else {
                DiscardPolicy::Old
            },
            ..stream.cached_info().config.clone()
        };
        let updated = context.update_stream(config).await;
        updated.expect("the stream can be changed");
    });
}

#[test]
fn a_dropped_slot_halts_the_bridge_at_every_start_until_it_may_resnapshot() {
    let rig = with_ten_numbers(Options::default());
    rig.drop_slot();
    rig.write_numbers(10);

    for _ in 0..2 {
        let (code, said) = rig.refused(&[]);
        assert_eq!(code, 10, "{said}");
        assert!(said.contains("--on-slot-loss resnapshot"), "{said}");
        assert_eq!(rig.confirmed_flush_lsn(), None, "no slot was made");
    }
    let bridge = rig.bridge(&["--on-slot-loss", "resnapshot"]);
    let told = wait_for_gap(&rig);
    let rows = wait_for_snapshot(&rig, "numbers");
    rig.write_numbers(10);
    let events = rig.events();
    bridge.drain();

    assert_eq!((told.epoch, told.reason), (1, Reason::SlotLost));
    assert_eq!(rows, 20);
    let kept: Vec<_> = (1..=10).chain(21..=30).collect();
    assert_eq!(ids(&events), kept);
    assert_gap_between(&events, 10, &told);
}

#[test]
fn an_invalidated_slot_halts_the_bridge_until_it_may_resnapshot() {
    let options = Options::default()
        .postgres_setting("max_slot_wal_keep_size", "1MB")
        .postgres_setting("wal_keep_size", "0")
        .postgres_setting("max_wal_size", "32MB")
        .postgres_setting("min_wal_size", "32MB");
    let rig = with_ten_numbers(options);
    eventually(DEADLINE, "the slot is invalidated", || {
        rig.sql("SELECT pg_switch_wal(); CREATE TABLE filler AS SELECT 1 AS n; DROP TABLE filler");
        rig.sql("CHECKPOINT");
        rig.value("SELECT wal_status FROM pg_replication_slots") == "lost"
    });
    rig.write_numbers(10);

    let (code, said) = rig.refused(&[]);
    assert_eq!(code, 11, "{said}");
    assert!(said.contains("--on-slot-loss resnapshot"), "{said}");
    let bridge = rig.bridge(&["--on-slot-loss", "resnapshot"]);
    let told = wait_for_gap(&rig);
    assert_eq!(wait_for_snapshot(&rig, "numbers"), 20);
    rig.write_numbers(10);
    let events = rig.events();
    bridge.drain();

    assert_eq!((told.epoch, told.reason), (1, Reason::SlotLost));
    let kept: Vec<_> = (1..=10).chain(21..=30).collect();
    assert_eq!(ids(&events), kept);
}

#[test]
fn a_slot_dropped_under_a_bridge_that_may_resnapshot_does_not_end_it() {
    let rig = Rig::new();
    rig.create_numbers();
    let bridge = rig.bridge(&["--on-slot-loss", "resnapshot"]);
    rig.write_numbers(10);
    rig.wait_until_stored(10);

    rig.drop_slot();
    let told = wait_for_gap(&rig);
    rig.write_numbers(10);
    let events = rig.events();
    bridge.drain();

    assert_eq!((told.epoch, told.reason), (1, Reason::SlotLost));
    assert_eq!(ids(&events), (1..=20).collect::<Vec<_>>());
    assert_gap_between(&events, 10, &told);
}

#[test]
fn a_gap_is_told_also_when_the_bridge_dies_between_the_new_slot_and_the_message() {
    let rig = with_ten_numbers(Options::default());
    rig.drop_slot();
    rig.write_numbers(10);
    limit_stream(&rig, 10);

    let bridge = rig.launch(&["--on-slot-loss", "resnapshot"]);
    bridge.wait_for_line("slot made", DEADLINE);
    bridge.kill();
    assert_eq!(gap(&rig), None);
    limit_stream(&rig, -1);
    let bridge = rig.bridge(&[]);
    let told = wait_for_gap(&rig);
    let rows = wait_for_snapshot(&rig, "numbers");
    rig.write_numbers(10);
    let events = rig.events();
    bridge.kill();

    assert_eq!((told.epoch, told.reason), (1, Reason::SlotLost));
    assert_eq!(rows, 20);
    assert_gap_between(&events, 10, &told);
    // Told once.
    let bridge = rig.bridge(&[]);
    rig.write_numbers(10);
    let events = rig.events();
    bridge.drain();
    assert_eq!(gap(&rig), Some(told));
    let kept: Vec<_> = (1..=10).chain(21..=40).collect();
    assert_eq!(ids(&events), kept);
}

#[test]
fn skipping_leaves_out_what_was_committed_before_and_tells_it() {
    let rig = with_ten_numbers(Options::default());
    let before = rig.confirmed_flush_lsn().expect("there is a slot");
    rig.write_numbers(10);
    let to = rig.current_wal_lsn().to_string();
    rig.write_numbers(10);

    let bridge = rig.bridge(&["--skip-to-lsn", &to]);
    let told = wait_for_gap(&rig);
    let events = rig.events();
    bridge.drain();

    assert_eq!((told.epoch, told.reason), (1, Reason::Skipped));
    assert_eq!(told.to.to_string(), to);
    let kept: Vec<_> = (1..=10).chain(21..=30).collect();
    assert_eq!(ids(&events), kept);
    assert_gap_between(&events, 10, &told);

    // There is no going back, nor into the future; the same flag again does no harm.
    let (code, said) = rig.refused(&["--skip-to-lsn", &before.to_string()]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("no going back"), "{said}");
    let (code, said) = rig.refused(&["--skip-to-lsn", "FFFF/0"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("pg_current_wal_lsn"), "{said}");
    rig.bridge(&["--skip-to-lsn", &to, "--durability", "acked"])
        .drain();
    assert_eq!(gap(&rig), Some(told));
}

#[test]
fn a_skip_is_finished_and_told_also_when_the_bridge_dies_in_its_middle() {
    let rig = with_ten_numbers(Options::default());
    rig.write_numbers(10);
    let to = rig.current_wal_lsn().to_string();
    rig.write_numbers(10);
    limit_stream(&rig, 10);

    let bridge = rig.launch(&["--skip-to-lsn", &to]);
    bridge.wait_for_line("the slot was moved ahead", DEADLINE);
    bridge.kill();
    limit_stream(&rig, -1);
    let bridge = rig.bridge(&[]);
    let told = wait_for_gap(&rig);
    let events = rig.events();
    bridge.drain();

    assert_eq!((told.epoch, told.reason), (1, Reason::Skipped));
    let kept: Vec<_> = (1..=10).chain(21..=30).collect();
    assert_eq!(ids(&events), kept);
}

#[test]
fn skipping_what_the_stream_holds_is_no_gap() {
    let rig = with_ten_numbers(Options::default());
    let last = stream::last_of(rig.nats(), "cdc.numbers.insert").expect("there is one");

    let bridge = rig.bridge(&["--skip-to-lsn", &last.commit_lsn.to_string()]);
    rig.write_numbers(10);
    let events = rig.events();
    bridge.drain();

    assert_eq!(ids(&events), (1..=20).collect::<Vec<_>>());
    assert_eq!(gap(&rig), None);
}

#[test]
fn a_slot_made_anew_by_hand_is_told_as_a_gap() {
    let rig = with_ten_numbers(Options::default());
    rig.drop_slot();
    rig.write_numbers(10);
    rig.sql(&format!(
        "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
        rig.slot
    ));

    let bridge = rig.bridge(&[]);
    let told = wait_for_gap(&rig);
    rig.write_numbers(10);
    let events = rig.events();
    bridge.drain();

    assert_eq!(told.epoch, 1);
    let kept: Vec<_> = (1..=10).chain(21..=30).collect();
    assert_eq!(ids(&events), kept);
    assert_gap_between(&events, 10, &told);
}

#[test]
fn a_stream_restored_with_its_checkpoint_while_the_bridge_was_down_is_told_as_a_gap() {
    let rig = with_ten_numbers(Options::default());
    let (store, aside) = (rig.nats().store_dir(), rig.stack().dir().join("aside"));
    rig.nats().stop();
    copy(store, &aside);
    rig.nats().start();
    let bridge = rig.bridge(&["--durability", "acked"]);
    rig.write_numbers(10);
    rig.wait_until_stored(20);
    bridge.drain();

    rig.nats().stop();
    std::fs::remove_dir_all(store).expect("it can be removed");
    copy(&aside, store);
    rig.nats().start();
    let bridge = rig.bridge(&["--durability", "acked"]);
    let told = wait_for_gap(&rig);
    rig.write_numbers(10);
    let events = rig.events();
    bridge.drain();

    assert_eq!((told.epoch, told.reason), (1, Reason::StreamReset));
    let kept: Vec<_> = (1..=10).chain(21..=30).collect();
    assert_eq!(ids(&events), kept);
    assert_gap_between(&events, 10, &told);
}

#[test]
fn what_held_no_event_is_confirmed_and_never_taken_for_a_gap() {
    let rig = Rig::alone(Options::default());
    rig.create_numbers();
    rig.sql("CREATE TABLE other (id int)");
    let arguments = ["--durability", "acked", "--table", "numbers,fence"];
    rig.bridge(&arguments).drain();
    for round in 1..=4 {
        let bridge = rig.bridge(&arguments);
        rig.write_numbers(10);
        rig.sql("INSERT INTO other SELECT generate_series(1, 1000)");
        let written = rig.current_wal_lsn();
        rig.wait_until_confirmed(written);
        bridge.kill();
        assert_eq!(stream::last_sequence(rig.nats()), 10 * round);
    }

    let bridge = rig.bridge(&arguments);
    let events = rig.events();
    bridge.drain();

    assert_eq!(ids(&events), (1..=40).collect::<Vec<_>>());
    assert_eq!(gap(&rig), None);
}
