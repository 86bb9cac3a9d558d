//! What became of a write.
//!
//! In: an operation id. Out: its status, now or as soon as it is known.
//! Invariant: an accepted write is pending from the moment it was accepted; "never seen" is said only
//! when the queue and then PostgreSQL did not know it. (In this order: a write leaves the queue after
//! its outcome was recorded.)

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_postgres::types::Type;
use uuid::Uuid;
use wire::command::{OperationError, OperationStatus, Status, WriteCommand};
use wire::{Event, Message, Value, names};

use crate::database::{self, Database};

/// Looks up operations.
pub struct Operations {
    /// PostgreSQL.
    pub database: Arc<Database>,
    /// NATS.
    pub jetstream: Context,
    /// Change events of `write_operations`.
    pub changes_subject: String,
    /// Who waits.
    pub waiting: Waiting,
}

/// An operation and who made it.
#[derive(Debug, Clone)]
pub struct Operation {
    /// As clients read it.
    pub status: OperationStatus,
    /// Claim `sub` of who asked for it.
    pub principal: Option<String>,
}

/// Whether anybody knows the operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// PostgreSQL cannot say.
    #[error(transparent)]
    Database(#[from] database::Error),
    /// JetStream cannot say.
    #[error("JetStream cannot be asked")]
    JetStream(#[source] async_nats::Error),
}

/// Requests to be woken when an operation changes.
#[derive(Default)]
pub struct Waiting(Mutex<HashMap<Uuid, watch::Sender<()>>>);

/// One of them.
pub struct Waiter<'a> {
    waiting: &'a Waiting,
    id: Uuid,
    changed: watch::Receiver<()>,
}

