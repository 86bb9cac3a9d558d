//! The local SQLite file: the tables, and how far each one is.
//!
//! In: chunks, changes, "the transaction is whole". Out: what is stored.
//! Invariant: rows and the position they are at change in one SQLite transaction, so that a process
//! killed anywhere goes on where the file is.
//!
//! Beside the mirrored tables the file has `_mirror_tables` (one row a table: its schema, the snapshot
//! it began with, the stream sequence it has), `_mirror_loads` (a snapshot being read) and
//! `_mirror_stream` (the last event applied, and in which stream).

mod load;
mod rows;

pub use load::Load;
pub use rows::{ApplyError, Divergence};

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, params};
use wire::schema::Schema;
use wire::snapshot::Meta;
use wire::{Message, Position};

use crate::change::Change;
use crate::join::Need;
use crate::schema_change::Step;
use crate::shape::{self, Shape};
use crate::table::{TableName, quoted};

#[derive(Debug)]
pub struct Store {
    connection: Connection,
    names: Vec<TableName>,
    tables: Vec<Table>,
    /// Held while the process lives: two mirrors of one file would both apply every change.
    _lock: File,
}

/// A table that is seeded.
#[derive(Debug, Clone)]
pub struct Table {
    pub name: TableName,
    pub local: String,
    /// With the columns that are here alone.
    pub schema: Schema,
    pub shape: Shape,
    /// Of the snapshot it began with: decides which changes are in those rows already.
    pub meta: Meta,
    pub ended_ns: i64,
    /// The stream's messages up to this one are applied.
    pub sequence: u64,
    /// Of the last event applied.
    pub position: Position,
}

/// The last event applied: that it still stands at its sequence shows that the stream is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    pub sequence: u64,
    pub position: Position,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("another mirror keeps {}; stop it, or give this one its own --db", .0.display())]
    Locked(PathBuf),
    #[error("{} was written by another version of the mirror; give a new --db", .0.display())]
    Version(PathBuf),
    #[error("SQLite")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the mirror's own notes in the file cannot be read; delete the file and begin anew")]
    Notes,
    #[error("table {table}")]
    Shape {
        table: TableName,
        #[source]
        source: shape::Error,
    },
}

impl Error {
    /// True when another process holds the file, or the disk may be made room on.
    pub fn is_retryable(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
        match self {
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(DatabaseBusy | DatabaseLocked | DiskFull)
            ),
            Self::Open { .. }
            | Self::Locked(_)
            | Self::Version(_)
            | Self::Notes
            | Self::Shape { .. } => false,
        }
    }
}

/// Of the notes; `PRAGMA user_version`.
const VERSION: i64 = 1;

