//! What a requester may ask, and what it is told.

use async_nats::jetstream::stream;
use stack::{NatsVersion, Options, PostgresVersion, eventually_async};
use wire::snapshot::ErrorCode;
use wire::snapshot_request::{Compression, Range, Resume, Values};
use wire::{Column, Message as _, Row, Value, snapshot_request};

use crate::copy::text;
use crate::world::{DEADLINE, World, json};

const SETUP: &str = "\
    CREATE TABLE users (id int PRIMARY KEY, name text, ok bool);; \
    CREATE TABLE other (id int PRIMARY KEY);; \
    INSERT INTO users SELECT i, CASE WHEN i % 7 = 0 THEN NULL ELSE E'tab\\t back\\\\ ' || i END, i % 2 = 0 \
      FROM generate_series(1, 2500) i;; \
    CREATE PUBLICATION cdc_pub FOR TABLE users";

fn sorted(rows: &[Row]) -> Vec<Vec<Option<String>>> {
    let mut texts: Vec<Vec<Option<String>>> = rows
        .iter()
        .map(|Row(columns)| columns.iter().map(|column| text(&column.value)).collect())
        .collect();
    texts.sort();
    texts
}

fn table(world: &World, sql: &str) -> Vec<Vec<Option<String>>> {
    let mut rows = world.stack.postgres().sql(sql);
    rows.sort();
    rows
}

#[tokio::test]
async fn rows_come_as_text_or_typed_in_any_compression() {
    let world = World::new(SETUP, &["--snapshot-chunk-rows", "1000"]).await;
    let expected = table(&world, "SELECT * FROM users");

    let loaded = world.snapshot("users", "").await;

    assert_eq!(loaded.meta.batch_count, 3);
    assert_eq!(sorted(&loaded.rows), expected);
    assert!(matches!(loaded.rows[0].0[0].value, Value::Text(_)));
    for compression in [Compression::Zstd, Compression::Lz4, Compression::Gzip] {
        let options = snapshot_request::Options {
            values: Values::Typed,
            compression,
            ..snapshot_request::Options::default()
        };
        let loaded = world.snapshot("users", &json(&options)).await;
        assert_eq!(sorted(&loaded.rows), expected);
        assert!(matches!(
            loaded.rows[0].0[..],
            [
                Column {
                    value: Value::Int(_),
                    ..
                },
                _,
                Column {
                    value: Value::Bool(_),
                    ..
                }
            ]
        ));
    }
}

#[tokio::test]
async fn progress_is_told_while_a_snapshot_is_made() {
    let world = World::new(SETUP, &["--snapshot-chunk-rows", "100"]).await;
    world.sql("ANALYZE users");
    let mut told = world.nats.subscribe("init.progress.users").await.unwrap();
    world.nats.flush().await.unwrap();

    let id = world.accepted("users", "").await;
    world.load("users", &id).await;

    let progress = loop {
        let message = tokio::time::timeout(DEADLINE, futures_util::StreamExt::next(&mut told));
        let payload = message.await.unwrap().unwrap().payload;
        let progress = wire::snapshot::Progress::decode(&payload).unwrap();
        assert_eq!(progress.snapshot_id, id);
        if progress.rows == 2500 {
            break progress;
        }
    };
    assert_eq!((progress.percent, progress.eta_s), (Some(100.0), Some(0)));
    assert!(progress.bytes > 50_000);
}

#[tokio::test]
async fn columns_and_a_key_range_are_what_comes() {
    let world = World::new(SETUP, &[]).await;
    let options = snapshot_request::Options {
        columns: vec!["name".into(), "id".into()],
        range: Some(Range {
            column: "id".into(),
            from: Some(Value::Int(10)),
            to: Some(Value::Text("20".into())),
        }),
        ..snapshot_request::Options::default()
    };

    let loaded = world.snapshot("users", &json(&options)).await;

    let expected = table(
        &world,
        "SELECT name, id FROM users WHERE id >= 10 AND id < 20",
    );
    assert_eq!(sorted(&loaded.rows), expected);
}

