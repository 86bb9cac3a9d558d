//! HTTP in and out.
//!
//! In: requests. Out: rows, statuses and streams of events.
//! Invariant: an answer is either as fresh as the cache's rules promise or from PostgreSQL, and says
//! which in `X-Cache`; every refusal is a problem that says what to do.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use async_nats::connection::State as NatsState;
use axum::Router;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as QueryString, Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LINK};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use daemon::access::Access;
use daemon::jwt::Claims;
use daemon::shutdown::Shutdown;
use futures_util::{Stream, StreamExt};
use ring::digest;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;
use wire::Lsn;
use wire::command::Status;
use wire::names;

use crate::Problem;
use crate::body::write_row;
use crate::cache::{Answer, Cache, Lookup};
use crate::changes::{self, Subscription};
use crate::database::{self, Database};
use crate::metrics::Metrics;
use crate::openapi;
use crate::query::{self, Query};
use crate::schemas::{Schemas, Table};
use crate::sql::{self, Kind};
use crate::status::{self, Operation, Operations};

/// What the handlers share.
pub struct Reader {
    /// Who may come in.
    pub access: Access,
    /// The tables.
    pub schemas: Schemas,
    /// PostgreSQL.
    pub database: Arc<Database>,
    /// Redis.
    pub cache: Cache,
    /// Writes.
    pub operations: Operations,
    /// NATS.
    pub client: async_nats::Client,
    /// The same, for streams.
    pub jetstream: async_nats::jetstream::Context,
    /// Name of the change stream.
    pub cdc_stream: String,
    /// How its subjects are made.
    pub subjects: wire::SubjectPattern,
    /// Clients of `/changes` now, and at most.
    pub live: (AtomicUsize, usize),
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Ends the streams.
    pub shutdown: Shutdown,
}

type Shared = State<Arc<Reader>>;
type Pairs = Result<QueryString<Vec<(String, String)>>, QueryRejection>;
type Names<T> = Result<Path<T>, PathRejection>;

/// Longest wait for a status.
pub const WAIT_MAX: Duration = Duration::from_mins(1);
/// How long a read with `X-Min-LSN` waits for a standby to catch up, or for a commit to become visible.
const CATCH_UP: Duration = Duration::from_secs(2);
const HEARTBEAT: Duration = Duration::from_secs(15);
const X_CACHE: HeaderName = HeaderName::from_static("x-cache");
const X_MIN_LSN: HeaderName = HeaderName::from_static("x-min-lsn");
const X_MIN_XID: HeaderName = HeaderName::from_static("x-min-xid");

/// The reader's routes. Every other path is a table.
pub fn router(reader: Arc<Reader>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(document))
        .route("/changes", get(live_changes))
        .route("/status/{id}", get(operation_status))
        .route("/{table}", get(list))
        .route("/{table}/{id}", get(row))
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(reader.clone(), count))
        .with_state(reader)
}

async fn count(State(reader): Shared, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let total = &reader.metrics.requests_total;
    total.with_label_values(&[response.status().as_str()]).inc();
    response
}

async fn nothing(uri: Uri) -> Problem {
    Problem::not_found(format!("nothing at {}", uri.path()))
}

async fn wrong_method() -> Problem {
    Problem::method_not_allowed("GET, HEAD")
}

async fn health(State(reader): Shared) -> Response {
    let probe = reader.database.query("SELECT 1", &[]);
    let probe = tokio::time::timeout(Duration::from_secs(2), probe).await;
    let postgres = matches!(probe, Ok(Ok(_)));
    let nats = reader.client.connection_state() == NatsState::Connected;
    let redis = match (reader.cache.is_configured(), reader.cache.is_up()) {
        (false, _) => "absent",
        (true, true) => "up",
        (true, false) => "down",
    };
    let tables = reader.schemas.values().map(|tables| tables.len());
    let is_ok = postgres && nats && redis != "down" && tables.is_some();
    let body = json!({"status": if is_ok { "ok" } else { "degraded" }, "postgres": postgres,
        "redis": redis, "nats": nats, "tables": tables});
    // Without Redis it is slower, and that is all.
    let status = if postgres && nats && tables.is_some() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json_response(status, &body)
}

