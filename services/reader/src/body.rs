//! Rows as JSON.
//!
//! In: values as PostgreSQL's text. Out: bytes, in the same forms as events have them, but JSON columns
//! and arrays as JSON.
//! Invariant: no digit is lost: NUMERIC is text, and so is an integer that a JSON reader cannot hold.

use serde_json::Value;
use wire::value::JSON_INT_MAX;

use crate::sql::Kind;

/// Appends `{"id":1,...}`.
pub fn write_row<'a>(
    out: &mut Vec<u8>,
    columns: impl Iterator<Item = (&'a str, Kind, Option<&'a str>)>,
) {
    out.push(b'{');
    for (index, (name, kind, value)) in columns.enumerate() {
        if index != 0 {
            out.push(b',');
        }
        write_text(out, name);
        out.push(b':');
        match value {
            None => out.extend_from_slice(b"null"),
            Some(value) => write_value(out, kind, value),
        }
    }
    out.push(b'}');
}

fn write_value(out: &mut Vec<u8>, kind: Kind, value: &str) {
    let is_plain = match kind {
        Kind::Json => true,
        Kind::Bool => {
            let word: &[u8] = if value == "true" { b"true" } else { b"false" };
            return out.extend_from_slice(word);
        }
        Kind::Integer => value
            .parse::<i64>()
            .is_ok_and(|number| (-JSON_INT_MAX..=JSON_INT_MAX).contains(&number)),
        // PostgreSQL prints floats as JSON takes them, but for NaN and the infinities.
        Kind::Float => !value.ends_with(['N', 'y']),
        Kind::Text => false,
    };
    if is_plain {
        out.extend_from_slice(value.as_bytes());
    } else {
        write_text(out, value);
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(Value::from(text).to_string().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[(&str, Kind, Option<&str>)]) -> String {
        let mut out = Vec::new();
        write_row(&mut out, columns.iter().copied());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_kind_is_valid_json_and_keeps_its_digits() {
        let json = row(&[
            ("a", Kind::Integer, Some("7")),
            ("b", Kind::Integer, Some("9007199254740993")),
            ("c", Kind::Float, Some("1e+300")),
            ("d", Kind::Float, Some("NaN")),
            ("e", Kind::Float, Some("-Infinity")),
            ("f", Kind::Bool, Some("true")),
            ("g", Kind::Json, Some("[1, null]")),
            ("h", Kind::Text, Some("1.10")),
            ("i\"", Kind::Text, None),
        ]);

        let expected = r#"{"a":7,"b":"9007199254740993","c":1e+300,"d":"NaN","e":"-Infinity","f":true,"g":[1, null],"h":"1.10","i\"":null}"#;
        assert_eq!(json, expected);
        serde_json::from_str::<Value>(&json).unwrap();
    }
}
