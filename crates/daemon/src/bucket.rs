//! Keeps the values of a KV bucket at hand.
//!
//! In: the bucket, and how a value is read. Out: the present values, at once. What must hold: while NATS is away the
//! last known values stay, and a bucket is taken over whole or not at all.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Entry, Operation};
use futures_util::StreamExt;

use crate::backoff::{self, Backoff};

/// Values by their key.
pub type Values<T> = HashMap<String, Arc<T>>;

/// The values of one bucket; clones see the same.
#[derive(Debug)]
pub struct Bucket<T>(Arc<RwLock<Option<Arc<Values<T>>>>>);

impl<T> Bucket<T> {
    /// All values; None until the bucket was read once.
    pub fn values(&self) -> Option<Arc<Values<T>>> {
        // The lock is held for a clone or an assignment: nothing in there panics.
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// One value, if the bucket has it.
    pub fn value(&self, key: &str) -> Option<Arc<T>> {
        self.values()?.get(key).cloned()
    }

    /// Follows bucket `name` for ever. Of an entry that cannot be read there is no value: better none than one that is no
    /// longer true. Cancel safe: the values are replaced at once or not at all.
    pub async fn follow<E: Display>(
        &self,
        context: &Context,
        name: &str,
        read: impl Fn(&Entry) -> Result<T, E>,
    ) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            if let Err(error) = self.watch(context, name, &read, &mut backoff).await {
                tracing::warn!(%error, bucket = name, "cannot follow the bucket");
            }
            tokio::time::sleep(backoff.next(backoff::random())).await;
        }
    }

    /// Follows the bucket until the watch ends.
    async fn watch<E: Display>(
        &self,
        context: &Context,
        name: &str,
        read: &impl Fn(&Entry) -> Result<T, E>,
        backoff: &mut Backoff,
    ) -> Result<(), async_nats::Error> {
        let bucket = context.get_key_value(name).await?;
        // Values still to come: the watch itself says nothing about an empty bucket.
        let is_empty = bucket.status().await?.values() == 0;
        let mut watch = bucket.watch_with_history(">").await?;
        let mut values = Values::new();
        if is_empty {
            self.set(values.clone());
        }
        while let Some(entry) = watch.next().await {
            let entry = entry?;
            let (key, revision) = (&entry.key, entry.revision);
            let value = match entry.operation {
                Operation::Delete | Operation::Purge => None,
                Operation::Put => Some(read(&entry)),
            };
            match value {
                Some(Ok(value)) => {
                    tracing::info!(bucket = name, key, revision, "value");
                    values.insert(key.clone(), Arc::new(value));
                }
                Some(Err(error)) => {
                    tracing::error!(bucket = name, key, %error, "value cannot be read");
                    values.remove(key);
                }
                None => drop(values.remove(key)),
            }
            if entry.delta == 0 {
                self.set(values.clone());
                backoff.reset();
            }
        }
        Ok(())
    }

    fn set(&self, values: Values<T>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(values));
    }
}

impl<T> Default for Bucket<T> {
    fn default() -> Self {
        Self(Arc::new(RwLock::new(None)))
    }
}

impl<T> Clone for Bucket<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
