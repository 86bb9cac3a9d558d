//! A reader that reads from a standby.
//!
//! In: changes on the primary, events of them, a standby that lags. Out: answers. Must hold: what the
//! standby does not show yet is neither cached for good nor taken for seen.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::process::Command;

use stack::{Options, Stack, eventually_async};
use wire::event::Event;

use crate::harness::{DEADLINE, Reader, World, event};

/// A server of its own that replays what the world's writes.
fn standby_of(world: &World) -> Stack {
    let standby = Stack::up(Options::default().without_nats()).unwrap();
    let (ours, theirs) = (world.stack.postgres(), standby.postgres());
    let (from, data) = (ours.data_dir(), theirs.data_dir());
    theirs.stop();
    ours.stop();
    let aside = data.with_extension("aside");
    // With owners and modes, because PostgreSQL insists on them.
    let copied = Command::new("cp").arg("-a").arg(from).arg(&aside).status();
    assert!(copied.unwrap().success());
    let settings = fs::read(data.join("postgresql.conf")).unwrap();
    fs::remove_dir_all(data).unwrap();
    fs::rename(&aside, data).unwrap();
    // Into files that have the right owner.
    fs::write(data.join("postgresql.conf"), settings).unwrap();
    fs::rename(data.join("postmaster.opts"), data.join("standby.signal")).unwrap();
    let url = ours.url();
    let mut automatic = OpenOptions::new()
        .append(true)
        .open(data.join("postgresql.auto.conf"))
        .unwrap();
    writeln!(automatic, "primary_conninfo = '{url}'").unwrap();
    ours.start();
    theirs.start();
    standby
}

async fn reader(world: &World, standby: &Stack) -> Reader {
    let url = standby
        .postgres()
        .url_as("service_reader", "service_reader", "postgres");
    let program = world.program("reader", &[]).env("DATABASE_URL", url);
    world.start(&program).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_lags_leaves_nothing_stale_in_the_cache() {
    let world = World::up().await;
    let primary = world.stack.postgres();
    primary.sql("INSERT INTO books (id, title) VALUES (1, 'old')");
    let standby = standby_of(&world);
    let reader = reader(&world, &standby).await;

    let (client, connection) = tokio_postgres::connect(&primary.url(), tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client
        .batch_execute("BEGIN; UPDATE books SET title = 'new'")
        .await
        .unwrap();
    let xid = client
        .query_one("SELECT pg_current_xact_id()::text", &[])
        .await
        .unwrap();
    let xid: String = xid.get(0);
    // The standby knows of the transaction, because of one that began later and is over.
    primary.sql("INSERT INTO closed VALUES (1)");
    let standby = standby.postgres();
    eventually_async(DEADLINE, "the standby follows", async || {
        standby.value("SELECT count(*) FROM closed") == "1"
    })
    .await;
    standby.sql("SELECT pg_wal_replay_pause()");
    eventually_async(DEADLINE, "the standby lags", async || {
        standby.value("SELECT pg_get_wal_replay_pause_state()") == "paused"
    })
    .await;
    let lsn = primary.value("SELECT pg_current_wal_insert_lsn()");
    client.batch_execute("COMMIT").await.unwrap();
    let change = Event {
        commit_lsn: lsn.parse().unwrap(),
        ..event("books", xid.parse().unwrap(), Vec::new())
    };
    world.publish_event(&change).await;
    eventually_async(DEADLINE, "the change is heard of", async || {
        let metrics = reader.get("/metrics").await.body;
        metrics.contains("reader_invalidations_total 1")
    })
    .await;
    eventually_async(DEADLINE, "an answer is cached", async || {
        reader.get("/books/1").await.cache() == "HIT"
    })
    .await;
    let behind = [("X-Min-LSN", lsn.as_str()), ("X-Min-XID", xid.as_str())];
    assert_eq!(reader.get_with("/books/1", &behind).await.status, 503);

    standby.sql("SELECT pg_wal_replay_resume()");
    eventually_async(DEADLINE, "the standby shows the change", async || {
        standby.value("SELECT title FROM books") == "new"
    })
    .await;
    world.settle().await;

    assert_eq!(reader.get("/books/1").await.json()["title"], "new");
    let seen = reader.get_with("/books/1", &behind).await;
    assert_eq!(seen.json()["title"], "new");
}
