//! Turns the messages of one replication session into slabs of events.
//!
//! In: decoded messages in the order they came. Out: sealed slabs.
//! Invariant: rows are counted and kept only inside a transaction and after their Relation; a slab is
//! sealed only where it is known which of its events is its transaction's last.

use std::borrow::Borrow;
use std::sync::{Arc, OnceLock};

use wire::{Lsn, SubjectPattern};

use crate::config::TableFilter;
use crate::event::{Row, Slab, Table, Transaction};
use crate::pgoutput::{Message, Relation, Relations};

/// What the server sent makes no sense in its place. Reconnecting reads it again from the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a row of relation {0} came before its Relation message")]
    UnknownRelation(u32),
    #[error("{0} came outside a transaction")]
    NoTransaction(&'static str),
    #[error("a transaction began inside another")]
    Nested,
    #[error("the Commit is of {commit}, its Begin of {begin}")]
    OtherCommit { begin: Lsn, commit: Lsn },
}

#[derive(Debug)]
pub struct Assembler {
    relations: Relations<Known>,
    filter: TableFilter,
    subjects: SubjectPattern,
    transaction: Option<Open>,
    slab: Slab,
    session: u32,
    /// A 64 bit transaction id near the ones to come; see `xid_with_epoch`.
    xid_reference: u64,
}

#[derive(Debug)]
struct Open {
    transaction: Transaction,
    /// Of the event pushed last; 0 before the first.
    seq: u32,
}

#[derive(Debug)]
struct Known {
    table: Arc<Table>,
    /// Whether `--table` lets it through.
    is_admitted: bool,
}

impl Borrow<Relation> for Known {
    fn borrow(&self) -> &Relation {
        &self.table.relation
    }
}

impl Assembler {
    /// For a new session; `slab` is an empty one. `xid_reference` is any recent 64 bit transaction id.
    pub fn new(
        filter: TableFilter,
        subjects: SubjectPattern,
        session: u32,
        xid_reference: u64,
        slab: Slab,
    ) -> Self {
        Self {
            relations: Relations::default(),
            filter,
            subjects,
            transaction: None,
            slab: slab.of_session(session),
            session,
            xid_reference,
        }
    }

    /// Takes a message. A slab that had no room for it is given to `sealed`, which gives an empty one.
    #[inline]
    pub fn take(
        &mut self,
        wal_start: Lsn,
        message: Message<'_>,
        mut sealed: impl FnMut(Slab) -> Slab,
    ) -> Result<(), Error> {
        match message {
            Message::Insert { relation_id, new } => {
                self.row(wal_start, relation_id, &Row::Insert(new), &mut sealed)
            }
            Message::Update {
                relation_id,
                old,
                new,
            } => self.row(wal_start, relation_id, &Row::Update(old, new), &mut sealed),
            Message::Delete { relation_id, old } => {
                self.row(wal_start, relation_id, &Row::Delete(old), &mut sealed)
            }
            Message::Truncate(truncate) => {
                let row = Row::Truncate {
                    cascade: truncate.cascade,
                    restart_identity: truncate.restart_identity,
                };
                for relation_id in truncate.relation_ids {
                    self.row(wal_start, relation_id, &row, &mut sealed)?;
                }
                Ok(())
            }
            Message::Begin(begin) => {
                if self.transaction.is_some() {
                    return Err(Error::Nested);
                }
                self.xid_reference = xid_with_epoch(begin.xid, self.xid_reference);
                self.transaction = Some(Open {
                    transaction: Transaction {
                        commit_lsn: begin.final_lsn,
                        end_lsn: Lsn::INVALID,
                        xid: self.xid_reference,
                        commit_time_us: wire::event::unix_us(begin.commit_time_us),
                    },
                    seq: 0,
                });
                Ok(())
            }
            Message::Commit(commit) => {
                let open = self
                    .transaction
                    .take()
                    .ok_or(Error::NoTransaction("a Commit"))?;
                let begin = open.transaction.commit_lsn;
                if begin != commit.commit_lsn {
                    return Err(Error::OtherCommit {
                        begin,
                        commit: commit.commit_lsn,
                    });
                }
                self.slab.commit(commit.commit_lsn, commit.end_lsn);
                Ok(())
            }
            Message::Relation(relation) => {
                self.relation(relation);
                Ok(())
            }
            // A type's name does not change how its text is carried; an origin does not matter to consumers.
            Message::Type(_) | Message::Origin { .. } | Message::LogicalMessage(_) => Ok(()),
        }
    }

