//! Puts commands into the queue, many with one ack.
//!
//! In: commands whose keys are decided. Out: which of them are in stream `WRITES`. What must hold: a command is said to be
//! queued only when JetStream acknowledged it, or one that it accepts only directly behind it.
//!
//! Commands of one moment form a chain: each names the message id that it must follow (`Nats-Expected-Last-Msg-Id`), and
//! only the last asks for an ack, which saves nats-server an ack and the gateway a request for all others. A chain breaks
//! when another gateway writes in between; what it had is published again then, each for itself, and their message ids
//! keep what got through from being stored twice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::header::{NATS_EXPECTED_LAST_MESSAGE_ID, NATS_MESSAGE_ID};
use async_nats::jetstream::Context;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use daemon::nats;
use futures_util::future::join_all;
use wire::names::HEADER_TRACEPARENT;

use crate::backlog::{Backlog, Sample};

/// The queue, as gateways see it.
#[derive(Debug)]
pub struct Queue {
    context: Context,
    client: Client,
    backlog: Mutex<Backlog>,
    is_there: AtomicBool,
    turn: tokio::sync::Mutex<()>,
    /// No chains before this.
    alone_until: Mutex<Option<Instant>>,
}

/// A command as it stands in the queue.
#[derive(Debug, Clone)]
pub struct Queued {
    /// `writes.{table}.{operation_id}`.
    pub subject: String,
    /// Operation id, in text.
    pub message_id: String,
    /// W3C trace context.
    pub traceparent: String,
    /// The command.
    pub payload: Bytes,
}

/// Why a command is not in the queue, as far as is known.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The queue has no room.
    #[error("the queue of writes is full")]
    Full,
    /// The server takes no message of this size.
    #[error("the write is larger than the queue accepts")]
    TooLarge,
    /// No ack, or one that says no.
    #[error("publish to {subject}")]
    Publish {
        /// Where to.
        subject: String,
        /// What the client says.
        #[source]
        source: Arc<PublishError>,
    },
}

/// Commands on their way.
#[derive(Debug)]
pub struct Sent {
    commands: Vec<Queued>,
    acks: Acks,
}

#[derive(Debug)]
enum Acks {
    OfLast(PublishAckFuture),
    OfEach(Vec<Result<PublishAckFuture, PublishError>>),
}

/// How long commands go one by one after a chain broke: another gateway is writing too.
const ALONE: Duration = Duration::from_secs(1);
/// Bytes of headers beside a command, at most.
const HEADERS_BYTES_MAX: usize = 1024;

impl Queue {
    /// The queue behind a context whose timeout is that of acks.
    pub fn new(context: Context) -> Self {
        Self {
            client: context.client(),
            context,
            backlog: Mutex::default(),
            is_there: AtomicBool::new(false),
            turn: tokio::sync::Mutex::default(),
            alone_until: Mutex::default(),
        }
    }

    /// Whether the server would take a command of this size.
    pub fn fits(&self, payload: &[u8]) -> bool {
        payload.len() + HEADERS_BYTES_MAX <= self.payload_bytes_max()
    }

    /// What the server takes in one message.
    pub fn payload_bytes_max(&self) -> usize {
        self.client.max_payload()
    }

    /// Sends commands, in their order.
    pub async fn send(&self, commands: Vec<Queued>) -> Sent {
        // Two at once would cut each other's chains.
        let _turn = self.turn.lock().await;
        if commands.len() > 1
            && self.may_chain()
            && let Ok(ack) = self.send_chain(&commands).await
        {
            let acks = Acks::OfLast(ack);
            return Sent { commands, acks };
        }
        let acks = Acks::OfEach(self.send_each(&commands).await);
        Sent { commands, acks }
    }

