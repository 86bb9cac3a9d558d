//! Which rows are events: what the ordinal in a position counts.
//!
//! In: publications, --table, the subject pattern. Out: a value to compare and to keep.
//! Invariant: a transaction is counted under one of these from its first event to its last, whatever the
//! bridge is told meanwhile; else a restart in its middle would repeat some of its events and lose others.

use sha2::{Digest as _, Sha256};
use wire::checkpoint::Checkpoint;
use wire::{Lsn, Position};

use crate::config::{Config, TableFilter};

/// Everything that decides which rows are counted, and where their events are found again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counting {
    pub publications: Vec<String>,
    /// `table`, or `schema.table`; all when there are none.
    pub tables: Vec<String>,
    /// Wildcards over the subjects of their events.
    pub filters: Vec<String>,
}

/// How the stream's events were counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    pub by: Counting,
    /// Everything up to here was counted in another way, and is in the stream.
    pub from: Position,
}

impl Counting {
    pub fn of(config: &Config) -> Self {
        Self {
            publications: sorted(&config.publications),
            tables: sorted(config.tables.names()),
            filters: config.tables.subject_filters(&config.subjects),
        }
    }

    pub fn filter(&self) -> TableFilter {
        TableFilter::of(&self.tables)
    }

    /// Of the tables.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(self.tables.join(",").as_bytes());
        let prefix: [u8; 8] = std::array::from_fn(|index| digest[index]);
        format!("{:016x}", u64::from_be_bytes(prefix))
    }
}

impl Counted {
    /// As the record says. None: it is of an earlier version, which kept a hash only, and that is another.
    pub fn of(checkpoint: &Checkpoint, own: &Counting) -> Option<Self> {
        let publications: Vec<_> = checkpoint.publication.split(',').collect();
        let publications = sorted(&publications);
        let by = if checkpoint.filters.is_empty() {
            let is_own = publications == own.publications && checkpoint.filter_hash == own.hash();
            is_own.then(|| own.clone())?
        } else {
            Counting {
                publications,
                tables: sorted(&checkpoint.tables),
                filters: checkpoint.filters.clone(),
            }
        };
        Some(Self {
            by,
            from: checkpoint.counted_from,
        })
    }

    /// Counted by these settings behind the transaction that committed at `lsn`.
    pub fn behind(lsn: Lsn, by: Counting) -> Self {
        let from = if lsn.is_valid() {
            Position::new(lsn, u32::MAX)
        } else {
            Position::START
        };
        Self { by, from }
    }
}

fn sorted<T: AsRef<str>>(names: &[T]) -> Vec<String> {
    let mut names: Vec<String> = names.iter().map(|name| name.as_ref().to_owned()).collect();
    names.sort();
    names
}
