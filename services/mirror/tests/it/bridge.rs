//! The whole road: PostgreSQL, the real bridge, NATS, mirrors, SQLite.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use stack::{Options, Process, Stack};

use crate::harness::{DEADLINE, World};

const TABLES: &str = "
    CREATE TABLE users (id int PRIMARY KEY, name text, active bool, bio text);
    CREATE TABLE orders (id bigserial, user_id int, total numeric(10,2), PRIMARY KEY (user_id, id));
    CREATE TABLE log (line text, at timestamptz, n double precision);
    ALTER TABLE log REPLICA IDENTITY FULL;
    INSERT INTO users SELECT g, 'user ' || g, g % 2 = 0, NULL FROM generate_series(1, 2000) g;
    INSERT INTO log SELECT 'line', '2025-12-10 10:30:00+00', 1.5 FROM generate_series(1, 50);
    CREATE PUBLICATION cdc_pub FOR TABLE users, orders, log;";

/// (what PostgreSQL says, what SQLite says) of every table, for comparison row by row.
const QUERIES: [(&str, &str); 3] = [
    (
        "SELECT concat_ws('|', id, coalesce(name, 'NULL'), active::int, coalesce(bio, 'NULL'))
         FROM users ORDER BY id",
        "SELECT id, name, active, bio FROM users ORDER BY id",
    ),
    (
        "SELECT concat_ws('|', user_id, id, total) FROM orders ORDER BY user_id, id",
        "SELECT user_id, id, total FROM orders ORDER BY user_id, id",
    ),
    (
        "SELECT concat_ws('|', line, at, n::numeric(10,1)) FROM log ORDER BY line, n, at",
        "SELECT line, at, n FROM log ORDER BY line, n, at",
    ),
];

async fn world() -> (World, Process) {
    let world = World::on(Stack::up(Options::default()).unwrap()).await;
    world
        .stack
        .postgres()
        .sql("ALTER DATABASE postgres SET timezone = 'UTC'");
    world.stack.postgres().sql(TABLES);
    let bridge = world
        .stack
        .program(stack::bridge_binary().unwrap())
        .args(["--pg-url", &world.stack.postgres().url()])
        .args(["--nats-url", &world.stack.nats().url()])
        .args(["--port", &world.stack.claim_port().to_string()])
        .start();
    (world, bridge)
}

fn source_rows(world: &World, sql: &str) -> Vec<String> {
    let rows = world.stack.postgres().sql(sql);
    rows.into_iter()
        .map(|mut row| row.remove(0).unwrap_or_default())
        .collect()
}

/// Compares every table, and says the first rows that differ.
fn compare(world: &World) {
    for (source, copy) in QUERIES {
        let (source, copy) = (source_rows(world, source), world.rows(copy));
        let mut differences = String::new();
        for (source, copy) in source.iter().zip(&copy).filter(|(a, b)| a != b).take(3) {
            writeln!(differences, "{source:.200} is {copy:.200}").unwrap();
        }
        assert!(differences.is_empty(), "{differences}");
        assert_eq!(source.len(), copy.len());
    }
}

/// One transaction of a writer: its number decides what it does, and to which rows.
fn transaction(writer: u64, number: u64) -> String {
    // Any fixed scramble: writers meet on some rows and miss on most.
    let scrambled = (writer * 1_000_003 + number).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
    let id = scrambled % 300 + 1;
    let large = format!(
        "(SELECT string_agg(md5('{writer}.{number}.' || g), '') FROM generate_series(1, 120) g)"
    );
    match number % 9 {
        0 => format!(
            "INSERT INTO users VALUES ({id}, 'new', true, NULL)
             ON CONFLICT (id) DO UPDATE SET name = 'again {number}'"
        ),
        1 => format!("UPDATE users SET bio = {large} WHERE id = {id}"),
        2 => format!("UPDATE users SET name = 'w{writer} n{number}' WHERE id % 50 = {}", id % 50),
        3 => format!("UPDATE users SET id = id + 100000 WHERE id = {id}"),
        4 => format!("DELETE FROM users WHERE id = {id}"),
        5 => format!(
            "INSERT INTO orders (user_id, total) SELECT {id}, g * 1.10 FROM generate_series(1, 5) g;
             UPDATE users SET active = NOT active WHERE id = {id};
             INSERT INTO log VALUES ('order', '2025-12-10 10:30:00+00', {number});"
        ),
        6 => format!(
            "INSERT INTO orders (user_id, total) VALUES ({id}, 1);
             SAVEPOINT a; INSERT INTO orders (user_id, total) VALUES ({id}, 2);
             ROLLBACK TO a; UPDATE orders SET total = total + 0.01 WHERE user_id = {id};"
        ),
        7 => "DELETE FROM log WHERE ctid IN (SELECT ctid FROM log ORDER BY random() LIMIT 2)"
            .to_owned(),
        _ => "UPDATE log SET n = n + 0.5 WHERE ctid IN (SELECT ctid FROM log ORDER BY random() LIMIT 2)"
            .to_owned(),
    }
}