async fn metrics(State(reader): Shared) -> Response {
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(CONTENT_TYPE, content_type)], reader.metrics.text()).into_response()
}

async fn document(State(reader): Shared) -> Response {
    let tables = reader.schemas.values().unwrap_or_default();
    let needs_token = matches!(reader.access, Access::Token(_));
    json_response(StatusCode::OK, &openapi::document(&tables, needs_token))
}

async fn list(
    State(reader): Shared,
    path: Names<String>,
    pairs: Pairs,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(path) = path.map_err(|error| bad_request(error.body_text()))?;
    let claims = reader.claims(&headers)?;
    let table = reader.table(&path)?;
    let QueryString(pairs) = pairs.map_err(|error| bad_request(error.body_text()))?;
    let query =
        Query::parse(&pairs, &table.schema).map_err(|error| bad_request(error.to_string()))?;
    let (answer, cached) = reader
        .read(&table, &query, claims.as_ref(), &headers)
        .await?;
    let mut response = answer_response(&answer, cached, claims.is_some(), &headers);
    if let Some(token) = &answer.next {
        let link = next_link(uri.path(), &pairs, token);
        response.headers_mut().insert(LINK, link);
    }
    Ok(response)
}

async fn row(
    State(reader): Shared,
    names: Names<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path((path, id)) = names.map_err(|error| bad_request(error.body_text()))?;
    let claims = reader.claims(&headers)?;
    let table = reader.table(&path)?;
    let missing = || Problem::not_found("there is no such row");
    let query = Query::row(&table.schema, &id).ok_or_else(missing)?;
    let (answer, cached) = reader
        .read(&table, &query, claims.as_ref(), &headers)
        .await?;
    // A list of one row, or of none.
    let inner = answer.body.len() - 1;
    let body = answer.body.slice(1..inner);
    if body.is_empty() {
        return Err(missing());
    }
    let answer = Answer { body, ..answer };
    Ok(answer_response(&answer, cached, claims.is_some(), &headers))
}

async fn operation_status(
    State(reader): Shared,
    id: Names<String>,
    pairs: Pairs,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(id) = id.map_err(|error| bad_request(error.body_text()))?;
    let claims = reader.claims(&headers)?;
    let unknown = || Problem::not_found("no write with this id was accepted");
    let id = Uuid::parse_str(&id).map_err(|_| unknown())?;
    let QueryString(pairs) = pairs.map_err(|error| bad_request(error.body_text()))?;
    let wait = wait(&pairs)?;
    let subject = claims.map(|claims| claims.subject);
    if wants_events(&headers) {
        let events = status_events(reader.clone(), id, subject);
        return Ok(Sse::new(events)
            .keep_alive(KeepAlive::new().interval(HEARTBEAT))
            .into_response());
    }
    let deadline = Instant::now() + wait;
    let mut waiter = reader.operations.waiting.waiter(id);
    loop {
        let operation = reader.operations.find(id).await.map_err(status_problem)?;
        let operation = operation
            .filter(|operation| may_see(operation, subject.as_deref()))
            .ok_or_else(unknown)?;
        let is_final = operation.status.status != Status::Pending;
        if is_final || deadline <= Instant::now() {
            let body = serde_json::to_value(&operation.status).expect("a status is plain data");
            return Ok(json_response(StatusCode::OK, &body));
        }
        tokio::select! {
            () = waiter.changed() => {}
            () = tokio::time::sleep_until(deadline) => {}
            _ = reader.shutdown.wait() => {}
        }
        if reader.shutdown.is_triggered() {
            let body = serde_json::to_value(&operation.status).expect("a status is plain data");
            return Ok(json_response(StatusCode::OK, &body));
        }
    }
}

