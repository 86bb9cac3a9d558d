//! Applies the row changes, transaction by transaction.
//!
//! In: the stream behind the lowest sequence of any table. Out: rows in SQLite; the tables that must
//! be seeded anew.
//! Invariant: SQLite commits only where a PostgreSQL transaction is whole, and with it the sequence up
//! to which the stream is applied.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_nats::{Message, Subscriber};
use futures_util::StreamExt as _;
use futures_util::stream::{SelectAll, select_all};
use wire::gap::Gap;
use wire::schema::SchemaChanged;
use wire::{Event, Lsn, Message as _, Position, names};

use crate::chain::Chain;
use crate::change;
use crate::continuity::check;
use crate::join::Need;
use crate::progress::Progress;
use crate::schema_change::{self, Plan};
use crate::source::{self, Mark, Reader, Source, Stored, decode};
use crate::store::{self, ApplyError, Divergence, Store, Tail};
use crate::table::TableName;
use crate::transaction::{OutOfOrder, Transactions};

/// Whole transactions are committed together up to this many events or this much time: each commit
/// costs an fsync. When nothing is pending a transaction is committed at once.
const EVENTS_MAX: u64 = 5_000;
const LINGER: Duration = Duration::from_millis(250);
/// Transactions that touch no table here move the stored position only this often.
const IDLE_COMMIT: Duration = Duration::from_secs(1);
/// A stream that is silent for this long is looked at: it may be another one.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// A schema is in the bucket before the first row of its shape, so waiting is for a slow replica.
const SCHEMA_ATTEMPTS: u32 = 10;
const SCHEMA_PAUSE: Duration = Duration::from_millis(500);

/// Why following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything up to the target is applied.
    CaughtUp,
    /// Tables are marked to be seeded anew.
    Reseed,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Order(#[from] OutOfOrder),
    #[error("the events have no position; the bridge is too old for an exact copy")]
    NoPosition,
}

pub struct Follower<'a> {
    source: &'a Source,
    store: &'a mut Store,
    progress: &'a mut Progress,
    names: Vec<TableName>,
    subjects: HashMap<String, usize>,
    gap_subject: String,
    transactions: Transactions,
    /// Sequence of the last message read.
    read: u64,
    /// The last event read.
    tail: Option<Tail>,
    /// Changes applied and not committed.
    uncommitted: u64,
    committed: u64,
    committed_at: Instant,
}

impl<'a> Follower<'a> {
    /// At least one table is seeded, and none is marked.
    pub fn new(source: &'a Source, store: &'a mut Store, progress: &'a mut Progress) -> Self {
        let names: Vec<TableName> = store
            .tables()
            .iter()
            .map(|table| table.name.clone())
            .collect();
        let subjects = source.event_subjects(&names.iter().collect::<Vec<_>>());
        let sequences = store.tables().iter().map(|table| table.sequence);
        let read = sequences.min().unwrap_or(0);
        Self {
            gap_subject: source.gap_subject(),
            source,
            store,
            progress,
            names,
            subjects,
            transactions: Transactions::default(),
            read,
            tail: None,
            uncommitted: 0,
            committed: read,
            committed_at: Instant::now(),
        }
    }

    /// Follows the stream; for ever, or with `once` until what is in it now is applied.
    ///
    /// Dropped at any time, it leaves the file as of the last commit and one open transaction in the
    /// store, which `Store::rollback` ends.
    pub async fn run(mut self, once: bool) -> Result<Ended, Error> {
        // First, so that no change is announced unheard.
        let mut changes = self.changes().await?;
        if check(self.source, self.store).await? {
            return Ok(Ended::Reseed);
        }
        let target = self.source.bounds().await?.last_seq;
        let mut reader = self.reader().await?;
        tracing::info!(sequence = self.read, target, "follows the stream");
        loop {
            if once && target <= self.read && self.transactions.is_between() {
                self.commit()?;
                return Ok(Ended::CaughtUp);
            }
            let ended = tokio::select! {
                Some(message) = changes.next() => self.schema_changed(&message)?,
                message = reader.next_within(SILENCE_MAX) => match message? {
                    Some(message) => self.take(&message).await?,
                    None => self.silence(&mut reader).await?,
                },
            };
            if let Some(ended) = ended {
                return Ok(ended);
            }
        }
    }

    async fn changes(&self) -> Result<SelectAll<Subscriber>, Error> {
        let mut all = Vec::new();
        for name in &self.names {
            let subject = names::schema_changed(&name.schema, &name.table);
            all.push(self.source.subscribe(subject).await?);
        }
        Ok(select_all(all))
    }

