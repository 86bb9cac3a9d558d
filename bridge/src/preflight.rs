//! What must be true before the first byte is read, and what is worth a warning.
//!
//! In: the catalogue and the configuration. Out: the tables to stream, or an error with its remedy.
//! Invariant: nothing that could lose rows silently passes here.

use crate::catalog::{self, Catalog, PublishedTable};
use crate::config::{self, Config};
use crate::postgres::quote_ident;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    #[error(
        "wal_level is {0}, logical replication needs logical; as a superuser:\n  \
         ALTER SYSTEM SET wal_level = logical;\nand restart PostgreSQL"
    )]
    WalLevel(String),
    #[error(
        "publication {0:?} does not exist (--publication); as the owner of the tables:\n  \
         CREATE PUBLICATION {quoted} FOR TABLE users, orders;\n\
         or start the bridge with --create-publication --table users,orders",
        quoted = quote_ident(.0)
    )]
    PublicationMissing(String),
    #[error("--create-publication makes one publication, --publication names several")]
    SeveralToCreate,
    #[error("table {name:?} of --table is not published; published are: {published}")]
    TableNotPublished { name: String, published: String },
    #[error(transparent)]
    Collision(#[from] wire::subject::Collision),
}

impl Error {
    /// Whether it may be gone when asked again: the server is starting, or cannot be reached.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Catalog(error) => error.is_retryable(),
            Self::WalLevel(_)
            | Self::PublicationMissing(_)
            | Self::SeveralToCreate
            | Self::TableNotPublished { .. }
            | Self::Collision(_) => false,
        }
    }
}

/// Checks, and makes the publication if that was asked for.
pub async fn check(catalog: &mut Catalog, config: &Config) -> Result<Vec<PublishedTable>, Error> {
    let server = catalog.server().await?;
    if server.wal_level != "logical" {
        return Err(Error::WalLevel(server.wal_level));
    }
    let missing = catalog.missing_publications(&config.publications).await?;
    match (missing.as_slice(), config.create_publication) {
        ([], _) => {}
        ([name], true) if config.publications.len() == 1 => create(catalog, name, config).await?,
        ([_, ..], true) => return Err(Error::SeveralToCreate),
        ([name, ..], false) => return Err(Error::PublicationMissing(name.clone())),
    }
    let published = catalog.published_tables(&config.publications).await?;
    for name in config.tables.names() {
        if !published
            .iter()
            .any(|table| config::names(name, &table.schema, &table.table))
        {
            return Err(Error::TableNotPublished {
                name: name.clone(),
                published: list(&published),
            });
        }
    }
    let tables: Vec<PublishedTable> = published
        .into_iter()
        .filter(|table| config.tables.admits(&table.schema, &table.table))
        .collect();
    config.subjects.check(
        tables
            .iter()
            .map(|table| (table.schema.as_str(), table.table.as_str())),
    )?;
    for table in &tables {
        warn_without_identity(table);
    }
    if tables.is_empty() {
        tracing::warn!(publications = ?config.publications, "no table is published yet");
    }
    tracing::info!(
        version = server.version_num,
        tables = tables.len(),
        "PostgreSQL is ready"
    );
    Ok(tables)
}

async fn create(catalog: &mut Catalog, name: &str, config: &Config) -> Result<(), Error> {
    let tables: Vec<String> = config
        .tables
        .names()
        .iter()
        .map(|table| {
            table
                .split('.')
                .map(quote_ident)
                .collect::<Vec<_>>()
                .join(".")
        })
        .collect();
    catalog.create_publication(name, &tables).await?;
    tracing::info!(publication = name, ?tables, "publication made");
    Ok(())
}

/// PostgreSQL: with such a table published, every UPDATE and DELETE on it fails at its writer
/// ("Replica Identity").
fn warn_without_identity(table: &PublishedTable) {
    if table.has_identity || !table.needs_identity {
        return;
    }
    let name = format!(
        "{}.{}",
        quote_ident(&table.schema),
        quote_ident(&table.table)
    );
    tracing::warn!(
        table = name,
        "published without a usable key: UPDATE and DELETE on it fail in PostgreSQL. \
         Give it a primary key, or: ALTER TABLE {name} REPLICA IDENTITY FULL;"
    );
}

fn list(tables: &[PublishedTable]) -> String {
    if tables.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<String> = tables
        .iter()
        .map(|table| format!("{}.{}", table.schema, table.table))
        .collect();
    names.join(", ")
}
