//! Asks PostgreSQL's catalogue, over an ordinary connection that is opened when needed.
//!
//! In: questions. Out: rows as plain structs. Invariant: nothing here changes the database, except
//! `create_publication`, which says so.

use std::collections::HashMap;

use daemon::postgres::PostgresOptions;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::postgres::quote_ident;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Connect(#[from] daemon::postgres::Error),
    #[error("PostgreSQL refused a catalogue query")]
    Query(#[from] tokio_postgres::Error),
}

impl Error {
    /// The server cannot be reached, is starting up, or the connection broke: it may pass.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Query(error) => error.code().is_none(),
            Self::Connect(daemon::postgres::Error::Connect { source, .. }) => source
                .code()
                .is_none_or(|code| !["28000", "28P01", "3D000"].contains(&code.code())),
            Self::Connect(daemon::postgres::Error::Timeout { .. }) => true,
            Self::Connect(_) => false,
        }
    }

    /// PostgreSQL: cannot_connect_now, "the database system is shutting down" (or starting up).
    pub fn is_stopping(&self) -> bool {
        let code = match self {
            Self::Connect(daemon::postgres::Error::Connect { source, .. }) => source.code(),
            Self::Connect(_) => None,
            Self::Query(error) => error.code(),
        };
        code == Some(&SqlState::CANNOT_CONNECT_NOW)
    }
}

/// One connection, reopened after it broke.
pub struct Catalog {
    options: PostgresOptions,
    client: Option<Client>,
}

/// What the server is.
#[derive(Debug, Clone)]
pub struct Server {
    /// 150018 for 15.18.
    pub version_num: u32,
    pub wal_level: String,
    pub is_in_recovery: bool,
}

/// A published table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedTable {
    pub schema: String,
    pub table: String,
    /// `relreplident`: d, n, f or i.
    pub replica_identity: char,
    /// UPDATE and DELETE can be replicated: there is a primary key, a replica identity index or FULL.
    pub has_identity: bool,
    /// The publication carries UPDATE or DELETE at all.
    pub needs_identity: bool,
}

/// The slot, as `pg_replication_slots` shows it.
#[derive(Debug, Clone)]
pub struct Slot {
    pub is_active: bool,
    pub plugin: Option<String>,
    pub database: Option<String>,
    /// reserved, extended, unreserved or lost.
    pub wal_status: Option<String>,
    /// WAL written behind `confirmed_flush_lsn`, in bytes.
    pub lag_bytes: i64,
    /// WAL kept for it, in bytes.
    pub retained_bytes: i64,
}

/// The first OID that is not PostgreSQL's own (`FirstNormalObjectId`).
const FIRST_NORMAL_OID: u32 = 16_384;

impl Catalog {
    pub fn new(options: PostgresOptions) -> Self {
        Self {
            options,
            client: None,
        }
    }

    /// The connection itself, for the questions of one module only.
    pub(crate) async fn client(&mut self) -> Result<&Client, Error> {
        if self.client.as_ref().is_none_or(Client::is_closed) {
            let (client, closed) = self.options.connect("bridge catalog").await?;
            drop(closed);
            self.client = Some(client);
        }
        Ok(self.client.as_ref().expect("set above"))
    }

    pub async fn server(&mut self) -> Result<Server, Error> {
        let row = self
            .client()
            .await?
            .query_one(
                "SELECT current_setting('server_version_num')::int4, current_setting('wal_level'), pg_is_in_recovery()",
                &[],
            )
            .await?;
        Ok(Server {
            version_num: row.get::<_, i32>(0) as u32,
            wal_level: row.get(1),
            is_in_recovery: row.get(2),
        })
    }

    /// Which of the publications do not exist.
    pub async fn missing_publications(
        &mut self,
        publications: &[String],
    ) -> Result<Vec<String>, Error> {
        let sql = "SELECT name FROM unnest($1::text[]) AS name \
                   WHERE name NOT IN (SELECT pubname FROM pg_publication)";
        let rows = self.client().await?.query(sql, &[&publications]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Changes the database: makes a publication for these tables (SQL names, quoted by the caller).
    pub async fn create_publication(&mut self, name: &str, tables: &[String]) -> Result<(), Error> {
        let sql = format!(
            "CREATE PUBLICATION {} FOR TABLE {}",
            quote_ident(name),
            tables.join(", ")
        );
        self.client().await?.batch_execute(&sql).await?;
        Ok(())
    }

    /// The tables of the publications, as the events will name them.
    pub async fn published_tables(
        &mut self,
        publications: &[String],
    ) -> Result<Vec<PublishedTable>, Error> {
        let sql = "SELECT pt.schemaname::text, pt.tablename::text, c.relreplident, \
                     bool_or(p.pubupdate OR p.pubdelete), \
                     c.relreplident = 'f' \
                       OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid \
                         AND (c.relreplident = 'i' AND i.indisreplident OR c.relreplident = 'd' AND i.indisprimary)) \
                   FROM pg_publication_tables pt \
                   JOIN pg_publication p USING (pubname) \
                   JOIN pg_namespace n ON n.nspname = pt.schemaname \
                   JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = pt.tablename \
                   WHERE p.pubname = ANY($1) GROUP BY 1, 2, 3, c.oid ORDER BY 1, 2";
        let rows = self.client().await?.query(sql, &[&publications]).await?;
        let table = |row: &tokio_postgres::Row| PublishedTable {
            schema: row.get(0),
            table: row.get(1),
            replica_identity: char::from(row.get::<_, i8>(2) as u8),
            needs_identity: row.get(3),
            has_identity: row.get(4),
        };
        Ok(rows.iter().map(table).collect())
    }

    pub async fn slot(&mut self, name: &str) -> Result<Option<Slot>, Error> {
        let sql = "SELECT active, plugin::text, database::text, wal_status, \
                     coalesce(pg_wal_lsn_diff(now_lsn, confirmed_flush_lsn), 0)::int8, \
                     coalesce(pg_wal_lsn_diff(now_lsn, restart_lsn), 0)::int8 \
                   FROM pg_replication_slots, LATERAL (SELECT CASE WHEN pg_is_in_recovery() \
                     THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS now_lsn) AS wal \
                   WHERE slot_name = $1";
        let row = self.client().await?.query_opt(sql, &[&name]).await?;
        Ok(row.map(|row| Slot {
            is_active: row.get(0),
            plugin: row.get(1),
            database: row.get(2),
            wal_status: row.get(3),
            lag_bytes: row.get(4),
            retained_bytes: row.get(5),
        }))
    }

    /// For each type that is a domain, the type it is made of in the end.
    pub async fn base_types(&mut self, type_oids: &[u32]) -> Result<HashMap<u32, u32>, Error> {
        let unknown: Vec<u32> = type_oids
            .iter()
            .copied()
            .filter(|&oid| oid >= FIRST_NORMAL_OID)
            .collect();
        if unknown.is_empty() {
            return Ok(HashMap::new());
        }
        let sql = "WITH RECURSIVE chain(origin, oid, typtype, typbasetype) AS ( \
                     SELECT oid, oid, typtype, typbasetype FROM pg_type WHERE oid = ANY($1) \
                     UNION ALL SELECT chain.origin, t.oid, t.typtype, t.typbasetype \
                     FROM chain JOIN pg_type t ON t.oid = chain.typbasetype WHERE chain.typtype = 'd') \
                   SELECT origin, oid FROM chain WHERE typtype <> 'd'";
        let rows = self.client().await?.query(sql, &[&unknown]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}
