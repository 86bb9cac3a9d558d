//! What differs between two shapes of a table, and whether old rows changed with it.
//!
//! In: the shape known, the shape found. Out: a reason for people, and whether copies must be seeded anew.
//! Invariant: shapes that differ in nothing but when they were read are no change.

use wire::schema::{Column, Generated, Schema};

use super::shape::Described;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// `column age added; column nam renamed to name`.
    pub reason: String,
    /// Old rows changed and no event says so.
    pub resnapshot: bool,
}

/// None when they are the same shape.
pub fn compare(old: &Schema, new: &Schema) -> Option<Change> {
    if is_another(old, new) {
        return Some(Change {
            reason: "another table under this name".to_owned(),
            resnapshot: true,
        });
    }
    let mut reasons = Vec::new();
    let mut resnapshot = false;
    for column in &new.columns {
        match old
            .columns
            .iter()
            .find(|known| known.position == column.position)
        {
            None => {
                reasons.push(format!("column {} added", column.name));
                // PostgreSQL: the rows that are there get the default, and no row event says so.
                resnapshot |= column.column_default.is_some()
                    || !matches!(column.generated, Generated::Never | Generated::Virtual)
                    // Rows of the one and of the other look the same: nobody can tell them apart.
                    || old.columns.iter().any(|known| known.name == column.name);
            }
            Some(known) => resnapshot |= altered(known, column, &mut reasons),
        }
    }
    for column in &old.columns {
        if !new
            .columns
            .iter()
            .any(|kept| kept.position == column.position)
        {
            reasons.push(format!("column {} dropped", column.name));
        }
    }
    if old.primary_key != new.primary_key
        || old.replica_identity != new.replica_identity
        || old.identity_columns != new.identity_columns
    {
        reasons.push("key or replica identity changed".to_owned());
    }
    if old.foreign_keys != new.foreign_keys {
        reasons.push("foreign keys changed".to_owned());
    }
    if old.privileges != new.privileges {
        reasons.push("privileges changed".to_owned());
    }
    if old.row_security != new.row_security {
        reasons.push("row-level security switched".to_owned());
    }
    (!reasons.is_empty()).then(|| Change {
        reason: reasons.join("; "),
        resnapshot,
    })
}

/// PostgreSQL never gives an OID out twice while the table lives. 0 is of a schema written before there
/// was one in it.
fn is_another(old: &Schema, new: &Schema) -> bool {
    old.relation_id != 0 && new.relation_id != 0 && old.relation_id != new.relation_id
}

/// Columns of the new shape that the old one lacks, by `attnum`.
pub fn added<'a>(old: &'a Schema, new: &'a Schema) -> impl Iterator<Item = u32> + 'a {
    let positions = new.columns.iter().map(|column| column.position);
    positions.filter(|position| old.columns.iter().all(|known| known.position != *position))
}

/// Whether rows of the two have the same columns.
pub fn same_columns(old: &Schema, new: &Schema) -> bool {
    let is_same = |(old, new): (&Column, &Column)| {
        (old.position, &old.name, old.type_oid, &old.data_type)
            == (new.position, &new.name, new.type_oid, &new.data_type)
    };
    !is_another(old, new)
        && old.columns.len() == new.columns.len()
        && old.columns.iter().zip(&new.columns).all(is_same)
}

/// Says what is different; true when old values have changed.
fn altered(old: &Column, new: &Column, reasons: &mut Vec<String>) -> bool {
    let name = &new.name;
    if old.name != *name {
        reasons.push(format!("column {} renamed to {name}", old.name));
    }
    let mut rewritten = false;
    if old.type_oid != new.type_oid || old.data_type != new.data_type {
        let (was, is) = (&old.data_type, &new.data_type);
        reasons.push(format!("column {name} changed from {was} to {is}"));
        rewritten |= !keeps_text(was, is);
    }
    if old.enum_labels != new.enum_labels {
        reasons.push(format!("labels of column {name} changed"));
        // PostgreSQL: a label cannot be dropped, so one that is missing has another name now.
        rewritten |= !old
            .enum_labels
            .iter()
            .all(|label| new.enum_labels.contains(label));
    }
    if old.is_nullable != new.is_nullable {
        reasons.push(format!("column {name} changed its NOT NULL"));
    }
    if old.column_default != new.column_default
        || old.generated != new.generated
        || old.has_default != new.has_default
    {
        reasons.push(format!("column {name} changed its default"));
    }
    if old.privileges != new.privileges {
        reasons.push(format!("privileges on column {name} changed"));
    }
    rewritten
}

/// Changes of type that leave every value's text as it was. The list is short on purpose: to seed a copy
/// anew without need costs time, not to seed it costs rows.
fn keeps_text(old: &str, new: &str) -> bool {
    let length = |name: &str| -> Option<u32> {
        let digits = name.strip_prefix("character varying(")?.strip_suffix(')')?;
        digits.parse().ok()
    };
    let is_open = |name: &str| name == "text" || name == "character varying";
    match (length(old), length(new)) {
        (Some(old), Some(new)) => old <= new,
        (Some(_), None) => is_open(new),
        (None, _) => is_open(old) && is_open(new),
    }
}

