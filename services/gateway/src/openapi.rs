//! Describes the gateway as it is at this moment (OpenAPI 3.1).
//!
//! In: the tables. Out: a document. What must hold: it offers what the privileges allow and nothing else, so that a table
//! added by a migration is documented without a release.

use daemon::bucket::Values;
use daemon::openapi::{component_name, require_token};
use serde_json::{Map, Value, json};
use wire::names;
use wire::schema::{Column, Privilege, Schema};

use crate::column_type::ColumnType;
use crate::idempotency::KEY_BYTES_MAX;
use crate::prefer::WAIT_MAX;
use crate::write::{is_derived_key, is_granted, is_writable};

/// The document for `tables`.
pub fn document(tables: &Values<Schema>, needs_token: bool) -> Value {
    let mut sorted: Vec<&Schema> = tables.values().map(AsRef::as_ref).collect();
    sorted.sort_by(|a, b| a.schema.cmp(&b.schema));
    let mut paths = Map::new();
    let mut schemas = fixed_schemas();
    for schema in sorted {
        describe(schema, &mut paths, &mut schemas);
    }
    paths.insert(
        "/health".to_owned(),
        json!({"get": {
            "operationId": "health",
            "responses": {
                "200": {"description": "Ready"},
                "503": {"description": "Not connected, no queue, breaker open, or tables not known yet"},
            },
        }}),
    );
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "gateway",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Writes are accepted here and applied later; follow Location for the outcome.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "parameters": parameters()},
    });
    if needs_token {
        require_token(&mut document);
    }
    document
}

fn describe(schema: &Schema, paths: &mut Map<String, Value>, schemas: &mut Map<String, Value>) {
    let path = names::table_path(schema.namespace(), &schema.table);
    let name = component_name(schema.namespace(), &schema.table);
    if is_granted(schema, Privilege::Insert) {
        let component = Offer::New.component(&name);
        schemas.insert(component.clone(), body(schema, Offer::New));
        let operation = operation(&path, "create", Some(&component), None);
        paths.insert(format!("/{path}"), json!({"post": operation}));
    }
    if schema.primary_key.is_empty() {
        return;
    }
    let id = id(schema);
    let mut methods = Map::new();
    if is_granted(schema, Privilege::Update) {
        for (method, verb, offer) in [
            ("patch", "change", Offer::Changes),
            ("put", "replace", Offer::Whole),
        ] {
            let component = offer.component(&name);
            schemas.insert(component.clone(), body(schema, offer));
            methods.insert(
                method.to_owned(),
                operation(&path, verb, Some(&component), Some(&id)),
            );
        }
    }
    if is_granted(schema, Privilege::Delete) {
        methods.insert(
            "delete".to_owned(),
            operation(&path, "delete", None, Some(&id)),
        );
    }
    if !methods.is_empty() {
        paths.insert(format!("/{path}/{{id}}"), Value::Object(methods));
    }
}

fn operation(path: &str, verb: &str, body: Option<&str>, id: Option<&Value>) -> Value {
    let parameter = |name: &str| json!({"$ref": format!("#/components/parameters/{name}")});
    let response = |description: &str, schema: &str, media_type: &str| {
        let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
        json!({"description": description, "content": {media_type: {"schema": schema}}})
    };
    let problem = |description: &str| response(description, "problem", "application/problem+json");
    let mut parameters = vec![parameter("key"), parameter("prefer")];
    parameters.extend(id.cloned());
    let mut operation = json!({
        "operationId": format!("{verb} {path}"),
        "tags": [path],
        "parameters": parameters,
        "responses": {
            "200": response("Applied within the time of Prefer: wait", "status", "application/json"),
            "202": response("Accepted, not applied yet", "status", "application/json"),
            "400": problem("No usable Idempotency-Key, id or body"),
            "401": problem("No usable token"),
            "403": problem("Not granted to the services' role"),
            "404": problem("No such table"),
            "408": problem("The body did not arrive"),
            "413": problem("The body is too large"),
            "415": problem("The body is not JSON"),
            "422": problem("Columns that cannot be written, a reused key, or (Prefer: wait) a failed write"),
            "429": problem("Too many requests of this principal"),
            "503": problem("Not accepted; repeat after Retry-After with the same key"),
        },
    });
    if let Some(body) = body {
        let schema = json!({"$ref": format!("#/components/schemas/{body}")});
        let content = json!({"application/json": {"schema": schema}});
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    operation
}

/// The path parameter that names a row.
fn id(schema: &Schema) -> Value {
    let column = |name: &String| schema.columns.iter().find(|column| column.name == *name);
    let (description, id) = match schema.primary_key.as_slice() {
        [name] => (
            "The primary key",
            column(name).map(property).unwrap_or_default(),
        ),
        _ => (
            "The parts of the primary key in key order, separated by commas",
            json!({"type": "string", "minLength": 1}),
        ),
    };
    json!({"name": "id", "in": "path", "required": true, "description": description, "schema": id})
}

/// What a body may hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Offer {
    New,
    Changes,
    Whole,
}

