//! Exit codes: what a service manager or a script can tell from the end of the process.
//!
//! In: an error that nothing can retry. Out: its code. Invariant: the codes are those `--help` lists.

use crate::postgres;
use crate::preflight;
use crate::source;

/// Everything read is stored.
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
pub const OTHER_HISTORY: u8 = 16;

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
    use postgres::Error;
    let error = match error {
        source::Error::Postgres(error) => error,
        source::Error::Identity(_) => return OTHER_HISTORY,
        source::Error::SkipBackwards { .. } | source::Error::SkipAhead { .. } => return USAGE,
        source::Error::Decode(_)
        | source::Error::Assemble(_)
        | source::Error::ServerStopping
        | source::Error::Checkpoint(_) => return FAILURE,
    };
    match error {
        Error::SlotMissing(_) => SLOT_MISSING,
        Error::SlotLost(_) => SLOT_LOST,
        Error::WrongDatabase(_) => WRONG_DATABASE,
        Error::PublicationMissing(_) => PUBLICATION_MISSING,
        Error::WalLevel(_) => WAL_LEVEL,
        Error::Authentication(_)
        | Error::PasswordMissing
        | Error::Scram(_)
        | Error::UnsupportedAuthentication(_)
        | Error::Privilege(_) => DENIED,
        Error::Connect { .. }
        | Error::Io(_)
        | Error::Closed
        | Error::Unavailable(_)
        | Error::TooManyConnections(_)
        | Error::SlotInUse(_)
        | Error::SlotExists(_)
        | Error::Server(_)
        | Error::Protocol { .. } => FAILURE,
    }
}
