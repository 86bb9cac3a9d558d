//! Reads where the stream ends: the place to go on from, after a start or any failure.
//!
//! In: a connection. Out: the stream's last sequence and the position of the last event in it.
//! Invariant: both come from the stream's leader, so nothing that was acked is missing from them; and
//! the event is at or before that sequence, with none of ours between.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::RetentionPolicy;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use wire::gap::Gap;
use wire::{Message as _, Position};

use super::chain::ApiError;
use super::connection::{self, Connection};
use super::mode::Settings;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Connection(#[from] connection::Error),
    #[error("stream {stream} is missing; restart the bridge to create it, or check --stream")]
    NoStream { stream: String },
    #[error(
        "JetStream refused to show stream {stream}; the NATS user needs $JS.API.STREAM.INFO and MSG.GET"
    )]
    Api {
        stream: String,
        #[source]
        source: ApiError,
    },
    #[error("JetStream's answer about stream {stream} is not understood: {answer}")]
    Answer { stream: String, answer: String },
    #[error(
        "message {sequence} of stream {stream} on {subject} was not written by a bridge; \
         keep other writers off these subjects, or give the bridge others with --subject-prefix"
    )]
    Foreign {
        stream: String,
        subject: String,
        sequence: u64,
    },
    #[error(
        "stream {stream} has no leader now: too few of its servers are up, or they are electing one"
    )]
    NoLeader { stream: String },
    #[error("stream {stream} grows while its tail is read: somebody else writes to it")]
    Moving { stream: String },
}

/// The end of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tail {
    /// Of the stream as a whole; 0 when nothing was ever stored.
    pub last_sequence: u64,
    /// Of the last event under the filters; `START` when there is none.
    pub position: Position,
    /// Each filter with the sequence of the last message under it, as far as there is one.
    pub own: Vec<(String, u64)>,
    /// The stream holds no message, whoever wrote it.
    pub is_empty: bool,
    /// Several servers hold the stream.
    pub is_replicated: bool,
    /// Messages go when they are consumed: interest or work queue retention.
    pub is_consumed: bool,
    /// When the stream was made: tells a recreated one from the one known.
    pub created: String,
    /// How long the stream keeps a message; None: as long as there is room.
    pub max_age: Option<Duration>,
    /// The stream's limit for one message, header included.
    pub max_msg_size: Option<usize>,
    pub settings: Settings,
}

impl Tail {
    /// The stream's last message is under none of the filters.
    pub fn ends_with_foreign(&self) -> bool {
        !self.is_empty
            && self
                .own
                .iter()
                .all(|(_, sequence)| *sequence < self.last_sequence)
    }
}

const ERR_STREAM_NOT_FOUND: u16 = 10_059;
const ERR_NO_MESSAGE_FOUND: u16 = 10_037;
/// "JetStream system temporarily unavailable".
const ERR_CLUSTER_NOT_AVAILABLE: u16 = 10_008;

#[derive(Deserialize)]
struct InfoAnswer {
    error: Option<ApiError>,
    created: Option<String>,
    config: Option<Config>,
    state: Option<State>,
    cluster: Option<Cluster>,
}

#[derive(Deserialize)]
struct Cluster {
    #[serde(default)]
    leader: String,
    #[serde(default)]
    replicas: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    retention: RetentionPolicy,
    #[serde(default)]
    max_msg_size: i64,
    /// In nanoseconds; 0 for no limit.
    #[serde(default)]
    max_age: u64,
    /// In nanoseconds.
    #[serde(default)]
    duplicate_window: u64,
    #[serde(default)]
    allow_atomic: bool,
    #[serde(default)]
    allow_batched: bool,
}

#[derive(Deserialize)]
struct State {
    messages: u64,
    last_seq: u64,
}

#[derive(Deserialize)]
struct GetAnswer {
    error: Option<ApiError>,
    message: Option<Stored>,
}

#[derive(Deserialize)]
struct Stored {
    subject: String,
    seq: u64,
    #[serde(default)]
    data: String,
}

