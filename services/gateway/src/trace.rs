//! Carries a W3C trace context from the request to the message.
//!
//! In: the client's `traceparent`. Out: the same, or a new one. What must hold: every message has a valid one, so that a
//! write can be followed from HTTP to the row's change event.

use daemon::backoff::random;

/// The client's value when it is valid (version 00), else one with a new trace id.
pub fn traceparent(sent: Option<&str>) -> String {
    match sent.filter(|value| is_valid(value)) {
        Some(value) => value.to_owned(),
        None => format!(
            "00-{:016x}{:016x}-{:016x}-01",
            random().max(1),
            random(),
            random().max(1)
        ),
    }
}

fn is_valid(value: &str) -> bool {
    let is_hex = |part: &str, digits: usize| {
        part.len() == digits
            && part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |part: &str, digits| is_hex(part, digits) && part.bytes().any(|byte| byte != b'0');
    let parts: Vec<&str> = value.split('-').collect();
    match parts.as_slice() {
        &["00", trace_id, parent_id, flags] => {
            is_id(trace_id, 32) && is_id(parent_id, 16) && is_hex(flags, 2)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_trace_goes_on() {
        assert_eq!(traceparent(Some(SENT)), SENT);
    }

    #[test]
    fn anything_else_starts_a_new_one() {
        for sent in [
            None,
            Some(""),
            Some("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"),
            Some("00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
            Some("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ] {
            let made = traceparent(sent);
            assert!(is_valid(&made), "{made}");
            assert_ne!(Some(made.as_str()), sent);
        }
        assert_ne!(traceparent(None), traceparent(None));
    }
}
