//! Describes the reader as it is at this moment (OpenAPI 3.1).
//!
//! In: the tables. Out: a document.
//! Invariant: it offers what may be read and nothing else, so that a table added by a migration is
//! documented without a release.

use daemon::openapi::{component_name, require_token};
use serde_json::{Map, Value, json};
use wire::names;
use wire::schema::{Column, Schema};

use crate::query::{LIMIT_DEFAULT, LIMIT_MAX, key, readable};
use crate::schemas::Tables;
use crate::sql::Kind;

/// The document for `tables`.
pub fn document(tables: &Tables, needs_token: bool) -> Value {
    let mut sorted: Vec<&Schema> = tables.values().map(|table| &table.schema).collect();
    sorted.sort_by(|a, b| a.schema.cmp(&b.schema));
    let mut paths = fixed_paths();
    let mut schemas = fixed_schemas();
    for schema in sorted {
        if !readable(schema).is_empty() {
            describe(schema, &mut paths, &mut schemas);
        }
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {"title": "reader", "version": env!("CARGO_PKG_VERSION"),
            "description": "Rows, live changes, and what became of writes."},
        "paths": paths,
        "components": {"schemas": schemas},
    });
    if needs_token {
        require_token(&mut document);
    }
    document
}

fn describe(schema: &Schema, paths: &mut Map<String, Value>, schemas: &mut Map<String, Value>) {
    let path = names::table_path(schema.namespace(), &schema.table);
    let name = component_name(schema.namespace(), &schema.table);
    let columns = readable(schema);
    let properties: Map<String, Value> = columns
        .iter()
        .map(|column| (column.name.clone(), property(column)))
        .collect();
    schemas.insert(
        name.clone(),
        json!({"type": "object", "properties": properties}),
    );
    let row = json!({"$ref": format!("#/components/schemas/{name}")});

    let filters = columns.iter().map(|column| {
        let description = "eq. neq. lt. lte. gt. gte. like. ilike. in. is. and a value";
        parameter(
            "query",
            &column.name,
            description,
            json!({"type": "string"}),
        )
    });
    let mut parameters = page_parameters();
    parameters.extend(filters);
    let rows = json!({"type": "array", "items": row});
    let operation = operation(&format!("list {path}"), &path, &parameters, &rows);
    paths.insert(format!("/{path}"), json!({"get": operation}));
    if !key(schema).is_empty() {
        let id = json!({"name": "id", "in": "path", "required": true, "schema": {"type": "string"},
            "description": "The primary key; parts of a composite one separated by commas"});
        let parameters = vec![id, min_lsn(), min_xid()];
        let operation = self::operation(&format!("read {path}"), &path, &parameters, &row);
        paths.insert(format!("/{path}/{{id}}"), json!({"get": operation}));
    }
}

fn operation(id: &str, tag: &str, parameters: &[Value], schema: &Value) -> Value {
    json!({
        "operationId": id,
        "tags": [tag],
        "parameters": parameters,
        "responses": responses(schema, "application/json"),
    })
}

fn responses(schema: &Value, media_type: &str) -> Value {
    let problem = |description: &str| {
        let schema = json!({"$ref": "#/components/schemas/problem"});
        json!({"description": description,
            "content": {"application/problem+json": {"schema": schema}}})
    };
    json!({
        "200": {"description": "Found", "content": {media_type: {"schema": schema}}},
        "304": {"description": "Not changed since the ETag in If-None-Match"},
        "400": problem("The query cannot be read"),
        "401": problem("No usable token"),
        "403": problem("Not granted to the services' role"),
        "404": problem("Not found"),
        "503": problem("Try again after Retry-After"),
    })
}

fn page_parameters() -> Vec<Value> {
    let limit = json!({"type": "integer", "minimum": 1, "maximum": LIMIT_MAX,
        "default": LIMIT_DEFAULT});
    let text = || json!({"type": "string"});
    vec![
        parameter("query", "select", "Columns, separated by commas", text()),
        parameter(
            "query",
            "order",
            "column.asc or column.desc, separated by commas",
            text(),
        ),
        parameter("query", "limit", "Rows at most", limit),
        parameter(
            "query",
            "offset",
            "Rows to leave out",
            json!({"type": "integer", "minimum": 0}),
        ),
        parameter("query", "after", "From the link to the next page", text()),
        min_lsn(),
        min_xid(),
    ]
}

fn min_lsn() -> Value {
    let description = "The lsn of a completed write: the answer has seen it";
    parameter(
        "header",
        "X-Min-LSN",
        description,
        json!({"type": "string"}),
    )
}

fn min_xid() -> Value {
    let description =
        "The xid of that write, where it has one: the commit may be in WAL before it is visible";
    parameter(
        "header",
        "X-Min-XID",
        description,
        json!({"type": "integer", "minimum": 0}),
    )
}

fn parameter(place: &str, name: &str, description: &str, schema: Value) -> Value {
    let mut parameter = json!({"name": name, "in": place, "description": description});
    parameter["schema"] = schema;
    parameter
}

fn property(column: &Column) -> Value {
    let mut property = match Kind::of(column) {
        Kind::Bool => json!({"type": ["boolean", "null"]}),
        Kind::Integer => json!({"type": ["integer", "string", "null"]}),
        Kind::Float => json!({"type": ["number", "string", "null"]}),
        Kind::Json => json!({}),
        Kind::Text => json!({"type": ["string", "null"]}),
    };
    property["description"] = column.data_type.clone().into();
    property
}

fn fixed_paths() -> Map<String, Value> {
    let status = json!({"$ref": "#/components/schemas/status"});
    let id = json!({"name": "id", "in": "path", "required": true, "schema": {"type": "string"}});
    let wait = parameter(
        "query",
        "wait",
        "Seconds to wait for the outcome",
        json!({"type": "integer", "minimum": 0, "maximum": 60}),
    );
    let mut operation_status = operation("status", "status", &[id, wait], &status);
    operation_status["responses"]["200"]["content"]["text/event-stream"] =
        json!({"schema": {"type": "string"}});
    let tables = json!({"name": "tables", "in": "query", "required": true,
        "schema": {"type": "string"}, "description": "Tables, separated by commas"});
    let last = parameter(
        "header",
        "Last-Event-ID",
        "Go on behind this event",
        json!({"type": "string"}),
    );
    let changes = json!({"operationId": "changes", "tags": ["changes"],
        "parameters": [tables, last],
        "responses": responses(&json!({"type": "string"}), "text/event-stream")});
    let health = json!({"operationId": "health", "responses": {
        "200": {"description": "Ready"}, "503": {"description": "A server is missing"}}});
    let paths = json!({"/status/{id}": {"get": operation_status}, "/changes": {"get": changes},
        "/health": {"get": health}});
    match paths {
        Value::Object(paths) => paths,
        _ => unreachable!("it is written as an object"),
    }
}

fn fixed_schemas() -> Map<String, Value> {
    let text = json!({"type": "string"});
    let mut schemas = Map::new();
    schemas.insert(
        "status".to_owned(),
        json!({"type": "object",
        "required": ["operationId", "status"],
        "properties": {"operationId": text, "status": {"enum": ["pending", "completed", "failed"]},
            "table": text, "entityId": text, "lsn": text, "acceptedAt": text, "completedAt": text,
            "error": {"type": "object", "required": ["code", "message"],
                "properties": {"code": text, "constraint": text, "message": text}}}}),
    );
    schemas.insert("problem".to_owned(), json!({"type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {"type": text, "title": text, "status": {"type": "integer"}, "detail": text}}));
    schemas
}
