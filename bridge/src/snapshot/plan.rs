//! What a snapshot of a table reads, or why there can be none.
//!
//! In: a requester's names and options, the catalogue. Out: the SQL of LOCK and COPY.
//! Invariant: a requester's text reaches SQL only as a parameter, as an identifier the catalogue has
//! given back, or as a literal that PostgreSQL itself has quoted.

use serde::Deserialize;
use tokio_postgres::Client;
use wire::Value;
use wire::snapshot::ErrorCode;
use wire::snapshot_request::{Options, Range};

use super::failure::Failure;
use crate::postgres::quote_ident;

/// A published table as the catalogue shows it. Equal again after the snapshot, or the table has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub oid: u32,
    pub schema: String,
    pub table: String,
    is_partitioned: bool,
    /// The published columns, in the table's order.
    columns: Vec<Column>,
    /// Columns of the primary key or the replica identity: what `where` may name.
    key: Vec<String>,
    /// A row is published when one of these holds; none when every row is.
    row_filters: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
}

/// What may change while the table stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Of the heap with TOAST, all partitions together, in bytes.
    pub table_bytes: u64,
    /// `reltuples`; None where PostgreSQL has none yet.
    pub rows_estimated: Option<u64>,
}

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub lock: String,
    pub copy: String,
    pub columns: Vec<Column>,
}

/// One row of `pg_publication_tables`.
#[derive(Debug, Deserialize)]
struct Published {
    /// From PostgreSQL 15 on.
    #[serde(default)]
    attnames: Option<Vec<String>>,
    #[serde(default)]
    rowfilter: Option<String>,
}

const FIND: &str = "\
    SELECT c.oid, c.relkind = 'p', row_security_active(c.oid), \
      has_table_privilege(c.oid, 'SELECT') OR has_any_column_privilege(c.oid, 'SELECT'), \
      coalesce((SELECT json_agg(to_jsonb(pt) ORDER BY pt.pubname)::text FROM pg_publication_tables pt \
        WHERE pt.pubname = ANY($3) AND pt.schemaname = n.nspname AND pt.tablename = c.relname), '[]') \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname::text = $1 AND c.relname::text = $2 AND c.relkind IN ('r', 'p')";

/// Asked under the lock only: these functions lock what they measure.
const SIZE: &str = "\
    WITH part AS (SELECT $1::oid AS oid UNION SELECT relid::oid FROM pg_partition_tree($1::oid)) \
    SELECT coalesce(sum(pg_table_size(c.oid)), 0)::int8, \
      CASE WHEN min(c.reltuples) FILTER (WHERE c.relkind = 'r') >= 0 \
        THEN (sum(c.reltuples) FILTER (WHERE c.relkind = 'r'))::int8 END \
    FROM pg_class c JOIN part ON part.oid = c.oid";

const COLUMNS: &str = "\
    SELECT a.attname::text, a.atttypid, a.attgenerated = '', \
      EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid \
        AND (i.indisprimary OR i.indisreplident) AND a.attnum = ANY(i.indkey)) \
    FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// Looks a table up; refuses what has no complete snapshot. PostgreSQL from 16 on may wait for the locks
/// of published tables here: set lock_timeout.
pub async fn find(
    client: &Client,
    schema: &str,
    table: &str,
    publications: &[String],
) -> Result<Target, Failure> {
    let name = || format!("{schema}.{table}");
    let row = client
        .query_opt(FIND, &[&schema, &table, &publications])
        .await?
        .ok_or_else(|| {
            Failure::new(
                ErrorCode::UnknownTable,
                format!("there is no table {:?}", name()),
                "check the name; tables outside schema public are asked for as schema.table",
            )
        })?;
    let published: Vec<Published> = serde_json::from_str(row.get::<_, &str>(4))
        .map_err(|_| Failure::unavailable("pg_publication_tables is not understood"))?;
    if published.is_empty() {
        return Err(not_published(&name(), row.get(1), publications));
    }
    if row.get(2) {
        return Err(Failure::new(
            ErrorCode::RowSecurity,
            format!(
                "row-level security would hide rows of {:?} from the bridge's role",
                name()
            ),
            "as a superuser: ALTER ROLE bridge_reader BYPASSRLS; (with the role the bridge logs in as)",
        ));
    }
    if !row.get::<_, bool>(3) {
        return Err(Failure::new(
            ErrorCode::Denied,
            format!("the bridge's role may not read {:?}", name()),
            "GRANT SELECT ON the table TO bridge_reader; (the role the bridge logs in as)",
        ));
    }
    let oid = row.get(0);
    let (mut columns, mut key) = (Vec::new(), Vec::new());
    for row in client.query(COLUMNS, &[&oid]).await? {
        let name: String = row.get(0);
        let is_published = published.iter().any(|entry| match &entry.attnames {
            Some(names) => names.contains(&name),
            None => row.get(2),
        });
        if row.get(3) {
            key.push(name.clone());
        }
        if is_published {
            columns.push(Column {
                name,
                type_oid: row.get(1),
            });
        }
    }
    Ok(Target {
        oid,
        schema: schema.to_owned(),
        table: table.to_owned(),
        is_partitioned: row.get(1),
        columns,
        key,
        row_filters: row_filters(published),
    })
}

