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
