//! Tells a waiting request what became of its write.
//!
//! In: the change events of `write_operations`, and the answers of whoever can read that table. Out: the final status.
//! What must hold: nobody waits past their deadline, and nothing is listened to while nobody waits.
//!
//! The gateway reads no database: the outcome comes the same way as every other change, through the CDC stream. An
//! outcome from before the request does not come again, so it is also asked for on [`names::operation_status`]; nobody has to
//! answer there.
//!
//! PostgreSQL: a commit is in the WAL, and so in the stream, a moment before others see it. A completed write is told when
//! somebody who reads the database has seen it, so that a read behind the answer cannot miss it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use wire::command::{OperationError, OperationStatus, Status};
use wire::names::{self, TABLE_WRITE_OPERATIONS};
use wire::{Event, Message, Operation, Value};

/// Requests that may wait at a time; more are answered `pending` at once.
const WAITERS_MAX: usize = 10_000;
/// How often a waiting request asks.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long a completed write may stay unseen; only a server that waits for a standby takes that long.
const SEEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to look whether it is seen.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The subscription is kept for so long after the last request that waited.
const IDLE: Duration = Duration::from_secs(5);
/// How long a request waits for the subscription.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_millis(250);

type Found = watch::Sender<Option<OperationStatus>>;

/// The waiting requests; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Outcomes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<HashMap<String, Found>>,
    somebody_waits: Notify,
    is_listening: watch::Sender<bool>,
}

/// One waiting request.
#[derive(Debug)]
pub struct Waiter {
    operation_id: String,
    found: watch::Receiver<Option<OperationStatus>>,
    shared: Arc<Shared>,
}

impl Outcomes {
    /// Starts to wait. Call it before the write is queued, or its outcome may be missed. None when too many wait.
    pub async fn waiter(&self, operation_id: &str) -> Option<Waiter> {
        let waiter = self.register(operation_id)?;
        self.0.somebody_waits.notify_one();
        // The subscription is on its way to the server before the command then. Without NATS there is no command either.
        let mut is_listening = self.0.is_listening.subscribe();
        let listening = is_listening.wait_for(|is_listening| *is_listening);
        let _ = tokio::time::timeout(SUBSCRIBE_TIMEOUT, listening).await;
        Some(waiter)
    }

    fn register(&self, operation_id: &str) -> Option<Waiter> {
        let mut waiting = self.0.waiting();
        if WAITERS_MAX <= waiting.len() {
            return None;
        }
        let found = waiting
            .entry(operation_id.to_owned())
            .or_default()
            .subscribe();
        let operation_id = operation_id.to_owned();
        Some(Waiter {
            operation_id,
            found,
            shared: self.0.clone(),
        })
    }

    /// Listens for outcomes on `subject` for ever, while somebody waits.
    pub async fn follow(&self, client: &Client, subject: &str) {
        loop {
            self.0.somebody_waits.notified().await;
            if let Err(error) = self.listen(client, subject).await {
                tracing::warn!(%error, "cannot listen for outcomes");
                tokio::time::sleep(ASK_EVERY).await;
            }
        }
    }

    /// Listens until nobody has been waiting for a while.
    async fn listen(
        &self,
        client: &Client,
        subject: &str,
    ) -> Result<(), async_nats::SubscribeError> {
        let mut events = client.subscribe(subject.to_owned()).await?;
        self.0.is_listening.send_replace(true);
        let mut looked = Instant::now();
        loop {
            match tokio::time::timeout_at(looked + IDLE, events.next()).await {
                Ok(Some(message)) => self.0.found(&message.payload),
                Ok(None) => break,
                Err(_) => {}
            }
            if IDLE <= looked.elapsed() {
                looked = Instant::now();
                if self.0.waiting().is_empty() {
                    break;
                }
            }
        }
        self.0.is_listening.send_replace(false);
        Ok(())
    }
}

