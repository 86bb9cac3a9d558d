//! What an event does to the local table.
//!
//! In: an event and the table's shape. Out: one change, its values ready to store.
//! Invariant: a change names its row by the values the source sent and never by a guess; a column that
//! the source did not send is left as it is.

use rusqlite::types::Value as Sql;
use wire::{Column, Event, Operation};

use crate::shape::{Key, Shape};
use crate::value::WrongKind;

/// Values by the index of their column.
pub type Values = Vec<(usize, Sql)>;

#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// One value for each column of the table.
    Insert(Vec<Sql>),
    Update {
        row: Values,
        set: Values,
    },
    Delete {
        row: Values,
    },
    Truncate,
}

/// The event does not fit the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("column {0:?} is not in the local table")]
    UnknownColumn(String),
    #[error("the event lacks key column {0:?}")]
    NoKey(String),
    #[error("the table has no key, so no row can be found")]
    Keyless,
    #[error("column {column:?}")]
    Value {
        column: String,
        #[source]
        source: WrongKind,
    },
}

/// The change.
pub fn plan(shape: &Shape, event: &Event) -> Result<Change, Mismatch> {
    Ok(match event.operation {
        Operation::Insert => Change::Insert(full_row(shape, &event.columns)?),
        Operation::Update => {
            // PostgreSQL: the old row is sent when its identity changed, or under FULL.
            let old = if event.old.is_empty() {
                &event.columns
            } else {
                &event.old
            };
            Change::Update {
                row: row(shape, old, !event.old.is_empty())?,
                set: values(shape, &event.columns)?,
            }
        }
        Operation::Delete => Change::Delete {
            row: row(shape, &event.columns, true)?,
        },
        Operation::Truncate => Change::Truncate,
    })
}

/// One value for each column of the table; NULL where `columns` has none.
pub fn full_row(shape: &Shape, columns: &[Column]) -> Result<Vec<Sql>, Mismatch> {
    let mut row = vec![Sql::Null; shape.columns.len()];
    for (index, value) in values(shape, columns)? {
        row[index] = value;
    }
    Ok(row)
}

/// The values that find the row. `is_old` says that `columns` are the row as it was.
fn row(shape: &Shape, columns: &[Column], is_old: bool) -> Result<Values, Mismatch> {
    match &shape.key {
        Key::Columns(indexes) => indexes
            .iter()
            .map(|&index| {
                let name = &shape.columns[index].name;
                let column = columns.iter().find(|column| column.name == *name);
                let column = column.ok_or_else(|| Mismatch::NoKey(name.clone()))?;
                Ok((index, value(shape, index, column)?))
            })
            .collect(),
        Key::WholeRow if is_old => values(shape, columns),
        Key::WholeRow | Key::None => Err(Mismatch::Keyless),
    }
}

fn values(shape: &Shape, columns: &[Column]) -> Result<Values, Mismatch> {
    columns
        .iter()
        .enumerate()
        .map(|(hint, column)| {
            let index = shape.index_of(&column.name, hint);
            let index = index.ok_or_else(|| Mismatch::UnknownColumn(column.name.clone()))?;
            Ok((index, value(shape, index, column)?))
        })
        .collect()
}

fn value(shape: &Shape, index: usize, column: &Column) -> Result<Sql, Mismatch> {
    let kind = shape.columns[index].kind;
    kind.sql(&column.value).map_err(|source| Mismatch::Value {
        column: column.name.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use wire::schema::ReplicaIdentity;

    use super::*;
    use crate::sample::{event, int, schema};

    fn shape() -> Shape {
        let columns = [
            (1, "id", "integer"),
            (2, "body", "text"),
            (3, "n", "integer"),
        ];
        Shape::new(&schema(1, &columns, &["id"]), "t").unwrap()
    }

    #[test]
    fn an_unchanged_toast_value_is_left_as_it_is() {
        let mut update = event(Operation::Update, vec![int("id", 1), int("n", 5)]);
        update.unchanged = vec!["body".to_owned()];

        let change = plan(&shape(), &update).unwrap();

        assert_eq!(
            change,
            Change::Update {
                row: vec![(0, Sql::Integer(1))],
                set: vec![(0, Sql::Integer(1)), (2, Sql::Integer(5))],
            }
        );
    }

    #[test]
    fn a_changed_key_finds_the_row_by_its_old_one() {
        let mut update = event(Operation::Update, vec![int("id", 2)]);
        update.old = vec![int("id", 1)];

        let change = plan(&shape(), &update).unwrap();

        assert_eq!(
            change,
            Change::Update {
                row: vec![(0, Sql::Integer(1))],
                set: vec![(0, Sql::Integer(2))],
            }
        );
    }

    #[test]
    fn a_full_old_row_is_narrowed_to_the_key() {
        let delete = event(Operation::Delete, vec![int("id", 1), int("n", 5)]);

        let change = plan(&shape(), &delete).unwrap();

        assert_eq!(
            change,
            Change::Delete {
                row: vec![(0, Sql::Integer(1))]
            }
        );
    }

    #[test]
    fn a_row_without_a_key_is_found_by_its_old_values_only() {
        let mut schema = schema(1, &[(1, "a", "integer")], &[]);
        schema.replica_identity = ReplicaIdentity::Full;
        let shape = Shape::new(&schema, "t").unwrap();
        let blind = event(Operation::Update, vec![int("a", 2)]);

        assert_eq!(plan(&shape, &blind), Err(Mismatch::Keyless));
        assert!(plan(&shape, &event(Operation::Delete, vec![int("a", 2)])).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let stranger = event(Operation::Insert, vec![int("id", 1), int("x", 1)]);
        let keyless = event(Operation::Delete, vec![int("n", 1)]);

        assert_eq!(
            plan(&shape(), &stranger),
            Err(Mismatch::UnknownColumn("x".to_owned()))
        );
        assert_eq!(
            plan(&shape(), &keyless),
            Err(Mismatch::NoKey("id".to_owned()))
        );
    }
}
