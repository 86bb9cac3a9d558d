//! Rows, DDL and snapshots at once: every row has the shape that its version names.
//!
//! In: a seed. Out: what the bucket, the stream and the snapshots said.
//! Invariant: the bridge is started once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt as _;
use stack::{NatsVersion, Options, PostgresVersion, eventually_async};
use wire::schema::{Generated, Schema, SchemaChanged};
use wire::{Event, Message as _, Operation};

use crate::handoff::{Random, connect, size};
use crate::world::{DEADLINE, World};

const SETUP: &str = "\
    CREATE TYPE mood AS ENUM ('sad', 'ok');; \
    CREATE TABLE a (id serial PRIMARY KEY, feeling mood DEFAULT 'ok');; \
    CREATE TABLE b (id serial PRIMARY KEY, feeling mood DEFAULT 'ok');; \
    CREATE TABLE fence (mark int PRIMARY KEY);; \
    CREATE PUBLICATION cdc_pub FOR TABLE a, b, fence";

#[tokio::test]
async fn rows_have_the_shape_their_version_names_through_a_storm_of_ddl() {
    storm(Options::default()).await;
}

#[tokio::test]
async fn they_do_on_postgres_18() {
    let options = Options::default().postgres(PostgresVersion::V18);
    storm(options.nats(NatsVersion::V2_15)).await;
}

/// Every version of every table's schema, as the bucket got them: history alone would lose some.
type Versions = BTreeMap<(String, u32), Schema>;

