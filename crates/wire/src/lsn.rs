//! A WAL location as PostgreSQL prints it.
//!
//! In: the u64 of the replication protocol, or text. Out: the other one.
//! Invariant: text and number carry the same order and the same 64 bits.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// A WAL location (`pg_lsn`). Text form: `0/25CB3C8`, two halves in upper-case hex; serialised as
/// that text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// `input` is not a WAL location: two hex numbers of 1 to 8 digits around one slash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not an LSN; expected the form 0/25CB3C8")]
pub struct ParseError {
    /// What was given.
    pub input: String,
}

impl Lsn {
    /// `InvalidXLogRecPtr`: no location. Sorts before every real one.
    pub const INVALID: Self = Self(0);

    /// Bytes of the longest text, `FFFFFFFF/FFFFFFFF`.
    pub const TEXT_BYTES_MAX: usize = 17;

    /// True for every LSN but [`Lsn::INVALID`].
    pub fn is_valid(self) -> bool {
        self != Self::INVALID
    }

    /// The text as ASCII bytes in the caller's buffer: for encoders, which must know its length
    /// before they write it and may not allocate.
    pub fn text(self, buffer: &mut [u8; Self::TEXT_BYTES_MAX]) -> &[u8] {
        let mut start = write_hex_backwards(self.0 & 0xFFFF_FFFF, buffer, Self::TEXT_BYTES_MAX);
        start -= 1;
        buffer[start] = b'/';
        start = write_hex_backwards(self.0 >> 32, buffer, start);
        &buffer[start..]
    }
}

/// Writes `number` so that it ends before `end`; returns where it starts. At most 8 digits.
fn write_hex_backwards(mut number: u64, buffer: &mut [u8], end: usize) -> usize {
    let mut start = end;
    loop {
        start -= 1;
        buffer[start] = b"0123456789ABCDEF"[(number & 0xF) as usize];
        number >>= 4;
        if number == 0 {
            return start;
        }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseError {
                input: text.to_owned(),
            })
    }
}

/// One half of the text. `from_str_radix` alone would take a sign.
fn half(digits: &str) -> Option<u64> {
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_hex && (1..=8).contains(&digits.len()))
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText("an LSN such as 0/25CB3C8", |text| {
            text.parse().ok()
        }))
    }
}

/// Reads a value from its text form, without a copy of the text.
pub(crate) struct FromText<T>(pub &'static str, pub fn(&str) -> Option<T>);

impl<T> Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_is_what_postgresql_prints() {
        assert_eq!(Lsn(0x25C_B3C8).to_string(), "0/25CB3C8");
        assert_eq!(Lsn(0x1_0000_00FF).to_string(), "1/FF");
        assert_eq!(Lsn(u64::MAX).to_string(), "FFFFFFFF/FFFFFFFF");
        assert_eq!(Lsn::INVALID.to_string(), "0/0");
    }

    #[test]
    fn lower_case_is_accepted() {
        assert_eq!("0/25cb3c8".parse(), Ok(Lsn(0x25C_B3C8)));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "/",
            "0",
            "0/",
            "/0",
            "0/+1",
            "-0/1",
            "0/1/2",
            "0/123456789",
            "0/G",
            " 0/1",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn text_and_number_round_trip(number: u64) {
            let lsn = Lsn(number);
            let mut buffer = [0; Lsn::TEXT_BYTES_MAX];
            let text = lsn.to_string();

            prop_assert_eq!(lsn.text(&mut buffer), text.as_bytes());
            prop_assert_eq!(text.parse(), Ok(lsn));
        }

        #[test]
        fn any_text_is_read_without_panic(text: String) {
            let _ = text.parse::<Lsn>();
        }
    }
}
