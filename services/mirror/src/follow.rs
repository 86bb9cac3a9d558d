//! Applies the row changes, transaction by transaction.
//!
//! In: the stream behind the lowest sequence of any table. Out: rows in SQLite; the tables that must
//! be seeded anew.
//! Invariant: SQLite commits only where PostgreSQL's transactions are whole, and with them the sequence
//! up to which the stream is applied.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_nats::{Message, Subscriber};
use daemon::chained::Chained;
use futures_util::StreamExt as _;
use futures_util::stream::{SelectAll, select_all};
use wire::gap::Gap;
use wire::schema::SchemaChanged;
use wire::{Event, Lsn, Message as _, Position, names};

use crate::bridges::Bridges;
use crate::change;
use crate::continuity::{check, check_schema};
use crate::desk::Desk;
use crate::join::Need;
use crate::progress::Progress;
use crate::schema_change::{self, Plan};
use crate::source::{self, Mark, Of, Reader, Source, Stored, decode};
use crate::store::{self, ApplyError, Divergence, Tail};
use crate::table::TableName;
use crate::transaction::OutOfOrder;

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
    /// A table was seeded, or may be by now.
    Seeded,
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
    desk: &'a Desk,
    progress: &'a RefCell<Progress>,
    names: Vec<TableName>,
    /// The tables' bridges, by index.
    tables_bridges: Vec<usize>,
    subjects: HashMap<String, usize>,
    gap_subject: String,
    bridges: Bridges,
    /// By subject.
    subjects_bridges: HashMap<String, usize>,
    /// Sequence of the last message read.
    read: u64,
    /// The last event applied.
    tail: Option<Tail>,
    /// Changes applied and not committed.
    uncommitted: u64,
    committed: u64,
    committed_at: Instant,
}

