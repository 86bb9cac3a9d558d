//! Snapshot + stream = table, whatever writes at the same time.
//!
//! In: a seed. Out: tables whose every snapshot, joined with the stream, is compared with the table.
//! Invariant: application is strict (see `copy`), so a row lost or doubled at the joint is a panic.
//!
//! `JOIN_ROUNDS`, `JOIN_WRITERS` and `JOIN_SEED` make it larger: at 20 and 24 it is what was promised.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stack::{NatsVersion, Options, PostgresVersion};
use tokio_postgres::{Client, NoTls};

use crate::copy::Copy;
use crate::world::{Loaded, World};

const SETUP: &str = "\
    CREATE TABLE accounts (id int PRIMARY KEY, n int, body text);; \
    CREATE TABLE items (shop text, id int, body text, n int, PRIMARY KEY (shop, id));; \
    ALTER TABLE items ALTER COLUMN body SET STORAGE EXTERNAL;; \
    CREATE TABLE log (a int, b text);; ALTER TABLE log REPLICA IDENTITY FULL;; \
    CREATE TABLE fence (mark int PRIMARY KEY);; \
    INSERT INTO accounts SELECT i, i, repeat(md5(i::text), 3) FROM generate_series(1, 3000) i;; \
    INSERT INTO items SELECT 's' || i % 5, i, repeat(md5(i::text), 100), i FROM generate_series(1, 300) i;; \
    INSERT INTO log SELECT i % 100, 'old' FROM generate_series(1, 1000) i;; \
    CREATE PUBLICATION cdc_pub FOR TABLE accounts, items, log, fence";

/// Table, columns, key.
const TABLES: [(&str, &[&str], &[&str]); 3] = [
    ("accounts", &["id", "n", "body"], &["id"]),
    ("items", &["shop", "id", "body", "n"], &["shop", "id"]),
    ("log", &["a", "b"], &[]),
];

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

