//! Finds out how long NATS may keep acked messages unsynced, and so how long WAL has to be kept.
//!
//! In: --durability, --hold, the answer of the server's monitoring port. Out: a hold, and what it means in words.
//! Invariant: where the server's own setting is not known, the longest default of any version is assumed.

use std::time::Duration;

use clap::ValueEnum;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What must have happened to an event before PostgreSQL may remove its WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// JetStream has acked it. A power cut of the NATS host may still take it.
    Acked,
    /// JetStream has acked it longer ago than it leaves files unsynced.
    Held,
    /// JetStream has acked it and syncs before it acks.
    Fsync,
}

/// How long acked events stay unconfirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    pub hold: Duration,
    /// For the log and `/status`.
    pub exposure: String,
    /// A power cut of the NATS host could lose something.
    pub is_exposed: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error(
        "--durability fsync needs to see `sync_interval: always` on the server, and its monitoring port does not \
         answer at {0}; set `http: 127.0.0.1:8222` in its configuration and name it with --nats-monitoring"
    )]
    Unknown(String),
    #[error(
        "--durability fsync needs `sync_interval: always` in the jetstream block of the server's configuration \
         (nats-server 2.10 or newer); it syncs every {0:?}. Use --durability held instead"
    )]
    NotAlways(Duration),
}

/// How the server syncs its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    Always,
    Every(Duration),
}

/// The default of every version so far.
const SYNC_INTERVAL: Duration = Duration::from_mins(2);
/// A sync begins late when the disk is busy, and takes its time.
const MARGIN: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Decides. `hold` is what --hold says, `seen` what the monitoring port at `address` told.
pub fn effective(
    durability: Durability,
    hold: Option<Duration>,
    seen: Option<Sync>,
    address: &str,
) -> Result<Effective, Error> {
    match (durability, seen) {
        (Durability::Acked | Durability::Fsync, Some(Sync::Always)) => Ok(Effective {
            hold: Duration::ZERO,
            exposure:
                "a power cut of the NATS host loses nothing: it syncs each message before it acks"
                    .to_owned(),
            is_exposed: false,
        }),
        (Durability::Acked, seen) => {
            let interval = interval(seen);
            Ok(Effective {
                hold: Duration::ZERO,
                exposure: format!(
                    "a power cut of the NATS host now could lose the last {interval:?}; --durability held covers it"
                ),
                is_exposed: true,
            })
        }
        (Durability::Held, seen) => {
            let needed = match seen {
                Some(Sync::Always) => Duration::ZERO,
                seen => interval(seen) + MARGIN,
            };
            let hold = hold.unwrap_or(needed);
            let exposure = if hold < needed {
                format!(
                    "WAL of the last {hold:?} is kept, and NATS may leave messages unsynced for {:?}: a power cut of \
                     the NATS host now could lose those in between; raise --hold",
                    interval(seen)
                )
            } else {
                format!(
                    "WAL of the last {hold:?} is kept, so that a power cut of the NATS host loses nothing"
                )
            };
            Ok(Effective {
                hold,
                exposure,
                is_exposed: hold < needed,
            })
        }
        (Durability::Fsync, Some(Sync::Every(interval))) => Err(Error::NotAlways(interval)),
        (Durability::Fsync, None) => Err(Error::Unknown(address.to_owned())),
    }
}

fn interval(seen: Option<Sync>) -> Duration {
    match seen {
        Some(Sync::Every(interval)) => interval,
        Some(Sync::Always) => Duration::ZERO,
        None => SYNC_INTERVAL,
    }
}

/// Asks the monitoring port (`host:port`) for `/jsz`. None: nobody answers, or not in a way that tells.
pub async fn look(address: &str) -> Option<Sync> {
    timeout(ANSWER_TIMEOUT, get(address)).await.ok()?
}

async fn get(address: &str) -> Option<Sync> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET /jsz HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX as u64)
        .read_to_end(&mut answer)
        .await
        .ok()?;
    let text = std::str::from_utf8(&answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    head.lines()
        .next()?
        .contains(" 200 ")
        .then(|| parse(body))?
}

#[derive(Deserialize)]
struct Answer {
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    /// In nanoseconds; absent before 2.10, which always has the default.
    #[serde(default)]
    sync_interval: u64,
    #[serde(default)]
    sync_always: bool,
}

fn parse(body: &str) -> Option<Sync> {
    let Answer { config } = serde_json::from_str(body).ok()?;
    Some(match config {
        Config {
            sync_always: true, ..
        } => Sync::Always,
        Config {
            sync_interval: 0, ..
        } => Sync::Every(SYNC_INTERVAL),
        Config { sync_interval, .. } => Sync::Every(Duration::from_nanos(sync_interval)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "nats:8222";

    fn hold(
        durability: Durability,
        hold: Option<Duration>,
        seen: Option<Sync>,
    ) -> Result<Duration, Error> {
        effective(durability, hold, seen, ADDRESS).map(|effective| effective.hold)
    }

    #[test]
    fn held_outlasts_the_servers_sync_interval() {
        let seen = Some(Sync::Every(Duration::from_secs(30)));

        assert_eq!(
            hold(Durability::Held, None, seen),
            Ok(Duration::from_secs(40))
        );
        assert_eq!(
            hold(Durability::Held, None, None),
            Ok(Duration::from_secs(130))
        );
        assert_eq!(
            hold(Durability::Held, None, Some(Sync::Always)),
            Ok(Duration::ZERO)
        );
        let own = Duration::from_secs(5);
        assert_eq!(hold(Durability::Held, Some(own), seen), Ok(own));
    }

    #[test]
    fn fsync_is_believed_only_when_seen() {
        let every = Duration::from_mins(2);

        assert_eq!(
            hold(Durability::Fsync, None, Some(Sync::Always)),
            Ok(Duration::ZERO)
        );
        assert_eq!(
            hold(Durability::Fsync, None, Some(Sync::Every(every))),
            Err(Error::NotAlways(every))
        );
        assert_eq!(
            hold(Durability::Fsync, None, None),
            Err(Error::Unknown(ADDRESS.to_owned()))
        );
    }

    #[test]
    fn the_monitoring_answer_of_each_version_is_understood() {
        let old = r#"{"config": {"max_memory": 1, "store_dir": "/x"}, "memory": 0}"#;
        let new = r#"{"config": {"store_dir": "/x", "sync_interval": 30000000000}}"#;
        let always = r#"{"config": {"sync_interval": 120000000000, "sync_always": true}}"#;

        assert_eq!(parse(old), Some(Sync::Every(SYNC_INTERVAL)));
        assert_eq!(parse(new), Some(Sync::Every(Duration::from_secs(30))));
        assert_eq!(parse(always), Some(Sync::Always));
        assert_eq!(parse("{}"), None);
    }
}
