//! Where an event stands in the stream of all changes.
//!
//! In: the commit LSN of a transaction and the ordinal of the event in it. Out: one ordered value.
//! Invariant: positions of published events grow strictly along the stream. (The row's own LSN does
//! not: all rows of one COPY page share one, and it goes backwards between transactions.)

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::lsn::{self, FromText, Lsn};

/// Order and identity of an event. Text form: `0/25CB3C8:7`; serialised as that text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// LSN of the commit record (`commit_lsn` of pgoutput's Begin and Commit, not `end_lsn`).
    pub commit_lsn: Lsn,
    /// Ordinal of the event in its transaction, from 1, counted over published events only. 0 stands
    /// before the transaction's first event. A transaction of more than `u32::MAX` events is beyond
    /// the contract.
    pub seq: u32,
}

/// The text is not `{lsn}:{seq}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The part before the colon.
    #[error(transparent)]
    Lsn(#[from] lsn::ParseError),
    /// The colon or the decimal number behind it.
    #[error("{input:?} is not a position; expected the form 0/25CB3C8:7")]
    Seq {
        /// What was given.
        input: String,
    },
}

impl Position {
    /// Before every event.
    pub const START: Self = Self {
        commit_lsn: Lsn::INVALID,
        seq: 0,
    };

    /// The position of the `seq`-th event of the transaction that committed at `commit_lsn`.
    pub fn new(commit_lsn: Lsn, seq: u32) -> Self {
        Self { commit_lsn, seq }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.commit_lsn, self.seq)
    }
}

impl FromStr for Position {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let not_a_position = || ParseError::Seq {
            input: text.to_owned(),
        };
        let (commit_lsn, seq) = text.split_once(':').ok_or_else(not_a_position)?;
        Ok(Self {
            commit_lsn: commit_lsn.parse()?,
            seq: parse_seq(seq).ok_or_else(not_a_position)?,
        })
    }
}

/// A decimal u32 with no sign. Leading zeros are tolerated.
pub(crate) fn parse_seq(digits: &str) -> Option<u32> {
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText("a position such as 0/25CB3C8:7", |text| {
            text.parse().ok()
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_commit_decides_before_the_ordinal() {
        let early = Position::new(Lsn(1), 9);
        let late = Position::new(Lsn(2), 1);

        assert!(early < late);
        assert!(Position::START < early);
    }

    #[test]
    fn a_sign_or_a_missing_part_is_refused() {
        for text in [
            "",
            "0/1",
            "0/1:",
            ":1",
            "0/1:+1",
            "0/1:4294967296",
            "0/1:1:1",
            "1:1",
        ] {
            assert!(text.parse::<Position>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(commit_lsn: u64, seq: u32) {
            let position = Position::new(Lsn(commit_lsn), seq);
            prop_assert_eq!(position.to_string().parse(), Ok(position));
        }
    }
}
