//! One change of one row, as SQL.
//!
//! In: a change, the table's shape. Out: the row changed, or the word that the rows here are not those
//! of the source.
//! Invariant: strict: an INSERT finds nothing there, an UPDATE or DELETE exactly one row.

use rusqlite::{Connection, params_from_iter};

use super::Table;
use crate::change::{Change, Mismatch, Values};
use crate::schema_change::Step;
use crate::table::quoted;
use crate::value::Kind;

/// The rows here are not those of the source, or an event is not of this table.
#[derive(Debug, thiserror::Error)]
pub enum Divergence {
    #[error("an inserted row is here already")]
    Present,
    #[error("{rows} rows here are the one that was changed")]
    Found { rows: usize },
    #[error("the event does not fit the table")]
    Mismatch(#[from] Mismatch),
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Diverged(#[from] Divergence),
    #[error("SQLite")]
    Sqlite(#[from] rusqlite::Error),
}

/// Applies it in the open transaction.
pub fn apply(connection: &Connection, table: &Table, change: Change) -> Result<(), ApplyError> {
    let shape = &table.shape;
    let rows = match change {
        Change::Insert(row) => {
            let mut insert = connection.prepare_cached(&shape.insert)?;
            let inserted_rows = insert.execute(params_from_iter(row));
            return inserted_rows.map(drop).map_err(inserted);
        }
        Change::Truncate => {
            connection.execute(&format!("DELETE FROM {}", quoted(&table.local)), [])?;
            return Ok(());
        }
        Change::Update { row, set } => {
            let is_whole = set.len() == shape.columns.len()
                && set
                    .iter()
                    .enumerate()
                    .all(|(place, (index, _))| place == *index);
            let sql = match &shape.update {
                Some(update) if is_whole => update.clone(),
                _ => update_sql(table, &row, &set),
            };
            let values = set.into_iter().chain(row).map(|(_, value)| value);
            connection
                .prepare_cached(&sql)?
                .execute(params_from_iter(values))
                .map_err(inserted)?
        }
        Change::Delete { row } => {
            let condition = shape.condition(&table.local, row.iter().map(|(index, _)| *index));
            let sql = format!("DELETE FROM {} WHERE {condition}", quoted(&table.local));
            let values = row.into_iter().map(|(_, value)| value);
            connection
                .prepare_cached(&sql)?
                .execute(params_from_iter(values))
                .map_err(inserted)?
        }
    };
    if rows == 1 {
        Ok(())
    } else {
        Err(Divergence::Found { rows }.into())
    }
}

fn update_sql(table: &Table, row: &Values, set: &Values) -> String {
    let shape = &table.shape;
    let set: Vec<String> = set
        .iter()
        .map(|(index, _)| format!("{} = ?", quoted(&shape.columns[*index].name)))
        .collect();
    let condition = shape.condition(&table.local, row.iter().map(|(index, _)| *index));
    format!(
        "UPDATE {} SET {} WHERE {condition}",
        quoted(&table.local),
        set.join(", ")
    )
}

/// A row that is there twice, or may not be as it is for another reason, is a matter of the data, not of the file.
pub fn inserted(error: rusqlite::Error) -> ApplyError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::ConstraintViolation) => Divergence::Present.into(),
        _ => error.into(),
    }
}

/// One `ALTER TABLE`, or several.
pub fn alter(local: &str, step: &Step) -> String {
    let table = quoted(local);
    match step {
        Step::Drop(name) => format!("ALTER TABLE {table} DROP COLUMN {};", quoted(name)),
        Step::Add(column) => format!(
            "ALTER TABLE {table} ADD COLUMN {} {};",
            quoted(&column.name),
            Kind::of(column).sqlite_type()
        ),
        Step::Rename(pairs) => {
            // By way of names nobody has, because two may swap.
            let by_way = |index: usize| quoted(&format!("_mirror_renamed_{index}"));
            let away = pairs.iter().enumerate().map(|(index, (from, _))| {
                format!(
                    "ALTER TABLE {table} RENAME COLUMN {} TO {};",
                    quoted(from),
                    by_way(index)
                )
            });
            let back = pairs.iter().enumerate().map(|(index, (_, to))| {
                format!(
                    "ALTER TABLE {table} RENAME COLUMN {} TO {};",
                    by_way(index),
                    quoted(to)
                )
            });
            away.chain(back).collect()
        }
    }
}
