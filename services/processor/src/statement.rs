//! The SQL of a run.
//!
//! In: a run and the table's shape. Out: text that depends on the run's columns alone, so that it is
//! prepared once, and the parameters that carry every value: the rows as JSON, the operations as an array of each column.
//! Invariant: no value from a client is ever part of the text; a name is, quoted, after it was found
//! in the catalogue.

use std::io::Write as _;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::types::ToSql;
use uuid::Uuid;
use wire::command::WriteOp;

use crate::command::{Command, Key, Record};
use crate::table::{Column, Table, quote};

/// A statement and its parameters: `$1` are the rows, and [`Operations::parameters`] stand behind. One that looks for its
/// rows also has the error of those that are not there, as its last, and returns the operations that it failed with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// SQL.
    pub text: String,
    /// `$1`: JSON as text.
    pub rows: String,
}

/// What is recorded of a run's operations: an array of each column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operations<'a> {
    ids: Vec<Uuid>,
    table: String,
    kind: &'static str,
    keys: Vec<Option<String>>,
    uuid_keys: Vec<Option<Uuid>>,
    accepted: Vec<Option<SystemTime>>,
    sha256s: Vec<Option<&'a str>>,
    principals: Vec<Option<&'a str>>,
    traceparents: Vec<Option<&'a str>>,
}

/// The write cannot be said in SQL. The client reads it like an error of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// SQLSTATE.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// What `status.error.code` says when there is no such row, or none that the writer may see.
pub const NOT_FOUND: &str = "not_found";

/// The statement of a run, as [`crate::run::cut`] makes them. Every key must be known.
pub fn of_run(run: &[&Command], table: &Table) -> Result<Statement, Refused> {
    let first = run.first().expect("a run is not empty");
    let columns = columns(first, table)?;
    let key = table.key();
    let text = match first.op {
        WriteOp::Create => insert(table, &columns),
        WriteOp::Update => update(table, &key, &columns)?,
        WriteOp::Delete => delete(table, &key),
    };
    let mut rows = Vec::with_capacity(run.len() * 128);
    for command in run {
        rows.push(if rows.is_empty() { b'[' } else { b',' });
        write_row(&mut rows, command, &columns);
    }
    rows.push(b']');
    Ok(Statement {
        text,
        rows: String::from_utf8(rows).expect("JSON is text"),
    })
}

/// A create whose key PostgreSQL makes, recorded by a statement of its own. The rows returned are the
/// key as text.
pub fn of_generated(command: &Command, table: &Table) -> Result<Statement, Refused> {
    let columns = columns(command, table)?;
    let key: Vec<_> = table
        .key()
        .iter()
        .map(|column| quote(&column.name))
        .collect();
    let returning = if key.is_empty() {
        "NULL::text".to_owned()
    } else {
        format!("concat_ws(',', {})", key.join(", "))
    };
    let target = table.quoted();
    let text = if columns.is_empty() {
        format!("INSERT INTO {target} DEFAULT VALUES RETURNING {returning}")
    } else {
        let (names, values) = (
            list(&columns, quoted),
            list(&columns, |index, _| format!("c{index}")),
        );
        let shape = shape(&[], &columns);
        format!(
            "INSERT INTO {target} ({names}) SELECT {values} \
             FROM jsonb_to_record($1::text::jsonb) AS batch({shape}) RETURNING {returning}"
        )
    };
    let mut row = Vec::new();
    write_row(&mut row, command, &columns);
    Ok(Statement {
        text,
        rows: String::from_utf8(row).expect("JSON is text"),
    })
}

/// `{"k0":"1","c0":"Alice"}`: the key of who looks for it, and the columns.
fn write_row(into: &mut Vec<u8>, command: &Command, columns: &[&Column]) {
    let key: &[String] = match (&command.key, command.op) {
        (Key::Known(values), WriteOp::Update | WriteOp::Delete) => values,
        (Key::Known(_) | Key::Generated, _) => &[],
    };
    let start = into.len();
    for (index, value) in key.iter().enumerate() {
        write_member(into, start, 'k', index, value);
    }
    for (index, column) in columns.iter().enumerate() {
        write_member(into, start, 'c', index, &command.row[&column.name]);
    }
    if into.len() == start {
        into.push(b'{');
    }
    into.push(b'}');
}

/// `start`: where the object begins.
fn write_member(
    into: &mut Vec<u8>,
    start: usize,
    name: char,
    index: usize,
    value: &impl Serialize,
) {
    into.push(if into.len() == start { b'{' } else { b',' });
    write!(into, "\"{name}{index}\":").expect("a Vec takes every write");
    serde_json::to_writer(into, value).expect("a Vec takes every write, and keys are text");
}

