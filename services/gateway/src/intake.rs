//! The way into JetStream: one accepted write, once.
//!
//! In: a checked command. Out: that it is in the queue, or why not. What must hold: the first request under an operation
//! id decides its fingerprint, on every replica and after every crash, because its key is in the log before the command is
//! in the queue.
//!
//! Requests of one moment go together: while one message of keys is on its way, the next one gathers, for [`GATHER_MAX`]
//! at most. Commands follow their keys at once, so the keys of the next message and the commands of this one are on their
//! way together.
//!
//! What only repeats need is awaited in a box: the future of a request is moved several times on its way through axum.
//!
//! A crash between the two leaves a remembered key without a command; the client, never answered, repeats, and the repeat
//! is queued. No reconnect and no retry here: the client has both, and the key makes them safe.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use wire::Message;
use wire::command::WriteCommand;
use wire::names;

use crate::breaker::Breaker;
use crate::keys::{self, Keys, Record};
use crate::queue::{self, Queue, Queued};

/// JetStream must acknowledge within this.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// A write waits for its key and its command, and for those in front of it.
const ACCEPT_TIMEOUT: Duration = ACK_TIMEOUT.saturating_mul(2);

/// When nats-server pauses (its garbage collector: 5 to 10 ms), what comes meanwhile is sent all the same, and waits for
/// one pause instead of two.
const GATHER_MAX: Duration = Duration::from_millis(2);

/// Accepts commands.
#[derive(Debug)]
pub struct Intake {
    /// Where commands go.
    pub queue: Arc<Queue>,
    /// Which were there before.
    pub keys: Arc<Keys>,
    places: Arc<Semaphore>,
    in_flight_max: usize,
    breaker: Mutex<Breaker>,
    line: mpsc::Sender<Waiting>,
}

/// Writes that wait to be taken in; for [`Intake::work`].
pub type Line = mpsc::Receiver<Waiting>;

/// A write that is the first under its key, as far as is known.
#[derive(Debug)]
pub struct Waiting {
    record: Record,
    command: Queued,
    answer: Answer,
}

/// Whoever waits for it.
#[derive(Debug)]
struct Answer {
    reply: oneshot::Sender<Result<Taken, Refused>>,
    /// Held until it is answered, even when nobody waits any more.
    #[expect(dead_code, reason = "dropping it is its use")]
    place: Arc<OwnedSemaphorePermit>,
}

/// What became of it.
#[derive(Debug, Clone, Copy)]
enum Taken {
    Queued,
    /// It was not the first.
    NotFirst,
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
#[derive(Debug, Clone, thiserror::Error)]
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
    /// The gateway has just begun.
    #[error("the idempotency keys are still being read")]
    KeysUnread,
    /// JetStream cannot be asked, or did not answer.
    #[error("the queue cannot be reached")]
    Unavailable(#[source] Unavailable),
}

/// Why JetStream is not available.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unavailable {
    /// No connection at the moment.
    #[error("not connected to NATS")]
    Disconnected,
    /// Too late.
    #[error("no answer within {} s", ACCEPT_TIMEOUT.as_secs())]
    TimedOut,
    /// The log of keys cannot be written or read.
    #[error("the idempotency key is not known to be remembered")]
    Keys(#[source] Arc<keys::Error>),
    /// The queue did not take it.
    #[error("the command is not known to be queued")]
    Queue(#[source] queue::Error),
}

/// Writes taken in together, at most.
const BATCH_MAX: usize = 256;
/// A key that was taken and forgotten again this often is not tried further.
const ATTEMPTS_MAX: usize = 3;

impl Intake {
    /// An intake over a context whose timeout is [`ACK_TIMEOUT`].
    pub fn new(context: Context, in_flight_max: usize, keys_max: usize) -> (Self, Line) {
        let (line, end) = mpsc::channel(in_flight_max);
        let intake = Self {
            queue: Arc::new(Queue::new(context.clone())),
            keys: Arc::new(Keys::new(context, ACK_TIMEOUT, keys_max)),
            places: Arc::new(Semaphore::new(in_flight_max)),
            in_flight_max,
            breaker: Mutex::default(),
            line,
        };
        (intake, end)
    }

    /// Queues the command, unless its id was used for another one. The answer's `accepted_at` replaces the command's.
    pub async fn accept(
        &self,
        command: WriteCommand,
        record: Record,
        traceparent: &str,
    ) -> Result<Accepted, Refused> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| self.busy())?;
        self.breaker()
            .admit(Instant::now())
            .map_err(|retry_after| Refused::BreakerOpen { retry_after })?;

        let result = if self.queue.is_connected() {
            let taken_in = self.take_in(command, record, traceparent, place);
            let result = tokio::time::timeout(ACCEPT_TIMEOUT, taken_in).await;
            result.unwrap_or(Err(Refused::Unavailable(Unavailable::TimedOut)))
        } else {
            Err(Refused::Unavailable(Unavailable::Disconnected))
        };
        match &result {
            Err(Refused::Unavailable(error)) => {
                tracing::warn!(
                    error = error as &dyn std::error::Error,
                    "write not accepted"
                );
                self.breaker().failed(Instant::now());
            }
            // Nothing was asked of the server.
            Err(Refused::KeysUnread) => {}
            Ok(_) | Err(_) => self.breaker().succeeded(),
        }
        result
    }

    /// Requests that wait for JetStream now.
    pub fn in_flight(&self) -> usize {
        self.in_flight_max - self.places.available_permits()
    }

