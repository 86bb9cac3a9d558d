//! Connect options against real servers.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use daemon::nats::{self, FirstConnect, NatsOptions, ServerVersion};
use daemon::postgres::{self, PostgresOptions};
use daemon::secret::Secret;
use stack::{Options, Stack, eventually_async};

const DEADLINE: Duration = Duration::from_secs(20);

fn postgres_at(url: &str) -> PostgresOptions {
    let url = Secret::from(url);
    PostgresOptions::new(postgres::Settings {
        url: Some(&url),
        ..Default::default()
    })
    .unwrap()
}

fn nats_at(url: &str) -> NatsOptions {
    NatsOptions::new(nats::Settings {
        url: Some(url),
        ..Default::default()
    })
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_session_formats_values_alike_whatever_the_role_and_database_say() {
    let stack = Stack::up(Options::default().without_nats()).unwrap();
    let server = stack.postgres();
    server.sql("CREATE ROLE odd LOGIN PASSWORD 'odd'");
    server.create_database("odd");
    for setting in [
        "TimeZone = 'Asia/Tokyo'",
        "DateStyle = 'SQL, DMY'",
        "IntervalStyle = 'iso_8601'",
        "extra_float_digits = 0",
        "bytea_output = 'escape'",
    ] {
        server.sql(&format!("ALTER ROLE odd SET {setting}"));
        server.sql(&format!("ALTER DATABASE odd SET {setting}"));
    }

    let options = postgres_at(&server.url_as("odd", "odd", "odd"));
    let (client, _closed) = options.connect("daemon-test").await.unwrap();

    let values = "SELECT (timestamptz '2025-12-31 23:59:59+00')::text, (interval '1 day 2 h')::text,
        (0.1::float8 + 0.2::float8)::text, (bytea '\\x00ff')::text, current_setting('application_name')";
    let row = client.query_one(values, &[]).await.unwrap();
    let texts: Vec<String> = (0..5).map(|index| row.get(index)).collect();
    assert_eq!(
        texts,
        [
            "2025-12-31 23:59:59+00",
            "1 day 02:00:00",
            "0.30000000000000004",
            "\\x00ff",
            "daemon-test"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_can_use_the_unix_socket() {
    let stack = Stack::up(Options::default().without_nats()).unwrap();
    let server = stack.postgres();
    let (port, password) = (server.port().to_string(), Secret::from(server.password()));
    let options = PostgresOptions::new(postgres::Settings {
        host: server.socket_dir().to_str(),
        port: Some(&port),
        password: Some(&password),
        ..Default::default()
    })
    .unwrap();

    let (client, closed) = options.connect("daemon-test").await.unwrap();
    client.simple_query("SELECT 1").await.unwrap();
    drop(client);

    closed.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_session_is_heard_of_and_a_refused_one_is_explained() {
    let stack = Stack::up(Options::default().without_nats()).unwrap();
    let server = stack.postgres();
    let options = postgres_at(&server.url());

    let (client, closed) = options.connect("daemon-test").await.unwrap();
    server.kill();
    let broken = tokio::time::timeout(DEADLINE, closed)
        .await
        .expect("the end is heard of");
    assert!(broken.is_err() && client.is_closed());

    let Err(refused) = options.connect("daemon-test").await else {
        panic!("nobody listens there");
    };
    let expected = format!("cannot open a session with PostgreSQL at {}", server.addr());
    assert_eq!(refused.to_string(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_login_of_the_url_is_used_and_used_again_after_an_outage() {
    let stack = Stack::up(
        Options::default()
            .without_postgres()
            .nats_login_required(true),
    )
    .unwrap();
    let nats = stack.nats();

    let nobody = nats_at(&nats.addr().to_string());
    assert!(
        nobody
            .connect("daemon-test", FirstConnect::MustSucceed)
            .await
            .is_err()
    );

    let options = nats_at(&nats.url_as("app", "app"));
    let client = options
        .connect("daemon-test", FirstConnect::MustSucceed)
        .await
        .unwrap();
    let version: ServerVersion = client.server_info().version.parse().unwrap();
    assert!(ServerVersion::new(2, 9, 0) <= version, "{version}");

    nats.restart();
    eventually_async(DEADLINE, "the client is back", async || {
        client.connection_state() == State::Connected && client.flush().await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_made_before_the_server_is_up_connects_when_it_is() {
    let stack = Stack::up(Options::default().without_postgres()).unwrap();
    stack.nats().kill();

    let options = nats_at(&stack.nats().url());
    let client = options
        .connect("daemon-test", FirstConnect::Retry)
        .await
        .unwrap();
    stack.nats().start();

    eventually_async(DEADLINE, "the client connects", async || {
        client.connection_state() == State::Connected
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_a_bucket_to_the_client_library_on_any_server() {
    let stack = Stack::up(Options::default().without_postgres()).unwrap();
    let options = nats_at(&stack.nats().url());
    let client = options
        .connect("daemon-test", FirstConnect::MustSucceed)
        .await
        .unwrap();
    let context = jetstream::new(client);

    context
        .create_stream(nats::bucket("schemas", 10))
        .await
        .unwrap();

    let bucket = context.get_key_value("schemas").await.unwrap();
    for version in ["1", "2"] {
        bucket.put("users", version.into()).await.unwrap();
    }
    assert_eq!(
        bucket.get("users").await.unwrap().as_deref(),
        Some(&b"2"[..])
    );
    assert_eq!(bucket.status().await.unwrap().history(), 10);
}
