//! PostgreSQL names as subject tokens and as KV keys, and back.
//!
//! In: any name. Out: text that NATS takes as exactly one token, or as part of a key.
//! Invariant: escaping is reversible, so two names never share a token.

/// The text is not an escaped name: a cut escape, or bytes that are not UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not an escaped name")]
pub struct UnescapeError {
    /// What was given.
    pub input: String,
}

/// `name` as one subject token. `.`, `*`, `>`, `%`, space, control bytes and DEL become `%XX`; the
/// empty name becomes a lone `%`; everything else, also non-ASCII, stays: `my table` is
/// `my%20table`.
pub fn escape_token(name: &str) -> String {
    escape(name, '%', |byte| {
        byte > b' ' && byte != 0x7F && !matches!(byte, b'.' | b'*' | b'>' | b'%')
    })
}

/// The name behind a token. Takes escapes in either case and of bytes that did not need one, so that
/// a requester may use any percent-encoder.
pub fn unescape_token(token: &str) -> Result<String, UnescapeError> {
    unescape(token, b'%')
}

/// `name` as one part of a KV key. Keys allow `[-/_=.a-zA-Z0-9]` only, and `.` separates schema and
/// table: every byte outside `[-/_a-zA-Z0-9]` becomes `=XX`, the empty name a lone `=`.
pub fn escape_key(name: &str) -> String {
    escape(name, '=', |byte| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/' | b'_')
    })
}

/// The name behind one part of a KV key.
pub fn unescape_key(part: &str) -> Result<String, UnescapeError> {
    unescape(part, b'=')
}

fn escape(name: &str, mark: char, keeps: fn(u8) -> bool) -> String {
    use std::fmt::Write as _;

    let mut escaped = String::with_capacity(name.len());
    if name.is_empty() {
        escaped.push(mark);
    }
    for character in name.chars() {
        let mut bytes = [0; 4];
        let bytes = character.encode_utf8(&mut bytes).bytes();
        if bytes.clone().all(keeps) {
            escaped.push(character);
        } else {
            for byte in bytes {
                write!(escaped, "{mark}{byte:02X}").expect("a String takes every write");
            }
        }
    }
    escaped
}

fn unescape(escaped: &str, mark: u8) -> Result<String, UnescapeError> {
    if escaped.as_bytes() == [mark] {
        return Ok(String::new());
    }
    unescape_bytes(escaped.as_bytes(), mark)
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| UnescapeError {
            input: escaped.to_owned(),
        })
}

/// None when an escape is cut or not hex.
fn unescape_bytes(mut rest: &[u8], mark: u8) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(rest.len());
    while let [byte, tail @ ..] = rest {
        if *byte == mark {
            let ([high, low], tail) = tail.split_first_chunk()?;
            name.push(hex_digit(*high)? << 4 | hex_digit(*low)?);
            rest = tail;
        } else {
            name.push(*byte);
            rest = tail;
        }
    }
    Some(name)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_and_non_ascii_names_stay_readable() {
        assert_eq!(escape_token("users"), "users");
        assert_eq!(escape_token("größe_表"), "größe_表");
    }

    #[test]
    fn what_means_something_to_nats_is_escaped() {
        assert_eq!(escape_token("a.b c*>%\n\u{7f}"), "a%2Eb%20c%2A%3E%25%0A%7F");
        assert_eq!(escape_token(""), "%");
    }

    #[test]
    fn keys_hold_only_what_kv_allows() {
        assert_eq!(escape_key("Order Items"), "Order=20Items");
        assert_eq!(escape_key("a.b"), "a=2Eb");
        assert_eq!(escape_key("é"), "=C3=A9");
        assert_eq!(escape_key(""), "=");
    }

    #[test]
    fn a_cut_escape_is_an_error() {
        for token in ["%2", "a%", "%GG", "%+1", "%FF"] {
            assert!(unescape_token(token).is_err(), "{token:?}");
        }
    }

    proptest! {
        #[test]
        fn a_token_is_one_token_and_reversible(name: String) {
            let token = escape_token(&name);

            prop_assert!(!token.is_empty());
            prop_assert!(!token.contains(['.', '*', '>', ' ']));
            prop_assert!(!token.bytes().any(|byte| byte.is_ascii_control()));
            prop_assert_eq!(unescape_token(&token), Ok(name));
        }

        #[test]
        fn a_key_part_is_allowed_and_reversible(name: String) {
            let part = escape_key(&name);

            let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_=".contains(&byte);
            prop_assert!(!part.is_empty() && part.bytes().all(is_allowed));
            prop_assert_eq!(unescape_key(&part), Ok(name));
        }

        #[test]
        fn any_token_is_read_without_panic(token: String) {
            let _ = unescape_token(&token);
            let _ = unescape_key(&token);
        }
    }
}
