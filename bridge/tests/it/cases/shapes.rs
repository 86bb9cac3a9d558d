//! Tables of unusual shapes, and shapes that change between two rows.

use wire::{Operation, Value};

use crate::columns::{assert_same, int, null, text};
use crate::rig::Rig;

#[test]
fn a_table_of_1600_columns_arrives_whole() {
    let rig = Rig::new();
    let columns: Vec<String> = (1..=1600)
        .map(|number| format!("column_{number} int"))
        .collect();
    rig.sql(&format!(
        "CREATE TABLE wide ({}); ALTER TABLE wide REPLICA IDENTITY FULL",
        columns.join(", ")
    ));
    let _bridge = rig.bridge(&[]);

    let values: Vec<String> = (1..=1600).map(|number| number.to_string()).collect();
    rig.sql(&format!("INSERT INTO wide VALUES ({})", values.join(", ")));
    let first = rig.rows("wide", "");
    rig.sql("UPDATE wide SET column_800 = NULL");
    let second = rig.rows("wide", "");
    rig.sql("DELETE FROM wide");
    let events = rig.events();

    assert_eq!(events[0].columns.len(), 1600);
    assert_same(&events[0].columns, &first[0]);
    assert_same(&events[1].columns, &second[0]);
    assert_same(&events[1].old, &first[0]);
    assert_same(&events[2].columns, &second[0]);
}

#[test]
fn a_table_without_columns_has_events_without_columns() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE empty (); ALTER TABLE empty REPLICA IDENTITY FULL");
    let _bridge = rig.bridge(&[]);

    rig.sql("INSERT INTO empty DEFAULT VALUES");
    rig.sql("DELETE FROM empty");
    let events = rig.events();

    let operations: Vec<_> = events.iter().map(|event| event.operation).collect();
    assert_eq!(operations, [Operation::Insert, Operation::Delete]);
    assert!(events.iter().all(|event| event.columns.is_empty()));
}

#[test]
fn each_row_has_the_shape_of_its_time_within_one_transaction() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE t (id int PRIMARY KEY, a text)");
    let _bridge = rig.bridge(&[]);

    rig.sql(
        "BEGIN;
         INSERT INTO t VALUES (1, 'a');
         ALTER TABLE t ADD COLUMN b int DEFAULT 7;
         INSERT INTO t VALUES (2, 'a');
         ALTER TABLE t RENAME COLUMN a TO c;
         INSERT INTO t VALUES (3, 'c', NULL);
         ALTER TABLE t ALTER COLUMN b TYPE text USING 'text ' || b;
         INSERT INTO t VALUES (4, 'c', '8');
         ALTER TABLE t DROP COLUMN c;
         INSERT INTO t VALUES (5, '9');
         ALTER TABLE t RENAME TO u;
         INSERT INTO u VALUES (6, '10');
         COMMIT",
    );
    let events = rig.events();

    let rows: [&[wire::Column]; 6] = [
        &[int("id", 1), text("a", "a")],
        &[int("id", 2), text("a", "a"), int("b", 7)],
        &[int("id", 3), text("c", "c"), null("b")],
        &[int("id", 4), text("c", "c"), text("b", "8")],
        &[int("id", 5), text("b", "9")],
        &[int("id", 6), text("b", "10")],
    ];
    assert_eq!(events.len(), rows.len());
    for (event, row) in events.iter().zip(rows) {
        assert_same(&event.columns, row);
        assert_eq!(event.commit_lsn, events[0].commit_lsn);
    }
    assert_eq!(events[4].table, "t");
    assert_eq!(events[5].table, "u");
}

#[test]
fn a_shape_that_changed_while_the_bridge_was_away_is_that_of_the_row() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE t (id int PRIMARY KEY, a int)");
    rig.bridge(&[]).drain();

    rig.sql("INSERT INTO t VALUES (1, 1)");
    rig.sql("ALTER TABLE t DROP COLUMN a, ADD COLUMN b text");
    rig.sql("INSERT INTO t VALUES (2, 'b')");
    let _bridge = rig.bridge(&[]);
    let events = rig.events();

    assert_same(&events[0].columns, &[int("id", 1), int("a", 1)]);
    assert_same(&events[1].columns, &[int("id", 2), text("b", "b")]);
}

#[test]
fn rows_of_a_table_and_a_type_that_are_gone_arrive_all_the_same() {
    let rig = Rig::new();
    rig.sql("CREATE DOMAIN age AS int; CREATE TABLE t (id int PRIMARY KEY, age age)");
    rig.bridge(&[]).drain();

    rig.sql("INSERT INTO t VALUES (1, 30)");
    rig.sql("DROP TABLE t; DROP DOMAIN age");
    let bridge = rig.bridge(&[]);
    let events = rig.events();

    assert_eq!(events[0].columns[0], int("id", 1));
    // Nobody can say any more what the type was made of; its text is exact.
    assert_eq!(events[0].columns[1].value, Value::Text("30".to_owned()));
    bridge.drain();
}