impl Offer {
    fn component(self, table: &str) -> String {
        let kind = match self {
            Self::New => "new",
            Self::Changes => "changes",
            Self::Whole => "whole",
        };
        format!("{table}.{kind}")
    }

    fn privilege(self) -> Privilege {
        match self {
            Self::New => Privilege::Insert,
            Self::Changes | Self::Whole => Privilege::Update,
        }
    }

    /// A change may repeat the key, but there is no reason to.
    fn holds(self, schema: &Schema, column: &Column) -> bool {
        let is_key = schema.primary_key.contains(&column.name);
        is_writable(schema, column, self.privilege()) && (self == Self::New || !is_key)
    }

    fn requires(self, schema: &Schema, column: &Column) -> bool {
        let is_filled = column.is_nullable || column.has_default;
        match self {
            Self::New => !is_filled && !is_derived_key(schema, column),
            Self::Changes => false,
            Self::Whole => !is_filled,
        }
    }
}

fn body(schema: &Schema, offer: Offer) -> Value {
    let columns = || {
        schema
            .columns
            .iter()
            .filter(|column| offer.holds(schema, column))
    };
    let properties: Map<String, Value> = columns()
        .map(|column| (column.name.clone(), property(column)))
        .collect();
    let required: Vec<&str> = columns()
        .filter(|column| offer.requires(schema, column))
        .map(|column| column.name.as_str())
        .collect();
    let mut body = json!({
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        body["required"] = json!(required);
    }
    if offer == Offer::Changes {
        body["minProperties"] = json!(1);
    }
    body
}

fn property(column: &Column) -> Value {
    let mut property = type_schema(&ColumnType::new(&column.data_type, &column.enum_labels));
    property["description"] = column.data_type.clone().into();
    if column.is_nullable {
        property = json!({"anyOf": [property, {"type": "null"}]});
    }
    property
}

/// PostgreSQL's text cannot hold U+0000.
const NO_NUL: &str = r"^[^\u0000]*$";

fn type_schema(column_type: &ColumnType<'_>) -> Value {
    match column_type {
        ColumnType::Integer { min, max } => {
            json!({"type": "integer", "minimum": min, "maximum": max})
        }
        ColumnType::Numeric => {
            json!({"type": ["string", "number"], "pattern": r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)$"})
        }
        ColumnType::Float => json!({"type": "number"}),
        ColumnType::Boolean => json!({"type": "boolean"}),
        ColumnType::Text { chars_max: None } | ColumnType::Other => {
            json!({"type": "string", "pattern": NO_NUL})
        }
        ColumnType::Text {
            chars_max: Some(max),
        } => {
            json!({"type": "string", "pattern": NO_NUL, "maxLength": max})
        }
        ColumnType::Uuid => json!({"type": "string", "format": "uuid"}),
        ColumnType::Date => json!({"type": "string", "format": "date"}),
        ColumnType::Timestamp => json!({"type": "string", "format": "date-time"}),
        ColumnType::Time => json!({"type": "string", "format": "time"}),
        ColumnType::Json => json!({}),
        ColumnType::Bytes => {
            json!({"type": "string", "pattern": r"^\\x([0-9a-fA-F][0-9a-fA-F])*$"})
        }
        ColumnType::Enum(labels) => json!({"type": "string", "enum": labels}),
        ColumnType::Array(element) => {
            let element = type_schema(element);
            json!({"type": "array", "items": {"anyOf": [element, {"type": "null"}]}})
        }
    }
}

fn fixed_schemas() -> Map<String, Value> {
    let schemas = json!({
        "status": {
            "type": "object",
            "required": ["status", "operationId"],
            "properties": {
                "status": {"enum": ["pending", "completed", "failed"]},
                "operationId": {"type": "string", "format": "uuid"},
                "entityId": {"type": "string"},
                "table": {"type": "string"},
                "lsn": {"type": "string"},
                "xid": {"type": "integer"},
                "acceptedAt": {"type": "string"},
                "completedAt": {"type": "string"},
            },
        },
        "problem": {
            "type": "object",
            "required": ["type", "title", "status", "detail"],
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
                "errors": {"type": "array", "items": {
                    "type": "object",
                    "properties": {"column": {"type": "string"}, "message": {"type": "string"}},
                }},
            },
        },
    });
    match schemas {
        Value::Object(schemas) => schemas,
        _ => Map::new(),
    }
}

fn parameters() -> Value {
    json!({
        "key": {
            "name": "Idempotency-Key", "in": "header", "required": true,
            "description": "The same for every repeat of one write. A UUID is the operation id itself.",
            "schema": {"type": "string", "pattern": "^[!-~]+$", "minLength": 1, "maxLength": KEY_BYTES_MAX},
        },
        "prefer": {
            "name": "Prefer", "in": "header", "required": false,
            "description": format!("wait=N: answer with the outcome if it is known within N seconds (at most {})", WAIT_MAX.as_secs()),
            "schema": {"type": "string"},
        },
    })
}
