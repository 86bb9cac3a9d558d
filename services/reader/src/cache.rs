//! Answers kept in Redis, thrown away by table.
//!
//! In: answers with the generation they were read under. Out: answers of the present generation.
//! Invariant: an answer that was read before an invalidation is never found after it.
//!
//! How: the key of an answer contains the table's generation, which is looked up with it in one step and
//! only ever grows; an invalidation is one INCR. What was read under an older generation is stored under
//! that one's key, where nobody looks any more. All keys contain the server's run id as well: a Redis that
//! restarts from disk may come back with generations from before.

use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use daemon::backoff::{self, Backoff};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, Script};
use wire::Lsn;

use crate::metrics::Metrics;

/// The cache; clones are the same. Without Redis it is always [`Lookup::Off`].
#[derive(Clone)]
pub struct Cache(Option<Arc<Shared>>);

struct Shared {
    client: Client,
    link: RwLock<Option<Link>>,
    lost: tokio::sync::Notify,
    lookup: Script,
    invalidate: Script,
    ttl: Duration,
    response_timeout: Duration,
    metrics: Arc<Metrics>,
}

/// A connection to one run of one server.
#[derive(Clone)]
struct Link {
    connection: MultiplexedConnection,
    run_id: Arc<str>,
}

/// An answer as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Everything visible up to here is in it.
    pub lsn: Lsn,
    /// Token of the next page, where there is one.
    pub next: Option<String>,
    /// JSON.
    pub body: Bytes,
}

/// What the cache knows.
pub enum Lookup {
    /// The answer.
    Hit(Answer),
    /// Nothing; store it under this generation.
    Miss(Generation),
    /// Redis is absent or away.
    Off,
}

/// The state of a table's cache at one moment. Take it before reading.
pub struct Generation {
    link: Link,
    key: String,
}

/// How far the changes were heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Sequence in the stream.
    pub stream: u64,
    /// Deliveries of the consumer until then.
    pub consumer: u64,
}

impl Heard {
    /// Between this and `next` the stream moved on by more messages than were delivered: some were gone
    /// before anybody heard of them. (Repeated deliveries can only hide this; who sees one must assume it.)
    pub fn is_gap(self, next: Self) -> bool {
        let moved = next.stream.saturating_sub(self.stream);
        next.consumer.saturating_sub(self.consumer) < moved
    }
}

