//! Decides when the reader should nap so that its next read is a gulp.
//!
//! In: how long each read took and what it brought. Out: how long to nap before the next one.
//! Invariant: naps only while reads return at once, which is while a backlog drains; a reader
//! that has to wait for its bytes never naps.
//!
//! PostgreSQL's walsender sends one packet per row. A reader that wakes up for each costs itself
//! more than 1 us per row, and slows the walsender down, which has to wake it.
//! Without the nap -> with it, reading and decoding 1,000,000 rows of 122 bytes in transactions
//! of 10 (2 cores, loopback, example `gulp`, median of 3):
//! PostgreSQL 15, TCP: 250k -> 574k rows/s, 1.27 -> 0.14 us CPU/row; 17: 263k -> 536k, 1.23 -> 0.13.
//! Unix socket, 15: 424k -> 418k rows/s, 1.25 -> 0.71 us CPU/row: there the kernel hands over
//! packet by packet, and the server's send buffer is full after some 200 rows. Prefer TCP.

use std::time::Duration;

/// A read that took longer had to wait for the server: there is no backlog.
pub const QUICK_READ: Duration = Duration::from_micros(200);

/// A read that brought this much is a gulp already.
pub const GULP_BYTES: usize = 128 * 1024;

/// This many quick, small reads in a row are a backlog; fewer may be one transaction.
pub const QUICK_READS: u32 = 8;

/// A nap that gathers less than this is of busy live traffic rather than of a backlog: it is 20 kB per
/// millisecond, or some 100,000 rows/s.
pub const BACKLOG_BYTES: usize = 8 * 1024;

/// While a backlog drains: long enough for the server to put some hundred rows into the socket, short
/// against what anything behind us takes. At most about 100 kB gather, which the kernel's buffer holds.
/// 400 us -> 1 ms -> 2 ms, whole road (bench `drain1000`, nats 2.9, quiet machine): 298k -> 302k -> 312k
/// events/s, 0.66 -> 0.48 -> 0.36 us CPU/event.
pub const NAP: Duration = Duration::from_millis(1);

/// While there is less. 1 ms -> 400 us (bench `live`): p99 at 5,000 commits/s 14 -> 1.1 ms, at 20,000
/// 4.4 -> 1.8 ms, from commit to stored.
pub const SHORT_NAP: Duration = Duration::from_micros(400);

/// The run of quick reads so far.
#[derive(Debug, Default)]
pub struct Gulp {
    quick_reads: u32,
}

impl Gulp {
    /// Takes the read just done, and tells how long to nap before the next. A read that timed out
    /// is a read of 0 bytes.
    #[inline]
    pub fn nap_after(&mut self, took: Duration, bytes: usize) -> Option<Duration> {
        if took > QUICK_READ {
            self.quick_reads = 0;
            return None;
        }
        if bytes >= GULP_BYTES {
            return None;
        }
        self.quick_reads = self.quick_reads.saturating_add(1);
        (self.quick_reads >= QUICK_READS).then_some(if bytes < BACKLOG_BYTES {
            SHORT_NAP
        } else {
            NAP
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(5);
    const SLOW: Duration = Duration::from_micros(900);

    fn naps(gulp: &mut Gulp, reads: &[(Duration, usize)]) -> usize {
        reads
            .iter()
            .filter(|(took, bytes)| gulp.nap_after(*took, *bytes).is_some())
            .count()
    }

    #[test]
    fn sparse_traffic_never_naps() {
        let mut gulp = Gulp::default();
        let traffic = [(SLOW, 300)].repeat(10_000);

        assert_eq!(naps(&mut gulp, &traffic), 0);
    }

    #[test]
    fn a_transaction_now_and_then_never_naps() {
        let mut gulp = Gulp::default();
        let mut transaction = vec![(SLOW, 80)];
        transaction.extend([(QUICK, 150)].repeat(7));

        assert_eq!(naps(&mut gulp, &transaction.repeat(1_000)), 0);
    }

    #[test]
    fn a_backlog_naps_from_the_eighth_read_on() {
        let mut gulp = Gulp::default();

        assert_eq!(naps(&mut gulp, &[(QUICK, 150)].repeat(7)), 0);
        assert_eq!(naps(&mut gulp, &[(QUICK, 150)].repeat(100)), 100);
    }

    #[test]
    fn busy_live_traffic_naps_shortly() {
        let mut gulp = Gulp::default();
        naps(&mut gulp, &[(QUICK, 150)].repeat(100));

        assert_eq!(gulp.nap_after(QUICK, BACKLOG_BYTES - 1), Some(SHORT_NAP));
    }

    #[test]
    fn one_slow_read_ends_the_naps() {
        let mut gulp = Gulp::default();
        naps(&mut gulp, &[(QUICK, 150)].repeat(100));

        assert_eq!(naps(&mut gulp, &[(SLOW, 150)]), 0);
        assert_eq!(naps(&mut gulp, &[(QUICK, 150)].repeat(7)), 0);
    }

    #[test]
    fn a_full_gulp_goes_on_at_once_and_keeps_the_backlog_in_mind() {
        let mut gulp = Gulp::default();
        naps(&mut gulp, &[(QUICK, 150)].repeat(100));

        assert_eq!(gulp.nap_after(QUICK, GULP_BYTES), None);
        assert_eq!(gulp.nap_after(QUICK, BACKLOG_BYTES), Some(NAP));
    }
}