/// How often the tail may have moved between two answers before it is left to a later attempt.
const MOVES_MAX: u32 = 16;

/// Asks for both until they belong together. `filters` take in the bridge's own subjects.
pub async fn read(
    connection: &mut Connection,
    stream: &str,
    filters: &[String],
) -> Result<Tail, Error> {
    for _ in 0..MOVES_MAX {
        let mut tail = info(connection, stream).await?;
        for filter in filters {
            if let Some((sequence, position)) = last_event(connection, stream, filter).await? {
                tail.position = tail.position.max(position);
                tail.own.push((filter.clone(), sequence));
            }
        }
        // What a connection given up on still had in the server's queue is stored meanwhile. A
        // position ahead of the sequence would be as bad as one behind it: of the chain that starts
        // there the server refuses the first messages and takes one in the middle.
        let has_moved = match filters {
            [_] => tail
                .own
                .iter()
                .any(|(_, sequence)| *sequence > tail.last_sequence),
            // A message may have come under a filter that was asked before.
            _ => info(connection, stream).await?.last_sequence != tail.last_sequence,
        };
        if !has_moved || tail.ends_with_foreign() {
            return Ok(tail);
        }
    }
    Err(Error::Moving {
        stream: stream.to_owned(),
    })
}

/// The stream itself; its position is still to be found.
async fn info(connection: &mut Connection, stream: &str) -> Result<Tail, Error> {
    let answer = connection
        .request(&format!("$JS.API.STREAM.INFO.{stream}"), "")
        .await?;
    described(stream, &answer)
}

fn described(stream: &str, answer: &[u8]) -> Result<Tail, Error> {
    match parse(stream, answer)? {
        InfoAnswer {
            error: Some(error), ..
        } => Err(refused(stream, error)),
        // While there is none any server of the stream answers, however much it has missed.
        InfoAnswer {
            cluster: Some(Cluster { leader, .. }),
            ..
        } if leader.is_empty() => Err(Error::NoLeader {
            stream: stream.to_owned(),
        }),
        InfoAnswer {
            created: Some(created),
            config: Some(config),
            state: Some(state),
            cluster,
            ..
        } => Ok(Tail {
            last_sequence: state.last_seq,
            position: Position::START,
            own: Vec::new(),
            is_empty: state.messages == 0,
            is_replicated: cluster.is_some_and(|cluster| !cluster.replicas.is_empty()),
            is_consumed: config.retention != RetentionPolicy::Limits,
            created,
            max_age: Some(Duration::from_nanos(config.max_age)).filter(|age| !age.is_zero()),
            max_msg_size: usize::try_from(config.max_msg_size)
                .ok()
                .filter(|&size| size > 0),
            settings: Settings {
                allows_atomic: config.allow_atomic,
                allows_fast: config.allow_batched,
                duplicate_window: Duration::from_nanos(config.duplicate_window),
            },
        }),
        InfoAnswer { .. } => Err(not_understood(stream, answer)),
    }
}

/// Sequences of the messages on `subject` in `(after, through]`, at most `FOREIGN_MAX` of them.
pub async fn sequences(
    connection: &mut Connection,
    stream: &str,
    subject: &str,
    after: u64,
    through: u64,
) -> Result<Vec<u64>, Error> {
    let mut found: Vec<u64> = Vec::new();
    while found.len() < FOREIGN_MAX {
        let from = found.last().copied().unwrap_or(after) + 1;
        let query = serde_json::json!({ "seq": from, "next_by_subj": subject }).to_string();
        match get(connection, stream, &query).await? {
            Some(message) if message.seq <= through => found.push(message.seq),
            Some(_) | None => break,
        }
    }
    Ok(found)
}

const FOREIGN_MAX: usize = 1000;

/// When the server made the stream, exactly as `read` gives it; None if that cannot be told now.
pub async fn created(context: &jetstream::Context, stream: &str) -> Option<String> {
    let answer: serde_json::Value = context
        .request(format!("STREAM.INFO.{stream}"), &())
        .await
        .ok()?;
    Some(answer.get("created")?.as_str()?.to_owned())
}

