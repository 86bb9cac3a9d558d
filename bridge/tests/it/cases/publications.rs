//! What the publication and `--table` decide: partitions, row filters, column lists, schemas.

use wire::Operation;

use crate::columns::{assert_same, int, text};
use crate::rig::Rig;

const PARTITIONED: &str =
    "CREATE TABLE measures (day int, n int, PRIMARY KEY (day)) PARTITION BY RANGE (day);
    CREATE TABLE measures_low PARTITION OF measures FOR VALUES FROM (0) TO (10);
    CREATE TABLE measures_high PARTITION OF measures FOR VALUES FROM (10) TO (20)";

/// Inserts into both partitions, moves a row between them, empties all.
fn play_on_partitions(rig: &Rig) -> Vec<(Operation, String)> {
    rig.sql("INSERT INTO measures VALUES (1, 1), (11, 2)");
    rig.sql("UPDATE measures SET day = 12 WHERE day = 1");
    rig.sql("TRUNCATE measures");
    let events = rig.events();
    events
        .into_iter()
        .map(|event| (event.operation, event.table))
        .collect()
}

#[test]
fn partitions_are_named_by_themselves() {
    use Operation::{Delete, Insert, Truncate};
    let rig = Rig::new();
    rig.sql(PARTITIONED);
    let _bridge = rig.bridge(&[]);

    let mut events = play_on_partitions(&rig);

    events[4..].sort_by(|a, b| a.1.cmp(&b.1));
    let expected = [
        (Insert, "measures_low"),
        (Insert, "measures_high"),
        (Delete, "measures_low"),
        (Insert, "measures_high"),
        (Truncate, "measures_high"),
        (Truncate, "measures_low"),
    ];
    assert_eq!(
        events,
        expected.map(|(operation, table)| (operation, table.to_owned()))
    );
}

#[test]
fn partitions_are_named_by_their_root_where_the_publication_says_so() {
    use Operation::{Delete, Insert, Truncate};
    let mut rig = Rig::new();
    rig.sql(PARTITIONED);
    rig.sql("CREATE PUBLICATION roots FOR ALL TABLES WITH (publish_via_partition_root)");
    rig.publication = "roots".to_owned();
    let _bridge = rig.bridge(&[]);

    let events = play_on_partitions(&rig);

    let expected = [Insert, Insert, Delete, Insert, Truncate];
    assert_eq!(
        events,
        expected.map(|operation| (operation, "measures".to_owned()))
    );
}

#[test]
fn the_publications_row_filter_is_kept() {
    let mut rig = Rig::new();
    rig.sql(
        "CREATE TABLE t (id int PRIMARY KEY, n int); ALTER TABLE t REPLICA IDENTITY FULL;
         CREATE PUBLICATION filtered FOR TABLE fence, TABLE t WHERE (n > 10)",
    );
    rig.publication = "filtered".to_owned();
    let _bridge = rig.bridge(&[]);

    rig.sql("INSERT INTO t VALUES (1, 5), (2, 50)");
    rig.sql("UPDATE t SET n = 60 WHERE id = 1");
    rig.sql("UPDATE t SET n = 6 WHERE id = 2");
    let events = rig.events();

    // PostgreSQL: a row that comes into the filter is inserted, one that leaves it is deleted.
    let [in_filter, entered, left] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(in_filter.operation, Operation::Insert);
    assert_same(&in_filter.columns, &[int("id", 2), int("n", 50)]);
    assert!(
        (in_filter.seq, in_filter.last) == (1, true),
        "positions count what is published"
    );
    assert_eq!(entered.operation, Operation::Insert);
    assert_same(&entered.columns, &[int("id", 1), int("n", 60)]);
    assert_eq!(left.operation, Operation::Delete);
    assert_same(&left.columns, &[int("id", 2), int("n", 50)]);
}

#[test]
fn the_publications_column_list_is_kept() {
    let mut rig = Rig::new();
    rig.sql(
        "CREATE TABLE t (secret text, id int PRIMARY KEY, name text);
         CREATE PUBLICATION some_columns FOR TABLE fence, TABLE t (id, name)",
    );
    rig.publication = "some_columns".to_owned();
    let _bridge = rig.bridge(&[]);

    rig.sql("INSERT INTO t VALUES ('hidden', 1, 'x')");
    rig.sql("UPDATE t SET secret = 'other'");
    let events = rig.events();

    for event in &events {
        assert_same(&event.columns, &[int("id", 1), text("name", "x")]);
    }
    assert_eq!(events.len(), 2);
}

#[test]
fn several_publications_are_streamed_as_one() {
    let mut rig = Rig::new();
    rig.sql(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);
         CREATE PUBLICATION pub1 FOR TABLE a, fence; CREATE PUBLICATION pub2 FOR TABLE b",
    );
    rig.publication = "pub1,pub2".to_owned();
    let _bridge = rig.bridge(&[]);

    rig.sql("INSERT INTO a VALUES (1); INSERT INTO b VALUES (2)");
    let events = rig.events();

    let tables: Vec<_> = events.iter().map(|event| event.table.as_str()).collect();
    assert_eq!(tables, ["a", "b"]);
}

#[test]
fn only_the_tables_of_the_flag_are_streamed() {
    let rig = Rig::new();
    rig.sql(
        "CREATE SCHEMA sales; CREATE TABLE users (id int); CREATE TABLE orders (id int);
         CREATE TABLE sales.orders (id int); CREATE TABLE sales.users (id int)",
    );
    let _bridge = rig.bridge(&["--table", "users,sales.orders,fence"]);

    rig.sql(
        "INSERT INTO orders VALUES (1); INSERT INTO users VALUES (2);
         INSERT INTO sales.users VALUES (3); INSERT INTO sales.orders VALUES (4);
         INSERT INTO orders VALUES (5)",
    );
    let events = rig.events();

    let rows: Vec<_> = events
        .iter()
        .map(|event| {
            (
                event.schema.as_str(),
                event.table.as_str(),
                event.seq,
                event.last,
            )
        })
        .collect();
    assert_eq!(
        rows,
        [("public", "users", 1, false), ("sales", "orders", 2, true)]
    );
}

#[test]
fn tables_of_the_same_name_in_several_schemas_have_their_own_subjects() {
    let rig = Rig::new();
    rig.sql(
        r#"CREATE SCHEMA sales; CREATE SCHEMA "a.b"; CREATE TABLE users (id int);
         CREATE TABLE sales.users (id int); CREATE TABLE "a.b".users (id int)"#,
    );
    let _bridge = rig.bridge(&[]);

    rig.sql(
        r#"INSERT INTO users VALUES (1); INSERT INTO sales.users VALUES (2);
         INSERT INTO "a.b".users VALUES (3)"#,
    );
    let stored = rig.stored();

    let subjects: Vec<_> = stored
        .iter()
        .map(|stored| stored.subject.as_str())
        .collect();
    assert_eq!(
        subjects,
        [
            "cdc.users.insert",
            "cdc.sales.users.insert",
            "cdc.a%2Eb.users.insert"
        ]
    );
    let schemas: Vec<_> = stored
        .iter()
        .map(|stored| stored.event.schema.as_str())
        .collect();
    assert_eq!(schemas, ["public", "sales", "a.b"]);
}