/// From the environment.
pub fn size(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

async fn under_writers(options: Options) {
    let (rounds, writers) = (size("JOIN_ROUNDS", 2), size("JOIN_WRITERS", 8));
    let seed = size("JOIN_SEED", 1);
    println!("JOIN_ROUNDS={rounds} JOIN_WRITERS={writers} JOIN_SEED={seed}");
    let world = World::with(options, SETUP, &["--snapshot-chunk-rows", "500"]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let ids = Arc::new(AtomicU64::new(10_000));
    let writers: Vec<_> = (0..writers)
        .map(|writer| {
            let url = world.stack.postgres().url();
            let random = Random(seed.wrapping_mul(1_000_003) + writer);
            tokio::spawn(write(url, random, stop.clone(), ids.clone()))
        })
        .collect();

    let mut taken = Vec::new();
    for _ in 0..rounds {
        for (table, ..) in TABLES {
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

    let skipped: usize = taken
        .iter()
        .map(|(_, loaded)| loaded.meta.skip_xids.len())
        .sum();
    println!(
        "{} snapshots beside {transactions} transactions, {skipped} skip_xids",
        taken.len()
    );
    for (table, columns, key) in TABLES {
        let mut rows = world
            .stack
            .postgres()
            .sql(&format!("SELECT * FROM {table}"));
        rows.sort();
        let events = world.numbered_events(table).await;
        for (_, loaded) in taken.iter().filter(|(of, _)| *of == table) {
            let mut copy = Copy::new(columns, key, loaded);
            let behind = events.partition_point(|(sequence, _)| *sequence <= loaded.meta.cdc_seq);
            copy.apply(loaded, events[behind..].iter().map(|(_, event)| event));
            assert!(
                copy.rows() == rows,
                "{table} differs, joined at {:?}",
                loaded.meta
            );
        }
    }
}

/// Compares a snapshot of `accounts`, joined, with the table.
async fn is_exact(world: &World, loaded: &Loaded) {
    world.fence(1).await;
    let mut copy = Copy::new(&["id", "n", "body"], &["id"], loaded);
    let events = world.events("accounts", loaded.meta.cdc_seq + 1).await;
    copy.apply(loaded, &events);

    let mut rows = world.stack.postgres().sql("SELECT * FROM accounts");
    rows.sort();
    assert!(copy.rows() == rows, "joined at {:?}", loaded.meta);
}

#[tokio::test]
async fn a_transaction_open_across_the_snapshot_is_neither_lost_nor_doubled() {
    let world = World::new(SETUP, &[]).await;
    let open = connect(&world.stack.postgres().url()).await;
    open.batch_execute("BEGIN; UPDATE accounts SET n = -1 WHERE id = 1; INSERT INTO accounts VALUES (9999, 0, 'late')")
        .await
        .unwrap();
    let loaded = world.snapshot("accounts", "").await;
    open.batch_execute("COMMIT").await.unwrap();

    is_exact(&world, &loaded).await;
}

/// A commit that is in WAL and not visible, for as long as a standby that is not there does not answer.
struct Hanging(tokio::task::JoinHandle<()>);

impl Hanging {
    async fn commit(world: &World, sql: &str) -> Self {
        world.sql("ALTER SYSTEM SET synchronous_commit = 'local'");
        world.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
        world.sql("SELECT pg_reload_conf()");
        let client = connect(&world.stack.postgres().url()).await;
        let settled = "SELECT current_setting('synchronous_standby_names')";
        stack::eventually_async(DEADLINE, "the settings are read", async || {
            let row = client.query_one(settled, &[]).await.unwrap();
            row.get::<_, &str>(0) == "nobody"
        })
        .await;
        let sql = format!("SET synchronous_commit = on; BEGIN; {sql}; COMMIT");
        let hanging = Self(tokio::spawn(async move {
            client.batch_execute(&sql).await.unwrap();
        }));
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        stack::eventually_async(DEADLINE, "a commit that waits", async || {
            world.stack.postgres().value(waits) == "1"
        })
        .await;
        hanging
    }

    async fn release(self, world: &World) {
        world.sql("ALTER SYSTEM RESET synchronous_standby_names");
        world.sql("SELECT pg_reload_conf()");
        self.0.await.unwrap();
    }
}

const LATE: &str =
    "UPDATE accounts SET n = -1 WHERE id = 1; INSERT INTO accounts VALUES (9999, 0, 'late')";

#[tokio::test]
async fn a_commit_in_wal_and_not_yet_visible_is_neither_lost_nor_doubled() {
    let world = World::new(SETUP, &[]).await;
    let hanging = Hanging::commit(&world, LATE).await;
    // Commits behind it are visible, so the snapshot has them and lacks the one before.
    world.sql("UPDATE accounts SET n = -2 WHERE id = 2");

    let loaded = world.snapshot("accounts", "").await;
    hanging.release(&world).await;

    assert_eq!(
        loaded.meta.skip_xids.len(),
        2,
        "the later commit is in the rows, and a marker of the bridge has none"
    );
    is_exact(&world, &loaded).await;
}

#[tokio::test]
async fn one_from_before_the_bridge_started_is_waited_for() {
    // Confirmed at once, so that the next bridge does not read it again.
    let mut world = World::new(SETUP, &["--durability", "acked"]).await;
    let hanging = Hanging::commit(&world, LATE).await;
    world.fence(7).await;
    assert!(world.bridge.terminate(DEADLINE).success());
    world.restart();
    world.is_up().await;

    let id = world.accepted("accounts", "").await;
    let attempts = "SELECT count(*) FROM pg_stat_activity \
        WHERE application_name = 'bridge snapshot' AND query = 'ROLLBACK'";
    stack::eventually_async(DEADLINE, "a snapshot that tries again", async || {
        world.stack.postgres().value(attempts) == "1"
    })
    .await;
    hanging.release(&world).await;

    let loaded = world.load("accounts", &id).await;
    is_exact(&world, &loaded).await;
}

const DEADLINE: Duration = crate::world::DEADLINE;

pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Enough for choosing statements.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Commits at random until told to stop; the number of transactions.
async fn write(url: String, mut random: Random, stop: Arc<AtomicBool>, ids: Arc<AtomicU64>) -> u64 {
    let client = connect(&url).await;
    let mut transactions = 0;
    while !stop.load(Ordering::Relaxed) {
        let new = ids.fetch_add(10, Ordering::Relaxed);
        let mut sql = statement(&mut random, new);
        match random.below(12) {
            0 => sql = format!("BEGIN; {sql}; {}; COMMIT", statement(&mut random, new + 1)),
            1 => {
                let (undone, done) = (
                    statement(&mut random, new + 2),
                    statement(&mut random, new + 3),
                );
                sql = format!(
                    "BEGIN; {sql}; SAVEPOINT a; {undone}; SAVEPOINT b; {}; ROLLBACK TO a; {done}; RELEASE a; COMMIT",
                    statement(&mut random, new + 4)
                );
            }
            // Long ones: others begin and commit meanwhile, and snapshots are taken.
            2 => {
                let (pause, more) = (random.below(1500), statement(&mut random, new + 5));
                sql = format!("BEGIN; {sql}; SELECT pg_sleep({pause} / 1000.0); {more}; COMMIT");
            }
            3 => {
                sql = format!(
                    "BEGIN; {sql}; {}; ROLLBACK",
                    statement(&mut random, new + 6)
                );
            }
            _ => {}
        }
        match client.batch_execute(&sql).await {
            Ok(()) => transactions += 1,
            // Two writers at each other's rows or keys: PostgreSQL has picked one.
            Err(error)
                if error
                    .code()
                    .is_some_and(|code| ["40P01", "23505"].contains(&code.code())) =>
            {
                let _ = client.batch_execute("ROLLBACK").await;
            }
            Err(error) => panic!("{error:?} in {sql}"),
        }
    }
    transactions
}

/// One statement, or two; `new` is a key nobody has.
fn statement(random: &mut Random, new: u64) -> String {
    let pick = random.below(3000) + 1;
    let (a, item) = (pick % 100, pick % 300 + 1);
    // Some thousand bytes that do not compress, so that they are TOAST.
    let large = format!(
        "(SELECT string_agg(md5('{new}.' || g), '') FROM generate_series(1, {}) g)",
        80 + pick % 80
    );
    match random.below(16) {
        0 => format!("INSERT INTO accounts VALUES ({new}, 0, 'new')"),
        1 | 2 => format!("UPDATE accounts SET n = n + 1 WHERE id = {pick}"),
        3 => format!("DELETE FROM accounts WHERE id = {pick}"),
        4 => format!("UPDATE accounts SET id = {new} WHERE id = {pick}"),
        5 => format!(
            "INSERT INTO accounts SELECT {new} + g, g, 'many' FROM generate_series(0, 8) g ON CONFLICT DO NOTHING"
        ),
        6 => format!(
            "INSERT INTO items VALUES ('s{}', {new}, {large}, 0)",
            new % 5
        ),
        7 => format!("UPDATE items SET n = n + 1 WHERE id = {item}"),
        8 => format!("UPDATE items SET body = {large} WHERE id = {item}"),
        // Keys change and TOAST stays, within the transaction and across the shops.
        9 => format!(
            "UPDATE items SET shop = 's{}', id = {new} WHERE id = {item}",
            pick % 5
        ),
        10 => format!("DELETE FROM items WHERE id % 300 = {item}"),
        11 => format!(
            "INSERT INTO accounts VALUES ({new}, 1, 'short life'); DELETE FROM accounts WHERE id = {new}"
        ),
        12 => format!("INSERT INTO log VALUES ({a}, 'same'), ({a}, 'same')"),
        13 => format!("UPDATE log SET b = 'x{}' WHERE a = {a}", new % 7),
        14 => format!("UPDATE log SET a = a + 1 WHERE a = {a}"),
        _ if pick < 20 => "TRUNCATE log".to_owned(),
        _ => format!("DELETE FROM log WHERE a = {a}"),
    }
}
