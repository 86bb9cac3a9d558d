//! What a new version of a schema means for the rows that are here.
//!
//! In: the version the table has, the history of its schema, the version that came. Out: columns to
//! add, drop and rename, or the word that the rows must be read anew.
//! Invariant: a table that follows the steps equals one made from the new version, or the answer is
//! to re-seed. Columns are told apart by `attnum`, which PostgreSQL never gives out twice, so a rename
//! is never taken for a drop and an add.

use wire::schema::{Column, Generated, Schema};

/// One `ALTER TABLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Drop(String),
    /// Renames happen at once: two columns may swap their names.
    Rename(Vec<(String, String)>),
    /// Old rows have NULL there.
    Add(Column),
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// The steps, and the schema that the table then has.
    Alter(Vec<Step>, Box<Schema>),
    /// Old rows changed and no event says how.
    Reseed(String),
}

/// `have` is what the table has: its schema with the published columns alone. `history` is what the
/// bucket still knows, in any order.
pub fn plan(have: &Schema, history: &[Schema], version: u32) -> Plan {
    let at = |version: u32| history.iter().find(|schema| schema.version == version);
    let mut have = have.clone();
    let mut steps = Vec::new();
    let Some(mut from) = at(have.version) else {
        return Plan::Reseed(format!(
            "version {} left the schema's history",
            have.version
        ));
    };
    // Each version in turn: a default that came and went has still filled the old rows.
    while from.version < version {
        let Some(to) = at(from.version + 1) else {
            return Plan::Reseed(format!(
                "version {} left the schema's history",
                from.version + 1
            ));
        };
        // It may have changed rows that no event names, such as those with a label that was renamed.
        if from.version < to.seed_version {
            return Plan::Reseed(format!("rows changed with version {}", to.seed_version));
        }
        match step(&have, from, to) {
            Ok((more, schema)) => {
                steps.extend(more);
                have = schema;
            }
            Err(reason) => return Plan::Reseed(reason),
        }
        from = to;
    }
    Plan::Alter(steps, Box::new(have))
}

/// From one version to the next.
fn step(have: &Schema, from: &Schema, to: &Schema) -> Result<(Vec<Step>, Schema), String> {
    let mut steps = Vec::new();
    let mut renames = Vec::new();
    let mut columns = Vec::new();
    for column in &have.columns {
        match by_position(to, column.position) {
            None => steps.push(Step::Drop(column.name.clone())),
            Some(new) if new.data_type != column.data_type => {
                return Err(format!(
                    "column {} is {} now, it was {}",
                    new.name, new.data_type, column.data_type
                ));
            }
            Some(new) => {
                if new.name != column.name {
                    renames.push((column.name.clone(), new.name.clone()));
                }
                columns.push(new.clone());
            }
        }
    }
    if !renames.is_empty() {
        steps.push(Step::Rename(renames));
    }
    for column in &to.columns {
        // pgoutput leaves generated columns out.
        let is_new = by_position(from, column.position).is_none() && !is_computed(column);
        if is_new {
            if column.has_default || column.column_default.is_some() {
                return Err(format!("column {} was added with a default", column.name));
            }
            steps.push(Step::Add(column.clone()));
            columns.push(column.clone());
        }
    }
    let mut schema = to.clone();
    schema.columns = columns;
    let names: Vec<String> = schema
        .columns
        .iter()
        .map(|column| column.name.clone())
        .collect();
    let schema = crate::shape::published(&schema, &names);
    // By `attnum`: a renamed key is the same key.
    if identity(&schema) != identity(have) {
        return Err("its key is another one".to_owned());
    }
    Ok((steps, schema))
}

fn by_position(schema: &Schema, position: u32) -> Option<&Column> {
    schema
        .columns
        .iter()
        .find(|column| column.position == position)
}

fn is_computed(column: &Column) -> bool {
    match column.generated {
        Generated::Stored | Generated::Virtual => true,
        Generated::Never | Generated::IdentityAlways | Generated::IdentityByDefault => false,
    }
}

