//! What goes wrong: kills, gaps, retention, lost streams, rows that differ.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wire::gap::{Gap, Reason};
use wire::{Lsn, Message, SubjectPattern};

use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_killed_again_and_again_applies_every_change_once() {
    const TRANSACTIONS: u64 = 400;
    let world = World::with_users(&[]).await;
    world.publish_schema(&orders()).await;
    world.snapshot(made(&orders(), &[], 100, 0)).await;
    let mut expected = BTreeMap::new();

    let mut mirror = world.mirror("users,orders", &[]);
    for number in 1..=TRANSACTIONS {
        let id = number as i64 % 40;
        let name = format!("name {number}");
        let change = if expected.insert(id, name.clone()).is_none() {
            insert("users", user(id, &name))
        } else if number % 7 == 0 {
            expected.remove(&id);
            delete("users", vec![int("id", id)])
        } else {
            update("users", user(id, &name))
        };
        let order = insert("orders", order(number as i64, "1.00"));
        world.transaction(100 + number, vec![change, order]).await;
        if number % 40 == 0 {
            mirror.kill();
            mirror = world.mirror("users,orders", &[]);
        }
    }
    mirror.kill();
    world.catch_up("users,orders");

    let expected: Vec<String> = expected
        .iter()
        .map(|(id, name)| format!("{id}|{name}"))
        .collect();
    assert_eq!(
        world.rows("SELECT id, name FROM users ORDER BY id"),
        expected
    );
    assert_eq!(
        world.rows("SELECT count(*) FROM orders"),
        [TRANSACTIONS.to_string()]
    );
    let log = std::fs::read_to_string(mirror.stderr_path()).unwrap();
    assert!(!log.contains("differ"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_gap_all_rows_are_read_anew_and_only_once() {
    let world = World::with_users(&[&["1", "one", "x"]]).await;
    let mirror = world.mirror("users", &[]);
    world.wait_for_rows("SELECT id FROM users", &["1"]).await;
    let mut requests = world.requests().await;
    let gap = Gap {
        slot: "cdc_slot".to_owned(),
        epoch: 1,
        from: Lsn(100),
        to: Lsn(200),
        reason: Reason::SlotLost,
        timestamp: 0,
    };

    world
        .publish(SubjectPattern::default().gap(), gap.to_msgpack())
        .await;
    // Its `cdc_seq` lies before the gap, which the mirror so reads again.
    requests
        .answer(made(&users(), &[&["2", "two", "y"]], 200, 0))
        .await;

    world.wait_for_rows("SELECT id FROM users", &["2"]).await;
    world.insert_user(210, 3, "three").await;
    world
        .wait_for_rows("SELECT id FROM users", &["2", "3"])
        .await;
    assert!(requests.is_quiet());
    assert!(mirror.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_retention_overtook_is_seeded_anew() {
    let world = World::with_users(&[&["1", "one", "x"]]).await;
    world.insert_user(110, 2, "two").await;
    world.catch_up("users");
    world.insert_user(120, 3, "three").await;
    let last = world.insert_user(130, 4, "four").await;
    let file = rusqlite::Connection::open(world.db()).unwrap();
    let mine = "CREATE INDEX mine ON users (name); CREATE VIEW names AS SELECT name FROM users";
    file.execute_batch(mine).unwrap();
    drop(file);
    let stream = world.context.get_stream("CDC").await.unwrap();
    stream.purge().sequence(last).await.unwrap();
    let mut requests = world.requests().await;

    let mirror = world.mirror("users", &["--once"]);
    requests
        .answer(made(&users(), &[&["9", "all", "y"]], 131, last))
        .await;

    assert!(mirror.wait(DEADLINE).success(), "{}", mirror.log_tail());
    assert_eq!(world.rows("SELECT id FROM users"), ["9"]);
    assert_eq!(world.rows("SELECT * FROM names"), ["all"]);
    let index = "SELECT name FROM pragma_index_list('users') WHERE name = 'mine'";
    assert_eq!(world.rows(index), ["mine"], "what others made is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_lost_from_the_middle_is_noticed() {
    let world = World::with_users(&[]).await;
    world.catch_up("users");
    let before = world.insert_user(110, 1, "one").await;
    let lost = world.insert_user(120, 2, "two").await;
    world.insert_user(130, 3, "three").await;
    world.insert_user(140, 4, "four").await;
    let stream = world.context.get_stream("CDC").await.unwrap();
    stream.delete_message(lost).await.unwrap();
    let mut requests = world.requests().await;

    let mirror = world.mirror("users", &["--once"]);
    // Joined before the hole, which is then read again.
    let rows: &[&[&str]] = &[&["1", "one", "x"], &["2", "two", "y"], &["3", "three", "z"]];
    requests.answer(made(&users(), rows, 131, before)).await;

    assert!(mirror.wait(DEADLINE).success(), "{}", mirror.log_tail());
    assert_eq!(
        world.rows("SELECT id FROM users ORDER BY id"),
        ["1", "2", "3", "4"]
    );
    assert!(requests.is_quiet(), "rows newer than the hole are enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_is_not_taken_for_the_old_one() {
    let world = World::with_users(&[]).await;
    world.insert_user(110, 1, "one").await;
    world.catch_up("users");
    world.context.delete_stream("CDC").await.unwrap();
    world.make_stream("CDC", "cdc.>").await;
    world.insert_user(120, 2, "two").await;
    let last = world.insert_user(130, 3, "three").await;
    let mut requests = world.requests().await;

    let mirror = world.mirror("users", &["--once"]);
    requests
        .answer(made(&users(), &[&["7", "all", "y"]], 131, last))
        .await;

    assert!(mirror.wait(DEADLINE).success(), "{}", mirror.log_tail());
    assert_eq!(world.rows("SELECT id FROM users"), ["7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_differ_are_said_and_read_anew() {
    let world = World::with_users(&[]).await;
    world.catch_up("users");
    let last = world
        .transaction(110, vec![delete("users", vec![int("id", 1)])])
        .await;
    let mut requests = world.requests().await;

    let mirror = world.mirror("users", &["--once"]);
    requests
        .answer(made(&users(), &[&["5", "five", "y"]], 111, last))
        .await;

    assert!(mirror.wait(DEADLINE).success(), "{}", mirror.log_tail());
    assert_eq!(world.rows("SELECT id FROM users"), ["5"]);
    assert!(
        mirror
            .stderr()
            .contains("the rows here differ from the source's")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_two_bridges_in_one_stream_are_refused() {
    let world = World::with_users(&[]).await;
    let mut open = insert("users", user(1, "one"));
    (open.commit_lsn, open.seq) = (Lsn(120), 1);
    world.publish_event(&open).await;
    world
        .transaction(110, vec![insert("strangers", vec![int("id", 1)])])
        .await;
    world.insert_user(130, 2, "two").await;

    let mirror = world.mirror("users", &["--once"]);

    assert_eq!(mirror.wait(DEADLINE).code(), Some(1));
    assert!(
        mirror
            .stderr()
            .contains("Several bridges may write this stream")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_may_go_away_and_come_back() {
    let world = World::with_users(&[]).await;
    let mirror = world.mirror("users", &[]);
    world.insert_user(110, 1, "one").await;
    world.wait_for_rows("SELECT id FROM users", &["1"]).await;

    world.stack.nats().kill();
    world.stack.nats().start();
    stack::eventually_async(DEADLINE, "NATS takes messages", async || {
        world.context.get_stream("CDC").await.is_ok()
    })
    .await;
    world.insert_user(120, 2, "two").await;

    world
        .wait_for_rows("SELECT id FROM users", &["1", "2"])
        .await;
    assert!(mirror.terminate(DEADLINE).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_has_one_mirror() {
    let world = World::with_users(&[]).await;
    let first = world.mirror("users", &[]);
    first.wait_for_line("follows the stream", DEADLINE);

    let second = world.stack.program(env!("CARGO_BIN_EXE_mirror"));
    let second = second
        .named("second")
        .args([
            "--tables",
            "users",
            "--nats-url",
            &world.stack.nats().url(),
            "--db",
        ])
        .arg(world.db())
        .start();

    assert_eq!(second.wait(DEADLINE).code(), Some(1));
    assert!(second.stderr().contains("another mirror keeps"));
    assert!(first.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_beside_a_mirror_that_is_killed_sees_whole_transactions_only() {
    const TRANSACTIONS: u64 = 300;
    let world = World::with_users(&[]).await;
    world.publish_schema(&orders()).await;
    world.snapshot(made(&orders(), &[], 100, 0)).await;
    world.catch_up("users,orders");
    let reader = rusqlite::Connection::open(world.db()).unwrap();
    reader.busy_timeout(DEADLINE).unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let is_ended = ended.clone();
    let reading = std::thread::spawn(move || read_whole(&reader, &is_ended));

    let mut mirror = world.mirror("users,orders", &[]);
    for number in 1..=TRANSACTIONS {
        let events = vec![
            insert("users", user(number as i64, "new")),
            insert("orders", order(number as i64, "1.00")),
        ];
        world.transaction(100 + number, events).await;
        if number % 30 == 0 {
            mirror.kill();
            mirror = world.mirror("users,orders", &[]);
        }
    }
    let all = TRANSACTIONS.to_string();
    world
        .wait_for_rows("SELECT count(*) FROM users", &[&all])
        .await;
    ended.store(true, Ordering::Relaxed);
    let (reads, seen) = reading.join().unwrap();

    assert_eq!(seen, TRANSACTIONS as i64);
    assert!(reads > 10, "{reads} reads");
    assert_eq!(world.rows("PRAGMA journal_mode"), ["wal"]);
}

/// Reads both tables until told to stop, and once more; how often, and how many rows there were at last.
fn read_whole(reader: &rusqlite::Connection, ended: &AtomicBool) -> (u64, i64) {
    let count = |sql: &str| {
        let count = reader.query_row(sql, [], |row| row.get::<_, i64>(0));
        count.unwrap()
    };
    let (mut reads, mut last) = (0, 0);
    loop {
        let is_last = ended.load(Ordering::Relaxed);
        // One transaction of two statements: the second sees what the first has seen.
        reader.execute_batch("BEGIN").unwrap();
        let users = count("SELECT count(*) FROM users");
        let orders = count("SELECT count(*) FROM orders");
        reader.execute_batch("COMMIT").unwrap();
        assert_eq!(users, orders);
        assert!(last <= users, "{users} follow {last}");
        (reads, last) = (reads + 1, users);
        if is_last {
            return (reads, last);
        }
    }
}
