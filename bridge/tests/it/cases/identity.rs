//! What an event tells of the old row: replica identities, changed keys, unchanged TOAST.

use wire::Operation;

use crate::columns::{assert_same, int, text};
use crate::rig::Rig;

/// Too long to stay in the row, and not compressed.
const LONG: &str = "repeat('long ', 2000)";

#[test]
fn a_changed_key_brings_the_old_one() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE t (a int, name text, b int, PRIMARY KEY (a, b)); INSERT INTO t VALUES (1, 'x', 2)");
    let _bridge = rig.bridge(&[]);

    rig.sql("UPDATE t SET a = 3");
    rig.sql("DELETE FROM t");
    let events = rig.events();

    let [update, delete] = &events[..] else {
        panic!("{events:?}")
    };
    assert_same(
        &update.columns,
        &[int("a", 3), text("name", "x"), int("b", 2)],
    );
    assert_same(&update.old, &[int("a", 1), int("b", 2)]);
    assert_same(&delete.columns, &[int("a", 3), int("b", 2)]);
}

#[test]
fn replica_identity_full_brings_the_whole_old_row() {
    let rig = Rig::new();
    rig.sql(
        "CREATE TABLE t (id int, name text); ALTER TABLE t REPLICA IDENTITY FULL;
         INSERT INTO t VALUES (1, NULL)",
    );
    let _bridge = rig.bridge(&[]);

    let first = rig.rows("t", "");
    rig.sql("UPDATE t SET name = ''");
    let second = rig.rows("t", "");
    rig.sql("DELETE FROM t");
    let events = rig.events();

    let [update, delete] = &events[..] else {
        panic!("{events:?}")
    };
    assert_same(&update.old, &first[0]);
    assert_same(&update.columns, &second[0]);
    assert_same(&delete.columns, &second[0]);
    assert!(delete.old.is_empty());
}

#[test]
fn replica_identity_using_an_index_brings_that_key() {
    let rig = Rig::new();
    rig.sql(
        "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL, n int);
         CREATE UNIQUE INDEX t_code ON t (code);
         ALTER TABLE t REPLICA IDENTITY USING INDEX t_code;
         INSERT INTO t VALUES (1, 'a', 0)",
    );
    let _bridge = rig.bridge(&[]);

    rig.sql("UPDATE t SET id = 2");
    rig.sql("UPDATE t SET code = 'b'");
    rig.sql("DELETE FROM t");
    let events = rig.events();

    let [other, key, delete] = &events[..] else {
        panic!("{events:?}")
    };
    assert!(other.old.is_empty(), "the primary key is not the identity");
    assert_same(&key.old, &[text("code", "a")]);
    assert_same(&delete.columns, &[text("code", "b")]);
}

#[test]
fn a_table_without_identity_can_be_published_for_its_inserts() {
    let mut rig = Rig::new();
    rig.sql(
        "CREATE TABLE t (id int); ALTER TABLE t REPLICA IDENTITY NOTHING;
         DROP PUBLICATION cdc_pub;
         CREATE PUBLICATION inserts FOR ALL TABLES WITH (publish = 'insert')",
    );
    rig.publication = "inserts".to_owned();
    let _bridge = rig.bridge(&[]);

    rig.sql("INSERT INTO t VALUES (1)");
    rig.sql("UPDATE t SET id = 2");
    rig.sql("DELETE FROM t");
    let events = rig.events();

    assert_eq!(events.len(), 1);
    assert_eq!(events[0].operation, Operation::Insert);
    assert_same(&events[0].columns, &[int("id", 1)]);
}

#[test]
fn an_unchanged_toast_value_is_left_out_and_named() {
    let rig = Rig::new();
    rig.sql(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, body text, n int, more text);
         ALTER TABLE t ALTER body SET STORAGE EXTERNAL, ALTER more SET STORAGE EXTERNAL;
         INSERT INTO t VALUES (1, {LONG}, 0, {LONG})"
    ));
    let _bridge = rig.bridge(&[]);

    rig.sql("UPDATE t SET n = 1");
    rig.sql("UPDATE t SET n = 2, more = 'short'");
    rig.sql("UPDATE t SET id = 2, body = NULL, more = more || '.'");
    let events = rig.events();

    let [both, one, none] = &events[..] else {
        panic!("{events:?}")
    };
    assert_same(&both.columns, &[int("id", 1), int("n", 1)]);
    assert_eq!(both.unchanged, ["body", "more"]);
    assert_same(
        &one.columns,
        &[int("id", 1), int("n", 2), text("more", "short")],
    );
    assert_eq!(one.unchanged, ["body"]);
    assert_same(&none.columns, &rig.rows("t", "")[0]);
    assert!(none.unchanged.is_empty());
}

#[test]
fn an_unchanged_toast_value_is_named_beside_a_changed_key() {
    let rig = Rig::new();
    rig.sql(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, body text);
         ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
         INSERT INTO t VALUES (1, {LONG})"
    ));
    let _bridge = rig.bridge(&[]);

    rig.sql("UPDATE t SET id = 2");
    let events = rig.events();

    assert_same(&events[0].columns, &[int("id", 2)]);
    assert_same(&events[0].old, &[int("id", 1)]);
    assert_eq!(events[0].unchanged, ["body"]);
}

#[test]
fn under_replica_identity_full_an_unchanged_toast_value_is_there() {
    let rig = Rig::new();
    rig.sql(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, body text);
         ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
         ALTER TABLE t REPLICA IDENTITY FULL;
         INSERT INTO t VALUES (1, {LONG})"
    ));
    let _bridge = rig.bridge(&[]);

    let old = rig.rows("t", "");
    rig.sql("UPDATE t SET id = 2");
    let events = rig.events();

    assert_same(&events[0].columns, &rig.rows("t", "")[0]);
    assert_same(&events[0].old, &old[0]);
    assert!(events[0].unchanged.is_empty());
}
