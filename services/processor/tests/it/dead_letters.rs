//! What cannot be read, what takes everybody down, and what the operator can do about it.

use async_nats::jetstream::stream;
use serde_json::Value;
use stack::eventually;

use crate::harness::{DEADLINE, World, id, newcomer};

fn lines(world: &World, words: &[&str]) -> Vec<String> {
    let program = world.program("dlq", words).start();
    let status = program.wait(DEADLINE);
    assert!(status.success(), "{}", program.log_tail());
    program.stdout().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_message_is_buried_and_its_operation_failed() {
    let world = World::up().await;
    world
        .send_raw(
            &format!("writes.people.{}", id(1)),
            b"\xc1 garbage".to_vec(),
        )
        .await;
    world
        .send_raw("writes.people.no-uuid", b"{}".to_vec())
        .await;
    world.send(&newcomer(2, 102)).await;

    let _processor = world.processor("processor", &[]);
    world.settle(2).await;

    let (status, error) = world.outcome(&id(1));
    assert_eq!(
        (status.as_str(), error["code"].as_str()),
        ("failed", Some("unreadable"))
    );
    assert_eq!(world.outcome(&id(2)).0, "completed");
    let listed = lines(&world, &["dlq", "list"]);
    assert_eq!(listed.len(), 2);
    let first: Value = serde_json::from_str(&listed[0]).unwrap();
    assert_eq!(first["operation_id"], id(1).as_str());
    assert!(
        first["reason"]
            .as_str()
            .unwrap()
            .starts_with("unreadable: ")
    );

    assert_eq!(
        lines(&world, &["dlq", "drop", &id(1)]),
        [format!("dropped {}", id(1))]
    );
    assert_eq!(lines(&world, &["dlq", "list"]).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_kills_the_server_every_time_is_buried_and_can_be_replayed() {
    let world = World::up().await;
    // A bug in an extension, as far as the processor can tell: the backend dies, the server restarts.
    world.stack.postgres().sql(
        "CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
            BEGIN COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID'; RETURN new; END $$;
         CREATE TRIGGER crash BEFORE INSERT ON people FOR EACH ROW
            WHEN (new.name = 'p105') EXECUTE FUNCTION crash()",
    );
    for number in 1..=9 {
        world.send(&newcomer(number, 100 + number)).await;
    }

    let processor = world.processor("processor", &[]);
    processor.wait_for_line("message buried", DEADLINE * 3);
    eventually(DEADLINE, "the server to be back", || {
        world
            .stack
            .postgres()
            .try_sql_in("postgres", "SELECT 1")
            .map(drop)
    });
    world.settle(9).await;

    assert_eq!(world.outcome(&id(5)).1["code"], "crashed");
    let completed = "SELECT count(*) FROM write_operations WHERE status = 'completed'";
    assert_eq!(world.value(completed), "8");
    assert_eq!(world.value("SELECT count(*) FROM applied"), "8");

    world.stack.postgres().sql("DROP TRIGGER crash ON people");
    assert_eq!(
        lines(&world, &["dlq", "replay", "--all"]),
        [format!("replayed {}", id(5))]
    );
    world.settle(9).await;
    assert_eq!(world.outcome(&id(5)).0, "completed");
    assert!(lines(&world, &["dlq", "list"]).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_of_dead_letters_holds_up_nobody() {
    let world = World::up().await;
    let small = stream::Config {
        name: "WRITES_DLQ".to_owned(),
        subjects: vec!["writes_dlq.>".to_owned()],
        discard: stream::DiscardPolicy::New,
        max_bytes: 1000,
        ..stream::Config::default()
    };
    world.jetstream.create_stream(small).await.unwrap();
    for number in 1..=9 {
        let subject = format!("writes.people.{}", id(number));
        world.send_raw(&subject, b"\xc1 garbage".to_vec()).await;
    }
    world.send(&newcomer(10, 110)).await;

    let processor = world.processor("processor", &[]);
    world.settle(10).await;

    processor.wait_for_line("make room with processor dlq drop", DEADLINE);
    assert_eq!(world.outcome(&id(9)).0, "failed");
    assert_eq!(world.outcome(&id(10)).0, "completed");
}
