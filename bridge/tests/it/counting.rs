//! A bridge that is told to publish other tables than before, and ended in the middle of a transaction.
//!
//! In: one large transaction over two tables, a kill in its middle, other flags. Out: the transaction as it
//! was begun, then what the flags say.
//! Must hold: every event of a transaction is there once, whatever the ordinals count (`stream::checked`).

use wire::{Event, Value};

use crate::gaps::limit_stream;
use crate::rig::Rig;

const ROWS: usize = 3_000;

/// Tables `even` and `odd`, and a publication for each beside the one for both.
fn rig() -> Rig {
    let rig = Rig::new();
    rig.sql(
        "CREATE TABLE even (id int PRIMARY KEY); CREATE TABLE odd (id int PRIMARY KEY);
         CREATE PUBLICATION evens FOR TABLE even, fence; CREATE PUBLICATION odds FOR TABLE odd, fence",
    );
    rig
}

/// One transaction that writes the tables in turn.
fn write_both(rig: &Rig, first: usize) {
    rig.sql(&format!(
        "DO $$ BEGIN
            FOR i IN {first}..{} BY 2 LOOP
                INSERT INTO even VALUES (i - 1); INSERT INTO odd VALUES (i);
            END LOOP;
        END $$",
        first + ROWS - 1
    ));
}

/// The bridge publishes `stored` events of a transaction, and dies.
fn die_in_the_middle(rig: &Rig, arguments: &[&str], stored: i64) {
    rig.bridge(arguments).drain();
    write_both(rig, 1);
    limit_stream(rig, stored);
    let bridge = rig.launch(arguments);
    rig.wait_until_stored(stored.unsigned_abs());
    bridge.kill();
    limit_stream(rig, -1);
}

/// Another bridge, and another transaction: everything in the stream.
#[track_caller]
fn go_on(rig: &Rig, arguments: &[&str]) -> Vec<Event> {
    let bridge = rig.bridge(arguments);
    write_both(rig, ROWS + 1);
    let events = rig.events();
    bridge.drain();
    events
}

/// Rows of the tables, in the order of the stream.
fn rows(events: &[Event], table: &str) -> Vec<i64> {
    let rows = events.iter().filter(|event| event.table == table);
    rows.map(|event| match event.columns[0].value {
        Value::Int(id) => id,
        _ => panic!("{event:?}"),
    })
    .collect()
}

fn numbers(first: usize, last: usize) -> Vec<i64> {
    (first..=last).step_by(2).map(|n| n as i64).collect()
}

#[test]
fn a_transaction_begun_with_more_tables_is_finished_with_them() {
    let rig = rig();
    die_in_the_middle(&rig, &["--table", "even,odd,fence"], 1_001);

    let events = go_on(&rig, &["--table", "odd,fence"]);

    assert_eq!(rows(&events, "even"), numbers(0, ROWS - 2));
    assert_eq!(rows(&events, "odd"), numbers(1, 2 * ROWS - 1));
}

#[test]
fn a_transaction_begun_with_fewer_tables_is_finished_without_the_others() {
    let rig = rig();
    die_in_the_middle(&rig, &["--table", "odd,fence"], 701);

    let events = go_on(&rig, &["--table", "even,odd,fence"]);

    assert_eq!(rows(&events, "even"), numbers(ROWS, 2 * ROWS - 2));
    assert_eq!(rows(&events, "odd"), numbers(1, 2 * ROWS - 1));
}

#[test]
fn a_transaction_begun_with_tables_that_are_not_published_any_more_is_finished() {
    let rig = rig();
    die_in_the_middle(&rig, &["--table", "odd"], 501);

    let bridge = rig.bridge(&["--table", "even,fence"]);
    // Again before anything else is written: the stream ends with an event of no table of this bridge.
    rig.stored();
    bridge.kill();
    let events = go_on(&rig, &["--table", "even,fence"]);

    assert_eq!(rows(&events, "even"), numbers(ROWS, 2 * ROWS - 2));
    assert_eq!(rows(&events, "odd"), numbers(1, ROWS - 1));
}

#[test]
fn a_transaction_begun_with_another_publication_is_finished_with_that() {
    let mut rig = rig();
    rig.publication = "evens,odds".to_owned();
    die_in_the_middle(&rig, &[], 1_001);

    rig.publication = "odds".to_owned();
    let events = go_on(&rig, &[]);

    assert_eq!(rows(&events, "even"), numbers(0, ROWS - 2));
    assert_eq!(rows(&events, "odd"), numbers(1, 2 * ROWS - 1));
}

#[test]
fn tables_added_between_two_transactions_repeat_nothing_of_the_first() {
    let rig = rig();
    let bridge = rig.bridge(&["--table", "odd,fence"]);
    write_both(&rig, 1);
    rig.stored();
    bridge.kill();

    // PostgreSQL was not told yet, so it sends the first transaction again.
    let events = go_on(&rig, &["--table", "even,odd,fence"]);

    assert_eq!(rows(&events, "even"), numbers(ROWS, 2 * ROWS - 2));
    assert_eq!(rows(&events, "odd"), numbers(1, 2 * ROWS - 1));
}
