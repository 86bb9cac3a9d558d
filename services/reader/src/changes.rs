//! Live changes as server-sent events.
//!
//! In: the change stream, from where the client left it. Out: events of the tables it may read.
//! Invariant: a client that reconnects with the last id it saw misses nothing, or is told `reset` first;
//! it never sees a column that it could not read in the table.

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use futures_util::{Stream, StreamExt};
use wire::{Event, Message};

use crate::query::is_readable;
use crate::schemas::{Schemas, Table};

/// Which changes, and from where.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Keys in bucket `schemas`.
    pub tables: Vec<String>,
    /// One subject that covers them.
    pub filter: String,
    /// Stream sequence the client saw last.
    pub last_id: Option<u64>,
}

/// One thing to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Stream sequence.
    pub id: u64,
    /// `insert`, `update`, `delete`, `truncate`, `ready` or `reset`.
    pub name: &'static str,
    /// JSON.
    pub data: String,
}

/// Begins a subscription. The first event is `ready`, or `reset` when changes behind `last_id` are gone:
/// then read the tables again. The stream ends when NATS fails; the client comes back by itself.
pub async fn open(
    jetstream: &Context,
    stream_name: &str,
    schemas: Schemas,
    subscription: Subscription,
) -> Result<impl Stream<Item = Change> + use<>, async_nats::Error> {
    let stream = jetstream.get_stream(stream_name).await?;
    let state = &stream.cached_info().state;
    let (first, begin) = begin(
        subscription.last_id,
        state.first_sequence,
        state.last_sequence,
    );
    let deliver_policy = DeliverPolicy::ByStartSequence {
        start_sequence: begin,
    };
    let config = pull::OrderedConfig {
        filter_subject: subscription.filter,
        deliver_policy,
        ..pull::OrderedConfig::default()
    };
    let messages = stream.create_consumer(config).await?.messages().await?;
    let tables = subscription.tables;
    let messages = messages.take_while(|message| std::future::ready(message.is_ok()));
    let changes = messages.filter_map(move |message| {
        let change = message
            .as_ref()
            .ok()
            .and_then(|message| Some((message, message.info().ok()?)))
            .and_then(|(message, info)| {
                change(&message.payload, info.stream_sequence, &tables, &schemas)
            });
        std::future::ready(change)
    });
    Ok(futures_util::stream::iter([first]).chain(changes))
}

/// What to say first, and the sequence to begin with.
fn begin(last_id: Option<u64>, first_sequence: u64, last_sequence: u64) -> (Change, u64) {
    let greeting = |name, id| Change {
        id,
        name,
        data: "{}".to_owned(),
    };
    match last_id {
        None => (greeting("ready", last_sequence), last_sequence + 1),
        // Behind it some are gone, or it is from a stream that is no more.
        Some(id) if id + 1 < first_sequence || last_sequence < id => {
            (greeting("reset", last_sequence), last_sequence + 1)
        }
        Some(id) => (greeting("ready", id), id + 1),
    }
}

/// The event as this client may see it.
fn change(payload: &[u8], id: u64, tables: &[String], schemas: &Schemas) -> Option<Change> {
    let mut event = Event::decode(payload).ok()?;
    let key = wire::names::schema_key(&event.schema, &event.table);
    if !tables.contains(&key) {
        return None;
    }
    let table = schemas.value(&key)?;
    if !is_open(&table) {
        return None;
    }
    let may_see = |name: &str| {
        let mut columns = table.schema.columns.iter();
        columns.any(|column| column.name == name && is_readable(&table.schema, column))
    };
    event.columns.retain(|column| may_see(&column.name));
    event.old.retain(|column| may_see(&column.name));
    event.unchanged.retain(|name| may_see(name));
    Some(Change {
        id,
        name: event.operation.token(),
        data: event.to_json(),
    })
}

/// Changes of a table can be shown: it may be read, and who asks does not decide which rows.
pub fn is_open(table: &Table) -> bool {
    !table.schema.row_security && !crate::query::readable(&table.schema).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_goes_on_behind_what_it_saw() {
        assert_eq!(begin(Some(7), 1, 9).1, 8);
        assert_eq!(begin(Some(7), 8, 9).0.name, "ready");
    }

    #[test]
    fn a_client_that_missed_something_is_told() {
        assert_eq!(begin(Some(7), 9, 12).0.name, "reset");
        assert_eq!(begin(Some(7), 1, 3).0.name, "reset");
    }

    #[test]
    fn a_new_client_begins_with_what_comes() {
        let (first, begin) = begin(None, 1, 9);

        assert_eq!((first.name, first.id, begin), ("ready", 9, 10));
    }
}
