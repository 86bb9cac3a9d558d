//! Which values are more than text, and how PostgreSQL's text of them becomes MessagePack.
//!
//! In: a type's OID and the text of its output function. Out: one MessagePack value.
//! Invariant: a text that is not what its type should print goes out as text, never as a guess.

use super::msgpack;

/// How a column's values are encoded. Everything not named here is PostgreSQL's text, exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bool,
    /// int2, int4, int8, oid.
    Int,
    /// float4, float8.
    Float,
    /// bytea, as `bytea_output = hex` prints it.
    Bytes,
    Text,
}

impl Kind {
    /// The OIDs are those of `pg_type.dat`; they are the same in every cluster.
    pub fn of(type_oid: u32) -> Self {
        match type_oid {
            16 => Self::Bool,
            17 => Self::Bytes,
            20 | 21 | 23 | 26 => Self::Int,
            700 | 701 => Self::Float,
            _ => Self::Text,
        }
    }
}

/// What is known of a row's bytes before its cells are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charset {
    /// All of them are ASCII, so each cell is UTF-8.
    Ascii,
    Unknown,
}

#[inline]
pub fn encode(kind: Kind, text: &[u8], charset: Charset, out: &mut Vec<u8>) {
    match kind {
        Kind::Text => self::text(text, charset, out),
        Kind::Int => match int(text) {
            Some(value) => msgpack::int(out, value),
            None => self::text(text, charset, out),
        },
        Kind::Bool => match text {
            b"t" => msgpack::boolean(out, true),
            b"f" => msgpack::boolean(out, false),
            _ => self::text(text, charset, out),
        },
        Kind::Float => match float(text) {
            Some(value) => msgpack::float(out, value),
            None => self::text(text, charset, out),
        },
        Kind::Bytes => bytes(text, charset, out),
    }
}

/// Text that is not UTF-8 (from a SQL_ASCII database) goes out as bin, so that nothing is lost.
#[inline]
fn text(text: &[u8], charset: Charset, out: &mut Vec<u8>) {
    if charset == Charset::Ascii || std::str::from_utf8(text).is_ok() {
        msgpack::str(out, text);
    } else {
        msgpack::bin(out, text);
    }
}

/// Decimal digits with an optional minus: what the integer types print.
#[inline]
fn int(text: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    // 18 digits cannot overflow; int8 has up to 19 and takes the slow road there.
    if digits.is_empty() || digits.len() > 18 {
        return std::str::from_utf8(text).ok()?.parse().ok();
    }
    let mut value = 0_i64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + i64::from(digit);
    }
    Some(if is_negative { -value } else { value })
}

/// PostgreSQL prints `NaN`, `Infinity` and `-Infinity` where Rust reads the same.
fn float(text: &[u8]) -> Option<f64> {
    let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    // One NaN for all: its sign and payload mean nothing in SQL.
    Some(if value.is_nan() { f64::NAN } else { value })
}

fn bytes(text: &[u8], charset: Charset, out: &mut Vec<u8>) {
    let Some(hex) = text
        .strip_prefix(b"\\x")
        .filter(|hex| hex.len().is_multiple_of(2))
    else {
        return self::text(text, charset, out);
    };
    let start = out.len();
    msgpack::bin_len(out, hex.len() / 2);
    for pair in hex.as_chunks::<2>().0 {
        let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else {
            out.truncate(start);
            return self::text(text, charset, out);
        };
        out.push(high << 4 | low);
    }
}

#[inline]
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}