/// Whether the rows of a Relation message have this shape. `published` are the columns the publication
/// names, where it does; else those that are not generated.
pub fn matches(schema: &Schema, published: Option<&[String]>, relation: &[Described]) -> bool {
    let mut expected = schema.columns.iter().filter(|column| match published {
        Some(names) => names.contains(&column.name),
        None => !matches!(column.generated, Generated::Stored | Generated::Virtual),
    });
    let mut found = relation.iter();
    loop {
        match (expected.next(), found.next()) {
            (None, None) => return true,
            (Some(column), Some(described)) if described.is(column) => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::Position;
    use wire::schema::{Privileges, ReplicaIdentity};

    use super::*;

    fn column(position: u32, name: &str, data_type: &str) -> Column {
        Column {
            name: name.into(),
            position,
            data_type: data_type.into(),
            is_nullable: true,
            column_default: None,
            type_oid: data_type.len() as u32,
            generated: Generated::Never,
            has_default: false,
            enum_labels: Vec::new(),
            privileges: Privileges::default(),
        }
    }

    fn schema(columns: &[(u32, &str, &str)]) -> Schema {
        Schema {
            table: "t".into(),
            schema: "public.t".into(),
            timestamp: 0,
            columns: columns
                .iter()
                .map(|&(position, name, data_type)| column(position, name, data_type))
                .collect(),
            version: 1,
            valid_from: Position::START,
            primary_key: Vec::new(),
            replica_identity: ReplicaIdentity::Default,
            identity_columns: Vec::new(),
            foreign_keys: Vec::new(),
            privileges: Privileges::default(),
            row_security: false,
            relation_id: 0,
            seed_version: 0,
            bridges: Vec::new(),
        }
    }

    #[test]
    fn the_time_of_reading_is_no_change() {
        let old = schema(&[(1, "id", "integer")]);
        let new = Schema {
            timestamp: 9,
            version: 4,
            ..old.clone()
        };

        assert_eq!(compare(&old, &new), None);
    }

    #[test]
    fn a_new_column_changes_old_rows_only_with_a_default() {
        let old = schema(&[(1, "id", "integer")]);
        let mut new = schema(&[(1, "id", "integer"), (2, "age", "integer")]);
        assert_eq!(
            compare(&old, &new),
            Some(Change {
                reason: "column age added".into(),
                resnapshot: false
            })
        );

        new.columns[1].column_default = Some("5".into());

        assert!(compare(&old, &new).unwrap().resnapshot);
    }

    #[test]
    fn a_rename_is_told_from_a_drop_and_an_add() {
        let old = schema(&[(1, "id", "integer"), (2, "nam", "text")]);

        let renamed = compare(&old, &schema(&[(1, "id", "integer"), (2, "name", "text")]));
        let replaced = compare(&old, &schema(&[(1, "id", "integer"), (3, "name", "text")]));

        assert_eq!(renamed.unwrap().reason, "column nam renamed to name");
        assert_eq!(
            replaced.unwrap().reason,
            "column name added; column nam dropped"
        );
    }

    #[test]
    fn what_nobody_can_tell_apart_is_seeded_anew() {
        let old = schema(&[(1, "id", "integer"), (2, "x", "text")]);
        let replaced = schema(&[(1, "id", "integer"), (3, "x", "text")]);
        let mut table = old.clone();
        table.relation_id = 7;
        let another = Schema {
            relation_id: 8,
            ..table.clone()
        };

        assert!(compare(&old, &replaced).unwrap().resnapshot);
        assert!(compare(&table, &another).unwrap().resnapshot);
        assert_eq!(compare(&old, &table), None, "the old one is of before");
    }

    #[test]
    fn a_label_added_changes_no_row_and_a_label_renamed_does() {
        let with = |labels: &[&str]| {
            let mut schema = schema(&[(1, "mood", "mood")]);
            schema.columns[0].enum_labels = labels.iter().map(|label| (*label).into()).collect();
            schema
        };
        let resnapshot = |labels| {
            compare(&with(&["sad", "ok"]), &with(labels))
                .unwrap()
                .resnapshot
        };

        assert!(!resnapshot(&["sad", "ok", "great"]));
        assert!(resnapshot(&["sad", "fine"]));
    }

    #[test]
    fn only_a_wider_text_keeps_its_values() {
        let resnapshot = |old: &str, new: &str| {
            compare(&schema(&[(1, "a", old)]), &schema(&[(1, "a", new)]))
                .unwrap()
                .resnapshot
        };

        assert!(!resnapshot(
            "character varying(10)",
            "character varying(20)"
        ));
        assert!(!resnapshot("character varying(10)", "text"));
        assert!(resnapshot("character varying(20)", "character varying(10)"));
        assert!(resnapshot("text", "character varying(10)"));
        assert!(resnapshot("integer", "bigint"));
    }

    #[test]
    fn a_relation_has_the_shape_of_the_published_columns() {
        let mut schema = schema(&[
            (1, "id", "integer"),
            (2, "sum", "integer"),
            (3, "x", "text"),
        ]);
        schema.columns[1].generated = Generated::Stored;
        let described = |name: &str, data_type: &str| Described {
            name: name.into(),
            type_oid: data_type.len() as u32,
            data_type: data_type.into(),
        };
        let relation = [described("id", "integer"), described("x", "text")];

        assert!(matches(&schema, None, &relation));
        assert!(matches(&schema, Some(&["id".into()]), &relation[..1]));
        assert!(!matches(&schema, None, &relation[..1]));
        assert!(!matches(
            &schema,
            None,
            &[described("id", "bigint"), described("x", "text")]
        ));
    }
}
