//! Reads in PostgreSQL as role `app_reader`.
//!
//! In: statements and the claims of who asks. Out: rows, with an LSN that says how fresh they are.
//! Invariant: at most so many sessions and so many waiting requests; every read sees exactly what
//! GRANT and row-level security allow, because it runs as the role and with the claims.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use daemon::postgres::PostgresOptions;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use wire::Lsn;
use wire::names::ROLE_APP_READER;

use crate::metrics::Metrics;
use crate::sql::{Parameter, Sql};

/// Sessions with PostgreSQL, opened as they are needed.
pub struct Database {
    options: PostgresOptions,
    idle: Mutex<Vec<Client>>,
    places: Semaphore,
    waiting: AtomicUsize,
    waiting_max: usize,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

/// What a read found.
#[derive(Debug)]
pub struct Found {
    /// The rows.
    pub rows: Vec<Row>,
    /// Everything committed and visible up to here is in them.
    pub lsn: Lsn,
    /// Row-level security decided which rows: not to be shown to anybody else.
    pub is_personal: bool,
    /// The transaction asked for is visible in them.
    pub has_seen: bool,
}

/// A committed transaction, as its events name it.
#[derive(Debug, Clone, Copy)]
pub struct Transaction {
    /// 64 bit.
    pub xid: u64,
    /// Where its commit record begins.
    pub commit_lsn: Lsn,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too many requests wait already.
    #[error("too many requests wait for PostgreSQL")]
    Busy,
    /// No session, or it broke.
    #[error("PostgreSQL cannot be reached")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// PostgreSQL refused the statement.
    #[error("PostgreSQL refused the read")]
    Refused(#[source] tokio_postgres::Error),
}

/// No session becomes free within this: the server hangs.
const PATIENCE: Duration = Duration::from_secs(10);

impl Database {
    /// No session is opened yet.
    pub fn new(
        options: PostgresOptions,
        sessions_max: usize,
        waiting_max: usize,
        timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            options,
            idle: Mutex::default(),
            places: Semaphore::new(sessions_max),
            waiting: AtomicUsize::new(0),
            waiting_max,
            timeout,
            metrics,
        }
    }

    /// Reads a table. `claims` is what policies see as `current_setting('request.jwt.claims')`; `behind` is a
    /// transaction to look for.
    pub async fn read(
        &self,
        sql: &Sql,
        table: &str,
        claims: &str,
        behind: Option<Transaction>,
    ) -> Result<Found, Error> {
        let xid = behind.map(|behind| behind.xid.to_string());
        let commit_lsn = behind.map(|behind| behind.commit_lsn.to_string());
        let parameters: Vec<(&(dyn ToSql + Sync), Type)> = sql
            .parameters
            .iter()
            .map(|parameter| match parameter {
                Parameter::Text(text) => (text as &(dyn ToSql + Sync), Type::TEXT),
                Parameter::Texts(texts) => (texts as &(dyn ToSql + Sync), Type::TEXT_ARRAY),
            })
            .collect();
        let session = self.session().await?;
        let read = self.bounded(async {
            // All four are on their way before the first answer; PostgreSQL runs them in order. The LSN
            // is taken by an earlier statement than the rows: their snapshot is not older.
            let client = session.client();
            let asked: [(&(dyn ToSql + Sync), Type); 4] = [
                (&claims, Type::TEXT),
                (&table, Type::TEXT),
                (&xid, Type::TEXT),
                (&commit_lsn, Type::TEXT),
            ];
            let ((), facts, rows, ()) = tokio::try_join!(
                client.batch_execute(BEGIN),
                client.query_typed(FACTS, &asked),
                client.query_typed(&sql.text, &parameters),
                client.batch_execute("COMMIT"),
            )?;
            let facts = facts
                .first()
                .map(|row| (row.get(0), row.get(1), row.get(2)));
            Ok((facts, rows))
        });
        match read.await {
            Ok((facts, rows)) => {
                self.give_back(session);
                let (lsn, is_personal, has_seen): (String, bool, bool) =
                    facts.unwrap_or_else(|| (String::new(), true, behind.is_none()));
                Ok(Found {
                    rows,
                    lsn: lsn.parse().unwrap_or_default(),
                    is_personal,
                    has_seen,
                })
            }
            Err(error) => Err(self.failed(session, error).await),
        }
    }

