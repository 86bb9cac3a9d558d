//! Knows the shape of each table, and publishes it before the first row of that shape goes out.
//!
//! In: relations the publisher has not seen, the catalogue every few seconds, DDL messages. Out: layouts
//! for the encoder, versions in KV bucket `schemas`, `schema.changed.*`.
//! Invariant: no row is published before its table's types are known and its shape is in the bucket.
//!
//! The publisher holds `SchemaRegistry` and asks; one task, `Keeper`, owns what is known.

mod change;
mod shape;
mod store;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use daemon::backoff::{self, Backoff};
use daemon::chained::Chained;
use tokio::sync::{mpsc, oneshot};
use wire::schema::{Bridge, Schema, SchemaChanged};
use wire::{Lsn, Position, names};

use crate::catalog::{self, Catalog};
use crate::config::TableFilter;
use crate::encode::Layout;
use crate::pgoutput::Relation;
use crate::shared::Shared;
use crate::snapshot::unix_s;
use change::Change;
use shape::Described;
pub use shape::{Shape, of_table};
use store::{News, Store};

/// How often the catalogue is looked at when no row and no DDL message gives a reason.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// When to look once more behind a DDL message.
const DDL_VISIBLE_AFTER: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read the catalogue")]
    Catalog(#[from] catalog::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The publisher's end.
pub struct SchemaRegistry {
    questions: mpsc::Sender<Question>,
}

struct Question {
    relation: Relation,
    valid_from: Position,
    answer: oneshot::Sender<Layout>,
}

/// The snapshots' end.
#[derive(Debug, Clone)]
pub struct Versions {
    asks: mpsc::Sender<Ask>,
}

/// Which version has this shape, of a table that nobody can alter just now?
#[derive(Debug)]
struct Ask {
    shape: Shape,
    answer: oneshot::Sender<u32>,
}

/// Which tables to keep.
#[derive(Debug, Clone)]
pub struct Scope {
    pub publications: Vec<String>,
    pub tables: TableFilter,
    pub slot: String,
    /// Of the bucket, when it is made.
    pub replicas: usize,
    /// Of the row changes.
    pub stream: String,
}

/// Owns what is known of the tables.
pub struct Keeper {
    scope: Scope,
    catalog: Catalog,
    store: Store,
    shared: Arc<Shared>,
    questions: mpsc::Receiver<Question>,
    asks: mpsc::Receiver<Ask>,
    /// Tables whose rows DDL has rewritten, and where that committed; no look has met them yet.
    rewritten: HashMap<u32, Lsn>,
    /// Tables that rows of a shape from before gave a schema again; they may be gone.
    ghosts: Vec<(String, String)>,
    /// By schema and table.
    known: HashMap<(String, String), Known>,
    /// The first look is done: what is new from now on is news.
    has_looked: bool,
    /// WAL end at the look before: what is new since was committed behind it.
    looked_at: Position,
}

struct Known {
    shape: Shape,
    /// As in the bucket, with its version.
    schema: Schema,
}

impl SchemaRegistry {
    /// The registry, and the task that serves it.
    pub fn new(
        scope: Scope,
        catalog: Catalog,
        jetstream: jetstream::Context,
        shared: Arc<Shared>,
    ) -> (Self, Versions, Keeper) {
        let (sender, questions) = mpsc::channel(1);
        let (asks_sender, asks) = mpsc::channel(1);
        let own = Bridge {
            stream: scope.stream.clone(),
            slot: scope.slot.clone(),
        };
        let keeper = Keeper {
            store: Store::new(jetstream, scope.replicas, own),
            scope,
            catalog,
            shared,
            questions,
            asks,
            rewritten: HashMap::new(),
            ghosts: Vec::new(),
            known: HashMap::new(),
            has_looked: false,
            looked_at: Position::START,
        };
        let versions = Versions { asks: asks_sender };
        (Self { questions: sender }, versions, keeper)
    }

    /// Waits for PostgreSQL and NATS as long as it takes: a guess would change the types in the messages.
    /// `valid_from` is the position of the first row of this shape.
    pub async fn layout(&mut self, relation: &Relation, valid_from: Position) -> Layout {
        let (answer, layout) = oneshot::channel();
        let question = Question {
            relation: relation.clone(),
            valid_from,
            answer,
        };
        if self.questions.send(question).await.is_ok()
            && let Ok(layout) = layout.await
        {
            return layout;
        }
        // The keeper ends only with the process.
        std::future::pending().await
    }
}

impl Versions {
    /// The version that has this shape, in the bucket by then; None when NATS did not take it.
    pub async fn of(&self, shape: Shape) -> Option<u32> {
        let (answer, version) = oneshot::channel();
        self.asks.send(Ask { shape, answer }).await.ok()?;
        version.await.ok()
    }
}

impl Keeper {
    /// Publishes the shapes of all tables; returns when that is done, however long it takes.
    pub async fn first_look(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        while let Err(error) = self.look().await {
            let delay = backoff.next(backoff::random());
            tracing::warn!(error = %Chained(&error), ?delay, "cannot publish the shapes of the tables");
            tokio::time::sleep(delay).await;
        }
    }

    /// Serves for as long as the publisher asks.
    pub async fn run(mut self) {
        let mut interval = tokio::time::interval(LOOK_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let shared = self.shared.clone();
        loop {
            tokio::select! {
                biased;
                question = self.questions.recv() => match question {
                    Some(question) => self.answer(question).await,
                    None => return,
                },
                () = shared.handoff.ddl_passed() => {
                    self.rewritten.extend(shared.handoff.rewritten());
                    self.try_look().await;
                    // A commit is in WAL a moment before it is visible.
                    interval.reset_after(DDL_VISIBLE_AFTER);
                }
                Some(ask) = self.asks.recv() => self.tell_version(ask).await,
                _ = interval.tick() => {
                    self.try_look().await;
                    self.settle_rewritten().await;
                }
            }
        }
    }

    async fn try_look(&mut self) {
        if let Err(error) = self.look().await {
            tracing::warn!(error = %Chained(&error), "cannot look for changed tables");
        }
    }

    /// Tells of rewritings that have left the shape as it was.
    async fn settle_rewritten(&mut self) {
        let rewritten = |(name, known): (&(String, String), &Known)| {
            let is_rewritten = self.rewritten.contains_key(&known.shape.oid);
            is_rewritten.then(|| (name.clone(), known.shape.clone()))
        };
        let tables: Vec<_> = self.known.iter().filter_map(rewritten).collect();
        for (name, shape) in tables {
            if let Err(error) = self.take(name, shape, self.looked_at).await {
                tracing::warn!(error = %Chained(&error), "cannot say that a table was rewritten");
                return;
            }
        }
        // What is left is of tables that are not published.
        self.rewritten.clear();
    }

    async fn answer(&mut self, question: Question) {
        let Question {
            relation,
            valid_from,
            answer,
        } = question;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let layout = loop {
            match self.layout(&relation, valid_from).await {
                Ok(layout) => break layout,
                Err(error) => {
                    let delay = backoff.next(backoff::random());
                    tracing::warn!(table = %relation.name, error = %Chained(&error), ?delay, "cannot publish the shape of a table, its rows wait");
                    tokio::time::sleep(delay).await;
                }
            }
        };
        // The publisher waits for it, unless the process is ending.
        let _ = answer.send(layout);
    }

    async fn tell_version(&mut self, ask: Ask) {
        let Ask { shape, answer } = ask;
        match self.version_of(shape).await {
            // The snapshot may have been cancelled.
            Ok(version) => drop(answer.send(version)),
            Err(error) => {
                tracing::warn!(error = %Chained(&error), "cannot tell the version of a snapshot's rows");
            }
        }
    }

    async fn version_of(&mut self, shape: Shape) -> Result<u32, Error> {
        let name = (shape.namespace.clone(), shape.schema.table.clone());
        let version = |keeper: &Self| {
            let known = keeper.known(&name)?;
            change::same_columns(&known.schema, &shape.schema).then_some(known.schema.version)
        };
        if let Some(version) = version(self) {
            return Ok(version);
        }
        self.try_look().await;
        if let Some(version) = version(self) {
            return Ok(version);
        }
        // Listing the tables waits for the lock of one of them; who asks has seen this one.
        self.take(name.clone(), shape, self.looked_at).await?;
        Ok(self.known(&name).map_or(0, |known| known.schema.version))
    }

    async fn layout(&mut self, relation: &Relation, valid_from: Position) -> Result<Layout, Error> {
        let type_oids: Vec<u32> = relation
            .columns
            .iter()
            .map(|column| column.type_oid)
            .collect();
        let base_types = self.catalog.base_types(&type_oids).await?;
        let described = shape::describe(self.catalog.client().await?, relation).await?;
        let version = self.version(relation, described, valid_from).await?;
        Ok(Layout::new(relation, version, |oid| {
            base_types.get(&oid).copied().unwrap_or(oid)
        }))
    }

    /// The version of the shape that rows of this relation have; the first of them is at `first_row`.
    async fn version(
        &mut self,
        relation: &Relation,
        described: Vec<Described>,
        first_row: Position,
    ) -> Result<u32, Error> {
        let name = (relation.namespace.clone(), relation.name.clone());
        if let Some(version) = self.matching(&name, relation, &described, first_row)
            && self
                .known(&name)
                .is_some_and(|known| shape::has_identity(&known.schema, relation))
        {
            return Ok(version);
        }
        // Not all tables: listing them may wait for the lock of one, for as long as somebody's DDL takes or
        // a snapshot, which in its turn waits for these rows.
        let client = self.catalog.client().await?;
        let shape = shape::of_table(client, relation.id, &self.scope.publications).await?;
        let is_it = |shape: &Shape| shape.namespace == name.0 && shape.schema.table == name.1;
        if let Some(shape) = shape.filter(is_it)
            && self.known(&name).is_none_or(|known| known.shape != shape)
        {
            self.take(name.clone(), shape, first_row).await?;
        }
        if let Some(version) = self.matching(&name, relation, &described, first_row) {
            return Ok(version);
        }
        // The rows are older than the table's last change.
        let key = names::schema_key(&name.0, &name.1);
        let known = self.known(&name);
        let published = known.and_then(|known| known.shape.published.clone());
        let mut versions = self.store.versions(&key).await?;
        versions.retain(|schema| fits(schema, published.as_deref(), relation, &described));
        let older = versions
            .iter()
            .rfind(|schema| schema.valid_from <= first_row);
        // The bucket may have been written for another history of this database.
        if let Some(schema) = older.or(versions.last()) {
            return Ok(schema.version);
        }
        let stored = self.store.load(&key).await?;
        // Nobody knows which columns of it are which of the versions around it.
        let change = Change {
            reason: "rows of an earlier shape follow".to_owned(),
            resnapshot: true,
        };
        let schema = shape::from_relation(relation, described);
        let schema = self
            .store
            .write(&key, &stored, schema, news(first_row, &change))
            .await?;
        self.announce(&name, &schema, change).await;
        let version = schema.version;
        // The table's present shape becomes the last one again at the next look, if it is there.
        self.known.remove(&name);
        self.ghosts.push(name);
        Ok(version)
    }

    fn known(&self, name: &(String, String)) -> Option<&Known> {
        self.known.get(name)
    }

    /// The last version, if rows like these may have it.
    fn matching(
        &self,
        name: &(String, String),
        relation: &Relation,
        described: &[Described],
        first_row: Position,
    ) -> Option<u32> {
        let known = self.known(name)?;
        let published = known.shape.published.as_deref();
        let is_it = known.schema.valid_from <= first_row
            && fits(&known.schema, published, relation, described);
        is_it.then_some(known.schema.version)
    }

    /// Compares the catalogue with what is known.
    async fn look(&mut self) -> Result<(), Error> {
        let client = self.catalog.client().await?;
        // PostgreSQL from 16 on waits for the locks of published tables when it lists them; the rows of
        // other tables must not wait with it.
        client
            .batch_execute("SET lock_timeout = '500ms'")
            .await
            .map_err(catalog::Error::from)?;
        let wal_end = shape::wal_end(client).await?;
        let mut shapes = shape::published(client, &self.scope.publications).await?;
        shapes.retain(|shape| {
            self.scope
                .tables
                .admits(&shape.namespace, &shape.schema.table)
        });
        if !self.has_looked {
            self.looked_at = shape::confirmed(client, &self.scope.slot).await?;
            self.forget_left(&shapes).await?;
        }
        self.forget_missing(&shapes).await?;
        for shape in shapes {
            let name = (shape.namespace.clone(), shape.schema.table.clone());
            if self.known(&name).is_some_and(|known| known.shape == shape) {
                continue;
            }
            self.take(name, shape, self.looked_at).await?;
        }
        self.looked_at = wal_end;
        self.has_looked = true;
        Ok(())
    }

    /// Publishes a shape unless the bucket has it, and remembers it.
    async fn take(
        &mut self,
        name: (String, String),
        shape: Shape,
        mut valid_from: Position,
    ) -> Result<(), Error> {
        let key = names::schema_key(&name.0, &name.1);
        let stored = self.store.load(&key).await?;
        let rewritten = self.rewritten.get(&shape.oid).copied();
        let change = match &stored.schema {
            Some(schema) => self.change(&name, schema, &shape, rewritten),
            None => Some(Change {
                reason: "table published".to_owned(),
                resnapshot: self.has_looked,
            }),
        };
        if let (Some(change), Some(rewritten)) = (&change, rewritten)
            && change.resnapshot
        {
            valid_from = valid_from.max(Position::new(rewritten, 0));
        }
        let is_amended = |schema: &Schema| {
            schema.relation_id == shape.schema.relation_id && self.store.is_ours(schema)
        };
        let schema = match (change, stored.schema.clone()) {
            (None, Some(schema)) if is_amended(&schema) => schema,
            (None, Some(mut schema)) => {
                schema.relation_id = shape.schema.relation_id;
                self.store.amend(&key, &stored, schema).await?
            }
            (None, None) => unreachable!("a table without a schema is a change"),
            (Some(change), before) => {
                let schema = shape.schema.clone();
                let news = news(valid_from, &change);
                let written = self.store.write(&key, &stored, schema, news).await?;
                // At the first look a table that nobody knew is no news.
                if self.has_looked || before.is_some() {
                    self.announce(&name, &written, change).await;
                }
                written
            }
        };
        self.rewritten.remove(&shape.oid);
        self.known.insert(name, Known { shape, schema });
        Ok(())
    }

    /// What is new since the bucket's version.
    fn change(
        &self,
        name: &(String, String),
        stored: &Schema,
        shape: &Shape,
        rewritten: Option<Lsn>,
    ) -> Option<Change> {
        let mut change = change::compare(stored, &shape.schema);
        // A version from behind the rewriting was made knowing of it.
        if rewritten.is_some_and(|at| stored.valid_from.commit_lsn < at) {
            let change = change.get_or_insert_with(|| Change {
                reason: "rows rewritten".to_owned(),
                resnapshot: true,
            });
            change.resnapshot = true;
        }
        if let Some(change) = &mut change {
            // The default with which a column was added may be gone since.
            let known = self.known(name);
            let is_new_file = known.is_some_and(|known| known.shape.filenode != shape.filenode);
            let is_filled = |position: u32| {
                is_new_file || shape.filled.iter().any(|&filled| filled as u32 == position)
            };
            change.resnapshot |= change::added(stored, &shape.schema).any(is_filled);
        }
        change
    }

    /// Takes tables out of the bucket that went while no bridge looked.
    async fn forget_left(&mut self, shapes: &[Shape]) -> Result<(), Error> {
        for key in self.store.keys().await? {
            let is_there =
                |shape: &Shape| names::schema_key(&shape.namespace, &shape.schema.table) == key;
            if shapes.iter().any(is_there) {
                continue;
            }
            let Ok(name) = names::parse_schema_key(&key) else {
                continue;
            };
            if let Some(schema) = self.store.leave(&key).await? {
                self.announce(&name, &schema, gone(None)).await;
            }
        }
        Ok(())
    }

    /// Takes tables that were dropped, renamed or are no longer published out of the bucket.
    async fn forget_missing(&mut self, shapes: &[Shape]) -> Result<(), Error> {
        let is_there = |name: &(String, String)| {
            shapes
                .iter()
                .any(|shape| shape.namespace == name.0 && shape.schema.table == name.1)
        };
        let names = self.known.keys().chain(&self.ghosts);
        let gone_names: Vec<_> = names.filter(|name| !is_there(name)).cloned().collect();
        for name in gone_names {
            let known = self.known.get(&name);
            let is_it = |shape: &&Shape| known.is_some_and(|known| shape.oid == known.shape.oid);
            let change = gone(shapes.iter().find(is_it));
            let key = names::schema_key(&name.0, &name.1);
            if let Some(schema) = self.store.leave(&key).await? {
                self.announce(&name, &schema, change).await;
            }
            self.known.remove(&name);
        }
        self.ghosts.clear();
        Ok(())
    }

    async fn announce(&self, name: &(String, String), schema: &Schema, change: Change) {
        tracing::info!(
            table = schema.schema,
            version = schema.version,
            resnapshot = change.resnapshot,
            "schema changed: {}",
            change.reason
        );
        let changed = SchemaChanged {
            table: name.1.clone(),
            schema: name.0.clone(),
            version: schema.version,
            valid_from: schema.valid_from,
            resnapshot: change.resnapshot,
            reason: change.reason,
        };
        self.store.announce(&changed).await;
    }
}

fn news(valid_from: Position, change: &Change) -> News {
    News {
        valid_from,
        resnapshot: change.resnapshot,
        now_s: unix_s(),
    }
}

fn gone(renamed: Option<&Shape>) -> Change {
    Change {
        reason: match renamed {
            Some(shape) => format!("table renamed to {}", shape.schema.schema),
            None => "table dropped, or no longer published".to_owned(),
        },
        resnapshot: false,
    }
}

/// Whether rows of the relation may have this shape, and not that of another table that had its name.
fn fits(
    schema: &Schema,
    published: Option<&[String]>,
    relation: &Relation,
    described: &[Described],
) -> bool {
    // PostgreSQL: from 18 on a publication may have generated columns without naming them.
    let all = || schema.columns.iter().map(|column| column.name.clone());
    (schema.relation_id == 0 || schema.relation_id == relation.id)
        && (change::matches(schema, published, described)
            || change::matches(schema, None, described)
            || change::matches(schema, Some(&all().collect::<Vec<_>>()), described))
}