/// Sequence and position of the last event under the filter.
async fn last_event(
    connection: &mut Connection,
    stream: &str,
    filter: &str,
) -> Result<Option<(u64, Position)>, Error> {
    let query = serde_json::json!({ "last_by_subj": filter }).to_string();
    let Some(message) = get(connection, stream, &query).await? else {
        return Ok(None);
    };
    let foreign = || Error::Foreign {
        stream: stream.to_owned(),
        subject: message.subject.clone(),
        sequence: message.seq,
    };
    let payload = STANDARD.decode(&message.data).map_err(|_| foreign())?;
    if let Ok(tail) = wire::event::Tail::decode(&payload) {
        return Ok(Some((message.seq, tail.position())));
    }
    // Behind a gap nothing was published yet.
    let gap = Gap::decode(&payload).map_err(|_| foreign())?;
    Ok(Some((message.seq, Position::new(gap.to, 0))))
}

/// The last message on the gap subject.
pub async fn last_gap(
    connection: &mut Connection,
    stream: &str,
    subject: &str,
) -> Result<Option<Gap>, Error> {
    let query = serde_json::json!({ "last_by_subj": subject }).to_string();
    let message = get(connection, stream, &query).await?;
    let payload = message.and_then(|message| STANDARD.decode(&message.data).ok());
    Ok(payload.and_then(|payload| Gap::decode(&payload).ok()))
}

async fn get(
    connection: &mut Connection,
    stream: &str,
    query: &str,
) -> Result<Option<Stored>, Error> {
    let answer = connection
        .request(&format!("$JS.API.STREAM.MSG.GET.{stream}"), query)
        .await?;
    match parse(stream, &answer)? {
        GetAnswer {
            error: Some(error), ..
        } if error.err_code == ERR_NO_MESSAGE_FOUND => Ok(None),
        GetAnswer {
            error: Some(error), ..
        } => Err(refused(stream, error)),
        GetAnswer {
            message: Some(message),
            ..
        } => Ok(Some(message)),
        GetAnswer { .. } => Err(not_understood(stream, &answer)),
    }
}

fn parse<'a, T: Deserialize<'a>>(stream: &str, answer: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(answer).map_err(|_| not_understood(stream, answer))
}

fn not_understood(stream: &str, answer: &[u8]) -> Error {
    let shown = &answer[..answer.len().min(200)];
    Error::Answer {
        stream: stream.to_owned(),
        answer: String::from_utf8_lossy(shown).into_owned(),
    }
}

fn refused(stream: &str, source: ApiError) -> Error {
    let stream = stream.to_owned();
    match source.err_code {
        ERR_STREAM_NOT_FOUND => Error::NoStream { stream },
        ERR_CLUSTER_NOT_AVAILABLE => Error::NoLeader { stream },
        _ => Error::Api { stream, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described_by(cluster: &str) -> Result<Tail, Error> {
        let answer = format!(
            r#"{{"created": "2026-01-01T00:00:00Z", "config": {{}}, "state": {{"messages": 7, "last_seq": 9}}{cluster}}}"#
        );
        described("CDC", answer.as_bytes())
    }

    #[test]
    fn a_lone_server_and_a_leader_are_believed() {
        let alone = described_by("").unwrap();
        let led = described_by(r#", "cluster": {"leader": "n1", "replicas": [{"name": "n2"}]}"#);

        assert_eq!((alone.last_sequence, alone.is_replicated), (9, false));
        assert!(led.unwrap().is_replicated);
    }

    #[test]
    fn a_server_of_a_stream_without_leader_is_not() {
        for leaderless in [
            r#", "error": {"err_code": 10008}"#,
            r#", "cluster": {"name": "c"}"#,
            r#", "cluster": {"leader": ""}"#,
        ] {
            let refused = described_by(leaderless);

            assert!(
                matches!(refused, Err(Error::NoLeader { .. })),
                "{refused:?}"
            );
        }
    }
}