/// How large it is; the caller holds the table's lock.
pub async fn size(client: &Client, target: &Target) -> Result<Size, Failure> {
    let row = client.query_one(SIZE, &[&target.oid]).await?;
    Ok(Size {
        table_bytes: row.get::<_, i64>(0) as u64,
        rows_estimated: row.get::<_, Option<i64>>(1).map(|rows| rows as u64),
    })
}

fn not_published(name: &str, is_partitioned: bool, publications: &[String]) -> Failure {
    let hint = if is_partitioned {
        "its partitions are published one by one: ask for those, or set publish_via_partition_root"
    } else {
        "ALTER PUBLICATION cdc_pub ADD TABLE the table; (with the publication of --publication)"
    };
    let error = format!("table {name:?} is not in {}", publications.join(", "));
    Failure::new(ErrorCode::NotPublished, error, hint)
}

/// Of several publications, one without a filter lets every row through.
fn row_filters(published: Vec<Published>) -> Vec<String> {
    let filters: Option<Vec<String>> = published.into_iter().map(|entry| entry.rowfilter).collect();
    filters.unwrap_or_default()
}

impl Target {
    /// Whether the options make sense for this table.
    pub fn check(&self, options: &Options) -> Result<(), Failure> {
        self.selected(&options.columns)?;
        options.range.as_ref().map_or(Ok(()), |range| {
            bounds(range).map(|_| ())?;
            self.key_column(&range.column).map(|_| ())
        })
    }

    /// The SQL of a snapshot with these options.
    pub async fn plan(&self, client: &Client, options: &Options) -> Result<Plan, Failure> {
        let columns = self.selected(&options.columns)?;
        let mut conditions = Vec::new();
        if !self.row_filters.is_empty() {
            conditions.push(format!("({})", self.row_filters.join(" OR ")));
        }
        if let Some(range) = &options.range {
            let column = quote_ident(self.key_column(&range.column)?);
            let (from, to) = bounds(range)?;
            let sql = "SELECT quote_literal($1::text), quote_literal($2::text)";
            let row = client.query_one(sql, &[&from, &to]).await?;
            for (operator, literal) in [(">=", row.get(0)), ("<", row.get(1))] {
                let literal: Option<String> = literal;
                conditions.extend(literal.map(|literal| format!("{column} {operator} {literal}")));
            }
        }
        Ok(Plan {
            lock: format!("LOCK TABLE {} IN ACCESS SHARE MODE", self.sql_name()),
            copy: self.copy(&columns, &conditions),
            columns,
        })
    }

    fn copy(&self, columns: &[Column], conditions: &[String]) -> String {
        let names: Vec<_> = columns
            .iter()
            .map(|column| quote_ident(&column.name))
            .collect();
        let names = names.join(", ");
        if conditions.is_empty() && !self.is_partitioned && !columns.is_empty() {
            return format!("COPY {} ({names}) TO STDOUT", self.sql_name());
        }
        // PostgreSQL: the rows of tables that inherit from this one are published under their own names.
        let only = if self.is_partitioned { "" } else { "ONLY " };
        let condition = if conditions.is_empty() {
            String::new()
        } else {
            format!(" WHERE {}", conditions.join(" AND "))
        };
        format!(
            "COPY (SELECT {names} FROM {only}{}{condition}) TO STDOUT",
            self.sql_name()
        )
    }

