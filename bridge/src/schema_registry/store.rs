//! The shapes as consumers see them: KV bucket `schemas`, and a word on `schema.changed.*`.
//!
//! In: shapes. Out: versions.
//! Invariant: a table's versions only grow, also over a drop and over restarts; two bridges that find the
//! same shape give it one version; a key stays for as long as some bridge publishes its table.

use async_nats::jetstream::{self, kv, stream};
use futures_util::TryStreamExt as _;
use wire::names::{self, BUCKET_SCHEMAS};
use wire::schema::{Bridge, Schema, SchemaChanged};
use wire::{Message as _, Position};

/// How many versions of a table are kept.
const HISTORY: i64 = 10;

#[derive(Debug, thiserror::Error)]
#[error("cannot {what} KV bucket {BUCKET_SCHEMAS}")]
pub struct Error {
    what: &'static str,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

pub struct Store {
    jetstream: jetstream::Context,
    /// Of the bucket, when it is made.
    replicas: usize,
    bucket: Option<kv::Store>,
    own: Bridge,
}

/// What the bucket holds under a key.
#[derive(Debug, Default)]
pub struct Stored {
    /// 0 when the key was never written.
    revision: u64,
    /// None when it was never written, or deleted.
    pub schema: Option<Schema>,
    /// The highest version the key has had.
    pub version_max: u32,
}

/// What is known of a new version beside the shape.
#[derive(Debug, Clone, Copy)]
pub struct News {
    /// The first position that may have the shape.
    pub valid_from: Position,
    /// Old rows changed with it.
    pub resnapshot: bool,
    pub now_s: i64,
}

impl Store {
    pub fn new(jetstream: jetstream::Context, replicas: usize, own: Bridge) -> Self {
        Self {
            jetstream,
            replicas,
            bucket: None,
            own,
        }
    }

    pub async fn load(&mut self, key: &str) -> Result<Stored, Error> {
        let bucket = self.bucket().await?;
        let entry = bucket.entry(key).await.map_err(failed("read"))?;
        let Some(entry) = entry else {
            return Ok(Stored::default());
        };
        let schema = match entry.operation {
            kv::Operation::Put => Schema::decode(&entry.value).ok(),
            kv::Operation::Delete | kv::Operation::Purge => None,
        };
        let version_max = match &schema {
            Some(schema) => schema.version,
            None => self
                .versions(key)
                .await?
                .iter()
                .map(|schema| schema.version)
                .max()
                .unwrap_or(0),
        };
        Ok(Stored {
            revision: entry.revision,
            schema,
            version_max,
        })
    }

    /// The versions still kept, oldest first.
    pub async fn versions(&mut self, key: &str) -> Result<Vec<Schema>, Error> {
        let bucket = self.bucket().await?;
        let history = bucket.history(key).await.map_err(failed("read"))?;
        let entries: Vec<kv::Entry> = history.try_collect().await.map_err(failed("read"))?;
        Ok(entries
            .iter()
            .filter(|entry| entry.operation == kv::Operation::Put)
            .filter_map(|entry| Schema::decode(&entry.value).ok())
            .collect())
    }

    /// Every table that has a schema.
    pub async fn keys(&mut self) -> Result<Vec<String>, Error> {
        let bucket = self.bucket().await?;
        let keys = bucket.keys().await.map_err(failed("read"))?;
        keys.try_collect().await.map_err(failed("read"))
    }

    /// Whether the schema says that this bridge publishes the table's events.
    pub fn is_ours(&self, schema: &Schema) -> bool {
        schema.bridges.contains(&self.own)
    }

    /// Writes what does not change the shape, under the version that is there.
    pub async fn amend(
        &mut self,
        key: &str,
        stored: &Stored,
        mut schema: Schema,
    ) -> Result<Schema, Error> {
        schema.bridges = self.with_own(stored);
        self.update(key, stored, schema).await
    }

