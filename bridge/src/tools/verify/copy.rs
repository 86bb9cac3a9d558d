//! A copy of a table in memory, and how it differs from the table.
//!
//! In: rows and events of the contract, then the table's own rows. Out: a report.
//! Invariant: application is strict: an insert finds nothing, an update or delete finds its row.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use wire::{Column, Event, Operation, Value};

use crate::encode::value::Kind;

/// One value for comparing and showing: a byte for its kind, then its text; empty for NULL.
type Cell = Box<[u8]>;
type Row = Vec<Cell>;

pub(super) struct Copy {
    columns: Vec<String>,
    /// Indexes of the columns that tell a row.
    key: Vec<usize>,
    is_keyed: bool,
    rows: HashMap<Row, (Row, usize)>,
    of_postgres: Tally,
    of_stream: Tally,
    /// By key: PostgreSQL's row, the copy's row.
    differing: BTreeMap<Row, (Option<Row>, Option<Row>)>,
    differing_count: u64,
}

/// Count and a hash that does not depend on the order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    rows: u64,
    hash: u64,
}

/// What came out.
pub(super) struct Report {
    columns: Vec<String>,
    of_postgres: Tally,
    of_stream: Tally,
    differing: BTreeMap<Row, (Option<Row>, Option<Row>)>,
    differing_count: u64,
}

/// Differing rows that are kept for the report.
const SHOWN_MAX: usize = 10;

impl Tally {
    fn add(&mut self, row: &Row) {
        let mut hasher = DefaultHasher::new();
        row.hash(&mut hasher);
        self.rows += 1;
        self.hash = self.hash.wrapping_add(hasher.finish());
    }
}

impl Copy {
    pub(super) fn new(columns: Vec<String>, key: &[String]) -> Self {
        let indexes: Vec<usize> = (0..columns.len())
            .filter(|&index| key.contains(&columns[index]))
            .collect();
        let is_keyed = !key.is_empty() && indexes.len() == key.len();
        Self {
            key: if is_keyed {
                indexes
            } else {
                (0..columns.len()).collect()
            },
            columns,
            is_keyed,
            rows: HashMap::new(),
            of_postgres: Tally::default(),
            of_stream: Tally::default(),
            differing: BTreeMap::new(),
            differing_count: 0,
        }
    }

    pub(super) fn insert(&mut self, columns: &[Column]) -> Result<(), String> {
        let row = self.row(columns, None)?;
        self.put(row)
    }

    pub(super) fn apply(&mut self, event: &Event) -> Result<(), String> {
        let at = |why: String| {
            format!(
                "{why} ({} at {}:{})",
                event.operation.name(),
                event.commit_lsn,
                event.seq
            )
        };
        match event.operation {
            Operation::Insert => self.insert(&event.columns).map_err(at),
            Operation::Update => {
                let old = if event.old.is_empty() {
                    &event.columns
                } else {
                    &event.old
                };
                let old = self.remove(old).map_err(at)?;
                let row = self
                    .row(&event.columns, Some((&old, &event.unchanged)))
                    .map_err(at)?;
                self.put(row).map_err(at)
            }
            Operation::Delete => self.remove(&event.columns).map(drop).map_err(at),
            Operation::Truncate => {
                self.rows.clear();
                Ok(())
            }
        }
    }

    /// A row of the table itself; what is left at the end is too much in the copy.
    pub(super) fn take(&mut self, row: Row) {
        self.of_postgres.add(&row);
        let key = self.key_of(&row);
        match self.rows.get_mut(&key) {
            Some((found, count)) => {
                self.of_stream.add(found);
                let differs = *found != row;
                let found = differs.then(|| found.clone());
                *count -= 1;
                if *count == 0 {
                    self.rows.remove(&key);
                }
                if differs {
                    self.differs(key, Some(row), found);
                }
            }
            None => self.differs(key, Some(row), None),
        }
    }

