//! Stream `REQUESTS`: snapshot requests that nobody has served yet.
//!
//! In: nothing; requesters write it. Out: the requests in it.
//! Invariant: one message per subject, so N requests for a table are one. No PubAcks are sent: a
//! requester waits on its reply subject for the bridge's answer.

use std::time::Duration;

use async_nats::jetstream::context::CreateStreamError;
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use wire::names::{REQUEST_SUBJECTS, STREAM_REQUESTS};

/// More tables than any database publishes.
const REQUESTS_MAX: i64 = 10_000;
const AGE_MAX: Duration = Duration::from_hours(7 * 24);

pub struct Kept(stream::Stream);

/// Makes the stream when it is missing.
pub async fn open(
    jetstream: &jetstream::Context,
    replicas: usize,
) -> Result<Kept, CreateStreamError> {
    if let Ok(stream) = jetstream.get_stream(STREAM_REQUESTS).await {
        return Ok(Kept(stream));
    }
    let config = stream::Config {
        name: STREAM_REQUESTS.to_owned(),
        subjects: vec![REQUEST_SUBJECTS.to_owned()],
        description: Some("snapshot requests, kept until they are served".to_owned()),
        storage: stream::StorageType::File,
        discard: stream::DiscardPolicy::New,
        max_messages: REQUESTS_MAX,
        max_messages_per_subject: 1,
        discard_new_per_subject: true,
        max_age: AGE_MAX,
        num_replicas: replicas,
        allow_direct: true,
        no_ack: true,
        ..stream::Config::default()
    };
    jetstream.create_stream(config).await.map(Kept)
}

impl Kept {
    /// Subjects of the requests in it; none when NATS does not answer.
    pub async fn subjects(&self) -> Vec<String> {
        let Ok(subjects) = self.0.info_with_subjects(REQUEST_SUBJECTS).await else {
            return Vec::new();
        };
        let subjects: Vec<_> = subjects.try_collect().await.unwrap_or_default();
        // A literal `*` or `>` that a server let through would mean other requests below.
        subjects
            .into_iter()
            .map(|(subject, _)| subject)
            .filter(|subject| !is_wildcard(subject))
            .collect()
    }

    /// The request's options; None when it is gone.
    pub async fn payload(&self, subject: &str) -> Option<Bytes> {
        let message = self.0.get_last_raw_message_by_subject(subject).await.ok()?;
        Some(message.payload)
    }

    /// It is served.
    pub async fn remove(&self, subject: &str) {
        if is_wildcard(subject) {
            return;
        }
        if let Err(error) = self.0.purge().filter(subject).await {
            tracing::debug!(subject, %error, "cannot remove a served request");
        }
    }
}

fn is_wildcard(subject: &str) -> bool {
    subject.split('.').any(|token| token == "*" || token == ">")
}
