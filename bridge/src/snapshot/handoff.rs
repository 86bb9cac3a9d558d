//! Brings a snapshot, the source and the publisher together.
//!
//! In: a snapshot's visibility from its worker, markers from the source, stored sequences from the
//! publisher. Out: the joint of the snapshot with the stream; a word when DDL has passed.
//! Invariant: a lock is held for a lookup, never across a wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use wire::Lsn;

use super::sequences::SequenceLog;
use super::transactions::{Joint, TransactionLog, Visibility};
use crate::event::Transaction;
use crate::pgoutput::LogicalMessage;

/// Prefix of the message a snapshot writes into WAL behind itself; the content is its id.
pub const MARKER_PREFIX: &str = "bridge.snapshot";
/// Prefix of the message that the optional event trigger writes when a table's shape changes.
pub const DDL_PREFIX: &str = "bridge.ddl";

/// One for the process; the source, the publisher and the snapshots hold it.
#[derive(Debug, Default)]
pub struct Handoff {
    waiting: Mutex<HashMap<String, Waiting>>,
    sequences: Mutex<SequenceLog>,
    stored_lsn: AtomicU64,
    ddl: Notify,
    /// By OID: the last commit that rewrote the table. One entry a table at most.
    rewritten: Mutex<HashMap<u32, Lsn>>,
}

#[derive(Debug)]
struct Waiting {
    visibility: Visibility,
    answer: oneshot::Sender<Joint>,
}

impl Handoff {
    /// A worker: tell me when the marker `id`, which I shall write next, has passed.
    pub fn expect(&self, id: &str, visibility: Visibility) -> oneshot::Receiver<Joint> {
        let (answer, receiver) = oneshot::channel();
        let waiting = Waiting { visibility, answer };
        let mut all = lock(&self.waiting);
        all.retain(|_, waiting| !waiting.answer.is_closed());
        all.insert(id.to_owned(), waiting);
        receiver
    }

    /// The publisher: all events up to `sequence` are stored, the last one committed at `commit_lsn`.
    pub fn stored(&self, commit_lsn: Lsn, sequence: u64) {
        lock(&self.sequences).stored(commit_lsn, sequence);
    }

    /// The publisher: every event before this LSN is stored, held back or not.
    pub fn stored_through(&self, lsn: Lsn) {
        self.stored_lsn.fetch_max(lsn.0, Ordering::Release);
    }

    /// See `stored_through`.
    pub fn stored_lsn(&self) -> Lsn {
        Lsn(self.stored_lsn.load(Ordering::Acquire))
    }

    /// The stream sequence behind which all events from `lsn` on are.
    pub fn sequence_before(&self, lsn: Lsn) -> u64 {
        lock(&self.sequences).before(lsn)
    }

    /// Returns after a DDL message has passed, once for any number of them. Cancel safe.
    pub async fn ddl_passed(&self) {
        self.ddl.notified().await;
    }

    /// Tables whose rows DDL has rewritten since the last time, and where it committed.
    pub fn rewritten(&self) -> HashMap<u32, Lsn> {
        std::mem::take(&mut lock(&self.rewritten))
    }

    fn marker(&self, id: &[u8], log: &TransactionLog, commit_lsn: Lsn) {
        let waiting = std::str::from_utf8(id)
            .ok()
            .and_then(|id| lock(&self.waiting).remove(id));
        if let Some(Waiting { visibility, answer }) = waiting {
            // The worker may have given up; then nobody needs the answer.
            let _ = answer.send(log.joint(&visibility, commit_lsn));
        }
    }
}

/// The source's end of it.
#[derive(Debug, Default)]
pub struct Observer {
    log: TransactionLog,
}

impl Observer {
    pub fn session(&mut self, recent_xid: u64) {
        self.log.session(recent_xid);
    }

    /// A transaction has begun to arrive.
    #[inline]
    pub fn began(&mut self, transaction: &Transaction) {
        self.log.began(transaction.xid, transaction.commit_lsn);
    }

    /// A message somebody wrote into WAL, inside `transaction`.
    pub fn message(
        &self,
        message: &LogicalMessage<'_>,
        transaction: Option<&Transaction>,
        handoff: &Handoff,
    ) {
        if message.prefix == DDL_PREFIX.as_bytes() {
            if let Some(oid) = rewritten(message.content)
                && let Some(transaction) = transaction
            {
                lock(&handoff.rewritten).insert(oid, transaction.commit_lsn);
            }
            handoff.ddl.notify_one();
        }
        if message.prefix == MARKER_PREFIX.as_bytes()
            && let Some(transaction) = transaction
        {
            handoff.marker(message.content, &self.log, transaction.commit_lsn);
        }
    }
}

/// Of `rewrite 16384`.
fn rewritten(content: &[u8]) -> Option<u32> {
    let content = std::str::from_utf8(content).ok()?;
    content.strip_prefix("rewrite ")?.parse().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(xid: u64, commit_lsn: u64) -> Transaction {
        Transaction {
            commit_lsn: Lsn(commit_lsn),
            xid,
            ..Transaction::default()
        }
    }

    fn marker(content: &[u8]) -> LogicalMessage<'_> {
        LogicalMessage {
            transactional: true,
            lsn: Lsn(1),
            prefix: MARKER_PREFIX.as_bytes(),
            content,
        }
    }

    #[test]
    fn a_marker_answers_the_snapshot_that_wrote_it() {
        let handoff = Handoff::default();
        let mut observer = Observer::default();
        let mut answer = handoff.expect("snap-1", Visibility::parse("8:8:").unwrap());
        let own = transaction(8, 20);
        observer.began(&transaction(7, 10));
        observer.began(&own);

        observer.message(&marker(b"snap-2"), Some(&own), &handoff);
        assert!(answer.try_recv().is_err());
        observer.message(&marker(b"snap-1"), Some(&own), &handoff);

        assert_eq!(answer.try_recv().unwrap().lsn, Lsn(20));
    }

    #[test]
    fn a_rewriting_names_its_table_and_where_it_committed() {
        let handoff = Handoff::default();
        let ddl = |content: &'static [u8]| LogicalMessage {
            prefix: DDL_PREFIX.as_bytes(),
            ..marker(content)
        };

        for content in [&b"rewrite 16384"[..], b"rewrite x", b"ALTER TABLE"] {
            Observer::default().message(&ddl(content), Some(&transaction(1, 30)), &handoff);
        }

        assert_eq!(handoff.rewritten(), HashMap::from([(16384, Lsn(30))]));
        assert!(handoff.rewritten().is_empty());
    }

    #[test]
    fn a_marker_of_another_bridge_or_of_no_text_changes_nothing() {
        let handoff = Handoff::default();

        Observer::default().message(&marker(b"\xff"), Some(&transaction(1, 1)), &handoff);
        Observer::default().message(&marker(b"snap-9"), None, &handoff);
    }
}