    #[inline]
    fn row(
        &mut self,
        wal_start: Lsn,
        relation_id: u32,
        row: &Row<'_>,
        sealed: &mut impl FnMut(Slab) -> Slab,
    ) -> Result<(), Error> {
        let known = self
            .relations
            .get(relation_id)
            .ok_or(Error::UnknownRelation(relation_id))?;
        let open = self
            .transaction
            .as_mut()
            .ok_or(Error::NoTransaction("a row"))?;
        if !known.is_admitted {
            return Ok(());
        }
        if !self.slab.has_room(row) {
            // The row that comes next tells that the last event in the slab is not its transaction's last.
            let next = sealed(std::mem::take(&mut self.slab));
            self.slab = next.of_session(self.session);
        }
        open.seq += 1;
        self.slab
            .push(&known.table, &open.transaction, open.seq, wal_start, row);
        Ok(())
    }

    fn relation(&mut self, relation: Relation) {
        let Self {
            relations,
            filter,
            subjects,
            ..
        } = self;
        relations.insert(relation, |relation| Known {
            is_admitted: filter.admits(&relation.namespace, &relation.name),
            table: Arc::new(Table {
                subjects: subjects.subjects(&relation.namespace, &relation.name),
                relation,
                layout: OnceLock::new(),
            }),
        });
    }

    /// Seals what is there, if no transaction is open and there is anything.
    pub fn seal(&mut self, empty: impl FnOnce() -> Slab) -> Option<Slab> {
        if self.transaction.is_some() || self.slab.is_empty() {
            return None;
        }
        let next = empty().of_session(self.session);
        Some(std::mem::replace(&mut self.slab, next))
    }

    /// The open one; its commit LSN is known since its Begin.
    pub fn transaction(&self) -> Option<&Transaction> {
        self.transaction.as_ref().map(|open| &open.transaction)
    }

    /// Nothing is held here: no open transaction, no event, no boundary.
    pub fn is_idle(&self) -> bool {
        self.transaction.is_none() && self.slab.is_empty()
    }
}

