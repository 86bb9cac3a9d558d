//! A column's value.
//!
//! In: what PostgreSQL sent, already sorted into six kinds. Out: a MessagePack or JSON value.
//! Invariant: MessagePack keeps every bit; JSON keeps everything a JSON reader with 64-bit floats can
//! hold as a number, and the rest as text.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// One value. Which PostgreSQL type takes which kind (domains resolve to their base type):
///
/// | PostgreSQL | here | MessagePack | JSON |
/// |---|---|---|---|
/// | NULL | `Null` | nil | `null` |
/// | bool | `Bool` | bool | `true` |
/// | int2, int4, int8, oid | `Int` | shortest integer | number; text outside +-(2^53 - 1) |
/// | float4, float8 | `Float` | float 64 | number, `-0.0` kept; `"NaN"`, `"Infinity"`, `"-Infinity"` |
/// | bytea | `Bytes` | bin | `"\\x0a0b"` |
/// | everything else | `Text` | str | text, as PostgreSQL prints it |
///
/// A float4 is the f64 nearest to its *text*: `1.1` stays 1.1 and is not 1.10000002384. Text that is
/// not UTF-8 (a SQL_ASCII database) is `Bytes`.
///
/// Text read from JSON stays `Text`, also where it stood for an integer, a float or bytes: what it
/// was is in the schema.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// SQL NULL. Never an unchanged TOAST value: such a column is left out.
    Null,
    /// bool.
    Bool(bool),
    /// int2, int4, int8, oid.
    Int(i64),
    /// float4, float8.
    Float(f64),
    /// PostgreSQL's own text.
    Text(String),
    /// bytea.
    Bytes(Vec<u8>),
}

/// A value and the column it stands in.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Column {
    /// The column's name, as in the catalogue.
    pub name: String,
    /// Its value.
    pub value: Value,
}

/// A row as a map from name to value, in column order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row(pub Vec<Column>);

/// The largest integer that is a number in JSON: `Number.MAX_SAFE_INTEGER`.
pub const JSON_INT_MAX: i64 = (1 << 53) - 1;

impl Column {
    /// A column.
    pub fn new(name: impl Into<String>, value: Value) -> Self {
        Self {
            name: name.into(),
            value,
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let is_json = serializer.is_human_readable();
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) if is_json && !(-JSON_INT_MAX..=JSON_INT_MAX).contains(value) => {
                serializer.collect_str(value)
            }
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::Float(value) if is_json && !value.is_finite() => {
                serializer.serialize_str(non_finite(*value))
            }
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::Bytes(value) if is_json => serializer.collect_str(&Hex(value)),
            Self::Bytes(value) => serializer.serialize_bytes(value),
        }
    }
}

/// As PostgreSQL prints them.
fn non_finite(value: f64) -> &'static str {
    if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

/// `bytea_output = hex`.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\\x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl Visitor<'_> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nil, a bool, a number, text or bytes")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    /// No PostgreSQL integer is beyond i64; another writer's is kept as text.
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or_else(|_| Value::Text(value.to_string()), Value::Int))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_bytes<E: de::Error>(self, value: &[u8]) -> Result<Value, E> {
        Ok(Value::Bytes(value.to_vec()))
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for Column { name, value } in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RowVisitor)
    }
}

struct RowVisitor;

impl<'de> Visitor<'de> for RowVisitor {
    type Value = Row;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from column name to value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
        // No capacity from the size hint: it is the sender's claim.
        let mut row = Row::default();
        while let Some((name, value)) = map.next_entry()? {
            row.0.push(Column { name, value });
        }
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(value: &Value) -> String {
        serde_json::to_string(value).unwrap()
    }

    fn msgpack(value: &Value) -> Vec<u8> {
        rmp_serde::to_vec_named(value).unwrap()
    }

    #[test]
    fn json_keeps_what_its_numbers_cannot_hold_as_text() {
        assert_eq!(json(&Value::Int(JSON_INT_MAX)), "9007199254740991");
        assert_eq!(json(&Value::Int(JSON_INT_MAX + 1)), "\"9007199254740992\"");
        assert_eq!(json(&Value::Int(i64::MIN)), "\"-9223372036854775808\"");
        assert_eq!(json(&Value::Float(f64::NAN)), "\"NaN\"");
        assert_eq!(json(&Value::Float(f64::NEG_INFINITY)), "\"-Infinity\"");
        assert_eq!(json(&Value::Float(-0.0)), "-0.0");
        assert_eq!(json(&Value::Bytes(vec![0, 0xAB])), "\"\\\\x00ab\"");
    }

    #[test]
    fn msgpack_takes_the_shortest_integer_and_always_a_wide_float() {
        assert_eq!(msgpack(&Value::Int(127)), [0x7F]);
        assert_eq!(msgpack(&Value::Int(128)), [0xCC, 0x80]);
        assert_eq!(msgpack(&Value::Int(-32)), [0xE0]);
        assert_eq!(msgpack(&Value::Int(-33)), [0xD0, 0xDF]);
        assert_eq!(
            msgpack(&Value::Float(1.0)),
            [0xCB, 0x3F, 0xF0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            msgpack(&Value::Float(f64::NAN)),
            [0xCB, 0x7F, 0xF8, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(msgpack(&Value::Bytes(vec![7])), [0xC4, 1, 7]);
        assert_eq!(msgpack(&Value::Null), [0xC0]);
    }

    #[test]
    fn a_list_is_no_value() {
        assert!(serde_json::from_str::<Value>("[1]").is_err());
    }

    proptest! {
        #[test]
        fn msgpack_keeps_every_bit(value in values()) {
            let bytes = msgpack(&value);
            let read: Value = rmp_serde::from_slice(&bytes).unwrap();

            // By bytes, because NaN differs from itself.
            prop_assert_eq!(msgpack(&read), bytes);
        }

        #[test]
        fn json_keeps_the_text_of_every_value(value in values()) {
            let text = json(&value);
            let read: Value = serde_json::from_str(&text).unwrap();

            prop_assert_eq!(json(&read), text);
        }
    }

    /// Any value, and often one at an edge.
    pub(crate) fn values() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-70_000_i64..70_000).prop_map(Value::Int),
            any::<f64>().prop_map(Value::Float),
            prop::sample::select(vec![f64::NAN, f64::INFINITY, -0.0]).prop_map(Value::Float),
            any::<String>().prop_map(Value::Text),
            any::<Vec<u8>>().prop_map(Value::Bytes),
        ]
    }
}