/// Requests that wait are woken by change events; where those do not come, they look this often.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl Operations {
    /// The operation; None when it was never seen.
    pub async fn find(&self, id: Uuid) -> Result<Option<Operation>, Error> {
        let recorded = self.recorded(id).await;
        if let Ok(Some(operation)) = recorded {
            return Ok(Some(operation));
        }
        let queued = self.queued(id).await?;
        if queued.is_some() {
            return Ok(queued);
        }
        // Not in the queue: never seen, or applied in between.
        self.recorded(id).await
    }

    /// Its outcome in PostgreSQL. The LSN was taken after the outcome was visible, so it is behind the
    /// commit.
    async fn recorded(&self, id: Uuid) -> Result<Option<Operation>, Error> {
        let id_text = id.to_string();
        let rows = self
            .database
            .query(STATUS, &[(&id_text, Type::TEXT)])
            .await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let text = |index: usize| row.get::<_, Option<String>>(index);
        let status = match row.get::<_, &str>(0) {
            "completed" => Status::Completed,
            "failed" => Status::Failed,
            _ => Status::Pending,
        };
        let lsn: Option<String> = text(7);
        Ok(Some(Operation {
            status: OperationStatus {
                operation_id: id_text,
                status,
                error: text(3).map(|error| operation_error(&error)),
                table: text(1),
                entity_id: text(2),
                lsn: lsn
                    .filter(|_| status == Status::Completed)
                    .and_then(|lsn| lsn.parse().ok()),
                // It is visible.
                xid: None,
                accepted_at: text(4),
                completed_at: text(5),
            },
            principal: text(6),
        }))
    }

    /// The command in the queue.
    async fn queued(&self, id: Uuid) -> Result<Option<Operation>, Error> {
        let stream = self.stream(names::STREAM_WRITES).await?;
        for subject in [format!("writes.*.{id}"), format!("writes.*.*.{id}")] {
            let payload = match stream.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => message.payload,
                Err(error) if is_missing(error.kind()) => continue,
                Err(error) => return Err(Error::JetStream(error.into())),
            };
            let command = WriteCommand::decode(&payload).ok();
            let (table, entity_id, accepted_at, principal) = match command {
                Some(command) => (
                    Some(names::table_path(&command.schema, &command.table)),
                    command.entity_id,
                    Some(command.accepted_at),
                    command.principal,
                ),
                None => (None, None, None, None),
            };
            return Ok(Some(Operation {
                status: OperationStatus {
                    operation_id: id.to_string(),
                    status: Status::Pending,
                    error: None,
                    table,
                    entity_id,
                    lsn: None,
                    xid: None,
                    accepted_at,
                    completed_at: None,
                },
                principal,
            }));
        }
        Ok(None)
    }

    async fn stream(&self, name: &str) -> Result<Stream<()>, Error> {
        let stream = self.jetstream.get_stream_no_info(name).await;
        stream.map_err(|error| Error::JetStream(error.into()))
    }

    /// Wakes waiting requests by change events, for ever.
    pub async fn follow(&self, client: &Client) {
        loop {
            if let Ok(mut events) = client.subscribe(self.changes_subject.clone()).await {
                while let Some(message) = events.next().await {
                    let event = Event::decode(&message.payload);
                    if let Some(id) = event.ok().and_then(|event| operation_id(&event)) {
                        self.waiting.wake(id);
                    }
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Answers status requests over NATS, for ever. One reader of many answers each.
    pub async fn answer(&self, client: &Client) {
        loop {
            let requests = client
                .queue_subscribe(names::OPERATION_STATUS_SUBJECTS, "reader".to_owned())
                .await;
            if let Ok(requests) = requests {
                requests
                    .for_each_concurrent(ANSWERS_MAX, |request| self.answer_one(client, request))
                    .await;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn answer_one(&self, client: &Client, request: async_nats::Message) {
        let id = names::parse_operation_status(&request.subject).map(|id| Uuid::parse_str(&id));
        let (Some(Ok(id)), Some(reply)) = (id, request.reply) else {
            return;
        };
        // Not knowing is said by silence: another reader, or a later request, may know.
        if let Ok(Some(operation)) = self.find(id).await {
            let answer = client.publish(reply, operation.status.to_json().into());
            if let Err(error) = answer.await {
                tracing::debug!(%error, "status request not answered");
            }
        }
    }
}

const ANSWERS_MAX: usize = 32;

impl Waiting {
    /// Begins to wait. Call it before looking, or the change in between is missed.
    pub fn waiter(&self, id: Uuid) -> Waiter<'_> {
        let changed = self.map().entry(id).or_default().subscribe();
        Waiter {
            waiting: self,
            id,
            changed,
        }
    }

    fn wake(&self, id: Uuid) {
        if let Some(sender) = self.map().get(&id) {
            sender.send_replace(());
        }
    }

    fn map(&self) -> MutexGuard<'_, HashMap<Uuid, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter<'_> {
    /// Returns when the operation may have changed. Cancel safe.
    pub async fn changed(&mut self) {
        let _ = tokio::time::timeout(LOOK_INTERVAL, self.changed.changed()).await;
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut map = self.waiting.map();
        // This receiver is still counted.
        if map
            .get(&self.id)
            .is_some_and(|sender| sender.receiver_count() == 1)
        {
            map.remove(&self.id);
        }
    }
}

/// PostgreSQL: the function's snapshot is taken before the LSN is read.
const STATUS: &str = "
    SELECT status, entity_table, entity_key, error, to_json(accepted_at) #>> '{}',
           to_json(completed_at) #>> '{}', principal,
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                ELSE pg_current_wal_insert_lsn() END::text
    FROM public.operation_status($1::uuid)";

/// The column holds an `OperationError` as JSON; a plain text is its message.
fn operation_error(text: &str) -> OperationError {
    serde_json::from_str(text).unwrap_or_else(|_| OperationError {
        code: "failed".to_owned(),
        constraint: None,
        message: text.to_owned(),
    })
}

fn operation_id(event: &Event) -> Option<Uuid> {
    let column = event
        .columns
        .iter()
        .find(|column| column.name == "operation_id")?;
    match &column.value {
        Value::Text(text) => Uuid::parse_str(text).ok(),
        _ => None,
    }
}

fn is_missing(kind: LastRawMessageErrorKind) -> bool {
    match kind {
        LastRawMessageErrorKind::NoMessageFound => true,
        // The stream itself.
        LastRawMessageErrorKind::JetStream(error) => error.code() == 404,
        _ => false,
    }
}
