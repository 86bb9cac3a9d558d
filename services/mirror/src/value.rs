//! Which SQLite value stands for which PostgreSQL value.
//!
//! In: a column's declared type, and a value from a chunk (text) or an event (typed). Out: the value
//! to store.
//! Invariant: the same PostgreSQL value becomes the same SQLite value, however it came.

use rusqlite::types::Value as Sql;
use wire::Value;
use wire::schema::Column;

/// How a column is kept.
///
/// | PostgreSQL | SQLite, in a STRICT table |
/// |---|---|
/// | boolean | INTEGER 0 or 1 |
/// | smallint, integer, bigint, oid | INTEGER |
/// | real, double precision | ANY: always a REAL, but NaN is the text `NaN` (SQLite has none) |
/// | bytea | BLOB |
/// | a domain, an extension's or a composite type | ANY: as the event carries it |
/// | everything else | TEXT, as PostgreSQL prints it: no digit of a numeric is lost |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Boolean,
    Integer,
    Float,
    Bytes,
    Text,
    /// The base type is not in the schema, so the text of a chunk cannot be told apart: such a
    /// table is seeded from typed rows.
    Typed,
}

/// A value that the column's type cannot have. The value itself is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a value is no {expected:?}")]
pub struct WrongKind {
    pub expected: Kind,
}

/// PostgreSQL: `FirstNormalObjectId`; types from here on are not built in.
const FIRST_USER_OID: u32 = 16_384;

impl Kind {
    pub fn of(column: &Column) -> Self {
        match column.data_type.as_str() {
            "boolean" => Self::Boolean,
            "smallint" | "integer" | "bigint" | "oid" => Self::Integer,
            "real" | "double precision" => Self::Float,
            "bytea" => Self::Bytes,
            other => {
                let is_text = column.type_oid < FIRST_USER_OID
                    || !column.enum_labels.is_empty()
                    || other.ends_with("[]");
                if is_text { Self::Text } else { Self::Typed }
            }
        }
    }

    pub fn sqlite_type(self) -> &'static str {
        match self {
            Self::Boolean | Self::Integer => "INTEGER",
            // A REAL column would store 3.0 as an integer, -0.0 as 0.0, and NaN not at all.
            Self::Float | Self::Typed => "ANY",
            Self::Bytes => "BLOB",
            Self::Text => "TEXT",
        }
    }

    /// The value to store.
    pub fn sql(self, value: &Value) -> Result<Sql, WrongKind> {
        let wrong = WrongKind { expected: self };
        Ok(match (self, value) {
            (_, Value::Null) => Sql::Null,
            (Self::Boolean, Value::Text(text)) => Sql::Integer(boolean(text).ok_or(wrong)?),
            (Self::Boolean | Self::Typed, Value::Bool(value)) => Sql::Integer(i64::from(*value)),
            (Self::Integer | Self::Typed, Value::Int(value)) => Sql::Integer(*value),
            (Self::Integer, Value::Text(text)) => Sql::Integer(text.parse().map_err(|_| wrong)?),
            (Self::Float, Value::Text(text)) => real(text.parse().map_err(|_| wrong)?),
            (Self::Float | Self::Typed, Value::Float(value)) => real(*value),
            // A JSON writer may print 3.0 as 3.
            (Self::Float, Value::Int(value)) => real(*value as f64),
            (Self::Bytes, Value::Text(text)) => Sql::Blob(unhex(text).ok_or(wrong)?),
            (Self::Bytes | Self::Typed, Value::Bytes(bytes)) => Sql::Blob(bytes.clone()),
            (Self::Text | Self::Typed, Value::Text(text)) => Sql::Text(text.clone()),
            // Text of a SQL_ASCII database that is not UTF-8.
            (Self::Text, Value::Bytes(bytes)) => Sql::Text(format!("\\x{}", hex(bytes))),
            (Self::Boolean | Self::Bytes | Self::Text, Value::Int(_) | Value::Float(_))
            | (Self::Integer, Value::Bool(_) | Value::Float(_) | Value::Bytes(_))
            | (Self::Float, Value::Bool(_) | Value::Bytes(_))
            | (Self::Boolean, Value::Bytes(_))
            | (Self::Bytes | Self::Text, Value::Bool(_)) => return Err(wrong),
        })
    }
}

