//! Checks a write against the table's schema.
//!
//! In: the schema, the operation, the row's id, the body. Out: the key and the values as the command carries them, or
//! every reason against it. What must hold: what is let through names only columns that exist and may be written, with
//! values of their types, so that an accepted write fails in PostgreSQL for reasons of data only.

use serde_json::{Map, Value};
use wire::command::WriteOp;
use wire::schema::{Column, Generated, Privilege, Schema};

use crate::column_type::ColumnType;
use crate::sent::Sent;

/// What is written where.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// The kind.
    pub op: WriteOp,
    /// The row's key, where it is known. Of a composite key the parts in key order, separated by commas, with `,` and `%`
    /// in them percent-escaped.
    pub entity_id: Option<String>,
    /// The values by column.
    pub data: Map<String, Value>,
}

/// How an existing row is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// PATCH: the columns named in the body.
    Named,
    /// PUT: every column; one that the body leaves out becomes NULL, unless it has a default, which stays.
    Whole,
}

/// Why a write is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The body is no JSON object, or names a column twice.
    #[error("the body must be a JSON object: {0}")]
    NotAnObject(String),
    /// The role of the services may not do this to the table.
    #[error(
        "{role} has no {privilege} privilege on {table}; GRANT {privilege} ON {table} TO {role}"
    )]
    NotGranted {
        /// SQL's name of the privilege.
        privilege: &'static str,
        /// The qualified table.
        table: String,
        /// Who would need it.
        role: &'static str,
    },
    /// Rows cannot be addressed.
    #[error("{0} has no primary key, so its rows cannot be named")]
    NoKey(String),
    /// The id in the path does not fit the key.
    #[error("the id {0}")]
    Id(String),
    /// Columns with something wrong.
    #[error("{} of the body cannot be written", columns(.0))]
    Columns(Vec<Fault>),
}

/// What is wrong with one column.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// The column as it was named.
    pub column: String,
    /// What is wrong with it.
    pub message: String,
}

/// A new row.
pub fn create(schema: &Schema, body: &[u8]) -> Result<Write, Refusal> {
    grant(schema, Privilege::Insert)?;
    let sent = parse(body)?;
    let mut faults = Vec::new();
    let data = values(schema, &sent, Privilege::Insert, &mut faults);

    for column in &schema.columns {
        let is_absent = sent.value(&column.name).is_none();
        let is_derived = is_derived_key(schema, column);
        if is_absent && !column.is_nullable && !column.has_default && !is_derived {
            faults.push(Fault::new(&column.name, "is required"));
        }
    }
    if !faults.is_empty() {
        return Err(Refusal::Columns(faults));
    }
    let key: Option<Vec<String>> = schema
        .primary_key
        .iter()
        .map(|name| data.get(name).map(key_text))
        .collect();
    let entity_id = key
        .filter(|key| !key.is_empty())
        .map(|key| joined_key(&key));
    Ok(Write {
        op: WriteOp::Create,
        entity_id,
        data,
    })
}

/// Other values for a row.
pub fn update(schema: &Schema, id: &str, body: &[u8], extent: Extent) -> Result<Write, Refusal> {
    grant(schema, Privilege::Update)?;
    let key = key(schema, id)?;
    let sent = parse(body)?;
    let mut faults = Vec::new();
    let mut data = values(schema, &sent, Privilege::Update, &mut faults);

    // The key may be repeated in the body, but not changed by it.
    for (name, part) in schema.primary_key.iter().zip(&key) {
        let repeated = data.remove(name);
        if repeated.is_some_and(|value| key_text(&value) != *part) {
            faults.push(Fault::new(name, "differs from the id in the path"));
        }
    }
    if extent == Extent::Whole {
        for column in schema
            .columns
            .iter()
            .filter(|column| is_replaced(schema, column))
        {
            if sent.value(&column.name).is_some() {
                continue;
            }
            if column.is_nullable {
                data.insert(column.name.clone(), Value::Null);
            } else {
                faults.push(Fault::new(&column.name, "is required in a PUT"));
            }
        }
    }
    if faults.is_empty() && data.is_empty() {
        faults.push(Fault::new(
            "",
            "nothing to change: name at least one column",
        ));
    }
    if !faults.is_empty() {
        return Err(Refusal::Columns(faults));
    }
    Ok(Write {
        op: WriteOp::Update,
        entity_id: Some(joined_key(&key)),
        data,
    })
}

