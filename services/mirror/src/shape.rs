//! The local table that a schema describes.
//!
//! In: a schema from bucket `schemas`, and the columns that the rows carry. Out: the columns, how a
//! row is found again, and the statements for it.
//! Invariant: every name in a statement is quoted; every value is a parameter.

use std::collections::HashSet;

use wire::schema::{ReplicaIdentity, Schema};

use crate::table::quoted;
use crate::value::Kind;

/// A local table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    pub columns: Vec<Column>,
    pub key: Key,
    pub insert: String,
    /// Sets every column of the row with the key; None without a key of columns.
    pub update: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub kind: Kind,
}

/// How an UPDATE or DELETE finds its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// By these columns, given as indexes.
    Columns(Vec<usize>),
    /// Replica identity FULL and no primary key: any one row that equals the old one.
    WholeRow,
    /// PostgreSQL refuses UPDATE and DELETE on such a table while it is published.
    None,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "columns {0:?} and {1:?} would be one in SQLite, whose names ignore case; rename one of them"
    )]
    Collision(String, String),
    #[error("no column of the table is published, and SQLite has no table without columns")]
    NoColumns,
    #[error(
        "the columns are named rowid, oid and _rowid_, so SQLite cannot name its rows; rename one of them"
    )]
    NoRowId,
}

impl Shape {
    /// `schema` holds only columns that the rows carry, see [`published`]. `local` names the table.
    pub fn new(schema: &Schema, local: &str) -> Result<Self, Error> {
        let mut taken = HashSet::new();
        for column in &schema.columns {
            if !taken.insert(column.name.to_ascii_lowercase()) {
                let first = schema.columns.iter().map(|other| &other.name);
                let first = first
                    .clone()
                    .find(|other| other.eq_ignore_ascii_case(&column.name));
                let first = first.cloned().unwrap_or_default();
                return Err(Error::Collision(first, column.name.clone()));
            }
        }
        if schema.columns.is_empty() {
            return Err(Error::NoColumns);
        }
        let columns: Vec<Column> = schema
            .columns
            .iter()
            .map(|column| Column {
                name: column.name.clone(),
                kind: Kind::of(column),
            })
            .collect();
        let key = key(schema);
        if key == Key::WholeRow {
            row_id(&columns)?;
        }
        let (insert, update) = statements(local, &columns, &key);
        Ok(Self {
            columns,
            key,
            insert,
            update,
        })
    }

    /// The index of a column. `hint` is where it is when rows come in the table's order.
    pub fn index_of(&self, name: &str, hint: usize) -> Option<usize> {
        if self
            .columns
            .get(hint)
            .is_some_and(|column| column.name == name)
        {
            return Some(hint);
        }
        self.columns.iter().position(|column| column.name == name)
    }

    /// True when the text of a chunk is not enough, see [`Kind::Typed`].
    pub fn needs_typed_rows(&self) -> bool {
        self.columns.iter().any(|column| column.kind == Kind::Typed)
    }

    /// Finds one row by these columns' values, as a condition with `?` in their order.
    pub fn condition(&self, local: &str, indexes: impl Iterator<Item = usize>) -> String {
        // `IS` also compares NULL, which only a whole row has.
        let terms: Vec<String> = indexes
            .map(|index| format!("{} IS ?", quoted(&self.columns[index].name)))
            .collect();
        let terms = terms.join(" AND ");
        match &self.key {
            Key::Columns(_) | Key::None => terms,
            Key::WholeRow => {
                let row_id = row_id(&self.columns).unwrap_or("rowid");
                format!(
                    "{row_id} = (SELECT {row_id} FROM {} WHERE {terms} LIMIT 1)",
                    quoted(local)
                )
            }
        }
    }
}

/// `schema` with the columns named in `names` alone, in its own order. A key of which a column is
/// missing is none.
pub fn published(schema: &Schema, names: &[String]) -> Schema {
    let mut schema = schema.clone();
    schema.columns.retain(|column| names.contains(&column.name));
    if !schema.primary_key.iter().all(|name| names.contains(name)) {
        schema.primary_key.clear();
    }
    schema
}

