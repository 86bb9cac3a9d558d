use std::time::Duration;

use async_nats::jetstream;
use futures_util::StreamExt;
use stack::{Options, Stack, eventually_async, http_get};

use crate::DEADLINE;

fn up(options: Options) -> Stack {
    Stack::up(options.without_postgres()).unwrap()
}

async fn connect(stack: &Stack) -> jetstream::Context {
    let client = async_nats::connect(stack.nats().url()).await.unwrap();
    jetstream::new(client)
}

fn stream(replicas: usize) -> jetstream::stream::Config {
    jetstream::stream::Config {
        name: "CDC".into(),
        subjects: vec!["cdc.>".into()],
        num_replicas: replicas,
        ..Default::default()
    }
}

#[tokio::test]
async fn acked_messages_survive_a_crash_and_a_restart_on_the_same_port() {
    let stack = up(Options::default());
    let url = stack.nats().url();
    let context = connect(&stack).await;
    context.create_stream(stream(1)).await.unwrap();
    context
        .publish("cdc.a.insert", "one".into())
        .await
        .unwrap()
        .await
        .unwrap();

    stack.nats().kill();
    assert!(!stack.nats().is_running());
    stack.nats().start();

    assert_eq!(stack.nats().url(), url);
    let mut stream = connect(&stack).await.get_stream("CDC").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 1);
}

#[tokio::test]
async fn three_nodes_form_a_cluster_that_keeps_an_r3_stream_while_one_is_dead() {
    let stack = up(Options::default().nats_nodes(3));
    let nodes: Vec<async_nats::ServerAddr> = stack
        .nats_nodes()
        .iter()
        .map(|node| node.url().parse().unwrap())
        .collect();
    let client = async_nats::connect(nodes).await.unwrap();
    let mut context = jetstream::new(client);
    // Short: what is sent while a leader is elected gets no answer at all.
    context.set_timeout(Duration::from_millis(500));
    eventually_async(DEADLINE, "an R3 stream", async || {
        context
            .create_stream(stream(3))
            .await
            .map_err(|error| error.to_string())
    })
    .await;

    stack.nats_nodes()[2].kill();
    eventually_async(DEADLINE, "an ack from the two others", async || {
        let ack = context
            .publish("cdc.a.insert", "one".into())
            .await
            .map_err(|e| e.to_string())?;
        ack.await.map_err(|error| error.to_string())
    })
    .await;
    stack.nats_nodes()[2].start();

    let (status, health) = http_get(stack.nats_nodes()[2].monitoring_addr(), "/healthz").unwrap();
    assert_eq!((status, health.contains("ok")), (200, true), "{health}");
}

#[tokio::test]
async fn extra_configuration_is_read() {
    let stack = up(Options::default()
        .nats_config("max_payload: 64KB")
        .jetstream_config("max_memory_store: 64MB"));

    let client = async_nats::connect(stack.nats().url()).await.unwrap();

    assert_eq!(client.server_info().max_payload, 64 * 1024);
    let (_, limits) = http_get(stack.nats().monitoring_addr(), "/jsz").unwrap();
    assert!(limits.contains("\"max_memory\": 67108864"), "{limits}");
}

#[tokio::test]
async fn users_have_passwords_and_strangers_are_refused_when_a_login_is_required() {
    let stack = up(Options::default().nats_login_required(true));
    let addr = stack.nats().addr().to_string();
    let login = |password: &str| {
        let options = async_nats::ConnectOptions::new();
        options
            .user_and_password("bridge".into(), password.into())
            .connect(addr.clone())
    };

    let bridge = login("bridge").await.unwrap();

    let mut messages = bridge.subscribe("a").await.unwrap();
    bridge.publish("a", "hello".into()).await.unwrap();
    assert_eq!(messages.next().await.unwrap().payload, "hello");
    assert!(login("wrong").await.is_err());
    assert!(async_nats::connect(&addr).await.is_err());
}
