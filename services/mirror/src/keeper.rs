//! Keeps the tables: follows the stream, seeds beside it what must be seeded, and begins again.
//!
//! In: the configuration. Out: nothing but the file; an error that waiting will not cure.
//! Invariant: whatever fails, the file is a copy of the source at some point of the stream.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use daemon::backoff::{self, Backoff};
use daemon::chained::Chained;
use wire::snapshot::ErrorCode;

use crate::config::{self, Config};
use crate::desk::Desk;
use crate::follow::{self, Ended, Follower};
use crate::join::Need;
use crate::progress::Progress;
use crate::seed::{self, Seeder};
use crate::source::{self, Source};
use crate::store::{self, Store};
use crate::table::TableName;
use crate::transaction::OutOfOrder;

/// How often is looked for a table that is gone.
const COMES_BACK_INTERVAL: Duration = Duration::from_secs(2);
/// A table seeded again within this time is seeded more and more slowly.
const CALM: Duration = Duration::from_mins(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Seed(seed::Error),
    #[error(transparent)]
    Follow(follow::Error),
}

pub struct Keeper {
    config: Config,
    source: Source,
    desk: Desk,
    progress: RefCell<Progress>,
    /// Tables that the source had and has no more; they wait until it has them again.
    gone: Vec<TableName>,
    /// Where the events of one bridge were out of order.
    disorder: Option<OutOfOrder>,
}

impl Keeper {
    /// Opens the file; NATS may be away.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let store = Store::open(&config.db, config.tables()?)?;
        let source = Source::connect(&config).await?;
        let progress = Progress::new(config.progress, Instant::now());
        Ok(Self {
            config,
            source,
            desk: Desk::new(store),
            progress: RefCell::new(progress),
            gone: Vec::new(),
            disorder: None,
        })
    }

    /// Keeps the tables; for ever, or with `--once` until they are caught up.
    ///
    /// Cancel safety: every step in the file is one SQLite transaction, made without awaiting; what is
    /// open when this is dropped is rolled back when the file is closed, and read again the next time.
    pub async fn run(&mut self) -> Result<(), Error> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        loop {
            let began = Instant::now();
            let round = Box::pin(self.round()).await;
            self.desk.store().rollback()?;
            match round {
                Ok(Ended::CaughtUp) => {
                    tracing::info!("caught up");
                    return Ok(());
                }
                Ok(Ended::Seeded) => continue,
                Ok(Ended::Reseed) => {}
                // A table may have gone from one bridge to another, which the next round knows.
                Err(Error::Follow(follow::Error::Order(disorder)))
                    if self.disorder != Some(disorder) =>
                {
                    self.disorder = Some(disorder);
                }
                Err(error) if error.is_retryable() => {
                    tracing::warn!(error = %Chained(&error), "cannot go on now, tries again");
                }
                Err(error) => return Err(error),
            }
            if CALM < began.elapsed() {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next(backoff::random())).await;
        }
    }

    /// Follows the stream with the tables that are seeded, and seeds one of the others beside it.
    async fn round(&mut self) -> Result<Ended, Error> {
        for name in std::mem::take(&mut self.gone) {
            if self.source.schema(&name).await?.is_none() {
                self.gone.push(name);
            }
        }
        let needs = self.desk.store().needs()?;
        let next = needs.iter().find(|(name, _)| !self.gone.contains(name));
        let is_following = !self.desk.store().tables().is_empty();
        let follow = |once| {
            let follower = Follower::new(&self.source, &self.desk, &self.progress);
            async move { follower.run(once).await.map_err(Error::from) }
        };
        let seeded = match next {
            None if self.gone.is_empty() => return follow(self.config.once).await,
            None if self.config.once && is_following => return follow(true).await,
            None if self.config.once => return Ok(Ended::CaughtUp),
            None if is_following => {
                return tokio::select! {
                    ended = follow(false) => ended,
                    back = self.comes_back() => back,
                };
            }
            None => return self.comes_back().await,
            Some((name, need)) if is_following => tokio::select! {
                // The seeder first: it has its turn when the follower gives way.
                biased;
                seeded = self.seed(name, need) => seeded,
                ended = follow(false) => return ended,
            },
            Some((name, need)) => self.seed(name, need).await,
        };
        match seeded {
            Ok(()) => Ok(Ended::Seeded),
            Err(error) => self.is_gone(next, error),
        }
    }

    async fn seed(&self, name: &TableName, need: &Need) -> Result<(), Error> {
        let mut seeder = Seeder {
            source: &self.source,
            desk: &self.desk,
            progress: &self.progress,
        };
        seeder.seed(name, need).await.map_err(Error::from)
    }

    /// A table that was here once may go in the source and come back; one that never was is a mistake.
    fn is_gone(&mut self, table: Option<&(TableName, Need)>, error: Error) -> Result<Ended, Error> {
        let (Some((name, need)), Error::Seed(seed::Error::Refused { code, .. })) = (table, &error)
        else {
            return Err(error);
        };
        let is_dropped = match code {
            ErrorCode::UnknownTable => true,
            ErrorCode::NotPublished => false,
            _ => return Err(error),
        };
        if *need == Need::first() {
            return Err(error);
        }
        let (name, is_kept) = (name.clone(), !is_dropped);
        tracing::warn!(table = %name, is_kept, reason = %Chained(&error), "the source has the table no more, waits for it");
        // What the follower has not committed is read again.
        let mut store = self.desk.store();
        store.rollback()?;
        if is_dropped {
            store.drop_table(&name)?;
        }
        drop(store);
        self.gone.push(name);
        Ok(Ended::Reseed)
    }

    /// Returns when a table that was gone has a schema again.
    async fn comes_back(&self) -> Result<Ended, Error> {
        loop {
            for name in &self.gone {
                if self.source.schema(name).await?.is_some() {
                    return Ok(Ended::Seeded);
                }
            }
            tokio::time::sleep(COMES_BACK_INTERVAL).await;
        }
    }
}

impl Error {
    /// True when waiting may help: for NATS, the bridge, or whoever has the file locked.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Source(error) => error.is_retryable(),
            Self::Store(error) => error.is_retryable(),
            Self::Config(_) | Self::Seed(_) | Self::Follow(_) => false,
        }
    }
}

impl From<seed::Error> for Error {
    fn from(error: seed::Error) -> Self {
        match error {
            seed::Error::Source(error) => Self::Source(error),
            seed::Error::Store(error) => Self::Store(error),
            error @ seed::Error::Refused { .. } => Self::Seed(error),
        }
    }
}

impl From<follow::Error> for Error {
    fn from(error: follow::Error) -> Self {
        match error {
            follow::Error::Source(error) => Self::Source(error),
            follow::Error::Store(error) => Self::Store(error),
            error @ (follow::Error::Order(_) | follow::Error::NoPosition) => Self::Follow(error),
        }
    }
}
