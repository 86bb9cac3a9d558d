//! Takes requests and cancels, and keeps the workers busy.
//!
//! In: messages on `snapshot.>`, requests kept in stream `REQUESTS`. Out: replies, snapshots.
//! Invariant: every request that can be answered is: with a snapshot id or a reason, by the bridge that
//! publishes the table, or by all when none does. A request stays in
//! the stream until its snapshot has ended, so a bridge that comes back makes it then.
//!
//! Live requests come by plain subscription; the stream is looked through at the start and now and
//! then, for those that came while nobody listened. It sends no PubAcks, because a requester waits for
//! our reply on the same subject.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::{Client, Message as NatsMessage, Subscriber};
use daemon::backoff::{self, Backoff};
use daemon::chained::Chained;
use daemon::nats::FirstConnect;
use daemon::shutdown::Shutdown;
use futures_util::StreamExt as _;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use wire::names::{self, BUCKET_SCHEMAS, CANCEL_SUBJECTS, REQUEST_SUBJECTS, STREAM_REQUESTS};
use wire::schema::{Bridge, Schema};
use wire::snapshot::{ErrorCode, Meta};
use wire::snapshot_request::{Options, Reply, Resume};
use wire::{Message as _, token};

use super::failure::Failure;
use super::kept::{self, Kept};
use super::plan;
use super::queue::{Answer, Cancelled, Job, Queue};
use super::worker::{Summary, Worker};
use super::{Reached, Settings, reached_subject, unix_s};
use crate::catalog::Catalog;
use crate::shared::{Condition, Shared};

/// Snapshots that may wait for a worker.
const WAITING_MAX: usize = 64;
/// How long a request stays another bridge's, and how many of them are remembered.
const ANOTHERS_FOR: Duration = Duration::from_secs(3);
const ANOTHERS_MAX: usize = 1000;
/// How often the stream is looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// How long the catalogue may take to answer a request.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// PostgreSQL from 16 on waits for the locks of published tables when it lists them.
const CHECK_LOCK_TIMEOUT: &str = "SET lock_timeout = '500ms'";
/// How long the drain waits for cancelled workers to say so.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs until the shutdown.
pub async fn run(settings: Settings, shutdown: Shutdown) {
    let shared = settings.shared.clone();
    let name = format!("bridge {} snapshots", settings.slot);
    let client = match settings.nats.connect(&name, FirstConnect::Retry).await {
        Ok(client) => client,
        Err(error) => {
            tracing::error!("no snapshots: {}", Chained(&error));
            shutdown.wait().await;
            return;
        }
    };
    let mut listener = Listener::new(settings, client);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        // A standby keeps silent: the bridge that holds the slot answers.
        let ended = tokio::select! {
            _ = shutdown.wait() => break,
            ended = async {
                active(&shared).await;
                listener.serve(&shared).await
            } => ended,
        };
        if let Err(error) = ended {
            let delay = backoff.next(backoff::random());
            tracing::warn!(error = %Chained(&error), ?delay, "cannot listen for snapshot requests");
            tokio::time::sleep(delay).await;
        } else {
            backoff.reset();
        }
    }
    listener.farewell().await;
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "cannot make stream {STREAM_REQUESTS}; the NATS user needs $JS.API.STREAM.CREATE.{STREAM_REQUESTS}"
    )]
    Stream(#[source] jetstream::context::CreateStreamError),
    #[error("cannot subscribe to snapshot.>")]
    Subscribe(#[from] async_nats::SubscribeError),
    #[error("the subscription to snapshot.> has ended")]
    Ended,
}

struct Listener {
    settings: Settings,
    client: Client,
    jetstream: jetstream::Context,
    catalog: Catalog,
    worker: Arc<Worker>,
    queue: Queue,
    running: JoinSet<(Job, Result<Summary, Failure>)>,
    /// By snapshot id; dropping one cancels as well.
    cancels: HashMap<String, oneshot::Sender<()>>,
    /// Subjects of `REQUESTS` that a snapshot will have served, by its id.
    served: HashMap<String, Vec<String>>,
    /// Subjects of requests that another bridge answers, and when that was looked up.
    anothers: HashMap<String, Instant>,
}

/// A request, wherever it came from.
struct Request<'a> {
    subject: &'a str,
    payload: &'a [u8],
    reply: Option<async_nats::Subject>,
}