const NOTES: &str = "
    CREATE TABLE IF NOT EXISTS _mirror_tables (
        name TEXT PRIMARY KEY, schema TEXT NOT NULL, meta TEXT NOT NULL, ended_ns INTEGER NOT NULL,
        sequence INTEGER NOT NULL, position TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS _mirror_needs (
        name TEXT PRIMARY KEY, reason TEXT NOT NULL, lsn_min TEXT NOT NULL,
        schema_version_min INTEGER NOT NULL, after_ns INTEGER NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS _mirror_loads (
        name TEXT PRIMARY KEY, start TEXT NOT NULL, schema TEXT NOT NULL, chunks INTEGER NOT NULL,
        rows INTEGER NOT NULL, init_sequence INTEGER NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS _mirror_stream (
        id INTEGER PRIMARY KEY CHECK (id = 1), sequence INTEGER NOT NULL,
        position TEXT NOT NULL) STRICT;";

impl Store {
    /// Opens or makes the file. `names` are the tables to keep; others in the file stay as they are.
    pub fn open(path: &Path, names: Vec<TableName>) -> Result<Self, Error> {
        let lock = lock(path)?;
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.set_prepared_statement_cache_capacity(256);
        // Readers go on while we write. A power cut may take the last commits, never half of one, and
        // the stream brings them again.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        // Someone's view over a table must not forbid replacing the table.
        connection.pragma_update(None, "legacy_alter_table", true)?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match version {
            0 => {
                connection.execute_batch(NOTES)?;
                connection.pragma_update(None, "user_version", VERSION)?;
            }
            VERSION => {}
            _ => return Err(Error::Version(path.to_owned())),
        }
        let mut store = Self {
            connection,
            names,
            tables: Vec::new(),
            _lock: lock,
        };
        store.reload()?;
        Ok(store)
    }

    /// The tables that are seeded and need not be seeded anew.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// Tables to be seeded, and why.
    pub fn needs(&self) -> Result<Vec<(TableName, Need)>, Error> {
        let mut needs = Vec::new();
        for name in &self.names {
            let need = self.need(name)?;
            let is_seeded = self.tables.iter().any(|table| table.name == *name);
            match need {
                Some(need) => needs.push((name.clone(), need)),
                None if !is_seeded => needs.push((name.clone(), Need::first())),
                None => {}
            }
        }
        Ok(needs)
    }

    /// The last event applied.
    pub fn tail(&self) -> Result<Option<Tail>, Error> {
        let sql = "SELECT sequence, position FROM _mirror_stream";
        let row = self.connection.query_row(sql, [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        });
        let Some((sequence, position)) = row.optional()? else {
            return Ok(None);
        };
        Ok(Some(Tail {
            sequence: sequence as u64,
            position: position.parse().map_err(|_| Error::Notes)?,
        }))
    }

    /// Notes that tables must be seeded anew. Their rows stay readable until then. What is not
    /// committed is rolled back.
    pub fn mark(&mut self, needs: &[(TableName, Need)]) -> Result<(), Error> {
        self.rollback()?;
        let transaction = self.connection.transaction()?;
        for (name, need) in needs {
            tracing::warn!(table = %name, reason = need.reason, "table must be seeded anew");
            transaction.execute(
                "INSERT OR REPLACE INTO _mirror_needs VALUES (?, ?, ?, ?, ?)",
                params![
                    name.local(),
                    need.reason,
                    need.lsn_min.to_string(),
                    need.schema_version_min,
                    need.after_ns
                ],
            )?;
            transaction.execute("DELETE FROM _mirror_loads WHERE name = ?", [name.local()])?;
        }
        // What comes next need not continue it.
        transaction.execute("DELETE FROM _mirror_stream", [])?;
        transaction.commit()?;
        Ok(())
    }

    /// Applies a change to table `index`, in the open transaction, which begins here when none is open.
    pub fn apply(
        &mut self,
        index: usize,
        position: Position,
        change: Change,
    ) -> Result<(), ApplyError> {
        self.begin()?;
        let table = &self.tables[index];
        rows::apply(&self.connection, table, change)?;
        self.tables[index].position = position;
        Ok(())
    }

    /// Gives table `index` a new schema, in the open transaction.
    pub fn alter(&mut self, index: usize, steps: &[Step], schema: Schema) -> Result<(), Error> {
        self.begin()?;
        let table = &self.tables[index];
        for step in steps {
            self.connection
                .execute_batch(&rows::alter(&table.local, step))?;
        }
        let shape = make_shape(&table.name, &schema, &table.local)?;
        self.connection.execute(
            "UPDATE _mirror_tables SET schema = ? WHERE name = ?",
            params![schema.to_json(), table.local],
        )?;
        let table = &mut self.tables[index];
        table.schema = schema;
        table.shape = shape;
        Ok(())
    }

    /// Stores up to where the stream is applied to each table, together with all changes since the last
    /// time.
    pub fn commit(&mut self, applied: &[u64], tail: Option<Tail>) -> Result<(), Error> {
        self.begin()?;
        for (table, &sequence) in self.tables.iter_mut().zip(applied) {
            table.sequence = table.sequence.max(sequence);
            self.connection
                .prepare_cached(
                    "UPDATE _mirror_tables SET sequence = ?, position = ? WHERE name = ?",
                )?
                .execute(params![
                    table.sequence as i64,
                    table.position.to_string(),
                    table.local
                ])?;
        }
        if let Some(tail) = tail {
            self.connection
                .prepare_cached("INSERT OR REPLACE INTO _mirror_stream VALUES (1, ?, ?)")?
                .execute(params![tail.sequence as i64, tail.position.to_string()])?;
        }
        self.connection.execute_batch("COMMIT")?;
        Ok(())
    }

    /// No transaction is open.
    pub fn is_free(&self) -> bool {
        self.connection.is_autocommit()
    }

    /// The source has no such table any more: nor has the file. It is seeded should it come back.
    pub fn drop_table(&mut self, name: &TableName) -> Result<(), Error> {
        let local = name.local();
        let transaction = self.connection.transaction()?;
        transaction.execute_batch(&format!("DROP TABLE IF EXISTS {}", quoted(&local)))?;
        transaction.execute("DELETE FROM _mirror_tables WHERE name = ?", [&local])?;
        transaction.commit()?;
        self.reload()
    }

    /// Undoes what is not committed, here and in the file.
    pub fn rollback(&mut self) -> Result<(), Error> {
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        self.reload()
    }

    fn begin(&self) -> Result<(), rusqlite::Error> {
        if self.connection.is_autocommit() {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
        }
        Ok(())
    }

    fn need(&self, name: &TableName) -> Result<Option<Need>, Error> {
        let sql = "SELECT reason, lsn_min, schema_version_min, after_ns FROM _mirror_needs WHERE name = ?";
        let row = self.connection.query_row(sql, [name.local()], |row| {
            Ok((
                row.get(0)?,
                row.get::<_, String>(1)?,
                row.get(2)?,
                row.get(3)?,
            ))
        });
        let Some((reason, lsn_min, schema_version_min, after_ns)) = row.optional()? else {
            return Ok(None);
        };
        Ok(Some(Need {
            reason,
            lsn_min: lsn_min.parse().map_err(|_| Error::Notes)?,
            schema_version_min,
            after_ns,
        }))
    }

    fn reload(&mut self) -> Result<(), Error> {
        let mut tables = Vec::new();
        for name in &self.names {
            if self.need(name)?.is_some() {
                continue;
            }
            let sql = "SELECT schema, meta, ended_ns, sequence, position FROM _mirror_tables WHERE name = ?";
            let row = self.connection.query_row(sql, [name.local()], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get(2)?,
                    row.get::<_, i64>(3)?,
                    row.get::<_, String>(4)?,
                ))
            });
            let Some((schema, meta, ended_ns, sequence, position)) = row.optional()? else {
                continue;
            };
            let schema: Schema = note(&schema)?;
            let local = name.local();
            tables.push(Table {
                shape: make_shape(name, &schema, &local)?,
                name: name.clone(),
                local,
                schema,
                meta: note(&meta)?,
                ended_ns,
                sequence: sequence as u64,
                position: position.parse().map_err(|_| Error::Notes)?,
            });
        }
        self.tables = tables;
        Ok(())
    }
}

fn make_shape(name: &TableName, schema: &Schema, local: &str) -> Result<Shape, Error> {
    Shape::new(schema, local).map_err(|source| Error::Shape {
        table: name.clone(),
        source,
    })
}

fn note<T: Message>(text: &str) -> Result<T, Error> {
    T::decode(text.as_bytes()).map_err(|_| Error::Notes)
}

fn lock(path: &Path) -> Result<File, Error> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let open = |source| Error::Open {
        path: path.to_owned(),
        source,
    };
    let file = File::create(&lock_path).map_err(open)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Locked(path.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(open(source)),
    }
}
