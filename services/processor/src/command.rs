//! One write, read from its message and completed with the key of its row.
//!
//! In: subject, payload and the table's shape. Out: a [`Command`], or why there is none.
//! Invariant: the same message gives the same row key for ever, so that a repeat cannot make a
//! second row.

use serde_json::{Map, Value};
use uuid::Uuid;
use wire::Message;
use wire::command::{WriteCommand, WriteOp};
use wire::token::unescape_token;

use crate::table::{Kind, Table};

/// A write that can be tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// Its identity.
    pub operation_id: Uuid,
    /// What to do.
    pub op: WriteOp,
    /// Which row.
    pub key: Key,
    /// Column values; on create the key is among them.
    pub row: Map<String, Value>,
    /// JWT claims; empty without.
    pub claims: Map<String, Value>,
    /// What the outcome's record repeats.
    pub record: Record,
}

/// Which row a write is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// The primary key's values as text, in key order.
    Known(Vec<String>),
    /// PostgreSQL makes it, or the table has none: a create that shares no row with any other write.
    Generated,
}

/// Parts of the message that go into `write_operations` unread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Who asked.
    pub principal: Option<String>,
    /// RFC 3339.
    pub accepted_at: Option<String>,
    /// SHA-256 of the request.
    pub body_sha256: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

/// The message is no command for this table.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Unreadable {
    /// The operation, where at least that can be read.
    pub operation_id: Option<Uuid>,
    /// For people.
    pub reason: String,
}

/// For [`Uuid::new_v5`]; must never change, or a repeat would make a second row.
const ENTITY_NAMESPACE: Uuid = Uuid::from_u128(0x6f2b_8d14_90c7_4e35_a1d6_3bb0_54e9_c82a);

impl Command {
    /// Reads a message.
    pub fn read(
        subject: &str,
        payload: &[u8],
        traceparent: Option<&str>,
        table: &Table,
    ) -> Result<Self, Unreadable> {
        let names = wire::names::parse_writes(subject);
        let operation_id = names
            .as_ref()
            .and_then(|(_, _, id)| Uuid::parse_str(id).ok());
        let unreadable = |reason: String| Unreadable {
            operation_id,
            reason,
        };
        let command = WriteCommand::decode(payload)
            .map_err(|error| unreadable(format!("the message is not a write command: {error}")))?;
        if operation_id.is_none() || operation_id != Uuid::parse_str(&command.operation_id).ok() {
            return Err(unreadable("the operation id is not the subject's".into()));
        }
        if command.schema != table.schema || command.table != table.name {
            return Err(unreadable("the table is not the subject's".into()));
        }
        let operation_id = operation_id.expect("checked above");
        let mut row = command.data;
        let key = match (command.entity_id, command.op) {
            (Some(id), _) => known_key(&id, table).map_err(unreadable)?,
            (None, WriteOp::Create) => created_key(operation_id, &row, table),
            (None, WriteOp::Update | WriteOp::Delete) => {
                return Err(unreadable("the write names no row".into()));
            }
        };
        if let (Key::Known(values), WriteOp::Create) = (&key, command.op) {
            for (column, value) in table.key().iter().zip(values) {
                row.insert(column.name.clone(), Value::String(value.clone()));
            }
        }
        Ok(Self {
            operation_id,
            op: command.op,
            key,
            row,
            claims: command.claims.unwrap_or_default(),
            record: Record {
                principal: command.principal,
                accepted_at: Some(command.accepted_at).filter(|text| !text.is_empty()),
                body_sha256: Some(command.body_sha256).filter(|text| !text.is_empty()),
                traceparent: traceparent.map(str::to_owned),
            },
        })
    }
}

impl Key {
    /// As the command writes it: the value itself, or the parts of a composite key with commas
    /// between, `,` and `%` in them percent-escaped.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Known(values) => Some(match values.as_slice() {
                [value] => value.clone(),
                values => {
                    let escape = |value: &String| value.replace('%', "%25").replace(',', "%2C");
                    values.iter().map(escape).collect::<Vec<_>>().join(",")
                }
            }),
            Self::Generated => None,
        }
    }

    /// Two different keys are two rows. False where two texts may mean one value.
    pub fn is_comparable(&self, table: &Table) -> bool {
        table.key().iter().all(|column| column.kind != Kind::Other)
    }
}

/// `id` split over the columns of the key.
fn known_key(id: &str, table: &Table) -> Result<Key, String> {
    let columns = table.key();
    let values = match columns.len() {
        // The statement will fail with PostgreSQL's own words.
        0 if table.columns.is_empty() => return Ok(Key::Known(vec![id.to_owned()])),
        0 => return Err(format!("table {} has no primary key", table.name)),
        1 => vec![id.to_owned()],
        _ => id
            .split(',')
            .map(|part| unescape_token(part).map_err(|error| error.to_string()))
            .collect::<Result<_, _>>()?,
    };
    if values.len() != columns.len() {
        return Err(format!("the key has {} parts", columns.len()));
    }
    let canonical = values.iter().zip(&columns);
    Ok(Key::Known(
        canonical
            .map(|(text, column)| column.kind.canonical(text))
            .collect(),
    ))
}