impl<'a> Operations<'a> {
    /// Those of a run.
    pub fn of_run(run: &[&'a Command], table: &Table) -> Self {
        let keys: Vec<_> = run.iter().map(|command| command.key.text()).collect();
        let records = run.iter().map(|command| &command.record);
        Self {
            ids: run.iter().map(|command| command.operation_id).collect(),
            table: entity_table(table),
            kind: kind(run.first().expect("a run is not empty").op),
            uuid_keys: keys.iter().map(|key| uuid(key.as_deref()?)).collect(),
            keys,
            accepted: records.clone().map(accepted).collect(),
            sha256s: records
                .clone()
                .map(|record| record.body_sha256.as_deref())
                .collect(),
            principals: records
                .clone()
                .map(|record| record.principal.as_deref())
                .collect(),
            traceparents: records
                .map(|record| record.traceparent.as_deref())
                .collect(),
        }
    }

    /// Of one whose key is known now.
    #[must_use]
    pub fn with_key(mut self, key: Option<String>) -> Self {
        self.uuid_keys = vec![key.as_deref().and_then(uuid)];
        self.keys = vec![key];
        self
    }

    /// As `claim_operations` and `close_operations` take them.
    pub fn parameters(&self) -> [&(dyn ToSql + Sync); 9] {
        [
            &self.ids,
            &self.table,
            &self.kind,
            &self.keys,
            &self.uuid_keys,
            &self.accepted,
            &self.sha256s,
            &self.principals,
            &self.traceparents,
        ]
    }

    /// As `open_operations` takes them.
    pub fn ids(&self) -> &Vec<Uuid> {
        &self.ids
    }
}

/// As `write_operations` names it.
fn kind(op: WriteOp) -> &'static str {
    match op {
        WriteOp::Create => "create",
        WriteOp::Update => "update",
        WriteOp::Delete => "delete",
    }
}

fn uuid(key: &str) -> Option<Uuid> {
    let is_hyphenated = key.len() == uuid::fmt::Hyphenated::LENGTH;
    Uuid::try_parse(key).ok().filter(|_| is_hyphenated)
}

/// None: not to be read. The time of applying stands there then.
fn accepted(record: &Record) -> Option<SystemTime> {
    let at = OffsetDateTime::parse(record.accepted_at.as_deref()?, &Rfc3339);
    at.ok().map(SystemTime::from)
}

/// The record of one operation, as `fail_operation` takes it.
pub fn operation(command: &Command, table: &Table) -> Value {
    let record = &command.record;
    json!({
        "operation_id": command.operation_id.to_string(),
        "entity_table": entity_table(table),
        "entity_key": command.key.text(),
        "op_type": kind(command.op),
        "accepted_at": record.accepted_at,
        "body_sha256": record.body_sha256,
        "principal": record.principal,
        "traceparent": record.traceparent,
    })
}

/// `users`, or `sales.orders` outside `public`.
pub fn entity_table(table: &Table) -> String {
    wire::names::table_path(&table.schema, &table.name)
}

fn columns<'a>(command: &Command, table: &'a Table) -> Result<Vec<&'a Column>, Refused> {
    if table.columns.is_empty() {
        return Err(Refused {
            code: "42P01",
            message: format!("relation {} does not exist", table.quoted()),
        });
    }
    if command.op == WriteOp::Delete {
        return Ok(Vec::new());
    }
    let find = |name: &String| {
        table.column(name).ok_or_else(|| Refused {
            code: "42703",
            message: format!(
                "column {name:?} of relation {:?} does not exist",
                table.name
            ),
        })
    };
    command.row.keys().map(find).collect()
}

fn insert(table: &Table, columns: &[&Column]) -> String {
    let target = table.quoted();
    let names = list(columns, quoted);
    let values = list(columns, |index, _| format!("batch.c{index}"));
    let batch = batch(&[], columns);
    format!(
        "WITH claimed AS MATERIALIZED ({CLAIM})
        INSERT INTO {target} ({names})
        SELECT {values}
        FROM {batch}
        JOIN claimed USING (operation_id)
        ORDER BY batch.place"
    )
}

fn update(table: &Table, key: &[&Column], columns: &[&Column]) -> Result<String, Refused> {
    if columns.is_empty() {
        return Err(Refused {
            code: "22023",
            message: "the update changes no column".to_owned(),
        });
    }
    let target = table.quoted();
    let changes = list(columns, |index, column| {
        format!("{} = batch.c{index}", quote(&column.name))
    });
    let (batch, condition) = (batch(key, columns), condition(key));
    Ok(format!(
        "WITH {OPEN}, changed AS (
            UPDATE {target} AS old SET {changes}
            FROM {batch}
            JOIN open USING (operation_id)
            WHERE {condition}
            RETURNING batch.operation_id
        )
        {CLOSE}"
    ))
}

