//! The store, used in turns by two who both write: the one that follows the stream and the one that loads
//! a snapshot.
//!
//! In: their wishes. Out: the store, borrowed for as long as nothing is awaited.
//! Invariant: a chunk is never stored inside the follower's transaction, which may be rolled back.

use std::cell::{Cell, RefCell, RefMut};

use tokio::sync::Notify;

use crate::store::Store;

/// Both run in one task, so that a borrow that ends before an `await` meets no other.
#[derive(Debug)]
pub struct Desk {
    store: RefCell<Store>,
    /// The loader waits for the end of the follower's transaction.
    is_wanted: Cell<bool>,
    wanted: Notify,
    free: Notify,
}

impl Desk {
    pub fn new(store: Store) -> Self {
        Self {
            store: RefCell::new(store),
            is_wanted: Cell::new(false),
            wanted: Notify::new(),
            free: Notify::new(),
        }
    }

    /// For a statement or two: never across an `await`.
    pub fn store(&self) -> RefMut<'_, Store> {
        self.store.borrow_mut()
    }

    /// The loader: returns when no transaction is open. Go on without awaiting.
    pub async fn free(&self) {
        while !self.store().is_free() {
            self.is_wanted.set(true);
            self.wanted.notify_one();
            self.free.notified().await;
        }
        self.is_wanted.set(false);
    }

    /// The follower: whether the loader waits.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.get()
    }

    /// The same, awaited.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// The follower, between two transactions: lets the loader have its turn.
    pub async fn give_way(&self) {
        self.is_wanted.set(false);
        self.free.notify_one();
        // The other half of the `select!` is polled before this one goes on.
        tokio::task::yield_now().await;
    }
}
