//! The SQL of a run.
//!
//! In: a run and the table's shape. Out: text that depends on the run's columns alone, so that it is
//! prepared once, and two JSON parameters that carry every value.
//! Invariant: no value from a client is ever part of the text; a name is, quoted, after it was found
//! in the catalogue.

use serde_json::{Map, Value, json};
use wire::command::WriteOp;

use crate::command::{Command, Key};
use crate::table::{Column, Table, quote};

/// A statement with parameters `$1` (rows) and `$2` (operations), both JSON as text. One that looks for its rows also
/// has `$3`, the error of those that are not there, and returns the operations that it failed with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// SQL.
    pub text: String,
    /// `$1`.
    pub rows: String,
    /// `$2`.
    pub operations: String,
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
pub fn of_run(run: &[Command], table: &Table) -> Result<Statement, Refused> {
    let first = run.first().expect("a run is not empty");
    let columns = columns(first, table)?;
    let key = table.key();
    let text = match first.op {
        WriteOp::Create => insert(table, &columns),
        WriteOp::Update => update(table, &key, &columns)?,
        WriteOp::Delete => delete(table, &key),
    };
    let rows = run.iter().enumerate().map(|(place, command)| {
        let mut row = Map::new();
        row.insert("place".to_owned(), json!(place));
        row.insert(
            "operation_id".to_owned(),
            json!(command.operation_id.to_string()),
        );
        if let (Key::Known(values), WriteOp::Update | WriteOp::Delete) = (&command.key, first.op) {
            for (index, value) in values.iter().enumerate() {
                row.insert(format!("k{index}"), json!(value));
            }
        }
        for (index, column) in columns.iter().enumerate() {
            row.insert(format!("c{index}"), command.row[&column.name].clone());
        }
        Value::Object(row)
    });
    Ok(Statement {
        text,
        rows: Value::Array(rows.collect()).to_string(),
        operations: operations(run, table),
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
    let row: Map<_, _> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| (format!("c{index}"), command.row[&column.name].clone()))
        .collect();
    Ok(Statement {
        text,
        rows: Value::Object(row).to_string(),
        operations: operations(std::slice::from_ref(command), table),
    })
}

/// The records of the operations, as `claim_operations` takes them.
pub fn operations(run: &[Command], table: &Table) -> String {
    let records = run.iter().map(|command| operation(command, table));
    Value::Array(records.collect()).to_string()
}

/// The record of one operation, as `fail_operation` takes it.
pub fn operation(command: &Command, table: &Table) -> Value {
    let record = &command.record;
    json!({
        "operation_id": command.operation_id.to_string(),
        "entity_table": entity_table(table),
        "entity_key": command.key.text(),
        "op_type": command.op,
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
    let shape = shape(&[], columns);
    format!(
        "WITH claimed AS MATERIALIZED ({CLAIM})
        INSERT INTO {target} ({names})
        SELECT {values}
        FROM jsonb_to_recordset($1::text::jsonb) AS batch(place integer, operation_id uuid, {shape})
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
    let (shape, condition) = (shape(key, columns), condition(key));
    Ok(format!(
        "WITH {OPEN}, changed AS (
            UPDATE {target} AS old SET {changes}
            FROM jsonb_to_recordset($1::text::jsonb)
                AS batch(place integer, operation_id uuid, {shape})
            JOIN open USING (operation_id)
            WHERE {condition}
            RETURNING batch.operation_id
        )
        {CLOSE}"
    ))
}

fn delete(table: &Table, key: &[&Column]) -> String {
    let target = table.quoted();
    let (shape, condition) = (shape(key, &[]), condition(key));
    format!(
        "WITH {OPEN}, changed AS (
            DELETE FROM {target} AS old
            USING jsonb_to_recordset($1::text::jsonb)
                AS batch(place integer, operation_id uuid, {shape})
            JOIN open USING (operation_id)
            WHERE {condition}
            RETURNING batch.operation_id
        )
        {CLOSE}"
    )
}

const CLAIM: &str = "SELECT public.claim_operations($2::text::jsonb) AS operation_id";
const OPEN: &str =
    "open AS MATERIALIZED (SELECT public.open_operations($2::text::jsonb) AS operation_id)";
/// The outcome is known only behind the change, and must be recorded once: the change stream shows each version.
const CLOSE: &str = "SELECT public.close_operations($2::text::jsonb,
            (SELECT array_agg(operation_id) FROM open),
            (SELECT array_agg(operation_id) FROM changed), $3::text)";

/// `k0 uuid, c0 text, c1 numeric(10,2)`.
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
    use uuid::Uuid;

    use super::*;
    use crate::command::Record;
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

        let statement = of_run(&[command], &users()).unwrap();

        assert!(!statement.text.contains("DROP"));
        assert!(statement.rows.contains("DROP"));
        assert!(statement.text.contains(r#"("id", "na""me")"#));
    }

    #[test]
    fn a_column_that_is_not_in_the_catalogue_never_reaches_the_text() {
        let command = create(json!({"id": 1, "x\") SELECT": 2}));

        let refused = of_run(&[command], &users()).unwrap_err();

        assert_eq!(refused.code, "42703");
    }

    #[test]
    fn an_update_of_nothing_is_refused() {
        let mut command = create(json!({}));
        command.op = WriteOp::Update;

        assert_eq!(of_run(&[command], &users()).unwrap_err().code, "22023");
    }

    #[test]
    fn a_table_that_is_gone_is_refused_as_postgresql_would() {
        let gone = table(&[]);

        let refused = of_run(&[create(json!({"id": 1}))], &gone).unwrap_err();

        assert_eq!(refused.code, "42P01");
    }
}
