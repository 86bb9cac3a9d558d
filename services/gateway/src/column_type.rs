//! What a column's type accepts.
//!
//! In: the type as the schema names it (`numeric(10,2)`, `text[]`), and a JSON value as it was sent. Out: the value as the
//! command carries it, or what is wrong with it. What must hold: what PostgreSQL's input function would refuse for its
//! form is refused here, and no digit of a number is lost.
//!
//! The form only: whether a value violates a constraint is PostgreSQL's to say. Types not known here take any text.

use serde_json::value::RawValue;
use serde_json::{Number, Value};
use uuid::Uuid;

use crate::date;

/// A type, as far as its values can be checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnType<'a> {
    /// smallint, integer, bigint: a JSON integer, or the same as text.
    Integer {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// numeric: a JSON number, or the same as text. Carried as text.
    Numeric,
    /// real, double precision.
    Float,
    /// boolean.
    Boolean,
    /// text and the character types; the limit of `varchar(n)` in characters.
    Text {
        /// n.
        chars_max: Option<usize>,
    },
    /// uuid.
    Uuid,
    /// date, as ISO 8601.
    Date,
    /// timestamp with or without time zone, as ISO 8601.
    Timestamp,
    /// time with or without time zone, as ISO 8601.
    Time,
    /// json, jsonb: any JSON value.
    Json,
    /// bytea: `\x` and hex digits.
    Bytes,
    /// An enum's label.
    Enum(&'a [String]),
    /// An array: a JSON array. Carried as PostgreSQL's array literal.
    Array(Box<Self>),
    /// Anything else, as PostgreSQL's text.
    Other,
}

impl<'a> ColumnType<'a> {
    /// The type that `format_type` printed as `data_type`; `labels` are those of an enum, or of an array of them.
    pub fn new(data_type: &str, labels: &'a [String]) -> Self {
        if let Some(element) = data_type.strip_suffix("[]") {
            return Self::Array(Box::new(Self::new(element, labels)));
        }
        let (name, modifier) = match data_type.split_once('(') {
            Some((name, rest)) => (name, rest.split(')').next().and_then(|n| n.parse().ok())),
            None => (data_type, None),
        };
        match name {
            "smallint" => Self::Integer {
                min: i16::MIN.into(),
                max: i16::MAX.into(),
            },
            "integer" => Self::Integer {
                min: i32::MIN.into(),
                max: i32::MAX.into(),
            },
            "bigint" => Self::Integer {
                min: i64::MIN,
                max: i64::MAX,
            },
            "oid" => Self::Integer {
                min: 0,
                max: u32::MAX.into(),
            },
            "numeric" => Self::Numeric,
            "real" | "double precision" => Self::Float,
            "boolean" => Self::Boolean,
            "text" | "citext" | "name" => Self::Text { chars_max: None },
            "character varying" | "character" => Self::Text {
                chars_max: modifier,
            },
            "uuid" => Self::Uuid,
            "date" => Self::Date,
            "json" | "jsonb" => Self::Json,
            "bytea" => Self::Bytes,
            // `timestamp(3) with time zone` has its modifier in the middle.
            _ if name.starts_with("timestamp") => Self::Timestamp,
            _ if name.starts_with("time") => Self::Time,
            _ if !labels.is_empty() => Self::Enum(labels),
            _ => Self::Other,
        }
    }

    /// The value as the command carries it. `raw` is not null, unless JSON null stands for a value (json, jsonb).
    pub fn accept(&self, raw: &RawValue) -> Result<Value, String> {
        let is_number = raw
            .get()
            .starts_with(|first: char| first == '-' || first.is_ascii_digit());
        if is_number && *self != Self::Json {
            // As it was written: 1.10 and 20 digits stay what they are.
            return self
                .accept_text(raw.get(), false)
                .ok_or_else(|| self.refusal());
        }
        let value: Value = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
        if has_nul(&value) {
            return Err("PostgreSQL cannot store the character U+0000".to_owned());
        }
        match (self, &value) {
            (Self::Json, _) | (Self::Boolean, Value::Bool(_)) => Ok(value),
            (Self::Array(element), Value::Array(_)) => {
                element.array_literal(raw).map(Value::String)
            }
            // PostgreSQL's own literal.
            (Self::Array(_), Value::String(text)) if text.starts_with(['{', '[']) => Ok(value),
            (_, Value::String(text)) => self.accept_text(text, true).ok_or_else(|| self.refusal()),
            _ => Err(self.refusal()),
        }
    }

    /// `text` is a string's content or a number as it was written; None when it does not fit.
    pub fn accept_text(&self, text: &str, is_text: bool) -> Option<Value> {
        let as_text = |fits: bool| (is_text && fits).then(|| Value::String(text.to_owned()));
        match self {
            Self::Integer { min, max } => {
                // JSON Schema: 7.0 is an integer too.
                let whole = text
                    .split_once('.')
                    .filter(|(_, rest)| rest.bytes().all(|b| b == b'0'));
                let number: i64 = whole.map_or(text, |(whole, _)| whole).parse().ok()?;
                (*min <= number && number <= *max).then(|| number.into())
            }
            Self::Numeric => {
                let fits = is_decimal(text) || (is_text && is_special_float(text));
                fits.then(|| Value::String(text.to_owned()))
            }
            Self::Float if is_text && is_special_float(text) => as_text(true),
            Self::Float => {
                let number: f64 = text.parse().ok().filter(|_| is_decimal(text))?;
                Number::from_f64(number).map(Value::Number)
            }
            Self::Boolean | Self::Json | Self::Array(_) => None,
            Self::Text { chars_max } => {
                as_text(chars_max.is_none_or(|chars_max| text.chars().count() <= chars_max))
            }
            Self::Uuid => as_text(Uuid::try_parse(text).is_ok()),
            Self::Date => as_text(date::is_date(text)),
            Self::Timestamp => as_text(date::is_timestamp(text)),
            Self::Time => as_text(date::is_time(text)),
            Self::Bytes => as_text(is_hex(text)),
            Self::Enum(labels) => as_text(labels.iter().any(|label| label == text)),
            Self::Other => Some(Value::String(text.to_owned())),
        }
    }

    fn refusal(&self) -> String {
        let expected = match self {
            Self::Integer { min, max } => format!("an integer from {min} to {max}"),
            Self::Numeric => "a number, or a number as text".to_owned(),
            Self::Float => "a number that a double can hold, \"NaN\" or \"Infinity\"".to_owned(),
            Self::Boolean => "true or false".to_owned(),
            Self::Text { chars_max: None } => "text".to_owned(),
            Self::Text {
                chars_max: Some(max),
            } => format!("text of at most {max} characters"),
            Self::Uuid => "a UUID".to_owned(),
            Self::Date => "an ISO 8601 date, such as 2025-12-31".to_owned(),
            Self::Timestamp => "an ISO 8601 time, such as 2025-12-31T23:59:59Z".to_owned(),
            Self::Time => "an ISO 8601 time of day, such as 23:59:59".to_owned(),
            Self::Json => "JSON".to_owned(),
            Self::Bytes => "text of \\x and hex digits".to_owned(),
            Self::Enum(labels) => format!("one of {}", labels.join(", ")),
            Self::Array(_) => "an array".to_owned(),
            Self::Other => "text in PostgreSQL's form".to_owned(),
        };
        format!("must be {expected}")
    }

    /// `raw` is a JSON array of elements of this type, or of arrays of them.
    fn array_literal(&self, raw: &RawValue) -> Result<String, String> {
        let elements: Vec<&RawValue> =
            serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
        let mut literals = Vec::with_capacity(elements.len());
        for (index, element) in elements.into_iter().enumerate() {
            let literal = match element.get().as_bytes().first() {
                Some(b'[') if *self != Self::Json => self.array_literal(element),
                _ if element.get() == "null" => Ok("NULL".to_owned()),
                _ => self.accept(element).map(|value| element_literal(&value)),
            };
            literals.push(literal.map_err(|error| format!("element {index} {error}"))?);
        }
        Ok(format!("{{{}}}", literals.join(",")))
    }
}

/// An element of an array literal: always quoted where it could be mistaken for syntax.
fn element_literal(value: &Value) -> String {
    let text = match value {
        Value::Number(number) => return number.to_string(),
        Value::Bool(value) => return value.to_string(),
        Value::String(text) => text.clone(),
        Value::Null | Value::Array(_) | Value::Object(_) => value.to_string(),
    };
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(map) => map
            .iter()
            .any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// `[+-]digits[.digits][e[+-]digits]` with a digit on one side of the point.
fn is_decimal(text: &str) -> bool {
    let unsigned = |text: &str| text.strip_prefix(['+', '-']).unwrap_or(text).to_owned();
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let text = unsigned(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(unsigned(exponent))),
        None => (text.as_str(), None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    digits(whole)
        && digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|exponent| !exponent.is_empty() && digits(&exponent))
}

fn is_special_float(text: &str) -> bool {
    matches!(text, "NaN" | "Infinity" | "-Infinity")
}

fn is_hex(text: &str) -> bool {
    text.strip_prefix("\\x").is_some_and(|digits| {
        digits.len().is_multiple_of(2) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn accept(data_type: &str, json: &str) -> Result<Value, String> {
        let labels = if data_type.starts_with("mood") {
            ["sad".to_owned(), "ok".to_owned()].to_vec()
        } else {
            Vec::new()
        };
        let raw: &RawValue = serde_json::from_str(json).unwrap();
        ColumnType::new(data_type, &labels).accept(raw)
    }

    #[test]
    fn values_that_fit_are_taken() {
        for (data_type, sent, carried) in [
            ("smallint", "-32768", json!(-32768)),
            ("integer", "\"42\"", json!(42)),
            ("integer", "-7.0", json!(-7)),
            ("bigint", "9223372036854775807", json!(i64::MAX)),
            ("numeric(10,2)", "19.90", json!("19.90")),
            (
                "numeric",
                "\"12345678901234567890.123456789\"",
                json!("12345678901234567890.123456789"),
            ),
            ("numeric", "1e400", json!("1e400")),
            ("numeric", "\"NaN\"", json!("NaN")),
            ("real", "1.5", json!(1.5)),
            ("double precision", "\"-Infinity\"", json!("-Infinity")),
            ("boolean", "false", json!(false)),
            ("text", "\"\"", json!("")),
            ("character varying(3)", "\"äöü\"", json!("äöü")),
            (
                "uuid",
                "\"0191d2a0-7b7a-7cc3-8e6b-000000000001\"",
                json!("0191d2a0-7b7a-7cc3-8e6b-000000000001"),
            ),
            ("date", "\"2024-02-29\"", json!("2024-02-29")),
            (
                "timestamp(3) with time zone",
                "\"2025-12-31T23:59:59.5Z\"",
                json!("2025-12-31T23:59:59.5Z"),
            ),
            ("time without time zone", "\"23:59\"", json!("23:59")),
            ("jsonb", "{\"a\":[1,null]}", json!({"a": [1, null]})),
            ("jsonb", "\"text\"", json!("text")),
            ("bytea", "\"\\\\x0aFF\"", json!("\\x0aFF")),
            ("mood", "\"ok\"", json!("ok")),
            ("inet", "\"10.0.0.1/8\"", json!("10.0.0.1/8")),
        ] {
            assert_eq!(accept(data_type, sent), Ok(carried), "{data_type} {sent}");
        }
    }

    #[test]
    fn values_that_do_not_fit_are_refused() {
        for (data_type, sent) in [
            ("smallint", "32768"),
            ("integer", "1.5"),
            ("integer", "1e3"),
            ("integer", "true"),
            ("bigint", "9223372036854775808"),
            ("numeric", "\"1,5\""),
            ("numeric", "\".\""),
            ("numeric", "\"0x10\""),
            ("real", "1e999"),
            ("real", "\"inf\""),
            ("boolean", "\"true\""),
            ("boolean", "1"),
            ("text", "1"),
            ("text", "\"a\\u0000b\""),
            ("character varying(3)", "\"abcd\""),
            ("uuid", "\"not-a-uuid\""),
            ("date", "\"2025-02-29\""),
            ("timestamp with time zone", "\"now\""),
            ("jsonb", "{\"a\":\"\\u0000\"}"),
            ("bytea", "\"\\\\x0\""),
            ("mood", "\"glad\""),
            ("inet", "[]"),
            ("integer[]", "[1,\"x\"]"),
            ("integer[]", "1"),
        ] {
            assert!(accept(data_type, sent).is_err(), "{data_type} {sent}");
        }
    }

    #[test]
    fn arrays_become_array_literals() {
        for (data_type, sent, carried) in [
            ("integer[]", "[1, null, [2]]", "{1,NULL,{2}}"),
            (
                "text[]",
                r#"["a,b", "c\"d\\", "NULL", ""]"#,
                r#"{"a,b","c\"d\\","NULL",""}"#,
            ),
            ("numeric(5,2)[]", "[1.10]", "{\"1.10\"}"),
            ("boolean[]", "[true]", "{true}"),
            (
                "jsonb[]",
                "[[1], {\"a\": \"b\"}]",
                r#"{"[1]","{\"a\":\"b\"}"}"#,
            ),
            ("mood[]", "[\"sad\"]", "{\"sad\"}"),
            ("integer[]", "[]", "{}"),
            ("integer[]", "\"{1,2}\"", "{1,2}"),
        ] {
            assert_eq!(
                accept(data_type, sent),
                Ok(json!(carried)),
                "{data_type} {sent}"
            );
        }
    }

    #[test]
    fn a_refusal_says_what_is_wanted() {
        assert_eq!(accept("mood", "1").unwrap_err(), "must be one of sad, ok");
        assert_eq!(
            accept("integer[]", "[1,\"x\"]").unwrap_err(),
            "element 1 must be an integer from -2147483648 to 2147483647"
        );
    }
}
