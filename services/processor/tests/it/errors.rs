//! Errors by class, and whom they harm.

use serde_json::json;
use wire::command::WriteOp::{Create, Update};

use crate::harness::{World, command, id, newcomer, person};

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_harms_only_itself() {
    let world = World::up().await;
    for number in 1..=300 {
        let mut write = newcomer(number, 1000 + number);
        match number {
            50 => write.data.insert("age".to_owned(), json!("old")),
            150 => write.data.insert("name".to_owned(), json!(null)),
            _ => None,
        };
        world.send(&write).await;
    }

    let _processor = world.processor("processor", &[]);
    world.settle(300).await;

    let completed = "SELECT count(*) FROM write_operations WHERE status = 'completed'";
    assert_eq!(world.value(completed), "298");
    assert_eq!(world.value("SELECT count(*) FROM people"), "298");
    assert_eq!(world.outcome(&id(50)).1["code"], "22P02");
    assert_eq!(world.outcome(&id(150)).1["code"], "23502");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_violated_constraint_is_named_to_the_client() {
    let world = World::up().await;
    world
        .send(&person(
            1,
            Create,
            101,
            json!({"name": "a", "email": "a@x"}),
        ))
        .await;
    world
        .send(&person(
            2,
            Create,
            102,
            json!({"name": "b", "email": "a@x"}),
        ))
        .await;

    let _processor = world.processor("processor", &[]);
    world.settle(2).await;

    let (status, error) = world.outcome(&id(2));
    assert_eq!(status, "failed");
    assert_eq!(error["code"], "23505");
    assert_eq!(error["constraint"], "people_email_key");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("unique"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raised_exception_is_read_by_the_client() {
    let world = World::up().await;
    world.stack.postgres().sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'no strangers'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON people FOR EACH ROW
            WHEN (new.name = 'stranger') EXECUTE FUNCTION refuse()",
    );
    world
        .send(&person(1, Create, 101, json!({"name": "stranger"})))
        .await;

    let _processor = world.processor("processor", &[]);
    world.settle(1).await;

    let (_, error) = world.outcome(&id(1));
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("P0001"), &json!("no strangers"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_waits_for_its_parent_and_its_own_changes_wait_with_it() {
    let world = World::up().await;
    let ticket = json!({"person": id(101), "title": "first"});
    world
        .send(&command(1, Create, "tickets", Some(&id(201)), ticket))
        .await;
    world
        .send(&command(
            2,
            Update,
            "tickets",
            Some(&id(201)),
            json!({"title": "second"}),
        ))
        .await;
    let other = json!({"person": id(102), "title": "other"});
    world.stack.postgres().sql(&format!(
        "INSERT INTO people (id, name) VALUES ('{}', 'b')",
        id(102)
    ));
    world
        .send(&command(3, Create, "tickets", Some(&id(202)), other))
        .await;

    let _processor = world.processor("processor", &[]);
    // Nobody waits for the orphan but its own row.
    assert_eq!(world.outcome(&id(3)).0, "completed");
    assert_eq!(world.value("SELECT count(*) FROM write_operations"), "1");
    world.send(&newcomer(4, 101)).await;
    world.settle(4).await;

    assert_eq!(world.outcome(&id(1)).0, "completed");
    let title = format!("SELECT title FROM tickets WHERE id = '{}'", id(201));
    assert_eq!(world.value(&title), "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_parent_never_comes_fails_in_the_end() {
    let world = World::up().await;
    let ticket = json!({"person": id(101), "title": "orphan"});
    world
        .send(&command(1, Create, "tickets", Some(&id(201)), ticket))
        .await;

    let _processor = world.processor("processor", &["--parent-patience", "1s"]);
    world.settle(1).await;

    let (status, error) = world.outcome(&id(1));
    assert_eq!(status, "failed");
    assert_eq!(error["code"], "23503");
    assert_eq!(error["constraint"], "tickets_person_fkey");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_granted_is_not_written() {
    let world = World::up().await;
    world
        .stack
        .postgres()
        .sql("REVOKE INSERT ON people FROM app_writer");
    world.send(&newcomer(1, 101)).await;

    let _processor = world.processor("processor", &[]);
    world.settle(1).await;

    assert_eq!(world.outcome(&id(1)).1["code"], "42501");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_sees_the_claims_of_each_write() {
    let world = World::up().await;
    world.stack.postgres().sql(
        "CREATE POLICY own ON people TO app_writer USING (true)
            WITH CHECK (name = current_setting('request.jwt.claims', true)::json->>'sub');
         ALTER TABLE people ENABLE ROW LEVEL SECURITY",
    );
    for (number, sub) in [(1, "p101"), (2, "mallory"), (3, "p103")] {
        let mut write = newcomer(number, 100 + number);
        let serde_json::Value::Object(claims) = json!({"sub": sub}) else {
            unreachable!()
        };
        write.claims = Some(claims);
        write.principal = Some(sub.to_owned());
        world.send(&write).await;
    }

    world.send(&newcomer(4, 104)).await;

    let _processor = world.processor("processor", &[]);
    world.settle(4).await;

    assert_eq!(world.outcome(&id(1)).0, "completed");
    assert_eq!(world.outcome(&id(2)).1["code"], "42501");
    assert_eq!(world.outcome(&id(3)).0, "completed");
    assert_eq!(world.outcome(&id(4)).1["code"], "42501");
}
