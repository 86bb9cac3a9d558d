//! The shape of a table, as far as a write needs it.
//!
//! In: a session. Out: columns with their types, and the primary key.
//! Invariant: nothing here is from a client; types and names may stand in SQL text (quoted).

use tokio_postgres::{Client, Error};
use uuid::Uuid;

/// A table. One that does not exist has no columns: PostgreSQL will say so to the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// In the order of the table.
    pub columns: Vec<Column>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// `format_type` without the type's modifier: `numeric` of a `numeric(10,2)`. The column's own is applied when the
    /// row is written, as it is then; a cast to it would round a key, and go on with one that was altered.
    pub data_type: String,
    /// Place in the primary key, from 1; 0 when not part of it.
    pub key_place: i32,
    /// How two texts of the type compare.
    pub kind: Kind,
}

/// What is known about a type's text form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// int2, int4, int8.
    Integer,
    /// uuid.
    Uuid,
    /// text, varchar: equal texts are equal values.
    Text,
    /// Two texts may be one value.
    Other,
}

impl Table {
    /// Reads the shape; a few hundred microseconds.
    pub async fn load(client: &Client, schema: &str, name: &str) -> Result<Self, Error> {
        let rows = client.query(SHAPE, &[&schema, &name]).await?;
        let columns = rows
            .iter()
            .map(|row| Column {
                name: row.get(0),
                data_type: row.get(1),
                key_place: row.get(2),
                kind: match row.get(3) {
                    "int2" | "int4" | "int8" => Kind::Integer,
                    "uuid" => Kind::Uuid,
                    "text" | "varchar" => Kind::Text,
                    _ => Kind::Other,
                },
            })
            .collect();
        Ok(Self {
            schema: schema.to_owned(),
            name: name.to_owned(),
            columns,
        })
    }

    /// A column by name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The columns of the primary key in key order; none without one.
    pub fn key(&self) -> Vec<&Column> {
        let mut key: Vec<_> = self
            .columns
            .iter()
            .filter(|column| column.key_place != 0)
            .collect();
        key.sort_by_key(|column| column.key_place);
        key
    }

    /// `"schema"."name"`.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }
}

impl Kind {
    /// One text for each value, where that is known; the text as it is otherwise.
    pub fn canonical(self, text: &str) -> String {
        match self {
            Self::Integer => text
                .trim()
                .parse::<i64>()
                .map_or_else(|_| text.to_owned(), |number| number.to_string()),
            Self::Uuid => Uuid::parse_str(text.trim())
                .map_or_else(|_| text.to_owned(), |uuid| uuid.to_string()),
            Self::Text | Self::Other => text.to_owned(),
        }
    }
}

/// A name as SQL takes any name.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

const SHAPE: &str = "
    SELECT a.attname::text, format_type(a.atttypid, -1),
           coalesce(array_position(key.indkey::smallint[], a.attnum) + 1, 0)::integer,
           type.typname::text
    FROM pg_class AS class
    JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
    JOIN pg_attribute AS a
        ON a.attrelid = class.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type AS type ON type.oid = a.atttypid
    LEFT JOIN pg_index AS key ON key.indrelid = class.oid AND key.indisprimary
    WHERE namespace.nspname = $1 AND class.relname = $2
    ORDER BY a.attnum";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_has_one_text() {
        assert_eq!(Kind::Integer.canonical("007"), "7");
        assert_eq!(Kind::Integer.canonical("seven"), "seven");
        assert_eq!(
            Kind::Uuid.canonical("0191D2A07B7A7CC38E6B000000000001"),
            "0191d2a0-7b7a-7cc3-8e6b-000000000001"
        );
        assert_eq!(Kind::Text.canonical("007"), "007");
    }

    #[test]
    fn a_quote_in_a_name_cannot_end_the_name() {
        assert_eq!(quote("a\"; DROP"), "\"a\"\"; DROP\"");
    }
}
