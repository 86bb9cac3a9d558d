//! Fills a table from a snapshot.
//!
//! In: why the table is seeded. Out: the table with all rows of one snapshot and the sequence from
//! which the changes follow.
//! Invariant: the old rows stay readable until all new ones are there; a snapshot that the stream does
//! not continue is never put in the table's place.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use wire::Message as _;
use wire::names;
use wire::schema::Schema;
use wire::snapshot::{self, ErrorCode, Meta, Start};
use wire::snapshot_request::{Options, Reply, Values};

use crate::join::{self, Need, Refusal, Snapshot};
use crate::progress::Progress;
use crate::shape::{self, Shape};
use crate::source::{self, Source, Stored, decode};
use crate::store::{self, ApplyError, Divergence, Load, Store};
use crate::table::TableName;

/// How long between two looks at a subject.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A request that is not answered is repeated: the bridge may have been away, and equal requests share
/// one snapshot.
const REQUEST_INTERVAL: Duration = Duration::from_secs(30);
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
        message: String,
        hint: String,
    },
}

/// Why a snapshot was given up; the next one may do.
#[derive(Debug, thiserror::Error)]
enum Abandoned {
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
    pub store: &'a mut Store,
    pub progress: &'a mut Progress,
}

impl Seeder<'_> {
    /// Returns when the table is seeded. Dropped half-way, it goes on where it was the next time.
    pub async fn seed(&mut self, name: &TableName, need: &Need) -> Result<(), Error> {
        tracing::info!(table = %name, reason = need.reason, "seeding");
        loop {
            let load = match self.store.load(name)? {
                Some(load) => load,
                None => match self.choose(name, need).await? {
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
        tracing::warn!(table = %name, reason = %Chain(abandoned), "snapshot given up");
        self.store.abandon(name)?;
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// An existing snapshot if one can be joined, else a new one.
    async fn choose(
        &mut self,
        name: &TableName,
        need: &Need,
    ) -> Result<Result<Load, Abandoned>, Error> {
        if let Some((start, sequence)) = self.existing(name, need).await? {
            tracing::info!(table = %name, snapshot_id = start.snapshot_id, "joins an existing snapshot");
            return self.begin(name, start, sequence).await;
        }
        match self.request(name).await? {
            Ok((start, sequence)) => self.begin(name, start, sequence).await,
            Err(abandoned) => Ok(Err(abandoned)),
        }
    }

    /// The newest whole snapshot, if it can be joined.
    async fn existing(&self, name: &TableName, need: &Need) -> Result<Option<(Start, u64)>, Error> {
        let Some(meta) = self
            .last::<Meta>(&names::init_meta(&name.schema, &name.table))
            .await?
        else {
            return Ok(None);
        };
        // When the last start is another's, a newer snapshot is being made: that one then.
        let start = self
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
        let bounds = self.source.bounds().await?;
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

    /// Asks for a snapshot and waits until it has begun.
    async fn request(&self, name: &TableName) -> Result<Result<(Start, u64), Abandoned>, Error> {
        let (schema, table) = (&name.schema, &name.table);
        let start_subject = names::init_start(schema, table);
        let error_subject = names::init_error(schema, table);
        let sequence = |message: Option<Stored>| message.map_or(0, |message| message.sequence);
        let start_before = sequence(self.source.last_init(&start_subject).await?);
        let error_before = sequence(self.source.last_init(&error_subject).await?);

        let inbox = self.source.client().new_inbox();
        let mut replies = self.source.subscribe(inbox.clone()).await?;
        let mut snapshot_id: Option<String> = None;
        let mut asked_at: Option<Instant> = None;
        loop {
            if asked_at.is_none_or(|asked_at| REQUEST_INTERVAL <= asked_at.elapsed()) {
                asked_at = Some(Instant::now());
                self.ask(name, &inbox).await?;
            }
            if let Ok(Some(reply)) = tokio::time::timeout(LOOK_INTERVAL, replies.next()).await {
                // The stream that keeps requests answers too, with a PubAck, which is no reply of the
                // bridge's; so does the server when nobody listens.
                match Reply::decode(&reply.payload) {
                    Ok(Reply::Accepted { snapshot_id: id }) => {
                        tracing::info!(table = %name, snapshot_id = id, "snapshot promised");
                        snapshot_id = Some(id);
                    }
                    Ok(Reply::Refused(error)) => return refused(name, &error).map(Err),
                    Err(_) => {}
                }
            }
            let is_ours = |id: &str| snapshot_id.as_deref().is_none_or(|ours| ours == id);
            if let Some((start, at)) = self.last::<Start>(&start_subject).await? {
                // A shared snapshot may have begun before we asked; then only its id tells.
                let is_new = start_before < at.sequence || snapshot_id.is_some();
                if is_new && is_ours(&start.snapshot_id) {
                    return Ok(Ok((start, at.sequence)));
                }
            }
            if let Some((error, at)) = self.last::<snapshot::Error>(&error_subject).await?
                && error_before < at.sequence
                && error.snapshot_id.as_deref().is_none_or(is_ours)
            {
                return refused(name, &error).map(Err);
            }
        }
    }

    async fn ask(&self, name: &TableName, inbox: &str) -> Result<(), Error> {
        let history = self.source.history(name).await?;
        let newest = history.iter().max_by_key(|schema| schema.version);
        if newest.is_none() {
            tracing::warn!(table = %name, "the bridge has published no schema for this table yet; is it in the publication?");
        }
        let needs_typed_rows = newest.is_some_and(is_typed);
        let options = Options {
            values: if needs_typed_rows {
                Values::Typed
            } else {
                Values::Text
            },
            ..Options::default()
        };
        let payload = if options == Options::default() {
            Vec::new()
        } else {
            options.to_msgpack()
        };
        let subject = names::snapshot_request(&name.schema, &name.table);
        tracing::info!(table = %name, subject, "asks for a snapshot");
        let client = self.source.client();
        let sent = client
            .publish_with_reply(subject.clone(), inbox.to_owned(), payload.into())
            .await;
        sent.map_err(|error| source::Error::Read {
            what: format!("a reply on {subject}"),
            source: error.into(),
        })?;
        Ok(())
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
        Ok(Ok(self.store.begin_load(
            name,
            start,
            schema,
            init_sequence,
        )?))
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
            self.progress
                .loading(name, &load, meta.as_ref().map(|(meta, _)| meta.row_count));
            if let Some(message) = chunks.next_within(LOOK_INTERVAL).await? {
                heard_at = Instant::now();
                let chunk: snapshot::Chunk = decode(&message.payload, &message.subject)?;
                if chunk.chunk != load.chunks {
                    return Ok(Err(Abandoned::Lost(load.chunks)));
                }
                match self.store.push(name, &mut load, &chunk, message.sequence) {
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
                    return refused(name, &error).map(Err);
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
        let bounds = self.source.bounds().await?;
        match join::join(&snapshot, &bounds, need) {
            Ok(sequence) => {
                self.store.finish_load(name, load, &snapshot, sequence)?;
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
        let Some((last, at)) = self.last::<T>(subject).await? else {
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

    async fn last<T: wire::Message>(&self, subject: &str) -> Result<Option<(T, Stored)>, Error> {
        let Some(stored) = self.source.last_init(subject).await? else {
            return Ok(None);
        };
        Ok(Some((decode(&stored.payload, subject)?, stored)))
    }

    async fn needs_typed_rows(&self, name: &TableName, start: &Start) -> Result<bool, Error> {
        let history = self.source.history(name).await?;
        let schema = history
            .iter()
            .find(|schema| schema.version == start.schema_version);
        Ok(schema.is_some_and(|schema| is_typed(&shape::published(schema, &start.columns))))
    }
}

fn is_typed(schema: &Schema) -> bool {
    Shape::new(schema, "").is_ok_and(|shape| shape.needs_typed_rows())
}

/// What will not change by asking again ends the mirror; the rest is tried again.
fn refused(name: &TableName, error: &snapshot::Error) -> Result<Abandoned, Error> {
    match error.code {
        ErrorCode::BadRequest
        | ErrorCode::UnknownTable
        | ErrorCode::NotPublished
        | ErrorCode::RowSecurity
        | ErrorCode::Denied
        | ErrorCode::TooLarge => Err(Error::Refused {
            table: name.clone(),
            message: error.error.clone(),
            hint: error.hint.clone(),
        }),
        ErrorCode::QueueFull
        | ErrorCode::LockTimeout
        | ErrorCode::TableChanged
        | ErrorCode::Cancelled
        | ErrorCode::Unavailable
        | ErrorCode::Unknown => Ok(Abandoned::Failed(error.error.clone())),
    }
}

/// An error with its causes on one line.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(formatter, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
