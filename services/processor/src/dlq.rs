//! `processor dlq`: what could not be applied, looked at, tried again or given up.
//!
//! In: stream `WRITES_DLQ`. Out: lines of JSON, or messages back in `WRITES`.
//! Invariant: a letter is deleted only after its command is stored in the queue again, or when the
//! operator says drop.

use std::io::Write;

use anyhow::{Context as _, bail};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, Context};
use futures_util::StreamExt;
use serde_json::json;
use uuid::Uuid;
use wire::Message as _;
use wire::command::WriteCommand;

use crate::config::{Connections, DlqAction, Selection};
use crate::queue::{self, HEADER_REASON, HEADER_SUBJECT};
use crate::session::Session;
use daemon::nats::FirstConnect;

const FORGET: &str = "SELECT public.forget_failed_operation($1::text::uuid)";

/// Does it and prints what was done.
pub async fn run(
    action: &DlqAction,
    connections: &Connections,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let client = connections
        .nats
        .options()?
        .connect("processor dlq", FirstConnect::MustSucceed)
        .await?;
    let jetstream = jetstream::new(client);
    let stream = queue::dead_letters(&jetstream).await?;
    let letters = letters(&stream).await?;
    match action {
        DlqAction::List => {
            for letter in &letters {
                writeln!(out, "{}", line(letter))?;
            }
        }
        DlqAction::Replay(selection) => {
            let postgres = connections.postgres.options()?;
            let session = Session::open(&postgres, "processor dlq").await?;
            for letter in chosen(&letters, selection)? {
                replay(letter, &session, &jetstream)
                    .await
                    .with_context(|| format!("replay of {}", letter.subject))?;
                stream.delete_message(letter.sequence).await?;
                writeln!(out, "replayed {}", operation_id(letter))?;
            }
        }
        DlqAction::Drop(selection) => {
            for letter in chosen(&letters, selection)? {
                stream.delete_message(letter.sequence).await?;
                writeln!(out, "dropped {}", operation_id(letter))?;
            }
        }
    }
    Ok(())
}

/// Every letter, oldest first.
async fn letters(stream: &Stream) -> anyhow::Result<Vec<StreamMessage>> {
    let count = stream.get_info().await?.state.messages;
    let consumer = stream
        .create_consumer(pull::Config {
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::None,
            ..pull::Config::default()
        })
        .await?;
    let mut letters = Vec::new();
    while (letters.len() as u64) < count {
        let mut batch = consumer.fetch().max_messages(500).messages().await?;
        let before = letters.len();
        while let Some(message) = batch.next().await {
            let message = message.map_err(|error| anyhow::anyhow!(error))?;
            let info = message.info().map_err(|error| anyhow::anyhow!(error))?;
            letters.push(StreamMessage {
                sequence: info.stream_sequence,
                time: info.published,
                subject: message.subject.clone(),
                headers: message.headers.clone().unwrap_or_default(),
                payload: message.payload.clone(),
            });
        }
        if letters.len() == before {
            break; // Somebody else deleted some meanwhile.
        }
    }
    Ok(letters)
}

fn chosen<'a>(
    letters: &'a [StreamMessage],
    selection: &Selection,
) -> anyhow::Result<Vec<&'a StreamMessage>> {
    if selection.all {
        return Ok(letters.iter().collect());
    }
    let mut chosen = Vec::new();
    for id in &selection.operation_ids {
        match letters.iter().find(|letter| operation_id(letter) == *id) {
            Some(letter) => chosen.push(letter),
            None => bail!("no dead letter has operation id {id}; see processor dlq list"),
        }
    }
    Ok(chosen)
}

async fn replay(
    letter: &StreamMessage,
    session: &Session,
    jetstream: &Context,
) -> anyhow::Result<()> {
    let subject = letter
        .headers
        .get(HEADER_SUBJECT)
        .context("the letter does not say where it came from")?;
    if WriteCommand::decode(&letter.payload).is_err() {
        bail!("it is not a write command and would only come back; drop it");
    }
    let id = Uuid::parse_str(&operation_id(letter)).context("the operation id is not a UUID")?;
    let forgotten: bool = session
        .client()
        .query_one(FORGET, &[&id.to_string()])
        .await?
        .get(0);
    if !forgotten {
        bail!("the operation was completed; drop the letter");
    }
    let mut message = PublishMessage::build().payload(letter.payload.clone());
    if let Some(traceparent) = letter.headers.get(wire::names::HEADER_TRACEPARENT) {
        message = message.header(wire::names::HEADER_TRACEPARENT, traceparent.as_str());
    }
    jetstream
        .send_publish(subject.as_str().to_owned(), message)
        .await?
        .await?;
    Ok(())
}

fn operation_id(letter: &StreamMessage) -> String {
    let original = letter
        .headers
        .get(HEADER_SUBJECT)
        .map_or("", async_nats::HeaderValue::as_str);
    wire::names::parse_writes(original).map_or_else(|| original.to_owned(), |(_, _, id)| id)
}

fn line(letter: &StreamMessage) -> serde_json::Value {
    let header = |name| {
        letter
            .headers
            .get(name)
            .map(async_nats::HeaderValue::as_str)
    };
    json!({
        "operation_id": operation_id(letter),
        "subject": header(HEADER_SUBJECT),
        "reason": header(HEADER_REASON),
        "buried_at": letter.time.to_string(),
        "bytes": letter.payload.len(),
    })
}