    /// Runs one statement as the role.
    pub async fn query(
        &self,
        text: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Error> {
        let session = self.session().await?;
        let read = self.bounded(session.client().query_typed(text, parameters));
        match read.await {
            Ok(rows) => {
                self.give_back(session);
                Ok(rows)
            }
            Err(error) => Err(self.failed(session, error).await),
        }
    }

    async fn bounded<T>(
        &self,
        read: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Failure> {
        // The server's own timeout comes first; this one is for a server that does not answer at all.
        match tokio::time::timeout(self.timeout + PATIENCE, read).await {
            Ok(read) => read.map_err(Failure::Postgres),
            Err(_) => Err(Failure::Silent),
        }
    }

    async fn session(&self) -> Result<Session<'_>, Error> {
        let _waiting = self.wait()?;
        let place = tokio::time::timeout(PATIENCE, self.places.acquire()).await;
        let place = place
            .map_err(|_| Error::Busy)?
            .expect("the semaphore is never closed");
        let idle = self.idle().pop().filter(|client| !client.is_closed());
        let client = match idle {
            Some(client) => client,
            None => self
                .open()
                .await
                .inspect_err(|_| self.metrics.postgres_up.set(0))?,
        };
        Ok(Session {
            client,
            _place: place,
        })
    }

    async fn open(&self) -> Result<Client, Error> {
        let away = |error| Error::Away(Box::new(error));
        let (client, _closed) = self.options.connect("reader").await.map_err(away)?;
        let timeout_ms = self.timeout.as_millis();
        let settings = format!("SET statement_timeout = {timeout_ms}; SET ROLE {ROLE_APP_READER}");
        let settled = client.batch_execute(&settings).await;
        settled.map_err(|error| Error::Away(Box::new(error)))?;
        Ok(client)
    }

    fn give_back(&self, session: Session<'_>) {
        self.metrics.postgres_up.set(1);
        self.idle().push(session.client);
    }

    /// Keeps the session if the error left it usable.
    async fn failed(&self, session: Session<'_>, failure: Failure) -> Error {
        let error = match failure {
            Failure::Postgres(error) => error,
            Failure::Silent => {
                self.metrics.postgres_up.set(0);
                return Error::Away("no answer in time".into());
            }
        };
        if error.as_db_error().is_none() || session.client.is_closed() {
            self.metrics.postgres_up.set(0);
            return Error::Away(Box::new(error));
        }
        if session.client.batch_execute("ROLLBACK").await.is_ok() {
            self.give_back(session);
        }
        match error.code().map_or("", |code| code.code()) {
            // Shutting down, out of resources, cancelled by the timeout.
            code if ["08", "53", "57", "58"].contains(&&code[..2.min(code.len())]) => {
                Error::Away(Box::new(error))
            }
            _ => Error::Refused(error),
        }
    }

    fn wait(&self) -> Result<Waiting<'_>, Error> {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        self.metrics.postgres_in_use.set(waiting as i64 + 1);
        let guard = Waiting(self);
        if self.waiting_max < waiting {
            return Err(Error::Busy);
        }
        Ok(guard)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Client>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Failure {
    Postgres(tokio_postgres::Error),
    Silent,
}

/// A session and its place among them; both go when it is dropped.
struct Session<'a> {
    client: Client,
    _place: SemaphorePermit<'a>,
}

impl Session<'_> {
    fn client(&self) -> &Client {
        &self.client
    }
}

struct Waiting<'a>(&'a Database);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let left = self.0.waiting.fetch_sub(1, Ordering::Relaxed) - 1;
        self.0.metrics.postgres_in_use.set(left as i64);
    }
}

const BEGIN: &str = "BEGIN TRANSACTION READ ONLY";
/// Sets the claims until the end of the transaction; says where the WAL stands, whether policies decide on
/// the table's rows, and whether these will show what the transaction asked for has done.
///
/// PostgreSQL: a commit is in WAL before it is visible, so on the primary its LSN proves nothing. On a
/// standby it does, once it was replayed; there pg_current_snapshot() does not list who is in progress.
const FACTS: &str = "
    SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                ELSE pg_current_wal_insert_lsn() END::text,
           row_security_active($2::regclass),
           CASE WHEN $3 IS NULL THEN true
                WHEN pg_is_in_recovery() THEN coalesce($4::pg_lsn < pg_last_wal_replay_lsn(), false)
                ELSE pg_visible_in_snapshot($3::xid8, pg_current_snapshot()) END
    FROM set_config('request.jwt.claims', $1, true)";
