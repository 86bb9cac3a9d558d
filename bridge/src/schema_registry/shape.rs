//! Reads tables' shapes from PostgreSQL's catalogue.
//!
//! In: publications, or the columns of a Relation message. Out: `wire::schema::Schema` without a version.
//! Invariant: all shapes of one look are of one moment.

use std::collections::HashMap;

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use wire::Position;
use wire::names::{ROLE_APP_READER, ROLE_APP_WRITER};
use wire::schema::{Column, Generated, Privileges, ReplicaIdentity, Schema};

use crate::catalog;
use crate::pgoutput::{self, Relation};

/// A published table.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    pub oid: u32,
    pub namespace: String,
    /// Version, time and `valid_from` are not set.
    pub schema: Schema,
    /// The columns that the publication names; None where it names none, or all.
    pub published: Option<Vec<String>>,
    /// `attnum` of columns whose old rows got a constant when they were added.
    pub filled: Vec<i16>,
    /// Another one when the table was rewritten, truncated or vacuumed in full.
    pub filenode: u32,
}

/// A column of a Relation message, its type spelled out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub name: String,
    pub type_oid: u32,
    pub data_type: String,
}

/// The tables of publications $3.
const OF_PUBLICATIONS: &str = "\
WITH published AS ( \
  SELECT pt.schemaname, pt.tablename, min((to_jsonb(pt)->'attnames')::text) AS attnames \
  FROM pg_publication_tables pt WHERE pt.pubname = ANY($3) GROUP BY 1, 2) ";

/// Table $3 as publications $4 have it. Waits for no lock, as listing the tables does from PostgreSQL 16 on.
const OF_TABLE: &str = "\
WITH published AS ( \
  SELECT n.nspname AS schemaname, c.relname AS tablename, \
    (SELECT jsonb_agg(a.attname ORDER BY a.attnum)::text \
      FROM pg_publication_rel pr JOIN pg_publication pub ON pub.oid = pr.prpubid \
      CROSS JOIN jsonb_array_elements_text(nullif(to_jsonb(pr)->'prattrs', 'null')) AS k \
      JOIN pg_attribute a ON a.attrelid = pr.prrelid AND a.attnum = k::int2 \
      WHERE pr.prrelid = c.oid AND pub.pubname = ANY($4)) AS attnames \
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $3) ";

