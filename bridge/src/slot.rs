//! The replication slot before it streams: looked at, made, dropped, moved ahead.
//!
//! In: a session with the walsender. Out: what the slot is, or a changed slot.
//! Invariant: what is wrong with a slot is told by the catalogue, not by PostgreSQL's words, which may be in any
//! language; a slot that is not lost is never dropped.

use clap::ValueEnum;
use wire::Lsn;

use crate::postgres::{CreatedSlot, Error, Session, quote_literal};

/// `--on-slot-loss`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OnLoss {
    /// End with an exit code of its own; an operator decides.
    #[default]
    Halt,
    /// Make a new slot, tell consumers of the gap, ask for snapshots of all tables.
    Resnapshot,
}

/// A slot that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// What it has been told so far.
    pub confirmed_flush: Lsn,
    pub standing: Standing,
}

/// What can be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Free,
    /// Somebody streams from it.
    Active,
    /// WAL that it needs is gone, or it was invalidated for another reason.
    Lost,
    /// A standby keeps it as a copy of the primary's.
    Copy,
    /// It belongs to another database.
    Elsewhere,
}

/// `wal_status` (13), `conflicting` (16) and `invalidation_reason` (17), as far as the server has them.
const IS_LOST: &str = "(coalesce(to_jsonb(slot) ->> 'wal_status' = 'lost', false) \
                       OR to_jsonb(slot) ->> 'invalidation_reason' IS NOT NULL \
                       OR coalesce(to_jsonb(slot) ->> 'conflicting' = 'true', false))";

/// None: there is no slot of that name.
pub fn look(session: &mut Session, name: &str) -> Result<Option<State>, Error> {
    let sql = format!(
        "SELECT confirmed_flush_lsn, CASE \
           WHEN database <> current_database() THEN 'elsewhere' \
           WHEN pg_is_in_recovery() AND to_jsonb(slot) ->> 'synced' = 'true' THEN 'copy' \
           WHEN {IS_LOST} THEN 'lost' WHEN active THEN 'active' ELSE 'free' END \
         FROM pg_replication_slots AS slot WHERE slot_name = {}",
        quote_literal(name)
    );
    let rows = session.simple_query(&sql)?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let text = |index: usize| row.get(index).and_then(Option::as_deref);
    Ok(Some(State {
        // A slot of another kind has none; START_REPLICATION says what is wrong with it.
        confirmed_flush: text(0)
            .and_then(|lsn| lsn.parse().ok())
            .unwrap_or(Lsn::INVALID),
        standing: match text(1) {
            Some("elsewhere") => Standing::Elsewhere,
            Some("copy") => Standing::Copy,
            Some("lost") => Standing::Lost,
            Some("active") => Standing::Active,
            _ => Standing::Free,
        },
    }))
}

/// Whether the server is a standby.
pub fn is_standby(session: &mut Session) -> Result<bool, Error> {
    let rows = session.simple_query("SELECT pg_is_in_recovery()")?;
    let first = rows.first().and_then(|row| row.first()?.as_deref());
    Ok(first == Some("t"))
}

/// Makes the slot. None: it is there already.
pub fn make(session: &mut Session, name: &str) -> Result<Option<CreatedSlot>, Error> {
    // PostgreSQL: a failover slot is copied to standbys from 17 on, if they ask for it.
    let is_failover = session.server_major_version() >= 17;
    match session.create_slot(name, is_failover) {
        Ok(made) => Ok(Some(made)),
        // Another bridge was quicker.
        Err(Error::SlotExists(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Drops the slot if it is lost; another bridge may have made it anew meanwhile. `is_known_lost`:
/// PostgreSQL has refused to stream from it, whatever the catalogue shows.
pub fn drop_lost(session: &mut Session, name: &str, is_known_lost: bool) -> Result<(), Error> {
    let sql = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots AS slot \
         WHERE slot_name = {} AND NOT active AND ({is_known_lost} OR {IS_LOST})",
        quote_literal(name)
    );
    session.simple_query(&sql).map(drop)
}

/// Moves the slot ahead: what was committed before `to` will not be sent. The server reads the WAL between.
pub fn advance(session: &mut Session, name: &str, to: Lsn) -> Result<(), Error> {
    let sql = format!(
        "SELECT pg_replication_slot_advance({}, '{to}')",
        quote_literal(name)
    );
    session.simple_query(&sql).map(drop)
}