/// Redis did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection at the moment.
    #[error("Redis is away")]
    Away,
    /// It answered with an error or not at all.
    #[error("Redis failed")]
    Failed(#[source] RedisError),
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Larger answers are not worth their place.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// KEYS: everything's generation, the table's. ARGV: a number above every one used before, the query.
/// A generation that is missing (evicted, or the first) begins there: no number is used twice.
const LOOKUP: &str = "
    local now = ARGV[1]
    local all = redis.call('GET', KEYS[1])
    if not all then redis.call('SET', KEYS[1], now); all = now end
    local own = redis.call('GET', KEYS[2])
    if not own then redis.call('SET', KEYS[2], now); own = now end
    local key = KEYS[2] .. ':' .. all .. ':' .. own .. ':' .. ARGV[2]
    return {key, redis.call('GET', key)}";
/// KEYS: generations. ARGV: as above.
const INVALIDATE: &str = "
    for _, key in ipairs(KEYS) do
        if redis.call('EXISTS', key) == 1 then
            redis.call('INCR', key)
        else
            redis.call('SET', key, ARGV[1])
        end
    end
    return 1";

impl Cache {
    /// A cache that is not connected yet; without a client it is no cache at all. A Redis that takes
    /// longer than `response_timeout` is treated as away.
    pub fn new(
        client: Option<Client>,
        ttl: Duration,
        response_timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(client.map(|client| {
            Arc::new(Shared {
                client,
                link: RwLock::default(),
                lost: tokio::sync::Notify::new(),
                lookup: Script::new(LOOKUP),
                invalidate: Script::new(INVALIDATE),
                ttl,
                response_timeout,
                metrics,
            })
        }))
    }

    /// There is a Redis, though perhaps away.
    pub fn is_configured(&self) -> bool {
        self.0.is_some()
    }

    /// Redis answered lately.
    pub fn is_up(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|shared| shared.link().is_some())
    }

    /// Connects again whenever the connection is lost, for ever.
    pub async fn keep_connected(&self) {
        let Some(shared) = &self.0 else {
            return std::future::pending().await;
        };
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            match shared.connect().await {
                Ok(link) => {
                    tracing::info!(run_id = &*link.run_id, "connected to Redis");
                    backoff.reset();
                    *shared.link_mut() = Some(link);
                    shared.metrics.redis_up.set(1);
                    shared.lost.notified().await;
                }
                Err(error) => {
                    tracing::warn!(%error, "Redis is away; reading from PostgreSQL");
                }
            }
            tokio::time::sleep(backoff.next(backoff::random())).await;
        }
    }

    /// Looks for the answer to `query` on a table. `table` is any text that names it and its shape.
    pub async fn lookup(&self, table: &str, query: &str) -> Lookup {
        let Some((shared, link)) = self.link() else {
            return Lookup::Off;
        };
        let mut connection = link.connection.clone();
        let found: Result<(String, Option<Bytes>), _> = shared
            .lookup
            .key(link.everything())
            .key(link.table(table))
            .arg(above_all())
            .arg(query)
            .invoke_async(&mut connection)
            .await;
        match found {
            Ok((key, answer)) => match answer.and_then(|bytes| Answer::decode(&bytes)) {
                Some(answer) => Lookup::Hit(answer),
                None => Lookup::Miss(Generation { link, key }),
            },
            Err(error) => {
                shared.lose(&link, &error);
                Lookup::Off
            }
        }
    }

    /// Keeps an answer that was read after `generation` was taken.
    pub async fn store(&self, generation: Generation, answer: &Answer) {
        let Some(shared) = &self.0 else { return };
        if ANSWER_BYTES_MAX < answer.body.len() {
            return;
        }
        let Generation { link, key } = generation;
        let mut connection = link.connection.clone();
        let stored: Result<(), _> = redis::cmd("SET")
            .arg(key)
            .arg(answer.encode())
            .arg("PX")
            .arg(shared.ttl.as_millis() as u64)
            .query_async(&mut connection)
            .await;
        if let Err(error) = stored {
            shared.lose(&link, &error);
        }
    }

    /// Makes every answer about these tables unfindable.
    pub async fn invalidate(&self, tables: &[String]) -> Result<(), Error> {
        self.raise(|link| tables.iter().map(|table| link.table(table)).collect())
            .await
    }

    /// Makes every answer unfindable.
    pub async fn invalidate_everything(&self) -> Result<(), Error> {
        self.raise(|link| vec![link.everything()]).await
    }

    /// How far the changes were heard of, as [`Cache::set_heard`] left it on this run of the server. None:
    /// never, so nothing here is old.
    pub async fn heard(&self, consumer: &str) -> Result<Option<Heard>, Error> {
        let (shared, link) = self.link().ok_or(Error::Away)?;
        let mut connection = link.connection.clone();
        let pair: Result<(Option<u64>, Option<u64>), _> = redis::cmd("HMGET")
            .arg(link.heard(consumer))
            .arg(&["stream", "consumer"])
            .query_async(&mut connection)
            .await;
        match pair {
            Ok((Some(stream), Some(consumer))) => Ok(Some(Heard { stream, consumer })),
            Ok(_) => Ok(None),
            Err(error) => {
                shared.lose(&link, &error);
                Err(Error::Failed(error))
            }
        }
    }

    /// Writes down how far the changes were heard of.
    pub async fn set_heard(&self, consumer: &str, heard: Heard) -> Result<(), Error> {
        let (shared, link) = self.link().ok_or(Error::Away)?;
        let mut connection = link.connection.clone();
        let set: Result<(), _> = redis::cmd("HSET")
            .arg(link.heard(consumer))
            .arg(&[("stream", heard.stream), ("consumer", heard.consumer)])
            .query_async(&mut connection)
            .await;
        set.map_err(|error| {
            shared.lose(&link, &error);
            Error::Failed(error)
        })
    }

    async fn raise(&self, keys: impl FnOnce(&Link) -> Vec<String>) -> Result<(), Error> {
        let (shared, link) = self.link().ok_or(Error::Away)?;
        let mut connection = link.connection.clone();
        let mut invocation = shared.invalidate.arg(above_all());
        for key in keys(&link) {
            invocation.key(key);
        }
        let raised: Result<(), _> = invocation.invoke_async(&mut connection).await;
        raised.map_err(|error| {
            shared.lose(&link, &error);
            Error::Failed(error)
        })
    }

    fn link(&self) -> Option<(&Shared, Link)> {
        let shared = self.0.as_deref()?;
        let link = shared.link().clone()?;
        Some((shared, link))
    }
}