    pub(super) fn report(mut self) -> Report {
        for (key, (row, count)) in std::mem::take(&mut self.rows) {
            for _ in 0..count {
                self.of_stream.add(&row);
                self.differs(key.clone(), None, Some(row.clone()));
            }
        }
        Report {
            columns: self.columns,
            of_postgres: self.of_postgres,
            of_stream: self.of_stream,
            differing: self.differing,
            differing_count: self.differing_count,
        }
    }

    fn differs(&mut self, key: Row, postgres: Option<Row>, stream: Option<Row>) {
        self.differing_count += 1;
        self.differing.insert(key, (postgres, stream));
        if self.differing.len() > SHOWN_MAX {
            self.differing.pop_last();
        }
    }

    fn put(&mut self, row: Row) -> Result<(), String> {
        let key = self.key_of(&row);
        let shown = show(&key);
        let entry = self.rows.entry(key).or_insert((row, 0));
        entry.1 += 1;
        if self.is_keyed && entry.1 > 1 {
            return Err(format!("key {shown} is there already"));
        }
        Ok(())
    }

    fn remove(&mut self, old: &[Column]) -> Result<Row, String> {
        let old: Row = self.row(old, None)?;
        let key = self.key_of(&old);
        let Some((row, count)) = self.rows.get_mut(&key) else {
            return Err(format!("no row has the key {}", show(&key)));
        };
        let row = row.clone();
        *count -= 1;
        if *count == 0 {
            self.rows.remove(&key);
        }
        Ok(row)
    }

    fn key_of(&self, row: &Row) -> Row {
        self.key.iter().map(|&index| row[index].clone()).collect()
    }

    /// In the table's order. What an update left out as unchanged is the old row's; a column nobody
    /// knows means that the table was altered.
    fn row(&self, columns: &[Column], old: Option<(&Row, &[String])>) -> Result<Row, String> {
        for column in columns {
            if !self.columns.contains(&column.name) {
                return Err(format!("column {:?} is new; verify again", column.name));
            }
        }
        let cell = |(index, name): (usize, &String)| {
            let column = columns.iter().find(|column| column.name == *name);
            match (column, old) {
                (Some(column), _) => of_contract(&column.value),
                (None, Some((row, unchanged))) if unchanged.contains(name) => row[index].clone(),
                (None, _) => Cell::default(),
            }
        };
        Ok(self.columns.iter().enumerate().map(cell).collect())
    }
}

fn of_contract(value: &Value) -> Cell {
    let text = |kind: u8, text: &[u8]| [&[kind], text].concat().into();
    match value {
        Value::Null => Cell::default(),
        Value::Bool(value) => text(b'b', if *value { b"t" } else { b"f" }),
        Value::Int(value) => text(b'i', value.to_string().as_bytes()),
        Value::Float(value) => text(b'f', value.to_string().as_bytes()),
        Value::Text(value) => text(b't', value.as_bytes()),
        Value::Bytes(value) => text(b'x', value),
    }
}