/// The key a create brings along, or one made from the operation id where the type allows it.
fn created_key(operation_id: Uuid, row: &Map<String, Value>, table: &Table) -> Key {
    let columns = table.key();
    let given: Option<Vec<String>> = columns
        .iter()
        .map(|column| match row.get(&column.name)? {
            Value::String(text) => Some(column.kind.canonical(text)),
            Value::Number(number) => Some(column.kind.canonical(&number.to_string())),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        })
        .collect();
    match (given, columns.as_slice()) {
        (_, []) => Key::Generated,
        (Some(values), _) => Key::Known(values),
        (None, [column]) if column.kind == Kind::Uuid => {
            let id = Uuid::new_v5(&ENTITY_NAMESPACE, operation_id.as_bytes());
            Key::Known(vec![id.to_string()])
        }
        (None, _) => Key::Generated,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::table::Column;

    pub(crate) fn table(columns: &[(&str, &str, i32, Kind)]) -> Table {
        Table {
            schema: "public".to_owned(),
            name: "users".to_owned(),
            columns: columns
                .iter()
                .map(|(name, data_type, key_place, kind)| Column {
                    name: (*name).to_owned(),
                    data_type: (*data_type).to_owned(),
                    key_place: *key_place,
                    kind: *kind,
                })
                .collect(),
        }
    }

    fn users() -> Table {
        table(&[
            ("id", "uuid", 1, Kind::Uuid),
            ("name", "text", 0, Kind::Text),
        ])
    }

    const ID: &str = "0191d2a0-7b7a-7cc3-8e6b-000000000001";

    fn read(command: &Value, table: &Table) -> Result<Command, Unreadable> {
        let subject = format!("writes.users.{ID}");
        Command::read(&subject, command.to_string().as_bytes(), None, table)
    }

    fn message(op: &str) -> Value {
        json!({"operation_id": ID, "table": "users", "op": op, "data": {"name": "Alice"},
            "accepted_at": "2026-01-01T00:00:00Z", "body_sha256": "00"})
    }

    #[test]
    fn an_absent_entity_id_is_made_from_the_operation_id_and_is_another_uuid() {
        let first = read(&message("create"), &users()).unwrap();
        let again = read(&message("create"), &users()).unwrap();

        assert_eq!(first, again);
        let Key::Known(key) = &first.key else {
            panic!("no key")
        };
        assert_ne!(key[0], ID);
        assert_eq!(first.row["id"], json!(key[0]));
    }

    #[test]
    fn a_key_in_the_row_is_the_key() {
        let mut command = message("create");
        command["data"]["id"] = json!("0191D2A0-7B7A-7CC3-8E6B-0000000000FF");

        let read = read(&command, &users()).unwrap();

        let expected = "0191d2a0-7b7a-7cc3-8e6b-0000000000ff".to_owned();
        assert_eq!(read.key, Key::Known(vec![expected]));
    }

    #[test]
    fn a_key_that_postgresql_makes_stays_open() {
        let serial = table(&[("id", "bigint", 1, Kind::Integer)]);

        assert_eq!(
            read(&message("create"), &serial).unwrap().key,
            Key::Generated
        );
    }

    #[test]
    fn a_composite_key_is_split_at_its_commas() {
        let pair = table(&[
            ("b", "integer", 2, Kind::Integer),
            ("a", "integer", 1, Kind::Integer),
        ]);
        let mut command = message("update");
        command["entity_id"] = json!("07,8");

        let key = read(&command, &pair).unwrap().key;
        assert_eq!(key, Key::Known(vec!["7".to_owned(), "8".to_owned()]));
        assert_eq!(key.text().unwrap(), "7,8");
        command["entity_id"] = json!("7");
        assert!(read(&command, &pair).is_err());
    }

    #[test]
    fn a_message_that_is_no_command_still_names_its_operation() {
        let subject = format!("writes.users.{ID}");

        let error = Command::read(&subject, b"\xff garbage", None, &users()).unwrap_err();

        assert_eq!(error.operation_id, Some(Uuid::parse_str(ID).unwrap()));
    }

    #[test]
    fn a_command_for_another_table_or_operation_is_refused() {
        let mut command = message("create");
        command["table"] = json!("orders");
        assert!(read(&command, &users()).is_err());

        let mut command = message("create");
        command["operation_id"] = json!("0191d2a0-7b7a-7cc3-8e6b-000000000002");
        assert!(read(&command, &users()).is_err());
    }
}
