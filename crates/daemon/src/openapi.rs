//! What the OpenAPI documents of the services have in common.
//!
//! In: a table's name, a document. Out: the same as OpenAPI wants it. What must hold: both services name a table alike.

use serde_json::{Value, json};

/// Component names allow letters, digits and `._-` only.
pub fn component_name(qualified: &str) -> String {
    let escape = |character: char| {
        if character.is_ascii_alphanumeric() || character == '.' {
            character.to_string()
        } else {
            format!("_{:x}", u32::from(character))
        }
    };
    qualified.chars().map(escape).collect()
}

/// Says of every operation that it takes a token (see [`crate::access`]).
pub fn require_token(document: &mut Value) {
    document["components"]["securitySchemes"] =
        json!({"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}});
    document["security"] = json!([{"token": []}]);
}
