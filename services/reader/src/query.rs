//! What a list request asks for.
//!
//! In: the query string and the table's shape. Out: a [`Query`], or what is wrong with it.
//! Invariant: every column in it exists and may be read; every value is still text.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use wire::schema::{Column, Privilege, Schema};

/// Rows in an answer at most.
pub const LIMIT_MAX: u32 = 1000;
/// Rows in an answer unless said otherwise.
pub const LIMIT_DEFAULT: u32 = 100;
/// Values of one `in` at most, and filters of one request.
const TERMS_MAX: usize = 100;

/// A list request.
#[derive(Debug, Clone, PartialEq)]
pub struct Query<'a> {
    /// What to show, in this order.
    pub select: Vec<&'a Column>,
    /// All must hold.
    pub filters: Vec<Filter<'a>>,
    /// As asked for, then the primary key where there is one.
    pub order: Vec<Order<'a>>,
    /// Rows at most.
    pub limit: u32,
    /// Rows to leave out.
    pub offset: u64,
    /// Begin behind these values of `order`; None among them is NULL.
    pub after: Option<Vec<Option<String>>>,
    /// The order is total, so that a next page can be named.
    pub has_total_order: bool,
}

/// A condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter<'a> {
    /// On what.
    pub column: &'a Column,
    /// How.
    pub test: Test,
}

/// A comparison.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// With one value by a SQL operator: `=`, `<`, `LIKE` and so on.
    Compare(&'static str, String),
    /// With several values.
    In(Vec<String>),
    /// With NULL.
    IsNull(bool),
}

/// A sort key.
#[derive(Debug, Clone, PartialEq)]
pub struct Order<'a> {
    /// By what.
    pub column: &'a Column,
    /// Largest (and NULL) first.
    pub is_descending: bool,
}

/// What is wrong with the query string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such column, or none that may be read.
    #[error("there is no column {0:?}; a filter is written column=eq.value")]
    Column(String),
    /// Not one of ours.
    #[error("{0:?} must begin with eq. neq. lt. lte. gt. gte. like. ilike. in. or is.")]
    Operator(String),
    /// Not a number, or out of range.
    #[error("{name} must be a whole number from {least} to {most}")]
    Number {
        /// Which parameter.
        name: &'static str,
        /// Its least value.
        least: u64,
        /// Its greatest.
        most: u64,
    },
    /// `order` is misspelt.
    #[error("{0:?} must be column, column.asc or column.desc")]
    Order(String),
    /// `after` is not from us, or not from this order.
    #[error("after must be taken from the link to the next page, with the same order")]
    After,
    /// Too many filters or values.
    #[error("more than {TERMS_MAX} filters or values")]
    TooMany,
    /// A parameter of ours was given twice.
    #[error("{0} is there twice")]
    Twice(&'static str),
}

/// May the services' role read this column?
pub fn is_readable(schema: &Schema, column: &Column) -> bool {
    schema.privileges.reader.contains(&Privilege::Select)
        || column.privileges.reader.contains(&Privilege::Select)
}

/// The columns that may be read; none closes the table.
pub fn readable(schema: &Schema) -> Vec<&Column> {
    let columns = schema.columns.iter();
    columns
        .filter(|column| is_readable(schema, column))
        .collect()
}

/// The primary key, where all of it may be read; none otherwise.
pub fn key(schema: &Schema) -> Vec<&Column> {
    let columns = schema.primary_key.iter().map(|name| find(schema, name));
    columns.collect::<Result<_, _>>().unwrap_or_default()
}