/// `CREATE TABLE`, STRICT. NOT NULL, defaults and foreign keys are left to PostgreSQL, which has
/// checked each row already and may drop them without a row changing.
pub fn create(schema: &Schema, local: &str) -> String {
    let mut parts: Vec<String> = schema
        .columns
        .iter()
        .map(|column| {
            format!(
                "{} {}",
                quoted(&column.name),
                Kind::of(column).sqlite_type()
            )
        })
        .collect();
    let list = |names: &[String]| {
        let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        names.join(", ")
    };
    if !schema.primary_key.is_empty() {
        parts.push(format!("PRIMARY KEY ({})", list(&schema.primary_key)));
    }
    let by_index = schema.replica_identity == ReplicaIdentity::Index;
    if by_index
        && schema.identity_columns != schema.primary_key
        && !schema.identity_columns.is_empty()
    {
        parts.push(format!("UNIQUE ({})", list(&schema.identity_columns)));
    }
    format!(
        "CREATE TABLE {} ({}) STRICT",
        quoted(local),
        parts.join(", ")
    )
}

fn key(schema: &Schema) -> Key {
    let names = match schema.replica_identity {
        ReplicaIdentity::Default | ReplicaIdentity::Full => &schema.primary_key,
        ReplicaIdentity::Index => &schema.identity_columns,
        ReplicaIdentity::Nothing => return Key::None,
    };
    let indexes: Option<Vec<usize>> = names
        .iter()
        .map(|name| {
            schema
                .columns
                .iter()
                .position(|column| column.name == *name)
        })
        .collect();
    match indexes {
        Some(indexes) if !indexes.is_empty() => Key::Columns(indexes),
        _ if schema.replica_identity == ReplicaIdentity::Full => Key::WholeRow,
        _ => Key::None,
    }
}

fn statements(local: &str, columns: &[Column], key: &Key) -> (String, Option<String>) {
    let table = quoted(local);
    let names: Vec<String> = columns.iter().map(|column| quoted(&column.name)).collect();
    let marks = vec!["?"; columns.len()].join(", ");
    let insert = format!(
        "INSERT INTO {table} ({}) VALUES ({marks})",
        names.join(", ")
    );
    let update = match key {
        Key::Columns(indexes) => {
            let condition: Vec<String> = indexes
                .iter()
                .map(|index| format!("{} IS ?", names[*index]))
                .collect();
            Some(format!(
                "UPDATE {table} SET {} = ? WHERE {}",
                names.join(" = ?, "),
                condition.join(" AND ")
            ))
        }
        Key::WholeRow | Key::None => None,
    };
    (insert, update)
}

/// A name of SQLite's row number that no column hides.
fn row_id(columns: &[Column]) -> Result<&'static str, Error> {
    let is_free = |name: &&str| {
        !columns
            .iter()
            .any(|column| column.name.eq_ignore_ascii_case(name))
    };
    ["rowid", "_rowid_", "oid"]
        .into_iter()
        .find(is_free)
        .ok_or(Error::NoRowId)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::schema;

    #[test]
    fn names_are_quoted_and_types_are_strict() {
        let schema = schema(1, &[(1, "id", "integer"), (2, "o\"dd", "text")], &["id"]);

        assert_eq!(
            create(&schema, "my table"),
            "CREATE TABLE \"my table\" (\"id\" INTEGER, \"o\"\"dd\" TEXT, PRIMARY KEY (\"id\")) STRICT"
        );
    }

    #[test]
    fn columns_that_differ_by_case_only_are_refused() {
        let schema = schema(1, &[(1, "id", "integer"), (2, "ID", "text")], &["id"]);

        assert_eq!(
            Shape::new(&schema, "t"),
            Err(Error::Collision("id".to_owned(), "ID".to_owned()))
        );
    }

    #[test]
    fn a_row_without_a_key_is_found_by_all_its_values_and_only_once() {
        let mut schema = schema(1, &[(1, "rowid", "integer"), (2, "b", "text")], &[]);
        schema.replica_identity = ReplicaIdentity::Full;

        let shape = Shape::new(&schema, "t").unwrap();

        assert_eq!(shape.key, Key::WholeRow);
        assert_eq!(
            shape.condition("t", 0..2),
            "_rowid_ = (SELECT _rowid_ FROM \"t\" WHERE \"rowid\" IS ? AND \"b\" IS ? LIMIT 1)"
        );
    }

    #[test]
    fn the_primary_key_finds_a_row_also_under_full() {
        let mut schema = schema(1, &[(1, "a", "text"), (2, "b", "text")], &["b"]);
        schema.replica_identity = ReplicaIdentity::Full;

        assert_eq!(Shape::new(&schema, "t").unwrap().key, Key::Columns(vec![1]));
    }

    #[test]
    fn a_key_that_is_not_published_is_none() {
        let schema = schema(1, &[(1, "id", "integer"), (2, "b", "text")], &["id"]);

        let schema = published(&schema, &["b".to_owned()]);

        assert_eq!(Shape::new(&schema, "t").unwrap().key, Key::None);
    }
}