    /// What became of commands, in their order.
    pub async fn confirm(&self, sent: Sent) -> Vec<Result<(), Error>> {
        let Sent { commands, acks } = sent;
        let acks = match acks {
            Acks::OfEach(acks) => acks,
            Acks::OfLast(ack) => match ack.await {
                // A repeated message is acknowledged before it is asked what it expects to follow.
                Ok(ack) if !ack.duplicate => return commands.iter().map(|_| Ok(())).collect(),
                Err(error) if error.kind() == PublishErrorKind::TimedOut => {
                    let error = Arc::new(error);
                    let failed = |command: &Queued| Err(failed(command, error.clone()));
                    return commands.iter().map(failed).collect();
                }
                Ok(_) | Err(_) => {
                    *self.alone_until() = Some(Instant::now() + ALONE);
                    self.send_each(&commands).await
                }
            },
        };
        // Together: the time for an ack begins when it is awaited.
        let confirm = |(command, ack): (_, Result<PublishAckFuture, _>)| async move {
            let acknowledged = match ack {
                Ok(ack) => ack.await.map(drop),
                Err(error) => Err(error),
            };
            acknowledged.map_err(|error| outcome(command, error))
        };
        join_all(commands.iter().zip(acks).map(confirm)).await
    }

    /// Takes a look at the queue into account; None: there is none to look at.
    pub fn observed(&self, sample: Option<Sample>) {
        self.is_there.store(sample.is_some(), Ordering::Relaxed);
        if let Some(sample) = sample {
            self.backlog().observe(sample);
        }
    }

    /// Whether the last look found it.
    pub fn is_there(&self) -> bool {
        self.is_there.load(Ordering::Relaxed)
    }

    /// Whether NATS is connected.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// When a queue that is full, or a gateway that is busy, is worth another try.
    pub fn retry_after(&self) -> Duration {
        self.backlog().retry_after()
    }

    /// Messages in the queue, and messages a second leaving it, at the last look.
    pub fn backlog_size(&self) -> (u64, f64) {
        let backlog = self.backlog();
        (backlog.messages(), backlog.drained_per_s())
    }

    async fn send_chain(&self, commands: &[Queued]) -> Result<PublishAckFuture, PublishError> {
        let (last, others) = commands.split_last().expect("a chain has links");
        let mut previous = None;
        for command in others {
            let (subject, payload) = (command.subject.clone(), command.payload.clone());
            self.client
                .publish_with_headers(subject, headers(command, previous), payload)
                .await
                .map_err(|error| PublishError::with_source(PublishErrorKind::Other, error))?;
            previous = Some(command.message_id.as_str());
        }
        self.send_one(last, previous).await
    }

    async fn send_each(&self, commands: &[Queued]) -> Vec<Result<PublishAckFuture, PublishError>> {
        let mut acks = Vec::with_capacity(commands.len());
        for command in commands {
            acks.push(self.send_one(command, None).await);
        }
        acks
    }

    async fn send_one(
        &self,
        command: &Queued,
        previous: Option<&str>,
    ) -> Result<PublishAckFuture, PublishError> {
        let message = PublishMessage::build()
            .payload(command.payload.clone())
            .headers(headers(command, previous));
        let subject = command.subject.clone();
        self.context.send_publish(subject, message).await
    }

    fn may_chain(&self) -> bool {
        let mut alone_until = self.alone_until();
        if alone_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        *alone_until = None;
        true
    }

    fn alone_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.alone_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn headers(command: &Queued, previous: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, command.message_id.as_str());
    headers.insert(HEADER_TRACEPARENT, command.traceparent.as_str());
    if let Some(previous) = previous {
        headers.insert(NATS_EXPECTED_LAST_MESSAGE_ID, previous);
    }
    headers
}

fn outcome(command: &Queued, error: PublishError) -> Error {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => Error::TooLarge,
        _ if nats::is_full(&error) => Error::Full,
        _ => failed(command, Arc::new(error)),
    }
}

fn failed(command: &Queued, source: Arc<PublishError>) -> Error {
    let subject = command.subject.clone();
    Error::Publish { subject, source }
}
