//! PostgreSQL's side.

use daemon::chained::Chained;
use wire::Lsn;

use super::Report;
use crate::catalog::{self, Catalog, PublishedTable};
use crate::config::{self, Config};
use crate::postgres::{Session, SystemIdentity, TimelineEnd, WAL_SENDER_TIMEOUT, quote_ident};
use crate::supervisor;

/// What the checkpoint is compared with.
pub struct Found {
    pub identity: SystemIdentity,
    pub history: Vec<TimelineEnd>,
    /// None: there is no slot.
    pub confirmed: Option<Lsn>,
}

const REACH: &str = "check --pg-url (DATABASE_URL, PG_HOST, PG_PORT, PG_USER, PG_PASSWORD, PG_DB), pg_hba.conf and listen_addresses";

pub async fn check(config: &Config, catalog: &mut Catalog, report: &mut Report) -> Option<Found> {
    let server = match catalog.server().await {
        Ok(server) => server,
        Err(error) => {
            report.fail("postgres", Chained(&error).to_string(), REACH);
            return None;
        }
    };
    let version = format!(
        "{}.{} at {}",
        server.version_num / 10_000,
        server.version_num % 10_000,
        config.postgres
    );
    if server.version_num < 140_000 {
        report.fail(
            "postgres",
            version,
            "the bridge needs PostgreSQL 14 or newer",
        );
    } else if server.is_in_recovery {
        let text = format!("{version} is a standby");
        report.warn("postgres", text, "the bridge waits until it is promoted");
    } else {
        report.ok("postgres", version);
    }
    if server.wal_level == "logical" {
        report.ok("wal_level", "logical");
    } else {
        report.fail(
            "wal_level",
            server.wal_level,
            "ALTER SYSTEM SET wal_level = logical; and restart PostgreSQL",
        );
    }
    let found = replication(config, report).await;
    for checked in [
        slot(config, catalog, report).await,
        tables(config, catalog, report).await,
        wal_kept(config, catalog, report).await,
    ] {
        if let Err(error) = checked {
            report.fail("catalogue", Chained(&error).to_string(), REACH);
        }
    }
    found
}

/// Logs in as the source does.
async fn replication(config: &Config, report: &mut Report) -> Option<Found> {
    let endpoint = supervisor::endpoint(&config.postgres);
    let name = config.slot.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let mut session = Session::connect(&endpoint, WAL_SENDER_TIMEOUT)?;
        let identity = session.identify_system()?;
        let history = session.timeline_history(identity.timeline)?;
        let slot = crate::slot::look(&mut session, &name)?;
        Ok(Found {
            identity,
            history,
            confirmed: slot.map(|slot| slot.confirmed_flush),
        })
    });
    let asked: Result<Found, crate::postgres::Error> = asked.await.ok()?;
    match asked {
        Ok(found) => {
            report.ok(
                "replication",
                format!("{} may log in for it", config.postgres),
            );
            Some(found)
        }
        Err(error) => {
            report.fail(
                "replication",
                Chained(&error).to_string(),
                "ALTER ROLE ... REPLICATION, and a line in pg_hba.conf for its database",
            );
            None
        }
    }
}

async fn slot(
    config: &Config,
    catalog: &mut Catalog,
    report: &mut Report,
) -> Result<(), catalog::Error> {
    let name = &config.slot;
    let Some(slot) = catalog.slot(name).await? else {
        let sql = "SELECT current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots), \
                     current_setting('max_wal_senders')::int8 - (SELECT count(*) FROM pg_stat_replication)";
        let row = catalog.client().await?.query_one(sql, &[]).await?;
        let (slots, senders): (i64, i64) = (row.get(0), row.get(1));
        if slots > 0 && senders > 0 {
            report.ok(
                "slot",
                format!("{name} is not there yet; the first start makes it"),
            );
        } else {
            report.fail(
                "slot",
                format!("{name} is not there, and {slots} slots and {senders} walsenders are free"),
                "raise max_replication_slots or max_wal_senders, or drop slots that nobody reads",
            );
        }
        return Ok(());
    };
    let database = config.postgres.database();
    let lost = slot.wal_status.as_deref() == Some("lost");
    if slot.plugin.as_deref() != Some("pgoutput") || slot.database.as_deref() != Some(database) {
        report.fail(
            "slot",
            format!(
                "{name} is of plugin {} in database {}",
                slot.plugin.as_deref().unwrap_or("none"),
                slot.database.as_deref().unwrap_or("none")
            ),
            "choose another --slot, or check PG_DB",
        );
    } else if lost {
        report.fail(
            "slot",
            format!("{name} is lost: WAL that it needs is gone"),
            "--on-slot-loss resnapshot makes a new one, tells consumers and makes snapshots",
        );
    } else {
        report.ok(
            "slot",
            format!(
                "{name} is {}, {} bytes behind, wal_status {}",
                if slot.is_active {
                    "in use (a second bridge stands by)"
                } else {
                    "free"
                },
                slot.lag_bytes,
                slot.wal_status.as_deref().unwrap_or("unknown")
            ),
        );
    }
    Ok(())
}