    /// The whole stream, not only the tables' subjects: the event that ends a transaction may be of
    /// any table, and a sequence left out tells that a message is lost.
    async fn reader(&self) -> Result<Reader, Error> {
        let stream = &self.source.streams().cdc;
        Ok(self.source.reader(stream, String::new(), self.read).await?)
    }

    async fn silence(&mut self, reader: &mut Reader) -> Result<Option<Ended>, Error> {
        if self.transactions.is_between() {
            self.commit()?;
        }
        if check(self.source, self.store).await? {
            return Ok(Some(Ended::Reseed));
        }
        if self.read < self.source.bounds().await?.last_seq {
            tracing::warn!(
                sequence = self.read,
                "the stream has more and nothing came, reads anew"
            );
            *reader = self.reader().await?;
        }
        Ok(None)
    }

    async fn take(&mut self, message: &Stored) -> Result<Option<Ended>, Error> {
        if message.sequence != self.read + 1
            && let Some(ended) = self.hole(message)?
        {
            return Ok(Some(ended));
        }
        self.read = message.sequence;
        if message.subject == self.gap_subject {
            return self.gap(message);
        }
        let table = self.subjects.get(&message.subject).copied();
        let Ok(mark) = Mark::decode(&message.payload) else {
            if table.is_some() {
                tracing::warn!(
                    subject = message.subject,
                    sequence = message.sequence,
                    "a message that is no event is passed over"
                );
            }
            return Ok(None);
        };
        if !mark.commit_lsn.is_valid() {
            return Err(Error::NoPosition);
        }
        if self.is_repeat(table, mark) {
            return Ok(None);
        }
        let is_whole = self.transactions.take(mark.position(), mark.last)?;
        if let Some(index) = table
            && let Some(ended) = self.event(index, message).await?
        {
            return Ok(Some(ended));
        }
        self.tail = Some(Tail {
            sequence: message.sequence,
            position: mark.position(),
        });
        if is_whole && self.is_due(message.pending) {
            self.commit()?;
        }
        self.progress.following(message.sequence, message.pending);
        Ok(None)
    }

    /// A writer that lost its place may repeat events; they are those of before.
    fn is_repeat(&self, table: Option<usize>, mark: Mark) -> bool {
        let seen = match table {
            Some(index) => Some(self.store.tables()[index].position),
            None => self.tail.map(|tail| tail.position),
        };
        seen.is_some_and(|seen| mark.position() <= seen)
            && self
                .tail
                .is_some_and(|tail| mark.position() <= tail.position)
    }

    async fn event(&mut self, index: usize, message: &Stored) -> Result<Option<Ended>, Error> {
        let table = &self.store.tables()[index];
        if message.sequence <= table.sequence {
            return Ok(None);
        }
        let mut event: Event = decode(&message.payload, &message.subject)?;
        if !table.meta.admits(&event) {
            return Ok(None);
        }
        if let Some(stub) = &event.oversize {
            event = match self.source.body(stub).await {
                Ok(event) => event,
                Err(error @ source::Error::Body { .. }) => {
                    return self.reseed(index, after(&event, error.to_string()));
                }
                Err(error) => return Err(error.into()),
            };
        }
        if self.store.tables()[index].schema.version < event.schema_version
            && let Some(ended) = self.follow_schema(index, &event).await?
        {
            return Ok(Some(ended));
        }
        let table = &self.store.tables()[index];
        let position = Position::new(event.commit_lsn, event.seq);
        let applied = change::plan(&table.shape, &event)
            .map_err(|mismatch| Divergence::from(mismatch).into())
            .and_then(|change| self.store.apply(index, position, change));
        match applied {
            Ok(()) => {
                self.uncommitted += 1;
                Ok(None)
            }
            Err(ApplyError::Diverged(divergence)) => {
                let table = &self.names[index];
                let operation = event.operation.name();
                let sequence = message.sequence;
                tracing::error!(%table, %position, sequence, operation, error = %Chain(&divergence), "the rows here differ from the source's");
                self.reseed(index, after(&event, divergence.to_string()))
            }
            Err(ApplyError::Sqlite(error)) => Err(store::Error::from(error).into()),
        }
    }

