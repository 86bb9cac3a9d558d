//! Cuts a fetch into runs: neighbours that one statement can apply.
//!
//! In: commands in stream order. Out: ranges in the same order that cover them all.
//! Invariant: no row is touched twice within a run, and nothing overtakes anything, so applying the
//! runs one after another is applying the commands one after another.

use std::collections::HashSet;
use std::ops::Range;

use wire::command::WriteOp;

use crate::command::{Command, Key};
use crate::table::Table;

/// The ranges. Each is as long as it can be.
pub fn cut(commands: &[&Command], table: &Table) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut start = 0;
    let mut rows = HashSet::new();
    let mut operations = HashSet::new();
    for (index, command) in commands.iter().enumerate() {
        let fits = start < index
            && joins(commands[index - 1], command, table)
            && !rows.contains(&command.key)
            && !operations.contains(&command.operation_id);
        if !fits && start < index {
            runs.push(start..index);
            start = index;
            rows.clear();
            operations.clear();
        }
        rows.insert(&command.key);
        operations.insert(command.operation_id);
    }
    if start < commands.len() {
        runs.push(start..commands.len());
    }
    runs
}

/// The two make the same statement and can be told apart by their keys.
fn joins(previous: &Command, command: &Command, table: &Table) -> bool {
    let has_key = matches!(command.key, Key::Known(_)) && matches!(previous.key, Key::Known(_));
    has_key
        && previous.op == command.op
        && previous.claims == command.claims
        && command.key.is_comparable(table)
        && (command.op == WriteOp::Delete || previous.row.keys().eq(command.row.keys()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::command::Record;
    use crate::command::tests::table;
    use crate::table::Kind;

    fn command(number: u128, op: WriteOp, key: &str, columns: &[&str]) -> Command {
        Command {
            operation_id: Uuid::from_u128(number),
            op,
            key: Key::Known(vec![key.to_owned()]),
            row: columns
                .iter()
                .map(|name| ((*name).to_owned(), json!(1)))
                .collect(),
            claims: serde_json::Map::new(),
            record: Record::default(),
        }
    }

    fn cut(commands: &[Command], table: &Table) -> Vec<Range<usize>> {
        super::cut(&commands.iter().collect::<Vec<_>>(), table)
    }

    fn integers() -> Table {
        table(&[("id", "integer", 1, Kind::Integer)])
    }

    #[test]
    fn alike_neighbours_are_one_run() {
        let commands: Vec<_> = (0..4)
            .map(|n| command(n, WriteOp::Create, &n.to_string(), &["id", "name"]))
            .collect();

        let runs = cut(&commands, &integers());

        assert_eq!(runs.first(), Some(&(0..4)));
    }

    #[test]
    fn a_row_is_in_a_run_once() {
        let commands = [
            command(1, WriteOp::Update, "1", &["name"]),
            command(2, WriteOp::Update, "2", &["name"]),
            command(3, WriteOp::Update, "1", &["name"]),
        ];

        assert_eq!(cut(&commands, &integers()), [0..2, 2..3]);
    }

    #[test]
    fn a_repeated_operation_begins_a_run() {
        let commands = [
            command(1, WriteOp::Create, "1", &["id"]),
            command(1, WriteOp::Create, "2", &["id"]),
        ];

        assert_eq!(cut(&commands, &integers()), [0..1, 1..2]);
    }

    #[test]
    fn another_kind_of_write_or_other_columns_or_another_principal_begin_a_run() {
        let mut other = command(4, WriteOp::Update, "4", &["email"]);
        other.claims.insert("sub".to_owned(), json!("bob"));
        let commands = [
            command(1, WriteOp::Create, "1", &["name"]),
            command(2, WriteOp::Update, "2", &["name"]),
            command(3, WriteOp::Update, "3", &["email"]),
            other,
        ];

        assert_eq!(cut(&commands, &integers()), [0..1, 1..2, 2..3, 3..4]);
    }

    #[test]
    fn keys_that_cannot_be_compared_stay_alone() {
        let numeric = table(&[("id", "numeric", 1, Kind::Other)]);
        let commands = [
            command(1, WriteOp::Update, "1", &["name"]),
            command(2, WriteOp::Update, "1.0", &["name"]),
        ];

        assert_eq!(cut(&commands, &numeric), [0..1, 1..2]);
    }

    #[test]
    fn nothing_makes_no_runs() {
        assert!(cut(&[], &integers()).is_empty());
    }
}