async fn storm(options: Options) {
    let (statements, seed) = (size("STORM_STATEMENTS", 60), size("JOIN_SEED", 1));
    println!("STORM_STATEMENTS={statements} JOIN_SEED={seed}");
    let world = World::with(options, SETUP, &["--snapshot-chunk-rows", "50"]).await;
    let versions = tokio::spawn(collect_versions(&world).await);
    let told = tokio::spawn(collect_told(&world).await);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            tokio::spawn(write(
                world.stack.postgres().url(),
                Random(writer),
                stop.clone(),
            ))
        })
        .collect();

    let mut random = Random(seed);
    let mut snapshots = Vec::new();
    let client = connect(&world.stack.postgres().url()).await;
    for index in 0..statements {
        let sql = ddl(&mut random, index);
        // What does not fit the tables as they are now is refused; the next one is tried.
        if client.batch_execute(&sql).await.is_err() {
            client.batch_execute("ROLLBACK").await.unwrap();
        }
        if index % 5 == 0 {
            let table = ["a", "b"][random.below(2) as usize];
            if let wire::snapshot_request::Reply::Accepted { snapshot_id } =
                world.request(table, "").await
            {
                snapshots.push((table, snapshot_id));
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(random.below(150))).await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    world.fence(1).await;
    world.sql("ALTER TABLE fence ADD COLUMN ended int");
    let fence = world.schema("fence", |schema| schema.version == 2).await;
    assert_eq!(fence.columns.len(), 2);
    // Once the last of it has been seen, all has.
    let versions: Versions = versions.await.unwrap();
    let told: BTreeSet<(String, u32)> = told.await.unwrap();

    let mut events = 0;
    for (sequence, event) in world.numbered_events("*").await {
        events += 1;
        has_its_shape(&versions, sequence, &event);
    }
    for key in versions.keys().filter(|(_, version)| *version > 1) {
        assert!(told.contains(key), "{key:?} was not told");
    }
    // What is in the bucket in the end is what is published, and no more.
    let there = "SELECT tablename FROM pg_publication_tables WHERE pubname = 'cdc_pub'";
    eventually_async(DEADLINE, "the bucket has the tables", async || {
        let rows = world.stack.postgres().sql(there);
        let there: BTreeSet<String> = rows
            .into_iter()
            .filter_map(|mut row| row.remove(0))
            .collect();
        let bucket = world.jetstream.get_key_value("schemas").await.unwrap();
        let keys = bucket.keys().await.unwrap();
        let keys: BTreeSet<String> = keys.map(Result::unwrap).collect().await;
        if keys == there {
            Ok(())
        } else {
            Err(format!("{keys:?}, not {there:?}"))
        }
    })
    .await;
    let whole = snapshots_have_their_shape(&world, &versions, &snapshots).await;
    println!(
        "{events} events in {} versions; {whole} of {} snapshots whole",
        versions.len(),
        snapshots.len()
    );
    assert!(versions.len() > 10 && events > 100);
    assert!(world.bridge.is_running());
}

fn has_its_shape(versions: &Versions, sequence: u64, event: &Event) {
    if event.operation == Operation::Truncate {
        return;
    }
    let key = (event.table.clone(), event.schema_version);
    let schema = versions
        .get(&key)
        .unwrap_or_else(|| panic!("{sequence}: {key:?} was never in the bucket"));
    let expected = published(schema);
    let columns: Vec<&str> = event
        .columns
        .iter()
        .map(|column| column.name.as_str())
        .collect();
    if event.operation == Operation::Delete {
        assert!(
            columns.iter().all(|name| expected.contains(name)),
            "{sequence}: {columns:?} in {key:?} {expected:?}"
        );
    } else {
        let left_out = |name: &&&str| event.unchanged.iter().all(|left| left != **name);
        let expected: Vec<&str> = expected.iter().filter(left_out).copied().collect();
        assert_eq!(columns, expected, "{sequence}: {key:?}");
    }
    if schema.relation_id != 0 {
        assert_eq!(event.relation_id, schema.relation_id, "{sequence}: {key:?}");
    }
}

fn published(schema: &Schema) -> Vec<&str> {
    schema
        .columns
        .iter()
        .filter(|column| !matches!(column.generated, Generated::Stored | Generated::Virtual))
        .map(|column| column.name.as_str())
        .collect()
}

/// Those that ended well; a table that was altered before it was locked has refused the others.
async fn snapshots_have_their_shape(
    world: &World,
    versions: &Versions,
    snapshots: &[(&str, String)],
) -> usize {
    let mut whole = 0;
    for (table, id) in snapshots {
        let subjects = [
            format!("init.start.{table}"),
            format!("init.meta.{table}"),
            format!("init.error.{table}"),
        ];
        let messages = eventually_async(DEADLINE, "a snapshot's end", async || {
            let messages = world.messages("INIT", &subjects, 1).await;
            let ended = messages.iter().any(|message| {
                wire::snapshot::Meta::decode(&message.payload)
                    .is_ok_and(|meta| meta.snapshot_id == *id)
                    || wire::snapshot::Error::decode(&message.payload)
                        .is_ok_and(|error| error.snapshot_id.as_ref() == Some(id))
            });
            ended.then_some(messages)
        })
        .await;
        let start = messages.iter().find_map(|message| {
            wire::snapshot::Start::decode(&message.payload)
                .ok()
                .filter(|start| start.snapshot_id == *id)
        });
        let Some(start) = start else { continue };
        let key = ((*table).to_owned(), start.schema_version);
        let schema = versions
            .get(&key)
            .unwrap_or_else(|| panic!("{key:?} of {id}"));
        assert_eq!(start.columns, published(schema), "{key:?} of {id}");
        whole += 1;
    }
    whole
}

/// Until the fence has its second version.
async fn collect_versions(world: &World) -> impl Future<Output = Versions> + use<> {
    let bucket = eventually_async(DEADLINE, "the bucket", async || {
        world.jetstream.get_key_value("schemas").await
    })
    .await;
    let mut entries = bucket.watch_with_history(">").await.unwrap();
    async move {
        let mut versions = Versions::new();
        while let Some(entry) = entries.next().await {
            if let Ok(schema) = Schema::decode(&entry.unwrap().value) {
                let is_last = schema.table == "fence" && schema.version == 2;
                versions.insert((schema.table.clone(), schema.version), schema);
                if is_last {
                    break;
                }
            }
        }
        versions
    }
}

/// The same of what was announced.
async fn collect_told(world: &World) -> impl Future<Output = BTreeSet<(String, u32)>> + use<> {
    let mut messages = world.nats.subscribe("schema.changed.>").await.unwrap();
    world.nats.flush().await.unwrap();
    async move {
        let mut told = BTreeSet::new();
        while let Some(message) = messages.next().await {
            let changed = SchemaChanged::decode(&message.payload).unwrap();
            let is_last = changed.table == "fence" && changed.version == 2;
            told.insert((changed.table, changed.version));
            if is_last {
                break;
            }
        }
        told
    }
}

fn ddl(random: &mut Random, index: u64) -> String {
    let table = ["a", "b", "b", "c"][random.below(4) as usize];
    let column = ["x", "y", "z"][random.below(3) as usize];
    match random.below(14) {
        0 | 1 => format!("ALTER TABLE {table} ADD COLUMN {column} int"),
        2 => format!("ALTER TABLE {table} ADD COLUMN {column} text DEFAULT 'd{index}'"),
        3 | 4 => format!("ALTER TABLE {table} DROP COLUMN {column}"),
        5 => format!("ALTER TABLE {table} RENAME COLUMN {column} TO x"),
        6 => format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE text"),
        7 => format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE varchar(99) USING {column}::text"),
        8 => format!("ALTER TYPE mood ADD VALUE 'm{index}'"),
        9 => "ALTER TABLE b RENAME TO c".to_owned(),
        10 => "ALTER TABLE c RENAME TO b".to_owned(),
        11 => "CREATE TABLE c (id serial PRIMARY KEY, feeling mood); ALTER PUBLICATION cdc_pub ADD TABLE c".to_owned(),
        12 => "DROP TABLE c".to_owned(),
        // Several in one transaction, rows between them.
        _ => format!(
            "BEGIN; ALTER TABLE {table} ADD COLUMN {column} int; INSERT INTO {table} ({column}) VALUES (1); \
             ALTER TABLE {table} ALTER {column} TYPE text; INSERT INTO {table} ({column}) VALUES ('2'); \
             ALTER TABLE {table} DROP COLUMN {column}; INSERT INTO {table} DEFAULT VALUES; COMMIT"
        ),
    }
}

/// Statements that fit any shape, for as long as their table is there.
async fn write(url: String, mut random: Random, stop: Arc<AtomicBool>) {
    let client = connect(&url).await;
    while !stop.load(Ordering::Relaxed) {
        let table = ["a", "b", "c"][random.below(3) as usize];
        let sql = match random.below(4) {
            0 | 1 => format!("INSERT INTO {table} DEFAULT VALUES"),
            2 => format!(
                "UPDATE {table} SET feeling = 'sad' WHERE id % 17 = {}",
                random.below(17)
            ),
            _ => format!("DELETE FROM {table} WHERE id % 19 = {}", random.below(19)),
        };
        let _ = client.batch_execute(&sql).await;
    }
}