impl Waiter {
    /// The outcome, or None at the deadline. `asks_at_once`: it may have been known before this request.
    pub async fn outcome(
        mut self,
        client: &Client,
        asks_at_once: bool,
        deadline: Instant,
    ) -> Option<OperationStatus> {
        let operation_id = self.operation_id.clone();
        let asked = async {
            if !asks_at_once {
                tokio::time::sleep(ASK_EVERY).await;
            }
            loop {
                if let Ok(Some(status)) = ask(client, &operation_id).await {
                    break status;
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
        };
        let heard = async {
            match self.found.wait_for(Option::is_some).await {
                Ok(status) => status.clone(),
                // The sender lives until the last waiter leaves the map.
                Err(_) => None,
            }
        };
        let heard = async {
            let heard = heard.await?;
            let seen = tokio::time::timeout(SEEN_TIMEOUT, seen(client, &heard)).await;
            Some(seen.ok().flatten().unwrap_or(heard))
        };
        tokio::select! {
            heard = heard => heard,
            status = asked => Some(status),
            () = tokio::time::sleep_until(deadline) => None,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting();
        let is_last = waiting
            .get(&self.operation_id)
            .is_some_and(|sender| sender.receiver_count() == 1);
        if is_last {
            waiting.remove(&self.operation_id);
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Found>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self, payload: &[u8]) {
        let Ok(event) = Event::decode(payload) else {
            return tracing::warn!("a change of {TABLE_WRITE_OPERATIONS} cannot be read");
        };
        let Some(status) = status(&event) else { return };
        if let Some(sender) = self.waiting().get(&status.operation_id) {
            sender.send_replace(Some(status));
        }
    }
}

/// The status once it is visible in the database; None when nobody can say.
async fn seen(client: &Client, heard: &OperationStatus) -> Option<OperationStatus> {
    if heard.status != Status::Completed {
        return None;
    }
    loop {
        match ask(client, &heard.operation_id).await {
            Ok(Some(status)) => return Some(status),
            Ok(None) => tokio::time::sleep(LOOK_EVERY).await,
            Err(_) => return None,
        }
    }
}

/// The final status, if there is one. Fails when nobody answers.
async fn ask(
    client: &Client,
    operation_id: &str,
) -> Result<Option<OperationStatus>, async_nats::RequestError> {
    let subject = names::operation_status(operation_id);
    let request = async_nats::Request::new().timeout(Some(ASK_EVERY));
    let answer = client.send_request(subject, request).await?;
    let status = OperationStatus::decode(&answer.payload).ok();
    Ok(status
        .filter(|status| status.operation_id == operation_id && status.status != Status::Pending))
}

/// The final status that a row of `write_operations` shows.
fn status(event: &Event) -> Option<OperationStatus> {
    match event.operation {
        Operation::Insert | Operation::Update => {}
        Operation::Delete | Operation::Truncate => return None,
    }
    let text = |name| {
        let column = event.columns.iter().find(|column| column.name == name)?;
        match &column.value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        }
    };
    let status = match text("status")? {
        "completed" => Status::Completed,
        "failed" => Status::Failed,
        _ => return None,
    };
    Some(OperationStatus {
        operation_id: text("operation_id")?.to_owned(),
        status,
        error: text("error").map(error),
        table: text("entity_table").map(str::to_owned),
        // A key that is no UUID stands in `entity_key` only; older processors wrote `entity_id` only.
        entity_id: text("entity_key")
            .or_else(|| text("entity_id"))
            .map(str::to_owned),
        lsn: (status == Status::Completed).then_some(event.commit_lsn),
        xid: (status == Status::Completed && event.xid != 0).then_some(event.xid),
        accepted_at: None,
        completed_at: text("completed_at").map(str::to_owned),
    })
}

/// The column holds an `OperationError` as JSON, or, from older processors, a plain message.
fn error(text: &str) -> OperationError {
    serde_json::from_str(text).unwrap_or_else(|_| OperationError {
        code: "failed".to_owned(),
        constraint: None,
        message: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use wire::{Column, Lsn};

    use super::*;

    fn event(status: &str, error: Value) -> Event {
        let json = r#"{"table":"write_operations","operation":"UPDATE","relation_id":1,
            "lsn":"0/1","columns":[],"commit_lsn":"0/2A","seq":1,"xid":745}"#;
        let mut event = Event::decode(json.as_bytes()).unwrap();
        event.columns = vec![
            Column::new("operation_id", Value::Text("op-1".to_owned())),
            Column::new("status", Value::Text(status.to_owned())),
            Column::new("error", error),
        ];
        event
    }

    #[test]
    fn a_final_row_is_an_outcome_and_a_pending_one_is_not() {
        let completed = status(&event("completed", Value::Null)).unwrap();
        assert_eq!(completed.operation_id, "op-1");
        assert_eq!((completed.lsn, completed.xid), (Some(Lsn(0x2A)), Some(745)));

        assert_eq!(status(&event("pending", Value::Null)), None);
    }

    #[test]
    fn an_outcome_names_its_row_whatever_the_key_s_type() {
        let named = |name: &str, key: &str| {
            let mut event = event("completed", Value::Null);
            event
                .columns
                .push(Column::new(name, Value::Text(key.to_owned())));
            status(&event).unwrap().entity_id
        };

        assert_eq!(named("entity_key", "42").as_deref(), Some("42"));
        assert_eq!(named("entity_id", "5f1c").as_deref(), Some("5f1c"));
    }

    #[test]
    fn errors_are_read_in_both_forms() {
        let json = r#"{"code":"23505","constraint":"users_email_key","message":"duplicate"}"#;
        let failed = |error: &str| {
            status(&event("failed", Value::Text(error.to_owned())))
                .unwrap()
                .error
                .unwrap()
        };

        assert_eq!(failed(json).constraint.as_deref(), Some("users_email_key"));
        assert_eq!(failed("out of range").message, "out of range");
    }

    #[test]
    fn a_waiter_that_leaves_is_forgotten() {
        let outcomes = Outcomes::default();
        let first = outcomes.register("op-1").unwrap();
        let second = outcomes.register("op-1").unwrap();

        drop(first);
        assert_eq!(outcomes.0.waiting().len(), 1);
        drop(second);
        assert!(outcomes.0.waiting().is_empty());
    }

    #[test]
    fn an_outcome_reaches_everybody_who_waits_for_it() {
        let outcomes = Outcomes::default();
        let (first, second) = (
            outcomes.register("op-1").unwrap(),
            outcomes.register("op-1").unwrap(),
        );
        let other = outcomes.register("op-2").unwrap();

        outcomes
            .0
            .found(&event("completed", Value::Null).to_msgpack());

        assert!(first.found.borrow().is_some() && second.found.borrow().is_some());
        assert!(other.found.borrow().is_none());
    }
}
