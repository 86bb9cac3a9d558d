//! Fills a table from a snapshot.
//!
//! In: why the table is seeded. Out: the table with all rows of one snapshot and the sequence from
//! which the changes follow.
//! Invariant: the old rows stay readable until all new ones are there; a snapshot that the stream does
//! not continue is never put in the table's place.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use daemon::chained::Chained;
use wire::names;
use wire::schema::Schema;
use wire::snapshot::{self, ErrorCode, Meta, Start};

use crate::desk::Desk;
use crate::join::{self, Need, Refusal, Snapshot};
use crate::progress::Progress;
use crate::request;
use crate::shape::{self, Shape};
use crate::source::{self, Source, Stored, decode};
use crate::store::{self, ApplyError, Divergence, Load};
use crate::table::TableName;

/// How long between two looks at a subject.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A snapshot of which nothing comes for this long is given up.
const SILENCE_MAX: Duration = Duration::from_mins(1);
/// Between two attempts at the same table.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("there will be no snapshot of {table}: {message} ({hint})")]
    Refused {
        table: TableName,
        code: ErrorCode,
        message: String,
        hint: String,
    },
}

/// Why a snapshot was given up; the next one may do.
#[derive(Debug, thiserror::Error)]
pub enum Abandoned {
    #[error("it cannot be joined")]
    Refused(#[from] Refusal),
    #[error("it failed: {0}")]
    Failed(String),
    #[error("chunk {0} has left the stream")]
    Lost(u64),
    #[error("nothing came for {SILENCE_MAX:?}")]
    Silent,
    #[error("it has {found} rows and says {said}")]
    Miscounted { found: u64, said: u64 },
    #[error("version {0} of the schema is not in the bucket")]
    NoSchema(u32),
    #[error("its rows")]
    Rows(#[from] Divergence),
}

pub struct Seeder<'a> {
    pub source: &'a Source,
    pub desk: &'a Desk,
    pub progress: &'a RefCell<Progress>,
}

impl Seeder<'_> {
    /// Returns when the table is seeded. Dropped half-way, it goes on where it was the next time.
    pub async fn seed(&mut self, name: &TableName, need: &Need) -> Result<(), Error> {
        tracing::info!(table = %name, reason = need.reason, "seeding");
        loop {
            let schema = self.source.schema(name).await?;
            let need = &Need {
                schema_version_min: schema
                    .as_ref()
                    .map_or(0, |schema| schema.seed_version)
                    .max(need.schema_version_min),
                ..need.clone()
            };
            let begun = self.desk.store().load(name)?;
            let load = match begun {
                Some(load) => load,
                None => match self.choose(name, schema.is_some(), need).await? {
                    Ok(load) => load,
                    Err(abandoned) => {
                        self.give_up(name, &abandoned).await?;
                        continue;
                    }
                },
            };
            match self.read(name, load, need).await? {
                Ok(()) => return Ok(()),
                Err(abandoned) => self.give_up(name, &abandoned).await?,
            }
        }
    }