/// One JSON object per table, with the keys of `wire::schema::Schema`.
/// PostgreSQL: given the table, `pg_get_expr` waits for its lock; it needs it for the names of columns, and
/// a default has none.
const SHAPES: &str = "\
SELECT c.oid, n.nspname::text, p.attnames, json_build_object( \
  'relation_id', c.oid::int8, \
  'table', c.relname, 'schema', n.nspname || '.' || c.relname, 'timestamp', 0, \
  'replica_identity', CASE c.relreplident WHEN 'f' THEN 'full' WHEN 'i' THEN 'index' WHEN 'n' THEN 'nothing' ELSE 'default' END, \
  'primary_key', (SELECT coalesce(json_agg(a.attname ORDER BY k.place), '[]') \
    FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k(attnum, place) \
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum \
    WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts), \
  'identity_columns', CASE WHEN c.relreplident = 'f' THEN \
      (SELECT coalesce(json_agg(a.attname ORDER BY a.attnum), '[]') FROM pg_attribute a \
       WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) \
    ELSE (SELECT coalesce(json_agg(a.attname ORDER BY k.place), '[]') \
      FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k(attnum, place) \
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum \
      WHERE i.indrelid = c.oid AND k.place <= i.indnkeyatts \
        AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident)) END, \
  'foreign_keys', (SELECT coalesce(json_agg(json_build_object( \
      'name', o.conname, 'foreign_schema', fn.nspname, 'foreign_table', fc.relname, \
      'columns', (SELECT json_agg(a.attname ORDER BY k.place) FROM unnest(o.conkey) WITH ORDINALITY AS k(attnum, place) \
        JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = k.attnum), \
      'foreign_columns', (SELECT json_agg(a.attname ORDER BY k.place) FROM unnest(o.confkey) WITH ORDINALITY AS k(attnum, place) \
        JOIN pg_attribute a ON a.attrelid = o.confrelid AND a.attnum = k.attnum)) ORDER BY o.conname), '[]') \
    FROM pg_constraint o JOIN pg_class fc ON fc.oid = o.confrelid JOIN pg_namespace fn ON fn.oid = fc.relnamespace \
    WHERE o.conrelid = c.oid AND o.contype = 'f' AND o.conparentid = 0), \
  'privileges', json_build_object( \
    'reader', array_remove(ARRAY[CASE WHEN has_table_privilege(r.reader, c.oid, 'SELECT') THEN 'select' END], NULL), \
    'writer', array_remove(ARRAY[ \
      CASE WHEN has_table_privilege(r.writer, c.oid, 'SELECT') THEN 'select' END, \
      CASE WHEN has_table_privilege(r.writer, c.oid, 'INSERT') THEN 'insert' END, \
      CASE WHEN has_table_privilege(r.writer, c.oid, 'UPDATE') THEN 'update' END, \
      CASE WHEN has_table_privilege(r.writer, c.oid, 'DELETE') THEN 'delete' END], NULL)), \
  'row_security', c.relrowsecurity, \
  'columns', (SELECT coalesce(json_agg(json_build_object( \
      'name', a.attname, 'position', a.attnum, 'data_type', format_type(a.atttypid, a.atttypmod), \
      'is_nullable', NOT a.attnotnull, \
      'column_default', CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, 0) END, \
      'type_oid', a.atttypid::int8, \
      'generated', CASE WHEN a.attgenerated = 's' THEN 'stored' WHEN a.attgenerated = 'v' THEN 'virtual' \
        WHEN a.attidentity = 'a' THEN 'identity_always' WHEN a.attidentity = 'd' THEN 'identity_by_default' ELSE 'never' END, \
      'has_default', a.atthasdef OR a.attidentity <> '', \
      'enum_labels', (SELECT coalesce(json_agg(e.enumlabel ORDER BY e.enumsortorder), '[]') FROM pg_enum e WHERE e.enumtypid = a.atttypid), \
      'privileges', json_build_object( \
        'reader', array_remove(ARRAY[CASE WHEN has_column_privilege(r.reader, c.oid, a.attnum, 'SELECT') THEN 'select' END], NULL), \
        'writer', array_remove(ARRAY[ \
          CASE WHEN has_column_privilege(r.writer, c.oid, a.attnum, 'SELECT') THEN 'select' END, \
          CASE WHEN has_column_privilege(r.writer, c.oid, a.attnum, 'INSERT') THEN 'insert' END, \
          CASE WHEN has_column_privilege(r.writer, c.oid, a.attnum, 'UPDATE') THEN 'update' END], NULL)) \
      ) ORDER BY a.attnum), '[]') \
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) \
  )::text, \
  ARRAY(SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = c.oid AND a.atthasmissing AND NOT a.attisdropped \
    ORDER BY a.attnum), c.relfilenode \
FROM published p JOIN pg_namespace n ON n.nspname = p.schemaname \
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename \
CROSS JOIN (SELECT to_regrole($1)::oid AS reader, to_regrole($2)::oid AS writer) AS r \
ORDER BY 2, c.relname";

/// The shapes of all tables of the publications.
pub async fn published(
    client: &Client,
    publications: &[String],
) -> Result<Vec<Shape>, catalog::Error> {
    read(client, OF_PUBLICATIONS, &[&publications]).await
}

/// The shape of one table; None when it is gone.
pub async fn of_table(
    client: &Client,
    oid: u32,
    publications: &[String],
) -> Result<Option<Shape>, catalog::Error> {
    let mut shapes = read(client, OF_TABLE, &[&oid, &publications]).await?;
    Ok(shapes.pop())
}

async fn read(
    client: &Client,
    published: &str,
    of: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Shape>, catalog::Error> {
    let sql = format!("{published}{SHAPES}");
    let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&ROLE_APP_READER, &ROLE_APP_WRITER];
    parameters.extend(of);
    let rows = client.query(&sql, &parameters).await?;
    let mut shapes = Vec::with_capacity(rows.len());
    for row in &rows {
        let json: &str = row.get(3);
        match serde_json::from_str::<Schema>(json) {
            Ok(schema) => shapes.push(Shape {
                oid: row.get(0),
                namespace: row.get(1),
                published: row
                    .get::<_, Option<&str>>(2)
                    .and_then(|names| serde_json::from_str(names).ok())
                    .flatten()
                    .filter(|names: &Vec<String>| !is_usual(names, &schema)),
                schema,
                filled: row.get(4),
                filenode: row.get(5),
            }),
            // A server newer than this code has a word of its own in its catalogue.
            Err(error) => tracing::error!(%error, "a table's shape is not understood"),
        }
    }
    Ok(shapes)
}