/// What the contract says of PostgreSQL's text, written a second time: the encoder is what is verified.
pub(super) fn of_postgres(kind: Kind, field: Option<&[u8]>) -> Cell {
    let Some(field) = field else {
        return Cell::default();
    };
    let text = std::str::from_utf8(field).ok();
    let value = match kind {
        Kind::Bool => match field {
            b"t" => Some(Value::Bool(true)),
            b"f" => Some(Value::Bool(false)),
            _ => None,
        },
        Kind::Int => text.and_then(|text| text.parse().ok()).map(Value::Int),
        Kind::Float => text.and_then(|text| text.parse().ok()).map(Value::Float),
        Kind::Bytes => text
            .and_then(|text| text.strip_prefix("\\x"))
            .and_then(from_hex)
            .map(Value::Bytes),
        Kind::Text => None,
    };
    let as_text = || match text {
        Some(text) => Value::Text(text.to_owned()),
        None => Value::Bytes(field.to_vec()),
    };
    of_contract(&value.unwrap_or_else(as_text))
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

fn show(row: &[Cell]) -> String {
    let mut shown = String::from("(");
    for (index, cell) in row.iter().enumerate() {
        if index > 0 {
            shown.push_str(", ");
        }
        match cell.split_first() {
            None => shown.push_str("NULL"),
            Some((b'x', bytes)) => {
                shown.push_str("\\x");
                for byte in bytes {
                    let _ = write!(shown, "{byte:02x}");
                }
            }
            Some((b't', text)) => {
                let _ = write!(shown, "{:?}", String::from_utf8_lossy(text));
            }
            Some((_, text)) => shown.push_str(&String::from_utf8_lossy(text)),
        }
    }
    shown.push(')');
    shown
}

impl Report {
    pub(super) fn is_equal(&self) -> bool {
        self.differing_count == 0 && self.of_postgres == self.of_stream
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (side, tally) in [
            ("PostgreSQL", self.of_postgres),
            ("snapshot + stream", self.of_stream),
        ] {
            writeln!(f, "{side}: {} rows, hash {:016x}", tally.rows, tally.hash)?;
        }
        if self.is_equal() {
            return writeln!(f, "equal");
        }
        writeln!(
            f,
            "{} rows differ; columns ({})",
            self.differing_count,
            self.columns.join(", ")
        )?;
        if let (Some((first, _)), Some((last, _))) = (
            self.differing.first_key_value(),
            self.differing.last_key_value(),
        ) {
            writeln!(f, "the first from key {} to {}:", show(first), show(last))?;
        }
        for (key, (postgres, stream)) in &self.differing {
            let side = |row: &Option<Row>| row.as_deref().map_or("no row".to_owned(), show);
            writeln!(
                f,
                "{}\n  PostgreSQL        {}\n  snapshot + stream {}",
                show(key),
                side(postgres),
                side(stream)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(id: i64, name: &str) -> Vec<Column> {
        vec![
            Column::new("id", Value::Int(id)),
            Column::new("name", Value::Text(name.into())),
        ]
    }

    fn postgres(id: &str, name: &str) -> Row {
        vec![
            of_postgres(Kind::Int, Some(id.as_bytes())),
            of_postgres(Kind::Text, Some(name.as_bytes())),
        ]
    }

    fn copy(key: &[&str]) -> Copy {
        let key: Vec<String> = key.iter().map(|name| (*name).to_owned()).collect();
        Copy::new(vec!["id".into(), "name".into()], &key)
    }

    #[test]
    fn equal_rows_in_any_order_are_equal() {
        let mut copy = copy(&["id"]);
        copy.insert(&columns(1, "a")).unwrap();
        copy.insert(&columns(2, "b")).unwrap();

        copy.take(postgres("2", "b"));
        copy.take(postgres("1", "a"));

        assert!(copy.report().is_equal());
    }

    #[test]
    fn each_difference_is_shown_with_both_sides() {
        let mut copy = copy(&["id"]);
        copy.insert(&columns(1, "a")).unwrap();
        copy.insert(&columns(3, "c")).unwrap();
        copy.take(postgres("1", "A"));
        copy.take(postgres("2", "b"));

        let report = copy.report();

        assert!(!report.is_equal());
        let text = report.to_string();
        assert!(text.contains("3 rows differ"), "{text}");
        assert!(
            text.contains("(1, \"A\")\n  snapshot + stream (1, \"a\")"),
            "{text}"
        );
        assert!(text.contains("no row"), "{text}");
    }

    #[test]
    fn rows_without_a_key_are_counted() {
        let mut copy = copy(&[]);
        copy.insert(&columns(1, "a")).unwrap();
        copy.insert(&columns(1, "a")).unwrap();
        copy.take(postgres("1", "a"));

        assert_eq!(copy.report().differing_count, 1);
    }

    #[test]
    fn application_is_strict() {
        let mut copy = copy(&["id"]);
        copy.insert(&columns(1, "a")).unwrap();

        assert!(copy.insert(&columns(1, "b")).is_err());
        assert!(copy.remove(&columns(2, "a")).is_err());
    }
}