/// A row less.
pub fn delete(schema: &Schema, id: &str) -> Result<Write, Refusal> {
    grant(schema, Privilege::Delete)?;
    let key = key(schema, id)?;
    Ok(Write {
        op: WriteOp::Delete,
        entity_id: Some(joined_key(&key)),
        data: Map::new(),
    })
}

fn parse(body: &[u8]) -> Result<Sent<'_>, Refusal> {
    Sent::parse(body).map_err(|error| Refusal::NotAnObject(error.to_string()))
}

/// Whether the services' role may do this to the table, or INSERT and UPDATE at least some of its columns.
pub fn is_granted(schema: &Schema, privilege: Privilege) -> bool {
    schema.privileges.writer.contains(&privilege)
        || schema
            .columns
            .iter()
            .any(|column| column.privileges.writer.contains(&privilege))
}

/// Whether a client may give this column a value.
pub fn is_writable(schema: &Schema, column: &Column, privilege: Privilege) -> bool {
    let is_granted = schema.privileges.writer.contains(&privilege)
        || column.privileges.writer.contains(&privilege);
    is_granted && !is_generated(column)
}

fn is_generated(column: &Column) -> bool {
    match column.generated {
        Generated::Never | Generated::IdentityByDefault => false,
        Generated::Stored | Generated::Virtual | Generated::IdentityAlways => true,
    }
}

/// A UUID key that the client may leave out: the processor makes it from the operation id.
pub fn is_derived_key(schema: &Schema, column: &Column) -> bool {
    schema.primary_key == [column.name.as_str()] && column.data_type == "uuid"
}

fn is_replaced(schema: &Schema, column: &Column) -> bool {
    is_writable(schema, column, Privilege::Update)
        && !column.has_default
        && !schema.primary_key.contains(&column.name)
}

fn grant(schema: &Schema, privilege: Privilege) -> Result<(), Refusal> {
    if is_granted(schema, privilege) {
        return Ok(());
    }
    Err(Refusal::NotGranted {
        privilege: privilege_name(privilege),
        table: schema.schema.clone(),
        role: wire::names::ROLE_APP_WRITER,
    })
}

fn privilege_name(privilege: Privilege) -> &'static str {
    match privilege {
        Privilege::Select => "SELECT",
        Privilege::Insert => "INSERT",
        Privilege::Update => "UPDATE",
        Privilege::Delete => "DELETE",
    }
}

/// The values that may be written; what is wrong with the others goes to `faults`.
fn values(
    schema: &Schema,
    sent: &Sent<'_>,
    privilege: Privilege,
    faults: &mut Vec<Fault>,
) -> Map<String, Value> {
    let mut data = Map::new();
    for (name, raw) in sent.members() {
        let Some(column) = schema.columns.iter().find(|column| column.name == *name) else {
            faults.push(Fault::new(name, "is no column of the table"));
            continue;
        };
        let is_key = schema.primary_key.contains(name) && privilege == Privilege::Update;
        if !is_key && !is_writable(schema, column, privilege) {
            let reason = if is_generated(column) {
                "is generated"
            } else {
                "may not be written"
            };
            faults.push(Fault::new(name, reason));
            continue;
        }
        let is_null = raw.get() == "null";
        if is_null && !column.is_nullable {
            faults.push(Fault::new(name, "must not be null"));
            continue;
        }
        let accepted = if is_null {
            Ok(Value::Null)
        } else {
            ColumnType::new(&column.data_type, &column.enum_labels).accept(raw)
        };
        match accepted {
            Ok(value) => drop(data.insert(name.clone(), value)),
            Err(message) => faults.push(Fault::new(name, message)),
        }
    }
    data
}

