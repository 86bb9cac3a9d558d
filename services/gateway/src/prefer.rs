//! Reads `Prefer: wait=N` (RFC 7240).
//!
//! In: the request's headers. Out: how long to wait. What must hold: no client waits longer than [`WAIT_MAX`].

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// Longest wait.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
/// Says that the preference was followed.
pub const APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The seconds of the first `wait`, at most [`WAIT_MAX`]; None without one, or when it is not a number.
pub fn wait(headers: &HeaderMap) -> Option<Duration> {
    let preferences = headers
        .get_all("prefer")
        .into_iter()
        .map(HeaderValue::to_str);
    let wait = preferences
        .filter_map(Result::ok)
        .flat_map(|value| value.split(','))
        // Parameters of a preference follow behind a semicolon.
        .filter_map(|preference| preference.split(';').next()?.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))?;
    let seconds: u64 = wait.1.trim().trim_matches('"').parse().ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds).min(WAIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(values: &[&'static str]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("prefer", HeaderValue::from_static(value));
        }
        wait(&headers).map(|wait| wait.as_secs())
    }

    #[test]
    fn wait_is_found_among_other_preferences() {
        assert_eq!(parsed(&["wait=10"]), Some(10));
        assert_eq!(parsed(&["respond-async, Wait = \"5\"; x=y"]), Some(5));
        assert_eq!(parsed(&["return=minimal", "wait=7"]), Some(7));
    }

    #[test]
    fn wait_is_bounded_and_nonsense_is_ignored() {
        assert_eq!(parsed(&["wait=100000"]), Some(30));
        for value in [
            "",
            "wait",
            "wait=",
            "wait=0",
            "wait=-1",
            "wait=soon",
            "waiter=3",
        ] {
            assert_eq!(parsed(&[value]), None, "{value}");
        }
    }
}
