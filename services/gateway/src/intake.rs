//! The way into JetStream: one accepted write, once.
//!
//! In: a checked command. Out: that it is in the queue, or why not. What must hold: the first request under an operation
//! id decides its fingerprint, on every replica and after every crash, because the memory of keys is written before the
//! queue and only if the key is new.
//!
//! A crash between the two leaves a remembered key without a command; the client, never answered, repeats, and the repeat
//! is queued. No reconnect and no retry here: the client has both, and the key makes them safe.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::DirectGetErrorKind;
use async_nats::jetstream::{self, Context, ErrorCode};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use wire::Message;
use wire::command::WriteCommand;
use wire::names::{self, BUCKET_OPERATIONS, HEADER_TRACEPARENT, STREAM_WRITES, kv_stream};

use crate::backlog::{Backlog, Sample};
use crate::breaker::Breaker;
use crate::streams::operation_subject;

/// JetStream must acknowledge within this.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(2);

/// Accepts commands.
#[derive(Debug)]
pub struct Intake {
    context: Context,
    places: Semaphore,
    in_flight_max: usize,
    breaker: Mutex<Breaker>,
    backlog: Mutex<Backlog>,
    has_queue: AtomicBool,
}

/// The command is in the queue, now or since an earlier request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// When the first request under this id was accepted, RFC 3339.
    pub accepted_at: String,
    /// This was not the first request under this id.
    pub is_repeat: bool,
}

