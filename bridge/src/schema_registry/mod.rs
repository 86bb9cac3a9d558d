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
use tokio::sync::{mpsc, oneshot};
use wire::schema::{Schema, SchemaChanged};
use wire::{Position, names};

use crate::catalog::{self, Catalog};
use crate::config::TableFilter;
use crate::encode::Layout;
use crate::pgoutput::Relation;
use crate::publish::publisher::Chained;
use crate::shared::Shared;
use crate::snapshot::unix_s;
use change::Change;
use shape::{Described, Shape};
use store::Store;

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

/// Which tables to keep.
#[derive(Debug, Clone)]
pub struct Scope {
    pub publications: Vec<String>,
    pub tables: TableFilter,
    pub slot: String,
    /// Of the bucket, when it is made.
    pub replicas: usize,
}

/// Owns what is known of the tables.
pub struct Keeper {
    scope: Scope,
    catalog: Catalog,
    store: Store,
    shared: Arc<Shared>,
    questions: mpsc::Receiver<Question>,
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
    ) -> (Self, Keeper) {
        let (sender, questions) = mpsc::channel(1);
        let keeper = Keeper {
            store: Store::new(jetstream, scope.replicas),
            scope,
            catalog,
            shared,
            questions,
            known: HashMap::new(),
            has_looked: false,
            looked_at: Position::START,
        };
        (Self { questions: sender }, keeper)
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

impl Keeper {
    /// Publishes the shapes of all tables; returns when that is done, however long it takes.
    pub async fn first_look(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        while let Err(error) = self.look(None).await {
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
                    self.try_look().await;
                    // A commit is in WAL a moment before it is visible.
                    interval.reset_after(DDL_VISIBLE_AFTER);
                }
                _ = interval.tick() => self.try_look().await,
            }
        }
    }

    async fn try_look(&mut self) {
        if let Err(error) = self.look(None).await {
            tracing::warn!(error = %Chained(&error), "cannot look for changed tables");
        }
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

    /// The version of the shape that rows of this relation have.
    async fn version(
        &mut self,
        relation: &Relation,
        described: Vec<Described>,
        valid_from: Position,
    ) -> Result<u32, Error> {
        let name = (relation.namespace.clone(), relation.name.clone());
        if let Some(version) = self.matching(&name, &described) {
            return Ok(version);
        }
        self.look(Some((&name, valid_from))).await?;
        if let Some(version) = self.matching(&name, &described) {
            return Ok(version);
        }
        // The rows are older than the table's last change.
        let key = names::schema_key(&name.0, &name.1);
        let published = self
            .known(&name)
            .and_then(|known| known.shape.published.clone());
        let versions = self.store.versions(&key).await?;
        let fits = |schema: &&Schema| {
            change::matches(schema, published.as_deref(), &described)
                || change::matches(schema, None, &described)
        };
        if let Some(schema) = versions.iter().rev().find(fits) {
            return Ok(schema.version);
        }
        let schema = shape::from_relation(relation, described);
        let stored = self.store.load(&key).await?;
        let schema = self
            .store
            .write(&key, &stored, schema, valid_from, unix_s())
            .await?;
        let change = Change {
            reason: "rows of an earlier shape follow".to_owned(),
            resnapshot: false,
        };
        self.announce(&name, &schema, change).await;
        let version = schema.version;
        // The table's present shape becomes the last one again at the next look.
        self.known.remove(&name);
        Ok(version)
    }

    fn known(&self, name: &(String, String)) -> Option<&Known> {
        self.known.get(name)
    }

    fn matching(&self, name: &(String, String), described: &[Described]) -> Option<u32> {
        let known = self.known(name)?;
        change::matches(&known.schema, known.shape.published.as_deref(), described)
            .then_some(known.schema.version)
    }

    /// Compares the catalogue with what is known. `first_row` names the table whose new shape a row has
    /// shown, and where.
    async fn look(
        &mut self,
        first_row: Option<(&(String, String), Position)>,
    ) -> Result<(), Error> {
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
        }
        self.forget_missing(&shapes).await?;
        for shape in shapes {
            let name = (shape.namespace.clone(), shape.schema.table.clone());
            if self.known(&name).is_some_and(|known| known.shape == shape) {
                continue;
            }
            let valid_from = match first_row {
                Some((table, position)) if *table == name => position,
                Some(_) | None => self.looked_at,
            };
            self.take(name, shape, valid_from).await?;
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
        valid_from: Position,
    ) -> Result<(), Error> {
        let key = names::schema_key(&name.0, &name.1);
        let stored = self.store.load(&key).await?;
        let change = match &stored.schema {
            Some(schema) => change::compare(schema, &shape.schema),
            None => Some(Change {
                reason: "table published".to_owned(),
                resnapshot: self.has_looked,
            }),
        };
        let schema = match (change, &stored.schema) {
            (None, Some(schema)) => schema.clone(),
            (change, _) => {
                let written = self
                    .store
                    .write(&key, &stored, shape.schema.clone(), valid_from, unix_s())
                    .await?;
                // At the first look a table that nobody knew is no news.
                if let Some(change) = change.filter(|_| self.has_looked || stored.schema.is_some())
                {
                    self.announce(&name, &written, change).await;
                }
                written
            }
        };
        self.known.insert(name, Known { shape, schema });
        Ok(())
    }

    /// Takes tables that were dropped, renamed or are no longer published out of the bucket.
    async fn forget_missing(&mut self, shapes: &[Shape]) -> Result<(), Error> {
        let is_there = |name: &(String, String)| {
            shapes
                .iter()
                .any(|shape| shape.namespace == name.0 && shape.schema.table == name.1)
        };
        let names = self.known.keys().filter(|name| !is_there(name));
        let gone: Vec<_> = names.cloned().collect();
        for name in gone {
            let Some(known) = self.known.get(&name) else {
                continue;
            };
            let renamed = shapes.iter().find(|shape| shape.oid == known.shape.oid);
            let reason = match renamed {
                Some(shape) => format!("table renamed to {}", shape.schema.schema),
                None => "table dropped, or no longer published".to_owned(),
            };
            let schema = known.schema.clone();
            self.store
                .delete(&names::schema_key(&name.0, &name.1))
                .await?;
            let change = Change {
                reason,
                resnapshot: false,
            };
            self.announce(&name, &schema, change).await;
            self.known.remove(&name);
        }
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