#[tokio::test]
async fn the_publication_decides_which_columns_and_rows_there_are() {
    let setup = "CREATE TABLE secret (id int PRIMARY KEY, shown text, hidden text);; \
        INSERT INTO secret SELECT i, 's', 'h' FROM generate_series(1, 10) i;; \
        CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);; \
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (5);; \
        CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (5) TO (100);; \
        INSERT INTO parts SELECT i FROM generate_series(1, 9) i;; \
        CREATE TABLE \"select\" (\"from\" int PRIMARY KEY, \"a\"\"b c\" text);; \
        INSERT INTO \"select\" VALUES (1, 'x');; \
        CREATE PUBLICATION cdc_pub FOR TABLE secret (id, shown) WHERE (id > 4), parts, \"select\" \
          WITH (publish_via_partition_root = true)";
    let world = World::new(setup, &[]).await;

    let secret = world.snapshot("secret", "").await;
    let parts = world.snapshot("parts", "").await;
    let reserved = world.snapshot("select", "").await;

    assert_eq!(
        sorted(&secret.rows),
        table(&world, "SELECT id, shown FROM secret WHERE id > 4")
    );
    assert_eq!(parts.rows.len(), 9);
    assert_eq!(
        sorted(&reserved.rows),
        table(&world, "SELECT * FROM \"select\"")
    );
    assert_eq!(
        world.refused("secret", r#"{"columns":["hidden"]}"#).await,
        ErrorCode::BadRequest
    );
}

#[tokio::test]
async fn chunks_fit_the_smallest_limit() {
    let options = Options::default().nats_config("max_payload: 8KB");
    let world = World::with(options, SETUP, &[]).await;

    let loaded = world.snapshot("users", "").await;

    assert!(loaded.meta.batch_count > 10);
    assert_eq!(sorted(&loaded.rows), table(&world, "SELECT * FROM users"));
    world.sql("INSERT INTO users VALUES (0, repeat('x', 9000), true)");
    let id = world.accepted("users", "").await;
    assert_eq!(world.failure("users", &id).await, ErrorCode::TooLarge);
}

#[tokio::test]
async fn ten_thousand_requests_share_one_snapshot() {
    let world = World::new(SETUP, &[]).await;
    let lock = Lock::take(&world, "users").await;
    let first = world.accepted("users", "").await;

    for _ in 0..10_000 {
        world
            .nats
            .publish("snapshot.request.users", "".into())
            .await
            .unwrap();
    }
    world.nats.flush().await.unwrap();
    assert_eq!(world.accepted("users", "").await, first);
    lock.release().await;
    world.load("users", &first).await;

    let metas = world.messages("INIT", &["init.meta.users".into()], 1).await;
    assert_eq!(metas.len(), 1);
}

#[tokio::test]
async fn a_request_made_while_no_bridge_ran_is_served_by_the_next() {
    let mut world = World::new(SETUP, &[]).await;
    assert!(world.bridge.terminate(DEADLINE).success());
    world
        .nats
        .publish("snapshot.request.users", "".into())
        .await
        .unwrap();
    world.nats.flush().await.unwrap();

    world.restart();

    let metas = eventually_async(DEADLINE, "its meta", async || {
        let metas = world.messages("INIT", &["init.meta.users".into()], 1).await;
        (!metas.is_empty()).then_some(metas)
    })
    .await;
    assert_eq!(metas.len(), 1);
    eventually_async(DEADLINE, "an empty REQUESTS", async || {
        let requests = world.jetstream.get_stream("REQUESTS").await.unwrap();
        requests.cached_info().state.messages == 0
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_cut_short_by_a_kill_is_made_again_under_another_id() {
    let mut world = World::new(SETUP, &[]).await;
    let lock = Lock::take(&world, "users").await;
    let cut = world.accepted("users", "").await;
    lock.waited_for(&world).await;
    world.bridge.kill();
    lock.release().await;

    world.restart();

    let metas = eventually_async(DEADLINE, "a meta", async || {
        let metas = world.messages("INIT", &["init.meta.users".into()], 1).await;
        (!metas.is_empty()).then_some(metas)
    })
    .await;
    let meta = wire::snapshot::Meta::decode(&metas[0].payload).unwrap();
    assert_ne!(meta.snapshot_id, cut);
    assert_eq!(
        world.load("users", &meta.snapshot_id).await.rows.len(),
        2500
    );
}

#[tokio::test]
async fn hostile_names_are_answered_and_never_run() {
    let world = World::new(SETUP, &[]).await;
    let mut errors = world.nats.subscribe("init.error.>").await.unwrap();
    let long = "x".repeat(300);
    let hostile = [
        ("users\";drop", ErrorCode::UnknownTable),
        ("users%22;DROP%20TABLE%20users;--", ErrorCode::UnknownTable),
        ("%", ErrorCode::UnknownTable),
        ("%2", ErrorCode::UnknownTable),
        ("a.b.c.d", ErrorCode::UnknownTable),
        ("pg_catalog.pg_authid", ErrorCode::NotPublished),
        ("other", ErrorCode::NotPublished),
        ("%2A", ErrorCode::UnknownTable),
        (long.as_str(), ErrorCode::UnknownTable),
    ];

    for (name, code) in hostile {
        assert_eq!(world.refused(name, "").await, code, "{name}");
        futures_util::StreamExt::next(&mut errors).await.unwrap();
    }
    for options in [
        "{\"valeus\":1}",
        "not a map",
        r#"{"columns":["id; DROP TABLE users"]}"#,
        r#"{"where":{"column":"name","from":"a"}}"#,
    ] {
        assert_eq!(
            world.refused("users", options).await,
            ErrorCode::BadRequest,
            "{options}"
        );
    }
    let id = world
        .accepted(
            "users",
            r#"{"where":{"column":"id","from":"1'; DROP TABLE users; --"}}"#,
        )
        .await;
    assert_eq!(world.failure("users", &id).await, ErrorCode::BadRequest);
    assert_eq!(world.snapshot("users", "").await.rows.len(), 2500);
}

#[tokio::test]
async fn row_level_security_is_refused_and_never_silently_empty() {
    let setup = "CREATE ROLE reader LOGIN REPLICATION PASSWORD 'reader';; \
        CREATE TABLE users (id int PRIMARY KEY);; INSERT INTO users VALUES (1), (2);; \
        GRANT SELECT ON users TO reader;; CREATE TABLE closed (id int PRIMARY KEY);; \
        ALTER TABLE users ENABLE ROW LEVEL SECURITY;; \
        CREATE PUBLICATION cdc_pub FOR TABLE users, closed";
    let stack_options = Options::default();
    let mut world = World::with(stack_options, setup, &[]).await;
    // As a superuser the bridge sees every row.
    assert_eq!(world.snapshot("users", "").await.rows.len(), 2);
    world.bridge.terminate(DEADLINE);
    let url = world
        .stack
        .postgres()
        .url_as("reader", "reader", "postgres");

    world.bridge = world
        .stack
        .program(env!("CARGO_BIN_EXE_bridge"))
        .args(["--port", "0", "--pg-url", &url])
        .args([
            "--nats-url",
            &format!("nats://{}", world.stack.nats().addr()),
        ])
        .start();
    world.is_up().await;

    assert_eq!(world.refused("users", "").await, ErrorCode::RowSecurity);
    assert_eq!(world.refused("closed", "").await, ErrorCode::Denied);
    world.sql("ALTER ROLE reader BYPASSRLS");
    assert_eq!(world.snapshot("users", "").await.rows.len(), 2);
}

#[tokio::test]
async fn a_table_dropped_or_altered_before_it_is_read_ends_in_an_error() {
    let world = World::new(SETUP, &[]).await;
    for statement in ["ALTER TABLE users ADD COLUMN age int", "DROP TABLE users"] {
        let lock = Lock::take(&world, "users").await;
        let id = world.accepted("users", "").await;
        lock.waited_for(&world).await;

        lock.then(statement).await;

        assert_eq!(
            world.failure("users", &id).await,
            ErrorCode::TableChanged,
            "{statement}"
        );
    }
    assert_eq!(world.refused("users", "").await, ErrorCode::UnknownTable);
}

/// DDL that comes while the rows are read waits for the end of the snapshot, which must not wait for it.
async fn ddl_waits_for_the_snapshot(options: Options) {
    let world = World::with(options, SETUP, &["--snapshot-chunk-rows", "10"]).await;
    let mut config = world.init().await.cached_info().config.clone();
    (config.max_messages, config.discard) = (20, stream::DiscardPolicy::New);
    world.jetstream.update_stream(config.clone()).await.unwrap();
    let id = world.accepted("users", "").await;
    eventually_async(DEADLINE, "a stream that is full", async || {
        world.init().await.cached_info().state.messages == 20
    })
    .await;
    let url = world.stack.postgres().url();
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let alter = tokio::spawn(async move {
        let sql = "ALTER TABLE users ADD COLUMN age int";
        client.batch_execute(sql).await.unwrap();
    });
    let waits = "SELECT count(*) FROM pg_stat_activity \
        WHERE query LIKE 'ALTER TABLE users%' AND wait_event_type = 'Lock'";
    eventually_async(DEADLINE, "DDL that waits", async || {
        world.stack.postgres().value(waits) == "1"
    })
    .await;

    // Rows of new shapes go on meanwhile.
    world.sql(
        "CREATE TABLE third (id int PRIMARY KEY, n int DEFAULT 1); ALTER PUBLICATION cdc_pub ADD TABLE third; \
         INSERT INTO third VALUES (1); ALTER TABLE third ADD COLUMN more text; INSERT INTO third VALUES (2)",
    );
    eventually_async(DEADLINE, "rows beside the snapshot", async || {
        world.events("third", 1).await.len() == 2
    })
    .await;

    config.max_messages = -1;
    world.jetstream.update_stream(config).await.unwrap();

    assert_eq!(world.load("users", &id).await.rows.len(), 2500);
    alter.await.unwrap();
}

#[tokio::test]
async fn ddl_that_waits_for_a_snapshot_does_not_hold_it_up() {
    ddl_waits_for_the_snapshot(Options::default()).await;
}

#[tokio::test]
async fn neither_where_listing_tables_waits_for_locks() {
    let options = Options::default().postgres(PostgresVersion::V18);
    ddl_waits_for_the_snapshot(options.nats(NatsVersion::V2_15)).await;
}

#[tokio::test]
async fn a_bridge_that_is_behind_catches_up_before_it_locks_the_table() {
    let world = World::new(SETUP, &[]).await;
    let postgres = world.stack.postgres();
    let walsender = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'cdc_slot'";
    let walsender = postgres.value(walsender).parse().unwrap();
    postgres.pause_backend(walsender);
    let id = world.accepted("users", "").await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_logical_emit_message%' \
        AND state = 'idle'";
    eventually_async(DEADLINE, "a marker that is not read", async || {
        postgres.value(waits) == "1"
    })
    .await;

    world.sql("SET lock_timeout = '1s'; ALTER TABLE users ADD COLUMN age int DEFAULT 7");

    postgres.resume_backend(walsender);
    let loaded = world.load("users", &id).await;
    assert_eq!(loaded.rows.len(), 2500);
    assert_eq!(loaded.rows[0].0.len(), 4, "{:?}", loaded.rows[0]);
}

#[tokio::test]
async fn a_bridge_answers_for_its_own_tables_and_all_for_what_nobody_has() {
    let setup = "CREATE TABLE users (id int PRIMARY KEY);; CREATE TABLE orders (id int PRIMARY KEY);; \
        CREATE TABLE other (id int PRIMARY KEY);; INSERT INTO orders VALUES (1);; \
        CREATE PUBLICATION cdc_pub FOR TABLE users;; CREATE PUBLICATION pub2 FOR TABLE orders";
    let world = World::new(setup, &[]).await;
    let second = world
        .stack
        .program(env!("CARGO_BIN_EXE_bridge"))
        .named("second")
        .args(["--port", "0", "--pg-url", &world.stack.postgres().url()])
        .args([
            "--nats-url",
            &format!("nats://{}", world.stack.nats().addr()),
        ])
        .args([
            "--slot",
            "slot_2",
            "--publication",
            "pub2",
            "--stream",
            "CDC2,INIT",
        ])
        .args(["--subject-prefix", "two"])
        .start();
    second.wait_for_line("replication started", DEADLINE);
    eventually_async(DEADLINE, "a second bridge that answers", async || {
        let asked = world.nats.request("snapshot.reached.slot_2", "".into());
        asked.await.map(drop)
    })
    .await;
    let mut replies = world.nats.subscribe("told").await.unwrap();
    let ask = async |table: &str| {
        let subject = format!("snapshot.request.{table}");
        let asked = world.nats.publish_with_reply(subject, "told", "".into());
        asked.await.unwrap();
    };
    let mut heard = async || {
        let reply = tokio::time::timeout(DEADLINE, futures_util::StreamExt::next(&mut replies));
        snapshot_request::Reply::decode(&reply.await.unwrap().unwrap().payload).unwrap()
    };
    let refused = |reply| match reply {
        snapshot_request::Reply::Refused(error) => Some(error.code),
        snapshot_request::Reply::Accepted { .. } => None,
    };

    for table in ["users", "orders"] {
        ask(table).await;
        assert_eq!(refused(heard().await), None, "{table}");
    }
    // Each bridge says no to this; were there another no above, it would come first.
    ask("other").await;
    for _ in 0..2 {
        assert_eq!(refused(heard().await), Some(ErrorCode::NotPublished));
    }
    ask("nothing").await;
    for _ in 0..2 {
        assert_eq!(refused(heard().await), Some(ErrorCode::UnknownTable));
    }
}

#[tokio::test]
async fn a_cancel_ends_what_waits_and_what_runs() {
    let world = World::new(SETUP, &[]).await;
    let lock = Lock::take(&world, "users").await;
    let running = world.accepted("users", "").await;
    lock.waited_for(&world).await;
    let waiting = world.accepted("users", r#"{"values":"typed"}"#).await;

    for id in [&waiting, &running] {
        world
            .nats
            .publish(format!("snapshot.cancel.{id}"), "".into())
            .await
            .unwrap();
        assert_eq!(world.failure("users", id).await, ErrorCode::Cancelled);
    }
    lock.release().await;

    assert_eq!(world.snapshot("users", "").await.rows.len(), 2500);
}

#[tokio::test]
async fn a_resumed_snapshot_is_the_same_or_begins_anew_under_another_id() {
    let world = World::new(SETUP, &["--snapshot-chunk-rows", "1000"]).await;
    let resume = |id: &str| {
        json(&snapshot_request::Options {
            resume: Some(Resume {
                snapshot_id: id.to_owned(),
                chunk: 1,
            }),
            ..snapshot_request::Options::default()
        })
    };
    let id = world.accepted("users", "").await;
    world.load("users", &id).await;

    assert_eq!(world.accepted("users", &resume(&id)).await, id);
    let other = world.accepted("users", &resume("snap-gone")).await;

    assert_ne!(other, "snap-gone");
    assert_eq!(world.load("users", &other).await.rows.len(), 2500);
}

#[tokio::test]
async fn a_table_larger_than_the_stream_is_refused_with_the_numbers() {
    let world = World::new(SETUP, &[]).await;
    let mut config = world.init().await.cached_info().config.clone();
    config.max_bytes = 50_000;
    world.jetstream.update_stream(config).await.unwrap();

    let id = world.accepted("users", "").await;

    assert_eq!(world.failure("users", &id).await, ErrorCode::TooLarge);
}

/// An ACCESS EXCLUSIVE lock, so that a snapshot stands still where a test wants it.
struct Lock {
    client: tokio_postgres::Client,
}

impl Lock {
    async fn take(world: &World, table: &str) -> Self {
        let url = world.stack.postgres().url();
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        client
            .batch_execute(&format!(
                "BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"
            ))
            .await
            .unwrap();
        Self { client }
    }

    /// Returns when the snapshot stands before the lock.
    async fn waited_for(&self, world: &World) {
        let sql = "SELECT count(*) FROM pg_stat_activity \
                   WHERE application_name = 'bridge snapshot' AND wait_event_type = 'Lock'";
        eventually_async(DEADLINE, "a snapshot that waits for the lock", async || {
            world.stack.postgres().value(sql) == "1"
        })
        .await;
    }

    async fn then(self, statement: &str) {
        self.client.batch_execute(statement).await.unwrap();
        self.release().await;
    }

    async fn release(self) {
        self.client.batch_execute("COMMIT").await.unwrap();
    }
}
