//! A request's body, value by value.
//!
//! In: bytes. Out: the members of a JSON object, each value as it was written. What must hold: a name stands there once,
//! so that no reader can take another value than the next one.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A JSON object's members as they were sent, none of them twice.
#[derive(Debug)]
pub struct Sent<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Sent<'a> {
    /// Reads a body; the error is for the client.
    pub fn parse(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// The members in their order.
    pub fn members(&self) -> &[(String, &'a RawValue)] {
        &self.0
    }

    /// The value of one member.
    pub fn value(&self, name: &str) -> Option<&'a RawValue> {
        self.0
            .iter()
            .find(|(sent, _)| sent == name)
            .map(|(_, raw)| *raw)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Sent<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SentVisitor).map(Self)
    }
}

struct SentVisitor;

impl<'de> Visitor<'de> for SentVisitor {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object from column to value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members: Self::Value = Vec::new();
        while let Some((name, raw)) = map.next_entry::<String, &RawValue>()? {
            // PostgreSQL: a table has at most 1600 columns, so this stays short.
            if members.len() == COLUMNS_MAX || members.iter().any(|(seen, _)| *seen == name) {
                let problem = format!("{name:?} is there twice, or there are too many members");
                return Err(serde::de::Error::custom(problem));
            }
            members.push((name, raw));
        }
        Ok(members)
    }
}

const COLUMNS_MAX: usize = 1600;
