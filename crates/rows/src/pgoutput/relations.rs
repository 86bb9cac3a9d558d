//! What the server has told about the tables whose rows it sends.
//!
//! In: each Relation message. Out: whether the table is new or changed, and its entry by id.
//! Invariant: an entry has the shape of the last Relation message with its id in this session.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// A table as a Relation message describes it: only the published columns, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// The OID of `pg_class`; it stays the same when the table is altered.
    pub id: u32,
    /// The schema. Never empty: PostgreSQL sends "" for `pg_catalog`.
    pub namespace: String,
    pub name: String,
    pub replica_identity: ReplicaIdentity,
    pub columns: Vec<Column>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
    /// `atttypmod`: -1 when the type takes no modifier.
    pub type_modifier: i32,
    /// Part of the replica identity; under FULL every column is.
    pub is_key: bool,
}

/// What identifies the old row of an UPDATE or DELETE: `relreplident` of `pg_class`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    Nothing,
    Full,
    Index,
}

/// What a Relation message told that was not known before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    New,
    /// The server repeats itself, as it does after any invalidation of its own cache.
    Same,
    /// Another name, replica identity or other columns than before.
    Changed,
}

/// The relations of one replication session. `T` is what the caller keeps for each:
/// a `Relation`, or something that holds one beside what is derived from it.
#[derive(Debug)]
pub struct Relations<T = Relation> {
    entries: Vec<T>,
    index_by_id: HashMap<u32, usize>,
    last: Option<(u32, usize)>,
}

impl<T> Default for Relations<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            index_by_id: HashMap::new(),
            last: None,
        }
    }
}

impl<T: Borrow<Relation>> Relations<T> {
    /// Takes a Relation message. `keep` makes the entry, and is not called when nothing changed:
    /// the old entry then stays.
    pub fn insert(&mut self, relation: Relation, keep: impl FnOnce(Relation) -> T) -> Change {
        match self.index_by_id.entry(relation.id) {
            Entry::Vacant(vacant) => {
                vacant.insert(self.entries.len());
                self.entries.push(keep(relation));
                Change::New
            }
            Entry::Occupied(occupied) => {
                let entry = &mut self.entries[*occupied.get()];
                if Borrow::<Relation>::borrow(entry) == &relation {
                    return Change::Same;
                }
                *entry = keep(relation);
                Change::Changed
            }
        }
    }

    /// The entry for the relation of a row. `&mut` because it remembers the last hit:
    /// rows of one table come together, so most look-ups are one comparison.
    #[inline]
    pub fn get(&mut self, id: u32) -> Option<&T> {
        let index = match self.last {
            Some((last_id, index)) if last_id == id => index,
            _ => {
                let index = *self.index_by_id.get(&id)?;
                self.last = Some((id, index));
                index
            }
        };
        self.entries.get(index)
    }

    /// Forgets everything: a new session sends each relation again before its first row.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.index_by_id.clear();
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(id: u32, columns: &[&str]) -> Relation {
        Relation {
            id,
            namespace: "public".into(),
            name: "users".into(),
            replica_identity: ReplicaIdentity::Default,
            columns: columns
                .iter()
                .map(|&name| Column {
                    name: name.into(),
                    type_oid: 25,
                    type_modifier: -1,
                    is_key: name == "id",
                })
                .collect(),
        }
    }

    fn insert(relations: &mut Relations, relation: Relation) -> Change {
        relations.insert(relation, |relation| relation)
    }

    #[test]
    fn a_repeated_relation_is_the_same_and_keeps_its_entry() {
        let mut relations = Relations::default();
        insert(&mut relations, relation(1, &["id"]));

        let change = relations.insert(relation(1, &["id"]), |_| unreachable!());

        assert_eq!(change, Change::Same);
    }

    #[test]
    fn an_altered_column_under_the_same_oid_is_a_change() {
        let mut relations = Relations::default();

        assert_eq!(insert(&mut relations, relation(1, &["id"])), Change::New);
        assert!(relations.get(1).is_some());
        let altered = relation(1, &["id", "email"]);
        assert_eq!(insert(&mut relations, altered), Change::Changed);

        assert_eq!(relations.get(1).unwrap().columns.len(), 2);
    }

    #[test]
    fn a_renamed_table_is_a_change() {
        let mut relations = Relations::default();
        insert(&mut relations, relation(1, &["id"]));

        let mut renamed = relation(1, &["id"]);
        renamed.name = "people".into();

        assert_eq!(insert(&mut relations, renamed), Change::Changed);
    }

    #[test]
    fn look_ups_alternate_between_tables() {
        let mut relations = Relations::default();
        insert(&mut relations, relation(1, &["id"]));
        insert(&mut relations, relation(2, &["id", "email"]));

        for _ in 0..2 {
            assert_eq!(relations.get(1).unwrap().id, 1);
            assert_eq!(relations.get(2).unwrap().id, 2);
            assert!(relations.get(3).is_none());
        }
    }

    #[test]
    fn a_cleared_cache_knows_nothing() {
        let mut relations = Relations::default();
        insert(&mut relations, relation(1, &["id"]));
        assert!(relations.get(1).is_some());

        relations.clear();

        assert!(relations.get(1).is_none());
        assert_eq!(insert(&mut relations, relation(1, &["id"])), Change::New);
    }
}