impl<'a> Query<'a> {
    /// Reads the pairs of a query string.
    pub fn parse(pairs: &[(String, String)], schema: &'a Schema) -> Result<Self, Error> {
        let parameter = |name: &'static str| {
            let mut values = pairs.iter().filter(|(key, _)| key == name);
            let first = values.next().map(|(_, value)| value.as_str());
            match values.next() {
                None => Ok(first.filter(|value| !value.is_empty())),
                Some(_) => Err(Error::Twice(name)),
            }
        };
        let select = match parameter("select")? {
            None | Some("*") => readable(schema),
            Some(names) => names
                .split(',')
                .map(|name| find(schema, name.trim()))
                .collect::<Result<_, _>>()?,
        };
        let mut order: Vec<Order<'a>> = match parameter("order")? {
            None => Vec::new(),
            Some(keys) => keys
                .split(',')
                .map(|key| Order::parse(key.trim(), schema))
                .collect::<Result<_, _>>()?,
        };
        let key = key(schema);
        for column in &key {
            if !order.iter().any(|order| order.column == *column) {
                order.push(Order {
                    column,
                    is_descending: false,
                });
            }
        }
        let limit = number(parameter("limit")?, "limit", 1, u64::from(LIMIT_MAX))?;
        let offset = number(parameter("offset")?, "offset", 0, OFFSET_MAX)?;
        let after = parameter("after")?
            .map(|token| values(token, order.len()))
            .transpose()?;
        let filters = pairs
            .iter()
            .filter(|(name, _)| !PARAMETERS.contains(&name.as_str()))
            .map(|(name, condition)| Filter::parse(find(schema, name)?, condition))
            .collect::<Result<Vec<_>, _>>()?;
        if TERMS_MAX < filters.len() || TERMS_MAX < order.len() || TERMS_MAX * 16 < select.len() {
            return Err(Error::TooMany);
        }
        Ok(Self {
            select,
            filters,
            limit: limit.map_or(LIMIT_DEFAULT, |limit| limit as u32),
            offset: offset.unwrap_or(0),
            after,
            has_total_order: !key.is_empty(),
            order,
        })
    }

    /// One row by its key.
    pub fn row(schema: &'a Schema, id: &str) -> Option<Self> {
        let key = key(schema);
        let values: Vec<String> = match key.len() {
            0 => return None,
            1 => vec![id.to_owned()],
            _ => id
                .split(',')
                .map(|part| wire::token::unescape_token(part).ok())
                .collect::<Option<_>>()?,
        };
        if values.len() != key.len() {
            return None;
        }
        let filters = key.into_iter().zip(values).map(|(column, value)| Filter {
            column,
            test: Test::Compare("=", value),
        });
        Some(Self {
            select: readable(schema),
            filters: filters.collect(),
            order: Vec::new(),
            limit: 1,
            offset: 0,
            after: None,
            has_total_order: false,
        })
    }
}

/// The token behind a row: its values of the order's columns.
pub fn token(values: &[Option<String>]) -> String {
    let json = serde_json::to_vec(values).expect("a list of texts is JSON");
    URL_SAFE_NO_PAD.encode(json)
}

fn values(token: &str, count: usize) -> Result<Vec<Option<String>>, Error> {
    let json = URL_SAFE_NO_PAD.decode(token).map_err(|_| Error::After)?;
    let values: Vec<_> = serde_json::from_slice(&json).map_err(|_| Error::After)?;
    if values.len() == count && count != 0 {
        Ok(values)
    } else {
        Err(Error::After)
    }
}

const PARAMETERS: [&str; 5] = ["select", "order", "limit", "offset", "after"];
/// PostgreSQL takes a bigint; pages that far back are for `after`.
const OFFSET_MAX: u64 = 1_000_000;

fn find<'a>(schema: &'a Schema, name: &str) -> Result<&'a Column, Error> {
    let mut columns = schema.columns.iter();
    columns
        .find(|column| column.name == name && is_readable(schema, column))
        .ok_or_else(|| Error::Column(name.to_owned()))
}

fn number(
    text: Option<&str>,
    name: &'static str,
    least: u64,
    most: u64,
) -> Result<Option<u64>, Error> {
    let Some(text) = text else { return Ok(None) };
    let number = text.parse().ok();
    match number.filter(|number| (least..=most).contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(Error::Number { name, least, most }),
    }
}

impl<'a> Order<'a> {
    fn parse(key: &str, schema: &'a Schema) -> Result<Self, Error> {
        // A column may itself be called `a.desc`; the whole name wins.
        let (name, direction) = match (find(schema, key), key.rsplit_once('.')) {
            (Ok(_), _) | (_, None) => (key, "asc"),
            (Err(_), Some(parts)) => parts,
        };
        let is_descending = match direction {
            "asc" => false,
            "desc" => true,
            _ => return Err(Error::Order(key.to_owned())),
        };
        Ok(Self {
            column: find(schema, name)?,
            is_descending,
        })
    }
}

impl<'a> Filter<'a> {
    fn parse(column: &'a Column, condition: &str) -> Result<Self, Error> {
        let unknown = || Error::Operator(condition.to_owned());
        let (operator, value) = condition.split_once('.').ok_or_else(unknown)?;
        let test = match operator {
            "eq" => Test::Compare("=", value.to_owned()),
            "neq" => Test::Compare("<>", value.to_owned()),
            "lt" => Test::Compare("<", value.to_owned()),
            "lte" => Test::Compare("<=", value.to_owned()),
            "gt" => Test::Compare(">", value.to_owned()),
            "gte" => Test::Compare(">=", value.to_owned()),
            "like" => Test::Compare("LIKE", value.to_owned()),
            "ilike" => Test::Compare("ILIKE", value.to_owned()),
            "in" => Test::In(list(value)?),
            "is" => match value {
                "null" => Test::IsNull(true),
                "notnull" => Test::IsNull(false),
                _ => return Err(unknown()),
            },
            _ => return Err(unknown()),
        };
        Ok(Self { column, test })
    }
}

