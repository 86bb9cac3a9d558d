//! A bridge with nothing to do, or nothing it can do, keeps nothing from PostgreSQL.

use std::time::Duration;

use stack::{Options, eventually};

use crate::rig::{DEADLINE, Rig};
use crate::writer::assert_numbers;

const MIB: u64 = 1 << 20;

#[test]
fn an_idle_publication_does_not_pin_the_wal_of_another_database() {
    let rig = Rig::alone(Options::default().postgres_setting("max_wal_size", "2GB"));
    rig.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let bridge = rig.bridge(&[]);

    let before = rig.current_wal_lsn();
    rig.postgres().sql(
        "CREATE TABLE busy AS SELECT n, repeat('x', 1000) AS filler FROM generate_series(1, 100000) n",
    );
    let after = rig.current_wal_lsn();
    assert!(
        after.0 - before.0 > 100 * MIB,
        "{} bytes",
        after.0 - before.0
    );

    rig.wait_until_confirmed(after);
    // PostgreSQL: a slot lets go of WAL where it meets the record of running transactions that a
    // checkpoint writes.
    eventually(DEADLINE, "the slot keeps no WAL", || {
        rig.postgres().sql("CHECKPOINT");
        let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8 FROM pg_replication_slots";
        let retained_bytes: u64 = rig.value(sql).parse().expect("a number");
        if retained_bytes < 32 * MIB {
            Ok(())
        } else {
            Err(retained_bytes)
        }
    });

    assert!(rig.events().is_empty());
    bridge.drain();
}

#[test]
fn a_full_ring_does_not_silence_the_feedback() {
    let rig = Rig::alone(Options::default().postgres_setting("wal_sender_timeout", "3s"));
    rig.create_numbers();
    let bridge = rig.bridge(&["--ring-events", "1000"]);

    rig.nats().pause();
    rig.write_numbers(20_000);
    // A slab is refused when it does not fit, so a full ring may hold far less than its budget.
    bridge.wait_until_ring_holds(1);
    let full_since = rig.value("SELECT clock_timestamp()");
    eventually(
        DEADLINE,
        "feedback goes on for longer than the timeout",
        || {
            let sql = format!(
                "SELECT reply_time - '{full_since}' > interval '6 s', reply_time FROM pg_stat_replication"
            );
            let row = rig
                .sql(&sql)
                .pop()
                .ok_or_else(|| "no walsender".to_owned())?;
            if row[0].as_deref() == Some("t") {
                Ok(())
            } else {
                Err(format!("{row:?}"))
            }
        },
    );
    rig.nats().resume();
    let events = rig.events();

    assert!(
        bridge.metric("bridge_reconnects_total") < 1.0,
        "{}",
        bridge.log_tail()
    );
    bridge.drain();
    assert_numbers(&events, 20_000);
}

#[test]
fn an_event_comes_at_once_when_there_is_only_one() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let bridge = rig.bridge(&[]);

    rig.sql("INSERT INTO t VALUES (1)");
    let events = rig.events();

    assert_eq!(events.len(), 1);
    eventually(Duration::from_secs(10), "it is counted", || {
        bridge.metric("bridge_cdc_events_published_total") >= 1.0
    });
    bridge.drain();
}