/// `t` in a row's text, `true` in a cast's.
fn boolean(text: &str) -> Option<i64> {
    match text {
        "t" | "true" => Some(1),
        "f" | "false" => Some(0),
        _ => None,
    }
}

/// SQLite makes NULL of NaN.
fn real(value: f64) -> Sql {
    if value.is_nan() {
        Sql::Text("NaN".to_owned())
    } else {
        Sql::Real(value)
    }
}

/// `bytea_output = hex`.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes = pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    rest.is_empty().then(|| bytes.collect()).flatten()
}

/// Lower-case digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes every write");
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn column(data_type: &str, type_oid: u32) -> Column {
        Column {
            name: "c".to_owned(),
            position: 1,
            data_type: data_type.to_owned(),
            is_nullable: true,
            column_default: None,
            type_oid,
            generated: wire::schema::Generated::Never,
            has_default: false,
            enum_labels: Vec::new(),
            privileges: wire::schema::Privileges::default(),
        }
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn every_type_has_its_kind() {
        assert_eq!(Kind::of(&column("bigint", 20)), Kind::Integer);
        assert_eq!(Kind::of(&column("double precision", 701)), Kind::Float);
        assert_eq!(Kind::of(&column("numeric(10,2)", 1700)), Kind::Text);
        assert_eq!(Kind::of(&column("integer[]", 1007)), Kind::Text);
        assert_eq!(Kind::of(&column("email", 20_000)), Kind::Typed);
        assert_eq!(Kind::of(&column("mood[]", 20_001)), Kind::Text);
        let mut mood = column("mood", 20_002);
        mood.enum_labels = vec!["sad".to_owned()];
        assert_eq!(Kind::of(&mood), Kind::Text);
    }

    #[test]
    fn a_row_of_a_chunk_and_a_row_of_an_event_store_the_same() {
        for (kind, seeded, streamed) in [
            (Kind::Boolean, text("t"), Value::Bool(true)),
            (Kind::Integer, text("-7"), Value::Int(-7)),
            (Kind::Float, text("1.1"), Value::Float(1.1)),
            (Kind::Float, text("NaN"), Value::Float(f64::NAN)),
            (
                Kind::Float,
                text("-Infinity"),
                Value::Float(f64::NEG_INFINITY),
            ),
            (Kind::Bytes, text("\\x00ff"), Value::Bytes(vec![0, 255])),
            (Kind::Text, text("1.10"), text("1.10")),
        ] {
            assert_eq!(kind.sql(&seeded), kind.sql(&streamed), "{kind:?}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        assert!(Kind::Integer.sql(&text("seven")).is_err());
        assert!(Kind::Boolean.sql(&Value::Int(1)).is_err());
        assert!(Kind::Bytes.sql(&text("\\xf")).is_err());
        assert!(Kind::Text.sql(&Value::Int(1)).is_err());
    }

    proptest! {
        #[test]
        fn numbers_and_bytes_survive_their_text(int: i64, float: f64, bytes: Vec<u8>) {
            prop_assert_eq!(Kind::Integer.sql(&text(&int.to_string())), Kind::Integer.sql(&Value::Int(int)));
            prop_assert_eq!(Kind::Float.sql(&text(&float.to_string())), Kind::Float.sql(&Value::Float(float)));
            prop_assert_eq!(Kind::Bytes.sql(&text(&format!("\\x{}", hex(&bytes)))), Kind::Bytes.sql(&Value::Bytes(bytes)));
        }
    }
}