    /// Gives the table the shape that the event has.
    async fn follow_schema(&mut self, index: usize, event: &Event) -> Result<Option<Ended>, Error> {
        let version = event.schema_version;
        let name = self.names[index].clone();
        let mut history = self.source.history(&name).await?;
        for _ in 0..SCHEMA_ATTEMPTS {
            if history.iter().any(|schema| schema.version == version) {
                break;
            }
            tokio::time::sleep(SCHEMA_PAUSE).await;
            history = self.source.history(&name).await?;
        }
        let reseed = |reason| Need {
            reason,
            lsn_min: Lsn::INVALID,
            schema_version_min: version,
            after_ns: 0,
        };
        match schema_change::plan(&self.store.tables()[index].schema, &history, version) {
            Plan::Alter(steps, schema) => {
                tracing::info!(table = %name, version, ?steps, "table follows its schema");
                if let Err(error) = self.store.alter(index, &steps, *schema) {
                    // Such as someone's view or index on a dropped column.
                    return self
                        .reseed(index, reseed(format!("SQLite refused: {}", Chain(&error))));
                }
                Ok(None)
            }
            Plan::Reseed(reason) => self.reseed(index, reseed(reason)),
        }
    }

    /// Messages before this one are gone from the stream.
    fn hole(&mut self, message: &Stored) -> Result<Option<Ended>, Error> {
        let (first, last) = (self.read + 1, message.sequence - 1);
        tracing::warn!(first, last, "messages are lost to the stream");
        let mut need = Need {
            reason: format!("messages {first} to {last} are lost"),
            ..Need::default()
        };
        // Rows that have this event's transaction have all that committed before it.
        match Mark::decode(&message.payload) {
            Ok(mark) => need.lsn_min = Lsn(mark.commit_lsn.0 + 1),
            Err(_) => need.after_ns = i64::try_from(message.stored_ns).unwrap_or(i64::MAX),
        }
        self.break_off(&need)
    }

    fn gap(&mut self, message: &Stored) -> Result<Option<Ended>, Error> {
        let gap: Gap = decode(&message.payload, &message.subject)?;
        let need = Need::after_gap(&gap, message.stored_ns);
        let epoch = gap.epoch;
        tracing::warn!(slot = gap.slot, epoch, from = %gap.from, to = %gap.to, reason = ?gap.reason, "changes are lost to the stream");
        self.break_off(&need)
    }

    /// The stream does not go on where it was. Tables whose rows have what is lost go on with it: a
    /// snapshot may be joined before the place, which is then read again.
    fn break_off(&mut self, need: &Need) -> Result<Option<Ended>, Error> {
        if self.transactions.is_between() {
            self.commit()?;
        }
        self.transactions = Transactions::default();
        self.tail = None;
        self.reseed_all(|table| {
            let has_it = need.is_met_by(&table.meta, table.schema.version, table.ended_ns.into());
            (!has_it).then(|| need.clone())
        })
    }

    fn schema_changed(&mut self, message: &Message) -> Result<Option<Ended>, Error> {
        let Ok(changed) = SchemaChanged::decode(&message.payload) else {
            return Ok(None);
        };
        let is_meant = |table: &store::Table| {
            table.name.table == changed.table && table.name.schema == changed.schema
        };
        self.reseed_all(|table| {
            is_meant(table)
                .then(|| Need::after_change(&changed, &table.meta, table.schema.version))
                .flatten()
        })
    }

    fn reseed(&mut self, index: usize, need: Need) -> Result<Option<Ended>, Error> {
        self.store.mark(&[(self.names[index].clone(), need)])?;
        Ok(Some(Ended::Reseed))
    }

    /// Every table that has a need; none: goes on.
    fn reseed_all(
        &mut self,
        need: impl Fn(&store::Table) -> Option<Need>,
    ) -> Result<Option<Ended>, Error> {
        let tables = self.store.tables().iter();
        let needs: Vec<_> = tables
            .filter_map(|table| Some((table.name.clone(), need(table)?)))
            .collect();
        if needs.is_empty() {
            return Ok(None);
        }
        self.store.mark(&needs)?;
        Ok(Some(Ended::Reseed))
    }

    fn is_due(&self, pending: u64) -> bool {
        let since = self.committed_at.elapsed();
        if self.uncommitted == 0 {
            return IDLE_COMMIT <= since;
        }
        pending == 0 || EVENTS_MAX <= self.uncommitted || LINGER <= since
    }

    fn commit(&mut self) -> Result<(), Error> {
        if self.committed < self.read || 0 < self.uncommitted {
            self.store.commit(self.read, self.tail)?;
        }
        self.committed = self.read;
        self.committed_at = Instant::now();
        self.uncommitted = 0;
        Ok(())
    }
}

/// Rows that have the event.
fn after(event: &Event, reason: String) -> Need {
    Need {
        reason,
        lsn_min: Lsn(event.commit_lsn.0 + 1),
        ..Need::default()
    }
}