async fn tables(
    config: &Config,
    catalog: &mut Catalog,
    report: &mut Report,
) -> Result<(), catalog::Error> {
    let missing = catalog.missing_publications(&config.publications).await?;
    for name in &missing {
        report.fail(
            "publication",
            format!("{name} does not exist"),
            format!(
                "CREATE PUBLICATION {} FOR TABLE ...; or --create-publication --table ...",
                quote_ident(name)
            ),
        );
    }
    let published = catalog.published_tables(&config.publications).await?;
    for name in config.tables.names() {
        let is_there = |table: &PublishedTable| config::names(name, &table.schema, &table.table);
        if !published.iter().any(is_there) {
            report.fail(
                "tables",
                format!("{name} of --table is not published"),
                format!(
                    "ALTER PUBLICATION {} ADD TABLE ...",
                    quote_ident(&config.publications[0])
                ),
            );
        }
    }
    let tables: Vec<&PublishedTable> = published
        .iter()
        .filter(|table| config.tables.admits(&table.schema, &table.table))
        .collect();
    if missing.is_empty() {
        report.ok("publication", config.publications.join(", "));
    }
    if tables.is_empty() {
        report.warn(
            "tables",
            "none is published",
            "ALTER PUBLICATION ... ADD TABLE ...",
        );
    } else {
        report.ok("tables", format!("{} to stream", tables.len()));
    }
    let names = tables
        .iter()
        .map(|table| (table.schema.as_str(), table.table.as_str()));
    if let Err(error) = config.subjects.check(names) {
        report.fail("subjects", error.to_string(), "");
    }
    for table in &tables {
        let name = sql_name(table);
        if table.needs_identity && !table.has_identity {
            report.warn(
                "keys",
                format!("{name} has no usable key: UPDATE and DELETE on it fail in PostgreSQL"),
                format!("a primary key, or ALTER TABLE {name} REPLICA IDENTITY FULL"),
            );
        }
        let may_read = catalog
            .client()
            .await?
            .query_one("SELECT has_table_privilege($1, 'SELECT')", &[&name])
            .await?;
        if !may_read.get::<_, bool>(0) {
            report.warn(
                "privileges",
                format!(
                    "{} may not read {name}: no snapshots of it",
                    config.postgres.user()
                ),
                format!(
                    "GRANT SELECT ON {name} TO {}",
                    quote_ident(config.postgres.user())
                ),
            );
        }
    }
    Ok(())
}

/// How long PostgreSQL keeps WAL for a bridge that is away, and what comes then.
async fn wal_kept(
    config: &Config,
    catalog: &mut Catalog,
    report: &mut Report,
) -> Result<(), catalog::Error> {
    let sql = "SELECT setting::int8, current_setting('idle_replication_slot_timeout', true) \
               FROM pg_settings WHERE name = 'max_slot_wal_keep_size'";
    let row = catalog.client().await?.query_one(sql, &[]).await?;
    let (limit_mb, idle): (i64, Option<String>) = (row.get(0), row.get(1));
    let retained = catalog
        .slot(&config.slot)
        .await?
        .map_or(0, |slot| slot.retained_bytes);
    let limit_bytes = limit_mb.saturating_mul(1 << 20);
    if limit_mb < 0 {
        report.warn(
            "wal_kept",
            format!("{retained} bytes, and max_slot_wal_keep_size sets no limit: while the bridge or NATS is away the disk fills"),
            "set max_slot_wal_keep_size to what the disk can spare, and watch bridge_wal_retained_bytes",
        );
    } else if retained > limit_bytes / 2 {
        report.warn(
            "wal_kept",
            format!(
                "{retained} bytes of {limit_bytes} until the slot is lost (max_slot_wal_keep_size)"
            ),
            "raise max_slot_wal_keep_size, or see what the bridge waits for in /status",
        );
    } else {
        report.ok(
            "wal_kept",
            format!(
                "{retained} bytes of {limit_bytes} until the slot is lost (max_slot_wal_keep_size)"
            ),
        );
    }
    if let Some(idle) = idle.filter(|idle| idle != "0") {
        report.warn(
            "wal_kept",
            format!("idle_replication_slot_timeout = {idle}: a bridge that is away for longer loses its slot"),
            "set it to 0",
        );
    }
    Ok(())
}

fn sql_name(table: &PublishedTable) -> String {
    format!(
        "{}.{}",
        quote_ident(&table.schema),
        quote_ident(&table.table)
    )
}