    async fn give_up(&mut self, name: &TableName, abandoned: &Abandoned) -> Result<(), Error> {
        tracing::warn!(table = %name, reason = %Chained(abandoned), "snapshot given up");
        self.desk.free().await;
        self.desk.store().abandon(name)?;
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// An existing snapshot if one can be joined, else a new one. Without a schema the table is gone, which
    /// the bridge knows better than what is left of it.
    async fn choose(
        &mut self,
        name: &TableName,
        has_schema: bool,
        need: &Need,
    ) -> Result<Result<Load, Abandoned>, Error> {
        if has_schema && let Some((start, sequence)) = self.existing(name, need).await? {
            tracing::info!(table = %name, snapshot_id = start.snapshot_id, "joins an existing snapshot");
            return self.begin(name, start, sequence).await;
        }
        match request::request(self.source, name).await? {
            Ok((start, sequence)) => self.begin(name, start, sequence).await,
            Err(abandoned) => Ok(Err(abandoned)),
        }
    }

    /// The newest whole snapshot, if it can be joined.
    async fn existing(&self, name: &TableName, need: &Need) -> Result<Option<(Start, u64)>, Error> {
        let Some(meta) = self
            .source
            .last::<Meta>(&names::init_meta(&name.schema, &name.table))
            .await?
        else {
            return Ok(None);
        };
        // When the last start is another's, a newer snapshot is being made: that one then.
        let start = self
            .source
            .last::<Start>(&names::init_start(&name.schema, &name.table))
            .await?;
        let Some((start, started)) =
            start.filter(|(start, _)| start.snapshot_id == meta.0.snapshot_id)
        else {
            return Ok(None);
        };
        let needs_typed_rows = self.needs_typed_rows(name, &start).await?;
        let snapshot = Snapshot {
            start,
            meta: meta.0,
            ended_ns: meta.1.stored_ns,
        };
        let bounds = self.source.bounds_for(name).await?;
        let joined = join::is_usable(&snapshot.start, needs_typed_rows)
            .and_then(|()| join::join(&snapshot, &bounds, need));
        match joined {
            Ok(_) => Ok(Some((snapshot.start, started.sequence))),
            Err(refusal) => {
                tracing::info!(table = %name, snapshot_id = snapshot.meta.snapshot_id, %refusal, "an existing snapshot cannot be joined");
                Ok(None)
            }
        }
    }

    /// Makes the table that the chunks go into.
    async fn begin(
        &mut self,
        name: &TableName,
        start: Start,
        init_sequence: u64,
    ) -> Result<Result<Load, Abandoned>, Error> {
        let history = self.source.history(name).await?;
        let schema = history
            .into_iter()
            .find(|schema| schema.version == start.schema_version);
        let Some(schema) = schema else {
            return Ok(Err(Abandoned::NoSchema(start.schema_version)));
        };
        let schema = shape::published(&schema, &start.columns);
        if let Err(refusal) = join::is_usable(&start, is_typed(&schema)) {
            return Ok(Err(refusal.into()));
        }
        self.desk.free().await;
        let mut store = self.desk.store();
        Ok(Ok(store.begin_load(name, start, schema, init_sequence)?))
    }

    /// Reads the chunks, those to come too, and joins the stream.
    async fn read(
        &mut self,
        name: &TableName,
        mut load: Load,
        need: &Need,
    ) -> Result<Result<(), Abandoned>, Error> {
        let id = load.start.snapshot_id.clone();
        let filter = names::init_snap_filter(&name.schema, &name.table, &id);
        let init = self.source.streams().init.clone();
        let mut chunks = self
            .source
            .reader(&init, filter, load.init_sequence)
            .await?;
        let mut heard_at = Instant::now();
        let mut meta = self.meta(name, &load).await?;
        loop {
            if let Some((meta, at)) = &meta
                && meta.batch_count <= load.chunks
            {
                return self
                    .finish(name, &load, meta.clone(), at.stored_ns, need)
                    .await;
            }
            let row_count = meta.as_ref().map(|(meta, _)| meta.row_count);
            self.progress.borrow_mut().loading(name, &load, row_count);
            if let Some(message) = chunks.next_within(LOOK_INTERVAL).await? {
                heard_at = Instant::now();
                let chunk: snapshot::Chunk = decode(&message.payload, &message.subject)?;
                if chunk.chunk != load.chunks {
                    return Ok(Err(Abandoned::Lost(load.chunks)));
                }
                self.desk.free().await;
                let pushed = self
                    .desk
                    .store()
                    .push(name, &mut load, &chunk, message.sequence);
                match pushed {
                    Ok(()) => {}
                    Err(ApplyError::Diverged(divergence)) => return Ok(Err(divergence.into())),
                    Err(ApplyError::Sqlite(error)) => return Err(store::Error::from(error).into()),
                }
                continue;
            }
            if meta.is_none() {
                meta = self.meta(name, &load).await?;
                if meta.is_some() {
                    continue;
                }
                let of_ours = |error: &snapshot::Error| error.snapshot_id.as_ref() == Some(&id);
                let subject = names::init_error(&name.schema, &name.table);
                let error = self.by_id(&subject, of_ours, load.init_sequence).await?;
                if let Some((error, _)) = error {
                    return request::refused(name, &error).map(Err);
                }
            }
            if SILENCE_MAX <= heard_at.elapsed() {
                return Ok(Err(Abandoned::Silent));
            }
        }
    }

    async fn finish(
        &mut self,
        name: &TableName,
        load: &Load,
        meta: Meta,
        ended_ns: i128,
        need: &Need,
    ) -> Result<Result<(), Abandoned>, Error> {
        if load.rows != meta.row_count {
            return Ok(Err(Abandoned::Miscounted {
                found: load.rows,
                said: meta.row_count,
            }));
        }
        let snapshot = Snapshot {
            start: load.start.clone(),
            meta,
            ended_ns,
        };
        let bounds = self.source.bounds_for(name).await?;
        match join::join(&snapshot, &bounds, need) {
            Ok(sequence) => {
                self.desk.free().await;
                self.desk
                    .store()
                    .finish_load(name, load, &snapshot, sequence)?;
                tracing::info!(table = %name, rows = load.rows, lsn = %snapshot.meta.lsn, sequence, "table seeded");
                Ok(Ok(()))
            }
            Err(refusal) => Ok(Err(refusal.into())),
        }
    }

    /// The end of the snapshot, once it is there.
    async fn meta(&self, name: &TableName, load: &Load) -> Result<Option<(Meta, Stored)>, Error> {
        let subject = names::init_meta(&name.schema, &name.table);
        let is_meant = |meta: &Meta| meta.snapshot_id == load.start.snapshot_id;
        self.by_id(&subject, is_meant, load.init_sequence).await
    }

    /// The message on a subject that is meant, if it is behind a sequence. Others' snapshots of the
    /// table use the subject too, so it need not be the last.
    async fn by_id<T: wire::Message>(
        &self,
        subject: &str,
        is_meant: impl Fn(&T) -> bool,
        behind: u64,
    ) -> Result<Option<(T, Stored)>, Error> {
        let Some((last, at)) = self.source.last::<T>(subject).await? else {
            return Ok(None);
        };
        if is_meant(&last) {
            return Ok(Some((last, at)));
        }
        if at.sequence <= behind {
            return Ok(None);
        }
        let init = &self.source.streams().init;
        let mut all = self.source.reader(init, subject.to_owned(), behind).await?;
        while let Some(at) = all.next_within(LOOK_INTERVAL).await? {
            let message: T = decode(&at.payload, &at.subject)?;
            if is_meant(&message) {
                return Ok(Some((message, at)));
            }
            if at.pending == 0 {
                break;
            }
        }
        Ok(None)
    }

    async fn needs_typed_rows(&self, name: &TableName, start: &Start) -> Result<bool, Error> {
        let history = self.source.history(name).await?;
        let schema = history
            .iter()
            .find(|schema| schema.version == start.schema_version);
        Ok(schema.is_some_and(|schema| is_typed(&shape::published(schema, &start.columns))))
    }
}

pub fn is_typed(schema: &Schema) -> bool {
    Shape::new(schema, "").is_ok_and(|shape| shape.needs_typed_rows())
}
