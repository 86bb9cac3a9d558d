//! Shows an error together with its causes.
//!
//! In: an error. Out: one line. What must hold: each cause is there once, so no message of ours repeats its source.

use std::error::Error;
use std::fmt;

/// An error and its causes in one line, for a log.
pub struct Chained<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
