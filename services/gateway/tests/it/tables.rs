//! Tables come and go while the gateway runs.

use serde_json::{Value, json};
use stack::eventually_async;

use crate::harness::{DEADLINE, Gateway, World, new_id, table, users};

async fn wait_for_status(gateway: &Gateway, table: &str, body: &Value, status: u16) {
    eventually_async(
        DEADLINE,
        &format!("POST /{table} answers {status}"),
        async || {
            let answer = gateway.post(table, &new_id(), body).await;
            if answer.status == status {
                Ok(())
            } else {
                Err(format!("{answer:?}"))
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_is_writable_and_documented_without_a_restart() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let body = json!({"id": 7, "tags": ["a", null]});
    assert_eq!(
        gateway.post("notes", "1", &body).await.problem(),
        "not-found"
    );

    let notes = table(
        "notes",
        &[("id", "bigint", false), ("tags", "text[]", true)],
    );
    world.publish_schema("notes", &notes).await;
    wait_for_status(&gateway, "notes", &body, 202).await;

    let document = gateway.get("/openapi.json").await.body;
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["paths"]["/notes"]["post"].is_object());
    assert!(document["paths"]["/notes/{id}"]["patch"].is_object());
    let new = &document["components"]["schemas"]["public.notes.new"];
    assert_eq!(new["required"], json!(["id"]));
    assert_eq!(new["properties"]["id"]["type"], "integer");
    let changes = &document["components"]["schemas"]["public.notes.changes"];
    assert!(changes["properties"]["tags"].is_object() && changes["properties"]["id"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_shape_counts_at_once_and_a_dropped_table_is_gone() {
    let world = World::new().await;
    let gateway = world.gateway(&[]).await;
    let body = json!({"name": "Alice"});
    wait_for_status(&gateway, "users", &body, 202).await;

    let with_age = table("users", &[("id", "uuid", false), ("age", "integer", false)]);
    world.publish_schema("users", &with_age).await;
    wait_for_status(&gateway, "users", &body, 422).await;
    wait_for_status(&gateway, "users", &json!({"age": 3}), 202).await;

    world.schemas().await.delete("users").await.unwrap();
    wait_for_status(&gateway, "users", &json!({"age": 3}), 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_granted_is_closed() {
    let world = World::new().await;
    let mut closed = users();
    closed["privileges"]["writer"] = json!(["insert"]);
    world.publish_schema("users", &closed).await;
    let gateway = world.gateway(&[]).await;

    wait_for_status(&gateway, "users", &json!({"name": "Alice"}), 202).await;
    let path = format!("/users/{}", new_id());
    let answer = gateway
        .send("DELETE", &path, &[("idempotency-key", "1")], "")
        .await;

    assert_eq!((answer.status, answer.problem()), (403, "not-granted"));
    assert!(
        answer.body["detail"]
            .as_str()
            .unwrap()
            .contains("GRANT DELETE ON public.users")
    );
    let document = gateway.get("/openapi.json").await.body;
    assert!(document["paths"]["/users/{id}"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_with_strange_names_and_schemas_have_paths_of_their_own() {
    let world = World::new().await;
    let mut invoices = table("in.voices", &[("id", "integer", false)]);
    invoices["schema"] = json!("sales.in.voices");
    world.publish_schema("sales.in=2Evoices", &invoices).await;
    world
        .publish_schema("health", &table("health", &[("id", "integer", false)]))
        .await;
    let gateway = world.gateway(&[]).await;

    wait_for_status(&gateway, "sales.in%2Evoices", &json!({"id": 1}), 202).await;
    wait_for_status(&gateway, "health", &json!({"id": 1}), 202).await;
    wait_for_status(&gateway, "in%2Evoices", &json!({"id": 1}), 404).await;

    let (command, message) = world.command(1).await;
    assert_eq!(
        (command.schema.as_str(), command.table.as_str()),
        ("sales", "in.voices")
    );
    assert!(
        message.subject.starts_with("writes.sales.in%2Evoices."),
        "{}",
        message.subject
    );
    let document = gateway.get("/openapi.json").await.body;
    assert!(document["paths"]["/sales.in%2Evoices"]["post"].is_object());
}
