//! A query as SQL.
//!
//! In: a [`Query`]. Out: text and its parameters.
//! Invariant: values are parameters, always text that PostgreSQL casts; names and types are the
//! catalogue's own.

use wire::schema::{Column, Schema};

use crate::query::{Filter, Order, Query, Test};

/// SQL with its parameters `$1` and on.
#[derive(Debug, Clone, PartialEq)]
pub struct Sql {
    /// The statement. Its rows are the selected columns, then those of the order, all as text.
    pub text: String,
    /// In order.
    pub parameters: Vec<Parameter>,
}

/// A parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameter {
    /// `text`.
    Text(String),
    /// `text[]`.
    Texts(Vec<String>),
}

/// How a value that comes as text is written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As it is.
    Bool,
    /// A number, or text beyond what JSON readers hold.
    Integer,
    /// A number, or text where JSON has none.
    Float,
    /// JSON already.
    Json,
    /// Text.
    Text,
}

impl Kind {
    /// Of a column, by its type's name.
    pub fn of(column: &Column) -> Self {
        match column.data_type.as_str() {
            "boolean" => Self::Bool,
            "smallint" | "integer" | "bigint" | "oid" => Self::Integer,
            "real" | "double precision" => Self::Float,
            "json" | "jsonb" => Self::Json,
            other if other.ends_with("[]") => Self::Json,
            _ => Self::Text,
        }
    }
}

/// The statement of a query on a table.
pub fn of(query: &Query<'_>, schema: &Schema) -> Sql {
    let mut parameters = Vec::new();
    let shown = query.select.iter().map(|column| shown(column));
    let keys = query.order.iter().map(|order| {
        let name = column(order.column);
        format!("{name}::text")
    });
    let list: Vec<_> = shown.chain(keys).collect();
    let mut text = format!("SELECT {} FROM {} AS t", list.join(", "), qualified(schema));

    let mut conditions: Vec<_> = query
        .filters
        .iter()
        .map(|filter| condition(filter, &mut parameters))
        .collect();
    if let Some(after) = &query.after {
        conditions.push(behind(&query.order, after, &mut parameters));
    }
    if !conditions.is_empty() {
        text.push_str(" WHERE ");
        text.push_str(&conditions.join(" AND "));
    }
    if !query.order.is_empty() {
        let keys = query.order.iter().map(|order| {
            let direction = if order.is_descending { "DESC" } else { "ASC" };
            format!("{} {direction}", column(order.column))
        });
        text.push_str(" ORDER BY ");
        text.push_str(&keys.collect::<Vec<_>>().join(", "));
    }
    let text = format!("{text} LIMIT {} OFFSET {}", query.limit, query.offset);
    Sql { text, parameters }
}

/// `"public"."users"`.
pub fn qualified(schema: &Schema) -> String {
    format!("{}.{}", quote(schema.namespace()), quote(&schema.table))
}

/// PostgreSQL: a bare name in ORDER BY is a column of the result first, here text; so all are qualified.
fn column(column: &Column) -> String {
    format!("t.{}", quote(&column.name))
}

/// A name as SQL takes any name.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn shown(column: &Column) -> String {
    let name = self::column(column);
    match Kind::of(column) {
        Kind::Json => format!("to_jsonb({name})::text"),
        Kind::Bool | Kind::Integer | Kind::Float | Kind::Text => format!("{name}::text"),
    }
}

fn condition(filter: &Filter<'_>, parameters: &mut Vec<Parameter>) -> String {
    let name = column(filter.column);
    let data_type = unmodified(&filter.column.data_type);
    match &filter.test {
        Test::Compare(operator @ ("LIKE" | "ILIKE"), value) => {
            parameters.push(Parameter::Text(value.clone()));
            format!("{name}::text {operator} ${}", parameters.len())
        }
        Test::Compare(operator, value) => {
            parameters.push(Parameter::Text(value.clone()));
            format!("{name} {operator} ${}::{data_type}", parameters.len())
        }
        Test::In(values) => {
            parameters.push(Parameter::Texts(values.clone()));
            format!("{name} = ANY (${}::{data_type}[])", parameters.len())
        }
        Test::IsNull(true) => format!("{name} IS NULL"),
        Test::IsNull(false) => format!("{name} IS NOT NULL"),
    }
}

