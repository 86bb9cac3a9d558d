//! Asks the bridge for a snapshot.
//!
//! In: a table. Out: the start of its snapshot, once the bridge has begun it.
//! Invariant: asking is repeated and harmless; a snapshot that began before is not taken for the answer
//! unless the bridge names it.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use wire::Message as _;
use wire::names;
use wire::snapshot::{self, ErrorCode, Start};
use wire::snapshot_request::{Options, Reply, Values};

use crate::seed::{Abandoned, Error, LOOK_INTERVAL, is_typed};
use crate::source::{self, Source, Stored};
use crate::table::TableName;

/// A request that is not answered is repeated: the bridge may have been away, and equal requests share
/// one snapshot.
const REQUEST_INTERVAL: Duration = Duration::from_secs(30);

/// Asks for a snapshot and waits until it has begun.
pub async fn request(
    source: &Source,
    name: &TableName,
) -> Result<Result<(Start, u64), Abandoned>, Error> {
    let (schema, table) = (&name.schema, &name.table);
    let start_subject = names::init_start(schema, table);
    let error_subject = names::init_error(schema, table);
    let sequence = |message: Option<Stored>| message.map_or(0, |message| message.sequence);
    let start_before = sequence(source.last_init(&start_subject).await?);
    let error_before = sequence(source.last_init(&error_subject).await?);

    let inbox = source.client().new_inbox();
    let mut replies = source.subscribe(inbox.clone()).await?;
    let mut snapshot_id: Option<String> = None;
    let mut asked_at: Option<Instant> = None;
    loop {
        if asked_at.is_none_or(|asked_at| REQUEST_INTERVAL <= asked_at.elapsed()) {
            asked_at = Some(Instant::now());
            ask(source, name, &inbox).await?;
        }
        if let Ok(Some(reply)) = tokio::time::timeout(LOOK_INTERVAL, replies.next()).await {
            // The stream that keeps requests answers too, with a PubAck, which is no reply of the
            // bridge's; so does the server when nobody listens.
            match Reply::decode(&reply.payload) {
                Ok(Reply::Accepted { snapshot_id: id }) => {
                    tracing::info!(table = %name, snapshot_id = id, "snapshot promised");
                    snapshot_id = Some(id);
                }
                Ok(Reply::Refused(error)) => return refused(name, &error).map(Err),
                Err(_) => {}
            }
        }
        let is_ours = |id: &str| snapshot_id.as_deref().is_none_or(|ours| ours == id);
        if let Some((start, at)) = source.last::<Start>(&start_subject).await? {
            // A shared snapshot may have begun before we asked; then only its id tells.
            let is_new = start_before < at.sequence || snapshot_id.is_some();
            if is_new && is_ours(&start.snapshot_id) {
                return Ok(Ok((start, at.sequence)));
            }
        }
        if let Some((error, at)) = source.last::<snapshot::Error>(&error_subject).await?
            && error_before < at.sequence
            && match &error.snapshot_id {
                Some(id) => is_ours(id),
                // Somebody's, whose request was refused: not ours when we have a promise, or when it was unreadable.
                None => snapshot_id.is_none() && error.code != ErrorCode::BadRequest,
            }
        {
            return refused(name, &error).map(Err);
        }
    }
}

async fn ask(source: &Source, name: &TableName, inbox: &str) -> Result<(), Error> {
    let history = source.history(name).await?;
    let newest = history.iter().max_by_key(|schema| schema.version);
    if newest.is_none() {
        tracing::warn!(table = %name, "the bridge has published no schema for this table yet; is it in the publication?");
    }
    let needs_typed_rows = newest.is_some_and(is_typed);
    let options = Options {
        values: if needs_typed_rows {
            Values::Typed
        } else {
            Values::Text
        },
        ..Options::default()
    };
    let payload = if options == Options::default() {
        Vec::new()
    } else {
        options.to_msgpack()
    };
    let subject = names::snapshot_request(&name.schema, &name.table);
    tracing::info!(table = %name, subject, "asks for a snapshot");
    let client = source.client();
    let sent = client
        .publish_with_reply(subject.clone(), inbox.to_owned(), payload.into())
        .await;
    sent.map_err(|error| source::Error::Read {
        what: format!("a reply on {subject}"),
        source: error.into(),
    })?;
    Ok(())
}

/// What will not change by asking again ends the mirror; the rest is tried again.
pub fn refused(name: &TableName, error: &snapshot::Error) -> Result<Abandoned, Error> {
    match error.code {
        ErrorCode::BadRequest
        | ErrorCode::UnknownTable
        | ErrorCode::NotPublished
        | ErrorCode::RowSecurity
        | ErrorCode::Denied
        | ErrorCode::TooLarge => Err(Error::Refused {
            table: name.clone(),
            code: error.code,
            message: error.error.clone(),
            hint: error.hint.clone(),
        }),
        ErrorCode::QueueFull
        | ErrorCode::LockTimeout
        | ErrorCode::TableChanged
        | ErrorCode::Cancelled
        | ErrorCode::Unavailable
        | ErrorCode::Unknown => Ok(Abandoned::Failed(error.error.clone())),
    }
}
