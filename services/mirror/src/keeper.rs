//! Keeps the tables: seeds what must be seeded, then follows the stream, and begins again.
//!
//! In: the configuration. Out: nothing but the file; an error that waiting will not cure.
//! Invariant: whatever fails, the file is a copy of the source at some point of the stream.

use std::time::{Duration, Instant};

use daemon::backoff::{self, Backoff};

use crate::chain::Chain;
use crate::config::{self, Config};
use crate::follow::{self, Ended, Follower};
use crate::progress::Progress;
use crate::seed::{self, Seeder};
use crate::source::{self, Source};
use crate::store::{self, Store};

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
    store: Store,
    progress: Progress,
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
            store,
            progress,
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
            match self.round().await {
                Ok(Ended::CaughtUp) => {
                    tracing::info!("caught up");
                    return Ok(());
                }
                Ok(Ended::Reseed) => {}
                Err(error) if error.is_retryable() => {
                    tracing::warn!(error = %Chain(&error), "cannot go on now, tries again");
                }
                Err(error) => return Err(error),
            }
            self.store.rollback()?;
            if CALM < began.elapsed() {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next(backoff::random())).await;
        }
    }

    async fn round(&mut self) -> Result<Ended, Error> {
        for (name, need) in self.store.needs()? {
            let mut seeder = Seeder {
                source: &self.source,
                store: &mut self.store,
                progress: &mut self.progress,
            };
            seeder.seed(&name, &need).await.map_err(Error::from)?;
        }
        let follower = Follower::new(&self.source, &mut self.store, &mut self.progress);
        Ok(follower.run(self.config.once).await?)
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
