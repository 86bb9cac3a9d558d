//! The `Nats-Msg-Id` of an event: `25cb3c8:1-users-insert`.
//!
//! In: position, table and operation. Out: the header value, or the position read back from it.
//! Invariant: unique per event, because the position is. (An id from the row's LSN would repeat under
//! COPY, and JetStream would drop the repeats.)

use std::io::Write as _;

use crate::lsn::Lsn;
use crate::operation::Operation;
use crate::position::{Position, parse_seq};

/// Appends the id to `out`: `{commit_lsn}:{seq}-{table}-{operation}`, the LSN as one lower-case hex
/// number with no slash. `table_token` is the table's name as [`crate::token::escape_token`] gives
/// it: a name may hold a line break, a header may not. Allocates only when `out` must grow.
pub fn write(out: &mut Vec<u8>, position: Position, table_token: &str, operation: Operation) {
    let Position { commit_lsn, seq } = position;
    write!(
        out,
        "{:x}:{seq}-{table_token}-{}",
        commit_lsn.0,
        operation.token()
    )
    .expect("a Vec takes every write");
}

/// The position in a message id, or None when it is not one of ours.
pub fn position(id: &str) -> Option<Position> {
    let (position, rest) = id.split_once('-')?;
    let (_table, operation) = rest.rsplit_once('-')?;
    Operation::from_token(operation)?;

    let (commit_lsn, seq) = position.split_once(':')?;
    let is_hex = commit_lsn.bytes().all(|byte| byte.is_ascii_hexdigit());
    let commit_lsn = is_hex
        .then(|| u64::from_str_radix(commit_lsn, 16).ok())
        .flatten()?;
    Some(Position::new(Lsn(commit_lsn), parse_seq(seq)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token::escape_token;

    fn id(position: Position, table: &str, operation: Operation) -> String {
        let mut out = Vec::new();
        write(&mut out, position, &escape_token(table), operation);
        String::from_utf8(out).expect("made of text")
    }

    #[test]
    fn the_id_is_position_table_and_operation() {
        let position = Position::new(Lsn(0x25C_B3C8), 1);

        assert_eq!(
            id(position, "users", Operation::Insert),
            "25cb3c8:1-users-insert"
        );
    }

    #[test]
    fn foreign_ids_have_no_position() {
        for foreign in [
            "",
            "-",
            "25cb3c8-users-insert",
            "1:1-users",
            "1:1-users-merge",
            "+1:1-a-insert",
        ] {
            assert_eq!(super::position(foreign), None, "{foreign:?}");
        }
    }

    proptest! {
        #[test]
        fn the_position_is_read_back(lsn: u64, seq: u32, table: String, operation in 0..4_usize) {
            let position = Position::new(Lsn(lsn), seq);
            let id = id(position, &table, Operation::ALL[operation]);

            prop_assert!(!id.contains(['\r', '\n']));
            prop_assert_eq!(super::position(&id), Some(position));
        }

        #[test]
        fn any_id_is_read_without_panic(text: String) {
            let _ = super::position(&text);
        }
    }
}