/// A type without its modifier: what is compared is neither cut nor rounded. PostgreSQL: a cast to `varchar(3)` or
/// `numeric(12,2)` does that silently, and bare `character` and `bit` mean one of them.
fn unmodified(data_type: &str) -> String {
    let Some((name, rest)) = data_type.split_once('(') else {
        return data_type.to_owned();
    };
    // A parenthesis within a quoted name.
    let Some((_, rest)) = rest.split_once(')').filter(|_| !name.contains('"')) else {
        return data_type.to_owned();
    };
    let name = match name {
        "character" => "bpchar",
        "bit" => "bit varying",
        name => name,
    };
    format!("{name}{rest}")
}

/// Strictly behind `after` in the order: larger in the first key, or equal there and behind in the
/// rest. PostgreSQL: NULL is larger than everything, so last when ascending and first when descending.
fn behind(
    order: &[Order<'_>],
    after: &[Option<String>],
    parameters: &mut Vec<Parameter>,
) -> String {
    let mut alternatives = Vec::new();
    let mut equal = String::new();
    for (order, value) in order.iter().zip(after) {
        let name = column(order.column);
        let placeholder = value.as_ref().map(|value| {
            parameters.push(Parameter::Text(value.clone()));
            let data_type = unmodified(&order.column.data_type);
            format!("${}::{data_type}", parameters.len())
        });
        let larger = match (&placeholder, order.is_descending) {
            (Some(value), false) => format!("({name} > {value} OR {name} IS NULL)"),
            (Some(value), true) => format!("{name} < {value}"),
            (None, false) => "false".to_owned(),
            (None, true) => format!("{name} IS NOT NULL"),
        };
        alternatives.push(format!("({equal}{larger})"));
        match &placeholder {
            Some(value) => equal.extend([name.as_str(), " = ", value, " AND "]),
            None => equal.extend([name.as_str(), " IS NULL AND "]),
        }
    }
    format!("({})", alternatives.join(" OR "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::tests::users;

    fn sql(text: &str) -> Sql {
        let schema = users();
        let pairs: Vec<_> = text
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        of(&Query::parse(&pairs, &schema).unwrap(), &schema)
    }

    #[test]
    fn values_never_reach_the_text() {
        let sql = sql("name=eq.'; DROP TABLE users");

        assert!(!sql.text.contains("DROP"));
        assert!(sql.text.contains(r#"t."name" = $1::text"#), "{}", sql.text);
    }

    #[test]
    fn types_are_the_catalogues() {
        let sql = sql("total=in.(1,2)&select=extra");

        assert!(sql.text.contains("to_jsonb(t.\"extra\")::text"));
        assert!(sql.text.contains("= ANY ($1::numeric[])"));
    }

    #[test]
    fn what_is_compared_is_neither_cut_nor_rounded() {
        for (data_type, expected) in [
            ("numeric(12,2)", "numeric"),
            ("numeric(12,2)[]", "numeric[]"),
            ("character varying(3)", "character varying"),
            ("character(3)", "bpchar"),
            ("bit(3)[]", "bit varying[]"),
            ("timestamp(3) with time zone", "timestamp with time zone"),
            ("\"a(b)\"", "\"a(b)\""),
            ("uuid", "uuid"),
        ] {
            assert_eq!(unmodified(data_type), expected);
        }
    }

    #[test]
    fn a_next_page_begins_strictly_behind_the_last_row() {
        let token = crate::query::token(&[None, Some("7".to_owned())]);

        let sql = sql(&format!("order=name&after={token}"));

        let expected =
            r#"((false) OR (t."name" IS NULL AND (t."id" > $1::uuid OR t."id" IS NULL)))"#;
        assert!(sql.text.contains(expected), "{}", sql.text);
    }
}
