//! Who sees what. PostgreSQL decides.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::json;

use crate::harness::{Reader, World};

const KEY: &str = "a shared secret of at least 32 bytes";
const ID: &str = "0191d2a0-7b7a-7cc3-8e6b-000000000001";

fn bearer(subject: &str) -> String {
    let encode = |text: String| URL_SAFE_NO_PAD.encode(text);
    let header = encode(json!({"alg": "HS256"}).to_string());
    let claims = encode(json!({"sub": subject}).to_string());
    let signed = format!("{header}.{claims}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes()));
    format!("Bearer {signed}.{signature}")
}

async fn guarded(world: &World) -> Reader {
    let path = world.stack.dir().join("key");
    std::fs::write(&path, KEY).unwrap();
    world
        .reader(&["--jwt-key-file", path.to_str().unwrap()])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_grant_a_table_is_closed() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;

    let answer = reader.get("/closed").await;

    assert_eq!(answer.status, 403);
    assert!(
        answer
            .body
            .contains("GRANT SELECT ON public.closed TO app_reader")
    );
    assert_eq!(reader.get("/changes?tables=closed").await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_taken_back_closes_the_table_for_cached_answers_too() {
    let world = World::up().await;
    world.sql("INSERT INTO books (id) VALUES (1)");
    let reader = world.reader(&[]).await;
    reader.get("/books/1").await;
    assert_eq!(reader.get("/books/1").await.cache(), "HIT");

    world.sql(
        "REVOKE SELECT (id, title, price, sold, tags, extra, is_new, weight)
        ON books FROM app_reader",
    );
    world.publish_schema("books").await;

    stack::eventually_async(crate::harness::DEADLINE, "a closed table", async || {
        reader.get("/books/1").await.status == 403
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_nothing_is_shown() {
    let world = World::up().await;
    world.sql("INSERT INTO books (id) VALUES (1)");
    let reader = guarded(&world).await;

    let paths = ["/books", "/books/1", "/changes?tables=books"];
    for path in paths.into_iter().chain([format!("/status/{ID}").as_str()]) {
        assert_eq!(reader.get(path).await.status, 401, "{path}");
        let forged = bearer("alice").replace('.', ".x");
        assert_eq!(
            reader
                .get_with(path, &[("Authorization", &forged)])
                .await
                .status,
            401
        );
    }
    let answer = reader
        .get_with("/books/1", &[("Authorization", &bearer("alice"))])
        .await;
    assert_eq!(answer.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn principals_under_row_level_security_never_share_an_answer() {
    let world = World::up().await;
    world.sql(
        "INSERT INTO books (id, title) VALUES (1, 'alice'), (2, 'bob');
         CREATE POLICY own ON books TO app_reader
            USING (title = current_setting('request.jwt.claims', true)::json->>'sub')",
    );
    let reader = guarded(&world).await;
    let titles = async |subject: &str| {
        let answer = reader
            .get_with(
                "/books?select=title",
                &[("Authorization", &bearer(subject))],
            )
            .await;
        (answer.cache().to_owned(), answer.json())
    };
    titles("alice").await;
    assert_eq!(titles("bob").await.0, "HIT");

    // The bucket has not heard of it yet: PostgreSQL says so with the rows.
    world
        .change("books", "ALTER TABLE books ENABLE ROW LEVEL SECURITY")
        .await;
    for _ in 0..2 {
        assert_eq!(
            titles("alice").await,
            ("MISS".to_owned(), json!([{"title": "alice"}]))
        );
        assert_eq!(
            titles("bob").await,
            ("MISS".to_owned(), json!([{"title": "bob"}]))
        );
    }

    world.publish_schema("books").await;
    stack::eventually_async(crate::harness::DEADLINE, "the schema", async || {
        titles("alice").await.0 == "BYPASS"
    })
    .await;
    assert_eq!(titles("bob").await.1, json!([{"title": "bob"}]));
    let authorization = bearer("bob");
    let live = reader
        .get_with(
            "/changes?tables=books",
            &[("Authorization", &authorization)],
        )
        .await;
    assert_eq!(live.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_write_is_shown_to_who_made_it() {
    let world = World::up().await;
    world.sql(&format!(
        "INSERT INTO write_operations (operation_id, entity_table, op_type, status, principal)
         VALUES ('{ID}', 'books', 'create', 'completed', 'alice')"
    ));
    let reader = guarded(&world).await;
    let status = async |subject: &str| {
        let path = format!("/status/{ID}");
        reader
            .get_with(&path, &[("Authorization", &bearer(subject))])
            .await
            .status
    };

    assert_eq!(status("alice").await, 200);
    assert_eq!(status("bob").await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_only_loopback_is_served() {
    let world = World::up().await;

    let process = world.program("open", &["--host", "0.0.0.0"]).start();

    assert!(!process.wait(crate::harness::DEADLINE).success());
    assert!(process.stderr().contains("--jwt-key-file"));
}
