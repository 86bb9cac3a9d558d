//! `bridge verify <table>`: snapshot + stream = table, or where not.
//!
//! In: a snapshot and the row changes, as a consumer gets them; the table, as of one moment behind it.
//! Out: "equal", or the keys that differ with the rows on both sides.
//! Invariant: of the row changes exactly those are applied that the snapshot lacks and that moment sees,
//! told by transaction id; so it is exact while writers go on.

mod copy;

use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::{self, stream};
use async_nats::{Client, HeaderValue};
use daemon::backoff::{self, Backoff};
use futures_util::StreamExt as _;
use tokio::io::AsyncReadExt as _;
use wire::names::{self, BUCKET_OVERSIZE, HEADER_CONTENT_ENCODING};
use wire::schema::{ReplicaIdentity, Schema};
use wire::snapshot::{Chunk, Meta};
use wire::snapshot_request::{Options, Values};
use wire::{Event, Lsn, Message as _, Operation};

use super::{Error, connect, name, nats, schema};
use crate::config::Config;
use crate::encode::value::Kind;
use crate::snapshot::plan::{self, Plan};
use crate::snapshot::transactions::Visibility;
use crate::snapshot::{Reached, compress, copy_text, reached_subject};
use copy::{Copy, Report};

/// How long the stream may take to come past the moment of comparison.
const CATCH_UP_TIMEOUT: Duration = Duration::from_mins(5);
/// A chunk is at most one message, and no server takes larger ones.
const CHUNK_BYTES_MAX: usize = 64 << 20;

pub(super) async fn run(config: &Config, table: &str) -> Result<bool, Error> {
    let (schema_name, table_name) = name(table)?;
    let shape = schema::read(config, table).await?;
    let (client, jetstream) = connect(config).await?;
    let verify = Verify {
        config,
        client,
        jetstream,
        schema: schema_name,
        table: table_name,
    };
    let report = verify.compare(&shape).await?;
    print!("{report}");
    Ok(report.is_equal())
}

struct Verify<'a> {
    config: &'a Config,
    client: Client,
    jetstream: jetstream::Context,
    schema: String,
    table: String,
}

