//! Whether the stream goes on where the tables are.
//!
//! In: what the stream holds, what the file notes. Out: the tables that must be seeded anew.
//! Invariant: a table that is not marked lacks no message between its sequence and the stream's last.

use crate::follow;
use crate::join::{Bounds, Need};
use crate::source::Source;
use crate::store::{Store, Table};

/// Marks the tables that the stream does not continue; true when there are any.
pub async fn check(source: &Source, store: &mut Store) -> Result<bool, follow::Error> {
    let bounds = source.bounds().await?;
    let rewritten = match store.tail()? {
        Some(tail) => {
            let now = source.position_at(tail.sequence).await?;
            // None: retention has taken it, and there is nothing to compare.
            now.filter(|(position, _)| *position != tail.position)
        }
        None => None,
    };
    let mut needs = Vec::new();
    for table in store.tables() {
        if let Some(need) = broken(table, &bounds, rewritten.map(|(_, stored_ns)| stored_ns)) {
            needs.push((table.name.clone(), need));
        }
    }
    if needs.is_empty() {
        return Ok(false);
    }
    store.mark(&needs)?;
    Ok(true)
}

/// Why the stream does not continue the table, if it does not. `rewritten_ns`: another event stands
/// where the last one applied stood, since then.
fn broken(table: &Table, bounds: &Bounds, rewritten_ns: Option<i128>) -> Option<Need> {
    let mut need = Need::default();
    need.reason = if i128::from(table.ended_ns) < bounds.created_ns {
        "the stream was made anew".to_owned()
    } else if let Some(rewritten_ns) = rewritten_ns {
        need.after_ns = i64::try_from(rewritten_ns).unwrap_or(i64::MAX);
        "the stream went back and took another course".to_owned()
    } else if bounds.last_seq < table.sequence {
        format!(
            "the stream ends at {}, before {}",
            bounds.last_seq, table.sequence
        )
    } else if table.sequence + 1 < bounds.first_seq {
        let lost = table.sequence + 1;
        format!(
            "messages {lost} to {} have left the stream",
            bounds.first_seq - 1
        )
    } else {
        return None;
    };
    Some(need)
}