/// What is published of a table when the publication names no columns.
fn is_usual(names: &[String], schema: &Schema) -> bool {
    let is_stored =
        |column: &&Column| !matches!(column.generated, Generated::Stored | Generated::Virtual);
    let usual = schema.columns.iter().filter(is_stored);
    usual.map(|column| &column.name).eq(names)
}

/// Where WAL ends: DDL that a look has not seen commits behind it.
pub async fn wal_end(client: &Client) -> Result<Position, catalog::Error> {
    let sql = "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
               ELSE pg_current_wal_insert_lsn() END)::text";
    Ok(position(client.query_one(sql, &[]).await?.get(0)))
}

/// What the slot has confirmed: DDL from while the bridge was away commits behind it, as do all rows
/// that are still to come.
pub async fn confirmed(client: &Client, slot: &str) -> Result<Position, catalog::Error> {
    let sql =
        "SELECT max(confirmed_flush_lsn)::text FROM pg_replication_slots WHERE slot_name = $1";
    Ok(position(client.query_one(sql, &[&slot]).await?.get(0)))
}

fn position(lsn: Option<&str>) -> Position {
    let lsn = lsn.and_then(|lsn| lsn.parse().ok()).unwrap_or_default();
    Position::new(lsn, 0)
}

/// Spells out the types of a Relation message; a type that was dropped since is `???`.
pub async fn describe(
    client: &Client,
    relation: &Relation,
) -> Result<Vec<Described>, catalog::Error> {
    let type_oids: Vec<u32> = relation
        .columns
        .iter()
        .map(|column| column.type_oid)
        .collect();
    let modifiers: Vec<i32> = relation
        .columns
        .iter()
        .map(|column| column.type_modifier)
        .collect();
    let sql = "SELECT coalesce(format_type(t.oid, t.modifier), '???') \
               FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY AS t(oid, modifier, place) ORDER BY place";
    let rows = client.query(sql, &[&type_oids, &modifiers]).await?;
    let described = relation
        .columns
        .iter()
        .zip(&rows)
        .map(|(column, row)| Described {
            name: column.name.clone(),
            type_oid: column.type_oid,
            data_type: row.get(0),
        });
    Ok(described.collect())
}

impl Described {
    pub fn is(&self, column: &Column) -> bool {
        self.name == column.name
            && self.type_oid == column.type_oid
            && self.data_type == column.data_type
    }
}

/// Whether old rows come as the schema says.
pub fn has_identity(schema: &Schema, relation: &Relation) -> bool {
    let is_named = |name: &str| schema.identity_columns.iter().any(|column| column == name);
    identity(relation) == schema.replica_identity
        && relation
            .columns
            .iter()
            .all(|column| column.is_key == is_named(&column.name))
}

fn identity(relation: &Relation) -> ReplicaIdentity {
    match relation.replica_identity {
        pgoutput::ReplicaIdentity::Default => ReplicaIdentity::Default,
        pgoutput::ReplicaIdentity::Full => ReplicaIdentity::Full,
        pgoutput::ReplicaIdentity::Index => ReplicaIdentity::Index,
        pgoutput::ReplicaIdentity::Nothing => ReplicaIdentity::Nothing,
    }
}

/// The shape of rows whose table has another by now, as far as a Relation message tells it.
pub fn from_relation(relation: &Relation, described: Vec<Described>) -> Schema {
    let keys: HashMap<&str, bool> = relation
        .columns
        .iter()
        .map(|column| (column.name.as_ref(), column.is_key))
        .collect();
    let identity_columns = described
        .iter()
        .filter(|column| keys.get(column.name.as_str()).copied().unwrap_or(false))
        .map(|column| column.name.clone())
        .collect();
    let columns = described
        .into_iter()
        .enumerate()
        .map(|(index, column)| Column {
            name: column.name,
            position: index as u32 + 1,
            data_type: column.data_type,
            is_nullable: true,
            column_default: None,
            type_oid: column.type_oid,
            generated: Generated::Never,
            has_default: false,
            enum_labels: Vec::new(),
            privileges: Privileges::default(),
        });
    Schema {
        table: relation.name.clone(),
        schema: format!("{}.{}", relation.namespace, relation.name),
        timestamp: 0,
        columns: columns.collect(),
        version: 0,
        valid_from: Position::START,
        primary_key: Vec::new(),
        replica_identity: identity(relation),
        identity_columns,
        foreign_keys: Vec::new(),
        privileges: Privileges::default(),
        row_security: false,
        relation_id: relation.id,
        seed_version: 0,
        bridges: Vec::new(),
    }
}