/// pgoutput sends 32 bits of a transaction id. The whole one is the value nearest to a recent one with
/// the same low bits (PostgreSQL: transaction ids under way never span 2^31, "Preventing Transaction
/// ID Wraparound Failures").
fn xid_with_epoch(xid: u32, reference: u64) -> u64 {
    let distance = i64::from(xid.wrapping_sub(reference as u32) as i32);
    reference.saturating_add_signed(distance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgoutput::{Begin, Column, Commit, ReplicaIdentity, TupleData};

    fn assembler(tables: &[&str]) -> Assembler {
        let mut assembler = Assembler::new(
            TableFilter::of(tables),
            SubjectPattern::default(),
            0,
            1000,
            Slab::default(),
        );
        for (id, name) in [(1, "users"), (2, "orders")] {
            let relation = Relation {
                id,
                namespace: "public".into(),
                name: name.into(),
                replica_identity: ReplicaIdentity::Default,
                columns: vec![Column {
                    name: "id".into(),
                    type_oid: 23,
                    type_modifier: -1,
                    is_key: true,
                }],
            };
            take(&mut assembler, Message::Relation(relation)).unwrap();
        }
        assembler
    }

    fn take(assembler: &mut Assembler, message: Message<'_>) -> Result<Vec<Slab>, Error> {
        let mut slabs = Vec::new();
        assembler.take(Lsn(7), message, |slab| {
            slabs.push(slab);
            Slab::default()
        })?;
        Ok(slabs)
    }

    fn begin(lsn: u64) -> Message<'static> {
        Message::Begin(Begin {
            final_lsn: Lsn(lsn),
            commit_time_us: 0,
            xid: 1001,
        })
    }

    fn commit(lsn: u64) -> Message<'static> {
        Message::Commit(Commit {
            flags: 0,
            commit_lsn: Lsn(lsn),
            end_lsn: Lsn(lsn + 8),
            commit_time_us: 0,
        })
    }

    fn insert(relation_id: u32, bytes: &[u8]) -> Message<'_> {
        Message::Insert {
            relation_id,
            new: TupleData::from_parts(1, bytes),
        }
    }

    #[test]
    fn the_last_event_of_a_transaction_is_marked_and_its_end_kept() {
        let mut assembler = assembler(&[]);
        for message in [begin(10), insert(1, b"n"), insert(2, b"n"), commit(10)] {
            take(&mut assembler, message).unwrap();
        }

        let slab = assembler.seal(Slab::default).unwrap();

        let events: Vec<_> = slab
            .events()
            .iter()
            .map(|event| (event.seq, event.last))
            .collect();
        assert_eq!(events, [(1, false), (2, true)]);
        assert_eq!(slab.transaction(&slab.events()[1]).end_lsn, Lsn(18));
        assert_eq!(slab.boundary(), Lsn(18));
        assert!(assembler.is_idle());
    }

    #[test]
    fn a_transaction_may_span_slabs_and_no_slab_ends_on_a_guess() {
        let mut assembler = assembler(&[]);
        let row = vec![b'n'; 40_000];
        take(&mut assembler, begin(10)).unwrap();
        assert!(take(&mut assembler, insert(1, &row)).unwrap().is_empty());
        let sealed = take(&mut assembler, insert(1, &row)).unwrap();
        assert!(
            assembler.seal(Slab::default).is_none(),
            "the transaction is open"
        );
        take(&mut assembler, commit(10)).unwrap();
        let rest = assembler.seal(Slab::default).unwrap();

        assert!(!sealed[0].events()[0].last);
        assert!(!sealed[0].boundary().is_valid());
        assert!(rest.events()[0].last);
        assert_eq!(rest.events()[0].seq, 2);
    }

    #[test]
    fn tables_that_are_filtered_out_still_move_the_boundary() {
        let mut assembler = assembler(&["users"]);
        for message in [
            begin(10),
            insert(1, b"n"),
            insert(2, b"n"),
            commit(10),
            begin(30),
            insert(2, b"n"),
            commit(30),
        ] {
            take(&mut assembler, message).unwrap();
        }

        let slab = assembler.seal(Slab::default).unwrap();

        assert_eq!(slab.events().len(), 1);
        assert!(slab.events()[0].last, "what follows it was filtered out");
        assert_eq!(slab.transaction(&slab.events()[0]).end_lsn, Lsn(18));
        assert_eq!(slab.boundary(), Lsn(38));
    }

    #[test]
    fn messages_out_of_place_are_errors() {
        let mut assembler = assembler(&[]);

        assert_eq!(
            take(&mut assembler, insert(1, b"n")).unwrap_err(),
            Error::NoTransaction("a row")
        );
        assert_eq!(
            take(&mut assembler, commit(1)).unwrap_err(),
            Error::NoTransaction("a Commit")
        );
        take(&mut assembler, begin(10)).unwrap();
        assert_eq!(take(&mut assembler, begin(20)).unwrap_err(), Error::Nested);
        assert_eq!(
            take(&mut assembler, insert(9, b"n")).unwrap_err(),
            Error::UnknownRelation(9)
        );
        assert!(matches!(
            take(&mut assembler, commit(20)).unwrap_err(),
            Error::OtherCommit { .. }
        ));
    }

    #[test]
    fn a_transaction_id_gets_the_epoch_of_its_time() {
        assert_eq!(xid_with_epoch(5, 0x1_0000_0003), 0x1_0000_0005);
        assert_eq!(xid_with_epoch(0xffff_fff0, 0x1_0000_0003), 0xffff_fff0);
        assert_eq!(xid_with_epoch(2, 0xffff_fffe), 0x1_0000_0002);
    }
}