/// What a mirror has done so far: changes with every chunk and every commit.
fn done(world: &World) -> Option<Vec<String>> {
    let sql = "SELECT 'load', name, chunks FROM _mirror_loads
               UNION ALL SELECT 'table', name, sequence FROM _mirror_tables";
    world.try_rows(sql).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_killed_while_the_source_is_written_equals_it_in_the_end() {
    const WRITERS: u64 = 4;
    const KILLS: u32 = 50;
    let (world, bridge) = world().await;
    let enough = AtomicBool::new(false);
    let program = || world.mirror("users,orders,log", &[]);

    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (world, enough) = (&world, &enough);
            scope.spawn(move || {
                for number in 0.. {
                    if enough.load(Ordering::Relaxed) {
                        return;
                    }
                    let sql = transaction(writer, number);
                    // A deadlock or a taken key rolls the transaction back, which is one more case.
                    let _ = world
                        .stack
                        .postgres()
                        .try_sql_in("postgres", &format!("BEGIN; {sql}; COMMIT"));
                }
            });
        }
        let stop = Stop(&enough);
        for _ in 0..KILLS {
            let before = done(&world);
            let mirror = program();
            stack::eventually(DEADLINE, "the mirror gets somewhere", || {
                assert!(mirror.is_running(), "{}", mirror.log_tail());
                done(&world) != before
            });
            mirror.kill();
        }
        drop(stop);
    });
    world
        .stack
        .postgres()
        .sql("INSERT INTO users VALUES (0, 'the last', true, NULL)");
    let mirror = program();
    world
        .wait_for_rows("SELECT name FROM users WHERE id = 0", &["the last"])
        .await;

    assert!(mirror.terminate(DEADLINE).success());
    compare(&world);
    let log = std::fs::read_to_string(mirror.stderr_path()).unwrap();
    assert!(!log.contains("differ"), "{log}");

    // A second copy joins the snapshots of the first, and reads all that happened since.
    world.remove_db();
    let log = world.catch_up("users,orders,log");
    compare(&world);
    assert!(!log.contains("asks for a snapshot"), "{log}");
    assert!(!log.contains("differ"), "{log}");
    assert!(bridge.is_running());
}

