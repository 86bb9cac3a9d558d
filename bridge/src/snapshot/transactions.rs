//! Decides from which commit on the row changes follow a snapshot.
//!
//! In: every transaction the source has seen, in commit order; a snapshot's visibility; the LSN of the
//! marker written after it. Out: `lsn` and `skip_xids` of the hand-off.
//! Invariant: a transaction the source saw is either in the snapshot's rows or let through by
//! `commit_lsn >= lsn && xid not in skip_xids`, never both and never neither.
//!
//! The LSN alone cannot do it: a commit is in WAL a moment before it is visible, so a snapshot may lack
//! a transaction with a smaller commit LSN than one it has.

use std::collections::VecDeque;

use wire::Lsn;

/// How many transactions are remembered: as many as may commit between a snapshot and its marker.
pub const TRANSACTIONS_MAX: usize = 65_536;

/// Which transactions a snapshot sees, as `pg_current_snapshot()` prints it: `xmin:xmax:xip,xip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visibility {
    xmin: u64,
    /// The first transaction id not yet given out.
    xmax: u64,
    /// Under way when the snapshot was taken, sorted.
    in_progress: Vec<u64>,
}

/// The text is not `xmin:xmax:xip,...`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a snapshot as pg_current_snapshot() prints it")]
pub struct NotASnapshot(String);

impl Visibility {
    pub fn parse(text: &str) -> Result<Self, NotASnapshot> {
        parse(text).ok_or_else(|| NotASnapshot(text.to_owned()))
    }

    /// True when the committed transaction's rows are in the snapshot.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }

    /// Transactions that had begun and not ended.
    pub fn in_progress(&self) -> &[u64] {
        &self.in_progress
    }
}

fn parse(text: &str) -> Option<Visibility> {
    let mut parts = text.split(':');
    let xmin = parts.next()?.parse().ok()?;
    let xmax = parts.next()?.parse().ok()?;
    let list = parts.next()?;
    let mut in_progress = Vec::new();
    for xid in list.split(',').filter(|xid| !xid.is_empty()) {
        in_progress.push(xid.parse().ok()?);
    }
    in_progress.sort_unstable();
    parts.next().is_none().then_some(Visibility {
        xmin,
        xmax,
        in_progress,
    })
}

/// Where the row changes join a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joint {
    /// Commits before it are in the rows.
    pub lsn: Lsn,
    /// Commits at or behind it that are in the rows all the same.
    pub skip_xids: Vec<u64>,
    /// Transactions that were under way in the snapshot and began before the source's log did. One of
    /// them that has committed may have done so before the log begins, where nobody saw it; a snapshot
    /// taken again sees it.
    pub unaccounted: Vec<u64>,
}

/// The last transactions in commit order. Owned by the source.
#[derive(Debug, Default)]
pub struct TransactionLog {
    /// (xid, commit_lsn), growing in commit_lsn.
    recent: VecDeque<(u64, Lsn)>,
    /// Transactions from this id on began after the log did; those before may have escaped it.
    begins_at_xid: u64,
}

impl TransactionLog {
    /// A session of the source begins; `recent_xid` is a transaction id given out just now.
    /// What an earlier session has seen stays known.
    pub fn session(&mut self, recent_xid: u64) {
        if self.recent.is_empty() {
            self.begins_at_xid = recent_xid;
        }
    }

    /// A transaction's Begin. One that a new session reads again replaces its earlier entry.
    pub fn began(&mut self, xid: u64, commit_lsn: Lsn) {
        while self
            .recent
            .pop_back_if(|(_, known)| *known >= commit_lsn)
            .is_some()
        {}
        if self.recent.len() == TRANSACTIONS_MAX
            && let Some((forgotten, _)) = self.recent.pop_front()
        {
            self.begins_at_xid = self.begins_at_xid.max(forgotten + 1);
        }
        self.recent.push_back((xid, commit_lsn));
    }