/// The command is not in the queue, as far as is known.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Another request used this id.
    #[error("this Idempotency-Key was used for another request")]
    KeyReused,
    /// As many requests as may be wait for JetStream already.
    #[error("too many writes are in flight")]
    Busy {
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// The queue has no room.
    #[error("the queue of writes is full")]
    Full {
        /// When it should have room.
        retry_after: Duration,
    },
    /// Too many attempts failed lately; this one was not made.
    #[error("the queue did not answer lately")]
    BreakerOpen {
        /// When the breaker lets the next one through.
        retry_after: Duration,
    },
    /// The server takes no message of this size.
    #[error("the write is larger than the queue accepts")]
    TooLarge,
    /// JetStream cannot be asked, or did not answer.
    #[error("the queue cannot be reached")]
    Unavailable(#[source] Unavailable),
}

/// Why JetStream is not available.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// No connection at the moment.
    #[error("not connected to NATS")]
    Disconnected,
    /// No ack, or one that says no.
    #[error("publish to {subject}")]
    Publish {
        /// Where to.
        subject: String,
        /// What the client says.
        #[source]
        source: PublishError,
    },
    /// The memory of keys could not be read.
    #[error("read operation {operation_id}")]
    Read {
        /// Which.
        operation_id: String,
        /// What the client says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What is remembered of an operation. It does not say that the command is queued: only the queue does.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    accepted_at: String,
    body_sha256: String,
}

impl Intake {
    /// An intake over a context whose timeout is [`ACK_TIMEOUT`].
    pub fn new(context: Context, in_flight_max: usize) -> Self {
        Self {
            context,
            places: Semaphore::new(in_flight_max),
            in_flight_max,
            breaker: Mutex::default(),
            backlog: Mutex::default(),
            has_queue: AtomicBool::new(false),
        }
    }

    /// Queues the command, unless its id was used for another one. The answer's `accepted_at` replaces the command's.
    pub async fn accept(
        &self,
        mut command: WriteCommand,
        traceparent: &str,
    ) -> Result<Accepted, Refused> {
        let Ok(_place) = self.places.try_acquire() else {
            return Err(Refused::Busy {
                retry_after: self.backlog().retry_after(),
            });
        };
        self.breaker()
            .admit(Instant::now())
            .map_err(|retry_after| Refused::BreakerOpen { retry_after })?;

        let result = async {
            let accepted = self.remember(&command).await?;
            command.accepted_at.clone_from(&accepted.accepted_at);
            self.enqueue(&command, traceparent).await?;
            Ok(accepted)
        }
        .await;
        match &result {
            Err(Refused::Unavailable(error)) => {
                tracing::warn!(
                    error = error as &dyn std::error::Error,
                    "write not accepted"
                );
                self.breaker().failed(Instant::now());
            }
            Ok(_) | Err(_) => self.breaker().succeeded(),
        }
        result
    }

    /// Takes a look at the queue into account: for the advice to clients, and to know whether the streams are there.
    pub fn observed(&self, sample: Option<Sample>) {
        self.has_queue.store(sample.is_some(), Ordering::Relaxed);
        if let Some(sample) = sample {
            self.backlog().observe(sample);
        }
    }

    /// Whether the last look found the streams.
    pub fn has_queue(&self) -> bool {
        self.has_queue.load(Ordering::Relaxed)
    }

    /// Requests that wait for JetStream now.
    pub fn in_flight(&self) -> usize {
        self.in_flight_max - self.places.available_permits()
    }

    /// The breaker's state by name.
    pub fn breaker_name(&self) -> &'static str {
        self.breaker().name()
    }

    /// Messages in the queue, and messages a second leaving it, at the last look.
    pub fn backlog_size(&self) -> (u64, f64) {
        let backlog = self.backlog();
        (backlog.messages(), backlog.drained_per_s())
    }

    /// Whether NATS is connected.
    pub fn is_connected(&self) -> bool {
        self.context.client().connection_state() == State::Connected
    }

    /// Writes the key down if it is new; compares if it is not.
    async fn remember(&self, command: &WriteCommand) -> Result<Accepted, Refused> {
        let record = Record {
            accepted_at: command.accepted_at.clone(),
            body_sha256: command.body_sha256.clone(),
        };
        let json = serde_json::to_vec(&record).expect("a record is text only");
        let subject = operation_subject(&command.operation_id);
        let message = PublishMessage::build()
            .payload(json.into())
            .expected_last_subject_sequence(0);
        match self.publish(subject.clone(), message).await {
            Ok(()) => Ok(Accepted {
                accepted_at: record.accepted_at,
                is_repeat: false,
            }),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {
                self.compare(&command.operation_id, record).await
            }
            Err(error) => Err(self.refusal(subject, error)),
        }
    }

    async fn compare(&self, operation_id: &str, record: Record) -> Result<Accepted, Refused> {
        let first = match self.recorded(operation_id).await? {
            Some(first) if first.body_sha256 != record.body_sha256 => {
                return Err(Refused::KeyReused);
            }
            Some(first) => first,
            // Forgotten in this moment. The command's message id and the processor still know it.
            None => record,
        };
        Ok(Accepted {
            accepted_at: first.accepted_at,
            is_repeat: true,
        })
    }

    async fn recorded(&self, operation_id: &str) -> Result<Option<Record>, Refused> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
            let operation_id = operation_id.to_owned();
            Refused::Unavailable(Unavailable::Read {
                operation_id,
                source,
            })
        };
        let stream = self
            .context
            .get_stream_no_info(kv_stream(BUCKET_OPERATIONS))
            .await;
        let stream = stream.map_err(|error| failed(error.into()))?;
        let subject = operation_subject(operation_id);
        match stream.direct_get_last_for_subject(subject).await {
            Ok(message) => {
                let record = serde_json::from_slice(&message.payload);
                record.map(Some).map_err(|error| failed(error.into()))
            }
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error.into())),
        }
    }

    async fn enqueue(&self, command: &WriteCommand, traceparent: &str) -> Result<(), Refused> {
        let subject = names::writes(&command.schema, &command.table, &command.operation_id);
        let message = PublishMessage::build()
            .payload(command.to_msgpack().into())
            .message_id(&command.operation_id)
            .expected_stream(STREAM_WRITES)
            .header(HEADER_TRACEPARENT, traceparent);
        let published = self.publish(subject.clone(), message).await;
        published.map_err(|error| self.refusal(subject, error))
    }

    async fn publish(&self, subject: String, message: PublishMessage) -> Result<(), PublishError> {
        // The client would keep the message until it is connected again, and the request with it.
        if !self.is_connected() {
            return Err(PublishError::new(PublishErrorKind::BrokenPipe));
        }
        self.context.send_publish(subject, message).await?.await?;
        Ok(())
    }

    fn refusal(&self, subject: String, error: PublishError) -> Refused {
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => Refused::TooLarge,
            _ if is_full(&error) => Refused::Full {
                retry_after: self.backlog().retry_after(),
            },
            _ if !self.is_connected() => Refused::Unavailable(Unavailable::Disconnected),
            _ => Refused::Unavailable(Unavailable::Publish {
                subject,
                source: error,
            }),
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stream or the server's storage has reached a limit: the server is there, and refuses.
fn is_full(error: &PublishError) -> bool {
    let source = std::error::Error::source(error);
    let code = source
        .and_then(|source| source.downcast_ref::<jetstream::Error>())
        .map(jetstream::Error::error_code);
    matches!(
        code,
        Some(ErrorCode::STREAM_STORE_FAILED | ErrorCode::STORAGE_RESOURCES_EXCEEDED)
    )
}