    pub fn sql_name(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.table))
    }

    fn selected(&self, names: &[String]) -> Result<Vec<Column>, Failure> {
        if names.is_empty() {
            return Ok(self.columns.clone());
        }
        let mut selected: Vec<Column> = Vec::new();
        for name in names {
            let column = self.columns.iter().find(|column| column.name == *name);
            let column = column.ok_or_else(|| {
                self.bad_column(format!("{name:?} is no published column"), &self.columns)
            })?;
            if selected.contains(column) {
                return Err(self.bad_column(format!("{name:?} is named twice"), &self.columns));
            }
            selected.push(column.clone());
        }
        Ok(selected)
    }

    fn key_column(&self, name: &str) -> Result<&str, Failure> {
        let found = self.key.iter().find(|key| *key == name);
        found.map(String::as_str).ok_or_else(|| {
            Failure::new(
                ErrorCode::BadRequest,
                format!("`where` names {name:?}, which is no column of the key"),
                format!("the key is ({})", self.key.join(", ")),
            )
        })
    }

    fn bad_column(&self, error: String, columns: &[Column]) -> Failure {
        let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
        let hint = format!("{}.{} has {}", self.schema, self.table, names.join(", "));
        Failure::new(ErrorCode::BadRequest, error, hint)
    }
}

/// The bounds as PostgreSQL would print them.
fn bounds(range: &Range) -> Result<(Option<String>, Option<String>), Failure> {
    Ok((bound(range.from.as_ref())?, bound(range.to.as_ref())?))
}

fn bound(value: Option<&Value>) -> Result<Option<String>, Failure> {
    let text = match value {
        None => return Ok(None),
        Some(Value::Bool(value)) => value.to_string(),
        Some(Value::Int(value)) => value.to_string(),
        Some(Value::Float(value)) if value.is_finite() => value.to_string(),
        Some(Value::Float(value)) if value.is_nan() => "NaN".to_owned(),
        Some(Value::Float(value)) if *value > 0.0 => "Infinity".to_owned(),
        Some(Value::Float(_)) => "-Infinity".to_owned(),
        Some(Value::Text(text)) => text.clone(),
        Some(Value::Bytes(bytes)) => {
            use std::fmt::Write as _;
            bytes.iter().fold("\\x".to_owned(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            })
        }
        Some(Value::Null) => String::from("\0"),
    };
    if text.contains('\0') {
        return Err(Failure::new(
            ErrorCode::BadRequest,
            "a bound of `where` is null or holds a NUL byte",
            "leave a bound out to keep that end open",
        ));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            oid: 1,
            schema: "public".into(),
            table: "us\"ers".into(),
            is_partitioned: false,
            columns: ["id", "na me"]
                .map(|name| Column {
                    name: name.into(),
                    type_oid: 25,
                })
                .into(),
            key: vec!["id".into()],
            row_filters: Vec::new(),
        }
    }

    #[test]
    fn names_are_quoted() {
        let target = target();

        assert_eq!(
            target.copy(&target.columns, &[]),
            r#"COPY "public"."us""ers" ("id", "na me") TO STDOUT"#
        );
    }

    #[test]
    fn a_condition_or_a_partition_root_needs_a_query() {
        let mut target = target();
        let columns = target.columns[..1].to_vec();

        assert_eq!(
            target.copy(&columns, &["(id > 3)".into()]),
            r#"COPY (SELECT "id" FROM ONLY "public"."us""ers" WHERE (id > 3)) TO STDOUT"#
        );
        target.is_partitioned = true;
        assert_eq!(
            target.copy(&columns, &[]),
            r#"COPY (SELECT "id" FROM "public"."us""ers") TO STDOUT"#
        );
    }

    #[test]
    fn one_publication_without_a_filter_opens_the_table() {
        let entry = |filter: Option<&str>| Published {
            attnames: None,
            rowfilter: filter.map(str::to_owned),
        };

        assert_eq!(
            row_filters(vec![entry(Some("a")), entry(Some("b"))]),
            ["a", "b"]
        );
        assert!(row_filters(vec![entry(Some("a")), entry(None)]).is_empty());
    }

    #[test]
    fn columns_and_ranges_must_be_of_the_table() {
        let with = |columns: &[&str], key: Option<&str>| Options {
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            range: key.map(|column| Range {
                column: column.to_owned(),
                from: Some(Value::Int(1)),
                to: None,
            }),
            ..Options::default()
        };

        assert_eq!(target().check(&with(&["na me", "id"], Some("id"))), Ok(()));
        for options in [
            with(&["id; DROP TABLE users"], None),
            with(&["id", "id"], None),
            with(&[], Some("na me")),
        ] {
            assert_eq!(
                target().check(&options).unwrap_err().code,
                ErrorCode::BadRequest
            );
        }
    }
}
