//! `bridge snapshot`, `bridge schema`, `bridge verify`.

use stack::eventually_async;

use crate::world::{DEADLINE, World};

const SETUP: &str = "\
    CREATE TABLE users (id int PRIMARY KEY, name text, score float8, raw bytea);; \
    CREATE TABLE log (a int, b text);; ALTER TABLE log REPLICA IDENTITY FULL;; \
    INSERT INTO users SELECT i, 'n' || i, i / 7.0, decode(md5(i::text), 'hex') FROM generate_series(1, 3000) i;; \
    INSERT INTO log SELECT i % 10, 'same' FROM generate_series(1, 100) i;; \
    CREATE PUBLICATION cdc_pub FOR TABLE users, log";

async fn run(world: &World, args: &[&str]) -> (i32, String) {
    let tool = world
        .stack
        .program(env!("CARGO_BIN_EXE_bridge"))
        .named("tool")
        .args(args)
        .args(["--pg-url", &world.stack.postgres().url()])
        .args([
            "--nats-url",
            &format!("nats://{}", world.stack.nats().addr()),
        ])
        .start();
    let status = eventually_async(DEADLINE, "the tool's end", async || tool.exit_status()).await;
    let output = tool.stdout();
    (
        status.code().unwrap_or(-1),
        format!("{output}{}", tool.stderr()),
    )
}

#[tokio::test]
async fn the_command_line_asks_as_a_consumer_does() {
    let world = World::new(SETUP, &[]).await;

    let (code, output) = run(&world, &["snapshot", "users", "--watch"]).await;
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("3000 rows"), "{output}");
    let (code, output) = run(&world, &["snapshot", "nothing"]).await;
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("there is no table"), "{output}");
    let (code, output) = run(&world, &["schema", "users"]).await;
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("\"double precision\""), "{output}");
    let (code, output) = run(&world, &["schema", "nothing"]).await;
    assert_eq!(code, 1, "{output}");
}

#[tokio::test]
async fn verify_proves_that_snapshot_and_stream_are_the_table() {
    let world = World::new(SETUP, &[]).await;
    let writer = tokio::spawn(churn(world.stack.postgres().url()));

    for table in ["users", "log"] {
        let (code, output) = run(&world, &["verify", table]).await;
        assert_eq!(code, 0, "{output}");
        assert!(output.contains("equal"), "{output}");
    }
    writer.abort();
}

#[tokio::test]
async fn verify_shows_what_differs() {
    let world = World::new(SETUP, &[]).await;
    // A change that the stream does not carry, as a bug in the bridge would look.
    world.sql("ALTER PUBLICATION cdc_pub SET (publish = 'insert, delete')");
    let url = world.stack.postgres().url();
    let churn = tokio::spawn(async move {
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        loop {
            client
                .batch_execute("UPDATE users SET name = name || '!' WHERE id = 17")
                .await
                .unwrap();
        }
    });

    let (code, output) = run(&world, &["verify", "users"]).await;
    churn.abort();

    assert_eq!(code, 1, "{output}");
    assert!(output.contains("17"), "{output}");
}

async fn churn(url: String) {
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    for index in 0_u32.. {
        let id = index % 3000 + 1;
        let sql = format!(
            "UPDATE users SET score = score + 0.1 WHERE id = {id}; DELETE FROM users WHERE id = {}; \
             INSERT INTO log VALUES ({}, 'new')",
            id / 2,
            id % 10
        );
        if client.batch_execute(&sql).await.is_err() {
            return;
        }
    }
}
