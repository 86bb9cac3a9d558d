//! Retention, health, metrics.

use stack::{eventually, http_get};

use crate::harness::{DEADLINE, World, newcomer};

#[tokio::test(flavor = "multi_thread")]
async fn old_outcomes_are_deleted_and_young_ones_kept() {
    let world = World::up().await;
    world.stack.postgres().sql(
        "INSERT INTO write_operations (operation_id, entity_table, op_type, status, completed_at)
         SELECT gen_random_uuid(), 'people', 'create', 'completed',
                now() - make_interval(days => n % 60)
         FROM generate_series(0, 11999) AS n",
    );

    let _processor = world.processor("processor", &["--retention", "30d"]);

    let count = "SELECT count(*) FROM write_operations";
    eventually(DEADLINE, "half of them gone", || {
        match world.value(count).as_str() {
            "6000" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    let oldest = "SELECT min(completed_at) > now() - interval '30 days' FROM write_operations";
    assert_eq!(world.value(oldest), "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_an_older_schema_writes_wait_for_the_migration() {
    const MIGRATION: &str = include_str!("../../../../schema/0010_write_operations.sql");
    let world = World::up().await;
    world.stack.postgres().sql(
        "DROP FUNCTION claim_operations;
         CREATE FUNCTION claim_operations(jsonb) RETURNS SETOF uuid LANGUAGE sql AS 'SELECT NULL::uuid'",
    );
    world.send(&newcomer(1, 101)).await;

    let processor = world.processor("processor", &[]);
    processor.wait_for_line("apply schema/*.sql", DEADLINE);
    world.stack.postgres().sql(MIGRATION);
    world.settle(1).await;

    let completed = "SELECT count(*) FROM write_operations WHERE status = 'completed'";
    assert_eq!(world.value(completed), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_may_not_be_forgotten_before_their_messages() {
    let world = World::up().await;
    let mut config = world
        .jetstream
        .get_stream("WRITES")
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    config.max_age = DEADLINE * 120;
    world.jetstream.update_stream(config).await.unwrap();

    let processor = world.processor("processor", &["--retention", "30m"]);
    let status = processor.wait(DEADLINE);

    assert!(!status.success());
    assert!(
        processor.stderr().contains("--retention"),
        "{}",
        processor.stderr()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn health_names_the_server_that_is_missing() {
    let world = World::up().await;
    let processor = world.processor("processor", &[]);
    let line = processor.wait_for_line("listening", DEADLINE);
    let address = line
        .rsplit_once("address=")
        .unwrap()
        .1
        .trim()
        .parse()
        .unwrap();
    let get = |path| http_get(address, path).unwrap();

    world.send(&newcomer(1, 101)).await;
    world.settle(1).await;
    eventually(DEADLINE, "health", || match get("/health") {
        (200, _) => Ok(()),
        (status, body) => Err(format!("{status} {body}")),
    });
    let (_, metrics) = get("/metrics");
    assert!(
        metrics.contains("processor_done_total{table=\"people\"} 1"),
        "{metrics}"
    );

    world.stack.postgres().stop();
    eventually(DEADLINE, "503", || match get("/health") {
        (503, body) if body.contains("\"postgres\":false") => Ok(()),
        (status, body) => Err(format!("{status} {body}")),
    });
}