/// The two things that the local table's constraints are made of.
fn identity(schema: &Schema) -> (Vec<u32>, Option<Vec<u32>>) {
    let positions = |names: &[String]| {
        let position = |name: &String| {
            let found = schema.columns.iter().find(|column| column.name == *name);
            found.map(|column| column.position)
        };
        names.iter().filter_map(position).collect::<Vec<u32>>()
    };
    let by_index = schema.replica_identity == wire::schema::ReplicaIdentity::Index;
    (
        positions(&schema.primary_key),
        by_index.then(|| positions(&schema.identity_columns)),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::schema;

    fn names(schema: &Schema) -> Vec<&str> {
        schema
            .columns
            .iter()
            .map(|column| column.name.as_str())
            .collect()
    }

    #[test]
    fn two_columns_may_swap_their_names() {
        let old = schema(1, &[(1, "a", "integer"), (2, "b", "integer")], &["a"]);
        let new = schema(2, &[(1, "b", "integer"), (2, "a", "integer")], &["b"]);

        let Plan::Alter(steps, then) = plan(&old, &[old.clone(), new], 2) else {
            panic!("a rename needs no new rows");
        };

        let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        assert_eq!(steps, [Step::Rename(vec![pair("a", "b"), pair("b", "a")])]);
        assert_eq!(names(&then), ["b", "a"]);
    }

    #[test]
    fn a_column_dropped_and_added_under_its_name_is_another_one() {
        let old = schema(1, &[(1, "id", "integer"), (2, "b", "text")], &["id"]);
        let new = schema(2, &[(1, "id", "integer"), (3, "b", "text")], &["id"]);

        let Plan::Alter(steps, _) = plan(&old, &[old.clone(), new.clone()], 2) else {
            panic!("an added column of NULLs needs no new rows");
        };

        assert_eq!(
            steps,
            [
                Step::Drop("b".to_owned()),
                Step::Add(new.columns[1].clone())
            ]
        );
    }

    #[test]
    fn what_changed_old_rows_silently_means_new_rows() {
        let old = schema(1, &[(1, "id", "integer"), (2, "b", "text")], &["id"]);
        let retyped = schema(2, &[(1, "id", "bigint"), (2, "b", "text")], &["id"]);
        let rekeyed = schema(2, &[(1, "id", "integer"), (2, "b", "text")], &["b"]);
        let mut filled = schema(
            2,
            &[(1, "id", "integer"), (2, "b", "text"), (3, "c", "text")],
            &["id"],
        );
        filled.columns[2].column_default = Some("'x'::text".to_owned());

        for new in [retyped, rekeyed, filled] {
            assert!(matches!(
                plan(&old, &[old.clone(), new], 2),
                Plan::Reseed(_)
            ));
        }
    }

    #[test]
    fn a_default_that_came_and_went_still_filled_the_old_rows() {
        let v1 = schema(1, &[(1, "id", "integer")], &["id"]);
        let mut v2 = schema(2, &[(1, "id", "integer"), (2, "b", "text")], &["id"]);
        v2.columns[1].column_default = Some("'x'::text".to_owned());
        let v3 = schema(3, &[(1, "id", "integer"), (2, "b", "text")], &["id"]);

        assert!(matches!(
            plan(&v1, &[v1.clone(), v2, v3], 3),
            Plan::Reseed(_)
        ));
    }

    #[test]
    fn rows_that_changed_with_a_version_are_seeded_though_nobody_heard_of_it() {
        let columns = [(1, "id", "integer"), (2, "mood", "mood")];
        let v1 = schema(1, &columns, &["id"]);
        let mut renamed_label = schema(2, &columns, &["id"]);
        renamed_label.seed_version = 2;

        assert!(matches!(
            plan(&v1, &[v1.clone(), renamed_label], 2),
            Plan::Reseed(_)
        ));
    }

    #[test]
    fn a_hole_in_the_history_means_new_rows() {
        let v1 = schema(1, &[(1, "id", "integer")], &["id"]);
        let v3 = schema(3, &[(1, "id", "integer")], &["id"]);

        assert!(matches!(plan(&v1, &[v1.clone(), v3], 3), Plan::Reseed(_)));
    }

    #[test]
    fn a_column_that_is_not_published_stays_away() {
        let whole = schema(1, &[(1, "id", "integer"), (2, "secret", "text")], &["id"]);
        let have = crate::shape::published(&whole, &["id".to_owned()]);
        let new = schema(
            2,
            &[
                (1, "id", "integer"),
                (2, "hidden", "integer"),
                (3, "c", "text"),
            ],
            &["id"],
        );

        let Plan::Alter(steps, then) = plan(&have, &[whole, new.clone()], 2) else {
            panic!("nothing here changed but one new column");
        };

        assert_eq!(steps, [Step::Add(new.columns[2].clone())]);
        assert_eq!(names(&then), ["id", "c"]);
    }

    proptest! {
        #[test]
        fn following_the_steps_gives_the_new_columns(
            versions in prop::collection::vec(prop::collection::btree_map(2_u32..7, "[a-d]", 0..5), 1..6)
        ) {
            let history: Vec<Schema> = (1..).zip(&versions).map(|(version, columns)| {
                let mut rows = vec![(1, "id", "integer")];
                let mut taken = std::collections::HashSet::new();
                rows.extend(columns.iter()
                    .filter(|(_, name)| taken.insert((*name).clone()))
                    .map(|(position, name)| (*position, name.as_str(), "text")));
                schema(version, &rows, &["id"])
            }).collect();
            let last = history.last().unwrap();

            let Plan::Alter(steps, then) = plan(&history[0], &history, last.version) else {
                panic!("no step changes old rows");
            };
            let mut have: Vec<String> = names(&history[0]).into_iter().map(str::to_owned).collect();
            for step in steps {
                match step {
                    Step::Drop(name) => have.retain(|column| *column != name),
                    Step::Rename(pairs) => have.iter_mut().for_each(|column| {
                        if let Some((_, to)) = pairs.iter().find(|(from, _)| from == column) {
                            column.clone_from(to);
                        }
                    }),
                    Step::Add(column) => have.push(column.name),
                }
            }

            let sorted = |mut names: Vec<String>| { names.sort(); names };
            let of = |schema: &Schema| schema.columns.iter().map(|column| column.name.clone()).collect();
            prop_assert_eq!(&have, &of(&then));
            prop_assert_eq!(sorted(have), sorted(of(last)));
        }
    }
}
