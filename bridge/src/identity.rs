//! Tells the PostgreSQL cluster the bridge knows from another, or from an earlier state of itself.
//!
//! In: what was known, IDENTIFY_SYSTEM. Out: go on, or why not.
//! Invariant: events of another history are never appended behind those of the one in the stream.

use wire::{Lsn, Position};

use crate::postgres::{SystemIdentity, TimelineEnd};

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
    #[error(
        "this PostgreSQL is on timeline {found}, which left timeline {known} at {at}, before {position} that the stream \
         already holds: it was restored to an earlier point, or promoted without its last changes, and has gone on \
         from there. What consumers have seen did not happen here; start over with another --stream, or a new one of \
         this name, and seed the consumers again"
    )]
    Left {
        known: u32,
        found: u32,
        at: Lsn,
        position: Position,
    },
    #[error(
        "this PostgreSQL is on timeline {found}, which has not come from timeline {known} of the stream's events: it is \
         the server from before a failover, or a restore of it. Check --pg-url; to follow this server start over \
         with another --stream, or a new one of this name, and seed the consumers again"
    )]
    OtherTimeline { known: u32, found: u32 },
}

/// Compares. `position` is the last event known to be in the stream, `history` that of the timeline found.
///
/// PostgreSQL: LSNs of one cluster only grow, over restarts and promotions alike; a restore to an earlier
/// point goes back and starts a new timeline. What it writes then may pass the position again, so it is the
/// history that tells: the timeline of the position must have gone on beyond it before it was left.
pub fn check(
    known: Option<&Identity>,
    found: &SystemIdentity,
    history: &[TimelineEnd],
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
    match known {
        Some(known) if known.timeline != found.timeline && position > Position::START => {
            let end = history.iter().find(|end| end.timeline == known.timeline);
            let Some(end) = end else {
                return Err(Error::OtherTimeline {
                    known: known.timeline,
                    found: found.timeline,
                });
            };
            if position.commit_lsn >= end.at {
                return Err(Error::Left {
                    known: known.timeline,
                    found: found.timeline,
                    at: end.at,
                    position,
                });
            }
            Ok(())
        }
        Some(_) | None => Ok(()),
    }
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

    fn left_at(lsn: u64) -> [TimelineEnd; 1] {
        [TimelineEnd {
            timeline: 1,
            at: Lsn(lsn),
        }]
    }

    #[test]
    fn a_promoted_standby_that_has_everything_goes_on() {
        let position = Position::new(Lsn(100), 3);

        let promoted = found("7", 2, 110);
        assert_eq!(
            check(Some(&known()), &promoted, &left_at(101), position),
            Ok(())
        );
        assert_eq!(check(None, &promoted, &[], position), Ok(()));
    }

    #[test]
    fn a_restore_that_has_passed_the_position_again_is_refused() {
        let position = Position::new(Lsn(100), 3);

        let restored = check(Some(&known()), &found("7", 2, 500), &left_at(100), position);
        assert!(matches!(restored, Err(Error::Left { .. })));
        let nothing_published = check(
            Some(&known()),
            &found("7", 2, 500),
            &left_at(100),
            Position::START,
        );
        assert_eq!(nothing_published, Ok(()));
    }

    #[test]
    fn a_timeline_from_before_a_failover_is_refused() {
        let position = Position::new(Lsn(100), 3);
        let known = Identity {
            timeline: 2,
            ..known()
        };

        let old_primary = check(Some(&known), &found("7", 1, 500), &[], position);
        assert!(matches!(old_primary, Err(Error::OtherTimeline { .. })));
        let sibling = check(Some(&known), &found("7", 3, 500), &left_at(400), position);
        assert!(matches!(sibling, Err(Error::OtherTimeline { .. })));
    }

    #[test]
    fn another_cluster_or_an_earlier_state_is_refused() {
        let position = Position::new(Lsn(100), 3);

        let other = check(Some(&known()), &found("8", 1, 500), &[], position);
        assert!(matches!(other, Err(Error::OtherCluster { .. })));
        let earlier = check(Some(&known()), &found("7", 2, 99), &left_at(99), position);
        assert!(matches!(earlier, Err(Error::Earlier { .. })));
    }
}