/// The parts of the id in the path, checked against the types of the key's columns.
fn key(schema: &Schema, id: &str) -> Result<Vec<String>, Refusal> {
    if schema.primary_key.is_empty() {
        return Err(Refusal::NoKey(schema.schema.clone()));
    }
    // A single key is taken whole: its text may hold commas.
    let parts: Vec<&str> = match schema.primary_key.len() {
        1 => vec![id],
        _ => id.split(',').collect(),
    };
    if parts.len() != schema.primary_key.len() {
        let names = schema.primary_key.join(",");
        return Err(Refusal::Id(format!(
            "must name all parts of the key: {names}"
        )));
    }
    let mut key = Vec::with_capacity(parts.len());
    for (name, part) in schema.primary_key.iter().zip(parts) {
        let part = wire::token::unescape_token(part)
            .map_err(|_| Refusal::Id("is not percent-encoded UTF-8".to_owned()))?;
        let column = schema.columns.iter().find(|column| column.name == *name);
        let column = column.ok_or_else(|| Refusal::NoKey(schema.schema.clone()))?;
        let column_type = ColumnType::new(&column.data_type, &column.enum_labels);
        let value = column_type
            .accept_text(&part, true)
            .filter(|_| !part.contains('\0'));
        let value = value.ok_or_else(|| {
            Refusal::Id(format!(
                "does not fit column {name} of type {}",
                column.data_type
            ))
        })?;
        key.push(key_text(&value));
    }
    Ok(key)
}

/// A key's value as text, in one form per value.
fn key_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn joined_key(key: &[String]) -> String {
    match key {
        [part] => part.clone(),
        parts => {
            let escape = |part: &String| part.replace('%', "%25").replace(',', "%2C");
            parts.iter().map(escape).collect::<Vec<_>>().join(",")
        }
    }
}

fn columns(faults: &[Fault]) -> String {
    match faults.len() {
        1 => "one column".to_owned(),
        count => format!("{count} columns"),
    }
}

