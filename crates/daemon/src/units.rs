//! Reads sizes and durations as people write them in flags.
//!
//! In: `8MiB`, `500ms`. Out: bytes, a `Duration`. What must hold: nothing is guessed. A number without a unit is bytes
//! where bytes are asked for, and an error where a duration is.
//!
//! Ours instead of two more dependencies; the functions fit clap's `value_parser`.

use std::time::Duration;

/// Why a flag's value is not a size or a duration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No digits in front, or something that is not a number.
    #[error("{0:?} does not start with a number; write it like {1}")]
    NoNumber(String, &'static str),
    /// A unit that is not known.
    #[error("{0:?} has no known unit; the units are {1}")]
    Unit(String, &'static str),
    /// More than fits.
    #[error("{0:?} is too large")]
    TooLarge(String),
}

const SIZES: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

const DURATIONS_MS: &[(&str, u64)] = &[
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Bytes: a whole number and a unit (`B kB MB GB TB` are powers of 1000, `KiB MiB GiB TiB` of 1024), or bytes without.
pub fn bytes(text: &str) -> Result<u64, Error> {
    scaled(
        text,
        SIZES,
        "8MiB",
        "B, kB, MB, GB, TB, KiB, MiB, GiB and TiB",
    )
}

/// A duration: a whole number and one of `ms s m h d`. `0` needs no unit.
pub fn duration(text: &str) -> Result<Duration, Error> {
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    scaled(text, DURATIONS_MS, "500ms", "ms, s, m, h and d").map(Duration::from_millis)
}

fn scaled(
    text: &str,
    units: &[(&str, u64)],
    example: &'static str,
    known: &'static str,
) -> Result<u64, Error> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.is_empty() {
        return Err(Error::NoNumber(text.to_owned(), example));
    }
    let number: u64 = digits
        .parse()
        .map_err(|_| Error::TooLarge(text.to_owned()))?;
    let (_, scale) = units
        .iter()
        .find(|(name, _)| *name == unit.trim_start())
        .ok_or_else(|| Error::Unit(text.to_owned(), known))?;
    number
        .checked_mul(*scale)
        .ok_or_else(|| Error::TooLarge(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_both_systems() {
        assert_eq!(bytes("8MiB"), Ok(8 << 20));
        assert_eq!(bytes("256 KiB"), Ok(256 << 10));
        assert_eq!(bytes("512MB"), Ok(512_000_000));
        assert_eq!(bytes(" 4096 "), Ok(4096));
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("7d"), Ok(Duration::from_hours(168)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(matches!(duration("10"), Err(Error::Unit(..))));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_the_remedy() {
        assert_eq!(
            bytes("8 megs").unwrap_err().to_string(),
            "\"8 megs\" has no known unit; the units are B, kB, MB, GB, TB, KiB, MiB, GiB and TiB"
        );
        assert_eq!(
            duration("soon").unwrap_err().to_string(),
            "\"soon\" does not start with a number; write it like 500ms"
        );
        assert_eq!(
            bytes("-1").unwrap_err(),
            Error::NoNumber("-1".to_owned(), "8MiB")
        );
        assert!(
            bytes("1.5GiB")
                .unwrap_err()
                .to_string()
                .contains("no known unit")
        );
    }

    #[test]
    fn overflow_is_an_error_and_not_a_small_number() {
        assert_eq!(
            bytes("99999999999999999999"),
            Err(Error::TooLarge("99999999999999999999".to_owned()))
        );
        assert_eq!(
            bytes("99999999999TiB"),
            Err(Error::TooLarge("99999999999TiB".to_owned()))
        );
    }
}