impl Verify<'_> {
    async fn compare(&self, shape: &Schema) -> Result<Report, Error> {
        let options = Options {
            values: Values::Typed,
            ..Options::default()
        };
        let meta = super::snapshot::make(&self.client, &self.schema, &self.table, &options, |_| ())
            .await?;

        let (postgres, _closed) = self.config.postgres.connect("bridge verify").await?;
        let publications = &self.config.publications;
        let target = plan::find(&postgres, &self.schema, &self.table, publications).await?;
        let plan = target.plan(&postgres, &Options::default()).await?;
        let sql = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off";
        postgres.batch_execute(sql).await?;
        let moment = postgres
            .query_one("SELECT pg_current_snapshot()::text", &[])
            .await?;
        let moment = Visibility::parse(moment.get(0))
            .map_err(|error| Error::Contradiction(error.to_string()))?;
        let end = self.mark().await?;

        let names: Vec<String> = plan
            .columns
            .iter()
            .map(|column| column.name.clone())
            .collect();
        let mut copy = Copy::new(names, &key(shape));
        self.load(&meta, &mut copy).await?;
        self.reached(end).await?;
        self.replay(&meta, &moment, &mut copy).await?;
        self.against(&postgres, &plan, copy).await
    }

    /// Writes into WAL behind everything the moment sees; where.
    async fn mark(&self) -> Result<Lsn, Error> {
        let (beside, _closed) = self.config.postgres.connect("bridge verify mark").await?;
        let sql = "SELECT pg_logical_emit_message(true, 'bridge.verify', '')::text";
        let lsn: String = beside.query_one(sql, &[]).await?.get(0);
        lsn.parse()
            .map_err(|_| Error::Contradiction(format!("{lsn} is no LSN")))
    }

    async fn load(&self, meta: &Meta, copy: &mut Copy) -> Result<(), Error> {
        let stream = self.stream(&self.config.init_stream).await?;
        for index in 0..meta.batch_count {
            let subject = names::init_snap(&self.schema, &self.table, &meta.snapshot_id, index);
            let found = stream.get_last_raw_message_by_subject(&subject).await;
            let message = found.map_err(nats("read a chunk"))?;
            let encoding = message.headers.get(HEADER_CONTENT_ENCODING);
            let encoding = encoding.map(HeaderValue::as_str);
            let payload = compress::decompress(encoding, message.payload, CHUNK_BYTES_MAX)
                .map_err(nats("decompress a chunk"))?;
            for row in Chunk::decode(&payload)?.data {
                copy.insert(&row.0).map_err(Error::Contradiction)?;
            }
        }
        Ok(())
    }

    async fn reached(&self, end: Lsn) -> Result<(), Error> {
        let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(200));
        let reached = async {
            loop {
                let subject = reached_subject(&self.config.slot);
                if let Ok(answer) = self.client.request(subject, "".into()).await
                    && let Ok(reached) = serde_json::from_slice::<Reached>(&answer.payload)
                    && reached.lsn > end
                {
                    return;
                }
                tokio::time::sleep(backoff.next(backoff::random())).await;
            }
        };
        let waited = tokio::time::timeout(CATCH_UP_TIMEOUT, reached).await;
        waited.map_err(|_| Error::Behind(end))
    }

    async fn replay(&self, meta: &Meta, moment: &Visibility, copy: &mut Copy) -> Result<(), Error> {
        let stream = self.stream(&self.config.cdc_stream).await?;
        let consumer = stream
            .create_consumer(pull::OrderedConfig {
                filter_subject: self.subjects(),
                deliver_policy: DeliverPolicy::ByStartSequence {
                    start_sequence: meta.cdc_seq + 1,
                },
                ..pull::OrderedConfig::default()
            })
            .await
            .map_err(nats("read the stream"))?;
        let mut consumer = consumer;
        let pending = consumer
            .info()
            .await
            .map_err(nats("read the stream"))?
            .num_pending;
        if pending == 0 {
            return Ok(());
        }
        let mut messages = consumer.messages().await.map_err(nats("read the stream"))?;
        for _ in 0..pending {
            let message = messages.next().await.ok_or(Error::Ended)?;
            let message = message.map_err(nats("read the stream"))?;
            let mut event = Event::decode(&message.payload)?;
            if event.table != self.table || event.schema != self.schema {
                continue;
            }
            if meta.admits(&event) && moment.sees(event.xid) {
                if let Some(oversize) = &event.oversize {
                    event = self.whole(&oversize.object).await?;
                }
                copy.apply(&event).map_err(Error::Contradiction)?;
            }
        }
        Ok(())
    }

    async fn whole(&self, object: &str) -> Result<Event, Error> {
        let bucket = self.jetstream.get_object_store(BUCKET_OVERSIZE).await;
        let bucket = bucket.map_err(nats("open bucket oversize"))?;
        let mut found = bucket
            .get(object)
            .await
            .map_err(nats("read a large event"))?;
        let mut body = Vec::new();
        found
            .read_to_end(&mut body)
            .await
            .map_err(nats("read a large event"))?;
        Ok(Event::decode(&body)?)
    }

    /// Takes the table's rows, one by one, out of the copy.
    async fn against(
        &self,
        postgres: &tokio_postgres::Client,
        plan: &Plan,
        mut copy: Copy,
    ) -> Result<Report, Error> {
        let type_oids: Vec<u32> = plan.columns.iter().map(|column| column.type_oid).collect();
        let mut catalog = crate::catalog::Catalog::new(self.config.postgres.clone());
        let base_types = catalog
            .base_types(&type_oids)
            .await
            .map_err(crate::snapshot::failure::Failure::from)?;
        let kinds: Vec<Kind> = type_oids
            .iter()
            .map(|oid| Kind::of(base_types.get(oid).copied().unwrap_or(*oid)))
            .collect();
        let mut lines = std::pin::pin!(postgres.copy_out(&plan.copy).await?);
        let mut scratch = Vec::new();
        while let Some(line) = lines.next().await {
            let line = line?;
            let values = copy_text::fields(&line).zip(&kinds).map(|(field, kind)| {
                copy::of_postgres(*kind, copy_text::unescape(field, &mut scratch))
            });
            let row = values.collect();
            copy.take(row);
        }
        Ok(copy.report())
    }

    /// All operations on the table, where the pattern's last token is the operation.
    fn subjects(&self) -> String {
        let subjects = self.config.subjects.subjects(&self.schema, &self.table);
        let insert = subjects.of(Operation::Insert);
        match insert.strip_suffix("insert") {
            Some(before) => format!("{before}*"),
            None => self.config.subjects.stream_subjects(),
        }
    }

    async fn stream(&self, name: &str) -> Result<stream::Stream, Error> {
        self.jetstream
            .get_stream(name)
            .await
            .map_err(nats("open a stream"))
    }
}

/// The columns that tell a row in UPDATE and DELETE; none when only the whole row does.
fn key(shape: &Schema) -> Vec<String> {
    match shape.replica_identity {
        ReplicaIdentity::Index => shape.identity_columns.clone(),
        ReplicaIdentity::Default | ReplicaIdentity::Full | ReplicaIdentity::Nothing => {
            shape.primary_key.clone()
        }
    }
}
