//! Cached answers: how fresh, how shared, and what happens without them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;
use stack::eventually_async;

use crate::harness::{DEADLINE, World};

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_cached_until_its_table_changes_whoever_changes_it() {
    let world = World::up().await;
    world.sql("INSERT INTO books (id, title) VALUES (1, 'old')");
    let reader = world.reader(&[]).await;

    assert_eq!(reader.get("/books/1").await.cache(), "MISS");
    assert_eq!(reader.get("/books/1").await.cache(), "HIT");
    assert_eq!(reader.get("/books?id=eq.1").await.cache(), "MISS");
    world
        .change("books", "UPDATE books SET title = 'new'")
        .await;

    let after = reader.get("/books/1").await;
    assert_eq!(
        (after.cache(), &after.json()["title"]),
        ("MISS", &json!("new"))
    );
    assert_eq!(reader.get("/books?id=eq.1").await.cache(), "MISS");
    world
        .change("closed", "INSERT INTO closed VALUES (1)")
        .await;
    assert_eq!(reader.get("/books/1").await.cache(), "HIT");
}

/// Readers race with changes, half of which are in the stream before their commit is visible.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_thousand_races_no_read_after_an_invalidation_is_stale() {
    const ROUNDS: u64 = 1_000;
    let world = World::up().await;
    world.sql("INSERT INTO books (id, sold) VALUES (1, 0)");
    let reader = Arc::new(world.reader(&[]).await);
    let (client, connection) =
        tokio_postgres::connect(&world.stack.postgres().url(), tokio_postgres::NoTls)
            .await
            .unwrap();
    tokio::spawn(connection);
    let is_over = Arc::new(AtomicBool::new(false));
    let hits = Arc::new(AtomicU64::new(0));
    let racers: Vec<_> = (0..2)
        .map(|_| {
            let (reader, is_over, hits) = (reader.clone(), is_over.clone(), hits.clone());
            tokio::spawn(async move {
                let mut connection = reader.connect().await;
                while !is_over.load(Ordering::Relaxed) {
                    let answer = connection.get("/books/1", &[]).await;
                    assert_eq!(answer.status, 200);
                    hits.fetch_add(u64::from(answer.cache() == "HIT"), Ordering::Relaxed);
                }
            })
        })
        .collect();

    let stream = world.jetstream.get_stream("CDC").await.unwrap();
    let mut stale = 0;
    for round in 1..=ROUNDS {
        client.batch_execute("BEGIN").await.unwrap();
        client
            .batch_execute(&format!("UPDATE books SET sold = {round}"))
            .await
            .unwrap();
        let xid: String = client
            .query_one("SELECT pg_current_xact_id()::text", &[])
            .await
            .unwrap()
            .get(0);
        let xid = xid.parse().unwrap();
        let sequence = if round % 2 == 0 {
            client.batch_execute("COMMIT").await.unwrap();
            world.publish("books", xid, Vec::new()).await
        } else {
            let sequence = world.publish("books", xid, Vec::new()).await;
            client.batch_execute("COMMIT").await.unwrap();
            sequence
        };
        loop {
            let info = stream.consumer_info("reader-cache").await.unwrap();
            if sequence <= info.ack_floor.stream_sequence {
                break;
            }
        }
        let answer = reader.get("/books/1").await;
        stale += u64::from(answer.json()["sold"] != json!(round));
    }
    is_over.store(true, Ordering::Relaxed);
    for racer in racers {
        racer.await.unwrap();
    }

    assert_eq!(stale, 0);
    assert_ne!(hits.load(Ordering::Relaxed), 0, "the cache was never used");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_reads_come_from_postgresql_and_say_so() {
    let world = World::up().await;
    world.sql("INSERT INTO books (id) VALUES (1)");
    let program = world.program("reader", &[]).env_remove("REDIS_URL");
    let reader = world.start(&program).await;

    assert_eq!(reader.get("/books/1").await.cache(), "OFF");
    let metrics = reader.get("/metrics").await.body;
    assert!(
        metrics.contains("reader_cache_total{result=\"off\"} 1"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_goes_away_is_done_without_and_comes_back_empty_of_old_answers() {
    let world = World::up().await;
    world.sql("INSERT INTO books (id, title) VALUES (1, 'old')");
    let reader = world.reader(&[]).await;
    reader.get("/books/1").await;
    assert_eq!(reader.get("/books/1").await.cache(), "HIT");

    world.stack.redis().stop();
    world
        .change_unheard("books", "UPDATE books SET title = 'new'")
        .await;
    let answer = reader.get("/books/1").await;
    assert_eq!(
        (answer.cache(), &answer.json()["title"]),
        ("OFF", &json!("new"))
    );
    let (status, health) = stack::http_get(reader.addr, "/health").unwrap();
    assert!(
        status == 200 && health.contains("\"redis\":\"down\""),
        "{health}"
    );

    world.stack.redis().start();
    eventually_async(DEADLINE, "Redis to be used again", async || {
        let answer = reader.get("/books/1").await;
        assert_eq!(answer.json()["title"], "new");
        answer.cache() == "HIT"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_the_stream_lost_throw_every_answer_away() {
    let world = World::up().await;
    world.sql("INSERT INTO books (id, title) VALUES (1, 'old')");
    let reader = world.reader(&[]).await;
    reader.get("/books/1").await;
    reader.process.kill();

    world.sql("UPDATE books SET title = 'new'");
    world.publish("books", 0, Vec::new()).await;
    world.publish("books", 0, Vec::new()).await;
    let stream = world.jetstream.get_stream("CDC").await.unwrap();
    stream.purge().await.unwrap();
    let reader = world.reader(&[]).await;

    eventually_async(DEADLINE, "a fresh answer", async || {
        reader.get("/books/1").await.json()["title"] == "new"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_its_own_write_by_min_lsn_though_the_cache_has_not_heard() {
    let world = World::up().await;
    world.sql("INSERT INTO books (id, title) VALUES (1, 'old')");
    let reader = world.reader(&[]).await;
    reader.get("/books/1").await;

    world.sql("UPDATE books SET title = 'new'");
    let lsn = world
        .stack
        .postgres()
        .value("SELECT pg_current_wal_insert_lsn()");
    assert_eq!(reader.get("/books/1").await.json()["title"], "old");
    let own = reader.get_with("/books/1", &[("X-Min-LSN", &lsn)]).await;

    assert_eq!(
        (own.cache(), &own.json()["title"]),
        ("BYPASS", &json!("new"))
    );
    let bad = reader.get_with("/books/1", &[("X-Min-LSN", "x")]).await;
    assert_eq!(bad.status, 400);
    let far = reader
        .get_with("/books/1", &[("X-Min-LSN", "FFFFFF/0")])
        .await;
    assert_eq!(far.status, 503);
}

/// A commit that waits for a synchronous standby is in WAL, and so in the stream, but not visible.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_behind_an_event_waits_until_its_transaction_is_visible() {
    let world = World::up().await;
    let postgres = world.stack.postgres();
    postgres.sql("INSERT INTO books (id, title) VALUES (1, 'old')");
    let reader = world.reader(&[]).await;
    reader.get("/books/1").await;
    // Nobody waits but who asks to.
    postgres.sql("ALTER SYSTEM SET synchronous_commit = 'local'");
    postgres.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    postgres.sql("SELECT pg_reload_conf()");
    eventually_async(DEADLINE, "the settings are read", async || {
        postgres.value("SHOW synchronous_standby_names") == "nobody"
    })
    .await;

    let (client, connection) = tokio_postgres::connect(&postgres.url(), tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let committing = tokio::spawn(async move {
        let sql = "SET synchronous_commit = on; BEGIN; UPDATE books SET title = 'new'; COMMIT";
        client.batch_execute(sql).await.unwrap();
    });
    let waiting = "SELECT backend_xid FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let xid = eventually_async(DEADLINE, "a commit that waits", async || {
        postgres.sql(waiting).pop().and_then(|row| row[0].clone())
    })
    .await;
    let lsn = postgres.value("SELECT pg_current_wal_insert_lsn()");
    let behind = [("X-Min-LSN", lsn.as_str()), ("X-Min-XID", xid.as_str())];

    // WAL is there already.
    let by_lsn = reader.get_with("/books/1", &behind[..1]).await;
    assert_eq!(by_lsn.json()["title"], "old");
    let by_both = reader.get_with("/books/1", &behind).await;
    assert_eq!(by_both.status, 503, "{by_both:?}");

    postgres.sql("ALTER SYSTEM RESET synchronous_standby_names");
    postgres.sql("SELECT pg_reload_conf()");
    committing.await.unwrap();
    // Nobody has told the cache.
    assert_eq!(reader.get("/books/1").await.json()["title"], "old");
    let by_both = reader.get_with("/books/1", &behind).await;
    assert_eq!(by_both.json()["title"], "new");

    for wrong in [&[behind[0], ("X-Min-XID", "x")][..], &behind[1..]] {
        assert_eq!(reader.get_with("/books/1", wrong).await.status, 400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgresql_is_away_cached_answers_are_served_and_the_rest_is_503() {
    let world = World::up().await;
    world.sql("INSERT INTO books (id) VALUES (1)");
    let reader = world.reader(&[]).await;
    reader.get("/books/1").await;

    world.stack.postgres().stop();
    assert_eq!(reader.get("/books/1").await.cache(), "HIT");
    let answer = reader.get("/books/2").await;
    assert_eq!(answer.status, 503);
    assert!(answer.headers.contains_key("retry-after"));

    world.stack.postgres().start();
    eventually_async(DEADLINE, "PostgreSQL to be read again", async || {
        reader.get("/books/2").await.status == 404
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_readers_on_one_redis_each_sees_the_changes() {
    let world = World::up().await;
    world.sql("INSERT INTO books (id, sold) VALUES (1, 0)");
    let first = world.start(&world.program("first", &[])).await;
    let second = world.start(&world.program("second", &[])).await;

    for round in 1..=20 {
        first.get("/books/1").await;
        world
            .change("books", &format!("UPDATE books SET sold = {round}"))
            .await;
        let reader = if round % 2 == 0 { &first } else { &second };
        assert_eq!(reader.get("/books/1").await.json()["sold"], json!(round));
    }
}
