//! Snapshot + stream = table, whatever writes at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use stack::{NatsVersion, Options, PostgresVersion};
use tokio_postgres::{Client, NoTls};

use crate::copy::Copy;
use crate::world::World;

const SETUP: &str = "\
    CREATE TABLE accounts (id int PRIMARY KEY, n int, body text);; \
    CREATE TABLE log (a int, b text);; ALTER TABLE log REPLICA IDENTITY FULL;; \
    CREATE TABLE fence (mark int PRIMARY KEY);; \
    INSERT INTO accounts SELECT i, i, repeat(md5(i::text), 3) FROM generate_series(1, 3000) i;; \
    INSERT INTO log SELECT i % 100, 'old' FROM generate_series(1, 1000) i;; \
    CREATE PUBLICATION cdc_pub FOR TABLE accounts, log, fence";

const WRITERS: u64 = 8;
const SNAPSHOTS: usize = 4;

#[tokio::test]
async fn snapshots_under_writers_join_the_stream_exactly() {
    under_writers(Options::default()).await;
}

#[tokio::test]
async fn they_do_on_postgres_17() {
    let options = Options::default().postgres(PostgresVersion::V17);
    under_writers(options.nats(NatsVersion::V2_14)).await;
}

#[tokio::test]
async fn they_do_on_postgres_18() {
    let options = Options::default().postgres(PostgresVersion::V18);
    under_writers(options.nats(NatsVersion::V2_15)).await;
}

async fn under_writers(options: Options) {
    let world = World::with(options, SETUP, &["--snapshot-chunk-rows", "500"]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let ids = Arc::new(AtomicU64::new(10_000));
    let writers: Vec<_> = (0..WRITERS)
        .map(|seed| {
            let writer = write(
                world.stack.postgres().url(),
                seed,
                stop.clone(),
                ids.clone(),
            );
            tokio::spawn(writer)
        })
        .collect();

    let mut taken = Vec::new();
    for _ in 0..SNAPSHOTS {
        for table in ["accounts", "log"] {
            taken.push((table, world.snapshot(table, "").await));
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut transactions = 0;
    for writer in writers {
        transactions += writer.await.unwrap();
    }
    assert!(
        transactions > 100,
        "only {transactions} transactions ran beside the snapshots"
    );
    world.fence(1).await;

    for (table, loaded) in taken {
        let (columns, key): (&[&str], &[&str]) = match table {
            "accounts" => (&["id", "n", "body"], &["id"]),
            _ => (&["a", "b"], &[]),
        };
        let mut copy = Copy::new(columns, key, &loaded);
        copy.apply(&loaded, &world.events(table, loaded.meta.cdc_seq + 1).await);

        let mut rows = world
            .stack
            .postgres()
            .sql(&format!("SELECT * FROM {table}"));
        rows.sort();
        assert!(
            copy.rows() == rows,
            "{table} differs, joined at {:?}",
            loaded.meta
        );
    }
}

#[tokio::test]
async fn a_commit_that_waits_to_become_visible_is_neither_lost_nor_doubled() {
    // A transaction held open across the snapshot: begun before it, committed behind it.
    let world = World::new(SETUP, &[]).await;
    let open = connect(&world.stack.postgres().url()).await;
    open.batch_execute("BEGIN; UPDATE accounts SET n = -1 WHERE id = 1; INSERT INTO accounts VALUES (9999, 0, 'late')")
        .await
        .unwrap();
    let loaded = world.snapshot("accounts", "").await;
    open.batch_execute("COMMIT").await.unwrap();
    world.fence(1).await;

    let mut copy = Copy::new(&["id", "n", "body"], &["id"], &loaded);
    copy.apply(
        &loaded,
        &world.events("accounts", loaded.meta.cdc_seq + 1).await,
    );

    let mut rows = world.stack.postgres().sql("SELECT * FROM accounts");
    rows.sort();
    assert_eq!(copy.rows(), rows);
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Commits at random until told to stop; the number of transactions.
async fn write(url: String, seed: u64, stop: Arc<AtomicBool>, ids: Arc<AtomicU64>) -> u64 {
    let client = connect(&url).await;
    let mut random = seed + 1;
    let mut transactions = 0;
    while !stop.load(Ordering::Relaxed) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let (kind, pick) = ((random >> 33) % 7, (random >> 40) % 3000 + 1);
        let new = ids.fetch_add(1, Ordering::Relaxed);
        let sql = match kind {
            0 => format!("INSERT INTO accounts VALUES ({new}, 0, 'new')"),
            1 => format!("UPDATE accounts SET n = n + 1 WHERE id = {pick}"),
            2 => format!("DELETE FROM accounts WHERE id = {pick}"),
            3 => format!("UPDATE accounts SET id = {new} WHERE id = {pick}"),
            4 => format!(
                "BEGIN; INSERT INTO accounts VALUES ({new}, 1, 'a'); SAVEPOINT s; \
                 DELETE FROM log WHERE a = {a}; ROLLBACK TO s; UPDATE log SET b = 'x{new}' WHERE a = {a}; COMMIT",
                a = pick % 100
            ),
            5 => format!(
                "INSERT INTO log VALUES ({}, 'same'), ({}, 'same')",
                pick % 100,
                pick % 100
            ),
            _ => format!("DELETE FROM log WHERE a = {}", pick % 100),
        };
        match client.batch_execute(&sql).await {
            Ok(()) => transactions += 1,
            // Two writers at each other's rows: PostgreSQL has picked one.
            Err(error) if error.code().is_some_and(|code| code.code() == "40P01") => {
                let _ = client.batch_execute("ROLLBACK").await;
            }
            Err(error) => panic!("{error:?} in {sql}"),
        }
    }
    transactions
}
