//! What the columns of an event must be, from PostgreSQL itself.
//!
//! In: a table. Out: its rows as the contract's value table says, from the text SQL shows.
//! Must hold: nothing of the bridge is used, so that its mistakes are not repeated here.

use wire::{Column, Value};

use crate::rig::Rig;

pub fn int(name: &str, value: i64) -> Column {
    Column::new(name, Value::Int(value))
}

pub fn text(name: &str, value: &str) -> Column {
    Column::new(name, Value::Text(value.to_owned()))
}

pub fn null(name: &str) -> Column {
    Column::new(name, Value::Null)
}

/// Bit for bit: NaN is NaN, and -0 is not 0.
#[track_caller]
pub fn assert_same(found: &[Column], expected: &[Column]) {
    assert_eq!(format!("{found:#?}"), format!("{expected:#?}"));
}

/// Name and base type of each column; domains are followed to their end.
const COLUMNS: &str = "WITH RECURSIVE typed(attnum, attname, type) AS (
    SELECT attnum, attname, atttypid FROM pg_attribute
    WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT attnum, attname, typbasetype FROM typed JOIN pg_type ON pg_type.oid = type WHERE typtype = 'd')
SELECT attname, typname FROM typed JOIN pg_type ON pg_type.oid = type WHERE typtype <> 'd' ORDER BY attnum";

/// What the bridge pins in each of its sessions.
const SETTINGS: &str =
    "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres';
SET extra_float_digits = 1; SET bytea_output = 'hex'; SET lc_monetary = 'C'";

impl Rig {
    /// The rows of `table` (SQL) that `clause` lets through, in its order.
    #[track_caller]
    pub fn rows(&self, table: &str, clause: &str) -> Vec<Vec<Column>> {
        let columns: Vec<(String, String)> = self
            .sql(&COLUMNS.replace("{table}", &table.replace('\'', "''")))
            .into_iter()
            .map(|row| {
                let mut values = row.into_iter().flatten();
                (
                    values.next().expect("a name"),
                    values.next().expect("a type"),
                )
            })
            .collect();
        self.sql(&format!("{SETTINGS}; SELECT * FROM {table} {clause}"))
            .into_iter()
            .map(|row| {
                let cells = columns.iter().zip(row);
                cells
                    .map(|((name, type_name), text)| Column::new(name, value(type_name, text)))
                    .collect()
            })
            .collect()
    }
}

fn value(type_name: &str, text: Option<String>) -> Value {
    let Some(text) = text else { return Value::Null };
    match type_name {
        "bool" => Value::Bool(text == "t"),
        "int2" | "int4" | "int8" | "oid" => Value::Int(text.parse().expect("an integer")),
        "float4" | "float8" => Value::Float(text.parse().expect("a float")),
        "bytea" => Value::Bytes(
            text.as_bytes()[2..]
                .chunks(2)
                .map(|pair| {
                    let hex = std::str::from_utf8(pair).expect("hex digits");
                    u8::from_str_radix(hex, 16).expect("hex digits")
                })
                .collect(),
        ),
        _ => Value::Text(text),
    }
}