    /// The joint of a snapshot whose marker committed at `marker`; everything that committed before it
    /// has been seen.
    pub fn joint(&self, visibility: &Visibility, marker: Lsn) -> Joint {
        let before = |lsn: Lsn| lsn < marker;
        let invisible = self
            .recent
            .iter()
            .find(|(xid, commit_lsn)| before(*commit_lsn) && !visibility.sees(*xid));
        let lsn = invisible.map_or(marker, |(_, commit_lsn)| *commit_lsn);
        let skip_xids = self
            .recent
            .iter()
            .filter(|(xid, commit_lsn)| *commit_lsn >= lsn && visibility.sees(*xid))
            .map(|(xid, _)| *xid)
            .collect();
        let unaccounted = visibility
            .in_progress()
            .iter()
            .copied()
            .filter(|xid| *xid < self.begins_at_xid)
            .filter(|xid| !self.recent.iter().any(|(seen, _)| seen == xid))
            .collect();
        Joint {
            lsn,
            skip_xids,
            unaccounted,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log(transactions: &[(u64, u64)]) -> TransactionLog {
        let mut log = TransactionLog::default();
        for &(xid, lsn) in transactions {
            log.began(xid, Lsn(lsn));
        }
        log
    }

    #[test]
    fn with_nothing_in_flight_the_marker_is_the_joint() {
        let joint =
            log(&[(5, 10), (6, 20), (7, 30)]).joint(&Visibility::parse("7:7:").unwrap(), Lsn(30));

        assert_eq!(joint.lsn, Lsn(30));
        assert_eq!(joint.skip_xids, [0_u64; 0]);
    }

    #[test]
    fn a_commit_that_was_not_visible_yet_moves_the_joint_before_those_that_were() {
        // 6 is in WAL before 7, but the snapshot sees only 7.
        let joint = log(&[(5, 10), (6, 20), (7, 30), (8, 40)])
            .joint(&Visibility::parse("6:8:6").unwrap(), Lsn(40));

        assert_eq!(joint.lsn, Lsn(20));
        assert_eq!(joint.skip_xids, [7]);
    }

    #[test]
    fn a_transaction_read_twice_counts_once() {
        let joint = log(&[(5, 10), (6, 20), (5, 10), (6, 20), (7, 30)])
            .joint(&Visibility::parse("5:7:5").unwrap(), Lsn(30));

        assert_eq!(joint.lsn, Lsn(10));
        assert_eq!(joint.skip_xids, [6]);
    }

    #[test]
    fn what_may_have_committed_before_the_log_began_is_named() {
        let mut log = TransactionLog::default();
        log.session(100);
        log.began(101, Lsn(10));

        let joint = log.joint(&Visibility::parse("90:110:90,105").unwrap(), Lsn(20));

        assert_eq!(joint.unaccounted, [90]);
    }

    #[test]
    fn the_log_is_bounded_and_knows_what_it_forgot() {
        let mut log = TransactionLog::default();
        for index in 0..TRANSACTIONS_MAX as u64 + 10 {
            log.began(1000 + index, Lsn(10 + index));
        }

        assert_eq!(log.recent.len(), TRANSACTIONS_MAX);
        assert_eq!(log.begins_at_xid, 1010);
    }

    #[test]
    fn only_a_snapshot_is_parsed() {
        assert_eq!(
            Visibility::parse("10:20:11,13").unwrap(),
            Visibility {
                xmin: 10,
                xmax: 20,
                in_progress: vec![11, 13]
            }
        );
        for text in ["", "1", "1:2", "1:2:x", "a:2:", "1:2:3:4", "1:2:-3"] {
            assert!(Visibility::parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        /// Transactions commit in some order, become visible in another; the snapshot sees some.
        #[test]
        fn every_transaction_is_in_the_rows_or_let_through_and_never_both(
            order in Just((100_u64..140).collect::<Vec<_>>()).prop_shuffle(),
            seen in prop::collection::vec(any::<bool>(), 40),
            late in 0_usize..20,
        ) {
            // Those not seen are either in progress or begun later: here all in progress.
            let hidden: Vec<u64> =
                (100..140).filter(|xid| !seen[(xid - 100) as usize]).collect();
            let list: Vec<String> = hidden.iter().map(u64::to_string).collect();
            let visibility = Visibility::parse(&format!(
                "{}:140:{}", hidden.first().copied().unwrap_or(140), list.join(",")
            )).unwrap();
            // What the snapshot sees has committed before the marker; the hidden may commit behind it.
            let behind: Vec<u64> = hidden.iter().copied().take(late).collect();
            let (mut log, mut lsn) = (TransactionLog::default(), 0);
            let mut commits = Vec::new();
            for &xid in order.iter().filter(|xid| !behind.contains(xid)) {
                lsn += 10;
                log.began(xid, Lsn(lsn));
                commits.push((xid, Lsn(lsn)));
            }
            let marker = Lsn(lsn + 10);
            log.began(500, marker);
            let joint = log.joint(&visibility, marker);
            commits.extend(behind.iter().map(|&xid| (xid, Lsn(marker.0 + xid))));

            for (xid, commit_lsn) in commits {
                let is_admitted = commit_lsn >= joint.lsn && !joint.skip_xids.contains(&xid);
                prop_assert_eq!(is_admitted, !visibility.sees(xid), "{}", xid);
            }
        }
    }
}
