//! Names a table in the source and in the local file.
//!
//! In: a name from the command line. Out: where its messages are, and what it is called in SQLite.
//! Invariant: two names of the source never become one name here; those that would are refused.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use wire::names::{self, PUBLIC};

/// A table of the source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    pub schema: String,
    pub table: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "{0:?} names no table: users, or sales.orders outside public; write %2E for a dot inside a name"
    )]
    NotAName(String),
    #[error(
        "SQLite keeps names that begin with sqlite_ and _mirror_ to itself: {0:?} cannot be mirrored"
    )]
    Reserved(String),
    #[error(
        "{0} and {1} would be one table in SQLite, whose names ignore case; mirror them into two files"
    )]
    Collision(TableName, TableName),
}

impl TableName {
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            table: table.into(),
        }
    }

    /// What it is called in SQLite: `users`, or `sales.orders` as one name.
    pub fn local(&self) -> String {
        if self.schema == PUBLIC {
            self.table.clone()
        } else {
            format!("{}.{}", self.schema, self.table)
        }
    }

    /// Its key in bucket `schemas`.
    pub fn key(&self) -> String {
        names::schema_key(&self.schema, &self.table)
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.local())
    }
}

impl FromStr for TableName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let not_a_name = || Error::NotAName(text.to_owned());
        let (schema, table) = names::parse_table_path(text).ok_or_else(not_a_name)?;
        let name = Self { schema, table };
        let local = name.local().to_ascii_lowercase();
        if local.starts_with("sqlite_") || local.starts_with("_mirror_") {
            return Err(Error::Reserved(name.local()));
        }
        Ok(name)
    }
}

/// The names without repeats; fails when SQLite could not tell two of them apart.
pub fn distinct(names: &[TableName]) -> Result<Vec<TableName>, Error> {
    let mut taken: HashMap<String, &TableName> = HashMap::new();
    let mut distinct = Vec::new();
    for name in names {
        match taken.insert(name.local().to_ascii_lowercase(), name) {
            None => distinct.push(name.clone()),
            Some(first) if first == name => {}
            Some(first) => return Err(Error::Collision(first.clone(), name.clone())),
        }
    }
    Ok(distinct)
}

/// `name` as an SQL identifier.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> TableName {
        text.parse().unwrap()
    }

    #[test]
    fn a_table_outside_public_carries_its_schema() {
        assert_eq!(name("users").local(), "users");
        assert_eq!(name("public.users"), name("users"));
        assert_eq!(name("sales.orders").local(), "sales.orders");
        assert_eq!(name("a%2Eb"), TableName::new("public", "a.b"));
    }

    #[test]
    fn names_that_sqlite_cannot_hold_are_refused() {
        assert!(matches!(
            "a.b.c".parse::<TableName>(),
            Err(Error::NotAName(_))
        ));
        assert!(matches!(
            "_mirror_tables".parse::<TableName>(),
            Err(Error::Reserved(_))
        ));
        assert!(matches!(
            "sqlite_x".parse::<TableName>(),
            Err(Error::Reserved(_))
        ));
        assert!(matches!(
            distinct(&[name("users"), name("Users")]),
            Err(Error::Collision(..))
        ));
        assert!(matches!(
            distinct(&[name("sales.orders"), name("sales%2Eorders")]),
            Err(Error::Collision(..))
        ));
        assert_eq!(
            distinct(&[name("users"), name("public.users")])
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn a_quote_cannot_end_an_identifier() {
        assert_eq!(quoted("a\"; DROP"), "\"a\"\"; DROP\"");
    }
}
