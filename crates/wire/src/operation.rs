//! The four kinds of change, by name and by subject token.
//!
//! In: text from a message or a subject. Out: the kind, or the text.
//! Invariant: the token is the name in lower case.

use serde::{Deserialize, Serialize};

/// What happened to a row, or to a whole table (`Truncate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// A new row.
    Insert,
    /// A changed row, also when its key changed.
    Update,
    /// A removed row.
    Delete,
    /// A table emptied at once; one event per table named in the statement.
    Truncate,
}

impl Operation {
    /// Every kind, in the order of [`crate::Subjects`].
    pub const ALL: [Self; 4] = [Self::Insert, Self::Update, Self::Delete, Self::Truncate];

    /// The name in a message: `INSERT`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Truncate => "TRUNCATE",
        }
    }

    /// The token in a subject and a message id: `insert`.
    pub fn token(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
        }
    }

    /// The kind of a token, if it is one. Case matters.
    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|operation| operation.token() == token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_the_name_in_lower_case() {
        for operation in Operation::ALL {
            assert_eq!(operation.name().to_ascii_lowercase(), operation.token());
            assert_eq!(Operation::from_token(operation.token()), Some(operation));
        }
    }
}
