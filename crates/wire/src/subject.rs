//! Which subject a row change is published on.
//!
//! In: a pattern such as `cdc.{table}.{op}`, then schema and table. Out: the four subjects of the
//! table, rendered once per relation because they are needed once per event.
//! Invariant: in the default pattern no two tables share a subject; in any other, [`check`] finds
//! the two that do before the first event is published.
//!
//! [`check`]: SubjectPattern::check

use std::collections::HashMap;

use crate::names::PUBLIC;
use crate::operation::Operation;
use crate::token::escape_token;

/// How subjects are made. `{prefix}`, `{schema}`, `{table}` and `{op}` are replaced, the names
/// escaped by [`escape_token`].
///
/// The default is `{prefix}.{table}.{op}` in schema `public` and `{prefix}.{schema}.{table}.{op}`
/// elsewhere. Schema `users` with a table `insert` is safe next to `public.users`: the number of
/// tokens tells `cdc.users.insert` from `cdc.users.insert.insert`. So select a table with `*`
/// ([`SubjectPattern::filter`]): `cdc.users.>` also takes in every table of a schema `users`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectPattern {
    public: Template,
    other: Template,
    base: String,
}

/// The subjects of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subjects {
    /// Where its INSERTs go.
    pub insert: String,
    /// Where its UPDATEs go.
    pub update: String,
    /// Where its DELETEs go.
    pub delete: String,
    /// Where its TRUNCATEs go.
    pub truncate: String,
}

/// The pattern cannot make subjects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A `{...}` that is none of the four, or an unbalanced brace.
    #[error("{pattern:?}: only {{prefix}}, {{schema}}, {{table}} and {{op}} can be replaced")]
    Placeholder {
        /// What was given.
        pattern: String,
    },
    /// An empty token, a wildcard, a space or a control byte.
    #[error(
        "{pattern:?} makes no valid subject: tokens may not be empty or hold `*`, `>` or spaces"
    )]
    Token {
        /// What was given.
        pattern: String,
    },
    /// Events of all tables or operations would share a subject.
    #[error(
        "{pattern:?} must hold {{table}} once or more, and {{op}} exactly once, as a token of its own"
    )]
    Incomplete {
        /// What was given.
        pattern: String,
    },
    /// The first token decides which stream takes the messages.
    #[error(
        "{pattern:?} must begin with a fixed token that is not {token:?}; use --subject-prefix"
    )]
    Base {
        /// What was given.
        pattern: String,
        /// The first token it makes.
        token: String,
    },
}

/// Two tables would be published on one subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "tables {first} and {second} would share the subject {subject}; put {{schema}} and {{table}} \
     into --subject as tokens of their own"
)]
pub struct Collision {
    /// One of them, as `schema.table`.
    pub first: String,
    /// The other.
    pub second: String,
    /// Their common subject, with `*` for the operation.
    pub subject: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Schema,
    Table,
    Op,
}

/// What `--subject-prefix` replaces.
pub const DEFAULT_PREFIX: &str = "cdc";

/// First tokens that belong to other messages of ours or to the server.
const RESERVED: [&str; 6] = [
    "init",
    "schema",
    "snapshot",
    "users",
    "writes",
    "writes_dlq",
];

impl Default for SubjectPattern {
    fn default() -> Self {
        Self::with_prefix(DEFAULT_PREFIX).expect("the default prefix is a plain token")
    }
}

impl SubjectPattern {
    /// The default pattern with another leading part, of one token or several: `postgres`,
    /// `acme.cdc`.
    pub fn with_prefix(prefix: &str) -> Result<Self, PatternError> {
        let mut pattern = Self::parse("{prefix}.{table}.{op}", prefix)?;
        pattern.other = Self::parse("{prefix}.{schema}.{table}.{op}", prefix)?.other;
        Ok(pattern)
    }

    /// A pattern used for every table as it stands, whatever its schema.
    pub fn parse(pattern: &str, prefix: &str) -> Result<Self, PatternError> {
        let pattern = &pattern.replace("{prefix}", prefix);
        let template = Template::parse(pattern)?;
        template.check(pattern)?;
        let base = template.base();
        let first = base.split('.').next().unwrap_or_default();
        if first.is_empty() || first.starts_with(['$', '_']) || RESERVED.contains(&first) {
            return Err(PatternError::Base {
                pattern: pattern.clone(),
                token: first.to_owned(),
            });
        }
        Ok(Self {
            public: template.clone(),
            other: template,
            base,
        })
    }

