//! Sees that no two bridges publish the same tables into one stream.
//!
//! In: what this bridge is about to publish. Out: leave to do so, and whether others share the stream.
//! Invariant: of two bridges whose subjects overlap one does not start, or both say so for as long as it
//! lasts; and a bridge that shares its stream publishes only after each of the others has said that it
//! knows.
//!
//! Each running bridge keeps a claim in KV bucket `bridge_state` and renews it. Two bridges on one slot
//! are no rivals: PostgreSQL lets one of them stream.

use std::fmt;
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

/// Whether others write to the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Alone,
    /// Others do, and some of them do not know yet.
    SharedUnaware,
    Shared,
}

/// A claim of another bridge, and whether it came first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    pub claim: Claim,
    pub is_older: bool,
    /// It may be refused yet.
    is_entering: bool,
}

/// Another bridge that publishes some of the same subjects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    pub slot: String,
    pub filter: String,
    pub is_older: bool,
    is_entering: bool,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slot, filter, .. } = self;
        write!(
            f,
            "the bridge on slot {slot} publishes {filter} into the same stream: events may come twice, or not at all. \
             Stop one of the two and start it with a disjoint --table list or a --stream of its own; then have copies of \
             the tables seeded anew, with `bridge snapshot TABLE`"
        )
    }
}

/// What the other claims mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Of those that do not overlap.
    pub verdict: Verdict,
    pub overlaps: Vec<Overlap>,
}

/// Compares.
pub fn judge(own: &Claim, others: &[Other]) -> Judgement {
    let rivals = others
        .iter()
        .filter(|other| other.claim.stream == own.stream && other.claim.slot != own.slot);
    let mut judgement = Judgement {
        verdict: Verdict::Alone,
        overlaps: Vec::new(),
    };
    for rival in rivals {
        let overlap = rival
            .claim
            .filters
            .iter()
            .find(|theirs| own.filters.iter().any(|ours| overlaps(ours, theirs)));
        match overlap {
            Some(filter) => judgement.overlaps.push(Overlap {
                slot: rival.claim.slot.clone(),
                filter: filter.clone(),
                is_older: rival.is_older,
                is_entering: rival.is_entering,
            }),
            None if !rival.claim.is_shared => judgement.verdict = Verdict::SharedUnaware,
            None if judgement.verdict == Verdict::Alone => judgement.verdict = Verdict::Shared,
            None => {}
        }
    }
    judgement
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

/// How often a claim is renewed, and the others are looked at.
pub const RENEWED_EVERY: Duration = Duration::from_secs(5);
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
            let judgement = match claims.look().await {
                Ok(judgement) => judgement,
                Err(error) => {
                    claims.leave().await;
                    return Err(error);
                }
            };
            // Of two that overlap the younger does not start.
            if let Some(older) = judgement.overlaps.into_iter().find(|other| other.is_older) {
                claims.leave().await;
                return Err(Error::Overlap {
                    slot: older.slot,
                    stream: claims.own.stream,
                    filter: older.filter,
                });
            }
            match judgement.verdict {
                Verdict::Alone => return Ok(claims),
                Verdict::Shared => {
                    claims.share().await?;
                    return Ok(claims);
                }
                Verdict::SharedUnaware => {
                    tracing::info!(
                        stream = claims.own.stream,
                        "waiting until the other bridges on the stream know of this one"
                    );
                    claims.share().await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    pub fn is_shared(&self) -> bool {
        self.own.is_shared
    }

    /// Renews the claim, and looks at those of the others. Where another bridge has come to a stream that
    /// was this one's alone, the claim may say so (`share`) once nothing is in flight that needs the stream
    /// alone.
    pub async fn renew(&mut self) -> Result<Judgement, Error> {
        let revision = match self.write().await {
            Err(_) if self.restore().await? => self.write().await?,
            written => written?,
        };
        // Revisions begin anew in a bucket that was deleted and made again.
        if revision < self.since {
            self.since = revision;
            self.write().await?;
        }
        let mut judgement = self.look().await?;
        // A younger one is about to find out by itself, and publishes nothing.
        judgement.overlaps.retain(|other| !other.is_entering);
        Ok(judgement)
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

    async fn look(&self) -> Result<Judgement, Error> {
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
                    is_entering: record.since == 0,
                })
            })
            .collect();
        Ok(judge(&self.own, &others))
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
            is_entering: false,
        }
    }

    #[test]
    fn of_two_bridges_with_a_table_in_common_it_is_known_which_came_first() {
        let own = claim("b", &["cdc.users.*", "cdc.orders.*"]);
        let mut rival = other("a", &["cdc.orders.*"]);

        let judged = judge(&own, std::slice::from_ref(&rival));
        let said = judged.overlaps[0].to_string();
        assert!(said.contains("slot a publishes cdc.orders.*"), "{said}");
        assert!(judged.overlaps[0].is_older);
        rival.is_older = false;
        assert!(!judge(&own, &[rival]).overlaps[0].is_older);
    }

    #[test]
    fn all_tables_overlap_with_any() {
        let own = claim("b", &["cdc.>"]);

        let users = ["cdc.users.*"];
        assert_eq!(judge(&own, &[other("a", &users)]).overlaps.len(), 1);
        assert_eq!(
            judge(&claim("b", &users), &[other("a", &["cdc.>"])])
                .overlaps
                .len(),
            1
        );
    }

    #[test]
    fn disjoint_tables_share_a_stream_once_all_know() {
        let own = claim("b", &["cdc.users.*"]);
        let mut rival = other("a", &["cdc.orders.*"]);

        assert_eq!(
            judge(&own, std::slice::from_ref(&rival)).verdict,
            Verdict::SharedUnaware
        );
        rival.claim.is_shared = true;
        assert_eq!(judge(&own, &[rival]).verdict, Verdict::Shared);
    }

    #[test]
    fn a_bridge_that_overlaps_does_not_hide_those_that_do_not() {
        let own = claim("c", &["cdc.users.*"]);
        let others = [other("a", &["cdc.users.*"]), other("b", &["cdc.orders.*"])];

        let judged = judge(&own, &others);

        assert_eq!(judged.verdict, Verdict::SharedUnaware);
        assert_eq!(judged.overlaps.len(), 1);
    }

    #[test]
    fn a_pair_on_one_slot_and_bridges_on_other_streams_are_no_rivals() {
        let own = claim("a", &["cdc.users.*"]);
        let mut elsewhere = other("b", &["cdc.users.*"]);
        elsewhere.claim.stream = "OTHER".to_owned();

        let judged = judge(&own, &[other("a", &["cdc.users.*"]), elsewhere]);

        assert_eq!(judged.verdict, Verdict::Alone);
        assert_eq!(judged.overlaps, []);
    }

    #[test]
    fn a_schema_named_like_a_table_is_apart() {
        assert!(!overlaps("cdc.users.*", "cdc.users.orders.*"));
        assert!(overlaps("cdc.users.>", "cdc.users.orders.*"));
        assert!(overlaps("cdc.*.insert", "cdc.users.*"));
    }
}