impl Listener {
    fn new(settings: Settings, client: Client) -> Self {
        let jetstream = jetstream::new(client.clone());
        Self {
            catalog: Catalog::new(settings.postgres.clone()),
            worker: Arc::new(Worker::new(settings.clone(), jetstream.clone())),
            queue: Queue::new(settings.workers_max, WAITING_MAX),
            running: JoinSet::new(),
            cancels: HashMap::new(),
            served: HashMap::new(),
            anothers: HashMap::new(),
            settings,
            client,
            jetstream,
        }
    }

    /// Serves while this bridge is the one that streams.
    async fn serve(&mut self, shared: &Shared) -> Result<(), Error> {
        let replicas = self.settings.stream_replicas;
        let kept = kept::open(&self.jetstream, replicas).await;
        let kept = kept.map_err(Error::Stream)?;
        let mut requests = self.client.subscribe(REQUEST_SUBJECTS).await?;
        let mut cancels = self.client.subscribe(CANCEL_SUBJECTS).await?;
        let reached = reached_subject(&self.settings.slot);
        let mut reached: Subscriber = self.client.subscribe(reached).await?;
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            tokio::select! {
                message = requests.next() => self.request(&message.ok_or(Error::Ended)?).await,
                message = cancels.next() => self.cancel(&message.ok_or(Error::Ended)?).await,
                message = reached.next() => self.reached(message.ok_or(Error::Ended)?).await,
                Some(ended) = self.running.join_next() => {
                    if let Ok((job, _)) = ended {
                        self.ended(&kept, &job).await;
                    }
                }
                _ = sweep.tick() => {
                    if shared.source() == Condition::Standby {
                        return Ok(());
                    }
                    self.sweep(&kept).await;
                }
            }
            self.start();
        }
    }

    fn start(&mut self) {
        while let Some(job) = self.queue.start() {
            let (cancel, cancelled) = oneshot::channel();
            self.cancels.insert(job.snapshot_id.clone(), cancel);
            let worker = self.worker.clone();
            self.running.spawn(async move {
                let made = worker.run(&job, cancelled).await;
                (job, made)
            });
        }
        let metrics = &self.settings.metrics;
        metrics.snapshots_waiting.set(self.queue.waiting() as i64);
        metrics.snapshots_running.set(self.queue.running() as i64);
    }

    async fn request(&mut self, message: &NatsMessage) {
        let request = Request {
            subject: &message.subject,
            payload: &message.payload,
            reply: message.reply.clone(),
        };
        self.accept(request).await;
    }

    /// Puts a request into the queue, or says why not. True when the stream need not keep it.
    async fn accept(&mut self, request: Request<'_>) -> bool {
        let tail = request
            .subject
            .strip_prefix("snapshot.request.")
            .unwrap_or_default();
        let Some((schema, table)) = names::parse_snapshot_request(request.subject) else {
            let error = format!("{tail:?} names no table");
            let hint = "ask on snapshot.request.{table} or snapshot.request.{schema}.{table}";
            let failure = Failure::new(ErrorCode::UnknownTable, error, hint);
            self.refuse(&request, names::PUBLIC, tail, &failure).await;
            return true;
        };
        let is_own = self.settings.tables.admits(&schema, &table);
        if self.was_anothers(request.subject)
            || !is_own && self.is_anothers(&schema, &table, request.subject).await
        {
            return false;
        }
        match self.enqueue(&schema, &table, &request).await {
            Ok(snapshot_id) => {
                let subjects = self.served.entry(snapshot_id.clone()).or_default();
                if !subjects.iter().any(|subject| subject == request.subject) {
                    subjects.push(request.subject.to_owned());
                }
                self.reply(request.reply, &Reply::Accepted { snapshot_id })
                    .await;
                false
            }
            Err(failure)
                if is_of_no_use(&failure)
                    && self.is_anothers(&schema, &table, request.subject).await =>
            {
                false
            }
            Err(failure) => {
                self.refuse(&request, &schema, &table, &failure).await;
                true
            }
        }
    }

    /// Whether another bridge publishes the table, running or not: it answers, and this one keeps silent.
    async fn is_anothers(&mut self, schema: &str, table: &str, subject: &str) -> bool {
        let Ok(bucket) = self.jetstream.get_key_value(BUCKET_SCHEMAS).await else {
            return false;
        };
        let value = bucket.get(names::schema_key(schema, table)).await;
        let schema = value.ok().flatten();
        let schema = schema.and_then(|value| Schema::decode(&value).ok());
        let is_own = |bridge: &Bridge| bridge.slot == self.settings.slot;
        let is_anothers = schema
            .is_some_and(|schema| !schema.bridges.is_empty() && !schema.bridges.iter().any(is_own));
        if is_anothers {
            if self.anothers.len() == ANOTHERS_MAX {
                self.anothers.clear();
            }
            self.anothers.insert(subject.to_owned(), Instant::now());
        }
        is_anothers
    }

    /// The same as it was a moment ago, so that thousands of requests are one question.
    fn was_anothers(&self, subject: &str) -> bool {
        let asked_at = self.anothers.get(subject);
        asked_at.is_some_and(|asked_at| asked_at.elapsed() < ANOTHERS_FOR)
    }

    async fn enqueue(
        &mut self,
        schema: &str,
        table: &str,
        request: &Request<'_>,
    ) -> Result<String, Failure> {
        let mut options = Options::from_payload(request.payload).map_err(|error| {
            Failure::new(
                ErrorCode::BadRequest,
                format!("the options are not understood: {}", Chained(&error)),
                "send nothing, or a map with values, columns, where, compression, resume",
            )
        })?;
        if let Some(resume) = options.resume.take()
            && let Some(id) = self.resume(schema, table, &resume).await
        {
            return Ok(id);
        }
        // Asked first, so that thousands of equal requests cost PostgreSQL nothing.
        if let Some(id) = self.queue.equal(schema, table, &options) {
            return Ok(id.to_owned());
        }
        let publications = self.settings.publications.clone();
        let check = async {
            let client = self.catalog.client().await?;
            client.batch_execute(CHECK_LOCK_TIMEOUT).await?;
            let target = plan::find(client, schema, table, &publications).await?;
            target.check(&options)
        };
        let checked = tokio::time::timeout(CHECK_TIMEOUT, check).await;
        match checked {
            Ok(Ok(())) => {}
            // A published table is locked just now. The worker has the patience to wait, and checks again.
            Ok(Err(failure)) if failure.code == ErrorCode::LockTimeout => {}
            Ok(Err(failure)) => return Err(failure),
            Err(_) => return Err(Failure::unavailable("PostgreSQL does not answer")),
        }
        if !self.settings.tables.admits(schema, table) {
            return Err(Failure::new(
                ErrorCode::NotPublished,
                format!("table {:?} is not in --table", format!("{schema}.{table}")),
                "start a bridge with it in --table",
            ));
        }
        match self.queue.request(schema, table, &options, new_id) {
            Answer::Queued(id) | Answer::Shared(id) => Ok(id),
            Answer::Full => Err(Failure::new(
                ErrorCode::QueueFull,
                format!("{WAITING_MAX} snapshots wait already"),
                "ask again when some are done",
            )),
        }
    }

    /// The snapshot to be resumed, if its missing chunks are in the stream or will be. Else a new one is
    /// made under a new id, which tells the requester to start over: what an interrupted transaction saw
    /// cannot be seen again.
    async fn resume(&mut self, schema: &str, table: &str, resume: &Resume) -> Option<String> {
        let id = &resume.snapshot_id;
        if self.queue.knows(id) {
            return Some(id.clone());
        }
        let stream = self
            .jetstream
            .get_stream(&self.settings.init_stream)
            .await
            .ok()?;
        let subject = names::init_meta(schema, table);
        let last = stream
            .get_last_raw_message_by_subject(&subject)
            .await
            .ok()?;
        let meta = Meta::decode(&last.payload)
            .ok()
            .filter(|meta| meta.snapshot_id == *id)?;
        // The stream drops its oldest messages first, so the first one needed decides.
        if resume.chunk < meta.batch_count {
            let first = names::init_snap(schema, table, id, resume.chunk);
            stream.get_last_raw_message_by_subject(&first).await.ok()?;
        }
        // Said again for those who only listen.
        self.client.publish(subject, last.payload).await.ok()?;
        Some(id.clone())
    }

    async fn cancel(&mut self, message: &NatsMessage) {
        let Some(id) = names::parse_snapshot_cancel(&message.subject) else {
            return;
        };
        match self.queue.cancel(&id) {
            Cancelled::Waiting(job) => {
                self.worker.say_failure(&job, &Failure::cancelled()).await;
                self.forget(&job).await;
            }
            Cancelled::Running => drop(self.cancels.remove(&id)),
            Cancelled::Unknown => tracing::debug!(snapshot_id = id, "no such snapshot to cancel"),
        }
    }

    async fn reached(&self, message: NatsMessage) {
        let reached = Reached {
            lsn: self.settings.shared.handoff.stored_lsn(),
        };
        if let (Some(reply), Ok(json)) = (message.reply, serde_json::to_vec(&reached)) {
            let _ = self.client.publish(reply, json.into()).await;
        }
    }

    async fn ended(&mut self, kept: &Kept, job: &Job) {
        self.queue.ended(&job.snapshot_id);
        self.cancels.remove(&job.snapshot_id);
        for subject in self.served.remove(&job.snapshot_id).unwrap_or_default() {
            kept.remove(&subject).await;
        }
    }

    async fn forget(&mut self, job: &Job) {
        if let Ok(kept) = kept::open(&self.jetstream, self.settings.stream_replicas).await {
            self.ended(&kept, job).await;
        }
    }

    /// Takes up requests that nobody heard.
    async fn sweep(&mut self, kept: &Kept) {
        for subject in kept.subjects().await {
            if names::parse_snapshot_request(&subject)
                .is_some_and(|(schema, table)| self.queue.concerns(&schema, &table))
            {
                continue;
            }
            let Some(payload) = kept.payload(&subject).await else {
                continue;
            };
            let request = Request {
                subject: &subject,
                payload: &payload,
                reply: None,
            };
            if self.accept(request).await {
                kept.remove(&subject).await;
            }
        }
    }

    async fn refuse(&self, request: &Request<'_>, schema: &str, table: &str, failure: &Failure) {
        tracing::info!(table, code = ?failure.code, error = %failure, "snapshot refused");
        let message = failure.message(schema, table, None);
        let subject = names::init_error(schema, table);
        if let Err(error) = self
            .client
            .publish(subject, message.to_msgpack().into())
            .await
        {
            tracing::warn!(%error, "cannot say why a snapshot was refused");
        }
        self.reply(request.reply.clone(), &Reply::Refused(message))
            .await;
    }

    async fn reply(&self, to: Option<async_nats::Subject>, reply: &Reply) {
        let Some(to) = to else { return };
        if let Err(error) = self.client.publish(to, reply.to_msgpack().into()).await {
            tracing::debug!(%error, "cannot reply to a request");
        }
    }

    /// Stops what runs and gives it a moment to say so. The requests stay in the stream: the next start
    /// takes them up.
    async fn farewell(mut self) {
        self.cancels.clear();
        let all = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL_TIMEOUT, all).await.is_err() {
            tracing::warn!("a snapshot did not end in time");
        }
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, self.client.flush()).await;
    }
}

/// There is nothing here to make a snapshot of.
fn is_of_no_use(failure: &Failure) -> bool {
    matches!(
        failure.code,
        ErrorCode::UnknownTable | ErrorCode::NotPublished
    )
}

/// Returns once replication streams.
async fn active(shared: &Shared) {
    let mut interval = tokio::time::interval(Duration::from_millis(100));
    while shared.source() != Condition::Well {
        interval.tick().await;
    }
}

/// Seconds for people, and a random part for uniqueness across restarts and bridges.
fn new_id() -> String {
    token::escape_token(&format!(
        "snap-{}-{:06x}",
        unix_s(),
        backoff::random() & 0xff_ffff
    ))
}
