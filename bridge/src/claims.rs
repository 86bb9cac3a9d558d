//! Sees that no two bridges publish the same tables into one stream.
//!
//! In: what this bridge is about to publish. Out: leave to do so, and whether others share the stream.
//! Invariant: of two bridges whose subjects overlap one does not start; and a bridge that shares its
//! stream publishes only after each of the others has said that it knows.
//!
//! Each running bridge keeps a claim in KV bucket `bridge_state` and renews it. Two bridges on one slot
//! are no rivals: PostgreSQL lets one of them stream.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::checkpoint::Store;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read or write the claims in KV bucket bridge_state")]
    Bucket(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(
        "the bridge on slot {slot} publishes {filter} into stream {stream} already; give the two bridges disjoint \
         --table lists, or streams of their own"
    )]
    Overlap {
        slot: String,
        stream: String,
        filter: String,
    },
}

/// What one bridge publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub slot: String,
    pub stream: String,
    /// Wildcards over its subjects.
    pub filters: Vec<String>,
    /// It knows that others write to the stream.
    pub is_shared: bool,
}

/// What the other claims mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Alone,
    /// Others write to the stream, and some of them do not know yet.
    SharedUnaware,
    Shared,
}

/// A claim of another bridge, and whether it came first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    pub claim: Claim,
    pub is_older: bool,
}

/// Compares. Fails with the first older claim that overlaps.
pub fn judge(own: &Claim, others: &[Other]) -> Result<Verdict, Error> {
    let rivals = others
        .iter()
        .filter(|other| other.claim.stream == own.stream && other.claim.slot != own.slot);
    let mut verdict = Verdict::Alone;
    for rival in rivals {
        let overlap = rival
            .claim
            .filters
            .iter()
            .find(|theirs| own.filters.iter().any(|ours| overlaps(ours, theirs)));
        match overlap {
            Some(filter) if rival.is_older => {
                return Err(Error::Overlap {
                    slot: rival.claim.slot.clone(),
                    stream: own.stream.clone(),
                    filter: filter.clone(),
                });
            }
            None if !rival.claim.is_shared => verdict = Verdict::SharedUnaware,
            None if verdict == Verdict::Alone => verdict = Verdict::Shared,
            // Of two that overlap the younger does not start.
            Some(_) | None => {}
        }
    }
    Ok(verdict)
}

/// Some subject is under both.
pub fn overlaps(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

const RENEWED_EVERY: Duration = Duration::from_secs(5);
/// Without renewal for this long a bridge is taken to be gone.
const FORGOTTEN_AFTER: time::Duration = time::Duration::seconds(20);

/// This bridge's claim.
#[derive(Debug, Clone)]
pub struct Claims {
    store: Store,
    own: Claim,
    key: String,
    /// Revision of the first write: who has the smaller one came first.
    since: u64,
}

#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    claim: Claim,
    /// 0 until the first renewal.
    since: u64,
}

const PREFIX: &str = "claim.";