fn delete(table: &Table, key: &[&Column]) -> String {
    let target = table.quoted();
    let (batch, condition) = (batch(key, &[]), condition(key));
    format!(
        "WITH {OPEN}, changed AS (
            DELETE FROM {target} AS old
            USING {batch}
            JOIN open USING (operation_id)
            WHERE {condition}
            RETURNING batch.operation_id
        )
        {CLOSE}"
    )
}

const CLAIM: &str =
    "SELECT public.claim_operations($2, $3, $4, $5, $6, $7, $8, $9, $10) AS operation_id";
const OPEN: &str = "open AS MATERIALIZED (SELECT public.open_operations($2) AS operation_id)";
/// The outcome is known only behind the change, and must be recorded once: the change stream shows each version.
const CLOSE: &str = "SELECT public.close_operations($2, $3, $4, $5, $6, $7, $8, $9, $10,
            (SELECT array_agg(operation_id) FROM open),
            (SELECT array_agg(operation_id) FROM changed), $11)";

/// The rows of `$1` with the operations of `$2`, place by place.
fn batch(key: &[&Column], columns: &[&Column]) -> String {
    let shape = shape(key, columns);
    let keys = (0..key.len()).map(|index| format!("k{index}, "));
    let columns = (0..columns.len()).map(|index| format!("c{index}, "));
    let names: String = keys.chain(columns).collect();
    format!(
        "ROWS FROM (jsonb_to_recordset($1::text::jsonb) AS ({shape}), unnest($2::uuid[]))
            WITH ORDINALITY AS batch({names}operation_id, place)"
    )
}

/// `k0 uuid, c0 text, c1 numeric`.
fn shape(key: &[&Column], columns: &[&Column]) -> String {
    let keys = key.iter().enumerate();
    let keys = keys.map(|(index, column)| format!("k{index} {}", column.data_type));
    let columns = columns.iter().enumerate();
    let columns = columns.map(|(index, column)| format!("c{index} {}", column.data_type));
    keys.chain(columns).collect::<Vec<_>>().join(", ")
}

fn condition(key: &[&Column]) -> String {
    let equal = |(index, column): (usize, &&Column)| {
        format!("old.{} = batch.k{index}", quote(&column.name))
    };
    key.iter()
        .enumerate()
        .map(equal)
        .collect::<Vec<_>>()
        .join(" AND ")
}

fn quoted(_index: usize, column: &Column) -> String {
    quote(&column.name)
}

fn list(columns: &[&Column], item: impl Fn(usize, &Column) -> String) -> String {
    let items = columns.iter().enumerate();
    let items: Vec<_> = items.map(|(index, column)| item(index, column)).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::command::tests::table;
    use crate::table::Kind;

    fn create(row: Value) -> Command {
        let Value::Object(row) = row else {
            panic!("a row is an object")
        };
        Command {
            operation_id: Uuid::from_u128(1),
            op: WriteOp::Create,
            key: Key::Known(vec!["1".to_owned()]),
            row,
            claims: Map::new(),
            record: Record::default(),
        }
    }

    fn users() -> Table {
        table(&[
            ("id", "integer", 1, Kind::Integer),
            ("na\"me", "text", 0, Kind::Text),
        ])
    }

    #[test]
    fn values_are_parameters_and_names_are_quoted() {
        let command = create(json!({"id": "1", "na\"me": "'); DROP TABLE users; --"}));

        let statement = of_run(&[&command], &users()).unwrap();

        assert!(!statement.text.contains("DROP"));
        assert!(statement.rows.contains("DROP"));
        assert!(statement.text.contains(r#"("id", "na""me")"#));
    }

    #[test]
    fn a_column_that_is_not_in_the_catalogue_never_reaches_the_text() {
        let command = create(json!({"id": 1, "x\") SELECT": 2}));

        let refused = of_run(&[&command], &users()).unwrap_err();

        assert_eq!(refused.code, "42703");
    }

    #[test]
    fn an_update_of_nothing_is_refused() {
        let mut command = create(json!({}));
        command.op = WriteOp::Update;

        assert_eq!(of_run(&[&command], &users()).unwrap_err().code, "22023");
    }

    #[test]
    fn a_table_that_is_gone_is_refused_as_postgresql_would() {
        let gone = table(&[]);

        let refused = of_run(&[&create(json!({"id": 1}))], &gone).unwrap_err();

        assert_eq!(refused.code, "42P01");
    }
}
