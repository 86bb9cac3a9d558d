//! A snapshot on its way into the file.
//!
//! In: its start, its chunks in order, the word that it is whole. Out: the table, all at once.
//! Invariant: chunks go into a table beside the one they will replace, each with the note of how many
//! there are; nobody sees them before the last one.

use rusqlite::{OptionalExtension as _, params, params_from_iter};
use wire::schema::Schema;
use wire::snapshot::{Chunk, Start};
use wire::{Message as _, Position};

use super::rows::{ApplyError, Divergence, inserted};
use super::{Error, Store, make_shape, note};
use crate::change;
use crate::join::Snapshot;
use crate::shape::{self, Shape};
use crate::table::{TableName, quoted};

/// A snapshot being read into a table beside the one it will replace.
#[derive(Debug, Clone)]
pub struct Load {
    pub start: Start,
    pub schema: Schema,
    pub shape: Shape,
    pub chunks: u64,
    pub rows: u64,
    /// Of the last chunk, or of the start, in stream `INIT`.
    pub init_sequence: u64,
}

impl Store {
    /// A snapshot whose reading was interrupted.
    pub fn load(&self, name: &TableName) -> Result<Option<Load>, Error> {
        let sql =
            "SELECT start, schema, chunks, rows, init_sequence FROM _mirror_loads WHERE name = ?";
        let row = self.connection.query_row(sql, [name.local()], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, i64>(2)?,
                row.get::<_, i64>(3)?,
                row.get::<_, i64>(4)?,
            ))
        });
        let Some((start, schema, chunks, rows, init_sequence)) = row.optional()? else {
            return Ok(None);
        };
        let schema: Schema = note(&schema)?;
        let shape = make_shape(name, &schema, &staging(name))?;
        Ok(Some(Load {
            start: note(&start)?,
            schema,
            shape,
            chunks: chunks as u64,
            rows: rows as u64,
            init_sequence: init_sequence as u64,
        }))
    }

    /// Makes room for a snapshot. `schema` holds its columns alone.
    pub fn begin_load(
        &mut self,
        name: &TableName,
        start: Start,
        schema: Schema,
        init_sequence: u64,
    ) -> Result<Load, Error> {
        let shape = make_shape(name, &schema, &staging(name))?;
        let transaction = self.connection.transaction()?;
        transaction.execute_batch(&format!(
            "DROP TABLE IF EXISTS {}; {}",
            quoted(&staging(name)),
            shape::create(&schema, &staging(name))
        ))?;
        transaction.execute(
            "INSERT OR REPLACE INTO _mirror_loads VALUES (?, ?, ?, 0, 0, ?)",
            params![
                name.local(),
                start.to_json(),
                schema.to_json(),
                init_sequence as i64
            ],
        )?;
        transaction.commit()?;
        Ok(Load {
            start,
            schema,
            shape,
            chunks: 0,
            rows: 0,
            init_sequence,
        })
    }

    /// Stores the next chunk.
    pub fn push(
        &mut self,
        name: &TableName,
        load: &mut Load,
        chunk: &Chunk,
        init_sequence: u64,
    ) -> Result<(), ApplyError> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(&load.shape.insert)?;
            for row in &chunk.data {
                let row = change::full_row(&load.shape, &row.0).map_err(Divergence::Mismatch)?;
                insert.execute(params_from_iter(row)).map_err(inserted)?;
            }
        }
        let rows = load.rows + chunk.data.len() as u64;
        transaction.execute(
            "UPDATE _mirror_loads SET chunks = ?, rows = ?, init_sequence = ? WHERE name = ?",
            params![
                load.chunks as i64 + 1,
                rows as i64,
                init_sequence as i64,
                name.local()
            ],
        )?;
        transaction.commit()?;
        load.chunks += 1;
        load.rows = rows;
        load.init_sequence = init_sequence;
        Ok(())
    }

    /// Gives the reading up.
    pub fn abandon(&mut self, name: &TableName) -> Result<(), Error> {
        let transaction = self.connection.transaction()?;
        transaction.execute("DELETE FROM _mirror_loads WHERE name = ?", [name.local()])?;
        transaction.execute_batch(&format!("DROP TABLE IF EXISTS {}", quoted(&staging(name))))?;
        transaction.commit()?;
        Ok(())
    }

    /// Puts the snapshot in the table's place, all of it read. Changes follow behind `sequence`.
    /// Indexes and triggers that someone made on the table are made again.
    pub fn finish_load(
        &mut self,
        name: &TableName,
        load: &Load,
        snapshot: &Snapshot,
        sequence: u64,
    ) -> Result<(), Error> {
        let local = name.local();
        let transaction = self.connection.transaction()?;
        let extras: Vec<String> = transaction
            .prepare(
                "SELECT sql FROM sqlite_schema
                 WHERE tbl_name = ? AND type IN ('index', 'trigger') AND sql IS NOT NULL",
            )?
            .query_map([&local], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        transaction.execute_batch(&format!(
            "DROP TABLE IF EXISTS {0}; ALTER TABLE {1} RENAME TO {0};",
            quoted(&local),
            quoted(&staging(name))
        ))?;
        for sql in extras {
            if let Err(error) = transaction.execute_batch(&sql) {
                tracing::warn!(table = %name, sql, %error, "an index or trigger does not fit the new table and is gone");
            }
        }
        transaction.execute(
            "INSERT OR REPLACE INTO _mirror_tables VALUES (?, ?, ?, ?, ?, ?)",
            params![
                local,
                load.schema.to_json(),
                snapshot.meta.to_json(),
                i64::try_from(snapshot.ended_ns).unwrap_or(i64::MAX),
                sequence as i64,
                Position::START.to_string()
            ],
        )?;
        for notes in ["_mirror_loads", "_mirror_needs"] {
            transaction.execute(&format!("DELETE FROM {notes} WHERE name = ?"), [&local])?;
        }
        transaction.commit()?;
        self.reload()
    }
}

fn staging(name: &TableName) -> String {
    format!("_mirror_load_{}", name.local())
}
