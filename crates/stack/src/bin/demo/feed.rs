//! The CDC stream as a durable consumer reads it.
//!
//! In: the NATS server. Out: events in stream order, acknowledged one by one.
//! Must hold: the consumer starts at the stream's first message, so nothing published before it
//! was made is missed.

use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::jetstream;
use async_nats::jetstream::consumer::pull;
use futures_util::StreamExt;

use crate::event::Event;
use crate::world::World;

const STREAM: &str = "CDC";
const STREAM_DEADLINE: Duration = Duration::from_secs(30);

pub struct Feed {
    stream: jetstream::stream::Stream,
    messages: pull::Stream,
}

impl Feed {
    pub async fn open(world: &World) -> anyhow::Result<Self> {
        let context = jetstream::new(world.nats_client().await?);
        let started = Instant::now();
        let stream = loop {
            match context.get_stream(STREAM).await {
                Ok(stream) => break stream,
                Err(error) if STREAM_DEADLINE < started.elapsed() => return Err(error.into()),
                // The bridge makes it when it starts.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let config = pull::Config {
            durable_name: Some("demo".into()),
            ..pull::Config::default()
        };
        let messages = stream.create_consumer(config).await?.messages().await?;
        Ok(Self { stream, messages })
    }

    /// Waits for ever: give it a deadline, or the reader's patience.
    pub async fn next(&mut self) -> anyhow::Result<Event> {
        let message = self.messages.next().await.context("the consumer ended")??;
        let event = Event::decode(&message.subject, &message.payload)
            .with_context(|| format!("cannot read an event on {}", message.subject))?;
        message
            .ack()
            .await
            .map_err(|error| anyhow::anyhow!(error))?;
        Ok(event)
    }

    /// Messages in the stream, as the server counts them.
    pub async fn stored(&mut self) -> anyhow::Result<u64> {
        Ok(self.stream.info().await?.state.messages)
    }
}
