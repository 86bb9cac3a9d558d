//! Percent-decoding, for query strings and for the user part of URLs.

/// `text` with every `%XX` replaced. A `%` that is not followed by two hex digits stays, and bytes that are not UTF-8
/// become U+FFFD: the caller compares or looks up the result, and an odd text then simply matches nothing.
pub fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = match tail {
            [high, low, ..] if first == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = escaped {
            bytes.push(high << 4 | low);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn escapes_are_replaced_and_halves_of_them_kept() {
        assert_eq!(decode("a%20b%2fc"), "a b/c");
        assert_eq!(decode("100%"), "100%");
        assert_eq!(decode("%4"), "%4");
        assert_eq!(decode("%zz%41"), "%zzA");
        assert_eq!(decode("caf%C3%A9 %FF"), "café \u{FFFD}");
    }
}
