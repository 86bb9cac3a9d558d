//! A pull consumer, asked by hand.
//!
//! In: how many messages are wanted. Out: messages, and that no more will come of an ask.
//! Invariant: an ask ends with all that it wanted, with a status of the server, or with an error; it is never waited for
//! without an end.
//!
//! async-nats' own stream of messages has an ask with the server at all times, so that messages come one by one as they
//! are published, each with its own way through two processes.

use std::time::Duration;

use async_nats::jetstream::{Context, Message};
use async_nats::{Client, StatusCode, Subscriber};
use futures_util::StreamExt;
use tokio::time::Instant;

use crate::gather::{Ask, Next, Source};
use crate::queue::Error;

/// Asks one consumer.
pub struct Pull {
    context: Context,
    client: Client,
    /// Where it is asked.
    subject: String,
    inbox: String,
    answers: Subscriber,
    /// The last ask.
    number: u64,
    deadline: Instant,
}

/// Bytes of messages in one ask for what is there.
const BYTES_MAX: usize = 8 << 20;
/// How long an ask for what comes stays with the server.
const EXPIRES: Duration = Duration::from_secs(5);
/// How long the server may take to say that an ask ended.
const GRACE: Duration = Duration::from_secs(5);

impl Pull {
    /// Nothing is asked yet.
    pub async fn open(context: Context, stream: &str, consumer: &str) -> Result<Self, Error> {
        let client = context.client();
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await;
        let answers = answers.map_err(|error| Error::new("cannot subscribe".to_owned(), error))?;
        Ok(Self {
            context,
            client,
            subject: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            inbox,
            answers,
            number: 0,
            deadline: Instant::now(),
        })
    }

    fn reply(&self) -> String {
        format!("{}.{}", self.inbox, self.number)
    }
}

impl Source for Pull {
    type Message = Message;
    type Error = Error;

    async fn ask(&mut self, ask: Ask) -> Result<(), Error> {
        let (body, stays) = match ask {
            Ask::Present(count) => (
                format!(r#"{{"batch":{count},"max_bytes":{BYTES_MAX},"no_wait":true}}"#),
                Duration::ZERO,
            ),
            Ask::Coming(count) => (
                format!(r#"{{"batch":{count},"expires":{}}}"#, EXPIRES.as_nanos()),
                EXPIRES,
            ),
        };
        self.number += 1;
        let subject = self.subject.clone();
        let asked = self
            .client
            .publish_with_reply(subject, self.reply(), body.into())
            .await;
        asked.map_err(|error| Error::new("cannot fetch".to_owned(), error))?;
        self.deadline = Instant::now() + stays + GRACE;
        Ok(())
    }

    async fn next(&mut self) -> Result<Next<Message>, Error> {
        loop {
            let answer = tokio::time::timeout_at(self.deadline, self.answers.next()).await;
            let message = match answer {
                Ok(Some(message)) => message,
                Ok(None) => return Err(failed("the connection ended")),
                Err(_) => return Err(failed("no answer")),
            };
            let Some(status) = message.status.filter(|status| *status != StatusCode::OK) else {
                return Ok(Next::Message(Message {
                    message,
                    context: self.context.clone(),
                }));
            };
            // Of an ask that had all it wanted.
            if message.subject.as_str() != self.reply() {
                continue;
            }
            let description = message.description.unwrap_or_default();
            return match (status, description.as_str()) {
                (StatusCode::IDLE_HEARTBEAT, _) => continue,
                (StatusCode::NOT_FOUND | StatusCode::TIMEOUT, _)
                | (StatusCode::REQUEST_TERMINATED, "Batch Completed") => Ok(Next::End),
                (StatusCode::REQUEST_TERMINATED, "Message Size Exceeds MaxBytes") => Ok(Next::Full),
                (status, description) => Err(failed(&format!("{status} {description}"))),
            };
        }
    }
}

fn failed(reason: &str) -> Error {
    Error::new("cannot fetch".to_owned(), reason.to_owned())
}
