//! Holds each principal to its share.
//!
//! In: a principal and the time. Out: go ahead, or wait so long. What must hold: over any time no principal passes more
//! than the rate and one second's burst, and the memory for it is bounded however many principals there are.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Principals remembered at a time. One that has been quiet for a second is as good as forgotten.
const PRINCIPALS_MAX: usize = 10_000;

/// A token bucket per principal.
#[derive(Debug)]
pub struct RateLimit {
    per_s: f64,
    buckets: HashMap<String, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn filled(self, per_s: f64, now: Instant) -> Self {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        Self {
            tokens: (self.tokens + elapsed * per_s).min(per_s),
            at: now,
        }
    }
}

impl RateLimit {
    /// `per_s` requests a second for each principal; at least 1.
    pub fn new(per_s: u32) -> Self {
        Self {
            per_s: f64::from(per_s.max(1)),
            buckets: HashMap::new(),
        }
    }

    /// Takes one request of `principal`, or says when the next may come.
    pub fn admit(&mut self, principal: &str, now: Instant) -> Result<(), Duration> {
        let per_s = self.per_s;
        if PRINCIPALS_MAX <= self.buckets.len() && !self.buckets.contains_key(principal) {
            self.buckets
                .retain(|_, bucket| bucket.filled(per_s, now).tokens < per_s);
            if PRINCIPALS_MAX <= self.buckets.len() {
                return Err(Duration::from_secs(1));
            }
        }
        let full = Bucket {
            tokens: per_s,
            at: now,
        };
        let bucket = self.buckets.entry(principal.to_owned()).or_insert(full);
        *bucket = bucket.filled(per_s, now);
        if bucket.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / per_s));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_one_second_passes_and_then_the_rate() {
        let now = Instant::now();
        let mut limit = RateLimit::new(10);

        let passed = (0..20)
            .filter(|_| limit.admit("alice", now).is_ok())
            .count();

        assert_eq!(passed, 10);
        assert_eq!(limit.admit("alice", now), Err(Duration::from_millis(100)));
        assert_eq!(
            limit.admit("alice", now + Duration::from_millis(100)),
            Ok(())
        );
    }

    #[test]
    fn principals_do_not_share_a_bucket() {
        let now = Instant::now();
        let mut limit = RateLimit::new(1);

        assert_eq!(limit.admit("alice", now), Ok(()));
        assert_eq!(limit.admit("bob", now), Ok(()));
        assert!(limit.admit("alice", now).is_err());
    }

    #[test]
    fn quiet_principals_make_room_for_new_ones() {
        let now = Instant::now();
        let mut limit = RateLimit::new(1);
        for number in 0..PRINCIPALS_MAX {
            limit.admit(&number.to_string(), now).unwrap();
        }

        assert!(limit.admit("one more", now).is_err());
        assert_eq!(
            limit.admit("one more", now + Duration::from_secs(1)),
            Ok(())
        );
        assert_eq!(limit.buckets.len(), 1);
    }
}
