//! A copy of a table, kept as a strict consumer would.
//!
//! In: a snapshot, then events. Out: rows as PostgreSQL's text.
//! Invariant: an insert finds nothing, an update and a delete find a row; anything else is a panic.

use std::collections::BTreeMap;

use wire::{Column, Event, Operation, Row, Value};

use crate::world::Loaded;

/// One row, column by column; None is NULL.
pub type Texts = Vec<Option<String>>;

pub struct Copy {
    /// Indexes of the key's columns; all columns for a table without a key.
    key: Vec<usize>,
    columns: Vec<String>,
    /// How often each row is there, by key.
    rows: BTreeMap<Texts, (Texts, usize)>,
    is_keyed: bool,
}

impl Copy {
    pub fn new(columns: &[&str], key: &[&str], loaded: &Loaded) -> Self {
        let index = |name: &&str| columns.iter().position(|column| column == name).unwrap();
        let all: Vec<&str> = columns.to_vec();
        let mut copy = Self {
            key: if key.is_empty() { &all } else { key }
                .iter()
                .map(index)
                .collect(),
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            rows: BTreeMap::new(),
            is_keyed: !key.is_empty(),
        };
        for Row(columns) in &loaded.rows {
            let row = copy.texts(columns, None);
            copy.insert(row, "the snapshot");
        }
        copy
    }

    /// Applies what the snapshot lacks.
    pub fn apply<'a>(&mut self, loaded: &Loaded, events: impl IntoIterator<Item = &'a Event>) {
        let lacking = |event: &&Event| loaded.meta.admits(event);
        for event in events.into_iter().filter(lacking) {
            let what = format!(
                "{:?} {}:{} of {}",
                event.operation, event.commit_lsn, event.seq, event.xid
            );
            match event.operation {
                Operation::Insert => {
                    let row = self.texts(&event.columns, None);
                    self.insert(row, &what);
                }
                Operation::Update => {
                    let old = if event.old.is_empty() {
                        &event.columns
                    } else {
                        &event.old
                    };
                    let old = self.remove(old, &what);
                    let row = self.texts(&event.columns, Some((&old, &event.unchanged)));
                    self.insert(row, &what);
                }
                Operation::Delete => {
                    self.remove(&event.columns, &what);
                }
                Operation::Truncate => self.rows.clear(),
            }
        }
    }

    /// Sorted, as often as they are there.
    pub fn rows(&self) -> Vec<Texts> {
        let mut rows: Vec<Texts> = self
            .rows
            .values()
            .flat_map(|(row, count)| std::iter::repeat_n(row.clone(), *count))
            .collect();
        rows.sort();
        rows
    }

    fn insert(&mut self, row: Texts, what: &str) {
        let entry = self.rows.entry(self.key_of(&row)).or_insert((row, 0));
        entry.1 += 1;
        assert!(
            !self.is_keyed || entry.1 == 1,
            "{what}: the key {:?} is there",
            entry.0
        );
    }

    fn remove(&mut self, old: &[Column], what: &str) -> Texts {
        let key = self.key_of(&self.texts(old, None));
        let Some((row, count)) = self.rows.get_mut(&key) else {
            panic!("{what}: nothing has the key {key:?}");
        };
        let row = row.clone();
        *count -= 1;
        if *count == 0 {
            self.rows.remove(&key);
        }
        row
    }

    fn key_of(&self, row: &Texts) -> Texts {
        self.key.iter().map(|&index| row[index].clone()).collect()
    }

    /// In the table's order; what an update leaves out as unchanged is taken from the old row.
    fn texts(&self, columns: &[Column], unchanged: Option<(&Texts, &[String])>) -> Texts {
        let value = |(index, name): (usize, &String)| {
            let column = columns.iter().find(|column| column.name == *name);
            match (column, unchanged) {
                (Some(column), _) => text(&column.value),
                (None, Some((old, names))) if names.contains(name) => old[index].clone(),
                (None, _) => None,
            }
        };
        self.columns.iter().enumerate().map(value).collect()
    }
}

/// As PostgreSQL prints it; the tests use no floats.
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Bool(value) => Some(if *value { "t" } else { "f" }.to_owned()),
        Value::Int(value) => Some(value.to_string()),
        Value::Text(value) => Some(value.clone()),
        Value::Float(_) | Value::Bytes(_) => panic!("not in these tests"),
    }
}