impl Claims {
    /// Enters the claim, and waits until every other bridge on the stream knows.
    pub async fn enter(store: Store, own: Claim) -> Result<Self, Error> {
        let instance = daemon::backoff::random();
        let mut claims = Self {
            store,
            key: format!("{PREFIX}{}.{instance:016x}", own.slot),
            own,
            since: 0,
        };
        claims.since = claims.write().await?;
        loop {
            match claims.look().await {
                Ok(Verdict::Alone) => return Ok(claims),
                Ok(Verdict::Shared) => {
                    claims.share().await?;
                    return Ok(claims);
                }
                Ok(Verdict::SharedUnaware) => {
                    tracing::info!(
                        stream = claims.own.stream,
                        "waiting until the other bridges on the stream know of this one"
                    );
                    claims.share().await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => {
                    claims.leave().await;
                    return Err(error);
                }
            }
        }
    }

    pub fn is_shared(&self) -> bool {
        self.own.is_shared
    }

    /// Renews the claim, for ever. Returns when another bridge has come to a stream that was this one's
    /// alone; the claim may say so (`share`) once nothing is in flight that needs the stream alone.
    pub async fn keep(&mut self) {
        let mut interval = tokio::time::interval(RENEWED_EVERY);
        loop {
            interval.tick().await;
            // NATS may be away: then nobody publishes.
            let renewed = self.renew().await;
            if renewed.is_ok()
                && !self.own.is_shared
                && let Ok(Verdict::Shared | Verdict::SharedUnaware) = self.look().await
            {
                return;
            }
        }
    }

    async fn renew(&mut self) -> Result<(), Error> {
        let revision = match self.write().await {
            Err(_) if self.restore().await? => self.write().await?,
            written => written?,
        };
        // Revisions begin anew in a bucket that was deleted and made again.
        if revision < self.since {
            self.since = revision;
            self.write().await?;
        }
        Ok(())
    }

    /// Tells the others that this bridge knows of them.
    pub async fn share(&mut self) -> Result<(), Error> {
        self.own.is_shared = true;
        self.write().await.map(drop)
    }

    /// Takes the claim back.
    pub async fn leave(&self) {
        if let Err(error) = self.store.bucket().delete(&self.key).await {
            tracing::debug!(%error, "the claim stays until it is forgotten");
        }
    }

    async fn write(&self) -> Result<u64, Error> {
        let record = Record {
            claim: self.own.clone(),
            since: self.since,
        };
        let json = serde_json::to_vec(&record).expect("a record of strings is JSON");
        let written = self.store.bucket().put(&self.key, json.into()).await;
        written.map_err(|error| Error::Bucket(error.into()))
    }

    async fn restore(&self) -> Result<bool, Error> {
        let restored = self.store.restore().await;
        restored.map_err(|error| Error::Bucket(error.into()))
    }

    async fn look(&self) -> Result<Verdict, Error> {
        let bucket = self.store.bucket();
        let mut entries = Vec::new();
        let keys = bucket.keys().await;
        let mut keys = keys.map_err(|error| Error::Bucket(error.into()))?;
        while let Some(key) = keys
            .try_next()
            .await
            .map_err(|error| Error::Bucket(error.into()))?
        {
            if key.starts_with(PREFIX) {
                let entry = bucket.entry(key).await;
                entries.extend(entry.map_err(|error| Error::Bucket(error.into()))?);
            }
        }
        // By the server's clock alone.
        let now = entries
            .iter()
            .map(|entry| entry.created)
            .max()
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let (fresh, forgotten): (Vec<_>, Vec<_>) = entries
            .iter()
            .partition(|entry| now - entry.created < FORGOTTEN_AFTER);
        for entry in forgotten {
            // Its bridge was killed; if it is only cut off, it enters the claim again.
            let _ = bucket.delete(&entry.key).await;
        }
        let others: Vec<Other> = fresh
            .into_iter()
            .filter_map(|entry| {
                let record: Record = serde_json::from_slice(&entry.value).ok()?;
                let since = if record.since == 0 {
                    entry.revision
                } else {
                    record.since
                };
                Some(Other {
                    claim: record.claim,
                    is_older: since < self.since,
                })
            })
            .collect();
        judge(&self.own, &others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(slot: &str, filters: &[&str]) -> Claim {
        Claim {
            slot: slot.to_owned(),
            stream: "CDC".to_owned(),
            filters: filters.iter().map(|&filter| filter.to_owned()).collect(),
            is_shared: false,
        }
    }

    fn other(slot: &str, filters: &[&str]) -> Other {
        Other {
            claim: claim(slot, filters),
            is_older: true,
        }
    }

    #[test]
    fn the_bridge_that_came_second_to_a_table_does_not_start() {
        let own = claim("b", &["cdc.users.*", "cdc.orders.*"]);
        let mut rival = other("a", &["cdc.orders.*"]);

        let refused = judge(&own, std::slice::from_ref(&rival))
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("slot a publishes cdc.orders.*"),
            "{refused}"
        );
        rival.is_older = false;
        assert!(judge(&own, &[rival]).is_ok());
    }

    #[test]
    fn all_tables_overlap_with_any() {
        let own = claim("b", &["cdc.>"]);

        assert!(judge(&own, &[other("a", &["cdc.users.*"])]).is_err());
        assert!(judge(&claim("b", &["cdc.users.*"]), &[other("a", &["cdc.>"])]).is_err());
    }

    #[test]
    fn disjoint_tables_share_a_stream_once_all_know() {
        let own = claim("b", &["cdc.users.*"]);
        let mut rival = other("a", &["cdc.orders.*"]);

        assert_eq!(
            judge(&own, std::slice::from_ref(&rival)).unwrap(),
            Verdict::SharedUnaware
        );
        rival.claim.is_shared = true;
        assert_eq!(judge(&own, &[rival]).unwrap(), Verdict::Shared);
    }

    #[test]
    fn a_pair_on_one_slot_and_bridges_on_other_streams_are_no_rivals() {
        let own = claim("a", &["cdc.users.*"]);
        let mut elsewhere = other("b", &["cdc.users.*"]);
        elsewhere.claim.stream = "OTHER".to_owned();

        let verdict = judge(&own, &[other("a", &["cdc.users.*"]), elsewhere]);

        assert_eq!(verdict.unwrap(), Verdict::Alone);
    }

    #[test]
    fn a_schema_named_like_a_table_is_apart() {
        assert!(!overlaps("cdc.users.*", "cdc.users.orders.*"));
        assert!(overlaps("cdc.users.>", "cdc.users.orders.*"));
        assert!(overlaps("cdc.*.insert", "cdc.users.*"));
    }
}