    /// The breaker's state by name.
    pub fn breaker_name(&self) -> &'static str {
        self.breaker().name()
    }

    /// Queues the command, and its key before it.
    async fn take_in(
        &self,
        mut command: WriteCommand,
        record: Record,
        traceparent: &str,
        place: OwnedSemaphorePermit,
    ) -> Result<Accepted, Refused> {
        let place = Arc::new(place);
        for _ in 0..ATTEMPTS_MAX {
            if let Some(first) = self.known(&record).await? {
                command.accepted_at = timestamp(first.accepted_at);
                Box::pin(self.repeat(&command, traceparent)).await?;
                return Ok(Accepted {
                    accepted_at: command.accepted_at,
                    is_repeat: true,
                });
            }
            let queued = queued(&command, traceparent);
            if !self.queue.fits(&queued.payload) {
                return Err(Refused::TooLarge);
            }
            let (reply, taken) = oneshot::channel();
            let waiting = Waiting {
                record: record.clone(),
                command: queued,
                answer: Answer {
                    reply,
                    place: place.clone(),
                },
            };
            self.line.try_send(waiting).map_err(|_| self.busy())?;
            match taken.await {
                Ok(Ok(Taken::Queued)) => {
                    return Ok(Accepted {
                        accepted_at: command.accepted_at,
                        is_repeat: false,
                    });
                }
                Ok(Ok(Taken::NotFirst)) => {}
                Ok(Err(refused)) => return Err(refused),
                Err(_) => break,
            }
        }
        Err(Refused::Unavailable(Unavailable::TimedOut))
    }

    /// The first record under this id, if it was for the same request; None: this request is the first.
    async fn known(&self, record: &Record) -> Result<Option<Record>, Refused> {
        if !self.keys.is_whole() {
            return Err(Refused::KeysUnread);
        }
        let id = &record.operation_id;
        let Some(sequence) = self.keys.first(id) else {
            return Ok(None);
        };
        let first = Box::pin(self.keys.record(id, sequence)).await;
        match first.map_err(unavailable)? {
            Some(first) if first.fingerprint != record.fingerprint => Err(Refused::KeyReused),
            // None: forgotten in this moment. The command's message id and the processor still know it.
            first => Ok(first),
        }
    }

    /// Queues the command once more, in case its key came through and it did not. Its message id keeps it from being
    /// there twice, and the processor from being applied twice.
    async fn repeat(&self, command: &WriteCommand, traceparent: &str) -> Result<(), Refused> {
        let sent = self.queue.send(vec![queued(command, traceparent)]).await;
        let outcomes = self.queue.confirm(sent).await;
        for outcome in outcomes {
            outcome.map_err(|error| refusal(&self.queue, error))?;
        }
        Ok(())
    }

    /// Takes in what waits, for ever.
    pub async fn work(&self, mut line: Line) {
        let mut waiting = Vec::new();
        loop {
            let batch_max = Keys::batch_max(self.queue.payload_bytes_max()).min(BATCH_MAX);
            if line.recv_many(&mut waiting, batch_max).await == 0 {
                return;
            }
            // Who has gone needs no answer, and nothing of theirs was sent.
            waiting.retain(|waiting: &Waiting| !waiting.answer.reply.is_closed());
            if !waiting.is_empty() {
                let waiting = std::mem::take(&mut waiting);
                let taken_in = take_in(self.keys.clone(), self.queue.clone(), waiting);
                let _ = tokio::time::timeout(GATHER_MAX, tokio::spawn(taken_in)).await;
            }
        }
    }

    fn busy(&self) -> Refused {
        Refused::Busy {
            retry_after: self.queue.retry_after(),
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns when keys and commands are sent and the keys are acknowledged.
async fn take_in(keys: Arc<Keys>, queue: Arc<Queue>, waiting: Vec<Waiting>) {
    let records = waiting.iter().map(|waiting| &waiting.record);
    let sequence = match keys.append(records).await {
        Ok(sequence) => sequence,
        Err(error) => {
            let refused = unavailable(error);
            for waiting in waiting {
                waiting.answer.give(Err(refused.clone()));
            }
            return;
        }
    };
    let count = waiting.len();
    let mut seen = HashSet::with_capacity(count);
    let (mut commands, mut answers) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for waiting in waiting {
        let id = waiting.record.operation_id;
        if keys.first(&id) == Some(sequence) && seen.insert(id) {
            commands.push(waiting.command);
            answers.push(waiting.answer);
        } else {
            waiting.answer.give(Ok(Taken::NotFirst));
        }
    }
    if commands.is_empty() {
        return;
    }
    let sent = queue.send(commands).await;
    tokio::spawn(async move {
        let outcomes = queue.confirm(sent).await;
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            let taken = outcome.map(|()| Taken::Queued);
            answer.give(taken.map_err(|error| refusal(&queue, error)));
        }
    });
}

impl Answer {
    fn give(self, taken: Result<Taken, Refused>) {
        // Who has gone needs no answer.
        let _ = self.reply.send(taken);
    }
}

/// As `accepted_at` says it.
pub fn timestamp(at: OffsetDateTime) -> String {
    at.format(&Rfc3339)
        .expect("the present has a four-digit year")
}

fn queued(command: &WriteCommand, traceparent: &str) -> Queued {
    Queued {
        subject: names::writes(&command.schema, &command.table, &command.operation_id),
        message_id: command.operation_id.clone(),
        traceparent: traceparent.to_owned(),
        payload: command.to_msgpack().into(),
    }
}

fn unavailable(error: keys::Error) -> Refused {
    Refused::Unavailable(Unavailable::Keys(Arc::new(error)))
}

fn refusal(queue: &Queue, error: queue::Error) -> Refused {
    match error {
        queue::Error::Full => Refused::Full {
            retry_after: queue.retry_after(),
        },
        queue::Error::TooLarge => Refused::TooLarge,
        error @ queue::Error::Publish { .. } => Refused::Unavailable(Unavailable::Queue(error)),
    }
}
