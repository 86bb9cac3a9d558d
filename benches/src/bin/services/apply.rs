//! The processor alone, over a queue that is full already, beside a naive one.
//!
//! In: commands. Out: writes a second of both, and their ratio.
//! Must hold: both record outcomes, check for repeats and ack; the naive one says so in five statements a write.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::pull;
use daemon::nats;
use futures_util::StreamExt;
use serde_json::{Value, json};
use wire::Message;
use wire::command::{WriteCommand, WriteOp};
use wire::names;

use crate::world::World;

/// Publishes on their way.
const WINDOW: usize = 2000;

pub async fn run(world: &mut World, queued: u64) -> anyhow::Result<()> {
    let few = (queued / 10).max(1);
    fill(world, 0, few).await?;
    let before = world.used();
    let naive = naive(world, few).await?;
    println!(
        "\napply, naive:      {:>8.0} writes/s   {}",
        naive,
        world.cost(&before, few)
    );

    fill(world, few, queued).await?;
    let before = world.used();
    let began = Instant::now();
    world.start("processor")?;
    world.drained().await?;
    let rate = queued as f64 / began.elapsed().as_secs_f64();
    // It was not there before, and costs what it has used.
    let before: Vec<_> = before
        .into_iter()
        .chain([("processor", Duration::ZERO)])
        .collect();
    println!(
        "apply, processor:  {rate:>8.0} writes/s   {}",
        world.cost(&before, queued)
    );
    println!("ratio:             {:>8.1}", rate / naive);
    let applied = world.stack.postgres().value("SELECT count(*) FROM users");
    anyhow::ensure!(
        applied == (few + queued).to_string(),
        "{applied} rows were applied"
    );
    Ok(())
}

fn command(number: u64) -> WriteCommand {
    let Value::Object(data) = json!({
        "name": format!("User-{number}"), "email": format!("user{number}@example.com"),
    }) else {
        unreachable!("it is written as an object")
    };
    WriteCommand {
        operation_id: format!("00000000-0000-4000-8000-{number:012x}"),
        table: "users".to_owned(),
        op: WriteOp::Create,
        entity_id: None,
        data,
        principal: None,
        claims: None,
        accepted_at: "2026-01-02T03:04:05Z".to_owned(),
        body_sha256: "0".repeat(64),
        schema: names::PUBLIC.to_owned(),
    }
}

async fn fill(world: &World, first: u64, count: u64) -> anyhow::Result<()> {
    // As the gateway and the processor make it, who come later.
    let config = nats::write_queue(
        names::STREAM_WRITES,
        names::WRITE_SUBJECTS,
        nats::WRITES_MAX.into(),
        nats::WRITES_BYTES_MAX,
    );
    world.jetstream.get_or_create_stream(config).await?;
    let mut acks = VecDeque::new();
    for number in first..first + count {
        let command = command(number);
        let subject = names::writes(names::PUBLIC, "users", &command.operation_id);
        let payload = command.to_msgpack();
        acks.push_back(world.jetstream.publish(subject, payload.into()).await?);
        if WINDOW <= acks.len()
            && let Some(ack) = acks.pop_front()
        {
            ack.await?;
        }
    }
    for ack in acks {
        ack.await?;
    }
    Ok(())
}

/// Writes a second of the processor one would write first.
async fn naive(world: &World, count: u64) -> anyhow::Result<f64> {
    let url = world
        .stack
        .postgres()
        .url_as("postgres", "postgres", "postgres");
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    let known = "SELECT 1 FROM write_operations WHERE operation_id = $1::text::uuid";
    let row = "INSERT INTO users (name, email) VALUES ($1, $2)";
    let outcome = "INSERT INTO write_operations
        (operation_id, entity_table, op_type, status, completed_at)
        VALUES ($1::text::uuid, 'users', 'create', 'completed', now())";
    let known = client.prepare(known).await?;
    let (row, outcome) = (client.prepare(row).await?, client.prepare(outcome).await?);
    let stream = world.jetstream.get_stream(names::STREAM_WRITES).await?;
    let config = pull::Config {
        durable_name: Some("naive".to_owned()),
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await?;
    let mut messages = consumer.messages().await?;
    let began = Instant::now();
    for _ in 0..count {
        let message = messages.next().await.expect("the consumer goes on")?;
        let command = WriteCommand::decode(&message.payload)?;
        let text = |name: &str| command.data[name].as_str().unwrap_or_default();
        client.batch_execute("BEGIN").await?;
        if client
            .query_opt(&known, &[&command.operation_id])
            .await?
            .is_none()
        {
            client
                .execute(&row, &[&text("name"), &text("email")])
                .await?;
            client.execute(&outcome, &[&command.operation_id]).await?;
        }
        client.batch_execute("COMMIT").await?;
        message
            .ack()
            .await
            .map_err(|error| anyhow::anyhow!(error))?;
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    world.drained().await?;
    stream.delete_consumer("naive").await?;
    drop(client);
    connection.await??;
    Ok(rate)
}