/// Ends the writers, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_mirror_follows_ddl() {
    let (world, _bridge) = world().await;
    let postgres = world.stack.postgres();
    let mirror = world.mirror("users", &[]);
    let seeded = ["2000"];
    world
        .wait_for_rows("SELECT count(*) FROM users", &seeded)
        .await;

    for (id, ddl) in (-8..).zip([
        "ALTER TABLE users ADD COLUMN age int",
        "ALTER TABLE users RENAME COLUMN name TO title",
        "ALTER TABLE users ADD COLUMN level int DEFAULT 7",
        "ALTER TABLE users DROP COLUMN age",
        "ALTER TABLE users ALTER COLUMN active TYPE text USING CASE WHEN active THEN 'yes' ELSE 'no' END",
        "ALTER TABLE users RENAME COLUMN title TO tmp; ALTER TABLE users RENAME COLUMN bio TO title;
         ALTER TABLE users RENAME COLUMN tmp TO bio",
    ]) {
        postgres.sql(ddl);
        postgres.sql(&format!("INSERT INTO users (id) VALUES ({id})"));
        world.wait_for_rows(&format!("SELECT id FROM users WHERE id = {id}"), &[&id.to_string()]).await;
    }

    let of = "coalesce(bio, 'NULL'), coalesce(active, 'NULL'), coalesce(title, 'NULL'), coalesce(level::text, 'NULL')";
    let source = source_rows(
        &world,
        &format!("SELECT concat_ws('|', id, {of}) FROM users ORDER BY id"),
    );
    assert_eq!(
        world.rows("SELECT id, bio, active, title, level FROM users ORDER BY id"),
        source
    );
    assert!(!mirror.stderr().contains("differ"), "{}", mirror.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_was_away_reads_rows_anew_that_ddl_has_changed() {
    let (world, _bridge) = world().await;
    let postgres = world.stack.postgres();
    world.catch_up("users");
    postgres.sql("ALTER TABLE users ADD COLUMN level int DEFAULT 7");
    // A row of another table tells that the bridge has come by, and none of this one.
    stack::eventually_async(DEADLINE, "the bridge sees the column", async || {
        let bucket = world.context.get_key_value("schemas").await.ok()?;
        let schema = bucket.get("users").await.ok()??;
        let schema: wire::schema::Schema = wire::Message::decode(&schema).ok()?;
        (schema.seed_version == 2).then_some(())
    })
    .await;

    let log = world.catch_up("users");

    assert_eq!(
        world.rows("SELECT count(*) FROM users WHERE level = 7"),
        ["2000"],
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_go_and_come_back_are_followed() {
    let (world, bridge) = world().await;
    let postgres = world.stack.postgres();
    let mirror = world.mirror("users,orders", &[]);
    let is_gone = async |table: &str| {
        let sql = format!("SELECT count(*) FROM sqlite_schema WHERE name = '{table}'");
        world.wait_for_rows(&sql, &["0"]).await;
    };
    world
        .wait_for_rows("SELECT count(*) FROM users", &["2000"])
        .await;
    world
        .wait_for_rows("SELECT count(*) FROM orders", &["0"])
        .await;

    postgres.sql("DROP TABLE orders");
    is_gone("orders").await;
    // The other goes on.
    postgres.sql("DELETE FROM users WHERE id > 10");
    world
        .wait_for_rows("SELECT count(*) FROM users", &["10"])
        .await;
    postgres.sql(
        "CREATE TABLE orders (id int PRIMARY KEY, note text); INSERT INTO orders VALUES (1, 'new'); \
         ALTER PUBLICATION cdc_pub ADD TABLE orders",
    );
    world
        .wait_for_rows("SELECT id, note FROM orders", &["1|new"])
        .await;
    postgres.sql("ALTER TABLE users RENAME TO people");
    is_gone("users").await;
    postgres.sql("UPDATE people SET name = 'renamed' WHERE id = 1");
    postgres.sql("INSERT INTO orders VALUES (2, 'more')");
    world
        .wait_for_rows("SELECT count(*) FROM orders", &["2"])
        .await;
    postgres.sql("ALTER TABLE people RENAME TO users");
    world
        .wait_for_rows("SELECT name FROM users WHERE id = 1", &["renamed"])
        .await;
    // Rebuilt by hand: the same name and shape, other rows.
    postgres.sql(
        "BEGIN; CREATE TABLE fresh (id int PRIMARY KEY, note text); INSERT INTO fresh VALUES (7, 'other'); \
         DROP TABLE orders; ALTER TABLE fresh RENAME TO orders; ALTER PUBLICATION cdc_pub ADD TABLE orders; COMMIT",
    );
    world
        .wait_for_rows("SELECT id, note FROM orders", &["7|other"])
        .await;
    // No longer published is not dropped: the last rows stay.
    postgres.sql("ALTER PUBLICATION cdc_pub DROP TABLE orders");
    mirror.wait_for_line("is_kept=true", DEADLINE);
    assert_eq!(world.rows("SELECT id FROM orders"), ["7"]);

    assert!(mirror.is_running() && bridge.is_running());
    assert!(!mirror.stderr().contains("differ"), "{}", mirror.stderr());
}

/// Two bridges, each with tables of its own, on one stream; transactions write both.
async fn two_bridges_on_one_stream(options: Options) {
    const TRANSACTIONS: u64 = 100;
    let world = World::on(Stack::up(options).unwrap()).await;
    let postgres = world.stack.postgres();
    postgres.sql(
        "CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY, n int);
         CREATE TABLE other (id serial PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE a, b, other",
    );
    let bridge = |slot: &str, tables: &str| {
        let bridge = world
            .stack
            .program(stack::bridge_binary().unwrap())
            .named(slot)
            .args([
                "--pg-url",
                &postgres.url(),
                "--nats-url",
                &world.stack.nats().url(),
            ])
            .args(["--slot", slot, "--table", tables])
            .args(["--port", &world.stack.claim_port().to_string()])
            .start();
        bridge.wait_for_line("replication started", DEADLINE);
        bridge
    };
    let first = bridge("slot_a", "a,other");
    let second = bridge("slot_b", "b");
    postgres.sql(
        "INSERT INTO a SELECT g, 0 FROM generate_series(1, 50) g; INSERT INTO b SELECT * FROM a",
    );

    let mirror = world.mirror("a,b", &[]);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            scope.spawn(move || {
                for number in 0..TRANSACTIONS {
                    // Rows of its own: two that wait for each other would end the test.
                    let id = writer * 12 + number % 10 + 1;
                    // The last event of the first bridge's transaction is of a table not mirrored.
                    postgres.sql(&format!(
                        "BEGIN; UPDATE a SET n = n + 1 WHERE id = {id}; UPDATE b SET n = n + 1 WHERE id = {id};
                         UPDATE a SET n = n + 1 WHERE id = {id} + 1; UPDATE b SET n = n + 1 WHERE id = {id} + 1;
                         INSERT INTO other DEFAULT VALUES; COMMIT"
                    ));
                }
            });
        }
    });
    postgres.sql("INSERT INTO a VALUES (0, -1); INSERT INTO b VALUES (0, -1)");
    world
        .wait_for_rows("SELECT n FROM a WHERE id = 0", &["-1"])
        .await;
    world
        .wait_for_rows("SELECT n FROM b WHERE id = 0", &["-1"])
        .await;

    for table in ["a", "b"] {
        let rows = source_rows(
            &world,
            &format!("SELECT concat_ws('|', id, n) FROM {table} ORDER BY id"),
        );
        assert_eq!(
            world.rows(&format!("SELECT id, n FROM {table} ORDER BY id")),
            rows
        );
    }
    assert!(mirror.terminate(DEADLINE).success());
    world.remove_db();
    let log = world.catch_up("a,b");
    assert!(!log.contains("differ"), "{log}");
    assert_eq!(
        world.rows("SELECT sum(n) FROM a"),
        world.rows("SELECT sum(n) FROM b")
    );
    assert!(first.is_running() && second.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_shared_by_two_bridges_is_mirrored() {
    two_bridges_on_one_stream(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_when_they_publish_in_atomic_batches() {
    two_bridges_on_one_stream(Options::default().nats(stack::NatsVersion::V2_14)).await;
}

/// `users` in the source and here, column by column.
fn users_as_text(world: &World) -> (Vec<String>, Result<Vec<String>, rusqlite::Error>) {
    let columns = source_rows(
        world,
        "SELECT attname FROM pg_attribute WHERE attrelid = 'users'::regclass AND attnum > 0
         AND NOT attisdropped ORDER BY attname",
    );
    let texts = |cast: &str| {
        let text = |name: &String| format!("coalesce(CAST({name} AS {cast}), 'NULL')");
        let texts: Vec<String> = columns.iter().map(text).collect();
        texts.join(" || '|' || ")
    };
    (
        source_rows(
            world,
            &format!("SELECT {} FROM users ORDER BY id", texts("text")),
        ),
        world.try_rows(&format!("SELECT {} FROM users ORDER BY id", texts("TEXT"))),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_killed_in_a_storm_of_ddl_equals_the_source_in_the_end() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    let (statements, seed) = (number("STORM_STATEMENTS", 40), number("STORM_SEED", 1));
    println!("STORM_STATEMENTS={statements} STORM_SEED={seed}");
    let (world, bridge) = world().await;
    let postgres = world.stack.postgres();
    postgres.sql("CREATE TYPE mood AS ENUM ('sad', 'ok'); ALTER TABLE users ADD COLUMN feeling mood DEFAULT 'ok'");
    postgres.sql("ALTER TABLE users DROP COLUMN active; DELETE FROM users WHERE id > 300");
    let mut mirror = world.mirror("users,orders", &[]);
    let enough = AtomicBool::new(false);

    std::thread::scope(|scope| {
        for writer in 0..2_u64 {
            let enough = &enough;
            scope.spawn(move || {
                for number in 0.. {
                    if enough.load(Ordering::Relaxed) {
                        return;
                    }
                    let (id, new) = (number * 13 % 300, 1_000_000 * (writer + 1) + number);
                    let sql = match number % 4 {
                        0 => format!("INSERT INTO users (id) VALUES ({new})"),
                        1 => format!("UPDATE users SET feeling = 'sad' WHERE id % 300 = {id}"),
                        2 => format!("UPDATE users SET id = {new} WHERE id = {id}"),
                        _ => format!("DELETE FROM users WHERE id % 299 = {id}"),
                    };
                    // The label may have been renamed.
                    let _ = postgres.try_sql_in("postgres", &sql);
                }
            });
        }
        let stop = Stop(&enough);
        let mut random = seed;
        for index in 0..statements {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let column = ["x", "y"][(random >> 40) as usize % 2];
            // What does not fit the table as it is now is refused; the next one is tried.
            let _ = postgres.try_sql_in("postgres", &ddl((random >> 33) % 10, column, index));
            if index % 10 == 9 {
                mirror.kill();
                mirror = world.mirror("users,orders", &[]);
            }
        }
        drop(stop);
    });
    // A row of the last shape.
    postgres.sql("INSERT INTO users (id) VALUES (0)");

    stack::eventually(
        DEADLINE,
        "the mirror equals the source",
        || match users_as_text(&world) {
            (source, Ok(copy)) if source == copy => Ok(()),
            (source, Ok(copy)) => {
                let differs = source
                    .iter()
                    .zip(&copy)
                    .find(|(source, copy)| source != copy);
                Err(format!(
                    "{} and {} rows: {differs:?}",
                    source.len(),
                    copy.len()
                ))
            }
            (_, Err(error)) => Err(error.to_string()),
        },
    );
    assert!(bridge.is_running() && mirror.is_running());
}

fn ddl(kind: u64, column: &str, index: u64) -> String {
    match kind {
        0 | 1 => format!("ALTER TABLE users ADD COLUMN {column} int"),
        2 => format!("ALTER TABLE users ADD COLUMN {column} text DEFAULT 'd{index}'"),
        3 => format!("ALTER TABLE users DROP COLUMN {column}"),
        4 => "ALTER TABLE users RENAME COLUMN x TO y".to_owned(),
        5 => format!("ALTER TABLE users ALTER COLUMN {column} TYPE text"),
        6 => format!("ALTER TYPE mood ADD VALUE 'm{index}'"),
        7 => format!(
            "ALTER TABLE users DROP COLUMN {column};
             ALTER TABLE users ADD COLUMN {column} int; UPDATE users SET {column} = id WHERE id % 3 = 0"
        ),
        8 => "ALTER TABLE users RENAME TO users_old; CREATE TABLE users (LIKE users_old INCLUDING ALL);
              INSERT INTO users SELECT * FROM users_old; DROP TABLE users_old;
              ALTER PUBLICATION cdc_pub ADD TABLE users"
            .to_owned(),
        _ => format!(
            "ALTER TABLE users ADD COLUMN {column} int; UPDATE users SET {column} = 1 WHERE id % 5 = 0;
             ALTER TABLE users ALTER {column} TYPE text; UPDATE users SET {column} = '2' WHERE id % 7 = 0;
             ALTER TABLE users RENAME COLUMN {column} TO z; UPDATE users SET z = '3' WHERE id % 11 = 0;
             ALTER TABLE users DROP COLUMN z"
        ),
    }
}