/// `(a,b,c)`; a value with a comma stands in double quotes, a quote in it is doubled.
fn list(text: &str) -> Result<Vec<String>, Error> {
    let inner = text
        .strip_prefix('(')
        .and_then(|text| text.strip_suffix(')'));
    let inner = inner.unwrap_or(text);
    let mut values = vec![String::new()];
    let mut is_quoted = false;
    let mut characters = inner.chars().peekable();
    while let Some(character) = characters.next() {
        let value = values.last_mut().expect("there is always one");
        match character {
            '"' if is_quoted && characters.peek() == Some(&'"') => {
                characters.next();
                value.push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => values.push(String::new()),
            other => value.push(other),
        }
    }
    if TERMS_MAX < values.len() {
        return Err(Error::TooMany);
    }
    Ok(values)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A table with a key `id`; `secret` may not be read.
    pub(crate) fn users() -> Schema {
        let column = |name: &str, position: u32, data_type: &str, select: bool| {
            json!({"name": name, "position": position, "data_type": data_type,
                "is_nullable": true, "column_default": null,
                "privileges": {"reader": if select { vec!["select"] } else { vec![] }, "writer": []}})
        };
        serde_json::from_value(
            json!({"table": "users", "schema": "public.users", "timestamp": 0,
            "primary_key": ["id"],
            "columns": [column("id", 1, "uuid", true), column("name", 2, "text", true),
                column("total", 3, "numeric(12,2)", true), column("extra", 4, "jsonb", true),
                column("secret", 5, "text", false)]}),
        )
        .unwrap()
    }

    fn pairs(text: &str) -> Vec<(String, String)> {
        text.split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn nothing_asked_for_is_the_first_page_by_key() {
        let schema = users();

        let query = Query::parse(&[], &schema).unwrap();

        assert_eq!(query.select.len(), 4);
        assert_eq!(query.order[0].column.name, "id");
        assert_eq!((query.limit, query.offset), (LIMIT_DEFAULT, 0));
    }

    #[test]
    fn a_column_that_may_not_be_read_does_not_exist() {
        let schema = users();

        for text in [
            "secret=eq.x",
            "select=secret",
            "order=secret",
            "nobody=eq.1",
        ] {
            let error = Query::parse(&pairs(text), &schema).unwrap_err();
            assert!(matches!(error, Error::Column(_)), "{text}: {error}");
        }
    }

    #[test]
    fn filters_orders_and_pages_are_read() {
        let schema = users();
        let text = "name=like.A%&total=in.(1,\"2,5\")&extra=is.null&order=name.desc&limit=7";

        let query = Query::parse(&pairs(text), &schema).unwrap();

        let tests: Vec<_> = query
            .filters
            .into_iter()
            .map(|filter| filter.test)
            .collect();
        assert_eq!(
            tests,
            [
                Test::Compare("LIKE", "A%".to_owned()),
                Test::In(vec!["1".to_owned(), "2,5".to_owned()]),
                Test::IsNull(true)
            ]
        );
        assert!(query.order[0].is_descending && query.order.len() == 2);
        assert_eq!(query.limit, 7);
    }

    #[test]
    fn a_page_of_more_than_a_thousand_rows_is_refused() {
        let schema = users();

        assert!(Query::parse(&pairs("limit=1000"), &schema).is_ok());
        for text in ["limit=1001", "limit=0", "limit=-1", "limit=x", "offset=-1"] {
            assert!(Query::parse(&pairs(text), &schema).is_err(), "{text}");
        }
    }

    #[test]
    fn a_page_token_fits_its_order_only() {
        let schema = users();
        let token = token(&[Some("x".to_owned())]);

        let same = pairs(&format!("after={token}"));
        assert!(Query::parse(&same, &schema).is_ok());
        let other = pairs(&format!("after={token}&order=name"));
        assert_eq!(Query::parse(&other, &schema), Err(Error::After));
        assert_eq!(
            Query::parse(&pairs("after=garbage!"), &schema),
            Err(Error::After)
        );
    }
}