impl Shared {
    async fn connect(&self) -> Result<Link, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.response_timeout));
        let mut connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let info: String = redis::cmd("INFO")
            .arg("server")
            .query_async(&mut connection)
            .await?;
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        Ok(Link {
            connection,
            run_id: run_id.unwrap_or_default().trim().into(),
        })
    }

    /// Gives up a connection after an error; whoever sees it first says so.
    fn lose(&self, link: &Link, error: &RedisError) {
        let mut present = self.link_mut();
        let is_same = present
            .as_ref()
            .is_some_and(|present| Arc::ptr_eq(&present.run_id, &link.run_id));
        if is_same {
            *present = None;
            drop(present);
            self.metrics.redis_up.set(0);
            tracing::warn!(%error, "Redis is away; reading from PostgreSQL");
            self.lost.notify_one();
        }
    }

    fn link(&self) -> std::sync::RwLockReadGuard<'_, Option<Link>> {
        self.link
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn link_mut(&self) -> std::sync::RwLockWriteGuard<'_, Option<Link>> {
        self.link
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Link {
    fn everything(&self) -> String {
        format!("reader:{}:generation", self.run_id)
    }

    fn heard(&self, consumer: &str) -> String {
        format!("reader:{}:heard:{consumer}", self.run_id)
    }

    fn table(&self, table: &str) -> String {
        format!("reader:{}:generation:{table}", self.run_id)
    }
}

impl Answer {
    /// LSN, length of the token, token, body.
    fn encode(&self) -> Vec<u8> {
        let next = self.next.as_deref().unwrap_or_default().as_bytes();
        let mut bytes = Vec::with_capacity(12 + next.len() + self.body.len());
        bytes.extend_from_slice(&self.lsn.0.to_be_bytes());
        bytes.extend_from_slice(&(next.len() as u32).to_be_bytes());
        bytes.extend_from_slice(next);
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// None for bytes that are not ours.
    fn decode(bytes: &Bytes) -> Option<Self> {
        let (lsn, rest) = bytes.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (next, body) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        let next = std::str::from_utf8(next).ok()?;
        Some(Self {
            lsn: Lsn(u64::from_be_bytes(*lsn)),
            next: (!next.is_empty()).then(|| next.to_owned()),
            body: bytes.slice_ref(body),
        })
    }
}

/// Grows faster than any generation is raised, so no generation is ever used twice.
fn above_all() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_nobody_was_given_are_a_gap() {
        let heard = |stream, consumer| Heard { stream, consumer };

        assert!(!heard(7, 3).is_gap(heard(8, 4)));
        assert!(!heard(7, 3).is_gap(heard(8, 9)));
        assert!(heard(7, 3).is_gap(heard(9, 4)));
        assert!(heard(7, 3).is_gap(heard(8, 3)));
    }

    #[test]
    fn an_answer_is_read_back() {
        let answer = Answer {
            lsn: Lsn(7),
            next: Some("abc".to_owned()),
            body: Bytes::from_static(b"[]"),
        };

        let bytes = Bytes::from(answer.encode());

        assert_eq!(Answer::decode(&bytes), Some(answer));
        for length in 0..12 {
            assert_eq!(Answer::decode(&bytes.slice(..length)), None);
        }
    }
}