impl Fault {
    fn new(column: &str, message: impl Into<String>) -> Self {
        Self {
            column: column.to_owned(),
            message: message.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wire::Message;
    use wire::schema::Privileges;

    use super::*;

    fn schema(columns: &Value, primary_key: &[&str]) -> Schema {
        let json = json!({
            "table": "users", "schema": "public.users", "timestamp": 0,
            "columns": columns, "primary_key": primary_key,
        });
        let mut schema = Schema::decode(json.to_string().as_bytes()).unwrap();
        schema.privileges = Privileges {
            reader: vec![],
            writer: vec![Privilege::Insert, Privilege::Update, Privilege::Delete],
        };
        schema
    }

    fn column(name: &str, data_type: &str, is_nullable: bool, has_default: bool) -> Value {
        json!({
            "name": name, "position": 1, "data_type": data_type, "is_nullable": is_nullable,
            "column_default": null, "has_default": has_default,
        })
    }

    fn users() -> Schema {
        let columns = json!([
            column("id", "uuid", false, false),
            column("name", "text", false, false),
            column("email", "text", true, false),
            column("created_at", "timestamp with time zone", false, true),
        ]);
        schema(&columns, &["id"])
    }

    fn lines() -> Schema {
        let columns = json!([
            column("order_id", "bigint", false, false),
            column("sku", "text", false, false),
            column("count", "integer", true, false),
        ]);
        schema(&columns, &["order_id", "sku"])
    }

    fn faults(result: Result<Write, Refusal>) -> Vec<String> {
        match result.unwrap_err() {
            Refusal::Columns(faults) => faults
                .into_iter()
                .map(|fault| format!("{} {}", fault.column, fault.message))
                .collect(),
            other => panic!("{other}"),
        }
    }

    const ID: &str = "0191d2a0-7b7a-7cc3-8e6b-000000000001";

    #[test]
    fn a_new_row_may_leave_out_what_the_database_or_the_operation_id_fills() {
        let write = create(&users(), br#"{"name":"Alice"}"#).unwrap();

        assert_eq!(write.entity_id, None);
        assert_eq!(write.data, *json!({"name": "Alice"}).as_object().unwrap());
    }

    #[test]
    fn a_new_row_with_its_key_is_known_by_it() {
        let body = format!(r#"{{"id":"{ID}","name":"Alice","email":null}}"#);

        let write = create(&users(), body.as_bytes()).unwrap();

        assert_eq!(write.entity_id.as_deref(), Some(ID));
        assert_eq!(write.data["email"], Value::Null);
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let body = br#"{"nmae":"Alice","email":7,"created_at":null}"#;

        assert_eq!(
            faults(create(&users(), body)),
            [
                "nmae is no column of the table",
                "email must be text",
                "created_at must not be null",
                "name is required",
            ]
        );
    }

    #[test]
    fn a_body_that_is_no_object_or_says_a_thing_twice_is_refused() {
        for body in [
            "",
            "[]",
            "null",
            "{\"name\":",
            r#"{"name":"a","name":"b"}"#,
            "{} x",
        ] {
            let refusal = create(&users(), body.as_bytes()).unwrap_err();
            assert!(
                matches!(refusal, Refusal::NotAnObject(_)),
                "{body}: {refusal}"
            );
        }
    }

    #[test]
    fn a_patch_changes_what_it_names() {
        let write = update(&users(), ID, br#"{"email":null}"#, Extent::Named).unwrap();

        assert_eq!(write.op, WriteOp::Update);
        assert_eq!(write.entity_id.as_deref(), Some(ID));
        assert_eq!(write.data, *json!({"email": null}).as_object().unwrap());
        assert_eq!(
            faults(update(&users(), ID, b"{}", Extent::Named)),
            [" nothing to change: name at least one column"]
        );
    }

    #[test]
    fn a_put_clears_what_it_leaves_out() {
        let write = update(&users(), ID, br#"{"name":"Bob"}"#, Extent::Whole).unwrap();

        assert_eq!(
            write.data,
            *json!({"name": "Bob", "email": null}).as_object().unwrap()
        );
        assert_eq!(
            faults(update(&users(), ID, b"{}", Extent::Whole)),
            ["name is required in a PUT"]
        );
    }

    #[test]
    fn the_key_in_the_body_must_be_the_one_in_the_path() {
        let same = format!(r#"{{"id":"{ID}","name":"Bob"}}"#);
        let other = r#"{"id":"0191d2a0-7b7a-7cc3-8e6b-000000000002","name":"Bob"}"#;

        let write = update(&users(), ID, same.as_bytes(), Extent::Named).unwrap();
        assert!(!write.data.contains_key("id"));
        assert_eq!(
            faults(update(&users(), ID, other.as_bytes(), Extent::Named)),
            ["id differs from the id in the path"]
        );
    }

    #[test]
    fn a_composite_key_is_named_part_by_part() {
        let write = delete(&lines(), "007,a%2Cb%25").unwrap();
        assert_eq!(write.entity_id.as_deref(), Some("7,a%2Cb%25"));

        for id in ["7", "7,a,b", "x,a", "7,%zz", "7,%00"] {
            assert!(matches!(delete(&lines(), id), Err(Refusal::Id(_))), "{id}");
        }
    }

    #[test]
    fn an_id_must_have_the_keys_type() {
        assert_eq!(
            delete(&users(), "1; DROP TABLE users")
                .unwrap_err()
                .to_string(),
            "the id does not fit column id of type uuid"
        );
    }

    #[test]
    fn nothing_is_granted_by_default() {
        let mut closed = users();
        closed.privileges.writer.clear();

        let refusal = create(&closed, b"{}").unwrap_err().to_string();

        assert_eq!(
            refusal,
            "app_writer has no INSERT privilege on public.users; GRANT INSERT ON public.users TO app_writer"
        );
        assert!(matches!(
            delete(&closed, ID),
            Err(Refusal::NotGranted { .. })
        ));
    }

    #[test]
    fn a_grant_on_columns_opens_those_columns() {
        let mut schema = users();
        schema.privileges.writer.clear();
        schema.columns[2].privileges.writer = vec![Privilege::Update];

        assert!(update(&schema, ID, br#"{"email":"a@b"}"#, Extent::Named).is_ok());
        assert_eq!(
            faults(update(&schema, ID, br#"{"name":"Bob"}"#, Extent::Named)),
            ["name may not be written"]
        );
        assert!(matches!(
            create(&schema, b"{}"),
            Err(Refusal::NotGranted { .. })
        ));
    }

    #[test]
    fn generated_columns_are_nobodys_to_write() {
        let mut schema = users();
        schema.columns[2].generated = Generated::Stored;

        let body = br#"{"name":"Alice","email":"a@b"}"#;

        assert_eq!(faults(create(&schema, body)), ["email is generated"]);
    }

    #[test]
    fn a_table_without_a_key_takes_new_rows_only() {
        let schema = schema(&json!([column("line", "text", false, false)]), &[]);

        assert_eq!(create(&schema, br#"{"line":"x"}"#).unwrap().entity_id, None);
        assert!(matches!(delete(&schema, "x"), Err(Refusal::NoKey(_))));
    }
}
