//! Publishes a snapshot's messages into its stream, a few at a time.
//!
//! In: messages in order. Out: messages in the stream, each once.
//! Invariant: at most `IN_FLIGHT_BYTES_MAX` wait for acks, or one message that is larger; a message sent
//! again bears the id it had, so the stream keeps one of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::context::{PublishAckFuture, PublishError};
use bytes::Bytes;
use daemon::backoff::{self, Backoff};
use daemon::chained::Chained;
use wire::names::{HEADER_CONTENT_ENCODING, HEADER_MSG_ID};

use super::failure::Failure;

const IN_FLIGHT_BYTES_MAX: usize = 4 << 20;
const IN_FLIGHT_MESSAGES_MAX: usize = 16;
/// NATS may be away for this long; then the snapshot, which holds a transaction open, is given up.
const PATIENCE: Duration = Duration::from_mins(1);

pub struct Outlet {
    jetstream: jetstream::Context,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
}

struct Message {
    subject: String,
    id: String,
    encoding: Option<&'static str>,
    payload: Bytes,
}

struct InFlight {
    message: Message,
    ack: Option<PublishAckFuture>,
}

impl Outlet {
    pub fn new(jetstream: jetstream::Context) -> Self {
        Self {
            jetstream,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
        }
    }

    /// Sends a message, after waiting for acks until there is room. `id` is unique in the stream.
    pub async fn publish(
        &mut self,
        subject: String,
        id: String,
        encoding: Option<&'static str>,
        payload: Bytes,
    ) -> Result<(), Failure> {
        while !self.in_flight.is_empty()
            && (self.in_flight_bytes + payload.len() > IN_FLIGHT_BYTES_MAX
                || self.in_flight.len() >= IN_FLIGHT_MESSAGES_MAX)
        {
            self.settle_first().await?;
        }
        let message = Message {
            subject,
            id,
            encoding,
            payload,
        };
        // A failure here is one like a missing ack: `settle_first` sends it again.
        let ack = self.send(&message).await.ok();
        self.in_flight_bytes += message.payload.len();
        self.in_flight.push_back(InFlight { message, ack });
        Ok(())
    }

    /// Waits until everything is stored.
    pub async fn flush(&mut self) -> Result<(), Failure> {
        while !self.in_flight.is_empty() {
            self.settle_first().await?;
        }
        Ok(())
    }

    /// Cancel safe: an unanswered message stays first.
    async fn settle_first(&mut self) -> Result<(), Failure> {
        let started = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let Some(first) = self.in_flight.front_mut() else {
                return Ok(());
            };
            let error = match first.ack.take() {
                None => None,
                Some(ack) => match ack.await {
                    Ok(_) => break,
                    Err(error) => Some(error),
                },
            };
            if started.elapsed() > PATIENCE {
                let why =
                    error.map_or_else(|| "no ack".to_owned(), |error| Chained(&error).to_string());
                return Err(Failure::unavailable(format!(
                    "the stream of the snapshots takes nothing: {why}"
                )));
            }
            tokio::time::sleep(backoff.next(backoff::random())).await;
            let Some(InFlight { message, .. }) = self.in_flight.front() else {
                return Ok(());
            };
            let ack = self.send(message).await.ok();
            if let Some(first) = self.in_flight.front_mut() {
                first.ack = ack;
            }
        }
        if let Some(stored) = self.in_flight.pop_front() {
            self.in_flight_bytes -= stored.message.payload.len();
        }
        Ok(())
    }

    async fn send(&self, message: &Message) -> Result<PublishAckFuture, PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER_MSG_ID, message.id.as_str());
        if let Some(encoding) = message.encoding {
            headers.insert(HEADER_CONTENT_ENCODING, encoding);
        }
        self.jetstream
            .publish_with_headers(message.subject.clone(), headers, message.payload.clone())
            .await
    }
}