async fn live_changes(
    State(reader): Shared,
    pairs: Pairs,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    reader.claims(&headers)?;
    let QueryString(pairs) = pairs.map_err(|error| bad_request(error.body_text()))?;
    let value = |name: &str| {
        let mut pairs = pairs.iter();
        pairs
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    let paths = value("tables")
        .filter(|tables| !tables.is_empty())
        .ok_or_else(|| bad_request("name tables: /changes?tables=users,orders"))?;
    let mut tables = Vec::new();
    let mut filters = Vec::new();
    for path in paths.split(',') {
        let table = reader.table(path)?;
        if !changes::is_open(&table) {
            let detail = "row-level security decides who sees the rows of this table, so its changes are not shown";
            return Err(Problem::new(StatusCode::FORBIDDEN, "row-security", detail));
        }
        let namespace = table.schema.namespace();
        tables.push(names::schema_key(namespace, &table.schema.table));
        filters.push(reader.subjects.filter(namespace, &table.schema.table));
    }
    let filter = match filters.as_slice() {
        [filter] => filter.clone(),
        _ => reader.subjects.stream_subjects(),
    };
    // Browsers repeat the header by themselves; the parameter is for a page that was loaded anew.
    let last_id = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .or(value("lastEventId"));
    let last_id = last_id
        .filter(|id| !id.is_empty())
        .map(|id| {
            id.parse()
                .map_err(|_| bad_request("Last-Event-ID must be an id of an event"))
        })
        .transpose()?;
    let place = LivePlace::take(&reader).ok_or_else(|| {
        let detail = "too many clients follow the changes";
        Problem::unavailable("busy", detail, Duration::from_secs(5))
    })?;
    let subscription = Subscription {
        tables,
        filter,
        last_id,
    };
    let opened = changes::open(
        &reader.jetstream,
        &reader.cdc_stream,
        reader.schemas.clone(),
        subscription,
    );
    let changes = opened.await.map_err(|error| {
        tracing::warn!(
            error = &*error as &dyn std::error::Error,
            "cannot follow the changes"
        );
        Problem::unavailable(
            "changes",
            "the change stream cannot be read",
            Duration::from_secs(1),
        )
    })?;
    let shutdown = reader.shutdown.clone();
    let events = changes
        .map(move |change| {
            let _held = &place;
            let event = SseEvent::default()
                .id(change.id.to_string())
                .event(change.name)
                .data(change.data);
            Ok::<_, Infallible>(event)
        })
        .take_until(async move { shutdown.wait().await });
    Ok(Sse::new(events)
        .keep_alive(KeepAlive::new().interval(HEARTBEAT))
        .into_response())
}

/// One event for each change of the status, until it is final.
fn status_events(
    reader: Arc<Reader>,
    id: Uuid,
    subject: Option<String>,
) -> impl Stream<Item = Result<SseEvent, Infallible>> {
    struct Watch {
        reader: Arc<Reader>,
        last: Option<Status>,
    }
    let watch = Watch { reader, last: None };
    futures_util::stream::unfold(watch, move |mut watch| {
        let subject = subject.clone();
        async move {
            if watch.last.is_some_and(|last| last != Status::Pending) {
                return None;
            }
            let reader = watch.reader.clone();
            let mut waiter = reader.operations.waiting.waiter(id);
            loop {
                let found = reader.operations.find(id).await.ok().flatten();
                let found = found.filter(|operation| may_see(operation, subject.as_deref()));
                if let Some(operation) = found
                    && watch.last != Some(operation.status.status)
                {
                    watch.last = Some(operation.status.status);
                    let json = wire::Message::to_json(&operation.status);
                    let event = SseEvent::default().event("status").data(json);
                    return Some((Ok(event), watch));
                }
                tokio::select! {
                    () = waiter.changed() => {}
                    _ = reader.shutdown.wait() => return None,
                }
            }
        }
    })
}

impl Reader {
    fn claims(&self, headers: &HeaderMap) -> Result<Option<Claims>, Problem> {
        self.access.claims(headers, SystemTime::now())
    }

    fn table(&self, path: &str) -> Result<Arc<Table>, Problem> {
        let unknown = || Problem::not_found(format!("there is no table {path}"));
        if self.schemas.values().is_none() {
            let detail = "the tables are not known yet";
            return Err(Problem::unavailable(
                "schemas",
                detail,
                Duration::from_secs(1),
            ));
        }
        let (schema, name) = names::parse_table_path(path).ok_or_else(unknown)?;
        let table = self
            .schemas
            .value(&names::schema_key(&schema, &name))
            .ok_or_else(unknown)?;
        if query::readable(&table.schema).is_empty() {
            let qualified = &table.schema.schema;
            let detail = format!(
                "{role} has no SELECT privilege on {qualified}; GRANT SELECT ON {qualified} TO {role}",
                role = names::ROLE_APP_READER
            );
            return Err(Problem::new(StatusCode::FORBIDDEN, "not-granted", detail));
        }
        Ok(table)
    }

    /// The answer, and what the cache had to do with it.
    async fn read(
        &self,
        table: &Table,
        query: &Query<'_>,
        claims: Option<&Claims>,
        headers: &HeaderMap,
    ) -> Result<(Answer, &'static str), Problem> {
        let floor = Floor::of(headers)?;
        let sql = sql::of(query, &table.schema);
        let mut generation = None;
        let result = if table.schema.row_security {
            "BYPASS"
        } else {
            let namespace = table.schema.namespace();
            let key = names::schema_key(namespace, &table.schema.table);
            let fingerprint = fingerprint(table.revision, &sql);
            match self.cache.lookup(&key, &fingerprint).await {
                // Strictly: two reads may see one LSN, one of them before the commit at it is visible. What
                // transactions it saw is not kept with an answer.
                Lookup::Hit(answer)
                    if floor.xid.is_none() && floor.lsn.is_none_or(|min| min < answer.lsn) =>
                {
                    self.count_cache("hit");
                    return Ok((answer, "HIT"));
                }
                Lookup::Hit(_) => "BYPASS",
                Lookup::Miss(at) => {
                    generation = Some(at);
                    "MISS"
                }
                Lookup::Off => "OFF",
            }
        };
        self.count_cache(&result.to_ascii_lowercase());
        let (answer, is_personal) = self
            .read_database(table, query, &sql, claims, &floor)
            .await?;
        match generation {
            Some(generation) if !is_personal => self.cache.store(generation, &answer).await,
            Some(_) | None => {}
        }
        Ok((answer, result))
    }

    async fn read_database(
        &self,
        table: &Table,
        query: &Query<'_>,
        sql: &sql::Sql,
        claims: Option<&Claims>,
        floor: &Floor,
    ) -> Result<(Answer, bool), Problem> {
        let claims = claims.map_or_else(
            || "{}".to_owned(),
            |claims| Value::Object(claims.all.clone()).to_string(),
        );
        let name = sql::qualified(&table.schema);
        let deadline = Instant::now() + CATCH_UP;
        loop {
            let found = self.database.read(sql, &name, &claims, floor.transaction());
            let found = found.await.map_err(|error| database_problem(&error))?;
            if found.has_seen && floor.lsn.is_none_or(|min| min <= found.lsn) {
                let answer = answer(query, &found);
                return Ok((answer, found.is_personal));
            }
            if deadline <= Instant::now() {
                let detail = "PostgreSQL has not reached X-Min-LSN, or does not show X-Min-XID yet";
                return Err(Problem::unavailable(
                    "behind",
                    detail,
                    Duration::from_secs(1),
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn count_cache(&self, result: &str) {
        self.metrics.cache_total.with_label_values(&[result]).inc();
    }
}

/// What an answer must have seen.
struct Floor {
    lsn: Option<Lsn>,
    xid: Option<u64>,
}

impl Floor {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let lsn = parsed(
            headers,
            &X_MIN_LSN,
            "X-Min-LSN must be an LSN such as 0/25CB3C8",
        )?;
        let xid = parsed(
            headers,
            &X_MIN_XID,
            "X-Min-XID must be a number such as 745",
        )?;
        if xid.is_some() && lsn.is_none() {
            return Err(bad_request(
                "X-Min-XID says which commit at X-Min-LSN is meant: send both",
            ));
        }
        Ok(Self { lsn, xid })
    }

    fn transaction(&self) -> Option<database::Transaction> {
        let (Some(xid), Some(commit_lsn)) = (self.xid, self.lsn) else {
            return None;
        };
        Some(database::Transaction { xid, commit_lsn })
    }
}

/// The value of a header, where it is there.
fn parsed<T: std::str::FromStr>(
    headers: &HeaderMap,
    name: &HeaderName,
    problem: &str,
) -> Result<Option<T>, Problem> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let value = value.to_str().ok().and_then(|text| text.parse().ok());
    value.map(Some).ok_or_else(|| bad_request(problem))
}

fn answer(query: &Query<'_>, found: &database::Found) -> Answer {
    let kinds: Vec<_> = query
        .select
        .iter()
        .map(|column| (column.name.as_str(), Kind::of(column)))
        .collect();
    let mut body = vec![b'['];
    for (index, row) in found.rows.iter().enumerate() {
        if index != 0 {
            body.push(b',');
        }
        let columns = kinds.iter().enumerate();
        let columns = columns.map(|(index, (name, kind))| (*name, *kind, row.get(index)));
        write_row(&mut body, columns);
    }
    body.push(b']');
    let is_full = found.rows.len() == query.limit as usize;
    let last = found
        .rows
        .last()
        .filter(|_| is_full && query.has_total_order);
    let next = last.map(|row| {
        let keys = query.select.len()..row.len();
        let values: Vec<Option<String>> = keys.map(|index| row.get(index)).collect();
        query::token(&values)
    });
    Answer {
        lsn: found.lsn,
        next,
        body: Bytes::from(body),
    }
}

/// Of the statement with its values, and of the table's shape and privileges.
fn fingerprint(revision: u64, sql: &sql::Sql) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut add = |part: &[u8]| {
        // With its length in front, no part can run into the next.
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    };
    add(&revision.to_be_bytes());
    add(sql.text.as_bytes());
    for parameter in &sql.parameters {
        match parameter {
            sql::Parameter::Text(text) => add(text.as_bytes()),
            sql::Parameter::Texts(texts) => {
                add(&(texts.len() as u64).to_be_bytes());
                for text in texts {
                    add(text.as_bytes());
                }
            }
        }
    }
    hex(context.finish().as_ref())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes every write");
    }
    text
}

fn answer_response(
    answer: &Answer,
    cached: &'static str,
    is_personal: bool,
    headers: &HeaderMap,
) -> Response {
    let digest = digest::digest(&digest::SHA256, &answer.body);
    let etag = format!("\"{}\"", hex(&digest.as_ref()[..16]));
    let known = headers
        .get(IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok());
    let is_known = known.is_some_and(|known| {
        let mut tags = known.split(',');
        tags.any(|tag| {
            let tag = tag.trim();
            tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag
        })
    });
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let content_type = HeaderValue::from_static("application/json");
        ([(CONTENT_TYPE, content_type)], answer.body.clone()).into_response()
    };
    let control = if is_personal {
        "private, no-cache"
    } else {
        "no-cache"
    };
    let headers = response.headers_mut();
    headers.insert(
        ETAG,
        HeaderValue::from_str(&etag).expect("hex is visible ASCII"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(control));
    headers.insert(X_CACHE, HeaderValue::from_static(cached));
    response
}

/// The same request, behind the last row.
fn next_link(path: &str, pairs: &[(String, String)], token: &str) -> HeaderValue {
    let kept = pairs
        .iter()
        .filter(|(name, _)| name != "after" && name != "offset");
    let mut link = format!("<{path}?");
    for (name, value) in kept {
        link.extend([percent(name).as_str(), "=", &percent(value), "&"]);
    }
    link.extend(["after=", token, ">; rel=\"next\""]);
    HeaderValue::from_str(&link).expect("percent-encoded text is visible ASCII")
}

fn percent(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    let content_type = HeaderValue::from_static("application/json");
    (status, [(CONTENT_TYPE, content_type)], body.to_string()).into_response()
}

fn wait(pairs: &[(String, String)]) -> Result<Duration, Problem> {
    let Some((_, text)) = pairs.iter().find(|(name, _)| name == "wait") else {
        return Ok(Duration::ZERO);
    };
    let seconds = text
        .parse::<u64>()
        .map_err(|_| bad_request("wait must be a number of seconds"))?;
    Ok(Duration::from_secs(seconds).min(WAIT_MAX))
}

fn wants_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/event-stream"))
}

/// Their own operations, and those nobody signed.
fn may_see(operation: &Operation, subject: Option<&str>) -> bool {
    match (&operation.principal, subject) {
        (None, _) | (_, None) => true,
        (Some(principal), Some(subject)) => principal == subject,
    }
}

fn bad_request(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-request", detail)
}

fn status_problem(error: status::Error) -> Problem {
    match error {
        status::Error::Database(error) => database_problem(&error),
        status::Error::JetStream(error) => {
            tracing::warn!(
                error = &*error as &dyn std::error::Error,
                "status not known"
            );
            let detail = "the queue of writes cannot be asked";
            Problem::unavailable("queue", detail, Duration::from_secs(1))
        }
    }
}

fn database_problem(error: &database::Error) -> Problem {
    match error {
        database::Error::Busy => {
            let detail = "too many requests wait for PostgreSQL";
            Problem::unavailable("busy", detail, Duration::from_secs(1))
        }
        database::Error::Away(_) => {
            tracing::warn!(error = error as &dyn std::error::Error, "not read");
            let detail = "PostgreSQL cannot answer now";
            Problem::unavailable("postgres", detail, Duration::from_secs(1))
        }
        database::Error::Refused(refused) => {
            let code = refused.code().map_or("", |code| code.code()).to_owned();
            let message = refused.as_db_error().map_or("", |error| error.message());
            match code.get(..2) {
                _ if code == "42501" => Problem::new(StatusCode::FORBIDDEN, "not-granted", message),
                Some("22" | "42") => bad_request(message).with("code", code),
                // A statement that PostgreSQL neither runs nor faults us for: not the client's to mend.
                _ => {
                    tracing::error!(error = error as &dyn std::error::Error, "read refused");
                    let detail = "PostgreSQL refused the read";
                    Problem::unavailable("refused", detail, Duration::from_secs(1))
                }
            }
        }
    }
}

/// A place among the clients of `/changes`; given back when dropped.
struct LivePlace(Arc<Reader>);

impl LivePlace {
    fn take(reader: &Arc<Reader>) -> Option<Self> {
        let (now, most) = &reader.live;
        let place = Self(reader.clone());
        let before = now.fetch_add(1, Ordering::Relaxed);
        reader.metrics.live_clients.set(before as i64 + 1);
        (before < *most).then_some(place)
    }
}

impl Drop for LivePlace {
    fn drop(&mut self) {
        let left = self.0.live.0.fetch_sub(1, Ordering::Relaxed) - 1;
        self.0.metrics.live_clients.set(left as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_the_next_page_keeps_the_question() {
        let pairs = [
            ("name".to_owned(), "eq.a&b é".to_owned()),
            ("after".to_owned(), "old".to_owned()),
        ];

        let link = next_link("/users", &pairs, "new");

        assert_eq!(
            link,
            "</users?name=eq.a%26b%20%C3%A9&after=new>; rel=\"next\""
        );
    }

    #[test]
    fn a_question_and_another_never_share_a_fingerprint() {
        let sql = |text: &str, parameters: &[&str]| sql::Sql {
            text: text.to_owned(),
            parameters: parameters
                .iter()
                .map(|text| sql::Parameter::Text((*text).to_owned()))
                .collect(),
        };

        let first = fingerprint(1, &sql("a", &["b", "c"]));
        assert_ne!(first, fingerprint(1, &sql("a", &["bc"])));
        assert_ne!(first, fingerprint(1, &sql("ab", &["c"])));
        assert_ne!(first, fingerprint(2, &sql("a", &["b", "c"])));
    }
}
