//! What the OpenAPI documents of the services have in common.
//!
//! In: a table's name, a document. Out: the same as OpenAPI wants it. What must hold: both services name a table alike.

use serde_json::{Value, json};

/// `public.order_items`: a name of its own for every table. Component names allow letters, digits and `._-` only; any
/// other character is its code point between two hyphens.
pub fn component_name(schema: &str, table: &str) -> String {
    format!("{}.{}", escape(schema), escape(table))
}

fn escape(name: &str) -> String {
    let escape = |character: char| {
        if character.is_ascii_alphanumeric() || character == '_' {
            character.to_string()
        } else {
            format!("-{:x}-", u32::from(character))
        }
    };
    name.chars().map(escape).collect()
}

/// Says of every operation that it takes a token (see [`crate::access`]).
pub fn require_token(document: &mut Value) {
    document["components"]["securitySchemes"] =
        json!({"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}});
    document["security"] = json!([{"token": []}]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tables_share_a_component() {
        let tables = [
            ("public", "order_items"),
            ("public", "order items"),
            ("public", "order-20-items"),
            // Without its end, the code point of the first would swallow the letter of the second.
            ("public", "\u{e9}a"),
            ("public", "\u{e9a}"),
            ("a.b", "c"),
            ("a", "b.c"),
        ];
        let names: Vec<_> = tables
            .map(|(schema, table)| component_name(schema, table))
            .into();

        assert_eq!(names[0], "public.order_items");
        assert_eq!(names[1], "public.order-20-items");
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), names.len(), "{names:?}");
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        assert!(
            names.iter().all(|name| name.chars().all(is_allowed)),
            "{names:?}"
        );
    }
}
