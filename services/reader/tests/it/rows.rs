//! Rows, lists and pages.

use serde_json::json;

use crate::harness::World;

const BOOKS: &str = "
    INSERT INTO books VALUES
        (1, 'A', 1.10, 9007199254740993, '{x,y}', '{\"k\": [1]}', true, 'NaN', 's'),
        (2, 'B', 2.20, 7, NULL, NULL, false, 1.5, 's'),
        (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 's')";

#[tokio::test(flavor = "multi_thread")]
async fn values_keep_every_digit() {
    let world = World::up().await;
    world.sql(BOOKS);
    let reader = world.reader(&[]).await;

    let answer = reader.get("/books/1").await;

    let expected = json!({"id": 1, "title": "A", "price": "1.10", "sold": "9007199254740993",
        "tags": ["x", "y"], "extra": {"k": [1]}, "is_new": true, "weight": "NaN"});
    assert_eq!((answer.status, answer.json()), (200, expected));
    assert_eq!(reader.get("/books/4").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_ordered_and_cut() {
    let world = World::up().await;
    world.sql(BOOKS);
    let reader = world.reader(&[]).await;
    let ids = async |query: &str| {
        let answer = reader.get(&format!("/books?select=id&{query}")).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.body);
        let rows = answer.json();
        let ids = rows
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["id"].to_string());
        ids.collect::<Vec<_>>().join(",")
    };

    assert_eq!(ids("").await, "1,2,3");
    assert_eq!(ids("order=title.desc").await, "3,2,1");
    assert_eq!(ids("title=eq.A").await, "1");
    assert_eq!(ids("price=lt.2.2").await, "1");
    assert_eq!(ids("price=gte.2.20").await, "2");
    // Not rounded to the column's two digits.
    assert_eq!(ids("price=gt.2.199").await, "2");
    assert_eq!(ids("price=eq.2.199").await, "");
    assert_eq!(ids("title=like.%25B%25").await, "2");
    assert_eq!(ids("id=in.(1,3)").await, "1,3");
    assert_eq!(ids("title=is.null").await, "3");
    assert_eq!(ids("limit=1&offset=1").await, "2");
    assert_eq!(ids("title=eq.%27%3B%20DROP%20TABLE%20books").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn following_the_links_shows_every_row_once() {
    let world = World::up().await;
    world.sql(
        "INSERT INTO books (id, title) SELECT n, CASE WHEN n % 3 > 0 THEN 't' || n % 4 END
         FROM generate_series(1, 50) AS n",
    );
    let reader = world.reader(&[]).await;

    for order in [
        "order=title",
        "order=title.desc,id.desc",
        "order=id.desc",
        "",
    ] {
        let mut seen = Vec::new();
        let mut path = format!("/books?limit=7&{order}");
        loop {
            let answer = reader.get(&path).await;
            for row in answer.json().as_array().unwrap() {
                seen.push(row["id"].as_i64().unwrap());
            }
            let Some(link) = answer.headers.get("link") else {
                break;
            };
            path = link.split(['<', '>']).nth(1).unwrap().to_owned();
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=50).collect::<Vec<_>>(), "{order}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_row_is_304_by_its_etag() {
    let world = World::up().await;
    world.sql(BOOKS);
    let reader = world.reader(&[]).await;
    let etag = reader.get("/books/1").await.headers["etag"].clone();

    let again = reader
        .get_with("/books/1", &[("If-None-Match", &etag)])
        .await;
    world
        .change("books", "UPDATE books SET title = 'new' WHERE id = 1")
        .await;
    let changed = reader
        .get_with("/books/1", &[("If-None-Match", &etag)])
        .await;

    assert_eq!((again.status, again.body.as_str()), (304, ""));
    assert_eq!(changed.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_are_refused_politely() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;

    for path in [
        "/books?limit=0",
        "/books?limit=1001",
        "/books?limit=x",
        "/books?nobody=eq.1",
        "/books?id=eq.x",
        "/books?id=eq.99999999999999999999",
        "/books?id=1",
        "/books?order=id.up",
        "/books?after=xxxx",
        "/books?after=WyJ4Il0",
        "/books?select=",
        "/books?title=eq.%00",
        "/books?extra=like.%25",
        "/books?tags=eq.x",
        "/books?id=in.(1,x)",
        "/books/x",
        "/books/%00",
        "/books/%FF",
        "/books?title=eq.%FF",
        "/books/9223372036854775808",
        "/books?offset=1000001",
        "/nobody",
        "/nobody/1",
        "/a.b.c",
        "/%2E%2E",
        "/changes",
        "/changes?tables=nobody",
        "/status/x",
        "/status/00000000-0000-0000-0000-000000000000?wait=x",
        "/books/1/2",
        "/books?secret=eq.s",
        "/books?select=secret",
        "/%",
    ] {
        let answer = reader.get(path).await;
        let is_plain = answer.status == 200 || answer.status == 404 || answer.status == 400;
        assert!(is_plain, "{path}: {answer:?}");
        if answer.status != 200 {
            assert_eq!(
                answer.headers["content-type"], "application/problem+json",
                "{path}"
            );
        }
        assert!(!answer.body.contains("SELECT"), "{path}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_added_by_sql_alone_becomes_readable_and_documented() {
    let world = World::up().await;
    let reader = world.reader(&[]).await;
    assert_eq!(reader.get("/films").await.status, 404);

    world.sql(
        "CREATE TABLE films (id integer PRIMARY KEY, name text);
         GRANT SELECT ON films TO app_reader; INSERT INTO films VALUES (1, 'one')",
    );
    world.publish_schema("films").await;
    stack::eventually_async(crate::harness::DEADLINE, "the table", async || {
        reader.get("/films").await.status == 200
    })
    .await;

    assert_eq!(
        reader.get("/films").await.json(),
        json!([{"id": 1, "name": "one"}])
    );
    let document = reader.get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["paths"]["/films/{id}"]["get"].is_object());
    assert!(document["paths"]["/closed"].is_null());
    let books = &document["components"]["schemas"]["public.books"]["properties"];
    assert!(books["title"].is_object() && books["secret"].is_null());
}
