//! Tells the PostgreSQL cluster the bridge knows from another, or from an earlier state of itself.
//!
//! In: what was known, IDENTIFY_SYSTEM. Out: go on, or why not.
//! Invariant: events of another history are never appended behind those of the one in the stream.

use wire::{Lsn, Position};

use crate::postgres::SystemIdentity;

/// What is known from an earlier session, or from the checkpoint of an earlier run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub system_identifier: String,
    pub timeline: u32,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error(
        "this PostgreSQL is another cluster (system identifier {found}, the stream holds changes of {known}); \
         check --pg-url, or start over with another --stream, or a new one of this name"
    )]
    OtherCluster { known: String, found: String },
    #[error(
        "this PostgreSQL ends at {wal_lsn} on timeline {timeline}, before {position} that the stream already holds: \
         it was restored to an earlier point, or promoted without its last changes. What consumers have seen did \
         not happen here; start over with another --stream, or a new one of this name, and seed the consumers again"
    )]
    Earlier {
        wal_lsn: Lsn,
        timeline: u32,
        position: Position,
    },
}

/// Compares. `position` is the last event known to be in the stream.
///
/// PostgreSQL: LSNs of one cluster only grow, over restarts and promotions alike; a restore to an
/// earlier point goes back and starts a new timeline.
pub fn check(
    known: Option<&Identity>,
    found: &SystemIdentity,
    position: Position,
) -> Result<(), Error> {
    if let Some(known) = known
        && known.system_identifier != found.system_identifier
    {
        return Err(Error::OtherCluster {
            known: known.system_identifier.clone(),
            found: found.system_identifier.clone(),
        });
    }
    if position.commit_lsn > found.wal_lsn {
        return Err(Error::Earlier {
            wal_lsn: found.wal_lsn,
            timeline: found.timeline,
            position,
        });
    }
    Ok(())
}

impl From<&SystemIdentity> for Identity {
    fn from(found: &SystemIdentity) -> Self {
        Self {
            system_identifier: found.system_identifier.clone(),
            timeline: found.timeline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(system_identifier: &str, timeline: u32, wal_lsn: u64) -> SystemIdentity {
        SystemIdentity {
            system_identifier: system_identifier.into(),
            timeline,
            wal_lsn: Lsn(wal_lsn),
            database: "shop".into(),
        }
    }

    fn known() -> Identity {
        Identity {
            system_identifier: "7".into(),
            timeline: 1,
        }
    }

    #[test]
    fn a_promoted_standby_that_has_everything_goes_on() {
        let position = Position::new(Lsn(100), 3);

        assert_eq!(check(Some(&known()), &found("7", 2, 100), position), Ok(()));
        assert_eq!(check(None, &found("7", 2, 100), position), Ok(()));
    }

    #[test]
    fn another_cluster_or_an_earlier_state_is_refused() {
        let position = Position::new(Lsn(100), 3);

        let other = check(Some(&known()), &found("8", 1, 500), position);
        assert!(matches!(other, Err(Error::OtherCluster { .. })));
        let earlier = check(Some(&known()), &found("7", 2, 99), position);
        assert!(matches!(earlier, Err(Error::Earlier { .. })));
    }
}
