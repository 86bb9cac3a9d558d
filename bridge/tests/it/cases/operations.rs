//! INSERT, UPDATE, DELETE, TRUNCATE, COPY, and transactions around them.

use wire::{Lsn, Operation};

use crate::columns::{assert_same, int, text};
use crate::rig::Rig;

#[test]
fn every_kind_of_change_arrives_with_its_row() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE users (id int PRIMARY KEY, name text)");
    let bridge = rig.bridge(&[]);

    rig.sql("INSERT INTO users VALUES (1, 'Alice')");
    rig.sql("UPDATE users SET name = 'Bob'");
    rig.sql("DELETE FROM users");
    rig.sql("TRUNCATE users");
    let events = rig.events();
    bridge.drain();

    let operations: Vec<_> = events.iter().map(|event| event.operation).collect();
    assert_eq!(operations, Operation::ALL);
    assert_same(&events[0].columns, &[int("id", 1), text("name", "Alice")]);
    assert_same(&events[1].columns, &[int("id", 1), text("name", "Bob")]);
    assert_same(&events[2].columns, &[int("id", 1)]);
    assert_same(&events[3].columns, &[]);
    assert!(events.iter().all(|event| event.old.is_empty()));
    assert_eq!(
        (events[3].cascade, events[3].restart_identity),
        (Some(false), Some(false))
    );
}

#[test]
fn an_event_names_its_transaction() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let _bridge = rig.bridge(&[]);

    let before = rig.current_wal_lsn();
    let xid = rig.value("INSERT INTO t VALUES (1), (2) RETURNING pg_current_xact_id()");
    let after = rig.current_wal_lsn();
    let events = rig.events();

    let relation = rig.value("SELECT 't'::regclass::oid");
    let now = rig.value("SELECT (extract(epoch FROM now()) * 1000000)::int8");
    let now: i64 = now.parse().unwrap();
    for event in &events {
        assert_eq!(event.xid.to_string(), xid);
        assert_eq!(event.relation_id.to_string(), relation);
        assert!(before <= event.commit_lsn && event.commit_lsn < after);
        assert!(before <= event.lsn && event.lsn < event.commit_lsn);
        assert!((now - 60_000_000..=now).contains(&event.commit_time));
    }
    assert_eq!(events[0].commit_lsn, events[1].commit_lsn);
    let positions: Vec<_> = events.iter().map(|event| (event.seq, event.last)).collect();
    assert_eq!(positions, [(1, false), (2, true)]);
}

#[test]
fn a_truncate_of_several_tables_is_an_event_for_each() {
    let rig = Rig::new();
    rig.sql(
        "CREATE TABLE a (id serial PRIMARY KEY);
         CREATE TABLE b (id int PRIMARY KEY);
         CREATE TABLE referring (id int REFERENCES a)",
    );
    let _bridge = rig.bridge(&[]);

    rig.sql("TRUNCATE a, b RESTART IDENTITY CASCADE");
    let events = rig.events();

    let mut tables: Vec<_> = events.iter().map(|event| event.table.as_str()).collect();
    tables.sort_unstable();
    assert_eq!(
        tables,
        ["a", "b", "referring"],
        "CASCADE takes what refers to it"
    );
    for event in &events {
        assert_eq!(event.operation, Operation::Truncate);
        assert_eq!(
            (event.cascade, event.restart_identity),
            (Some(true), Some(true))
        );
        assert_eq!(event.commit_lsn, events[0].commit_lsn);
    }
}

#[test]
fn a_copy_of_100_000_rows_is_exactly_100_000_events() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE t (id int)");
    let bridge = rig.bridge(&[]);

    rig.sql("COPY t FROM PROGRAM 'seq 100000'");
    let events = rig.events();
    bridge.drain();

    assert_eq!(events.len(), 100_000);
    for (event, expected) in events.iter().zip(1_u32..) {
        assert_eq!((event.seq, event.last), (expected, expected == 100_000));
        assert_eq!(event.columns, [int("id", i64::from(expected))]);
    }
    // What the row's own LSN cannot do, and the position does: tell them apart.
    let mut row_lsns: Vec<Lsn> = events.iter().map(|event| event.lsn).collect();
    row_lsns.dedup();
    assert!(row_lsns.len() < 10_000, "COPY writes pages, not rows");
}

#[test]
fn what_a_subtransaction_rolled_back_is_not_sent() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let _bridge = rig.bridge(&[]);

    rig.sql(
        "BEGIN; INSERT INTO t VALUES (1);
         SAVEPOINT s; INSERT INTO t VALUES (2); ROLLBACK TO s;
         SAVEPOINT r; INSERT INTO t VALUES (3); RELEASE r; COMMIT",
    );
    rig.sql("BEGIN; INSERT INTO t VALUES (4); ROLLBACK");
    let events = rig.events();

    let rows: Vec<_> = events
        .iter()
        .map(|event| (event.seq, event.columns.clone()))
        .collect();
    assert_eq!(rows, [(1, vec![int("id", 1)]), (2, vec![int("id", 3)])]);
}

#[test]
fn transactions_come_in_the_order_of_their_commits() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let _bridge = rig.bridge(&[]);

    rig.sql("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'later'");
    rig.sql("INSERT INTO t VALUES (2)");
    rig.sql("COMMIT PREPARED 'later'");
    let events = rig.events();

    let rows: Vec<_> = events
        .iter()
        .map(|event| event.columns[0].clone())
        .collect();
    assert_eq!(rows, [int("id", 2), int("id", 1)]);
    assert!(
        events[1].lsn < events[0].lsn,
        "the row's own LSN goes backwards"
    );
}
