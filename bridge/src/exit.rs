//! Exit codes: what a service manager or a script can tell from the end of the process.
//!
//! In: an error that nothing can retry. Out: its code. Invariant: the codes are those `--help` lists.

use crate::postgres;
use crate::preflight;
use crate::source;

/// Everything read is stored and confirmed.
pub const DRAINED: u8 = 0;
/// A bug, or the system refused something basic.
pub const FAILURE: u8 = 1;
/// Flags or environment make no sense, or the port is taken.
pub const USAGE: u8 = 2;
/// Stopped before everything was stored; WAL replays it.
pub const NOT_DRAINED: u8 = 3;
pub const SLOT_MISSING: u8 = 10;
pub const SLOT_LOST: u8 = 11;
pub const WRONG_DATABASE: u8 = 12;
pub const PUBLICATION_MISSING: u8 = 13;
pub const WAL_LEVEL: u8 = 14;
pub const DENIED: u8 = 15;

pub fn of_preflight(error: &preflight::Error) -> u8 {
    match error {
        preflight::Error::WalLevel(_) => WAL_LEVEL,
        preflight::Error::PublicationMissing(_) => PUBLICATION_MISSING,
        preflight::Error::Catalog(_) => DENIED,
        preflight::Error::SeveralToCreate
        | preflight::Error::TableNotPublished { .. }
        | preflight::Error::Collision(_) => USAGE,
    }
}

pub fn of_source(error: &source::Error) -> u8 {
    match error {
        source::Error::Postgres(postgres::Error::SlotMissing { .. }) => SLOT_MISSING,
        source::Error::Postgres(postgres::Error::SlotLost { .. }) => SLOT_LOST,
        source::Error::Postgres(postgres::Error::WrongDatabase { .. }) => WRONG_DATABASE,
        source::Error::Postgres(postgres::Error::PublicationMissing(_)) => PUBLICATION_MISSING,
        source::Error::Postgres(
            postgres::Error::Denied(_)
            | postgres::Error::NoPassword
            | postgres::Error::Authentication(_),
        ) => DENIED,
        source::Error::Postgres(_) | source::Error::Decode(_) | source::Error::Assemble(_) => {
            FAILURE
        }
    }
}