    /// This bridge publishes no events of the table any more: takes the key out unless another does.
    /// The schema, if it was taken out.
    pub async fn leave(&mut self, key: &str) -> Result<Option<Schema>, Error> {
        let stored = self.load(key).await?;
        let Some(mut schema) = stored.schema.clone().filter(|schema| self.is_ours(schema)) else {
            return Ok(None);
        };
        schema.bridges.retain(|bridge| *bridge != self.own);
        if !schema.bridges.is_empty() {
            self.update(key, &stored, schema).await?;
            return Ok(None);
        }
        let bucket = self.bucket().await?;
        bucket.delete(key).await.map_err(failed("delete from"))?;
        Ok(Some(schema))
    }

    /// Of one stream's tables each has one bridge, so ours takes the place of the one before.
    fn with_own(&self, stored: &Stored) -> Vec<Bridge> {
        let schema = stored.schema.iter();
        let others = schema
            .flat_map(|schema| &schema.bridges)
            .filter(|bridge| bridge.stream != self.own.stream);
        others.chain([&self.own]).cloned().collect()
    }

    async fn update(
        &mut self,
        key: &str,
        stored: &Stored,
        schema: Schema,
    ) -> Result<Schema, Error> {
        let payload = schema.to_msgpack().into();
        let bucket = self.bucket().await?;
        let updated = bucket.update(key, payload, stored.revision).await;
        updated.map_err(failed("write to"))?;
        Ok(schema)
    }

    /// Writes the next version behind what was loaded. An error when another bridge was faster: load
    /// again.
    pub async fn write(
        &mut self,
        key: &str,
        stored: &Stored,
        mut schema: Schema,
        news: News,
    ) -> Result<Schema, Error> {
        schema.version = stored.version_max + 1;
        schema.seed_version = match &stored.schema {
            Some(known) if !news.resnapshot => known.seed_version,
            Some(_) | None => schema.version,
        };
        schema.valid_from = news.valid_from;
        schema.timestamp = news.now_s;
        schema.bridges = self.with_own(stored);
        self.update(key, stored, schema).await
    }

    /// Plain publish: who was not there reads the bucket.
    pub async fn announce(&self, changed: &SchemaChanged) {
        let subject = names::schema_changed(&changed.schema, &changed.table);
        let client = self.jetstream.client();
        if let Err(error) = client.publish(subject, changed.to_msgpack().into()).await {
            tracing::warn!(%error, "cannot say that a schema changed");
        }
    }

    async fn bucket(&mut self) -> Result<kv::Store, Error> {
        if let Some(bucket) = &self.bucket {
            return Ok(bucket.clone());
        }
        if self.jetstream.get_key_value(BUCKET_SCHEMAS).await.is_err() {
            self.make_bucket().await?;
        }
        let bucket = self.jetstream.get_key_value(BUCKET_SCHEMAS).await;
        let bucket = bucket.map_err(failed("open"))?;
        self.bucket = Some(bucket.clone());
        Ok(bucket)
    }

    /// The stream behind a bucket (NATS ADR-8), because `create_key_value` first reads the account's
    /// limits, in a form that servers before 2.10 do not send.
    async fn make_bucket(&self) -> Result<(), Error> {
        let config = stream::Config {
            name: wire::names::kv_stream(BUCKET_SCHEMAS),
            description: Some("shapes of the published tables".to_owned()),
            subjects: vec![format!("$KV.{BUCKET_SCHEMAS}.>")],
            max_messages_per_subject: HISTORY,
            storage: stream::StorageType::File,
            discard: stream::DiscardPolicy::New,
            num_replicas: self.replicas,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            ..stream::Config::default()
        };
        let made = self.jetstream.create_stream(config).await;
        made.map(drop).map_err(failed("make"))
    }
}

fn failed<E: std::error::Error + Send + Sync + 'static>(
    what: &'static str,
) -> impl FnOnce(E) -> Error {
    move |source| Error {
        what,
        source: Box::new(source),
    }
}