    /// The four subjects of a table.
    pub fn subjects(&self, schema: &str, table: &str) -> Subjects {
        let render = |op: Operation| self.template(schema).render(schema, table, op.token());
        Subjects {
            insert: render(Operation::Insert),
            update: render(Operation::Update),
            delete: render(Operation::Delete),
            truncate: render(Operation::Truncate),
        }
    }

    /// The filter that matches the four subjects of a table and no others.
    pub fn filter(&self, schema: &str, table: &str) -> String {
        self.template(schema).render(schema, table, "*")
    }

    /// What the stream must take: everything below the tokens that are the same for every table,
    /// `cdc.>`.
    pub fn stream_subjects(&self) -> String {
        format!("{}.>", self.base)
    }

    /// Where a gap is announced: `cdc.gap`. Has fewer tokens than any event's subject.
    pub fn gap(&self) -> String {
        format!("{}.gap", self.base)
    }

    /// Fails with the first two different tables, given as (schema, table), that share a subject.
    pub fn check<'a>(
        &self,
        tables: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), Collision> {
        let mut owners = HashMap::new();
        for (schema, table) in tables {
            let subject = self.filter(schema, table);
            match owners.insert(subject.clone(), (schema, table)) {
                Some(first) if first != (schema, table) => {
                    return Err(Collision {
                        first: format!("{}.{}", first.0, first.1),
                        second: format!("{schema}.{table}"),
                        subject,
                    });
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    fn template(&self, schema: &str) -> &Template {
        if schema == PUBLIC {
            &self.public
        } else {
            &self.other
        }
    }
}

impl Subjects {
    /// The subject of one kind of change.
    pub fn of(&self, operation: Operation) -> &str {
        match operation {
            Operation::Insert => &self.insert,
            Operation::Update => &self.update,
            Operation::Delete => &self.delete,
            Operation::Truncate => &self.truncate,
        }
    }
}

impl Template {
    fn parse(pattern: &str) -> Result<Self, PatternError> {
        let unknown = || PatternError::Placeholder {
            pattern: pattern.to_owned(),
        };
        let mut parts = Vec::new();
        let mut rest = pattern;
        while let Some((literal, behind)) = rest.split_once('{') {
            let (name, behind) = behind.split_once('}').ok_or_else(unknown)?;
            parts.push(Part::Literal(literal.to_owned()));
            parts.push(match name {
                "schema" => Part::Schema,
                "table" => Part::Table,
                "op" => Part::Op,
                _ => return Err(unknown()),
            });
            rest = behind;
        }
        parts.push(Part::Literal(rest.to_owned()));

        let has_brace = |part: &Part| matches!(part, Part::Literal(text) if text.contains('}'));
        if parts.iter().any(has_brace) {
            return Err(unknown());
        }
        Ok(Self(parts))
    }

    fn check(&self, pattern: &str) -> Result<(), PatternError> {
        let sample = self.render("schema", "table", "op");
        let is_token = |token: &str| {
            !token.is_empty()
                && !token
                    .bytes()
                    .any(|byte| byte <= b' ' || matches!(byte, b'*' | b'>' | 0x7F))
        };
        if !sample.split('.').all(is_token) {
            return Err(PatternError::Token {
                pattern: pattern.to_owned(),
            });
        }

        let ops = self.0.iter().filter(|part| **part == Part::Op).count();
        let has_op_token = pattern.split('.').any(|token| token == "{op}");
        if ops != 1 || !has_op_token || !self.0.contains(&Part::Table) {
            return Err(PatternError::Incomplete {
                pattern: pattern.to_owned(),
            });
        }
        Ok(())
    }

    /// The leading whole tokens that no placeholder touches.
    fn base(&self) -> String {
        match self.0.first() {
            Some(Part::Literal(text)) => text
                .rsplit_once('.')
                .map_or(String::new(), |(base, _)| base.to_owned()),
            Some(Part::Schema | Part::Table | Part::Op) | None => String::new(),
        }
    }

    fn render(&self, schema: &str, table: &str, op: &str) -> String {
        let mut subject = String::new();
        for part in &self.0 {
            match part {
                Part::Literal(text) => subject.push_str(text),
                Part::Schema => subject.push_str(&escape_token(schema)),
                Part::Table => subject.push_str(&escape_token(table)),
                Part::Op => subject.push_str(op),
            }
        }
        subject
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_schema_is_named_outside_public_only() {
        let pattern = SubjectPattern::default();

        assert_eq!(
            pattern.subjects("public", "users").insert,
            "cdc.users.insert"
        );
        assert_eq!(
            pattern.subjects("sales", "users").truncate,
            "cdc.sales.users.truncate"
        );
        assert_eq!(pattern.filter("public", "my table"), "cdc.my%20table.*");
        assert_eq!(pattern.stream_subjects(), "cdc.>");
        assert_eq!(pattern.gap(), "cdc.gap");
    }

    #[test]
    fn the_prefix_may_have_several_tokens() {
        let pattern = SubjectPattern::with_prefix("acme.cdc").unwrap();

        assert_eq!(
            pattern.subjects("public", "users").update,
            "acme.cdc.users.update"
        );
        assert_eq!(pattern.stream_subjects(), "acme.cdc.>");
    }

    #[test]
    fn a_pattern_is_used_as_it_stands() {
        let pattern = SubjectPattern::parse("{prefix}.{schema}.{table}.{op}", "postgres").unwrap();

        assert_eq!(
            pattern.subjects("public", "users").delete,
            "postgres.public.users.delete"
        );
    }

    #[test]
    fn a_pattern_that_makes_no_subject_is_refused() {
        let parse = |pattern| SubjectPattern::parse(pattern, "cdc");

        for pattern in ["cdc.{tabel}.{op}", "cdc.{table.{op}", "cdc.{table}}.{op}"] {
            assert!(
                matches!(parse(pattern), Err(PatternError::Placeholder { .. })),
                "{pattern}"
            );
        }
        for pattern in [
            "cdc..{table}.{op}",
            "cdc.*.{table}.{op}",
            "cdc.{table}.{op}.",
            "c c.{table}.{op}",
        ] {
            assert!(
                matches!(parse(pattern), Err(PatternError::Token { .. })),
                "{pattern}"
            );
        }
        for pattern in [
            "cdc.{table}",
            "cdc.{op}",
            "cdc.{table}-{op}",
            "cdc.{table}.{op}.{op}",
        ] {
            assert!(
                matches!(parse(pattern), Err(PatternError::Incomplete { .. })),
                "{pattern}"
            );
        }
        for pattern in [
            "{table}.{op}",
            "x{table}.{op}",
            "init.{table}.{op}",
            "$JS.{table}.{op}",
        ] {
            assert!(
                matches!(parse(pattern), Err(PatternError::Base { .. })),
                "{pattern}"
            );
        }
    }

    #[test]
    fn two_tables_on_one_subject_are_named() {
        let pattern = SubjectPattern::parse("cdc.{table}.{op}", "cdc").unwrap();

        let collision = pattern
            .check([("public", "users"), ("sales", "users")])
            .unwrap_err();

        assert_eq!(collision.first, "public.users");
        assert_eq!(collision.second, "sales.users");
        assert_eq!(collision.subject, "cdc.users.*");
    }

    #[test]
    fn joined_names_that_meet_are_found() {
        let pattern = SubjectPattern::parse("cdc.{schema}_{table}.{op}", "cdc").unwrap();

        assert!(pattern.check([("a", "b_c"), ("a_b", "c")]).is_err());
        assert!(pattern.check([("a", "b"), ("a", "b")]).is_ok());
    }

    #[test]
    fn a_schema_named_like_a_table_is_safe() {
        let pattern = SubjectPattern::default();
        let tables = [
            ("public", "users"),
            ("users", "insert"),
            ("public", "users.insert"),
            ("public", "gap"),
        ];

        assert_eq!(pattern.check(tables), Ok(()));
    }

    proptest! {
        #[test]
        fn distinct_tables_have_distinct_subjects(
            a in names(), b in names(), op_a in 0..4_usize, op_b in 0..4_usize,
        ) {
            let pattern = SubjectPattern::default();
            let subject = |(schema, table): &(String, String), op: usize| {
                pattern.subjects(schema, table).of(Operation::ALL[op]).to_owned()
            };

            let is_same = a == b && op_a == op_b;
            prop_assert_eq!(subject(&a, op_a) == subject(&b, op_b), is_same);
            prop_assert_ne!(subject(&a, op_a), pattern.gap());
        }

        #[test]
        fn any_pattern_is_read_without_panic(pattern: String, prefix: String) {
            let _ = SubjectPattern::parse(&pattern, &prefix);
        }
    }

    /// Names that are likely to meet.
    fn names() -> impl Strategy<Value = (String, String)> {
        let name = || {
            prop::sample::select(vec![
                "public", "users", "insert", "a", "a.b", "b", "", "%", "*", ">", "%2E",
            ])
        };
        (name(), name()).prop_map(|(schema, table)| (schema.to_owned(), table.to_owned()))
    }
}
