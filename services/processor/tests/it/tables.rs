//! Tables the processor was never told about.

use serde_json::json;
use wire::command::WriteOp::{Create, Delete, Update};

use crate::harness::{DEADLINE, World, command, id, newcomer};

#[tokio::test(flavor = "multi_thread")]
async fn a_table_added_by_sql_alone_becomes_writable() {
    let world = World::up().await;
    let processor = world.processor("processor", &[]);
    processor.wait_for_line("active", DEADLINE);

    world.stack.postgres().sql(
        "CREATE SCHEMA sales; GRANT USAGE ON SCHEMA sales TO app_writer;
         CREATE TABLE sales.\"Odd.Name\" (a integer, b text, \"c d\" numeric, PRIMARY KEY (b, a));
         GRANT SELECT, INSERT, UPDATE, DELETE ON sales.\"Odd.Name\" TO app_writer",
    );
    let mut write = command(
        1,
        Create,
        "Odd.Name",
        None,
        json!({"a": 1, "b": "x,y", "c d": "0.10"}),
    );
    write.schema = "sales".to_owned();
    world.send(&write).await;
    let mut write = command(
        2,
        Update,
        "Odd.Name",
        Some("x%2Cy,1"),
        json!({"c d": "0.20"}),
    );
    write.schema = "sales".to_owned();
    world.send(&write).await;
    world.settle(2).await;

    assert_eq!(
        world.value("SELECT \"c d\" FROM sales.\"Odd.Name\""),
        "0.20"
    );
    assert_eq!(
        world.value("SELECT max(entity_key) FROM write_operations"),
        "x%2Cy,1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_postgresql_makes_is_told_to_the_client() {
    let world = World::up().await;
    world.stack.postgres().sql(
        "CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text);
         CREATE TABLE events (body text);
         GRANT SELECT, INSERT, UPDATE, DELETE ON notes, events TO app_writer",
    );
    world
        .send(&command(1, Create, "notes", None, json!({"body": "one"})))
        .await;
    world
        .send(&command(2, Create, "notes", None, json!({})))
        .await;
    world
        .send(&command(3, Delete, "notes", Some("01"), json!(null)))
        .await;
    world
        .send(&command(
            4,
            Create,
            "events",
            None,
            json!({"body": "keyless"}),
        ))
        .await;

    let _processor = world.processor("processor", &[]);
    world.settle(4).await;

    let keys = "SELECT string_agg(entity_key, ',' ORDER BY operation_id) FROM write_operations";
    assert_eq!(world.value(keys), "1,2,1");
    assert_eq!(
        world.value("SELECT string_agg(id::text, ',') FROM notes"),
        "2"
    );
    assert_eq!(world.value("SELECT body FROM events"), "keyless");
}

/// Whoever follows the change stream takes the first final status for the last one.
#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_is_one_row_change_with_everything_in_it() {
    let world = World::up().await;
    world.stack.postgres().sql(
        "CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text);
         GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO app_writer;
         CREATE TABLE versions (place bigserial, status text, entity_key text);
         CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
            BEGIN
                INSERT INTO public.versions (status, entity_key) VALUES (new.status, new.entity_key);
                RETURN NULL;
            END $$;
         CREATE TRIGGER keep AFTER INSERT OR UPDATE ON write_operations
            FOR EACH ROW EXECUTE FUNCTION keep()",
    );
    let note = |number, op, id, data| command(number, op, "notes", id, data);
    world
        .send(&note(1, Create, None, json!({"body": "one"})))
        .await;
    world
        .send(&note(2, Update, Some("1"), json!({"body": "two"})))
        .await;
    world
        .send(&note(3, Update, Some("9"), json!({"body": "none"})))
        .await;
    world.send(&note(4, Delete, Some("8"), json!(null))).await;
    world.send(&note(5, Delete, Some("1"), json!(null))).await;
    let _processor = world.processor("processor", &[]);
    world.settle(5).await;

    let versions =
        "SELECT string_agg(status || ' ' || entity_key, ', ' ORDER BY place) FROM versions";
    assert_eq!(
        world.value(versions),
        "completed 1, completed 1, failed 9, failed 8, completed 1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_changes_its_shape_is_written_in_the_new_shape() {
    let world = World::up().await;
    let _processor = world.processor("processor", &[]);
    world.send(&newcomer(1, 101)).await;
    world.settle(1).await;

    world
        .stack
        .postgres()
        .sql("ALTER TABLE people ADD COLUMN nick text, ALTER COLUMN age TYPE text");
    let mut write = newcomer(2, 102);
    write.data.insert("nick".to_owned(), json!("two"));
    write.data.insert("age".to_owned(), json!("old"));
    world.send(&write).await;
    world.settle(2).await;

    assert_eq!(world.outcome(&id(2)), ("completed".to_owned(), json!(null)));
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_to_a_table_that_is_gone_fail_instead_of_waiting_for_ever() {
    let world = World::up().await;
    let processor = world.processor("processor", &[]);
    world.send(&newcomer(1, 101)).await;
    world.settle(1).await;
    processor.terminate(DEADLINE);

    world.stack.postgres().sql("DROP TABLE people CASCADE");
    world.send(&newcomer(2, 102)).await;
    let _processor = world.processor("processor", &[]);
    world.settle(2).await;

    assert_eq!(world.outcome(&id(2)).1["code"], "42P01");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_takes_more_takes_it_at_once() {
    let world = World::up().await;
    world.stack.postgres().sql(
        "CREATE TABLE prices (id integer PRIMARY KEY, price numeric(10,2), name varchar(3), number integer);
         GRANT SELECT, INSERT, UPDATE, DELETE ON prices TO app_writer",
    );
    let row = |price: &str, name: &str, number: &str| json!({"price": price, "name": name, "number": number});
    let _processor = world.processor("processor", &[]);
    let narrow = command(1, Create, "prices", Some("1"), row("1.25", "abc", "1"));
    world.send(&narrow).await;
    world.settle(1).await;

    world.stack.postgres().sql(
        "ALTER TABLE prices ALTER price TYPE numeric(12,4), ALTER name TYPE varchar(10), ALTER number TYPE bigint",
    );
    let wide = row("1.2345", "abcdef", "3000000000");
    world
        .send(&command(2, Create, "prices", Some("2"), wide))
        .await;
    let too_wide = row("1.2345", "abcdefghijk", "1");
    world
        .send(&command(3, Create, "prices", Some("3"), too_wide))
        .await;
    world.settle(3).await;

    assert_eq!(world.outcome(&id(2)).0, "completed");
    assert_eq!(
        world.value("SELECT concat_ws(' ', price, name, number) FROM prices WHERE id = 2"),
        "1.2345 abcdef 3000000000"
    );
    assert_eq!(world.outcome(&id(3)).1["code"], "22001");
}
