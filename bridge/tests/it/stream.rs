//! Reads a stream back, and checks what must hold for any stream of the bridge.
//!
//! In: a nats-server. Out: what stream `CDC` holds, decoded.
//! Must hold: it reads as any consumer does, and knows nothing of the bridge but the contract.

use std::sync::LazyLock;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use futures_util::StreamExt as _;
use stack::Nats;
use tokio::runtime::Runtime;
use wire::{Event, Lsn, Message as _, SubjectPattern};

const STREAM: &str = "CDC";

/// A message of the stream.
pub struct Stored {
    pub sequence: u64,
    pub subject: String,
    pub payload: Vec<u8>,
    pub event: Event,
}

/// Drives every NATS client of the tests.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made")
    });
    &RUNTIME
}

pub async fn jetstream(nats: &Nats) -> jetstream::Context {
    // async-nats does not send the user of a URL by itself.
    let options =
        async_nats::ConnectOptions::with_user_and_password("admin".into(), "admin".into());
    let client = options.connect(nats.addr().to_string()).await;
    jetstream::new(client.expect("NATS answers"))
}

/// The last event on a subject, if stream and event exist.
pub fn last_of(nats: &Nats, subject: &str) -> Option<Event> {
    runtime().block_on(async {
        let stream = jetstream(nats).await.get_stream(STREAM).await.ok()?;
        let message = stream.get_last_raw_message_by_subject(subject).await.ok()?;
        Some(Event::decode(&message.payload).expect("it is an event"))
    })
}

/// Sequence of the last message; 0 while there is no stream.
pub fn last_sequence(nats: &Nats) -> u64 {
    runtime().block_on(async {
        match jetstream(nats).await.get_stream(STREAM).await {
            Ok(stream) => stream.cached_info().state.last_sequence,
            Err(_) => 0,
        }
    })
}

/// Every event the stream holds now.
pub fn read(nats: &Nats) -> Vec<Stored> {
    let pattern = SubjectPattern::default();
    runtime().block_on(async {
        let stream = jetstream(nats)
            .await
            .get_stream(STREAM)
            .await
            .expect("the bridge has made it");
        let last_sequence = stream.cached_info().state.last_sequence;
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            ..pull::Config::default()
        };
        let consumer = stream
            .create_consumer(config)
            .await
            .expect("a consumer can be made");
        let mut messages = consumer.messages().await.expect("it delivers");
        let mut stored: Vec<Stored> = Vec::new();
        let mut sequence = stream.cached_info().state.first_sequence.saturating_sub(1);
        while sequence < last_sequence {
            let message = messages
                .next()
                .await
                .expect("there are more")
                .expect("it delivers");
            sequence = message.info().expect("it has a sequence").stream_sequence;
            if message.subject.as_str() == pattern.gap() {
                continue;
            }
            stored.push(Stored {
                sequence,
                subject: message.subject.to_string(),
                payload: message.payload.to_vec(),
                event: Event::decode(&message.payload).expect("it is an event"),
            });
        }
        stored
    })
}

/// What holds for every stream of one bridge, whatever happened to anybody: positions ascend
/// strictly, a transaction is whole and in one piece, its last event and no other says so, and
/// every message has the bytes and the subject of the contract.
#[track_caller]
pub fn checked(stored: Vec<Stored>) -> Vec<Stored> {
    let pattern = SubjectPattern::default();
    // Commit LSN, seq and xid of the transaction that is not over yet.
    let mut open: Option<(Lsn, u32, u64)> = None;
    let mut previous = wire::Position::START;
    for Stored {
        sequence,
        subject,
        payload,
        event,
    } in &stored
    {
        let position = event.position().expect("every event has a position");
        assert!(
            previous < position,
            "{position} follows {previous} at {sequence}"
        );
        match open {
            None => assert_eq!(event.seq, 1, "{position} is the first of its transaction"),
            Some((commit_lsn, seq, xid)) => assert_eq!(
                (event.commit_lsn, event.seq, event.xid),
                (commit_lsn, seq + 1, xid),
                "the transaction goes on at {sequence}"
            ),
        }
        let subjects = pattern.subjects(&event.schema, &event.table);
        assert_eq!(subject, subjects.of(event.operation), "at {sequence}");
        assert_eq!(*payload, event.to_msgpack(), "at {sequence}");
        open = (!event.last).then_some((event.commit_lsn, event.seq, event.xid));
        previous = position;
    }
    assert_eq!(open, None, "the last transaction is whole");
    stored
}

/// How many messages the stream holds now.
pub fn count(nats: &Nats) -> u64 {
    runtime().block_on(async {
        let stream = jetstream(nats).await.get_stream(STREAM).await;
        stream
            .expect("there is a stream")
            .cached_info()
            .state
            .messages
    })
}