impl<'a> Follower<'a> {
    /// At least one table is seeded and not marked.
    pub fn new(source: &'a Source, desk: &'a Desk, progress: &'a RefCell<Progress>) -> Self {
        let store = desk.store();
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
            desk,
            progress,
            names,
            tables_bridges: Vec::new(),
            subjects,
            bridges: Bridges::default(),
            subjects_bridges: HashMap::new(),
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
        if check(self.source, self.desk).await? {
            return Ok(Ended::Reseed);
        }
        for name in &self.names {
            let slot = self.source.slot(&name.schema, &name.table).await?;
            self.tables_bridges.push(self.bridges.index(&slot));
        }
        let target = self.source.bounds().await?.last_seq;
        let mut reader = self.reader().await?;
        tracing::info!(sequence = self.read, target, "follows the stream");
        loop {
            if once && target <= self.read && self.bridges.is_between() {
                self.commit()?;
                return Ok(Ended::CaughtUp);
            }
            if self.desk.is_wanted() && self.bridges.may_store() {
                self.commit()?;
                self.desk.give_way().await;
            }
            let ended = tokio::select! {
                Some(message) = changes.next() => self.schema_changed(&message).await?,
                () = self.desk.wanted(), if self.bridges.may_store() => None,
                message = reader.next_within(SILENCE_MAX) => match message? {
                    Some(message) => self.take(message).await?,
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
        if self.bridges.may_store() {
            self.commit()?;
        }
        if check(self.source, self.desk).await? {
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

    async fn take(&mut self, message: Stored) -> Result<Option<Ended>, Error> {
        if message.sequence != self.read + 1
            && let Some(ended) = self.hole(&message).await?
        {
            return Ok(Some(ended));
        }
        self.read = message.sequence;
        let pending = message.pending;
        if message.subject == self.gap_subject {
            return self.gap(&message);
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
        let bridge = self.bridge(table, &message).await?;
        if self.is_repeat(table, bridge, mark) {
            return Ok(None);
        }
        for message in self.bridges.take(bridge, message, mark)? {
            if let Some(ended) = self.apply(&message).await? {
                return Ok(Some(ended));
            }
        }
        if self.bridges.may_store() && self.is_due(pending) {
            self.commit()?;
        }
        self.progress.borrow_mut().following(self.read, pending);
        Ok(None)
    }

    /// An event whose turn it is.
    async fn apply(&mut self, message: &Stored) -> Result<Option<Ended>, Error> {
        if let Some(&index) = self.subjects.get(&message.subject)
            && let Some(ended) = self.event(index, message).await?
        {
            return Ok(Some(ended));
        }
        let mark: Mark = decode(&message.payload, &message.subject)?;
        self.tail = Some(Tail {
            sequence: message.sequence,
            position: mark.position(),
        });
        Ok(None)
    }

    /// The bridge that published it, which is its table's.
    async fn bridge(&mut self, table: Option<usize>, message: &Stored) -> Result<usize, Error> {
        if let Some(index) = table {
            return Ok(self.tables_bridges[index]);
        }
        if let Some(&bridge) = self.subjects_bridges.get(&message.subject) {
            return Ok(bridge);
        }
        let of: Of = decode(&message.payload, &message.subject)?;
        let slot = self.source.slot(&of.schema, &of.table).await?;
        let bridge = self.bridges.index(&slot);
        self.subjects_bridges
            .insert(message.subject.clone(), bridge);
        Ok(bridge)
    }

    /// A writer that lost its place may repeat events; they are those of before.
    fn is_repeat(&self, table: Option<usize>, bridge: usize, mark: Mark) -> bool {
        let of_table = |index: usize| self.desk.store().tables()[index].position;
        let last = self.bridges.position(bridge);
        last.is_some_and(|last| mark.position() <= last)
            && table.is_none_or(|index| mark.position() <= of_table(index))
    }

    async fn event(&mut self, index: usize, message: &Stored) -> Result<Option<Ended>, Error> {
        if message.sequence <= self.desk.store().tables()[index].sequence {
            return Ok(None);
        }
        let mut event: Event = decode(&message.payload, &message.subject)?;
        if !self.desk.store().tables()[index].meta.admits(&event) {
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
        let version = self.desk.store().tables()[index].schema.version;
        if version < event.schema_version
            && let Some(ended) = self.follow_schema(index, &event).await?
        {
            return Ok(Some(ended));
        }
        let position = Position::new(event.commit_lsn, event.seq);
        let applied = {
            let mut store = self.desk.store();
            change::plan(&store.tables()[index].shape, &event)
                .map_err(|mismatch| Divergence::from(mismatch).into())
                .and_then(|change| store.apply(index, position, change))
        };
        match applied {
            Ok(()) => {
                self.uncommitted += 1;
                Ok(None)
            }
            Err(ApplyError::Diverged(divergence)) => {
                let table = &self.names[index];
                let operation = event.operation.name();
                let sequence = message.sequence;
                tracing::error!(%table, %position, sequence, operation, error = %Chained(&divergence), "the rows here differ from the source's");
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
        let have = self.desk.store().tables()[index].schema.clone();
        match schema_change::plan(&have, &history, version) {
            Plan::Alter(steps, schema) => {
                tracing::info!(table = %name, version, ?steps, "table follows its schema");
                let altered = self.desk.store().alter(index, &steps, *schema);
                if let Err(error) = altered {
                    // Such as someone's view or index on a dropped column.
                    return self.reseed(
                        index,
                        reseed(format!("SQLite refused: {}", Chained(&error))),
                    );
                }
                Ok(None)
            }
            Plan::Reseed(reason) => self.reseed(index, reseed(reason)),
        }
    }

    /// Messages before this one are gone from the stream.
    async fn hole(&mut self, message: &Stored) -> Result<Option<Ended>, Error> {
        let (first, last) = (self.read + 1, message.sequence - 1);
        tracing::warn!(first, last, "messages are lost to the stream");
        let need = Need {
            reason: format!("messages {first} to {last} are lost"),
            ..Need::default()
        };
        // By the server's clock this always holds.
        let by_time = Need {
            after_ns: i64::try_from(message.stored_ns).unwrap_or(i64::MAX),
            ..need.clone()
        };
        let Ok(mark) = Mark::decode(&message.payload) else {
            return self.break_off(|_| Some(by_time.clone()));
        };
        // Rows that have this event's transaction have all that its bridge published before it.
        let table = self.subjects.get(&message.subject).copied();
        let bridge = self.bridge(table, message).await?;
        let by_position = Need {
            lsn_min: Lsn(mark.commit_lsn.0 + 1),
            ..need
        };
        self.break_off(|of| {
            Some(if of == bridge {
                by_position.clone()
            } else {
                by_time.clone()
            })
        })
    }

    fn gap(&mut self, message: &Stored) -> Result<Option<Ended>, Error> {
        let gap: Gap = decode(&message.payload, &message.subject)?;
        let need = Need::after_gap(&gap, message.stored_ns);
        let epoch = gap.epoch;
        tracing::warn!(slot = gap.slot, epoch, from = %gap.from, to = %gap.to, reason = ?gap.reason, "changes are lost to the stream");
        let slots: Vec<String> = self
            .bridges
            .indexes()
            .map(|index| self.bridges.slot(index).to_owned())
            .collect();
        // Without a name it may be any.
        self.break_off(|of| (slots[of].is_empty() || slots[of] == gap.slot).then(|| need.clone()))
    }

    /// The stream does not go on where it was, for the bridges that have a need. Tables whose rows have
    /// what is lost go on with it: a snapshot may be joined before the place, which is then read again.
    fn break_off(&mut self, need: impl Fn(usize) -> Option<Need>) -> Result<Option<Ended>, Error> {
        if self.bridges.may_store() {
            self.commit()?;
        }
        for index in self.bridges.indexes() {
            if need(index).is_some() {
                self.bridges.break_off(index);
            }
        }
        self.tail = None;
        let bridges = self.tables_bridges.clone();
        self.reseed_all(|index, table| {
            need(bridges[index]).filter(|need| {
                !need.is_met_by(&table.meta, table.schema.version, table.ended_ns.into())
            })
        })
    }

    /// A hint to look at the bucket, and to what the bucket does not show.
    async fn schema_changed(&mut self, message: &Message) -> Result<Option<Ended>, Error> {
        let Ok(changed) = SchemaChanged::decode(&message.payload) else {
            return Ok(None);
        };
        let is_meant =
            |name: &TableName| name.table == changed.table && name.schema == changed.schema;
        let ended = self.reseed_all(|_, table| {
            is_meant(&table.name)
                .then(|| Need::after_change(&changed, &table.meta, table.schema.version))
                .flatten()
        })?;
        if ended.is_some() {
            return Ok(ended);
        }
        let is_marked = check_schema(self.source, self.desk).await?;
        Ok(is_marked.then_some(Ended::Reseed))
    }

    fn reseed(&mut self, index: usize, need: Need) -> Result<Option<Ended>, Error> {
        self.desk
            .store()
            .mark(&[(self.names[index].clone(), need)])?;
        Ok(Some(Ended::Reseed))
    }

    /// Every table that has a need; none: goes on.
    fn reseed_all(
        &mut self,
        need: impl Fn(usize, &store::Table) -> Option<Need>,
    ) -> Result<Option<Ended>, Error> {
        let mut store = self.desk.store();
        let tables = store.tables().iter().enumerate();
        let needs: Vec<_> = tables
            .filter_map(|(index, table)| Some((table.name.clone(), need(index, table)?)))
            .collect();
        if needs.is_empty() {
            return Ok(None);
        }
        store.mark(&needs)?;
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
            let bridges = self.tables_bridges.iter();
            let applied: Vec<u64> = bridges
                .map(|&bridge| self.bridges.applied(bridge, self.read))
                .collect();
            self.desk.store().commit(&applied, self.tail)?;
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
